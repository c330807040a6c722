"""Profiles as bytes, which begin with the number of their form, and added up."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import reduce

from batch_jobs.scoring.profiles import Layout, Profile

FORM = 1  # another one is not read


def encoded_sum(profiles: Sequence[Profile | None]) -> bytes | None:
    """All chunks' profiles added up, as bytes; None if one has none: a part of them would mislead.

    They have no profile either if there is none at all.
    """
    made = [each for each in profiles if each is not None]
    if not made or len(made) < len(profiles):
        return None
    return encoded(merged(made))


def merged(profiles: Sequence[Profile]) -> Profile:
    """All of them added up; at least one, in any order."""
    return reduce(Profile.__add__, profiles)


def encoded(profile: Profile) -> bytes:
    """A profile as bytes, which begin with the number of their form."""
    import numpy as np

    most = int(np.abs(profile.counts).max(initial=0))
    kind = next(kind for kind in ("<i2", "<i4", "<i8") if most <= np.iinfo(kind).max)
    parts = (profile.counts.astype(kind), profile.lowest, profile.highest)
    packed = zlib.compress(b"".join(part.tobytes() for part in parts), 1)
    return bytes([FORM, int(kind[-1])]) + packed


def decoded(content: bytes, layout: Layout) -> Profile | None:
    """The profile in some bytes; None if another release or another layout wrote them."""
    import numpy as np

    if len(content) < 2 or content[0] != FORM or content[1] not in (2, 4, 8):
        return None
    numbers = len(layout.bins.numbers)
    try:
        packed = zlib.decompress(content[2:])
    except zlib.error:
        return None
    size = content[1] * layout.size
    if len(packed) != size + 16 * numbers:
        return None
    counts = np.frombuffer(packed, f"<i{content[1]}", layout.size).astype("int64")
    ends = np.frombuffer(packed, "<f8", 2 * numbers, size)
    return Profile(counts, ends[:numbers], ends[numbers:])
