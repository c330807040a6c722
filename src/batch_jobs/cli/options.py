"""The arguments and options that commands share."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

KEPT = 4  # the exit code of a promotion that promotes nobody
Model = Annotated[str, typer.Argument(help="A model's name: the name of its file.")]
Start = Annotated[str, typer.Option(help="Start of the interval, ISO 8601 with an offset.")]
End = Annotated[str, typer.Option(help="End of the interval, not included.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Accept = Annotated[
    str | None, typer.Option(help="Publish whatever the circuit breaker says, for this reason.")
]
Force = Annotated[bool, typer.Option(help="Score again what is published already.")]
Alive = Annotated[
    Path | None,
    typer.Option(help="A file that is touched with each turn: the age of one that hangs is told."),
]


def touch(file: Path | None) -> None:
    """Say by the age of a file, if there is to be one, that this process does its work.

    A disk that is full keeps nobody from that work.
    """
    if file is not None:
        with suppress(OSError):
            file.touch()
