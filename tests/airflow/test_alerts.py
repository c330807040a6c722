"""What Slack is told of a failed run, through the real connection, outbox and HTTP."""

import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout
from sqlalchemy import text

from batch_jobs.alerts import outbox
from batch_jobs.alerts import slack as slack_webhook
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError, FormError
from batch_jobs_airflow import alerts
from batch_jobs_airflow import slack as slack_
from batch_jobs_airflow.alerts import (
    fail_alert,
    flush_alerts,
    import_error_alert,
    record_error,
    recovery_alert,
    send_message,
    success_alert,
)
from batch_jobs_airflow.context import MARKED_FAILED, WAS_AWAY
from tests.conftest import ROOT
from tests.support.slack_endpoint import CANARY, slack_endpoint

__all__ = ["slack_endpoint"]
START = datetime(2026, 11, 22, 14, 50, tzinfo=UTC)
TEN_MINUTES = timedelta(minutes=10)


on_both = pytest.mark.parametrize("deployment", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def deployment(request, tmp_path, monkeypatch):
    """A warehouse of its own, on SQLite unless wanted otherwise, and no pauses; answers its URL."""
    on_postgresql = getattr(request, "param", "sqlite") == "postgresql"
    url = (
        request.getfixturevalue("postgres_url")
        if on_postgresql
        else f"sqlite:///{tmp_path}/warehouse.db"
    )
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", url)
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path))
    monkeypatch.setattr(slack_webhook, "PAUSE", 0.0)
    return url


@pytest.fixture
def slack(slack_endpoint, monkeypatch):
    """The stand-in for Slack, with the connection that leads there."""
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", slack_endpoint.connection())
    return slack_endpoint


@pytest.fixture
def clock(monkeypatch):
    """The time that the alerts are told it is; moves when it is set."""
    clock = SimpleNamespace(now=START + TEN_MINUTES)
    for module in (alerts, slack_):
        monkeypatch.setattr(module, "utc_now", lambda: clock.now)
    return clock


def dag_context(run_id="scheduled__1", dag_id="predict_flight_delay", reason="task_failure", **run):
    """What a DAG's callback gets: no exception, and a task instance with half of its fields."""
    fields = {"data_interval_start": START, "data_interval_end": START + TEN_MINUTES, **run}
    dag_run = SimpleNamespace(**{"dag_id": dag_id, "run_id": run_id, "clear_number": 0, **fields})
    ti = SimpleNamespace(
        dag_id=dag_id,
        run_id=run_id,
        task_id="score",
        map_index=2,
        try_number=3,
        max_tries=0,
        log_url=f"http://127.0.0.1:8080/dags/{dag_id}/runs/{run_id}/tasks/score/mapped/2",
    )
    return {
        "dag": SimpleNamespace(dag_id=dag_id, fileloc="/dags/predict.py"),
        "dag_run": dag_run,
        "task": SimpleNamespace(retries=2),
        "task_instance": ti,
        "ti": ti,
        "run_id": run_id,
        "reason": reason,
    }


def task_context(exception, **changes):
    """What a task's callback gets: the exception, and no reason."""
    context = {**dag_context(**changes), "exception": exception}
    del context["reason"]
    return context


def succeed(run_id="scheduled__9", **changes):
    """What a DAG's callback gets when the run has succeeded."""
    return dag_context(run_id, reason="success", **changes)


def lines(slack):
    """The lines of the only message."""
    (message,) = slack.texts
    return message.split("\n")


# --- What is told


@on_both
def test_failed_task_is_told_with_all_that_is_known(slack):
    """Model, DAG, task, try, interval, the exception's first line, readers, and the log."""
    record_error(task_context(ValueError("bad rows\nrow 1")))
    fail_alert(dag_context())

    log_url = dag_context()["ti"].log_url
    assert lines(slack) == [
        ":red_circle: *predict_flight_delay* failed",
        "model *flight_delay* · task *score[2]* · try 3 of 3",
        "Interval 22 Nov 14:50 - 15:00 UTC",
        "`ValueError: bad rows`",
        "Nothing is published yet.",
        f"<{log_url}|Open the log>",
    ]


