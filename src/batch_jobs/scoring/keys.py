"""Keys: what may be an entity_id, and what is wrong with what may not."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from batch_jobs.database.columns import inferred, texts

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


MAX_KEY_LENGTH = 200
SAMPLES = 3


def key_problems(
    keys: pd.Series[Any], moments: pd.Series[Any] | None = None, *, cure: str = ""
) -> list[str]:
    """What is wrong with a column of keys, each problem with a count and samples.

    Args:
        keys: the keys, of any index.
        moments: if given, a key may come once at each of them.
        cure: of keys that come more than once.
    """
    import pandas as pd

    frame = keys.to_frame("entity_id")
    keys = inferred(keys)
    if moments is None and _are_plain(keys):
        return []
    text = _may_be_keys(keys)
    told = texts(keys.where(text))
    blank = told.str.isspace() | (told == "")
    unstorable = told.str.contains("\0", regex=False) | (text & told.isna())
    key_of_row = told if moments is None else pd.concat([told, moments], axis=1)
    found = {
        "entity_id is null or blank": keys.isna() | blank,
        "entity_id is neither text nor a whole number nor a UUID": keys.notna() & ~text,
        f"entity_id is longer than {MAX_KEY_LENGTH} characters": told.str.len() > MAX_KEY_LENGTH,
        "entity_id is not storable text (NUL or half a surrogate pair)": unstorable,
        f"entity_id {'' if moments is None else 'and as_of '}is duplicated": (
            key_of_row.duplicated(keep=False) & told.notna()
        ),
    }
    return [
        f"{what} in {count_of(bad)} (e.g. {samples_of(frame, bad)})"
        f"{cure if what.endswith('is duplicated') else ''}"
        for what, bad in found.items()
        if bad.any()
    ]


def _may_be_keys(keys: pd.Series[Any]) -> pd.Series[bool]:
    """Which values say for certain whose they are; a float may have lost digits."""
    import pandas as pd

    if keys.dtype == "object":
        return keys.map(_may_be_key).astype(bool)
    certain = isinstance(keys.dtype, pd.StringDtype) or keys.dtype.kind in "iu"
    return keys.notna() if certain else pd.Series(data=False, index=keys.index)


def _may_be_key(key: Any) -> bool:
    if isinstance(key, Decimal):  # a whole one, of more digits than other types have
        return key.is_finite() and int(key.as_tuple().exponent) >= 0
    return isinstance(key, str | int | UUID) and not isinstance(key, bool)


def _are_plain(keys: pd.Series[Any]) -> bool:
    """Whether there is certainly nothing wrong with any of the keys: a matter of milliseconds."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(keys.dtype, pd.StringDtype):
        return False
    texts = pa.array(keys)
    size = pc.binary_length(texts)
    return bool(
        texts.null_count == 0
        and (pc.min(size).as_py() or 0) > 0
        and pc.max(size).as_py() <= MAX_KEY_LENGTH
        and not pc.any(pc.utf8_is_space(texts)).as_py()
        and not _has_nul(texts)
        and keys.is_unique
    )


def _has_nul(texts: pa.LargeStringArray | pa.ChunkedArray) -> bool:
    import numpy as np
    import pyarrow.compute as pc

    chunks = getattr(texts, "chunks", [texts])
    if all(np.frombuffer(chunk.buffers()[-1], "uint8").all() for chunk in chunks):
        return False
    return bool(pc.any(pc.match_substring(texts, "\0")).as_py())  # or another row of the buffer


def plain_values(column: Any) -> list[Any]:
    """Python's own values; NULL in a column of text is None again."""
    import pandas as pd

    if isinstance(column, pd.Series) and isinstance(column.dtype, pd.StringDtype):
        column = column.astype("object").where(column.notna(), None)
    values: list[Any] = column.tolist()
    return values


def count_of(bad: pd.Series[bool]) -> str:
    """How many rows are bad, in words."""
    return f"{int(bad.sum()):,} of {len(bad):,} rows"


def samples_of(frame: pd.DataFrame, bad: pd.Series[bool]) -> str:
    """The keys of some of the bad rows, in words."""
    keys = frame.loc[bad.to_numpy(), "entity_id"].drop_duplicates().head(SAMPLES)
    return ", ".join(map(repr, plain_values(keys)))
