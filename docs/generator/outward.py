"""Blocks of what others see: HTTP, the read contract, and messages to Slack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from batch_jobs.alerts import messages, slack
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
    """Every message to Slack, in the very words."""
    start = datetime(2026, 11, 22, 14, 50, tzinfo=UTC)
    end, now = start + timedelta(minutes=10), start + timedelta(minutes=25)
    served = messages.Served("20261116T0300-5f2c9a1e", start, end, end, 57)
    readers = messages.readers_see(served, now)
    run = messages.FailedRun(
        dag_id="predict_flight_delay",
        model="flight_delay",
        task="score[0]",
        attempt=(3, 3),
        span=(end, end + timedelta(minutes=10)),
        what="ContractError: flight_delay: the query does not return dep_hour",
        is_exception=True,
        log_url="http://localhost:8080/dags/predict_flight_delay/runs/…",
    )
    first, again = messages.Incident(1, now), messages.Incident(4, start)
    version, url = "20261123T0300-b1c7d402", "http://localhost:8080/required_actions"
    days = timedelta(days=2)
    told = {
        "A run failed": messages.run_failed(run, first, readers),
        "It fails again, and is told as a reminder": messages.run_failed(run, again, readers),
        "It works again": messages.recovered(run.dag_id, again, now, readers),
        "A DAG file does not load": messages.file_failed(
            "/opt/dags/predict.py", "SyntaxError: '(' was never closed (predict.py, line 40)", first
        ),
        "A version waits for a person": messages.approval_wanted(
            "flight_delay", version, "not shown worse than the champion", days, url
        ),
        "A run succeeded (only with `success_alert`)": messages.succeeded(
            run.dag_id, None, run.span, readers
        ),
        "Slack did not take it at first": messages.delayed("…", start, now),
    }
    return "\n\n".join(f"### {title}\n\n```text\n{text}\n```" for title, text in told.items())


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
