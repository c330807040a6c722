"""Profiles add up exactly in any order, stay small, tell what rows looked like, and no row."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs.model import Category, Number
from batch_jobs.scoring.bins import Bins, bins_of
from batch_jobs.scoring.counts import Counts
from batch_jobs.scoring.profile_bytes import decoded, encoded, encoded_sum, merged
from batch_jobs.scoring.profiles import PROFILED_ROWS, Layout, Profiler

FEATURES = {"x": Number(), "y": Number(), "void": Number(), "kind": Category()}
CLASSES = ["no", "yes"]


def _rows(count, seed=0, **columns):
    rng = np.random.default_rng(seed)
    x = rng.normal(10, 2, count)
    given = {
        "x": x,
        "y": 3 * x + rng.normal(0, 0.1, count),
        "void": np.full(count, np.nan),
        "kind": pd.array(rng.choice(["a", "b", "c"], count), "str"),
    }
    return pd.DataFrame(given | columns)


def _asked(rows, seed=0):
    scores = np.random.default_rng(seed).random(len(rows))
    labels = pa.array(np.where(scores > 0.5, "yes", "no"), pa.string())
    return rows, scores, labels, Counts(len(rows), len(rows))


@pytest.fixture(scope="module")
def profiler():
    """Of a training of 2,000 rows."""
    rows, scores, *_ = _asked(_rows(2000, 1))
    return Profiler(bins_of(rows, scores, FEATURES, CLASSES), {"kind": ["a", "b", "c"]})


def _same(one, other):
    return all(
        np.array_equal(getattr(one, part), getattr(other, part))
        for part in ("counts", "lowest", "highest")
    )


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_parts_add_up_to_the_whole_in_any_order(profiler, cuts, order):
    """To the last digit, however the rows are cut, and whichever part comes first."""
    rows, scores, labels, _ = _asked(_rows(300))
    ends = [0, *sorted(cuts), 300]
    parts = [
        profiler.of(rows[a:b], scores[a:b], labels[a:b], Counts(b - a, b - a))
        for a, b in pairwise(ends)
    ]
    order.shuffle(parts)
    whole = profiler.of(rows, scores, labels, Counts(300, 300))
    assert _same(merged(parts), whole)
    middle = len(parts) // 2
    halves = [merged(part) for part in (parts[:middle], parts[middle:]) if part]
    assert _same(merged(halves[::-1]), whole)


def test_groups_of_rows_have_the_profiles_of_each():
    """As a replay makes them, many at once, with nulls and values that nobody has seen."""
    rows, scores, labels, _ = _asked(_rows(90))
    rows.loc[3, "kind"], rows.loc[4, "kind"], rows.loc[50, "x"] = None, "zebra", np.nan
    profiler = Profiler(bins_of(_rows(500, 1), np.linspace(0, 1, 500), FEATURES, CLASSES), {})
    firsts = [0, 1, 40, 77]
    each = profiler.each(rows, scores, labels, firsts)
    for found, start, end in zip(each, firsts, [*firsts[1:], 90], strict=True):
        n = end - start
        one = profiler.of(rows[start:end], scores[start:end], labels[start:end], Counts(n, n))
        assert _same(found, one)


def test_a_profile_is_a_few_kilobytes_that_are_read_back(profiler):
    """Also of one row, of none, and of a chunk of which only some are drawn."""
    for count in (0, 1, 300, 2 * PROFILED_ROWS + 1):
        profile = profiler.of(*_asked(_rows(count)))
        content = encoded(profile)
        assert len(content) < 2_500
        assert _same(decoded(content, profiler.layout), profile)
    rows = profile.counts[0]
    assert abs(rows - count) <= 3, "each row that is drawn counts for as many as it stands for"
    assert profile.counts[1] == count


def test_the_form_of_another_release_is_left_out(profiler):
    """And so are bytes of other bins, or that are none."""
    content = encoded(profiler.of(*_asked(_rows(5))))
    other = Layout(bins_of(_rows(50), np.zeros(50), FEATURES, None))
    assert decoded(b"\x63" + content[1:], profiler.layout) is None
    assert decoded(content[:-4], profiler.layout) is None
    assert decoded(b"", profiler.layout) is None
    assert decoded(content, other) is None


def test_a_part_without_a_profile_leaves_the_whole_without(profiler):
    """What is missing would be taken for rows that never came."""
    one = profiler.of(*_asked(_rows(5)))
    assert encoded_sum([one, None]) is None
    assert encoded_sum([]) is None
    assert encoded_sum([one, one]) == encoded(merged([one, one]))


def test_a_category_of_a_hundred_thousand_values_stays_bounded():
    """The most frequent are counted by name, the others together, and it says how many."""
    values = np.array([f"id-{n}" for n in range(100_000)] + ["often"] * 50)
    rows = pd.DataFrame({"kind": pd.array(values, "str")})
    bins = bins_of(rows, np.zeros(len(rows)), {"kind": Category()}, None)
    (told,) = bins.categories
    assert (len(told.named), told.others, told.tells_unseen) == (50, 100_001 - 50, False)
    assert told.named[0] == "often"
    assert len(json.dumps(bins.as_dict())) < 3_000
    profiler = Profiler(bins, {"kind": values.tolist()})
    new = rows.iloc[-100:].assign(kind=pd.array(["often"] * 60 + ["new"] * 40, "str"))
    profile = profiler.of(new, np.zeros(100), pa.nulls(100, pa.string()), Counts(100, 100))
    found = profile.counts[profiler.layout.categories[0]]
    assert (found[1], found[-2], found[-1]) == (60, 40, 0)


def test_a_feature_that_is_all_null_has_a_profile(profiler):
    """Of training, and of rows in which it has values after all."""
    counts = profiler.of(*_asked(_rows(30, void=np.arange(30.0)))).counts
    place = [each.name for each in profiler.layout.bins.numbers].index("void")
    there = counts[profiler.layout.sums].reshape(3, -1)[0]
    assert there[place] == 30


def test_bins_are_read_back_as_they_were(profiler):
    """From JSON, which a manifest is."""
    bins = profiler.layout.bins
    assert Bins.from_dict(json.loads(json.dumps(bins.as_dict()))) == bins
    assert [each.name for each in bins.relations] == ["x", "y"]
