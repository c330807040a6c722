"""Ask Airflow's REST API how it is doing; see its reference of the REST API, version 2.

Health is open to everybody and answers 200 whatever is unhealthy. All else wants a token, which
`/auth/token` gives for user and password, or without any where everybody is an administrator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from batch_jobs.interval import parse_time
from batch_jobs.monitoring.watching.facts import (
    Airflow,
    BrokenFile,
    Component,
    Dag,
    Question,
    Running,
)
from batch_jobs.monitoring.watching.questions import Answer, UnansweredError, ask
from batch_jobs.redaction import first_line
from batch_jobs.settings import WatchSettings

COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")
HEALTH_SECONDS = 10.0
PAGE = 100
PAGES = 50  # of a hundred DAGs each
TAG = "batch-serving"  # of all our DAGs


class AirflowApi:
    """Airflow's REST API, asked with a token that is fetched anew when it is refused.

    Args:
        settings: where it is, and as whom to ask.
    """

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._url = str(settings.airflow_url).rstrip("/")
        self._token = settings.airflow_token

    def state(self, approving: Sequence[str]) -> Airflow:
        """How it is doing.

        Args:
            approving: the models whose gate asks a person.
        """
        try:
            health = self._told(ask(f"{self._url}/api/v2/monitor/health", seconds=HEALTH_SECONDS))
        except UnansweredError as error:
            return Airflow(self._url, away=str(error))
        components = {name: _component(name, health.get(name)) for name in COMPONENTS}
        try:
            return Airflow(
                self._url,
                components=components,
                dags={dag["dag_id"]: _dag(dag) for dag in self._every("/dags", "dags", tags=TAG)},
                broken_files=[
                    BrokenFile(found["filename"], _last_line(found["stack_trace"]))
                    for found in self._every("/importErrors", "import_errors")
                ],
                running=[
                    _running(run)
                    for run in self._every("/dags/~/dagRuns", "dag_runs", state="running")
                    if run["start_date"]
                ],
                questions=dict(self._questions(approving)),
            )
        except (UnansweredError, LookupError, TypeError) as error:
            said = str(error) if isinstance(error, UnansweredError) else first_line(error)
            return Airflow(self._url, components=components, refused=said)

    def _questions(self, models: Sequence[str]) -> Iterator[tuple[str, Question]]:
        for name in models:
            path = f"/dags/{quote(f'train_{name}', safe='')}/dagRuns/~/hitlDetails"
            asked = {"order_by": "-created_at", "limit": 1, "task_id": "approve"}
            for found in self._get(path, asked)["hitl_details"]:
                yield name, _question(found)

    def _every(self, path: str, key: str, **asked: Any) -> Iterator[Mapping[str, Any]]:
        for page in range(PAGES):
            found = self._get(path, {**asked, "limit": PAGE, "offset": page * PAGE})[key]
            yield from found
            if len(found) < PAGE:
                return

    def _get(self, path: str, asked: Mapping[str, Any]) -> Any:
        url = f"{self._url}/api/v2{path}?{urlencode(asked)}"
        answer = ask(url, headers=self._authorization())
        if answer.status in (401, 403) and self._settings.airflow_token is None:
            self._token = None  # it was for another Airflow, or its day is over
            answer = ask(url, headers=self._authorization())
        return self._told(answer)

    def _authorization(self) -> Mapping[str, str]:
        if self._token is None:
            self._token = self._new_token()
        return {"Authorization": f"Bearer {self._token}"}

    def _new_token(self) -> str:
        user, password = self._settings.airflow_user, self._settings.airflow_password
        body = {"username": user, "password": password} if user and password else None
        answer = ask(f"{self._url}/auth/token", body=body)
        if not answer.is_success and body is None:
            raise UnansweredError(
                "it wants a login, and BATCH_JOBS_AIRFLOW_USER and BATCH_JOBS_AIRFLOW_PASSWORD, or "
                "BATCH_JOBS_AIRFLOW_TOKEN, are not set"
            )
        return str(self._told(answer)["access_token"])

    def _told(self, answer: Answer) -> Any:
        if not answer.is_success:
            raise UnansweredError(f"Airflow answered {answer.status}: {_detail(answer)}")
        found = answer.json()
        if not isinstance(found, dict):
            raise UnansweredError(f"answered {answer.status}, and nothing of Airflow's")
        return found


def _detail(answer: Answer) -> str:
    try:
        return first_line(str(answer.json()["detail"]))
    except (UnansweredError, LookupError, TypeError):
        return first_line(answer.text) or "nothing"


def _component(name: str, told: Mapping[str, Any] | None) -> Component:
    told = told or {}
    return Component(told.get("status"), _time(told.get(f"latest_{name}_heartbeat")))


def _dag(told: Mapping[str, Any]) -> Dag:
    is_gone = bool(told["is_stale"]) or bool(told.get("has_import_errors"))
    return Dag(bool(told["is_paused"]), is_gone)


def _running(told: Mapping[str, Any]) -> Running:
    return Running(told["dag_id"], told["dag_run_id"], parse_time(told["start_date"]))


def _question(told: Mapping[str, Any]) -> Question:
    return Question(
        asked_at=parse_time(told["created_at"]),
        waits=told["task_instance"]["state"] in ("deferred", "awaiting_input", "running"),
        is_answered=bool(told["response_received"]),
        by=(told["responded_by_user"] or {}).get("name"),
    )


def _last_line(stack_trace: str) -> str:
    """The exception itself, which stands at the end."""
    lines = [line for line in stack_trace.splitlines() if line.strip() and line[:1].strip()]
    return first_line(lines[-1] if lines else stack_trace)


def _time(told: str | None) -> datetime | None:
    return None if told is None else parse_time(told)
