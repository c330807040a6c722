"""`./run api`: the prediction API on this clone's warehouse, with a model that answers.

What is not there is made: the tables, and in the embedded warehouse the irises and their champion.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from batch_jobs import lifecycle, registry
from batch_jobs.errors import BatchJobsError
from batch_jobs.settings import Settings, let_threads_sleep
from batch_jobs.warehouse import Warehouse
from prediction_api.__main__ import serve
from prediction_api.config import Config
from utils.local import ROOT

MODEL = "iris"
EXAMPLE = """\
The API answers on {url} (Ctrl+C ends it). Ask it, for example:

  curl -X POST {url}/predict -H 'Content-Type: application/json' \\
    -d '{{"features": [5.1, 3.5, 1.4, 0.2]}}'
  curl {url}/models

What it can be asked: {url}/docs
"""


def prepare(settings: Settings, embedded: Path) -> None:
    """Make the tables, and in the clone's own warehouse a champion of the irises.

    Args:
        settings: of the server.
        embedded: the file of the clone's own warehouse.
    """
    from batch_jobs.samples import load_iris

    own = settings.warehouse == f"sqlite:///{embedded}"
    if own:
        embedded.parent.mkdir(parents=True, exist_ok=True)
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    if not own or registry.champion(warehouse, MODEL) is not None:
        return
    sys.stdout.write("... Training the model of the irises\n")
    sys.stdout.flush()
    now = datetime.now(UTC)
    with warehouse.write() as connection:
        load_iris(connection, now)
    lifecycle.train(settings, MODEL, now)
    lifecycle.promote(settings, MODEL, actor="./run api")


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
        prepare(config.settings, ROOT / ".local" / "warehouse.db")
    except BatchJobsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(EXAMPLE.format(url=f"http://{config.host}:{config.port}"))
    sys.stdout.flush()
    serve(config)


if __name__ == "__main__":
    main(sys.argv[1:])
