"""References: what the rows of training looked like, as the manifest of a version has it.

A manifest is signed, and so is its reference. What an older release has trained has none, and what
a newer one wrote in another form is not read: the version serves all the same.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from batch_jobs.redaction import first_line
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.scoring.bins import Bins
from batch_jobs.scoring.profiles import Layout, Profiler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

FORM = 1
MANIFEST_FIELD = "reference"


@dataclass(frozen=True)
class Reference:
    """What the rows of training looked like.

    Attributes:
        bins: by which all rows of the version are counted.
        starts: of each block of time, ascending.
        counts: of each block, as `Layout` places them, shape (blocks, counts).
        block: how long a block is.
        offset: at what time of the UTC day blocks begin.
        correlated: how many blocks apart two have to be to be independent, as far as the data tell.
        rejected: share of the rows read that did not fit the contract.
    """

    bins: Bins
    starts: tuple[datetime, ...]
    counts: NDArray[np.int64]
    block: timedelta
    offset: timedelta
    correlated: int
    rejected: float

    @property
    def layout(self) -> Layout:
        """Where in the counts what stands."""
        return Layout(self.bins)


def as_stored(reference: Reference) -> dict[str, Any]:
    """A reference as plain values of JSON, for the manifest."""
    told = {
        "bins": reference.bins.as_dict(),
        "starts": [start.isoformat() for start in reference.starts],
        "block_seconds": int(reference.block.total_seconds()),
        "offset_seconds": int(reference.offset.total_seconds()),
        "correlated": reference.correlated,
        "rejected": reference.rejected,
    }
    # A database may write the numbers of JSON in another way, which a signature would not survive.
    return {
        "form": FORM,
        "told": _packed(json.dumps(told).encode()),
        "counts": _packed(reference.counts.astype("<i4").T.tobytes()),
    }


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def reference_of(version: ModelVersion) -> Reference | None:
    """The reference of a version; None if it has none that this release can read."""
    import numpy as np

    stored = version.manifest.get(MANIFEST_FIELD)
    if not isinstance(stored, dict) or stored.get("form") != FORM:
        return None
    try:
        told = json.loads(_unpacked(stored["told"]))
        bins = Bins.from_dict(told["bins"])
        starts = tuple(datetime.fromisoformat(start) for start in told["starts"])
        counts = (
            np.frombuffer(_unpacked(stored["counts"]), "<i4")
            .reshape(-1, len(starts))
            .T.astype("int64")
        )
        if counts.shape[1] != Layout(bins).size:
            return None
        block, offset = (timedelta(seconds=told[f"{n}_seconds"]) for n in ("block", "offset"))
        return Reference(bins, starts, counts, block, offset, told["correlated"], told["rejected"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        log.warning(
            "the reference of %s %s is not readable: %s",
            version.model,
            version.version,
            first_line(error),
        )
        return None


def profiler_of(version: ModelVersion) -> Profiler | None:
    """What makes the profiles of a version's rows; None if it has no reference to compare with."""
    reference = reference_of(version)
    if reference is None:
        return None
    known: dict[str, Sequence[str]] = dict(version.manifest.get("categories") or {})
    return Profiler(reference.bins, known)
