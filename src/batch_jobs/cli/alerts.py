"""Commands of incidents and alerts."""

from __future__ import annotations

import difflib
import getpass
import re
import socket
from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

import typer

from batch_jobs import clock
from batch_jobs.alerts import (
    channels,
    delivery,
    incidents,
    mutes,
    news,
    outbox,
    outbox_messages,
    outbox_status,
    runbooks,
    webhooks,
)
from batch_jobs.alerts.incidents import Incident
from batch_jobs.alerts.mutes import Mute
from batch_jobs.alerts.problems import EVENT
from batch_jobs.cli.options import AsJson
from batch_jobs.cli.output import minute, tell
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError, ConfigurationError
from batch_jobs.settings import Settings

commands = typer.Typer()
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST = timedelta(days=90)
TRYING_SECONDS = 20.0
WholeModel = Annotated[
    str, typer.Argument(help="A model; `-` for the whole deployment, `*` for every model.")
]
Cause = Annotated[
    str, typer.Argument(help="As `incidents` shows it; `*` at its end for any ending.")
]


@commands.command("incidents")
def show(
    model: Annotated[str | None, typer.Argument(help="Default: all of them.")] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that are over, of the last 90 days.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is wrong: one line a model and cause, since when, how often, and what to do."""
    warehouse = Warehouse.existing(Settings.from_environ().warehouse)
    found = incidents.open_incidents(warehouse, model, is_all=everything)
    muted = mutes.mutes(warehouse, clock.now())
    answer = [_as_dict(incident, _muted_by(incident, muted)) for incident in found]
    shown = [
        {
            "model": each["model"] or "-",
            "cause": each["cause"],
            "since": minute(each["opened_at"]),
            "what": f"{each['title']}{_state(each)}",
        }
        for each in answer
    ]
    tell(answer, as_json, shown or "nothing is wrong")
    steps = [f"{each['cause']}: {each['next_step']}" for each in answer if _is_to_do(each)]
    if steps and not as_json:
        tell(steps, as_json, "\n".join(steps))


def _state(incident: dict[str, Any]) -> str:
    """How often it was met, whether it is over and whether it is muted; in brackets."""
    parts = [f"{incident['occurrences']:,} times"] if incident["occurrences"] > 1 else []
    parts += [f"over {minute(incident['resolved_at'])}"] if incident["resolved_at"] else []
    parts += [f"muted until {minute(incident['muted_until'])}"] if incident["muted_until"] else []
    return f" ({', '.join(parts)})" if parts else ""


def _is_to_do(incident: dict[str, Any]) -> bool:
    return bool(incident["next_step"] and not incident["resolved_at"])


def _as_dict(incident: Incident, mute: Mute | None) -> dict[str, Any]:
    problem = incident.problem
    return {
        "model": problem.model,
        "cause": problem.cause,
        "severity": problem.severity,
        "title": problem.title,
        "detail": problem.detail,
        "impact": problem.impact,
        "next_step": problem.next_step,
        "subject": problem.subject,
        "links": dict(problem.links),
        "occurrences": incident.occurrences,
        "opened_at": incident.opened_at.isoformat(),
        "last_at": incident.last_at.isoformat(),
        "resolved_at": incident.resolved_at and incident.resolved_at.isoformat(),
        "muted_until": mute and mute.until.isoformat(),
        "mute": mute and {"reason": mute.reason, "link": mute.link, "by": mute.muted_by},
    }


def _muted_by(incident: Incident, muted: list[Mute]) -> Mute | None:
    problem = incident.problem
    wanted = {mutes.EVERY_MODEL, problem.model or mutes.DEPLOYMENT}
    fitting = (m for m in muted if m.model in wanted and mutes.fits(problem.cause, m.cause))
    return next(fitting, None)


@commands.command()
def runbook(
    cause: Annotated[str, typer.Argument(help="As a message or `incidents` shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Tell what a cause means, what readers see meanwhile, and what to do about it."""
    name, known = runbooks.name_of(cause), runbooks.sections()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or ", ".join(known)
        raise ConfigurationError(f"there is no runbook of {cause!r}; there is one of {near}")
    tell({"cause": name, "runbook": known[name]}, as_json, f"{name}\n\n{known[name]}")


@commands.command()
def mute(
    model: WholeModel,
    cause: Cause,
    reason: Annotated[str, typer.Option(help="Why; it is shown.")],
    link: Annotated[str, typer.Option(help="Where it is dealt with, such as an issue.")],
    span: Annotated[str, typer.Option("--for", help="For how long: 30m, 4h, 2d, 1w.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Tell nothing of a cause for a while; it is counted, and told if it lasts beyond that."""
    now = clock.now()
    wanted = Mute(_of(model), cause, reason, link, now + _span(span), getpass.getuser())
    mutes.mute(Warehouse.existing(Settings.from_environ().warehouse), wanted, now)
    until = wanted.until.isoformat()
    tell(
        {**vars(wanted), "until": until},
        as_json,
        f"{cause} of {model} is muted until "
        f"{minute(until)}; to be told again before: `batch-jobs unmute {model} '{cause}'`",
    )


@commands.command()
def unmute(model: WholeModel, cause: Cause, *, as_json: AsJson = False) -> None:
    """Tell of a cause again."""
    gone = mutes.unmute(Warehouse.existing(Settings.from_environ().warehouse), _of(model), cause)
    said = "is told again" if gone else "was not muted"
    tell({"unmuted": gone}, as_json, f"{cause} of {model} {said}")


@commands.command()
def alert(
    *,
    test: Annotated[bool, typer.Option("--test", help="Send a message to try the way.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send the alerts that wait; with --test also one that says that nothing is wrong."""
    warehouse = Warehouse.existing(Settings.from_environ().warehouse)
    found = channels.configured()
    if not found:
        raise ConfigurationError(
            f"no channel is configured: set {channels.VARIABLE} (for example "
            f"https://hooks.slack.com/services/…) or AIRFLOW_CONN_SLACK_WEBHOOK"
        )
    names = channels.names(found)
    delivery.collect(warehouse, found, clock.now())
    if test:
        message = news.trial(names, socket.gethostname())
        people = [each.severities for each in found if EVENT not in each.severities]
        common = frozenset.intersection(*people) if people else frozenset()
        wanted = {min(common or severities): message for severities in people}
        if len(people) < len(found):
            wanted[EVENT] = webhooks.trial()
        for severity, each in wanted.items():
            outbox_messages.write_alone(warehouse, f"test {uuid4()}", each, clock.now(), severity)
        for channel in found:
            outbox.wake(warehouse, channel.name)
    sent = delivery.send_waiting(warehouse, found, TRYING_SECONDS, clock.now)
    lacking = [str(each) for each in outbox_status.undelivered(warehouse, clock.now())]
    answer = {"sent": sent, "channels": [each.name for each in found], "undelivered": lacking}
    tell(answer, as_json, "\n".join([f"{sent} sent to {names}", *lacking]))
    if lacking:
        raise typer.Exit(BatchJobsError.exit_code)


def _of(model: str) -> str:
    return mutes.DEPLOYMENT if model == "-" else model


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,4})([mhdw])", text)
    span = timedelta(seconds=int(found[1]) * UNITS[found[2]]) if found else timedelta()
    if not timedelta() < span <= LONGEST:
        raise ConfigurationError(f"--for is {text!r}; write how long, such as 30m, 4h, 2d or 1w")
    return span
