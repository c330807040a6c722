"""The command of requests of many rows."""

from __future__ import annotations

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
from batch_jobs.cli.options import Alive, AsJson, touch
from batch_jobs.cli.output import bar, tell
from batch_jobs.requests import worker
from batch_jobs.requests.queue import Answered
from batch_jobs.settings import Settings

commands = typer.Typer()


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


def _follow(
    settings: Settings, names: Sequence[str] | None, alive: Path | None, *, as_json: bool
) -> None:
    """Answer requests as they come, a line each, until SIGTERM or SIGINT."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ended: Counter[str] = Counter()

    def told(one: Answered) -> None:
        ended[one.state] += 1
        tell(one.as_dict(), as_json, str(one))
        sys.stdout.flush()

    worker.follow(settings, names, stop, Event(), told=told, alive=partial(touch, alive))
    tell(dict(ended), as_json, f"stopped; {ended.total():,} requests are answered")
