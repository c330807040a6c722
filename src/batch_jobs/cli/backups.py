"""Commands of backups."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from batch_jobs.backups import backup as backups
from batch_jobs.backups.backup import Backup
from batch_jobs.cli.options import AsJson
from batch_jobs.cli.output import tell
from batch_jobs.settings import Settings

commands = typer.Typer()


@commands.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Where to; it must not be there yet.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Copy the warehouse and the artifacts of all versions, while the jobs go on."""
    made = backups.make(Settings.from_environ(), folder)
    tell(asdict(made), as_json, f"copied {_told(made)} into {folder}")


@commands.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="What `backup` has made.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make the warehouse and the model store from a backup; neither may have a warehouse yet."""
    found = backups.restore(Settings.from_environ(), folder)
    tell(
        asdict(found),
        as_json,
        f"restored {_told(found)}, of {found.made_at}; what was published later is a gap: the next "
        f"run publishes what lies within `look_back`, and `batch-jobs backfill` the rest",
    )


def _told(found: Backup) -> str:
    return (
        f"the warehouse and {found.versions:,} model version{'s' * (found.versions != 1)} "
        f"({found.bytes / 2**20:,.1f} MiB)"
    )
