"""The command line: each command calls one verb and prints what it answers.

A person gets lines and tables; with `--json` the last line is one JSON document.
Exit 0 done, 1 failed, 2 wrong usage or configuration, 3 fenced off by a newer attempt, 4 nobody
promoted.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batch_jobs.cli import (
    alerts,
    backtest,
    backups,
    dags,
    models,
    monitoring,
    requests,
    runs,
    versions,
    watch,
)
from batch_jobs.errors import BatchJobsError
from batch_jobs.interruption import ended_by_interruption
from batch_jobs.redaction import first_line
from batch_jobs.settings import let_threads_sleep

app = typer.Typer(
    name="batch-jobs",
    help="Serve scikit-learn models in batch: train, evaluate, promote, score and publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
nouns = (models, versions, runs, monitoring, requests, backtest, dags, watch, alerts, backups)
for noun in nouns:
    app.add_typer(noun.commands)


def main() -> None:
    """Run the command line; our own errors and the database's become one line and an exit code."""
    let_threads_sleep()
    try:
        with ended_by_interruption():
            app(standalone_mode=True)
    except BatchJobsError as error:
        _fail(str(error), error.exit_code)
    except SQLAlchemyError as error:
        # Its own text shows the statement and the values bound to it.
        cause = error.orig if isinstance(error, DBAPIError) else None
        _fail(first_line(cause or error), BatchJobsError.exit_code)
    except OSError as error:  # a disk that is full or read-only
        _fail(first_line(error), BatchJobsError.exit_code)


def _fail(line: str, exit_code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"error: {line}", style="bold red", markup=False
    )
    sys.exit(exit_code)


@app.callback()
def _log(
    *, quiet: Annotated[bool, typer.Option(help="Print no progress, only the answer.")] = False
) -> None:
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if sys.stderr.isatty():
        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    logger = logging.getLogger("batch_jobs")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.handlers = [handler]
