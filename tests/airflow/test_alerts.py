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

from batch_jobs.alerts import outbox_status, reporter
from batch_jobs.alerts import slack as slack_webhook
from batch_jobs.alerts.spool import Spool
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError, FormError, WarehouseUnavailableError
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
    monkeypatch.setenv("BATCH_JOBS_SPOOL", str(tmp_path / "spool"))
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
        log_url=f"https://airflow.example/dags/{dag_id}/runs/{run_id}/tasks/score/mapped/2",
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
    since, *facts = lines(slack)[2].split(" · ")
    assert since.startswith("Since ")
    assert facts == [
        "predict_flight_delay",
        "task score[2]",
        "after 3 tries",
        "interval 22 Nov 14:50 - 15:00 UTC",
    ]
    assert [line for line in lines(slack) if not line.startswith("Since ")] == [
        ":red_circle: *flight_delay: score[2] failed*",
        "Nothing is published yet.",
        "`ValueError: bad rows`",
        "*Next:* The last line of its log says more: mend the cause, then clear it.",
        f"<{log_url}|Open the log>",
        (
            "Runbook: `batch-jobs runbook predict-error` · "
            "To mute it: `batch-jobs mute flight_delay predict-error/valueerror-b104 "
            "--reason 'WHY' --link ISSUE --for 2d`"
        ),
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

    assert lines(slack)[1] == (
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
        ("task_failure", "score[2] was killed (out of memory?)"),
        ("timed_out", "A run took too long"),
        ("all_tasks_deadlocked", "No task could run"),
        (MARKED_FAILED, "A run was marked failed by hand"),
    ],
)
def test_failure_without_an_exception_is_told_by_its_reason(slack, reason, told):
    """Killed, too late, deadlocked, marked: each is told in words, once."""
    fail_alert(dag_context(reason=reason))

    assert lines(slack)[0].endswith(f"_circle: *flight_delay: {told}*")


@pytest.mark.parametrize(
    ("exception", "told"),
    [
        (AirflowTaskTimeout("Timeout, PID: 7"), "score[2] took too long"),
        (MARKED_FAILED, "A task was marked failed by hand"),
    ],
)
def test_failure_that_reads_badly_is_told_in_words(slack, exception, told):
    """Airflow's own exceptions for a limit, and ours for a mark, are put plainly."""
    record_error(task_context(exception))
    fail_alert(dag_context())

    assert lines(slack)[0].endswith(f": {told}*")


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
        ({"data_interval_start": None}, "manual run without interval"),
        ({"data_interval_end": START}, "interval 22 Nov 14:50 UTC"),
        (
            {
                "conf": {
                    "interval_start": "2026-11-21T23:50:00Z",
                    "interval_end": "2026-11-22T00:00:00Z",
                }
            },
            "interval 21 Nov 23:50 - 22 Nov 00:00 UTC",
        ),
        ({"conf": {"interval_start": "<!here>", "interval_end": 3}}, "interval 22 Nov 14:50 - "),
    ],
)
def test_interval_is_the_one_asked_for_or_the_runs_own(slack, changes, told):
    """Triggered by hand without a date, with one, or with nonsense: the message says which rows."""
    fail_alert(dag_context(**changes))

    assert f" · {told}" in lines(slack)[2]


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
    context["ti"].log_url = "https://airflow/runs/a>|<!channel>?x=1&y=2"
    fail_alert(context)

    assert lines(slack)[-2] == (
        "<https://airflow/runs/a%3E%7C%3C!channel%3E?x=1&amp;y=2|Open the log>"
    )


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080", "0.0.0.0"])
def test_address_of_this_machine_is_no_link(slack, host):
    """On a phone it leads nowhere: the run is named instead."""
    context = dag_context()
    context["ti"].log_url = f"http://{host}/dags/predict_flight_delay"
    fail_alert(context)

    assert host not in slack.texts[0]
    assert " · run scheduled__1" in lines(slack)[2]


def test_file_that_does_not_load_is_told(slack):
    """A DAG file's error names the file and the last line of the stack trace."""
    import_error_alert("/srv/dags/train.py", "ImportError: No module named 'flights'", is_new=True)

    told = lines(slack)
    assert told[:2] == [
        ":red_circle: *DAG file train.py does not load*",
        "Its DAGs do not run until it does.",
    ]
    assert told[2].endswith(" UTC · /srv/dags/train.py")
    assert told[3] == "`ImportError: No module named 'flights'`"


def test_files_with_one_error_are_one_incident(slack, clock):
    """A module that is gone breaks the file of each kind of DAG; one works again with all."""
    for name in ("predict", "train", "rollback"):
        import_error_alert(f"/dags/{name}.py", "ImportError: x", is_new=True)
    import_error_alert("/dags/train.py", "SyntaxError: y", is_new=True)
    assert [text.split("\n")[0] for text in slack.texts] == [
        ":red_circle: *DAG file predict.py does not load*",
        ":red_circle: *DAG file train.py does not load*",
    ]
    recovery_alert(succeed())
    assert len(slack.texts) == 3
    assert "3 DAG files do not load" in slack.texts[2]


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
    assert "Since 22 Nov 15:00 UTC, 2 times" in slack.texts[1]


