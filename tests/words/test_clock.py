"""It is now, unless a replay says otherwise."""

from contextlib import suppress
from datetime import UTC, datetime

import pytest

from batch_jobs import clock
from batch_jobs.errors import IntervalError


def test_it_is_the_machines_time():
    """To the moment, and in UTC."""
    before = datetime.now(UTC)
    assert before <= clock.now() <= datetime.now(UTC)


def test_it_is_another_time_inside_the_block_only():
    """Also if the block is left by an error, and within another block."""
    early, late = datetime(2013, 1, 7, 3, tzinfo=UTC), datetime(2013, 1, 7, 4, tzinfo=UTC)
    with clock.set_to(early):
        with suppress(KeyError), clock.set_to(late):
            assert clock.now() == late
            raise KeyError
        assert clock.now() == early
    assert clock.now() > late


def test_a_naive_time_is_refused():
    """Nobody knows when that is."""
    with pytest.raises(IntervalError, match="no UTC offset"), clock.set_to(datetime(2013, 1, 7)):
        pass
