"""`./run api`: the prediction API on this clone's warehouse, with a model that answers.

What is not there is made: the tables, and in the embedded warehouse the irises and their champion.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy.exc import SQLAlchemyError

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.registry import champions, promotion
from batch_jobs.settings import Settings, let_threads_sleep
from batch_jobs.training import train
from demo.local import ROOT, LocalAirflowError, one_line, require_free
from prediction_api.__main__ import require_address, serve
from prediction_api.config import Config

MODEL = "iris"
EXAMPLE = """\
The API answers on {url} (Ctrl+C ends it). Ask it, for example:

  curl -X POST {url}/predict -H 'Content-Type: application/json' \\
    -d '{{"features": [5.1, 3.5, 1.4, 0.2]}}'
  curl {url}/models

The page of it all: {url}
What it can be asked: {url}/docs
"""


class LocalApi:
    """The prediction API in a process of its own, which whoever started it stops.

    Args:
        port: where it listens, on 127.0.0.1.
        environ: its environment, but for its own settings.
        log: the file where it says what it does.
    """

    def __init__(self, port: int, environ: Mapping[str, str], log: Path) -> None:
        self.url, self._port, self._log = f"http://127.0.0.1:{port}", port, log
        self._environ = {
            name: value for name, value in environ.items() if not name.startswith("PREDICTION_API_")
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, model: str) -> None:
        """Start it; does not wait.

        Args:
            model: which one it shows first.

        Raises:
            RefusedError: the port is taken.
        """
        require_free(self._port, "--api-port")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "demo.api", "--port", str(self._port)],
                cwd=ROOT,
                env={**self._environ, "PREDICTION_API_MODEL": model},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> bool | None:
        """True once it answers; None before.

        Raises:
            LocalAirflowError: it has ended.
        """
        if self._process is None or self._process.poll() is not None:
            raise LocalAirflowError(f"the prediction API ended; see {self._log}")
        try:
            return httpx.get(f"{self.url}/readyz").is_success or None
        except httpx.TransportError:
            return None

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def prepare(settings: Settings, embedded: Path) -> None:
    """Make the tables, and in the clone's own warehouse a champion of the irises.

    Args:
        settings: of the server.
        embedded: the file of the clone's own warehouse.
    """
    from batch_jobs.samples.load import load

    own = settings.warehouse == f"sqlite:///{embedded}"
    if own:
        embedded.parent.mkdir(parents=True, exist_ok=True)
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    if not own or champions.champion(warehouse, MODEL) is not None:
        return
    sys.stdout.write("... Training the model of the irises\n")
    sys.stdout.flush()
    now = datetime.now(UTC)
    load(warehouse, now, flights=False)
    train.train(settings, MODEL, now)
    promotion.promote(settings, MODEL, actor="./run api")


def main(arguments: Sequence[str]) -> None:
    """Prepare, tell how to ask, and serve until told to stop."""
    parser = argparse.ArgumentParser(prog="./run api", description="Serve predictions over HTTP.")
    parser.add_argument("--port", help="listen on this port and not on 8000")
    asked = parser.parse_args(arguments)
    let_threads_sleep()
    if asked.port:
        os.environ["PREDICTION_API_PORT"] = asked.port
    try:
        config = Config.from_environ()
        require_address(config)
        prepare(config.settings, ROOT / ".local" / "warehouse.db")
    except BatchJobsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except (OSError, SQLAlchemyError) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(1)
    sys.stdout.write(EXAMPLE.format(url=f"http://{config.host}:{config.port}"))
    sys.stdout.flush()
    serve(config)


if __name__ == "__main__":
    main(sys.argv[1:])
