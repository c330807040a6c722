"""The words of incidents: short enough to be read on a phone, with the next step whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from batch_jobs.alerts import mrkdwn
from batch_jobs.alerts.mrkdwn import counted, length, moment
from batch_jobs.alerts.problems import Incident, Message, Problem, Served, Severity

DOTS: dict[Severity, str] = {
    "page": ":red_circle:",
    "warn": ":large_orange_circle:",
    "news": ":large_blue_circle:",
}
GREEN = ":large_green_circle:"
DETAIL_LENGTH = 600
LINE_LENGTH = 300


def told(
    incident: Incident, served: Served | None, now: datetime, *, is_known: bool = True
) -> Message:
    """A problem was met; or is met still, for a reminder.

    Args:
        incident: with the problem.
        served: what readers see of the model now.
        now: the time.
        is_known: whether what they see could be asked.
    """
    problem = incident.problem
    title = title_of(problem)
    if incident.told:
        title += f", still: {incident.occurrences} times"
    seen = readers_see(served, now) if is_known else "Readers see what was published last."
    readers = seen if problem.model else None
    when = [
        f"Since {moment(incident.opened_at)}"
        + (f", {incident.occurrences} times" if incident.occurrences > 1 else ""),
        *map(mrkdwn.escape, problem.facts),
    ]
    detail = mrkdwn.shortened(problem.detail, DETAIL_LENGTH)
    detail = mrkdwn.with_code(detail) if detail.endswith(".") else detail and mrkdwn.code(detail)
    step = problem.next_step and f"*Next:* {mrkdwn.with_code(problem.next_step)}"
    links = " · ".join(mrkdwn.link(url, label) for label, url in problem.links.items())
    impact = problem.impact and mrkdwn.escape(problem.impact)
    says = "\n".join(filter(None, (readers, impact)))
    more = (
        [f"Runbook: {mrkdwn.code(runbook_command(problem))}"]
        if "Runbook" not in problem.links
        else []
    )
    quiet = " · ".join([*more, f"To mute it: {mrkdwn.code(mute_command(problem))}"])
    dot = DOTS[problem.severity]
    return Message(
        line=_line(f"{dot} {mrkdwn.escape(title)} (since {moment(incident.opened_at)})"),
        text=_lines(
            f"{dot} {mrkdwn.bold(title)}", says, " · ".join(when), detail, step, links, quiet
        ),
        blocks=(
            mrkdwn.header(f"{dot} {title}"),
            *mrkdwn.sections(says),
            *mrkdwn.context(" · ".join(when)),
            *mrkdwn.sections(detail),
            *mrkdwn.sections(step or None),
            *mrkdwn.context(links),
            *mrkdwn.context(quiet),
        ),
    )


def title_of(problem: Problem) -> str:
    """Whose problem it is, and what is wrong."""
    return f"{problem.model}: {problem.title}" if problem.model else problem.title


def runbook_command(problem: Problem) -> str:
    """The command that tells what to do about the cause of a problem."""
    return f"batch-jobs runbook {problem.cause.partition('/')[0]}"


def mute_command(problem: Problem) -> str:
    """The command that mutes the cause of a problem."""
    return (
        f"batch-jobs mute {problem.model or '-'} {problem.cause} "
        f"--reason 'WHY' --link ISSUE --for 2d"
    )


def recovered(ended: Sequence[Incident], served: Served | None, now: datetime) -> Message:
    """It works again, after it was told that it does not."""
    first = ended[0].problem
    title = f"{_whose(first)} works again" if first.model else f"Over: {_titles(ended)}"
    met = counted(sum(incident.occurrences for incident in ended), "failure")
    opened = min(incident.opened_at for incident in ended)
    after = f"After {met} in {length(now - opened)}, since {moment(opened)}"
    after += f": {mrkdwn.escape(_titles(ended))}." if first.model else "."
    readers = readers_see(served, now) if first.model else None
    return Message(
        line=_line(f"{GREEN} {mrkdwn.escape(title)}. {after}"),
        text=_lines(f"{GREEN} {mrkdwn.bold(title)}", after, readers),
        blocks=(
            mrkdwn.header(f"{GREEN} {title}"),
            *mrkdwn.sections(_lines(after, readers)),
        ),
    )


def summed_up(ended: Sequence[Incident], now: datetime) -> Message:
    """It failed and works again, and nobody could be told in between: one line for all."""
    first = ended[0].problem
    opened = min(incident.opened_at for incident in ended)
    met = counted(sum(incident.occurrences for incident in ended), "failure")
    line = (
        f"{GREEN} {mrkdwn.bold(_whose(first))} failed {mrkdwn.span(opened, now)} and works again: "
        f"{mrkdwn.escape(_titles(ended))}; {met}."
    )
    return Message(line=_line(line), text=line, blocks=tuple(mrkdwn.sections(line)))


def readers_see(served: Served | None, now: datetime) -> str:
    """What readers of the predictions see now."""
    if served is None:
        return "Nothing is published yet."
    return (
        f"Readers still see version {mrkdwn.code(served.model_version)} of "
        f"{mrkdwn.span(served.interval_start, served.interval_end)}, "
        f"published {length(now - served.published_at)} ago, {counted(served.row_count, 'row')}."
    )


def _whose(problem: Problem) -> str:
    return problem.model or problem.subject or "The deployment"


def _titles(ended: Sequence[Incident]) -> str:
    return "; ".join(dict.fromkeys(incident.problem.title for incident in ended))


def _line(text: str) -> str:
    return mrkdwn.shortened(text, LINE_LENGTH)


def _lines(*lines: str | None) -> str:
    return "\n".join(line for line in lines if line)
