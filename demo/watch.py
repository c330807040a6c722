"""The watch of the demo, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from demo.local import ADMIN, ROOT, LocalAirflow


class LocalWatch:
    """`batch-jobs watch` beside a demo, which whoever started it stops.

    Args:
        airflow: that it asks.
        api_url: of the prediction API that it asks.
        log: the file where it says what it finds.
    """

    def __init__(self, airflow: LocalAirflow, api_url: str, log: Path) -> None:
        self.log = log
        self._airflow, self._api_url = airflow, api_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; does not wait."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "batch_jobs", "watch"],
                cwd=ROOT,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environ(self) -> Mapping[str, str]:
        return {
            **self._airflow.environment(),
            "BATCH_JOBS_AIRFLOW_URL": self._airflow.url,
            "BATCH_JOBS_AIRFLOW_USER": ADMIN,
            "BATCH_JOBS_AIRFLOW_PASSWORD": self._airflow.password,
            "BATCH_JOBS_API_URL": self._api_url,
        }

    def has_ended(self) -> bool:
        """Whether it was started and runs no more."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
