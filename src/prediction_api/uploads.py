"""Read the rows of a body: JSON, CSV or Parquet, whose shape is checked and whose values are not.

A value that breaks the model's contract is for the scorer to reject, with its reason. What cannot
be read, has other columns, or is too large, is refused as a whole, all of it named at once.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from batch_jobs.database.columns import text_of
from batch_jobs.model import BatchModel, Feature, Number
from batch_jobs.requests.submit import Row
from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.problems import ProblemError
from prediction_api.routing import invalid
from prediction_api.schemas import row_of, rows_of
from prediction_api.strict_json import MOST_NESTED, strict_json
from prediction_api.unpacking import MOST_COLUMNS, TooLargeError, unpack

if TYPE_CHECKING:
    import pyarrow as pa

JSON, CSV = "application/json", "text/csv"
PARQUET = "application/vnd.apache.parquet"
KEY = "entity_id"
MOST_NAMED, MOST_PROBLEMS = 20, 100
INFLATED = 5  # how many times as large as a body may be what Parquet packs into it
TRUTH = {"true": 1.0, "false": 0.0}  # as Parquet and the warehouse have them
NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True)
class Most:
    """How much may be sent.

    Attributes:
        rows: how many.
        bytes: of a body.
    """

    rows: int
    bytes: int


class Reader:
    """Reads what is sent to a model.

    Args:
        model: who is asked.
        most: how much it may be.
    """

    def __init__(self, model: BatchModel, most: Most) -> None:
        self.model, self._most = model, most
        self._shape, self._row = TypeAdapter(rows_of(model, Any)), TypeAdapter(row_of(model))

    @property
    def schema(self) -> dict[str, Any]:
        """What JSON has to look like."""
        return TypeAdapter(rows_of(self.model, row_of(self.model))).json_schema()

    def read(self, kind: str, body: bytes) -> list[Row]:
        """The rows of a body.

        Args:
            kind: JSON, CSV or PARQUET.
            body: all of it.

        Raises:
            ProblemError: it cannot be read, or has other columns, or is too large.
            RequestValidationError: it is JSON of another shape.
        """
        if kind == JSON:
            found = self._of_json(body)
        else:
            found = (_csv if kind == CSV else _parquet)(self.model, body, self._most)
        rows = list(found)
        if not rows:
            raise ProblemError(422, "there are no rows")
        _require_keys(rows)
        return rows

    def _of_json(self, body: bytes) -> Iterator[Row]:
        sent = strict_json(body, self._most.rows + MOST_NESTED)
        try:
            rows = self._shape.validate_python(sent)["rows"]
        except ValidationError as error:
            raise invalid(error, "body") from error
        _require_few(len(rows), self._most)
        problems: list[Any] = []
        for number, sent in enumerate(rows):
            rows[number] = None  # one of the two is enough
            try:
                row = self._row.validate_python(sent)
            except ValidationError as error:
                found = invalid(error, "body").errors()
                problems += [
                    {**one, "loc": ("body", "rows", number, *one["loc"][1:])} for one in found
                ]
                if len(problems) >= MOST_PROBLEMS:
                    break
            else:
                if not problems:
                    key = row.pop(KEY, None)
                    features = {name: _value(value) for name, value in row.items()}
                    yield Row(None if key is None else text_of(key), features)
        if problems:
            raise RequestValidationError(problems[:MOST_PROBLEMS])


def _require_keys(rows: Sequence[Row]) -> None:
    """Keys are text that every warehouse can store."""
    odd = [str(number) for number, row in enumerate(rows, 1) if not _storable(row.entity_id)]
    if odd:
        named = ", ".join(odd[:MOST_NAMED]) + (", …" if odd[MOST_NAMED:] else "")
        raise ProblemError(
            422,
            f"{KEY} has more than {MAX_KEY_LENGTH} characters, or one that no text has, in "
            f"{len(odd):,} rows: {named}",
        )


def _storable(key: str | None) -> bool:
    if key is None:
        return True
    odd = "\0" in key or any("\ud800" <= letter <= "\udfff" for letter in key)
    return len(key) <= MAX_KEY_LENGTH and not odd


def _csv(model: BatchModel, body: bytes, most: Most) -> Iterator[Row]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProblemError(
            422, f"byte {error.start:,} is not UTF-8; save the file as UTF-8"
        ) from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        if len(names) > MOST_COLUMNS:
            raise _too_large("columns", most)
        _require_columns(model, names)
        for number, cells in enumerate(filter(None, lines), 1):
            _require_few(number, most)
            if len(cells) != len(names):
                raise ProblemError(
                    422,
                    f"line {lines.line_num:,} has {len(cells):,} cells, and the header has "
                    f"{len(names):,}",
                )
            values = dict(zip(names, cells, strict=True))
            key = values.pop(KEY, None) or None
            yield Row(
                key, {name: _cell(model.features[name], cell) for name, cell in values.items()}
            )
    except csv.Error as error:
        raise ProblemError(422, f"line {lines.line_num:,} is no CSV: {error}") from None


def _cell(kind: Feature, cell: str) -> str | float | None:
    """What a cell says; what is no number stays text, for the scorer to tell."""
    if not cell:
        return None
    if isinstance(kind, Number) and NUMBER.fullmatch(cell):
        number = float(cell)
        return number if math.isfinite(number) else cell
    if isinstance(kind, Number) and cell.lower() in TRUTH:
        return TRUTH[cell.lower()]
    return cell


def _parquet(model: BatchModel, body: bytes, most: Most) -> Iterator[Row]:
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(unpack(body, INFLATED * most.bytes, most.rows))
    except TooLargeError as error:
        raise _too_large(error.what, most) from None
    except (pa.ArrowException, OSError, ValueError):
        raise ProblemError(422, "the body is no Parquet file that can be read") from None
    _require_columns(model, stream.schema.names)
    if KEY in stream.schema.names and not _may_be_key(stream.schema.field(KEY).type):
        raise ProblemError(422, f"{KEY}: keys are text or whole numbers; write the column as one")
    odd = [field.name for field in stream.schema if not _plain(field.type)]
    if odd:
        raise ProblemError(
            422, f"{', '.join(map(repr, odd))}: columns hold numbers, text or truth values"
        )
    for batch in stream:
        try:
            rows = batch.to_pylist()
        except ValueError:  # text that is none
            raise ProblemError(422, "the body is no Parquet file that can be read") from None
        for values in rows:
            row = {name: _value(value) for name, value in values.items()}
            key = row.pop(KEY, None)
            yield Row(None if key is None else text_of(key), row)


def _plain(kind: pa.DataType) -> bool:
    import pyarrow.types as of

    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        *(of.is_integer, of.is_floating, of.is_decimal, of.is_boolean, of.is_null),
        *(of.is_string, of.is_large_string, of.is_string_view),
        *(of.is_binary, of.is_large_binary),  # text without the mark of UTF-8
    )
    return any(test(kind) for test in tests)


def _may_be_key(kind: pa.DataType) -> bool:
    import pyarrow.types as of

    if of.is_floating(kind) or of.is_boolean(kind):
        return False
    return not (of.is_decimal(kind) and kind.scale > 0)


def _value(value: Any) -> Any:
    """A value as JSON has it; NaN is how frames say that there is none."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, bytes):
        text = text_of(value)
        if text is None:
            raise ProblemError(422, f"{value[:20]!r}: columns of bytes hold text as UTF-8")
        return text
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _require_few(rows: int, most: Most) -> None:
    if rows > most.rows:
        raise _too_large("rows", most)


