"""Commands of prediction runs: predict, backfill, what is missing, what readers see."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from batch_jobs import clock
from batch_jobs.alerts import outbox_status
from batch_jobs.cli.options import Accept, AsJson, End, Force, Model, Start
from batch_jobs.cli.output import bar, count_due, joined, minute, tell
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.runs import backfills, jobs, overview
from batch_jobs.settings import Settings

commands = typer.Typer()


@commands.command()
def predict(
    model: Model,
    start: Start,
    end: End,
    *,
    parts: Annotated[int | None, typer.Option(min=1, max=256, help="Key ranges to cut into.")] = (
        None
    ),
    force: Force = False,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Score one interval and publish it in one step."""
    settings, interval = Settings.from_environ(), Interval.parse(start, end)
    with bar(f"{model}: rows scored") as advance:
        run = jobs.predict(
            settings,
            model,
            interval,
            parts=parts,
            force=force,
            accept=accept,
            progress=advance,
        )
    scored, rejected = (run.counts.scored, run.counts.rejected) if run.counts else (0, 0)
    tell(
        run.as_dict(),
        as_json,
        f"{model} {run.interval} is published as run {run.run_id}: "
        f"{scored:,} rows scored, {rejected:,} rejected",
    )


@commands.command()
def backfill(
    model: Model,
    start: Start,
    end: End,
    *,
    champion: Annotated[
        Literal["then", "current"],
        typer.Option("--with", help="The champion of that time, or today's."),
    ] = "then",
    force: Force = False,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Publish every due interval of a past span, oldest first, also those that got late rows."""
    settings, span = Settings.from_environ(), Interval.parse(start, end)
    with bar(f"{model}: intervals published", count_due(settings, model, span)) as advance:
        runs = backfills.backfill(
            settings,
            model,
            span,
            champion=champion,
            force=force,
            accept=accept,
            progress=lambda _: advance(1),
        )
    answer = [run.as_dict() for run in runs]
    tell(answer, as_json, f"{len(runs)} intervals of {model} are published")


@commands.command()
def gaps(model: Model, *, as_json: AsJson = False) -> None:
    """List the due intervals that were never published."""
    found = overview.gaps(Settings.from_environ(), model)
    rows = [{"start": gap.start.isoformat(), "end": gap.end.isoformat()} for gap in found]
    tell(rows, as_json, joined(found) or f"{model} has no gap")


@commands.command()
def prune(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Remove what readers have not seen for longer than the model keeps it."""
    pruned = jobs.prune(Settings.from_environ(), model)
    shown = [{name: str(value) for name, value in asdict(each).items()} for each in pruned]
    tell([asdict(each) for each in pruned], as_json, shown)


@commands.command()
def status(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what readers see: version, interval, rows and freshness; and what serves next."""
    settings = Settings.from_environ()
    rows = overview.status(settings, model)
    warehouse = Warehouse(settings.warehouse)
    shown = [
        {
            "model": row["model"],
            "version": row["model_version"],
            "rows": f"{row['row_count']:,}",
            "newest until": minute(row["interval_end"]),
            "published": minute(row["published_at"]),
            "fresh until": minute(row["fresh_until"]),
        }
        for row in rows
        if row["run_id"]
    ]
    lacking = [str(each) for each in outbox_status.undelivered(warehouse, clock.now())]
    rows = [{**row, "undelivered": lacking} for row in rows]
    notes = [f"{row['model']}: {note}" for row in rows for note in row["notes"]]
    notes += lacking
    if shown or as_json or not notes:
        tell(rows, as_json, shown or "no model has a version yet: `batch-jobs train MODEL`")
    if notes and not as_json:
        tell(notes, as_json, "\n".join(notes))
