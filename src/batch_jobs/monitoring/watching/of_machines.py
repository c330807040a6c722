"""What may be wrong with the warehouse, services, disks and the clock: pure functions of a look."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from batch_jobs.alerts import causes
from batch_jobs.alerts.mrkdwn import length
from batch_jobs.alerts.problems import Problem
from batch_jobs.monitoring.watching.facts import Disk, Facts
from batch_jobs.monitoring.watching.words import GIB, size

# Numbers that nobody moves for so long do not live: our own questions count in them.
STILL = timedelta(seconds=45)
STILL_OF_AIRFLOW = timedelta(minutes=5)
NEARLY_FULL = (0.05, 5 * GIB)  # of the disk, and no more than this
FULL = (0.01, GIB)
FULL_OF_WAREHOUSE = f"{causes.DISK}/warehouse"
SOON = timedelta(hours=12)
HALF_FULL = 0.25  # free: a disk that empties faster than this is looked at closely


def warehouse(facts: Facts) -> Iterator[Problem]:
    """The warehouse gives no answer, or nobody can write: one incident, whatever follows from it.

    Tasks that fail for it say the same.
    """
    found = facts.warehouse
    if found.away:
        yield Problem(
            cause=causes.of_warehouse(found.away),
            model=None,
            title="the warehouse does not answer",
            detail=found.away,
            impact="nothing is published or trained, and whoever reads it may see errors",
            next_step="see whether the database is up, reachable, and lets batch-jobs log in",
            subject=found.shown,
        )
    elif found.locked:
        yield Problem(
            cause=causes.DISK
            if causes.classify(found.locked).name == causes.DISK
            else causes.LOCKED,
            model=None,
            title="nobody can write to the warehouse",
            detail=found.locked,
            impact="readers still see the last good predictions; nothing new is published",
            next_step="find out who holds it (`fuser` on SQLite's file, `pg_stat_activity` of "
            "PostgreSQL) and end what hangs; make room if there is none",
            subject=found.shown,
        )


def outbox(facts: Facts) -> Iterator[Problem]:
    """Messages wait, and no channel takes them."""
    if facts.warehouse.undelivered:
        yield Problem(
            cause="outbox",
            model=None,
            title=f"{facts.warehouse.undelivered:,} messages could not be delivered",
            detail=facts.warehouse.undelivered_why,
            impact="nobody hears of anything else that is wrong",
            next_step="see the connection `slack_webhook`, and try it: `batch-jobs alert --test`",
            subject="outbox",
        )


def disk(facts: Facts) -> Iterator[Problem]:
    """A disk is nearly full, or will be soon."""
    for found in facts.disks:
        share = found.free / max(found.total, 1)
        full, nearly = (share < limit and found.free < most for limit, most in (FULL, NEARLY_FULL))
        soon = found.full_in is not None and found.full_in < SOON and share < HALF_FULL
        if not (full or nearly or soon):
            continue
        yield Problem(
            cause=f"{causes.DISK if full else 'disk'}/{found.what[4:].replace(' ', '-')}",
            model=None,
            title=f"the disk of {found.what} {_filling(found, nearly=full or nearly)}",
            detail=f"{size(found.free)} of {size(found.total)} are free at {found.folder}",
            severity="page" if full else "warn",
            impact="once it is full nothing is published, trained or logged",
            next_step="remove what is not needed (`batch-jobs prune`, Airflow's logs), or enlarge "
            "it",
            subject=found.folder,
        )


def _filling(found: Disk, *, nearly: bool) -> str:
    if nearly or found.full_in is None:
        return "is nearly full"
    return f"will be full in {length(found.full_in)} if this goes on"


def service_away(facts: Facts) -> Iterator[Problem]:
    """Somebody who serves over HTTP gives no good answer."""
    for found in facts.services:
        if found.away:
            numbers = "metrics" in found.name
            yield Problem(
                cause=f"service-away/{found.name.replace(' ', '-')}",
                model=None,
                title=f"the {found.name} gives no answer",
                detail=found.away,
                severity="warn" if numbers else "page",
                impact="what watches them sees nothing"
                if numbers
                else "apps that ask it get no predictions",
                next_step="see whether it runs, and its log",
                links={found.name: found.url},
                subject=found.name,
            )


def numbers_still(facts: Facts) -> Iterator[Problem]:
    """Numbers are told, and do not move: they are not of now."""
    for found in facts.services:
        limit = STILL_OF_AIRFLOW if "Airflow" in found.name else STILL
        if found.still_for > limit:
            yield Problem(
                cause=f"numbers-still/{found.name.replace(' ', '-')}",
                model=None,
                title=f"the {found.name} are frozen",
                detail=f"no number has changed for {length(found.still_for)}, though being asked "
                f"changes some",
                severity="warn",
                impact="what watches them takes old figures for new ones",
                next_step="see whether a proxy or a cache answers, and start the server again",
                links={found.name: found.url},
                subject=found.name,
            )


def clock_back(facts: Facts) -> Iterator[Problem]:
    """The clock has gone back, so that ages are not to be trusted."""
    if facts.behind:
        yield Problem(
            cause="clock",
            model=None,
            title=f"the clock of this machine went back by {length(facts.behind)}",
            detail=f"it is {facts.now.isoformat(timespec='seconds')} here",
            severity="warn",
            impact="until it has caught up, nobody can say what is overdue",
            next_step="see whether it is set by NTP",
            subject="clock",
        )
