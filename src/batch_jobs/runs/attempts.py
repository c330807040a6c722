"""Attempts beside each other: which are due again, and what a newer one comes to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from batch_jobs import clock
from batch_jobs.database.leases import LEASE, at_work, renew
from batch_jobs.errors import FencedError
from batch_jobs.interval import Interval
from batch_jobs.registry.deployment import Place, opened
from batch_jobs.runs import coverage, ledger
from batch_jobs.runs.ledger import Run

log = logging.getLogger(__name__)


def unhealed(place: Place, name: str) -> list[Interval]:
    """Intervals within the look-back that were tried in vain and that nobody has published."""
    deployment, now = opened(place), clock.now()
    since = now - deployment.model(name).look_back
    return coverage.unhealed(deployment.warehouse, name, since, now - LEASE)


@contextmanager
def attempt(place: Place, run_ids: Sequence[int]) -> Iterator[None]:
    """Hold the leases of runs that a task has taken up, also while another one has its turn."""
    warehouse = opened(place).warehouse
    renew(warehouse, run_ids)
    with at_work(warehouse, run_ids):
        yield


def await_newer(place: Place, run_id: int, patience: timedelta = LEASE) -> Run:
    """The published run of the newer attempt that has fenced a run off, once there is one.

    Args:
        place: where everything is.
        run_id: the run that was fenced off.
        patience: how long to wait for an attempt that is heard of.

    Raises:
        FencedError: the newer attempt has failed, is not heard of, or takes longer than that.
    """
    warehouse = opened(place).warehouse
    fenced = ledger.find_run(warehouse, run_id)
    until = time.monotonic() + patience.total_seconds()
    told = False
    while True:
        newer = ledger.newest_attempt(warehouse, fenced.model, fenced.interval)
        if newer.published_at is not None:
            return newer
        left = until - time.monotonic()
        problem = _why_not(newer, is_late=left <= 0)
        if problem:
            raise FencedError(
                f"run {run_id} of {fenced.model} {fenced.interval} was fenced off by the newer run "
                f"{newer.run_id}, which {problem}"
            )
        if not told:
            log.info("waiting for run %d, which has claimed %s", newer.run_id, newer.interval)
            told = True
        time.sleep(min(left, 1))


def _why_not(newer: Run, *, is_late: bool) -> str | None:
    """Why a newer attempt will not publish; None if it may."""
    if newer.state == "failed":
        return f"has failed: {newer.error}"
    heard = newer.claimed_at
    if heard is None or clock.now() - heard > LEASE:
        return f"was not heard of since {heard}; the next run publishes the interval"
    return "goes on without having published yet" if is_late else None