@on_both
def test_readers_of_old_predictions_are_told_of(slack, deployment, clock):
    """The message says what the failure means to those who read the predictions."""
    warehouse = Warehouse(deployment)
    warehouse.ensure_schema()
    with warehouse.write() as connection:
        for statement in PUBLISHED.split(";"):
            connection.execute(text(statement))
    clock.now = datetime(2026, 11, 22, 15, 3, tzinfo=UTC)
    fail_alert(dag_context())

    assert lines(slack)[4] == (
        "Readers still see version `v1` of 22 Nov 14:40 - 14:50 UTC, published 12 min ago, 12 rows."
    )


PUBLISHED = f"""
    INSERT INTO model_versions (model, version, as_of, created_at, sha256, size_bytes, manifest,
      metrics, gate)
    VALUES ('flight_delay', 'v1', '2026-11-22', '2026-11-22', '{"0" * 64}', 1, '{{}}', '{{}}',
      '{{}}');
    INSERT INTO prediction_runs (run_id, model, interval_start, interval_end, state, model_version,
      rows_read, rows_scored, rows_rejected, rows_skipped, published_at, mode, token, claimed_at)
    VALUES (1, 'flight_delay', '2026-11-22T14:40:00+00:00', '2026-11-22T14:50:00+00:00',
      'published', 'v1', 12, 12, 0, 0, '2026-11-22T14:51:00+00:00', 'merge', 't', '2026-11-22');
    INSERT INTO serving_heads VALUES ('flight_delay', 'merge', 1, '2026-11-22T14:40:00+00:00',
      '2026-11-22T14:50:00+00:00', '2026-11-22T14:51:00+00:00', '2026-11-22', '2026-11-22')
"""


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("task_failure", "The task left no exception: it was killed"),
        ("timed_out", "The run took longer than its dagrun_timeout."),
        ("all_tasks_deadlocked", "No task could run: each waits for another one."),
        (MARKED_FAILED, "The run was marked failed by hand."),
    ],
)
def test_failure_without_an_exception_is_told_by_its_reason(slack, reason, told):
    """Killed, too late, deadlocked, marked: each is told in words, once."""
    fail_alert(dag_context(reason=reason))

    assert lines(slack)[3].startswith(told)


@pytest.mark.parametrize(
    ("exception", "told"),
    [
        (AirflowTaskTimeout("Timeout, PID: 7"), "The task took longer than its execution_timeout."),
        (MARKED_FAILED, "The task was marked failed by hand."),
    ],
)
def test_failure_that_reads_badly_is_told_in_words(slack, exception, told):
    """Airflow's own exceptions for a limit, and ours for a mark, are put plainly."""
    record_error(task_context(exception))
    fail_alert(dag_context())

    assert lines(slack)[3] == told


def test_own_error_is_told_rather_than_the_one_it_became_for_airflow(slack):
    """A task turns our error into one of Airflow's, whose name tells nobody anything."""
    error = AirflowFailException("flights: 2 keys are null")
    error.__cause__ = ContractError("flights", ["2 keys are null"])
    record_error(task_context(error))
    fail_alert(dag_context())

    assert lines(slack)[3] == "`ContractError: flights: 2 keys are null`"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_interval_start": None}, "Manual run without interval"),
        ({"data_interval_end": START}, "Interval 22 Nov 14:50 UTC"),
        (
            {
                "conf": {
                    "interval_start": "2026-11-21T23:50:00Z",
                    "interval_end": "2026-11-22T00:00:00Z",
                }
            },
            "Interval 21 Nov 23:50 - 22 Nov 00:00 UTC",
        ),
        ({"conf": {"interval_start": "<!here>", "interval_end": 3}}, "Interval 22 Nov 14:50 - "),
    ],
)
def test_interval_is_the_one_asked_for_or_the_runs_own(slack, changes, told):
    """Triggered by hand without a date, with one, or with nonsense: the message says which rows."""
    fail_alert(dag_context(**changes))

    assert lines(slack)[2].startswith(told)


def test_text_from_outside_can_neither_ping_nor_link(slack):
    """Mentions, links and marks in an exception or a run's name are shown as they are."""
    record_error(task_context(ValueError("<!channel> & <https://evil.example|click> `x` *b*")))
    fail_alert(dag_context(run_id="scheduled__1"))

    assert lines(slack)[3] == (
        "`ValueError: &lt;!channel&gt; &amp; &lt;https://evil.example|click&gt; 'x' *b*`"
    )


