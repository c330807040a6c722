"""What `./run bench scale` concludes: a model of the figures, and a simulation of many models."""

import pytest

from tests.benchmarks import queueing
from tests.benchmarks.queueing import Fleet, simulate
from tests.benchmarks.scale import MILLION, Cell, Model, _larger, _runs

TRUE = Model(
    cores=2,
    plan=0.3,
    plan_rows=1.0,
    start=0.5,
    part=0.2,
    part_rows=4.0,
    part_all=0.5,
    publish=0.4,
    publish_rows=2.0,
    worker_cpu=0.6,
    worker_cpu_rows=3.0,
    server_cpu=0.1,
    server_cpu_rows=1.0,
    server_cpu_all=0.2,
    publish_cpu_rows=0.5,
    wal_mb_rows=90.0,
    stored_mb_rows=110.0,
)


@pytest.fixture(autouse=True)
def _two_hours(monkeypatch):
    """Enough to see what falls behind."""
    monkeypatch.setattr(queueing, "HOURS", 2.0)


def _cell(rows, parts):
    """What a run by one worker takes if the model is true."""
    return Cell(
        *(rows, parts, 1),
        plan=TRUE.planned(rows, parts),
        score=parts * TRUE.part_seconds(rows, parts),
        publish=TRUE.published(rows),
        part=TRUE.part_seconds(rows, parts) - TRUE.start,
        worker_cpu=TRUE.worker_cpu * parts + TRUE.worker_cpu_rows * rows / MILLION,
        server_cpu=TRUE.server_seconds(rows, parts),
        publish_cpu=TRUE.publish_cpu_rows * rows / MILLION,
        wal_mb=TRUE.wal_mb_rows * rows / MILLION,
        stored_mb=TRUE.stored_mb_rows * rows / MILLION,
    )


def test_the_model_is_found_from_what_it_would_take():
    """And foretells a run that it was not fitted to, by slots or by processors."""
    cells = [_cell(rows, parts) for rows in (100_000, 400_000) for parts in (1, 4)]
    found = Model.fitted(cells, 2)
    for name, value in vars(TRUE).items():
        assert getattr(found, name) == pytest.approx(value, rel=0.03, abs=0.01), name
    seconds, bound = found.score(3 * MILLION, 3, 3, cores=64)
    assert (seconds, bound) == (pytest.approx(0.7 + 4 + 1.5, rel=0.03), "slots")
    assert found.score(3 * MILLION, 3, 3)[1] == "processors"


def test_all_of_it_is_shown():
    """As tables."""
    cells = [_cell(rows, parts) for rows in (100_000, 400_000) for parts in (1, 4)]
    assert _runs(TRUE, cells, [_cell(MILLION, 3)]).row_count == 5
    assert _larger(TRUE).row_count == 5


def test_one_model_that_is_alone_waits_for_nobody():
    """Its interval is published when its three tasks are done."""
    found = simulate(Fleet(models=1, slots=4))
    assert (found.p50, found.worst, found.keeps_up) == (6.0, 6.0, True)
    assert found.busy == pytest.approx(7.5 / (4 * 600))


def test_slots_that_are_too_few_fall_behind_and_a_pool_keeps_the_large_ones_apart():
    """What is not obvious: free slots on average do not help who waits behind long parts."""
    assert not simulate(Fleet(models=1000, slots=10)).keeps_up
    shared = simulate(Fleet(models=1000, slots=32, spread=True, large=10))
    apart = simulate(Fleet(models=1000, slots=32, spread=True, large=10, pooled=8))
    assert shared.p95 > 10 * apart.p95
    assert shared.busy < 0.6
