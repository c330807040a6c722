"""The commands of requests of many rows."""

from __future__ import annotations

import logging
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from batch_jobs import catalog
from batch_jobs.alerts import channels
from batch_jobs.alerts.problems import EVENT
from batch_jobs.alerts.reporter import Reporter
from batch_jobs.cli.options import Alive, AsJson, Model, touch
from batch_jobs.cli.output import bar, tell
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import first_line
from batch_jobs.requests import topics, worker
from batch_jobs.requests.queue import Answered
from batch_jobs.settings import KafkaSettings, Settings

commands = typer.Typer()
log = logging.getLogger(__name__)


@commands.command()
def answer(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until stopped.")] = False,
    alive: Alive = None,
    as_json: AsJson = False,
) -> None:
    """Answer the requests of many rows that wait, oldest first, by the champion."""
    settings = Settings.from_environ()
    names = None if model is None else [catalog.load_model(model, settings.models).name]
    if follow:
        _follow(settings, names, alive, as_json=as_json)
        return
    errors: list[Exception] = []
    with bar("rows of requests") as advance:
        answered = worker.answer_each(
            settings, names, told=lambda _, error: errors.append(error), progress=advance
        )
    shown = "\n".join(map(str, answered))
    tell([one.as_dict() for one in answered], as_json, shown or "no request waits")
    if errors:
        raise errors[0]
    if any(one.error and not one.of_sender for one in answered):
        raise typer.Exit(1)


@commands.command()
def exchange(
    model: Model,
    requests: Annotated[str, typer.Option(help="The topic from which requests come.")],
    answers: Annotated[str, typer.Option(help="The topic to which answers go.")],
    *,
    group: Annotated[
        str | None, typer.Option(help="Of the consumers; default: batch-jobs-MODEL.")
    ] = None,
    alive: Alive = None,
    as_json: AsJson = False,
) -> None:
    """Take requests of many rows from a topic of Kafka, and send their answers, until stopped.

    They wait in the queue for `answer`, which scores them.
    """
    settings = Settings.from_environ()
    found = catalog.load_model(model, settings.models)
    kafka = KafkaSettings.from_environ()
    stop = _stopped()
    sent = topics.exchange(
        Warehouse(settings.warehouse),  # whose version a requester may not read
        kafka,
        topics.Topics(found, requests, answers, group or f"batch-jobs-{model}"),
        stop,
        told=_told_at_once,
        alive=partial(touch, alive),
    )
    tell({"answers": sent}, as_json, f"stopped; {sent:,} answers were sent")


def _told_at_once(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _stopped() -> Event:
    """What is set by SIGTERM and SIGINT."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _follow(
    settings: Settings, names: Sequence[str] | None, alive: Path | None, *, as_json: bool
) -> None:
    """Answer requests as they come, a line each, until SIGTERM or SIGINT."""
    stop = _stopped()
    ended: Counter[str] = Counter()
    hooks = [each for each in channels.configured() if EVENT in each.severities]
    reporter = Reporter(settings.warehouse, lambda: hooks)

    def told(one: Answered) -> None:
        ended[one.state] += 1
        tell(one.as_dict(), as_json, str(one))
        sys.stdout.flush()
        if hooks:
            _deliver(reporter)

    worker.follow(settings, names, stop, Event(), told=told, alive=partial(touch, alive))
    tell(dict(ended), as_json, f"stopped; {ended.total():,} requests are answered")


def _deliver(reporter: Reporter) -> None:
    """Tell services that a request is over; what cannot be told waits for whoever comes next."""
    try:
        reporter.flush()
    except Exception as error:  # noqa: BLE001 - the next request has its turn
        log.warning("webhooks wait: %s", first_line(error))
