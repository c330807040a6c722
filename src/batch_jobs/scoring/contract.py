"""Hold rows to what the model declares: whole columns and keys strictly, values row by row.

A missing column or a bad key means that the query is wrong: one error names every problem. A bad
value means that one row is wrong: it is set aside with its reason and the others go on. Whole
columns are checked at once; only what is wrong with a row is worded row by row.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.database.columns import inferred, outside_problem, texts, time_problems, times
from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel, Feature, Number
from batch_jobs.scoring.keys import count_of, key_problems, plain_values, samples_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Column = NDArray[np.float64] | pd.Series[Any]  # numbers, or text

ALLOWED_SHOWN, LONGEST_SHOWN = 5, 200
CURE_OF_DUPLICATES = {
    "merge": "; a key belongs to one moment: put the moment into it, or for the same entity again "
    'and again write mode="replace"',
    "replace": "; a population has one row of each entity: let the query choose which",
}
Rejected = tuple[str, str, dict[Hashable, Any]]


@dataclass(frozen=True)
class Checked:
    """Rows that fit the contract, and those that do not.

    Attributes:
        rows: `entity_id`, `as_of` (UTC) and the features in declared order, typed.
        rejected: entity id, reason, and the row as it was read.
    """

    rows: pd.DataFrame
    rejected: list[Rejected]


def check_features(model: BatchModel, frame: pd.DataFrame, interval: Interval) -> Checked:
    """Check rows of the features query.

    Args:
        model: what is declared.
        frame: rows as they were read, of any index; columns of one type each, or of objects.
        interval: where every `as_of` must lie.

    Raises:
        ContractError: a column is missing or comes twice; a key is null, blank, too long or
            duplicated; an `as_of` is no time or lies outside the interval. All problems at once,
            with counts and sample keys.
    """
    import pandas as pd

    subject = f"features_query of {model.name}"
    _require_columns(subject, frame, ["entity_id", "as_of", *model.features])
    frame = frame.reset_index(drop=True)
    problems = key_problems(frame["entity_id"], cure=CURE_OF_DUPLICATES[model.mode])
    as_of = times(frame["as_of"])
    problems += time_problems("as_of", frame["as_of"], as_of)
    outside = as_of.notna() & ~((as_of >= interval.start) & (as_of < interval.end))
    if outside.any():
        problems.append(outside_problem("as_of", frame["as_of"], as_of, outside, str(interval)))
    if problems:
        raise ContractError(subject, problems)
    sound = _all_sound(model, frame, as_of)
    if sound is not None:
        return Checked(sound, [])
    raw = {name: frame[name] for name in model.features}
    columns = {
        name: _numbers(raw[name]) if isinstance(feature, Number) else texts(raw[name])
        for name, feature in model.features.items()
    }
    reasons = _reasons(model, raw, columns)
    keys = texts(frame["entity_id"])
    found = {"entity_id": keys, "as_of": as_of, **columns}
    rows = pd.DataFrame({name: getattr(column, "array", column) for name, column in found.items()})
    if not reasons:
        return Checked(rows, [])
    bad = sorted(reasons)
    rejected = [
        (key, "; ".join(reasons[row]), payload)
        for key, row, payload in zip(keys[bad], bad, records(frame.loc[bad]), strict=True)
    ]
    return Checked(rows.drop(index=bad).reset_index(drop=True), rejected)


def _all_sound(
    model: BatchModel, frame: pd.DataFrame, as_of: pd.Series[Any]
) -> pd.DataFrame | None:
    """The rows, if nothing is wrong with any of them, as a rule: all numbers are looked at at once.

    None if something is wrong or has to be converted first.
    """
    import numpy as np
    import pandas as pd

    numbers = {name: kind for name, kind in model.features.items() if isinstance(kind, Number)}
    block = frame[list(numbers)]
    for name, kind in block.dtypes.items():
        if not isinstance(kind, np.dtype) or kind.kind not in "fiO":
            return None
        if kind.kind == "O" and block[name].notna().any():
            return None
    values = block.to_numpy("float64")
    low = np.array([-np.inf if kind.ge is None else kind.ge for kind in numbers.values()])
    high = np.array([np.inf if kind.le is None else kind.le for kind in numbers.values()])
    needed = np.array([not kind.nullable for kind in numbers.values()], "bool")
    if len(values) and not _lie_within(values, low, high):  # or a value is NaN
        wrong = np.isinf(values) | (values < low) | (values > high) | (np.isnan(values) & needed)
        if wrong.any():
            return None
    rows = pd.DataFrame(values, columns=block.columns, copy=False)
    rows["as_of"] = as_of
    text = pd.StringDtype(na_value=np.nan)
    for name in ("entity_id", *(name for name in model.features if name not in numbers)):
        column, feature = frame[name], model.features.get(name)
        if column.dtype == "object" and not column.notna().any():
            column = column.astype(text)
        if column.dtype != text or (feature and not _is_sound_text(feature, column)):
            return None
        rows[name] = column
    return rows[["entity_id", "as_of", *model.features]]


def _lie_within(
    values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> bool:
    """Whether all values of each column are finite and within its bounds, found in two passes."""
    import numpy as np

    least, most = values.min(axis=0), values.max(axis=0)
    return bool(np.isfinite([least, most]).all() and (least >= low).all() and (most <= high).all())


def _is_sound_text(feature: Feature, column: pd.Series[str]) -> bool:
    null = column.isna().to_numpy()
    return not any(bad.any() for _, bad in _failures(feature, column, null))


def check_labels(model: BatchModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Check rows of the labels query; the answer has text keys and UTC times.

    Raises:
        ContractError: a column is missing, a key is bad, a label is null or a time unreadable.
    """
    subject = f"labels_query of {model.name}"
    # A population is labelled at each snapshot: by key alone, one would get another's label.
    moment = ["as_of"] if model.mode == "replace" else []
    _require_columns(subject, frame, ["entity_id", *moment, "label", "known_at"])
    moments = [name for name in ("as_of", "known_at") if name in frame]
    frame = frame.reset_index(drop=True)
    read = {name: times(frame[name]) for name in moments}
    problems = key_problems(frame["entity_id"], read.get("as_of"))
    for name in moments:
        problems += time_problems(name, frame[name], read[name])
    frame = frame.assign(label=inferred(frame["label"]), **read)
    if (bad := frame["label"].isna()).any():
        problems.append(f"label is null in {count_of(bad)} (e.g. {samples_of(frame, bad)})")
    if problems:
        raise ContractError(subject, problems)
    return frame.assign(entity_id=texts(frame["entity_id"]))


