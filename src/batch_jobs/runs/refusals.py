"""What was refused waits for a person, or until something changes: nobody asks the same twice.

The ledger keeps the question that a run was refused with: a digest of its rows, in any order, of
the version that scored them, and of what they were held to.
"""

from __future__ import annotations

import logging
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from batch_jobs import clock
from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def question(
    warehouse: Warehouse, trained: BatchModel, interval: Interval, version: str
) -> str | None:
    """What is asked when an interval is scored; None if nobody can tell.

    Args:
        warehouse: where the rows are.
        trained: the model as the version was trained.
        interval: whose rows.
        version: who scores them.
    """
    try:
        rows = _digest(warehouse, trained, interval)
    except ContractError as error:  # rows that cannot be read are refused as such
        rows = str(error)
    except Exception as error:  # noqa: BLE001 - then it is simply asked again
        log.info("the rows of %s are not known again: %s", interval, first_line(error))
        return None
    held_to = repr((trained.features_query, trained.features, trained.limits))
    return sha256(f"{rows} {version} {held_to}".encode()).hexdigest()


@repeatable
def _digest(warehouse: Warehouse, trained: BatchModel, interval: Interval) -> str:
    rows = total = 0
    query = trained.features_query
    with closing(warehouse.stream(query, bounds(interval), trained.chunk_rows)) as chunks:
        for chunk in chunks:
            rows += len(chunk)
            total += _sum(chunk)
    if rows:
        return f"{rows} {total % 2**64:x}"
    # Without rows: one thing while the source is silent, and another once it speaks again.
    now = clock.now()
    if now <= interval.end:
        return "silent"
    with closing(warehouse.stream(query, bounds(Interval(interval.end, now)), 1)) as chunks:
        return "silent" if next(chunks).empty else "silent until then"


def _sum(chunk: pd.DataFrame) -> int:
    """The sum of the digests of rows, in which their order does not matter."""
    import pandas as pd

    def told(value: Any) -> str:
        # A chunk in which nothing is missing has other types than one in which something is.
        return "" if pd.api.types.is_scalar(value) and pd.isna(value) else repr(value)

    as_text = pd.DataFrame(
        {name: chunk[name].astype("object").map(told) for name in sorted(chunk.columns)}
    )
    return sum(pd.util.hash_pandas_object(as_text, index=False).tolist())