def _too_large(what: str, most: Most) -> ProblemError:
    """What there is to say of a file that has too much of something."""
    return ProblemError(
        413,
        {
            "bytes": f"it would unpack to more than {INFLATED * most.bytes:,} bytes, {INFLATED} "
            f"times PREDICTION_API_UPLOAD_BYTES",
            "rows": f"a request has at most {most.rows:,} rows (PREDICTION_API_UPLOAD_ROWS)",
            "columns": f"a file has at most {MOST_COLUMNS:,} columns",
        }[what],
    )


def _require_columns(model: BatchModel, names: Sequence[str]) -> None:
    """The features, each once, and perhaps a key.

    Raises:
        ProblemError: they are other ones; all of it at once.
    """
    wanted = set(model.features)
    problems = {
        "missing": wanted - set(names),
        "not known": set(names) - wanted - {KEY},
        "there twice": {name for name, count in Counter(names).items() if count > 1},
    }
    told = [
        f"{what}: {', '.join(_shown(name) for name in sorted(found)[:MOST_NAMED])}"
        for what, found in problems.items()
        if found
    ]
    if told:
        right = ", ".join([KEY, *model.features])
        raise ProblemError(
            422, f"columns {'; '.join(told)}. Right are: {right}, of which {KEY} may be left out"
        )


def _shown(name: str) -> str:
    """A name of somebody else's, of which little is repeated and nothing that cannot be written."""
    return ascii(name[:50]) if not name.isprintable() or not name else name[:50]
