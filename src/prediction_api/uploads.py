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

from pydantic import TypeAdapter, ValidationError

from batch_jobs.database.columns import text_of
from batch_jobs.model import BatchModel, Feature, Number
from batch_jobs.requests.submit import Row
from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.problems import ProblemError
from prediction_api.routing import invalid, strict_json
from prediction_api.schemas import rows_of
from prediction_api.unpacking import TooLargeError, unpack

if TYPE_CHECKING:
    import pyarrow as pa

JSON, CSV = "application/json", "text/csv"
PARQUET = "application/vnd.apache.parquet"
KEY = "entity_id"
MOST_COLUMNS = 1000
MOST_NAMED = 20
INFLATED = 10  # how many times as large as a body may be what Parquet packs into it
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
        self._shape = TypeAdapter(rows_of(model))

    @property
    def schema(self) -> dict[str, Any]:
        """What JSON has to look like."""
        return self._shape.json_schema()

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
        try:
            rows = self._shape.validate_python(strict_json(body))["rows"]
        except ValidationError as error:
            raise invalid(error, "body") from error
        _require_few(len(rows), self._most)
        for row in rows:
            key = row.pop(KEY, None)
            yield Row(None if key is None else text_of(key), row)


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
        yield from _unpacked(model, body, most)
    except TooLargeError:
        raise _too_large(most) from None
    except (pa.ArrowException, OSError, OverflowError, ValueError, MemoryError):
        raise ProblemError(422, "the body is no Parquet file that can be read") from None


def _unpacked(model: BatchModel, body: bytes, most: Most) -> Iterator[Row]:
    """The rows; a file that would unfold to much more than it is, is refused before it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(body))
    told = file.metadata
    groups = [told.row_group(number) for number in range(told.num_row_groups)]
    _require_few(max(told.num_rows, sum(group.num_rows for group in groups)), most)
    _require_columns(model, file.schema_arrow.names)
    if KEY in file.schema_arrow.names and not _may_be_key(file.schema_arrow.field(KEY).type):
        raise ProblemError(422, f"{KEY}: keys are text or whole numbers; write the column as one")
    odd = [field.name for field in file.schema_arrow if not _plain(field.type)]
    if odd:
        raise ProblemError(
            422, f"{', '.join(map(repr, odd))}: columns hold numbers, text or truth values"
        )
    if sum(group.total_byte_size for group in groups) > INFLATED * most.bytes:
        raise _too_large(most)
    count = 0
    for batch in pa.ipc.open_stream(unpack(body, INFLATED * most.bytes)):
        count += batch.num_rows
        _require_few(count, most)
        for values in batch.to_pylist():
            row = {name: _value(value) for name, value in values.items()}
            key = row.pop(KEY, None)
            yield Row(None if key is None else text_of(key), row)


def _plain(kind: pa.DataType) -> bool:
    import pyarrow.types as of

    if of.is_dictionary(kind):
        kind = kind.value_type
    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        *(of.is_integer, of.is_floating, of.is_decimal, of.is_boolean, of.is_null),
        *(of.is_string, of.is_large_string, of.is_string_view),
        *(of.is_binary, of.is_large_binary),  # text without the mark of UTF-8
    )
    return any(test(kind) for test in tests)


def _may_be_key(kind: pa.DataType) -> bool:
    import pyarrow.types as of

    if of.is_dictionary(kind):
        kind = kind.value_type
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
        raise ProblemError(413, f"a request has at most {most.rows:,} rows")


def _too_large(most: Most) -> ProblemError:
    return ProblemError(413, f"it would unpack to more than {INFLATED * most.bytes:,} bytes")


def _require_columns(model: BatchModel, names: Sequence[str]) -> None:
    """The features, each once, and perhaps a key.

    Raises:
        ProblemError: they are other ones; all of it at once.
    """
    if len(names) > MOST_COLUMNS:
        raise ProblemError(413, f"a file has at most {MOST_COLUMNS:,} columns")
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
