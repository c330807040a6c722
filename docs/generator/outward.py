"""Blocks of what others see: HTTP, the read contract, and messages to Slack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from batch_jobs.alerts import delivery_words, incident_words, news, slack
from batch_jobs.alerts.problems import Incident, Message, Problem, Served
from batch_jobs.settings import Settings
from docs.generator.text import REQUIRED, code, default, table
from prediction_api.config import Config
from prediction_api.contract import VERSION, VIEWS
from prediction_api.main import create_app

COMMON_ANSWERS = {"200", "400", "401", "403", "408", "422", "429", "503"}


@cache
def _openapi() -> Mapping[str, Any]:
    # Nothing is connected to: the app is made, and not served.
    nowhere = Settings("sqlite:////nowhere/warehouse.db", "/nowhere/models")
    found: Mapping[str, Any] = create_app(Config(settings=nowhere)).openapi()
    return found


def http() -> str:
    """Every route of the prediction API, those of a model told once, with `{model}`."""
    parts, seen = [], set()
    for path, operations in _openapi()["paths"].items():
        for method, operation in operations.items():
            name, about = _generic(path, operation)
            if (method, name) in seen:
                continue
            seen.add((method, name))
            parts += [f"### {method.upper()} {name}", about, _parameters(operation)]
            taken = operation.get("requestBody", {}).get("content", {})
            answers = [status for status in operation["responses"] if status not in COMMON_ANSWERS]
            facts = [f"Takes {', '.join(map(code, taken))}."] if taken else []
            facts += [f"Also answers {', '.join(answers)}."] if answers else []
            parts.append(" ".join(facts))
    return "\n\n".join(part for part in parts if part)


def _generic(path: str, operation: Mapping[str, Any]) -> tuple[str, str]:
    """The route for any model, and what it is for; a route of one model has no parameter for it."""
    about = operation.get("description") or operation.get("summary") or ""
    name = operation.get("operationId", "")
    for verb in ("predict", "request"):
        if name.startswith(verb) and operation.get("requestBody"):
            about = (operation.get("summary") or "").replace(_model_in(path), "the model")
    pieces = path.split("/")
    if len(pieces) > 4 and pieces[2] == "models" and "{" not in pieces[3]:
        pieces[3] = "{model}"
    return "/".join(pieces), about


def _model_in(path: str) -> str:
    pieces = path.split("/")
    return pieces[3] if len(pieces) > 4 else str(Config.model_fields["model"].default)


def _parameters(operation: Mapping[str, Any]) -> str:
    rows = [
        (
            code(each["name"]),
            each["in"],
            " ".join(filter(None, (each.get("description"), _choices(each["schema"])))),
            REQUIRED if each.get("required") else default(each["schema"].get("default")),
        )
        for each in operation.get("parameters", [])
    ]
    return table(("parameter", "in", "meaning", "default"), rows) if rows else ""


def _choices(schema: Mapping[str, Any]) -> str:
    return f"One of {', '.join(map(code, schema['enum']))}." if "enum" in schema else ""


def contract_version() -> str:
    """Which version of the read contract it is."""
    return f"Version {VERSION}, which the view `read_contract` tells."


def read_contract() -> str:
    """Every column of the views that readers may rely on."""
    parts = []
    for view, columns in VIEWS.items():
        rows = [(code(name), meaning) for name, meaning in columns.items()]
        parts += [f"### {view}", table(("column", "meaning"), rows)]
    return "\n\n".join(parts)


def slack_messages() -> str:
    """Every message, in the very words."""
    start = datetime(2026, 11, 22, 14, 50, tzinfo=UTC)
    end, now = start + timedelta(minutes=10), start + timedelta(minutes=25)
    served = Served("20261116T0300-5f2c9a1e", start, end, end, 57)
    problem = Problem(
        "predict-rejects",
        "flight_delay",
        "Too many rows were rejected",
        "CircuitBreakerError: run 17 of flight_delay is not published: 40 of 57 rows were rejected",
        next_step="see `rejected_rows`; if all is as it should be, run `batch-jobs predict "
        "flight_delay --start 2026-11-22T15:00:00Z --end 2026-11-22T15:10:00Z --accept 'WHY'`",
        links={"Open the log": "https://airflow.example/dags/predict_flight_delay/runs/…"},
        subject="predict_flight_delay",
        facts=("predict_flight_delay", "task publish", "interval 22 Nov 15:00 - 15:10 UTC"),
    )
    killed = replace(
        problem,
        cause="predict-killed",
        title="score[0] was killed (out of memory?)",
        detail="It left no exception: it was killed (out of memory?), its worker was lost, or the "
        "DAG file could not be loaded there.",
        next_step="If memory was short, lower `chunk_rows` or raise `parts` in the model file.",
    )
    dead = Problem(
        "warehouse-away",
        None,
        "The warehouse does not answer",
        "WarehouseUnavailableError: the warehouse postgresql://***@db/serving did not answer",
        next_step="Look at the database.",
    )
    first, again = Incident(1, problem, 1, now, now), Incident(1, killed, 7, start, now, told=1)
    change = news.Change(
        model="flight_delay",
        version="20261123T0300-b1c7d402",
        previous="20261116T0300-5f2c9a1e",
        is_rollback=False,
        actor="airflow scheduled__2026-11-23",
        reason="not shown worse than the champion",
    )
    version, url = change.version, "https://airflow.example/required_actions"
    told = {
        "A problem": incident_words.told(first, served, now),
        "It lasts, and is told as a reminder": incident_words.told(again, served, now),
        "One of the whole deployment": incident_words.told(
            Incident(2, dead, 1, now, now), None, now
        ),
        "It works again": incident_words.recovered([again], served, now),
        "It was over before it could be told": incident_words.summed_up([again], now),
        "There is a new champion": news.champion_changed(change),
        "Somebody rolled back": news.champion_changed(
            replace(change, is_rollback=True, actor="ada", reason="scores near 1 since Monday")
        ),
        "The champion stays": news.champion_stays(
            "flight_delay", version, change.previous, "worse than the champion by .012 log-loss"
        ),
        "A version waits for a person": news.approval_wanted(
            "flight_delay", version, change.reason, timedelta(days=2), url
        ),
        "A run succeeded (only with `success_alert`)": news.succeeded(
            "predict_flight_delay", None, (start, end), incident_words.readers_see(served, now)
        ),
        "A test of the way (`batch-jobs alert --test`)": news.trial("slack", "host-1"),
        "The channel did not take it at first": delivery_words.late(Message("…", "…"), start, now),
        "Many had to wait": delivery_words.together(
            ["flight_delay has a new champion", "*iris* failed 14:50 - 15:00 UTC and works again"],
            start,
            now,
        ),
        "Others may not have arrived": delivery_words.doubtful(
            Message("…", "…"), [":red_circle: iris: score was killed (since 22 Nov 14:50 UTC)"]
        ),
    }
    return "\n\n".join(
        f"### {title}\n\n```text\n{message.text}\n```" for title, message in told.items()
    )


@dataclass
class _Address:
    conn_type: str | None = None
    host: str | None = None
    port: int | None = None
    schema: str | None = None
    password: str | None = None


WEBHOOK = "https://hooks.slack.com/services/T…/B…/…"
TOKEN = WEBHOOK.removeprefix(f"{slack.ENDPOINT}/")
CONNECTIONS = {
    "type Slack Incoming Webhook, password = the whole webhook URL": _Address(
        conn_type="slackwebhook", password=WEBHOOK
    ),
    f"type Slack Incoming Webhook, host `{slack.ENDPOINT}`, password = `{TOKEN}`": _Address(
        conn_type="slackwebhook", host=slack.ENDPOINT, password=TOKEN
    ),
    f"type HTTP, host `{slack.ENDPOINT}`, password = `/{TOKEN}`": _Address(
        conn_type="http", host=slack.ENDPOINT, password=f"/{TOKEN}"
    ),
    f'in the environment: `AIRFLOW_CONN_SLACK_WEBHOOK=\'{{"conn_type": "slackwebhook", '
    f'"password": "{WEBHOOK}"}}\'`': _Address(conn_type="slackwebhook", password=WEBHOOK),
}


def slack_connections() -> str:
    """The forms of the connection `slack_webhook`, each of which means the same webhook."""
    rows = []
    for form, address in CONNECTIONS.items():
        if slack.webhook_url(address) != WEBHOOK:
            raise ValueError(f"the connection does not give the webhook: {form}")
        rows.append((form,))
    return table(("connection `slack_webhook`",), rows)
