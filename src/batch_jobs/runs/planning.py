"""Which intervals to score, by which version, cut into which parts; and the claim on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from operator import itemgetter
from typing import Literal

from batch_jobs import clock
from batch_jobs.database.leases import FORGOTTEN_AFTER, LEASE, at_work
from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FencedError
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval, due_between
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import champions, versions
from batch_jobs.registry.deployment import Place, opened
from batch_jobs.registry.promotion import require_champion
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.runs import claims, coverage, ledger, refusals, removal, staging
from batch_jobs.runs.claims import Claim
from batch_jobs.runs.key_ranges import key_ranges
from batch_jobs.runs.late_rows import late_runs
from batch_jobs.runs.ledger import Run

log = logging.getLogger(__name__)

# Who scores: the champion of the time of the interval, or the one that serves now.
Champion = Literal["then", "current"]


class Planner:
    """Claims intervals of one model for one attempt; what they have in common is done once.

    Args:
        place: where everything is.
        name: which model.
        token: the attempt's.
        parts: how many parts to cut each interval into; by default what the model file says.

    Raises:
        InputError: unknown model, or no warehouse.
    """

    def __init__(self, place: Place, name: str, token: str, *, parts: int | None = None) -> None:
        self._deployment, self._token = opened(place), token
        self.model = self._deployment.model(name)
        self.warehouse = self._deployment.warehouse
        self._parts = parts or self.model.parts
        self._prepared: set[str] = set()
        self._warned = False

    def claim(
        self,
        interval: Interval,
        *,
        champion: Champion = "current",
        version: ModelVersion | None = None,
        force: bool = False,
        accept: str | None = None,
    ) -> Run:
        """Claim an interval, or answer with its published run if there is one.

        Args:
            interval: must lie in the past.
            champion: whose version scores it.
            version: scores it instead.
            force: score it again if it is published.
            accept: why its rows may be published whatever the circuit breaker says.

        Raises:
            InputError: future interval, no champion, or a query that does not compile.
            FencedError: a newer attempt has claimed the interval.
        """
        name = self.model.name
        interval.require_past(clock.now())
        published = ledger.published_run(self.warehouse, name, interval)
        if published is not None and not force:
            log.info("%s %s is already published as run %d", name, interval, published.run_id)
            return published
        chosen = version or self._choose(champion, interval)
        trained = self._as_trained(chosen)
        self._prepare(trained, interval)
        failpoint("plan.before_claim")
        wanted = Claim(
            model=name,
            interval=interval,
            token=self._token,
            model_version=chosen.version,
            mode=trained.mode,
            key_ranges=key_ranges(self.warehouse, trained, interval, self._parts),
            hindsight=chosen.has_hindsight_of(interval),
            accepted=accept,
        )
        run = claims.claim(self.warehouse, wanted)
        failpoint("plan.claimed")
        log.info("claimed %s %s as run %d for %s", name, interval, run.run_id, chosen.version)
        return run

    def claim_each(
        self,
        intervals: Sequence[Interval],
        *,
        champion: Champion = "current",
        force: bool = False,
        accept: str | None = None,
    ) -> list[Run]:
        """Claim intervals as `claim` does; what a newer attempt has claimed is left to it.

        Raises:
            InputError: see `claim`.
            FencedError: a newer attempt has claimed every one of them.
        """
        claim = partial(self.claim, champion=champion, force=force, accept=accept)
        runs = self._claim_all([partial(claim, interval) for interval in intervals])
        if not runs:
            raise FencedError(
                f"{self.model.name}: a newer attempt has claimed {intervals[0]}"
                + (" and all that follow" if len(intervals) > 1 else "")
            )
        return runs

    def plan_due(self, newest: Interval) -> list[Run]:
        """Claim the newest interval, and before it the missed ones and those that got late rows.

        Both within the model's look-back and oldest first; what another attempt is scoring now is
        left to it, and in replace mode the newest run makes up for all of them. What a newer
        attempt has claimed is left to that one, so there may be nothing to do. What was refused
        waits for a person, unless something has changed that may let it pass.

        Raises:
            InputError: future interval, no champion, or a query that does not compile.
        """
        newest.require_past(clock.now())
        missed = self.missed(newest)
        if missed:
            log.info("%d missed intervals are published first, from %s on", len(missed), missed[0])
        claims = {gap: partial(self.claim, gap) for gap in missed}
        late: dict[Interval, Run] = {}
        oldest = newest.start - self.model.look_back
        if self.model.rescore_late:
            late = {run.interval: run for run in self.late(Interval(oldest, newest.start))}
            claims |= {interval: partial(self.claim_again, run) for interval, run in late.items()}
        refused = coverage.refusals(self.warehouse, self.model.name, oldest) if claims else {}
        ordered = [
            claim
            for interval, claim in sorted(claims.items(), key=itemgetter(0))
            if interval not in refused
            or not self._waits(
                interval,
                refused[interval],
                late[interval].model_version if interval in late else None,
            )
        ]
        return self._claim_all([*ordered, partial(self.claim, newest)])

    def _claim_all(self, claims: Iterable[Callable[[], Run]]) -> list[Run]:
        """Make claims one after the other, but for those that a newer attempt has made."""
        runs: list[Run] = []
        with at_work(self.warehouse) as claimed:
            for claim in claims:
                try:
                    runs.append(claim())
                except FencedError as error:
                    log.info("left to a newer attempt: %s", error)
                except BaseException as error:
                    self._give_up(runs, error)
                    raise
                else:
                    claimed.append(runs[-1].run_id)
        return runs

    def _give_up(self, runs: Sequence[Run], error: BaseException) -> None:
        """Let another attempt claim at once what this one has claimed in vain."""
        with suppress(Exception):  # else whoever comes when the lease has run out
            for run in runs:
                staging.fail(self.warehouse, run.run_id, f"not planned: {first_line(error)}")

    def missed(self, newest: Interval) -> list[Interval]:
        """Due intervals before the newest, within the look-back, that nobody published or does now.

        In replace mode the newest run makes up for all of them.
        """
        model, warehouse = self.model, self.warehouse
        oldest = newest.start - model.look_back
        fresh = coverage.fresh_until(warehouse, model.name)
        if fresh is not None and fresh >= newest.start:
            return []
        if self._serving().mode == "replace":
            return []
        if fresh is not None and fresh < oldest:
            log.warning(
                "due intervals from %s on are older than the look-back of %s and stay "
                "unpublished; publish them with `batch-jobs backfill %s --start %s --end %s`",
                fresh.isoformat(),
                model.look_back,
                model.name,
                fresh.isoformat(),
                oldest.isoformat(),
            )
        found = coverage.gaps(warehouse, model.name, model.schedule, newest.start, since=oldest)
        return [gap for gap in found if gap not in self._busy]

    def _waits(self, interval: Interval, refused: str, by: str | None) -> bool:
        """Whether a refused interval waits for a person: the same would be asked again.

        Args:
            interval: which.
            refused: what was asked.
            by: the version that would score it; None for the champion.
        """
        name = self.model.name
        version = (
            versions.find_version(self.warehouse, name, by)
            if by
            else require_champion(self.warehouse, name)
        )
        trained = self._as_trained(version)
        asked = refusals.question(self.warehouse, trained, interval, version.version)
        if asked == refused:
            log.warning(
                "%s was refused and waits for a person or for other rows; `batch-jobs predict %s "
                "--start %s --end %s --accept REASON` publishes it as it is",
                interval,
                name,
                interval.start.isoformat(),
                interval.end.isoformat(),
            )
        return asked == refused

    def late(self, span: Interval) -> list[Run]:
        """Published runs of a span that lack rows which have come since, oldest first."""
        found = late_runs(self.warehouse, self._serving(), span)
        lacking = [run for run in found if run.interval not in self._busy]
        if lacking:
            log.info(
                "rows came late for %d published intervals, from %s on; they are scored again",
                len(lacking),
                lacking[0].interval,
            )
        return lacking

    def claim_again(self, run: Run) -> Run:
        """Claim the interval of a published run once more, for the version that scored it."""
        version = versions.find_version(self.warehouse, self.model.name, run.model_version)
        return self.claim(run.interval, version=version, force=True)

    def due_within(self, span: Interval) -> Iterator[Interval]:
        """The intervals of the model's schedule inside a span."""
        return due_between(self.model.schedule, span.start, span.end)

    @cached_property
    def _busy(self) -> set[Interval]:
        since = clock.now() - LEASE
        return coverage.being_staged(self.warehouse, self.model.name, since)

    def _serving(self) -> BatchModel:
        """The model as the champion was trained; as its file has it, if nothing serves."""
        version = champions.champion(self.warehouse, self.model.name)
        return self.model if version is None else self._as_trained(version)

    def _as_trained(self, version: ModelVersion) -> BatchModel:
        return self._deployment.trained(self.model.name, version.version)

    def _prepare(self, trained: BatchModel, interval: Interval) -> None:
        """Find out that the query compiles, and clean up after the dead: once an attempt."""
        if trained.features_query in self._prepared:
            return
        _require_query(self.warehouse, trained, interval)
        if not self._prepared:
            removal.sweep(self.warehouse, trained.name, clock.now() - FORGOTTEN_AFTER)
        self._prepared.add(trained.features_query)

    def _choose(self, champion: Champion, interval: Interval) -> ModelVersion:
        """The version to score with."""
        now = require_champion(self.warehouse, self.model.name)
        if champion != "then":
            return now
        then = champions.champion_at(self.warehouse, self.model.name, interval.end)
        if then is None and not self._warned:
            log.warning(
                "%s had no champion yet at %s; %s scores what lies so far back",
                self.model.name,
                interval.end.isoformat(),
                now.version,
            )
            self._warned = True
        return then or now


@repeatable
def _require_query(warehouse: Warehouse, model: BatchModel, interval: Interval) -> None:
    subject = f"features_query of {model.name}"
    warehouse.require_query(subject, model.features_query, bounds(interval))
