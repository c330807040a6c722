"""The watch asks a real Airflow: what is healthy, paused, or does not load."""

from batch_jobs.monitoring.watching.airflow import AirflowApi
from batch_jobs.settings import WatchSettings
from demo.local import ADMIN
from tests.support.airflow_cases import until


def test_a_real_airflow_is_understood(site):
    """Each process is healthy, all files load, our DAGs are paused; and it wants a login."""
    asked = WatchSettings(
        airflow_url=site.airflow.url, airflow_user=ADMIN, airflow_password=site.airflow.password
    )
    api = AirflowApi(asked)
    found = until(lambda: (state := api.state(["careful"])).dags and state, "the DAGs")
    assert (found.away, found.refused) == (None, None)
    assert {name: one.status for name, one in found.components.items()} == dict.fromkeys(
        ("metadatabase", "scheduler", "dag_processor", "triggerer"), "healthy"
    )
    assert {"predict_iris", "train_iris", "predict_flight_delay"} <= set(found.dags)
    assert found.dags["predict_iris"].is_paused
    assert not found.dags["predict_iris"].is_stale
    assert found.broken_files == []
    refused = AirflowApi(WatchSettings(airflow_url=site.airflow.url)).state([])
    assert refused.dags is None
    assert "wants a login" in refused.refused
