"""Random faults for a while, and a reader that sees nothing of them.

`pytest tests/faults/test_soak.py --soak-seconds 600 --soak-seed 42` makes it longer, or repeats it.
"""

import random

import pytest

from batch_jobs.runs import overview
from tests.fault_models._rows import SIZES, make_source, number_of, tick
from tests.faults.test_faults import PLACES
from tests.support.soak import Soak, predict, promote

SECONDS = 12


@pytest.mark.failure_mode(9)
def test_readers_see_only_whole_states_while_attempts_die(deployment, reader, capsys, pytestconfig):
    """Attempts are killed, stopped and fail at random, three at a time, some for older ticks.

    In the end each tick is published once, whole, by its newest attempt, and nothing is left over.
    """
    given = pytestconfig.getoption("--soak-seed")
    seed = random.SystemRandom().randrange(10**6) if given is None else given
    seconds = pytestconfig.getoption("--soak-seconds") or SECONDS
    make_source(deployment.settings, 10, 100 + int(20 * seconds))
    hasty = deployment.hasty()
    lots = random.Random(seed)

    def act(model, number, force):
        if lots.random() < 0.03:
            return promote, hasty, model, deployment.versions_of(model)
        return predict, hasty, model, number, force

    soak = Soak(
        act, tuple(PLACES), tuple(SIZES), seed, crash=deployment.server and deployment.crash
    )
    watched = reader()
    soak.run(seconds)
    _settle(deployment, soak.tried)
    seen = watched.stop()
    with capsys.disabled():
        line = f"{deployment.name}: seed={seed} {soak.tally} reads={seen.reads}"
        pytestconfig.get_terminal_writer().line(f"\n{line} violations={dict(seen.violations)}")
    assert seen.violations == {}, f"seed {seed}: {seen}"
    assert soak.tally.unexplained == {}, f"seed {seed}"
    assert seen.reconnects == 0 or soak.tally.restarts
    assert (deployment.leftovers(), deployment.unsound()) == ([], [])


def _settle(deployment, tried):
    """Publish what was tried and is not published, and then one tick more, which cleans up."""
    for model, newest in tried.items():
        open_ticks = {
            number_of(start)
            for (start,) in deployment.ask(
                "SELECT interval_start FROM prediction_runs WHERE model = :model "
                "AND state = 'staging'",
                model=model,
            )
        }
        for number in range(newest + 1):
            deployment.predict(model, number, force=number in open_ticks)
        deployment.predict(model, newest + 1)
        published = overview.status(deployment.settings, model)
        assert [row["interval_end"] for row in published] == [tick(newest + 1).end.isoformat()]
