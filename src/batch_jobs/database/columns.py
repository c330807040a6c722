"""Read columns as sources hold them: texts and times, and what is wrong with what is no time."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

SAMPLES, MANY = 3, 100
EXACT = 2**53  # below which a float holds each whole number
PLAIN = (str, int, bytes, UUID, date, time)  # of which there is one text, beside other numbers
# The second of a time with an offset: what `:start` looks like, and sorts like, as text.
CURE = (
    "on PostgreSQL select it AT TIME ZONE 'UTC' (of its own zone), on SQLite as "
    "strftime('%Y-%m-%dT%H:%M:%S+00:00', …)"
)


def inferred(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column, as one of text or numbers if it is one of objects that all are that."""
    if column.dtype != "object":
        return column
    try:
        return column.infer_objects()
    except UnicodeError:
        return column


def texts(raw: pd.Series[Any]) -> pd.Series[str]:
    """The values as text, each the same whatever type it is held as; null where it is none.

    A whole number is its digits (94105, also where it is held as 94105.0 or numeric), another one
    the shortest that is it (12.5 for 12.50, and never with an exponent), a truth value `true` or
    `false`, an id (UUID) lower-case with hyphens, a date as ISO 8601 has it. What cannot be stored
    as text is none; nor is a float so large that it may have lost digits, nor what is written in
    many ways, such as a moment, a span or a list.
    """
    import pandas as pd

    kind = raw.dtype.kind
    if isinstance(raw.dtype, pd.StringDtype) or kind in "iu":
        return raw.astype("str")
    if kind == "f":
        whole = raw.where(raw.mod(1) == 0).where(raw.abs() < EXACT)
        digits = whole.astype("Int64").astype("str").where(whole.notna())
        told = digits.fillna(raw.where(raw.mod(1) > 0).astype("str"))
        short = told.str.contains("e", regex=False).fillna(value=False).astype(bool)
        return told.where(~short, told[short].map(_positional).astype("str"))
    if kind == "b":
        return raw.map({True: "true", False: "false"}).astype("str")
    return raw.astype("object").map(text_of, na_action="ignore").astype("str")


def text_of(value: Any) -> str | None:
    """One value as text; see `texts`."""
    if hasattr(value, "item"):  # numpy's
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal):
        return _of_number(value)
    if isinstance(value, datetime) or not isinstance(value, PLAIN):
        return None
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except ValueError:  # no Unicode, or a number of thousands of digits
        return None
    # Bytes that are no letters are a number or an address in some form of their own.
    return None if isinstance(value, bytes) and not text.isprintable() else text


def _of_number(value: float | Decimal) -> str | None:
    """What a float would say, or all digits where a float would lose some of them."""
    if isinstance(value, Decimal) and not value.is_finite():
        return None
    if -EXACT < value < EXACT:
        return _positional(repr(float(value)))
    return _positional(str(value)) if isinstance(value, Decimal) else None


def _positional(told: str) -> str:
    """A number without an exponent, and without zeros that say nothing."""
    digits = format(Decimal(told), "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def times(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of times as UTC timestamps; what cannot be read, or has no offset, is NaT."""
    import pandas as pd
    import pyarrow as pa

    column = inferred(column)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        utc: pd.Series[Any] = column.dt.tz_convert("UTC")
        return utc
    told = _as_told(column)
    try:  # ten times as fast, and stricter
        read: pd.Series[Any] = pa.array(told).cast(pa.timestamp("us", "UTC")).to_pandas()
    except pa.ArrowInvalid:
        aware = told.str.contains(r"(?:Z|[+-]\d\d:?\d\d|[T ]\d\d\S*[+-]\d\d)$", regex=True)
        read = pd.to_datetime(told.where(aware), utc=True, errors="coerce", format="ISO8601")
    return read


def _as_told(column: pd.Series[Any]) -> pd.Series[str]:
    """The values as Python writes them; null where that cannot be stored."""
    try:
        return column.astype("str")
    except UnicodeError:
        return column.map(_as_python, na_action="ignore").astype("str")


def _as_python(value: Any) -> str | None:
    text = str(value)
    try:
        text.encode()
    except UnicodeError:
        return None
    return text


def time_problems(name: str, raw: pd.Series[Any], read: pd.Series[Any]) -> list[str]:
    """What is wrong with a column of times, each problem with a count, samples and the cure.

    Args:
        name: of the column.
        raw: as it was read from the source.
        read: the same as of `times`.
    """
    import pandas as pd

    unread = read.isna().to_numpy()
    if not unread.any():
        return []
    null = raw.isna().to_numpy() & unread
    rest = unread & ~null
    told = _as_told(inferred(raw)).where(rest & ~_are_numbers(raw))
    as_time = pd.to_datetime(told, errors="coerce", format="ISO8601", utc=True)
    naive = rest & as_time.notna().to_numpy()
    found = {
        f"{name} is null": (null, ""),
        f"{name} has no time zone": (naive, f"; {CURE}"),
        f"{name} is no time": (rest & ~naive, f"; {CURE}, with 'unixepoch' for seconds since 1970"),
    }
    return [
        f"{what} in {int(bad.sum()):,} of {len(bad):,} rows{_shown(raw[bad])}{cure}"
        for what, (bad, cure) in found.items()
        if bad.any()
    ]


def _are_numbers(raw: pd.Series[Any]) -> NDArray[np.bool_]:
    import numpy as np

    if raw.dtype != "object":
        return np.full(len(raw), raw.dtype.kind in "fiu")
    return raw.map(lambda value: isinstance(value, int | float)).to_numpy("bool")


def outside_problem(
    name: str, raw: pd.Series[Any], read: pd.Series[Any], bad: pd.Series[bool], within: str
) -> str:
    """The problem of times that do not lie where they should; of a text, also how it is written."""
    shown = []
    for written, moment in zip(raw[bad], read[bad], strict=True):
        told = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
        same = not isinstance(written, str) or written in (told, moment.isoformat())
        shown.append(told if same else f"{told} from {written!r}")
        if len(set(shown)) == SAMPLES:
            break
    samples = ", ".join(dict.fromkeys(shown))
    return f"{name} is outside {within} in {int(bad.sum()):,} of {len(bad):,} rows (e.g. {samples})"


def _shown(raw: pd.Series[Any]) -> str:
    values = dict.fromkeys(map(str, raw.dropna().head(MANY)))
    shown = ", ".join(map(repr, list(values)[:SAMPLES]))
    return f" (e.g. {shown})" if shown else ""
