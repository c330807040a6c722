"""A little server that answers as Airflow's REST API does, with answers that a real one has given.

They were recorded from Airflow 3.3.2 with its SimpleAuthManager; see `airflow_rest.json`.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RECORDED = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
USER, PASSWORD, TOKEN = "watch", "s3cr3tOfTheWatch", "a-token-of-airflow"


class AirflowRest:
    """What it answers, which a test may change, and what it was asked.

    Attributes:
        health: of `/api/v2/monitor/health`, with heartbeats of now.
        dags: by id.
        import_errors: of DAG files.
        runs: DAG runs that are running.
        questions: the newest of each DAG.
        all_admins: whether a token is given to everybody.
        mode: `ok`; `hang` answers nothing until the end; `login` sends everybody to a login page.
        asked: the paths that were asked for.
    """

    def __init__(self) -> None:
        recorded = copy.deepcopy(RECORDED)
        self.health: dict[str, Any] = recorded["health"]
        self.beat(datetime.now(UTC))
        self.dags = {dag["dag_id"]: dag for dag in recorded["dags"]["dags"]}
        self.import_errors: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.questions: dict[str, dict[str, Any]] = {}
        self.all_admins = False
        self.mode = "ok"
        self.asked: list[str] = []
        self._end = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def beat(self, now: datetime) -> None:
        """Let all processes have been heard of."""
        for name, state in self.health.items():
            if f"latest_{name}_heartbeat" in state:
                state[f"latest_{name}_heartbeat"] = now.isoformat()

    def knows(self, *models: str) -> None:
        """Let these models have their DAGs, unpaused, as `flight_delay` has."""
        for model in models:
            for verb in ("predict", "train", "monitor"):
                dag = copy.deepcopy(
                    self.dags["train_iris" if verb == "monitor" else f"{verb}_iris"]
                )
                self.dags[f"{verb}_{model}"] = {
                    **dag,
                    "dag_id": f"{verb}_{model}",
                    "is_paused": False,
                }

    def close(self) -> None:
        """Stop listening."""
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, Any]:
        """What is answered to somebody with a token."""
        if path == "/api/v2/dags":
            return 200, {"dags": list(self.dags.values()), "total_entries": len(self.dags)}
        if path == "/api/v2/importErrors":
            return 200, {"import_errors": self.import_errors, "total_entries": 0}
        if path == "/api/v2/dags/~/dagRuns":
            return 200, {"dag_runs": self.runs, "total_entries": len(self.runs)}
        if path.endswith("/hitlDetails"):
            found = self.questions.get(path.split("/")[4])
            return 200, {"hitl_details": [found] if found else [], "total_entries": 0}
        return 404, {"detail": "Not Found"}

    def reply(self, path: str, token: str | None, body: Any) -> tuple[int, Any]:
        """Status and JSON of the answer to anybody."""
        self.asked.append(path)
        if self.mode == "hang":
            self._end.wait(60)
        if self.mode == "login":
            return 307, {}
        if path == "/api/v2/monitor/health":
            return 200, self.health
        if path == "/auth/token":
            known = self.all_admins or body == {"username": USER, "password": PASSWORD}
            return (201, {"access_token": TOKEN}) if known else (401, {"detail": "Invalid"})
        if token != f"Bearer {TOKEN}":
            return 401, {"detail": "Invalid JWT token"}
        return self.answer(path)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        rest = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                token = self.headers.get("Authorization")
                status, body = rest.reply(
                    urlsplit(self.path).path, token, json.loads(sent or "null")
                )
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 307:
                    self.send_header("Location", f"{rest.url}/auth/login")
                with suppress(ConnectionError):  # whoever asked had no more patience
                    self.end_headers()
                    self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


@contextmanager
def answering() -> Iterator[AirflowRest]:
    """A stand-in for Airflow for the time of a block."""
    rest = AirflowRest()
    try:
        yield rest
    finally:
        rest.close()