def test_run_id_can_neither_ping_nor_link(slack):
    """The log's address is made of what a user typed."""
    context = dag_context()
    context["ti"].log_url = "http://127.0.0.1/runs/a>|<!channel>?x=1&y=2"
    fail_alert(context)

    assert lines(slack)[5] == (
        "<http://127.0.0.1/runs/a%3E%7C%3C!channel%3E?x=1&amp;y=2|Open the log>"
    )


def test_file_that_does_not_load_is_told(slack):
    """A DAG file's error names the file and the last line of the stack trace."""
    import_error_alert("/srv/dags/train.py", "ImportError: No module named 'flights'", is_new=True)

    assert lines(slack) == [
        ":red_circle: DAG file *train.py* does not load",
        "Its DAGs do not run until it does.",
        "`ImportError: No module named 'flights'`",
        "`/srv/dags/train.py`",
    ]


def test_free_message_is_sent_as_it_is_written(slack):
    """Other code can send to the same channel, and its secrets are taken out too."""
    send_message("*Monthly report* password=s3cr3t")

    assert slack.texts == ["*Monthly report* password=***"]


# --- Told once


def test_run_registered_at_every_level_is_told_once(slack):
    """As in the tutorials: the same function for the task and for the DAG is one message."""
    fail_alert(task_context(ValueError("bad")))
    fail_alert(dag_context())
    fail_alert(dag_context())

    assert lines(slack)[3] == "`ValueError: bad`"


def test_run_that_is_cleared_and_fails_again_is_counted_again(slack, clock):
    """The same run, run again, is another failure of the same incident."""
    fail_alert(dag_context())
    clock.now += timedelta(hours=2)
    fail_alert(dag_context(clear_number=1))

    assert len(slack.texts) == 2
    assert "failed again: 2 failed runs since 22 Nov 15:00 UTC" in slack.texts[1]


def test_storm_is_a_handful_of_messages_and_one_recovery(slack, clock):
    """Fifty failures in eight hours are three messages; the success after them is one."""
    for number in range(50):
        fail_alert(dag_context(f"scheduled__{number}"))
        clock.now += TEN_MINUTES
    recovery_alert(succeed("scheduled__50"))
    recovery_alert(succeed("scheduled__51"))

    assert [message.split("\n")[0] for message in slack.texts] == [
        ":red_circle: *predict_flight_delay* failed",
        ":red_circle: *predict_flight_delay* failed again: 7 failed runs since 22 Nov 15:00 UTC",
        ":red_circle: *predict_flight_delay* failed again: 31 failed runs since 22 Nov 15:00 UTC",
        ":large_green_circle: *predict_flight_delay* works again",
    ]
    assert "After 50 failures in 8 h 20 min" in slack.texts[3]


@pytest.mark.failure_mode("refusals-note")
def test_nobody_hears_that_it_works_again_while_an_interval_is_missing(slack, monkeypatch):
    """Later intervals are published, and the one that failed is not; then it is."""
    missing = ["[14:50, 15:00)"]
    monkeypatch.setattr("batch_jobs.runs.attempts.unhealed", lambda *_: missing)
    fail_alert(dag_context())
    recovery_alert(succeed("scheduled__50"))
    assert len(slack.texts) == 1
    missing.clear()
    recovery_alert(succeed("scheduled__51"))
    assert len(slack.texts) == 2


def test_success_without_a_failure_is_not_told(slack):
    """The common case sends nothing."""
    recovery_alert(succeed())

    assert slack.requests == []


def test_success_of_a_task_is_no_recovery(slack):
    """One task that works does not mean that the DAG does."""
    fail_alert(dag_context())
    recovery_alert(task_context(None))

    assert len(slack.texts) == 1


