"""The negative control: what people write by themselves, the same reader and soak do catch.

If one of these were found to be right, the harness would be blind, and what it says of the
library would mean nothing.
"""

import pytest

from tests.support import writers
from tests.support.faults import PATIENCE
from tests.support.soak import Soak

CAUGHT = {
    # Chunks are seen one after the other, and a retry writes them again.
    "append": {"partial", "duplicate"},
    # Two attempts delete nothing and both insert; between two commits there is no row.
    "delete_insert": {"duplicate"},
    # Whoever writes last wins: a backfill, or an attempt that was stopped for a while.
    "upsert": {"backwards"},
}


@pytest.mark.parametrize("name", CAUGHT)
@pytest.mark.failure_mode("harness")
def test_a_writer_without_claim_and_pointer_is_caught(
    deployment, reader, capsys, pytestconfig, name
):
    """All its kinds of errors are found; the soak goes on until they are."""
    writers.make_tables(deployment.url)
    version = next(name for name, shift in deployment.versions.items() if shift == 0)
    write = getattr(writers, name)
    soak = Soak(
        # The last tick is written again and again: what is wrong with it stays in sight. Who
        # writes an older one anew takes the first, so that there is always one that is older.
        act=lambda model, number, force: (
            *(write, deployment.url, version),
            0 if force else min(number, 3),
        ),
        places=writers.PLACES,
        models=("population",),
        seed=1,
        actions=("kill", "stop", "stop"),
        hits=(1,),
        pause=(0.5, 2),
    )
    watched = reader(tables={"population": f"{name}_now"})
    soak.run(PATIENCE, enough=lambda: set(watched.so_far().violations) >= CAUGHT[name])
    seen = watched.stop()
    with capsys.disabled():
        line = f"{name}: {soak.tally} reads={seen.reads} violations={dict(seen.violations)}"
        pytestconfig.get_terminal_writer().line(f"\n{line}")
    assert set(seen.violations) >= CAUGHT[name], str(seen)