def test_storm_is_a_handful_of_messages_and_one_recovery(slack, clock):
    """Fifty failures in eight hours are three messages; the success after them is one."""
    for number in range(50):
        fail_alert(dag_context(f"scheduled__{number}"))
        clock.now += TEN_MINUTES
    recovery_alert(succeed("scheduled__50"))
    recovery_alert(succeed("scheduled__51"))

    killed = ":red_circle: *flight_delay: score[2] was killed (out of memory?)"
    assert [message.split("\n")[0] for message in slack.texts] == [
        f"{killed}*",
        f"{killed}, still: 7 times*",
        f"{killed}, still: 31 times*",
        ":large_green_circle: *flight_delay works again*",
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
        ":large_green_circle: *predict_flight_delay succeeded*",
        ":red_circle: *flight_delay: score[2] was killed (out of memory?)*",
        ":large_green_circle: *flight_delay works again*",
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

    assert slack.texts[1].startswith(
        ":large_green_circle: *Over: DAG file predict.py does not load*"
    )


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


def test_alert_that_may_have_arrived_is_sent_once_more(slack, clock, monkeypatch):
    """A Slack that does not answer in time is asked again after ten minutes, and then not."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLACK_WEBHOOK", slack.connection(extra=json.dumps({"timeout": 0.2}))
    )
    slack.mode = "slow"
    fail_alert(dag_context())
    for _ in range(60):
        clock.now += timedelta(minutes=1)
        flush_alerts()
    slack.release()

    assert len(slack.requests) == len(slack.texts) == 2


def test_slow_slack_is_sent_one_failure_once(slack, clock):
    """It answered after four seconds, and was sent one failure eleven times in 3.5 minutes."""
    slack.mode, slack.delay = "slow", 1.5
    for number in range(3):
        fail_alert(dag_context(f"scheduled__{number}"))
        clock.now += timedelta(minutes=1)

    assert len(slack.requests) == 1


def test_late_alert_says_that_it_is_late(slack, clock):
    """Who reads it the next morning is told when it was written."""
    slack.mode = "500"
    fail_alert(dag_context())
    slack.mode, clock.now = "ok", clock.now + timedelta(hours=9)
    flush_alerts()

    assert lines(slack)[-1] == "_Could not be sent before; written 22 Nov 15:00 UTC._"


def test_what_is_over_before_it_could_be_told_is_one_line(slack, clock):
    """Not a failure and a recovery, of which both are stale."""
    slack.mode = "500"
    fail_alert(dag_context())
    clock.now += timedelta(minutes=20)
    recovery_alert(succeed())
    slack.mode = "ok"
    clock.now += timedelta(minutes=20)
    flush_alerts()

    assert lines(slack)[0] == (
        ":large_green_circle: *flight_delay* failed 22 Nov 15:00 - 15:20 UTC and works again: "
        "score[2] was killed (out of memory?); 1 failure."
    )


def test_recovery_never_overtakes_its_failure(slack, clock):
    """Though Slack refuses in between."""
    fail_alert(dag_context())
    slack.mode = "500"
    clock.now += timedelta(minutes=1)
    recovery_alert(succeed())
    slack.mode = "ok"
    clock.now += timedelta(minutes=1)
    flush_alerts()

    assert [text.split("\n")[0] for text in slack.texts] == [
        ":red_circle: *flight_delay: score[2] was killed (out of memory?)*",
        ":large_green_circle: *flight_delay works again*",
    ]


def test_broken_slack_is_not_asked_for_every_waiting_alert(slack):
    """Callbacks of one file share 50 seconds: after a refusal they only note their alerts."""
    slack.mode = "404"
    for number in range(3):
        send_message(str(number))

    assert len(slack.requests) == 1


def away(monkeypatch):
    """Let the warehouse be away."""
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", "sqlite:////no/such/folder/warehouse.db")


def test_without_a_warehouse_the_alert_is_sent_all_the_same(slack, monkeypatch, caplog):
    """Better twice than not at all; and the warehouse is named, too."""
    away(monkeypatch)
    fail_alert(task_context(ValueError("bad")))

    failure, warehouse = slack.texts
    assert "`ValueError: bad`" in failure
    assert warehouse.startswith(":red_circle: *The warehouse does not answer*")
    assert "the outbox of alerts cannot be used: ConfigurationError" in caplog.text


def test_dead_warehouse_is_one_incident_and_not_one_a_model_and_task(slack, monkeypatch, clock):
    """Twelve models fail for it every ten minutes for two hours, with what they know of it."""
    away(monkeypatch)
    error = WarehouseUnavailableError("the warehouse sqlite:////x did not answer, 3 times")
    for tick in range(12):
        for model in range(12):
            context = dag_context(f"scheduled__{tick}", dag_id=f"predict_m{model}")
            record_error({**context, "exception": error})
            fail_alert(context)
        clock.now += TEN_MINUTES

    assert [text.split("\n")[0] for text in slack.texts] == [
        ":red_circle: *The warehouse does not answer*",
        ":red_circle: *The warehouse does not answer, still: 73 times*",
    ]


def test_what_happened_while_the_warehouse_was_away_is_brought_over(
    slack, monkeypatch, deployment, clock, tmp_path
):
    """In order, with its counts, without being told again; and then it is over, once."""
    away(monkeypatch)
    for number in range(3):
        fail_alert(dag_context(f"scheduled__{number}"))
        clock.now += TEN_MINUTES
    assert len(slack.texts) == 1
    spool = Spool(os.environ["BATCH_JOBS_WAREHOUSE"])
    assert len(spool.events()) == 3
    assert oct(spool.files[0].stat().st_mode)[-3:] == "600"
    # It is the same warehouse, which is back.
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", deployment)
    spool.files[0].rename(Spool(deployment).files[0])
    recovery_alert(succeed())

    assert [text.split("\n")[0] for text in slack.texts[1:]] == [
        ":large_green_circle: *Over: The warehouse does not answer*"
    ]
    assert "After 3 failures in 30 min" in slack.texts[1]
    assert Spool(deployment).is_empty()


@on_both
def test_locked_warehouse_does_not_hold_the_alert(slack, deployment, monkeypatch):
    """A writer that never ends costs eight seconds at most, and is named."""
    monkeypatch.setattr(reporter, "COMPOSING_SECONDS", 0.3)
    monkeypatch.setattr(reporter, "LOOKING_SECONDS", 0.3)
    warehouse = Warehouse(deployment)
    warehouse.ensure_schema()
    with warehouse.write() as connection:
        if warehouse.database.name == "postgresql":
            connection.execute(text("LOCK TABLE incident_rows, outbox_messages, task_errors"))
        fail_alert(dag_context())

    [message] = slack.texts
    assert "*The warehouse does not answer*" in message
    assert "was killed" not in message


@on_both
def test_new_warehouse_is_made_for_the_first_alert(slack, deployment):
    """A failure before `batch-jobs init` is told and kept like any other."""
    fail_alert(dag_context())

    assert outbox_status.undelivered(Warehouse(deployment), datetime.now(UTC)) == []
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

    monkeypatch.setattr(alerts, "_reporter", broken)
    fail_alert(dag_context())

    assert "record_failure failed: RuntimeError: password=***" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_time_of_a_callback_is_bounded():
    """A callback has 20 seconds to live: the warehouse and Slack together leave some."""
    kept = reporter.COMPOSING_SECONDS + reporter.LOOKING_SECONDS
    assert kept + reporter.SENDING_SECONDS + 1 < 20
    assert alerts.NOTING_SECONDS < 20


@pytest.mark.parametrize("mode", ["ok", "429", "500", "403", "404", "hang", "close", "refused"])
@pytest.mark.parametrize("has_warehouse", [True, False])
def test_token_is_seen_nowhere(slack, monkeypatch, caplog, capfd, deployment, mode, has_warehouse):
    """In no mode does the webhook's secret reach a log, the output, the warehouse or Slack."""
    caplog.set_level(logging.DEBUG)
    refused = {"password": f"http://127.0.0.1:1/services/{CANARY}"} if mode == "refused" else {}
    connection = slack.connection(extra=json.dumps({"timeout": 0.2}), **refused)
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", connection)
    if mode != "refused":
        slack.mode = mode
    if not has_warehouse:
        monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", "sqlite:////no/such/folder/warehouse.db")
    record_error(task_context(ValueError(f"cannot post to {slack.url}")))
    fail_alert(task_context(RuntimeError(f"the token is {CANARY}")))
    slack.release()

    stored = ""
    if has_warehouse:
        with Warehouse(deployment).read() as connection:
            rows = [
                connection.execute(text(f"SELECT * FROM {table}")).all()
                for table in ("incident_rows", "outbox_messages", "outbox_deliveries")
            ]
            stored = f"{rows} {connection.execute(text('SELECT * FROM task_errors')).all()}"
    stored += "".join(str(event) for event in Spool(os.environ["BATCH_JOBS_WAREHOUSE"]).events())
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

    assert sorted(message.split("*")[1].split(":")[0] for message in slack.texts) == [
        f"m{n}" for n in range(4)
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
    assert " · task plan · " in told
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
    assert " · task score[2] · " in told
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
    assert "It took longer than its dagrun_timeout." in lines(slack)
    assert " tries" not in slack.texts[0]


@pytest.mark.parametrize(
    "run", [{"dag_id": "train_flight_delay"}, {"run_type": "manual"}, {"run_type": "backfill"}]
)
@pytest.mark.failure_mode("airflow-restart")
def test_what_the_next_run_does_not_make_up_for_is_told_as_it_was(slack, clock, run):
    """It did not take too long; and who wants it still knows what to do."""
    fail_alert(over_time(timedelta(hours=9), **run))
    clock.now += TEN_MINUTES  # a backfill is summed up
    flush_alerts()
    assert WAS_AWAY in lines(slack)
    assert "dagrun_timeout" not in slack.texts[0]
    assert " tries" not in slack.texts[0]