def test_every_success_is_told_if_asked_for(slack):
    """`success_alert` tells each success once, and one after a failure as a recovery."""
    success_alert(succeed("scheduled__1"))
    success_alert(succeed("scheduled__1"))
    fail_alert(dag_context("scheduled__2"))
    success_alert(succeed("scheduled__3"))

    assert [message.split("\n")[0] for message in slack.texts] == [
        ":large_green_circle: *predict_flight_delay* succeeded",
        ":red_circle: *predict_flight_delay* failed",
        ":large_green_circle: *predict_flight_delay* works again",
    ]


def test_file_that_goes_on_failing_is_told_once(slack, clock):
    """A file is parsed twice a minute; process ids in its error do not make it another one."""
    for number, is_new in enumerate([True, False, False]):
        import_error_alert("/dags/a.py", f"Timeout, PID: {4000 + number}", is_new=is_new)
        clock.now += timedelta(seconds=30)

    assert len(slack.texts) == 1


def test_file_that_was_mended_and_breaks_again_is_told_again(slack):
    """What Airflow calls a new error is one, though it reads the same."""
    import_error_alert("/dags/a.py", "ImportError: x", is_new=True)
    import_error_alert("/dags/a.py", "ImportError: x", is_new=True)

    assert len(slack.texts) == 2


def test_success_of_a_dag_ends_the_failure_of_its_file(slack):
    """A file that did not load has recovered when one of its DAGs has run."""
    import_error_alert("/dags/predict.py", "ImportError: x", is_new=True)
    recovery_alert(succeed())

    assert slack.texts[1].startswith(":large_green_circle: *predict_flight_delay* works again")


# --- Delivered, or kept


@pytest.mark.parametrize("mode", ["429", "500", "403", "404", "close"])
@pytest.mark.failure_mode(21)
def test_alert_that_slack_does_not_take_is_kept_for_the_next_run(slack, clock, mode):
    """Whatever is wrong with Slack, the next run sends what this one could not, once."""
    slack.mode = mode
    fail_alert(dag_context())
    slack.mode = "ok"
    clock.now += timedelta(minutes=1)
    flush_alerts()
    flush_alerts()

    assert len(slack.texts) == 1


def test_alert_is_kept_while_slack_hangs(slack, clock, monkeypatch):
    """A Slack that never answers costs two tries."""
    monkeypatch.setattr(slack_webhook, "TIMEOUT", 0.2)
    slack.mode = "hang"
    fail_alert(dag_context())
    slack.mode = "ok"
    slack.release()
    tries = len(slack.requests)
    clock.now += timedelta(minutes=1)
    flush_alerts()

    assert tries == 2
    assert len(slack.texts) == 1


def test_late_alert_says_that_it_is_late(slack, clock):
    """Who reads it the next morning is told when it was written."""
    slack.mode = "500"
    fail_alert(dag_context())
    slack.mode, clock.now = "ok", clock.now + timedelta(hours=9)
    flush_alerts()

    assert lines(slack)[-1] == "_Could not be sent before; written 22 Nov 15:00 UTC._"


def test_all_that_waits_is_sent_oldest_first(slack, clock):
    """A failure and its recovery arrive in this order, though both had to wait."""
    slack.mode = "500"
    fail_alert(dag_context())
    clock.now += timedelta(minutes=1)
    recovery_alert(succeed())
    slack.mode = "ok"
    clock.now += timedelta(minutes=1)
    flush_alerts()

    assert [message.split("* ")[1].split("\n")[0] for message in slack.texts] == [
        "failed",
        "works again",
    ]


def test_broken_slack_is_not_asked_for_every_waiting_alert(slack):
    """Callbacks of one file share 50 seconds: after a refusal they only note their alerts."""
    slack.mode = "404"
    for number in range(3):
        send_message(str(number))

    assert len(slack.requests) == 1


def test_without_a_warehouse_the_alert_is_sent_all_the_same(slack, monkeypatch, caplog):
    """Better twice than not at all; the log says why."""
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", "sqlite:////no/such/folder/warehouse.db")
    fail_alert(task_context(ValueError("bad")))

    assert lines(slack)[3] == "`ValueError: bad`"
    assert "the outbox of alerts cannot be used: ConfigurationError" in caplog.text