def records(rows: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows as Python's own values, with None for null; of columns of one name, the first."""
    once = rows.loc[:, ~rows.columns.duplicated()].astype("object")
    return once.where(once.notna(), None).to_dict("records")


def _require_columns(subject: str, frame: pd.DataFrame, wanted: list[str]) -> None:
    returned = list(frame.columns)
    problems = []
    if missing := [name for name in wanted if name not in returned]:
        problems.append(
            f"does not return {', '.join(missing)}; it returns {', '.join(map(str, returned))}"
        )
    if doubled := [name for name in wanted if returned.count(name) > 1]:
        problems.append(f"returns {', '.join(doubled)} more than once")
    if problems:
        raise ContractError(subject, problems)


def _numbers(raw: pd.Series[Any]) -> NDArray[np.float64]:
    """The values as float64; what is no number is NaN, and what is too large for one infinite."""
    import pandas as pd
    import pyarrow as pa

    raw = inferred(raw)
    if raw.dtype.kind in "fiub":
        return raw.to_numpy("float64")
    if isinstance(raw.dtype, pd.StringDtype):
        try:  # ten times as fast, and stricter
            numbers = pa.array(raw).cast(pa.float64())
            read: NDArray[np.float64] = numbers.to_numpy(zero_copy_only=False)
            return read
        except pa.ArrowInvalid:
            pass
    # pandas misreads some numbers with a plus by a last digit, and takes datetimes for numbers.
    values = raw.astype("object").replace(r"^\s*\+(?=[\d.])", "", regex=True)
    try:
        return pd.to_numeric(values, errors="coerce").to_numpy("float64")
    except OverflowError:  # pandas: "int too large to convert to float"
        return _numbers(values.map(_capped))


def _capped(value: Any) -> Any:
    """The value; if it is a whole number too large for a float, infinity."""
    try:
        if isinstance(value, int):
            float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return value


def _reasons(
    model: BatchModel, raw: Mapping[str, pd.Series[Any]], columns: Mapping[str, Column]
) -> dict[int, list[str]]:
    """What is wrong with each row that does not fit: first what could not be read at all."""
    import numpy as np

    unread, failed = [], []
    for name, feature in model.features.items():
        column = columns[name]
        if isinstance(column, np.ndarray):
            null, wanted, is_read = np.isnan(column), "a number", raw[name].dtype.kind in "fiub"
        else:
            null, wanted = column.isna().to_numpy(), "text"
            is_read = raw[name].dtype == column.dtype
        if not is_read:
            bad = null & raw[name].notna().to_numpy()
            unread.append((f"{name} is not {wanted}", raw[name], bad))
        for check, bad in _failures(feature, column, null):
            failed.append((f"{name} fails {check}", column, bad))
    reasons: dict[int, list[str]] = {}
    for what, values, bad in unread + failed:
        if bad.any():
            for row, value in zip(
                np.flatnonzero(bad).tolist(), plain_values(values[bad]), strict=True
            ):
                reasons.setdefault(row, []).append(f"{what}: {_shortly(value)}")
    return reasons


def _shortly(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= LONGEST_SHOWN else f"{told[:LONGEST_SHOWN]}…"


def _failures(
    feature: Feature, column: Column, null: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Each check of a feature, and where it fails; null fails none but `not_nullable`."""
    import numpy as np

    if not feature.nullable:
        yield "not_nullable", null
    if isinstance(feature, Number):
        values = np.asarray(column)
        yield "finite", np.isinf(values)
        if feature.ge is not None:
            yield f"greater_than_or_equal_to({feature.ge})", ~(null | (values >= feature.ge))
        if feature.le is not None:
            yield f"less_than_or_equal_to({feature.le})", ~(null | (values <= feature.le))
    elif feature.one_of is not None:
        import pandas as pd

        allowed = pd.Series(column).isin(feature.one_of).to_numpy()
        yield _one_of(feature.one_of), ~(null | allowed)


def _one_of(allowed: Sequence[str]) -> str:
    """Of many values a few, since each rejection repeats it."""
    few = ", ".join(map(repr, allowed[:ALLOWED_SHOWN]))
    more = len(allowed) - ALLOWED_SHOWN
    return f"isin({few}{f' and {more:,} more' if more > 0 else ''})"
