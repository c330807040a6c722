"""Commands of the warehouse and the model files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from batch_jobs import catalog
from batch_jobs.cli.options import AsJson, Model
from batch_jobs.cli.output import tell
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import parse_time
from batch_jobs.registry import belonging
from batch_jobs.registry.store import ModelStore
from batch_jobs.settings import Settings, model_packages

commands = typer.Typer()


@commands.command()
def init(
    *,
    samples: Annotated[bool, typer.Option(help="Load the sample flights and irises too.")] = False,
    as_recorded: Annotated[
        bool, typer.Option(help="With --samples: flights of 2013, not moved to our time.")
    ] = False,
    roles: Annotated[bool, typer.Option(help="Make the roles of PostgreSQL too.")] = False,
    store_moved: Annotated[
        bool, typer.Option(help="The model store of this warehouse has moved to where it is set.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the tables and views of the warehouse, and check the model store; safe to repeat."""
    settings = Settings.from_environ()
    warehouse = Warehouse(settings.warehouse)
    store = ModelStore(settings.model_store)
    store.require_writable()
    made = warehouse.ensure_schema()
    belonging.claim(warehouse, store, moved=store_moved)
    answer: dict[str, Any] = {"warehouse": str(warehouse), "made": made}
    told = f"{'made' if made else 'found'} the warehouse {warehouse}"
    if roles:
        answer["to_execute"] = warehouse.ensure_roles()
        told += (
            "\nmade sure of its roles batch_jobs_writer, batch_jobs_reader and batch_jobs_requester"
        )
        for statement in answer["to_execute"]:
            told += f"\nas the owner of the database, execute: {statement};"
    if samples:
        from batch_jobs.samples.load import load

        answer |= load(warehouse, datetime.now(UTC), shift_weeks=0 if as_recorded else None)
    tell(answer, as_json, told)


@commands.command()
def models(*, as_json: AsJson = False) -> None:
    """List the models that there are files for."""
    packages = model_packages()
    for hidden, first in catalog.hidden_files(packages):
        typer.echo(f"{first} hides {hidden}, which is not served", err=True)
    rows = []
    for name in catalog.model_names(packages):
        try:
            model = catalog.load_model(name, packages)
            rows.append({"model": name, "mode": model.mode, "about": model.description})
        except BatchJobsError as error:
            rows.append({"model": name, "mode": "", "about": str(error)})
    tell(rows, as_json, rows)


@commands.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the model.")],
    *,
    tests: Annotated[Path, typer.Option(help="Folder of the tests.")] = Path("tests"),
    as_json: AsJson = False,
) -> None:
    """Write a model file to begin with, in the first package of BATCH_JOBS_MODELS, and its test."""
    from batch_jobs.training import template

    package, folder = catalog.own_package(model_packages())
    files = [str(path) for path in template.write(name, package, folder, tests)]
    tell({"files": files}, as_json, f"wrote {' and '.join(files)}; try `batch-jobs check {name}`")


@commands.command()
def check(
    model: Model,
    as_of: Annotated[
        str | None, typer.Option(help="As if it were that time, ISO 8601; default: now.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Prove on the real source what can be proved of a model file; nothing is written."""
    from batch_jobs.training import check as checking

    settings = Settings.from_environ()
    findings = checking.check(settings, model, parse_time(as_of) if as_of else None)
    marks = {True: "holds", False: "FAILS"}
    rows = [
        {"": marks[finding.holds], "proof": finding.proof, "found": finding.said}
        for finding in findings
    ]
    tell(findings, as_json, rows)
    if not all(finding.holds for finding in findings):
        raise typer.Exit(2)