@on_both
def test_locked_warehouse_does_not_hold_the_alert(slack, deployment, monkeypatch):
    """A writer that never ends costs eight seconds at most, and nothing is guessed."""
    monkeypatch.setattr(alerts, "COMPOSING_SECONDS", 0.3)
    monkeypatch.setattr(alerts, "LOOKING_SECONDS", 0.3)
    warehouse = Warehouse(deployment)
    warehouse.ensure_schema()
    with warehouse.write() as connection:
        if warehouse.database.name == "postgresql":
            connection.execute(text("LOCK TABLE alerts"))
        fail_alert(dag_context())

    [message] = slack.texts
    assert "Why cannot be told now, the warehouse does not answer" in message
    assert "it was killed" not in message


@on_both
def test_new_warehouse_is_made_for_the_first_alert(slack, deployment):
    """A failure before `batch-jobs init` is told and kept like any other."""
    fail_alert(dag_context())

    assert outbox.waiting(Warehouse(deployment), datetime.now(UTC)) == 0
    assert len(slack.texts) == 1


@pytest.mark.parametrize(
    ("connection", "told"),
    [
        (None, "nothing is sent to Slack: no connection slack_webhook found"),
        (
            {"conn_type": "slackwebhook", "host": "hooks.slack.com/services", "password": " "},
            "nothing is sent to Slack: connection slack_webhook has no webhook's secret path",
        ),
    ],
)
def test_without_a_usable_connection_one_line_is_logged(monkeypatch, caplog, connection, told):
    """Who has no Slack is told so once, and is not bothered with errors."""
    if connection is not None:
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", json.dumps(connection))
    fail_alert(dag_context())

    (record,) = [found for found in caplog.records if found.name.startswith("batch_jobs_airflow")]
    assert record.getMessage().startswith(told)


def test_alert_waits_for_a_connection_to_be_made(slack, monkeypatch):
    """What failed before Slack was set up is told when it is."""
    monkeypatch.delenv("AIRFLOW_CONN_SLACK_WEBHOOK")
    fail_alert(dag_context())
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", slack.connection())
    flush_alerts()

    assert len(slack.texts) == 1


def forms(endpoint):
    """The forms in which a connection can be written, each leading to the stand-in."""
    quoted = CANARY.replace("/", "%2F")
    host = f"127.0.0.1:{endpoint.port}"
    return {
        "whole URL": endpoint.connection(),
        "seed": json.dumps({"conn_type": "http", "host": endpoint.base, "password": f"/{CANARY}"}),
        "host": json.dumps(
            {"conn_type": "slackwebhook", "host": endpoint.base, "password": CANARY}
        ),
        "schema": json.dumps(
            {
                "conn_type": "slackwebhook",
                "schema": "http",
                "host": f"{host}/services",
                "password": CANARY,
            }
        ),
        "bare URL": endpoint.url,
        "URI": f"slackwebhook://:{quoted}@http%3A%2F%2F127.0.0.1%3A{endpoint.port}%2Fservices",
    }


@pytest.mark.parametrize("form", ["whole URL", "seed", "host", "schema", "bare URL", "URI"])
def test_connection_works_in_every_form(slack, monkeypatch, form):
    """However the connection was written, the message arrives at the same address."""
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", forms(slack)[form])
    send_message("hello")

    assert slack.requests == [f"/services/{CANARY}"]


def test_proxy_is_not_used_where_none_should_be(slack, monkeypatch):
    """`NO_PROXY` holds, though Slack's own client ignores it."""
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the environment
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    send_message("hello")

    assert slack.texts == ["hello"]


def test_proxy_of_the_environment_is_used_elsewhere(slack, monkeypatch):
    """Where no exception is made, the proxy gets the request."""
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{slack.port}")
    password = f"http://slack.invalid/services/{CANARY}"
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLACK_WEBHOOK",
        json.dumps({"conn_type": "slackwebhook", "password": password}),
    )
    send_message("hello")

    assert slack.requests == [password]


def test_proxy_of_the_connection_is_used(slack, monkeypatch):
    """The provider's own way to name a proxy works."""
    password = f"http://slack.invalid/services/{CANARY}"
    extra = json.dumps({"proxy": f"http://127.0.0.1:{slack.port}"})
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLACK_WEBHOOK", slack.connection(password=password, extra=extra)
    )
    send_message("hello")

    assert slack.requests == [password]


