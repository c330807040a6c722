"""One Airflow for the files that need one with nothing special about it.

It takes as long to start as most tests of it, so these files run in one process of the test run;
see `OneAirflow` in tests/conftest.py.
"""

import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.samples.flights import load_flights
from demo.local import LocalAirflow
from tests.conftest import ROOT
from tests.example_models._tables import make_tables
from tests.support.airflow_cases import PATIENCE, free_port, patient
from tests.support.slack_endpoint import listening

# Yesterday is the newest day at which the training was due, whenever this runs.
ASKING = """
from datetime import timedelta

from tests.example_models.orders import model as orders

model = orders.model_copy(
    update={{
        "train_schedule": "{schedule}",
        "gate": orders.gate.model_copy(
            update={{
                "approval": timedelta(seconds={patience}),
                "rule": "always",  # the orders are of another day each day, and so is a verdict
                "calibration": None,
            }}
        ),
        "retrain_on_drift": timedelta(hours=2),
    }}
)
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A running Airflow, a warehouse with a year of flights, and somebody who listens as Slack.

    Beside the bundled models there are `careful`, which waits an hour for a person's approval of a
    version, and `hasty`, which hardly waits. No DAG is unpaused.
    """
    home = tmp_path_factory.mktemp("site")
    (home / "user").mkdir()
    (home / "asking").mkdir()
    (home / "asking" / "__init__.py").touch()
    now = datetime.now(UTC)
    due = (now - timedelta(days=1)).replace(hour=3, minute=0, second=0, microsecond=0)
    for name, patience in (("careful", 3600), ("hasty", 10)):
        code = ASKING.format(schedule=f"0 3 {due.day} * *", patience=patience)
        (home / "asking" / f"{name}.py").write_text(code)
    warehouse = Warehouse(f"sqlite:///{home}/warehouse.db")
    warehouse.ensure_schema()
    with listening() as slack:
        environ = patient(home / "patient")
        environ |= {
            "BATCH_JOBS_WAREHOUSE": str(warehouse),
            "BATCH_JOBS_MODEL_STORE": str(home / "models"),
            "BATCH_JOBS_MODELS": "asking",
            "PYTHONPATH": os.pathsep.join([environ["PYTHONPATH"], str(home)]),
            "AIRFLOW_CONN_SLACK_WEBHOOK": slack.connection(),
            "HOME": str(home / "user"),
        }
        with LocalAirflow(ROOT, home / "airflow", free_port(), environ) as airflow:
            with warehouse.write_source() as connection:
                load_flights(connection, now)
                make_tables(connection, now - timedelta(days=31), now + timedelta(hours=1))
            airflow.wait_healthy(PATIENCE)
            yield SimpleNamespace(
                home=home, warehouse=warehouse, airflow=airflow, slack=slack, due=due
            )
