"""The read contract is told alike everywhere, and an app's team can prove it on its database."""

import os
import re
import subprocess
import sys
from functools import partial

import pytest
from sqlalchemy import text

from batch_jobs.database.warehouse import Warehouse
from prediction_api.contract import VERSION, VIEWS, test_contract
from tests.support.attempts import ask, publish, tick

COMMENTS = """
    SELECT a.attname, col_description(a.attrelid, a.attnum) FROM pg_attribute AS a
    WHERE a.attrelid = to_regclass(:view) AND a.attnum > 0 ORDER BY a.attnum"""


def told_by(warehouse, view):
    """What the database itself tells of each column of a view."""
    if warehouse.database.name == "postgresql":
        return dict(ask(warehouse, COMMENTS, view=f"serving.{view}"))
    [(sql,)] = ask(warehouse, "SELECT sql FROM sqlite_master WHERE name = :view", view=view)
    return dict(re.findall(r"^  (\w+),?  -- (.*)$", sql.partition(") AS")[0], re.MULTILINE))


def test_the_database_tells_what_each_column_is(warehouse):
    """PostgreSQL by comments, SQLite in the view's own SQL; also of a warehouse that was older."""
    for view, columns in VIEWS.items():
        assert told_by(warehouse, view) == dict(columns)
        found = ask(warehouse, f"SELECT * FROM {view}")
        assert found == []
    assert ask(warehouse, "SELECT version FROM read_contract") == [(VERSION,)]


def prove(url):
    """The ended process of the tests that an app's team runs, in a folder of its own."""
    command = [sys.executable, "-m", "pytest", "--pyargs", "prediction_api.contract", "-q"]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "BATCH_JOBS_WAREHOUSE": url}
    return subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env=os.environ | alone,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_apps_team_can_prove_the_contract(warehouse):
    """It holds of what is published in both modes."""
    publish(warehouse, tick(0), {"a": 0.25, "b": 0.5})
    publish(warehouse, tick(1), {"b": 0.75})
    publish(warehouse, tick(0), {"x": 1.0}, mode="replace", model="customers")
    publish(warehouse, tick(1), {"y": 1.0}, mode="replace", model="customers")
    ended = prove(warehouse._url.render_as_string(hide_password=False))
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("view", "broken", "test"),
    [
        (
            "read_contract",
            "SELECT '2.0' AS version",
            test_contract.test_the_contract_is_of_the_version_that_was_agreed,
        ),
        (
            "serving_status",
            "SELECT 'orders' AS model",
            partial(test_contract.test_a_view_has_its_columns, view="serving_status"),
        ),
        (
            "current_predictions",
            "SELECT * FROM x UNION ALL SELECT * FROM x",
            test_contract.test_an_entity_has_one_current_prediction,
        ),
    ],
    ids=["version", "columns", "doubled"],
)
def test_a_broken_contract_is_found(tmp_path, view, broken, test):
    """Another version, a column that is missing, rows that are doubled; before, all was well."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/w.db")
    warehouse.ensure_schema()
    publish(warehouse, tick(0), {"a": 0.25})
    with warehouse.read() as connection:
        test(connection)
    with warehouse.write() as connection:
        connection.execute(text("CREATE TABLE x AS SELECT * FROM current_predictions"))
        connection.execute(text(f"DROP VIEW {view}"))
        connection.execute(text(f"CREATE VIEW {view} AS {broken}"))
    with warehouse.read() as connection, pytest.raises(AssertionError):
        test(connection)


def test_without_a_database_it_says_what_to_set():
    """One sentence, not a traceback."""
    ended = prove("")
    assert ended.returncode == 1
    assert "set BATCH_JOBS_WAREHOUSE to the SQLAlchemy URL of your database" in ended.stdout
