"""Hold rows to what the model declares: whole columns and keys strictly, values row by row.

A missing column or a bad key means that the query is wrong: one error names every problem. A bad
value means that one row is wrong: it is set aside with its reason and the others go on.
Validation is pandera's, lazy and vectorised (https://pandera.readthedocs.io/en/stable/lazy_validation.html).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel, Category, Feature, Number

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

SAMPLES = 3
MAX_KEY_LENGTH = 200
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
        frame: rows as they were read, of any index.
        interval: where every `as_of` must lie.

    Raises:
        ContractError: a column is missing; a key is null, blank, too long or duplicated; an
            `as_of` is no time or lies outside the interval. All problems at once, with counts
            and sample keys.
    """
    subject = f"features_query of {model.name}"
    _require_columns(subject, frame, ["entity_id", "as_of", *model.features])
    frame = frame.reset_index(drop=True)
    problems = key_problems(frame["entity_id"])
    as_of = times(frame["as_of"])
    outside = ~((as_of >= interval.start) & (as_of < interval.end)).fillna(value=False)
    if outside.any():
        problems.append(
            f"as_of is outside {interval} in {_count(outside)} (e.g. {_samples(frame, outside)})"
        )
    if problems:
        raise ContractError(subject, problems)
    typed, reasons = _typed(model, frame)
    typed.insert(0, "as_of", as_of)
    typed.insert(0, "entity_id", frame["entity_id"].astype("object"))
    _collect_failures(_schema(tuple(model.features.items())), typed, reasons)
    if not reasons:
        return Checked(typed, [])
    rejected = [
        (str(frame["entity_id"][row]), "; ".join(why), frame.loc[row].to_dict())
        for row, why in sorted(reasons.items())
    ]
    return Checked(typed.drop(index=list(reasons)).reset_index(drop=True), rejected)


def check_labels(model: BatchModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Check rows of the labels query; the answer has `known_at` (and `as_of`, if given) as UTC.

    Raises:
        ContractError: a column is missing, a key is bad, a label is null or a time unreadable.
    """
    subject = f"labels_query of {model.name}"
    # A population is labelled at each snapshot: by key alone, one would get another's label.
    moment = ["as_of"] if model.mode == "replace" else []
    _require_columns(subject, frame, ["entity_id", *moment, "label", "known_at"])
    moments = [name for name in ("as_of", "known_at") if name in frame]
    frame = frame.reset_index(drop=True)
    frame = frame.assign(
        label=frame["label"].infer_objects(), **{name: times(frame[name]) for name in moments}
    )
    problems = key_problems(frame["entity_id"], frame.get("as_of"))
    problems += [
        f"{column} is null or unreadable in {_count(bad)} (e.g. {_samples(frame, bad)})"
        for column in ("label", *moments)
        if (bad := frame[column].isna()).any()
    ]
    if problems:
        raise ContractError(subject, problems)
    return frame


def key_problems(keys: pd.Series[Any], moments: pd.Series[Any] | None = None) -> list[str]:
    """What is wrong with a column of keys, each problem with a count and samples.

    Args:
        keys: the keys, of any index.
        moments: if given, a key may come once at each of them.
    """
    import pandas as pd

    frame = keys.to_frame("entity_id")
    blank = keys.isna() | keys.map(lambda key: isinstance(key, str) and not key.strip())
    text = keys.map(lambda key: isinstance(key, str)).astype(bool)
    key_of_row = keys if moments is None else pd.concat([keys, moments], axis=1)
    doubled = keys.notna() & key_of_row.duplicated(keep=False)
    found = {
        "entity_id is null or blank": blank.astype(bool),
        "entity_id is not text": keys.notna() & ~text,
        f"entity_id is longer than {MAX_KEY_LENGTH} characters": text
        & (keys.where(text, "").map(len) > MAX_KEY_LENGTH),
        "entity_id is not storable text (NUL or half a surrogate pair)": text
        & ~keys.where(text, "").map(_is_storable).astype(bool),
        f"entity_id {'' if moments is None else 'and as_of '}is duplicated": doubled,
    }
    return [
        f"{what} in {_count(bad)} (e.g. {_samples(frame, bad)})"
        for what, bad in found.items()
        if bad.any()
    ]


def _is_storable(text: str) -> bool:
    """Whether SQLite and PostgreSQL give the text back as it was given."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def times(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of times as UTC timestamps; what cannot be read, or has no offset, is NaT."""
    import pandas as pd

    if isinstance(column.dtype, pd.DatetimeTZDtype):
        utc: pd.Series[Any] = column.dt.tz_convert("UTC")
        return utc
    texts = column.astype("str")
    aware = texts.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$", regex=True)
    return pd.to_datetime(texts.where(aware), utc=True, errors="coerce", format="ISO8601")


def _require_columns(subject: str, frame: pd.DataFrame, wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise ContractError(
            subject,
            [f"does not return {', '.join(missing)}; it returns {', '.join(map(str, frame))}"],
        )


def _typed(model: BatchModel, frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """The features as float64 and text, and per row what could not be read as that."""
    import pandas as pd

    columns: dict[str, Any] = {}
    reasons: dict[int, list[str]] = {}
    for name, feature in model.features.items():
        raw = frame[name]
        if isinstance(feature, Number):
            columns[name] = _numbers(raw)
            for row in frame.index[columns[name].isna() & raw.notna()]:
                reasons.setdefault(row, []).append(f"{name} is not a number: {raw[row]!r}")
        else:
            columns[name] = raw.where(raw.isna(), raw.astype("str")).astype("object")
    return pd.DataFrame(columns, index=frame.index), reasons


def _numbers(raw: pd.Series[Any]) -> pd.Series[float]:
    """The values as float64; what is no number is NaN, and what is too large for one infinite."""
    import pandas as pd

    try:
        return pd.to_numeric(raw, errors="coerce").astype("float64")
    except OverflowError:  # pandas: "int too large to convert to float"
        return _numbers(raw.map(lambda value: str(value) if isinstance(value, int) else value))


@lru_cache
def _schema(features: tuple[tuple[str, Feature], ...]) -> pa.DataFrameSchema:
    import numpy as np
    import pandera.pandas as pa

    finite = pa.Check(np.isfinite, error="finite", ignore_na=True)

    def column(feature: Feature) -> pa.Column:
        if isinstance(feature, Category):
            checks = [pa.Check.isin(feature.one_of)] if feature.one_of is not None else []
            return pa.Column(checks=checks, nullable=feature.nullable)
        checks = [finite]
        if feature.ge is not None:
            checks.append(pa.Check.ge(feature.ge))
        if feature.le is not None:
            checks.append(pa.Check.le(feature.le))
        return pa.Column(float, checks=checks, nullable=feature.nullable)

    return pa.DataFrameSchema({name: column(feature) for name, feature in features})


def _collect_failures(
    schema: pa.DataFrameSchema, typed: pd.DataFrame, reasons: dict[int, list[str]]
) -> None:
    from pandera.errors import SchemaErrors

    try:
        schema.validate(typed, lazy=True)
    except SchemaErrors as errors:
        for case in errors.failure_cases.itertuples():
            reason = f"{case.column} fails {case.check}: {case.failure_case!r}"
            reasons.setdefault(int(case.index), []).append(reason)


def _count(bad: pd.Series[bool]) -> str:
    return f"{int(bad.sum()):,} of {len(bad):,} rows"


def _samples(frame: pd.DataFrame, bad: pd.Series[bool]) -> str:
    keys = frame.loc[bad.to_numpy(), "entity_id"].drop_duplicates().head(SAMPLES)
    return ", ".join(map(repr, keys))
