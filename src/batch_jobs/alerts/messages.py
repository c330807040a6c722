"""The words of the alerts, as Slack's mrkdwn: short enough to be read on a phone.

What comes from outside (exceptions, ids, configuration) is escaped, so that it can neither ping a
channel nor become a link (https://api.slack.com/reference/surfaces/formatting#escaping).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class FailedRun:
    """One failed DAG run, as far as it is known.

    Attributes:
        dag_id: its DAG.
        model: the model that it serves, if it is one of ours.
        task: the task that failed, with its map index; None if no task did.
        attempt: which try of how many.
        span: the data interval; None for a manual run without one.
        what: what happened, redacted, on one line.
        is_exception: whether `what` is an exception, rather than a sentence.
        log_url: where to read more.
    """

    dag_id: str
    model: str | None
    task: str | None
    attempt: tuple[int, int] | None
    span: tuple[datetime, datetime] | None
    what: str
    is_exception: bool
    log_url: str | None


@dataclass(frozen=True)
class Incident:
    """Failures with one cause, since the DAG or file that failed last worked.

    Attributes:
        failures: how many there were.
        since: when the first was recorded.
    """

    failures: int
    since: datetime


@dataclass(frozen=True)
class Served:
    """The newest predictions that readers see of one model."""

    model_version: str
    interval_start: datetime
    interval_end: datetime
    published_at: datetime
    row_count: int


def escape(text: str) -> str:
    """The text with nothing in it that Slack would take for a mention or a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def run_failed(run: FailedRun, incident: Incident, readers: str | None) -> str:
    """A DAG run failed; or failed again, for a reminder."""
    again = (
        f" again: {incident.failures} failed runs since {_moment(incident.since)}"
        if incident.failures > 1
        else ""
    )
    where = [f"model {_bold(run.model)}"] if run.model else []
    where += [f"task {_bold(run.task)}"] if run.task else []
    where += ["try {} of {}".format(*run.attempt)] if run.attempt else []
    return _lines(
        f":red_circle: {_bold(run.dag_id)} failed{again}",
        " · ".join(where),
        f"Interval {_span(*run.span)}" if run.span else "Manual run without interval",
        _code(run.what) if run.is_exception else escape(run.what),
        readers,
        _link(run.log_url, "Open the log") if run.log_url else None,
    )


def file_failed(path: str, error: str, incident: Incident) -> str:
    """A DAG file no longer loads."""
    again = f", since {_moment(incident.since)}" if incident.failures > 1 else ""
    name = path.replace("\\", "/").rpartition("/")[2]
    return _lines(
        f":red_circle: DAG file {_bold(name)} does not load{again}",
        "Its DAGs do not run until it does.",
        _code(error),
        _code(path),
    )


def recovered(dag_id: str, incident: Incident, now: datetime, readers: str | None) -> str:
    """A DAG works again."""
    failures = "1 failure" if incident.failures == 1 else f"{incident.failures} failures"
    return _lines(
        f":large_green_circle: {_bold(dag_id)} works again",
        f"After {failures} in {length(now - incident.since)}, since {_moment(incident.since)}.",
        readers,
    )


def succeeded(
    dag_id: str, task: str | None, span: tuple[datetime, datetime] | None, readers: str | None
) -> str:
    """A DAG run, or a task of it, succeeded."""
    return _lines(
        f":large_green_circle: {_bold(dag_id)} succeeded",
        f"Task {_bold(task)}" if task else None,
        f"Interval {_span(*span)}" if span else "Manual run without interval",
        readers,
    )


def approval_wanted(model: str, version: str, reasons: str, patience: timedelta, url: str) -> str:
    """A new version waits for a person's word."""
    return _lines(
        f":large_blue_circle: {_bold(model)}: may {_code(version)} serve?",
        f"The gate lets it: {escape(reasons)}.",
        f"Without an answer within {length(patience)} the champion stays.",
        _link(url, "Approve or reject"),
    )


def readers_see(served: Served | None, now: datetime) -> str:
    """What readers of the predictions see now."""
    if served is None:
        return "Nothing is published yet."
    rows = "1 row" if served.row_count == 1 else f"{served.row_count:,} rows"
    return (
        f"Readers still see version {_code(served.model_version)} of "
        f"{_span(served.interval_start, served.interval_end)}, "
        f"published {length(now - served.published_at)} ago, {rows}."
    )


def delayed(text: str, created_at: datetime, now: datetime) -> str:
    """The message; one that had to wait says since when."""
    if now - created_at < timedelta(minutes=5):
        return text
    return f"{text}\n_Could not be sent before; written {_moment(created_at)}._"


def _lines(*lines: str | None) -> str:
    return "\n".join(line for line in lines if line)


def _bold(text: str) -> str:
    return f"*{escape(text.replace('*', ' '))}*"


def _code(text: str) -> str:
    return f"`{escape(text.replace('`', chr(39)))}`"


def _link(url: str, label: str) -> str:
    for character, code in (("|", "%7C"), ("<", "%3C"), (">", "%3E"), (" ", "%20")):
        url = url.replace(character, code)
    return f"<{url.replace('&', '&amp;')}|{label}>"


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%d %b %H:%M} UTC"


def _span(start: datetime, end: datetime) -> str:
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if start == end:
        return _moment(end)
    to = f"{end:%H:%M}" if start.date() == end.date() else f"{end:%d %b %H:%M}"
    return f"{start:%d %b %H:%M} - {to} UTC"


def length(span: timedelta) -> str:
    """A span in the two units that matter, rounded down."""
    minutes = max(0, int(span.total_seconds() // 60))
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} days"
