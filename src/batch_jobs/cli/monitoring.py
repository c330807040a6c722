"""The command of monitoring: how a model is doing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from batch_jobs.cli.options import AsJson, Model
from batch_jobs.cli.output import tell
from batch_jobs.interval import parse_time
from batch_jobs.monitoring.monitor import monitor as look
from batch_jobs.monitoring.page import monitor_page
from batch_jobs.registry.deployment import Deployment
from batch_jobs.settings import Settings

commands = typer.Typer()


@commands.command()
def monitor(
    model: Model,
    *,
    at: Annotated[
        str | None, typer.Option(help="As of then, ISO 8601 with an offset; default: now.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page for a person into this file, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at what a model has published: does it do damage, and is it still what was learnt?"""
    deployment = Deployment(Settings.from_environ())
    report = look(deployment, model, parse_time(at) if at else None)
    if html:
        html.write_text(monitor_page(deployment, report), "utf-8")
    judgement = report.judgement
    found = [*report.notes, *(each.words for each in judgement.damage)]
    found += [each.words for each in report.drift]
    lines = [*judgement.news, *(found or ["nothing unusual"])]
    tell(asdict(report), as_json, "\n".join(f"{model}: {line}" for line in lines))
