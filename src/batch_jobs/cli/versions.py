"""Commands of model versions: train, promote, roll back."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from batch_jobs.cli.options import KEPT, AsJson, Model
from batch_jobs.cli.output import bar, tell
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import parse_time
from batch_jobs.registry import promotion, signatures
from batch_jobs.registry.store import ModelStore
from batch_jobs.runs import backfills
from batch_jobs.runs.ledger import Run
from batch_jobs.settings import HASH_ONLY, Settings
from batch_jobs.training import train as training

commands = typer.Typer()


@commands.command()
def train(
    model: Model,
    as_of: Annotated[str, typer.Option(help="Learn from what was known then, ISO 8601.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Train a challenger, evaluate it on the newest labelled rows, and register it."""
    settings = Settings.from_environ()
    version = training.train(settings, model, parse_time(as_of))
    drawn = ModelStore(settings.model_store).page(model, version.version)
    stays = "the champion should stay" if version.gate["champion"] else "it should not serve"
    verdict = "may be promoted" if version.gate["promote"] else stays
    told = f"registered {model} {version.version}: {verdict}: {'; '.join(version.gate['reasons'])}"
    tell(asdict(version) | {"page": drawn}, as_json, f"{told}; drawn in {drawn}" if drawn else told)


@commands.command()
def promote(
    model: Model,
    version: Annotated[
        str | None, typer.Argument(help="Default: the one that has seen the newest data.")
    ] = None,
    *,
    reason: Annotated[
        str, typer.Option(help="Why a version that is named is promoted, whatever is in its way.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if the gate allows it; exit code 4 if it does not.

    A version that the gate refuses, that was rolled back, or that has seen older data than the
    champion, is promoted by its name and with a reason only.
    """
    answer = promotion.promote(
        Settings.from_environ(), model, version, actor=getpass.getuser(), reason=reason
    )
    _tell_promotion(answer, as_json)
    if answer.outcome == "kept":
        raise typer.Exit(KEPT)


@commands.command()
def rollback(
    model: Model,
    to: Annotated[str, typer.Option(help="The version that shall serve again.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version the champion again, and score again what readers see of the later."""
    with bar(f"{model}: intervals scored again") as advance:
        answer, runs = backfills.rollback(
            Settings.from_environ(),
            model,
            to,
            actor=getpass.getuser(),
            reason=reason,
            progress=lambda _: advance(1),
        )
    _tell_promotion(answer, as_json, runs)


def _tell_promotion(
    answer: promotion.Promotion, as_json: bool, again: Sequence[Run] | None = None
) -> None:
    name = f"{answer.version.model} {answer.version.version}"
    said = "was not promoted" if answer.outcome == "kept" else "is the champion"
    shown = f"{name} {said}: {answer.reason}"
    if again:
        shown += f"; {len(again)} intervals were scored again"
    told = asdict(answer) | ({} if again is None else {"runs": [run.as_dict() for run in again]})
    tell(told, as_json, shown)


@commands.command()
def keys(*, as_json: AsJson = False) -> None:
    """Show which keys sign and verify here, and how many versions each has signed."""
    settings = Settings.from_environ()
    found = signatures.keys(settings, Warehouse.existing(settings.warehouse))
    rows = [
        {
            "key": key.name or "(no signature)",
            "signs": "yes" if key.signs else "",
            "verifies": "yes" if key.verifies else "no" if settings.verify_key != HASH_ONLY else "",
            "versions": f"{key.versions:,}",
            "champions": ", ".join(key.champions),
        }
        for key in found
    ]
    tell(found, as_json, rows or "there are neither keys nor versions")
