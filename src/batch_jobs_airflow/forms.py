"""The trigger forms of the DAGs, and what the entries of a person mean.

What makes no sense is refused before anything starts. It is the person's own mistake: the run
fails, its log says why, and nobody else hears of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.sdk import Param
from croniter import croniter

from batch_jobs import clock
from batch_jobs.errors import BatchJobsError, FormError, IntervalError
from batch_jobs.interval import Interval, due_between, floor_to_grid, newest_due

if TYPE_CHECKING:
    from batch_jobs.registry.deployment import Deployment

# A day of ten minutes, a week of hours; more than that is a backfill.
MOST_INTERVALS = 200

# JSON schema's own date-time format is not enforced, so the pattern is.
_TIME: dict[str, Any] = {
    "type": ["null", "string"],
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$",
}
SPAN_PARAMS = {
    "interval_start": Param(
        None,
        **_TIME,
        title="Interval start",
        description="Score what is due from here to the end, instead of the newest due interval.",
    ),
    "interval_end": Param(
        None,
        **_TIME,
        title="Interval end",
        description="Not included; must lie in the past. Both are times of the model's schedule.",
    ),
    "force": Param(
        default=False,
        type="boolean",
        title="Score again",
        description="Score the interval even if it is published already.",
    ),
    "accept": Param(
        None,
        type=["null", "string"],
        pattern=r"\S",
        title="Accept because",
        description="Publish the interval, which must be given, whatever the circuit breaker says, "
        "for this reason.",
    ),
}

# Without a default, Airflow could not call the DAG's callbacks.
ROLLBACK_PARAMS = {
    "version": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        title="Version",
        description="The version that shall serve again, as the table model_versions names it.",
    ),
    "reason": Param(
        None,
        type=["null", "string"],
        pattern=r"\S",
        minLength=1,
        maxLength=1000,
        title="Reason",
        description="Why; it is recorded.",
    ),
}


def require_known(dag_run: Any, known: Collection[str]) -> None:
    """Check that a run is given nothing that its DAG does not know, which Airflow would ignore.

    Raises:
        FormError: it is.
    """
    unknown = sorted(set(getattr(dag_run, "conf", None) or {}) - set(known))
    if unknown:
        names = ", ".join(sorted(known)) or "none"
        raise FormError(f"unknown parameter {', '.join(map(repr, unknown))}; there are: {names}")


def intervals(
    schedule: str,
    dag_run: Any,
    params: Mapping[str, Any],
    own: Interval | None,
) -> list[Interval] | None:
    """The intervals that somebody asked for; None if the run is about what is due.

    A span of time stands for the due intervals in it. It is asked for in the form, as the data
    interval of a manual run, or by a backfill.

    Args:
        schedule: the model's.
        dag_run: Airflow's.
        params: the entries of the form.
        own: the run's data interval, if it has one.

    Raises:
        FormError: what is asked for makes no sense.
    """
    require_known(dag_run, SPAN_PARAMS)
    with own_mistakes():
        entered = _entered(params)
        if own is not None and not _is_on_purpose(schedule, dag_run, (own.start, own.end)):
            own = None
        if own is not None and entered not in (None, own):
            raise FormError(
                f"the run's own interval is {own}, and the form asks for {entered}; leave "
                "interval_start and interval_end out"
            )
        span = entered or own
        if span is not None:
            return _due(schedule, span.require_past(clock.now()))
        if params["accept"]:
            raise FormError("accept needs interval_start and interval_end, of what was refused")
        return [newest_due(schedule, dag_run.run_after)] if params["force"] else None


def as_of(schedule: str, dag_run: Any) -> datetime:
    """The moment as of which a run trains: now, if a person triggers it and names no other.

    Args:
        schedule: of the training.
        dag_run: Airflow's.

    Raises:
        FormError: the moment is in the future, or the run is given what means nothing.
    """
    require_known(dag_run, ())
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    chosen = dag_run.run_type != "manual" or _is_on_purpose(schedule, dag_run, (start, end))
    moment: datetime = (chosen and end) or dag_run.logical_date or dag_run.run_after
    if moment > clock.now():
        raise FormError(f"cannot train as of {moment.isoformat()}: that is in the future")
    return moment


@contextmanager
def own_mistakes(kind: type[BatchJobsError] = IntervalError) -> Iterator[None]:
    """Let an error be known as one of the person who filled in the form."""
    try:
        yield
    except kind as error:
        raise FormError(str(error)) from error


def _entered(params: Mapping[str, Any]) -> Interval | None:
    start, end = params["interval_start"], params["interval_end"]
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise FormError("give both interval_start and interval_end, or neither")
    return Interval.parse(start, end)


def _is_on_purpose(schedule: str, dag_run: Any, own: tuple[Any, Any]) -> bool:
    """Whether somebody chose the data interval of a run, and not the schedule.

    For a manual run Airflow looks up the interval that was due at its logical date, or now.
    """
    if dag_run.run_type != "manual":
        return bool(dag_run.run_type == "backfill")
    moments = [moment for moment in (dag_run.logical_date, dag_run.run_after) if moment]
    due = [newest_due(schedule, moment) for moment in moments]
    return own not in [(one.start, one.end) for one in due]


def _due(schedule: str, span: Interval) -> list[Interval]:
    """The due intervals that make up a span."""
    left, right = (floor_to_grid(schedule, time) for time in (span.start, span.end))
    if (left, right) != (span.start, span.end):
        if right < span.end and (later := _next(schedule, right)) <= clock.now():
            right = later
        nearest = Interval(left, max(right, _next(schedule, left)))
        raise FormError(
            f"{span} begins or ends within an interval of the schedule {schedule}; the next that "
            f"does not is {nearest}"
        )
    due = list(islice(due_between(schedule, span.start, span.end), MOST_INTERVALS + 1))
    if len(due) > MOST_INTERVALS:
        raise FormError(
            f"{span} has more than {MOST_INTERVALS} intervals; publish them with a backfill, by "
            "Airflow or `batch-jobs backfill`"
        )
    return due


def _next(schedule: str, time: datetime) -> datetime:
    tick: datetime = croniter(schedule, time).get_next(datetime)
    return tick


def trained_as_of(deployment: Deployment, model: str, dag_run: Any) -> datetime:
    """The moment as of which a run has trained, by which its own version is known."""
    return as_of(deployment.model(model).train_schedule, dag_run)