# --- Never in the way


ODD_CONTEXTS = [
    {},
    {"dag": None, "run_id": None, "reason": None},
    {"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "reason": "task_failure"},
    {"ti": SimpleNamespace(task_id="t"), "exception": "text"},
    {"ti": SimpleNamespace(task_id="t", try_number="x", map_index="y"), "exception": KeyError()},
    {"dag_run": SimpleNamespace(conf=["x"], clear_number=None), "reason": "success"},
    {"dag_run": SimpleNamespace(conf={"interval_start": 1, "interval_end": None}), "ti": object()},
]


@pytest.mark.parametrize("callback", [record_error, recovery_alert, success_alert])
@pytest.mark.parametrize("context", ODD_CONTEXTS)
def test_context_that_lacks_everything_raises_nothing(slack, caplog, callback, context):
    """Airflow's contexts differ from one way to fail to the next; none is an error of ours."""
    Warehouse(os.environ["BATCH_JOBS_WAREHOUSE"]).ensure_schema()
    callback(context)

    assert [found for found in caplog.records if found.name.startswith("batch_jobs_airflow")] == []


@pytest.mark.parametrize("context", ODD_CONTEXTS)
def test_failure_with_an_odd_context_is_told(slack, context):
    """Something failed, even if nobody knows what."""
    fail_alert(context)

    assert " failed" in lines(slack)[0]


def test_property_that_raises_is_left_out(slack):
    """A task instance half made by Airflow raises where it should answer."""

    class Half(SimpleNamespace):
        @property
        def log_url(self):
            raise AttributeError("run_id")

    fail_alert({**dag_context(), "ti": None, "task_instance": Half(dag_id="d", task_id="t")})

    assert len(slack.texts) == 1


@pytest.mark.failure_mode(21)
def test_nothing_leaves_a_callback_but_a_line_in_the_log(slack, monkeypatch, caplog):
    """Whatever breaks inside is told in the log, redacted."""

    def broken():
        raise RuntimeError("password=s3cr3t")

    monkeypatch.setattr(alerts, "_warehouse", broken)
    monkeypatch.setattr(alerts, "way_to_slack", broken)
    fail_alert(dag_context())

    assert "record_failure failed: RuntimeError: password=***" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_time_of_a_callback_is_bounded():
    """A callback has 20 seconds to live: the warehouse and Slack together leave some."""
    alone = alerts.COMPOSING_SECONDS + slack_.SENDING_SECONDS + 1
    kept = alerts.COMPOSING_SECONDS + alerts.LOOKING_SECONDS
    assert max(alone, kept + slack_.SENDING_SECONDS + 1) < 20
    assert alerts.NOTING_SECONDS < 20


@pytest.mark.parametrize("mode", ["ok", "429", "500", "403", "404", "hang", "close", "refused"])
@pytest.mark.parametrize("has_warehouse", [True, False])
def test_token_is_seen_nowhere(slack, monkeypatch, caplog, capfd, deployment, mode, has_warehouse):
    """In no mode does the webhook's secret reach a log, the output, the warehouse or Slack."""
    monkeypatch.setattr(slack_webhook, "TIMEOUT", 0.2)
    caplog.set_level(logging.DEBUG)
    if mode == "refused":
        gone = "http://127.0.0.1:1"
        connection = slack.connection(password=f"{gone}/services/{CANARY}")
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", connection)
    else:
        slack.mode = mode
    if not has_warehouse:
        monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", "sqlite:////no/such/folder/warehouse.db")
    record_error(task_context(ValueError(f"cannot post to {slack.url}")))
    fail_alert(task_context(RuntimeError(f"the token is {CANARY}")))
    slack.release()

    stored = ""
    if has_warehouse:
        with Warehouse(deployment).read() as connection:
            rows = connection.execute(text("SELECT * FROM alerts")).all()
            stored = f"{rows} {connection.execute(text('SELECT * FROM task_errors')).all()}"
    shown = "".join([stored, caplog.text, *capfd.readouterr(), *slack.texts])
    assert CANARY.rpartition("/")[2] not in shown
    assert CANARY.replace("/", "%2F") not in shown


def test_importing_costs_next_to_nothing():
    """DAG files import this every 30 seconds: no Airflow, database or Slack library with it."""
    heavy = {"airflow", "numpy", "pandas", "slack_sdk", "sqlalchemy"}
    script = f"import sys, utils.slack_alert; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == ""


@on_both
def test_many_callbacks_at_once_tell_each_run_once(slack):
    """Processes that fail together neither lose a message nor send one twice."""
    threads = [
        threading.Thread(target=fail_alert, args=(dag_context("r", dag_id=f"predict_m{n // 2}"),))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flush_alerts()

    assert sorted(message.split("*")[1] for message in slack.texts) == [
        f"predict_m{n}" for n in range(4)
    ]


@on_both
def test_a_failed_run_is_told_by_the_task_that_failed_first(slack, clock):
    """Airflow's context has the last task that failed, which often only echoes an earlier one."""
    first = dag_context()
    first["task_instance"] = SimpleNamespace(
        **{**vars(first["task_instance"]), "task_id": "plan", "map_index": -1, "try_number": 1}
    )
    record_error({**first, "exception": ContractError("features_query", ["has no entity_id"])})
    clock.now += timedelta(seconds=5)
    record_error({**dag_context(), "exception": ValueError("nothing was planned")})
    fail_alert(dag_context(start_date=START))
    [told] = slack.texts
    assert "task *plan*" in told
    assert "has no entity_id" in told
    assert "/tasks/plan?try_number=1" in told


@on_both
def test_the_errors_of_a_run_before_it_was_cleared_are_not_told_again(slack, clock):
    """A cleared run starts anew, and so does the search for what failed first."""
    before = dag_context()
    before["task_instance"] = SimpleNamespace(
        **{**vars(before["task_instance"]), "task_id": "plan", "map_index": -1}
    )
    record_error({**before, "exception": ContractError("features_query", ["is old"])})
    clock.now += timedelta(hours=1)
    fail_alert(dag_context(start_date=clock.now))
    [told] = slack.texts
    assert "task *score[2]*" in told
    assert "is old" not in told


def test_nobody_is_told_of_a_persons_own_mistake(slack, deployment):
    """Who filled in the form wrongly finds that in the log; what else failed is told."""
    own = AirflowFailException("give both")
    own.__cause__ = FormError("give both")
    record_error(task_context(own))
    fail_alert(dag_context())
    assert slack.texts == []

    other = task_context(ValueError("bad rows"))
    other["ti"] = SimpleNamespace(**{**vars(other["ti"]), "task_id": "answer", "map_index": -1})
    other["task_instance"] = other["ti"]
    record_error(other)
    fail_alert(dag_context())
    assert "`ValueError: bad rows`" in lines(slack)


def over_time(by, **run):
    """What a DAG's callback gets of a run whose 30 minutes were found to be up so much too late."""
    limit = timedelta(minutes=30)
    run = {"run_type": "scheduled", "start_date": START, "end_date": START + limit + by, **run}
    context = dag_context(reason="timed_out", **run)
    context["dag"].dagrun_timeout = limit
    context["ti"].try_number = 0
    return context


@pytest.mark.failure_mode("airflow-restart")
def test_a_run_that_was_stopped_with_airflow_is_no_alarm(slack, deployment):
    """A planned stop: the next run publishes what this one left, and `works again` is not told."""
    fail_alert(over_time(timedelta(hours=9)))
    recovery_alert(succeed())
    assert slack.texts == []
    fail_alert(over_time(timedelta(seconds=5)))
    assert "The run took longer than its dagrun_timeout." in lines(slack)
    assert "try 0" not in slack.texts[0]


@pytest.mark.parametrize(
    "run", [{"dag_id": "train_flight_delay"}, {"run_type": "manual"}, {"run_type": "backfill"}]
)
@pytest.mark.failure_mode("airflow-restart")
def test_what_the_next_run_does_not_make_up_for_is_told_as_it_was(slack, deployment, run):
    """It did not take too long; and who wants it still knows what to do."""
    fail_alert(over_time(timedelta(hours=9), **run))
    assert WAS_AWAY in lines(slack)
    assert "dagrun_timeout" not in slack.texts[0]
    assert "try 0" not in slack.texts[0]
