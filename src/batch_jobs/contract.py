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
    _require_columns(subject, frame, ["entity_id", "label", "known_at"])
    frame = frame.reset_index(drop=True).assign(known_at=times(frame["known_at"]).array)
    keyed = frame["entity_id"]
    if "as_of" in frame:
        frame = frame.assign(as_of=times(frame["as_of"]))
        keyed = keyed.astype("str") + frame["as_of"].astype("str")
    problems = key_problems(keyed)
    problems += [
        f"{column} is null or unreadable in {_count(bad)} (e.g. {_samples(frame, bad)})"
        for column in ("label", "known_at")
        if (bad := frame[column].isna()).any()
    ]
    if problems:
        raise ContractError(subject, problems)
    return frame


def key_problems(keys: pd.Series[Any]) -> list[str]:
    """What is wrong with a column of keys, each problem with a count and samples."""
    frame = keys.to_frame("entity_id")
    texts = keys.where(keys.notna(), "").astype("str")
    found = {
        "null or blank": texts.str.strip() == "",
        "not text": keys.notna() & ~keys.map(lambda key: isinstance(key, str)).astype(bool),
        f"longer than {MAX_KEY_LENGTH} characters": texts.str.len() > MAX_KEY_LENGTH,
        "duplicated": keys.notna() & keys.duplicated(keep=False),
    }
    return [
        f"entity_id is {what} in {_count(bad)} (e.g. {_samples(frame, bad)})"
        for what, bad in found.items()
        if bad.any()
    ]


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
            columns[name] = pd.to_numeric(raw, errors="coerce").astype("float64")
            for row in frame.index[columns[name].isna() & raw.notna()]:
                reasons.setdefault(row, []).append(f"{name} is not a number: {raw[row]!r}")
        else:
            columns[name] = raw.where(raw.isna(), raw.astype("str")).astype("object")
    return pd.DataFrame(columns, index=frame.index), reasons


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
