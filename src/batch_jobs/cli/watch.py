"""The command of the watch."""

from __future__ import annotations

import re
import signal
import sys
from datetime import timedelta
from threading import Event
from typing import Annotated

import typer

from batch_jobs.alerts.problems import Problem
from batch_jobs.cli.options import Alive, AsJson, touch
from batch_jobs.cli.output import minute, tell
from batch_jobs.errors import ConfigurationError
from batch_jobs.monitoring.telling import IncidentTeller
from batch_jobs.monitoring.watch import SURE_AFTER, Look, Watch
from batch_jobs.settings import Settings, WatchSettings

commands = typer.Typer()
SHORTEST, LONGEST = timedelta(seconds=5), timedelta(hours=1)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@commands.command()
def watch(
    *,
    once: Annotated[bool, typer.Option("--once", help="Look once and end, for cron.")] = False,
    every: Annotated[str, typer.Option(help="From one look to the next: 30s, 5m.")] = "60s",
    airflow: Annotated[
        str | None, typer.Option(help="Airflow's address; default: BATCH_JOBS_AIRFLOW_URL.")
    ] = None,
    api: Annotated[
        str | None, typer.Option(help="The prediction API's; default: BATCH_JOBS_API_URL.")
    ] = None,
    ping: Annotated[
        str | None, typer.Option(help="A dead man's switch; default: BATCH_JOBS_PING_URL.")
    ] = None,
    alive: Alive = None,
    as_json: AsJson = False,
) -> None:
    """Hear what is silent: overdue intervals, paused DAGs, dead schedulers; tell it until stopped.

    Exits with 1 if it could not do its work; what it found wrong elsewhere is told, and no error.
    """
    watching = WatchSettings.from_environ(airflow_url=airflow, api_url=api, ping_url=ping)
    found = Watch(
        Settings.from_environ(), watching, IncidentTeller, every=None if once else _span(every)
    )
    if once:
        _once(found, as_json)
        return
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    asked = ", ".join(
        f"{name} {url}"
        for name, url in (("Airflow", watching.airflow_url), ("API", watching.api_url))
        if url
    )
    if not as_json:
        tell({}, as_json, f"watching every {every}: the warehouse{', ' if asked else ''}{asked}")
        sys.stdout.flush()
    shown: set[str] = set()

    def told(look: Look) -> None:
        touch(alive)
        now = set(_lines(look))
        if as_json or now != shown or look.over:
            over = [f"over: {_named(model, cause)}" for model, cause in look.over]
            lines = [*sorted(now - shown), *over]
            said = "\n".join(f"{minute(look.at.isoformat())}  {line}" for line in lines)
            if as_json or said:
                tell(look.as_dict(), as_json, said)
                sys.stdout.flush()
            shown.clear()
            shown.update(now)

    found.run(stop, told)


def _once(found: Watch, as_json: bool) -> None:
    """Look, and again a moment later if what was found is not sure."""
    look = found.look()
    if look.unsure:
        Event().wait(SURE_AFTER.total_seconds())
        look = found.look()
    tell(look.as_dict(), as_json, "\n".join(_lines(look)) or "all is well")
    if look.failed:
        raise typer.Exit(1)


def _lines(look: Look) -> list[str]:
    return [
        *(_line(problem) for problem in look.problems),
        *(f"the watch could not do its work: {each}" for each in look.failed),
    ]


def _line(problem: Problem) -> str:
    detail = f" ({problem.detail})" if problem.detail else ""
    return f"{_named(problem.model, problem.cause)}: {problem.title}{detail}"


def _named(model: str | None, cause: str) -> str:
    return f"{model} {cause}" if model else cause


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})(s|m|h|)", text)
    span = timedelta(seconds=int(found[1]) * UNITS[found[2]]) if found else timedelta()
    if not SHORTEST <= span <= LONGEST:
        raise ConfigurationError(f"--every is {text!r}; write 5s to 1h, such as 60s or 5m")
    return span
