"""The command line: each command calls one verb and prints what it answers.

A person gets lines and tables; with `--json` the last line is one JSON document.
Exit 0 done, 1 failed, 2 wrong usage or configuration, 3 fenced off by a newer attempt, 4 nobody
promoted.
"""

from __future__ import annotations

import getpass
import json
import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal, NoReturn, get_args

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batch_jobs import catalog, clock
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interruption import ended_by_interruption
from batch_jobs.interval import Interval, due_between, parse_time
from batch_jobs.model import Rule
from batch_jobs.redaction import first_line
from batch_jobs.registry import promotion
from batch_jobs.registry.store import ModelStore
from batch_jobs.requests import worker
from batch_jobs.requests.queue import Answered
from batch_jobs.runs import backfill as backfill_
from batch_jobs.runs import jobs
from batch_jobs.runs import status as status_
from batch_jobs.runs.ledger import Run
from batch_jobs.settings import Settings, let_threads_sleep, model_packages
from batch_jobs.training import train as lifecycle


def _known_rules(rules: list[str] | None) -> list[str] | None:
    for rule in rules or []:
        if rule not in get_args(Rule):
            raise typer.BadParameter(f"{rule!r} is none of {', '.join(get_args(Rule))}")
    return rules


KEPT = 4  # the exit code of a promotion that promotes nobody

app = typer.Typer(
    name="batch-jobs",
    help="Serve scikit-learn models in batch: train, judge, promote, score and publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()

Model = Annotated[str, typer.Argument(help="A model's name: the name of its file.")]
Start = Annotated[str, typer.Option(help="Start of the interval, ISO 8601 with an offset.")]
End = Annotated[str, typer.Option(help="End of the interval, not included.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line.")]
Accept = Annotated[
    str | None, typer.Option(help="Publish whatever the circuit breaker says, for this reason.")
]
Force = Annotated[bool, typer.Option(help="Score again what is published already.")]


def main() -> None:
    """Run the command line; our own errors and the database's become one line and an exit code."""
    let_threads_sleep()
    try:
        with ended_by_interruption():
            app(standalone_mode=True)
    except BatchJobsError as error:
        _fail(str(error), error.exit_code)
    except SQLAlchemyError as error:
        # Its own text shows the statement and the values bound to it.
        cause = error.orig if isinstance(error, DBAPIError) else None
        _fail(first_line(cause or error), BatchJobsError.exit_code)
    except OSError as error:  # a disk that is full or read-only
        _fail(first_line(error), BatchJobsError.exit_code)


def _fail(line: str, exit_code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"error: {line}", style="bold red", markup=False
    )
    sys.exit(exit_code)


@app.callback()
def _log(
    *, quiet: Annotated[bool, typer.Option(help="Print no progress, only the answer.")] = False
) -> None:
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if sys.stderr.isatty():
        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    logger = logging.getLogger("batch_jobs")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.handlers = [handler]


@app.command()
def init(
    *,
    samples: Annotated[bool, typer.Option(help="Load the sample flights and irises too.")] = False,
    as_recorded: Annotated[
        bool, typer.Option(help="With --samples: flights of 2013, not moved to our time.")
    ] = False,
    roles: Annotated[bool, typer.Option(help="Make the roles of PostgreSQL too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the tables and views of the warehouse; safe to repeat."""
    settings = Settings.from_environ()
    warehouse = Warehouse(settings.warehouse)
    made = warehouse.ensure_schema()
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
    _tell(answer, as_json, told)


@app.command()
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
    _tell(rows, as_json, rows)


@app.command()
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
    _tell({"files": files}, as_json, f"wrote {' and '.join(files)}; try `batch-jobs check {name}`")


@app.command()
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
    _tell(findings, as_json, rows)
    if not all(finding.holds for finding in findings):
        raise typer.Exit(2)


@app.command()
def train(
    model: Model,
    as_of: Annotated[str, typer.Option(help="Learn from what was known then, ISO 8601.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Train a challenger, judge it on the newest labelled rows, and register it."""
    settings = Settings.from_environ()
    version = lifecycle.train(settings, model, parse_time(as_of))
    drawn = ModelStore(settings.model_store).page(model, version.version)
    stays = "the champion should stay" if version.gate["champion"] else "it should not serve"
    verdict = "may be promoted" if version.gate["promote"] else stays
    told = f"registered {model} {version.version}: {verdict}: {'; '.join(version.gate['reasons'])}"
    _tell(
        asdict(version) | {"page": drawn}, as_json, f"{told}; drawn in {drawn}" if drawn else told
    )


@app.command()
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


@app.command()
def rollback(
    model: Model,
    to: Annotated[str, typer.Option(help="The version that shall serve again.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version the champion again, and score again what readers see of the later."""
    with _bar(f"{model}: intervals scored again") as advance:
        answer, runs = backfill_.rollback(
            Settings.from_environ(),
            model,
            to,
            actor=getpass.getuser(),
            reason=reason,
            progress=lambda _: advance(1),
        )
    _tell_promotion(answer, as_json, runs)


@app.command()
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
    with _bar(f"{model}: rows scored") as advance:
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
    _tell(
        run.as_dict(),
        as_json,
        f"{model} {run.interval} is published as run {run.run_id}: "
        f"{scored:,} rows scored, {rejected:,} rejected",
    )


@app.command()
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
    with _bar(f"{model}: intervals published", _due(settings, model, span)) as advance:
        runs = backfill_.backfill(
            settings,
            model,
            span,
            champion=champion,
            force=force,
            accept=accept,
            progress=lambda _: advance(1),
        )
    answer = [run.as_dict() for run in runs]
    _tell(answer, as_json, f"{len(runs)} intervals of {model} are published")


@app.command()
def replay(
    model: Model,
    start: Start,
    end: End,
    *,
    folder: Annotated[
        Path | None, typer.Option(help="Where to keep it; default: replay-MODEL, here.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            callback=_known_rules,
            metavar="|".join(get_args(Rule)),
            help="Judge by this rule instead of the model's; of several, all compared.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Begin anew what was begun before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Live through a past time as the DAGs would have, beside the warehouse; goes on if it stopped.

    Writes report.html into the folder.
    """
    from batch_jobs.backtest import run as time_machine
    from batch_jobs.backtest.replay import Replay
    from batch_jobs.backtest.report import shared_figures
    from batch_jobs.reports.backtest import replay_page, summary_table

    settings, span = Settings.from_environ(), Interval.parse(start, end)
    home = folder or Path(f"replay-{model}")
    rules: list[Any] = list(dict.fromkeys(gate or [])) or [None]
    replays = [
        Replay(settings, model, span, home / rule if rule and len(rules) > 1 else home, rule)
        for rule in rules
    ]
    reports = []
    for each in replays:
        due = _due(settings, model, span)
        with _bar(f"{model} {each.rule or ''}: intervals replayed", due) as advance:
            reports.append(time_machine.live(each, fresh=fresh, progress=advance))
    if len(replays) > 1:
        for report, shared in zip(reports, shared_figures(replays), strict=True):
            report["shared"] = shared
    page = home / "report.html"
    page.write_text(replay_page(reports), "utf-8")
    found = summary_table(reports)
    names = [str(row.pop("gate")) for row in found]
    rows = [
        {"": figure} | {n: _figure(row.get(figure)) for n, row in zip(names, found, strict=True)}
        for figure in found[0]
    ]
    if not as_json:
        out.print(f"drawn in {page}", markup=False, highlight=False, soft_wrap=True)
    _tell(reports[0] if len(reports) == 1 else {"replays": reports}, as_json, rows)


@app.command()
def gaps(model: Model, *, as_json: AsJson = False) -> None:
    """List the due intervals that were never published."""
    found = status_.gaps(Settings.from_environ(), model)
    rows = [{"start": gap.start.isoformat(), "end": gap.end.isoformat()} for gap in found]
    _tell(rows, as_json, _joined(found) or f"{model} has no gap")


@app.command()
def answer(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer the requests of many rows that wait, oldest first, by the champion."""
    settings = Settings.from_environ()
    names = None if model is None else [catalog.load_model(model, settings.models).name]
    if follow:
        _follow(settings, names, as_json)
        return
    errors: list[Exception] = []
    with _bar("rows of requests") as advance:
        answered = worker.answer_each(
            settings, names, told=lambda _, error: errors.append(error), progress=advance
        )
    shown = "\n".join(map(str, answered))
    _tell([one.as_dict() for one in answered], as_json, shown or "no request waits")
    if errors:
        raise errors[0]
    if any(one.error for one in answered):
        raise typer.Exit(1)


def _follow(settings: Settings, names: Sequence[str] | None, as_json: bool) -> None:
    """Answer requests as they come, a line each, until SIGTERM or SIGINT."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ended: Counter[str] = Counter()

    def told(one: Answered) -> None:
        ended[one.state] += 1
        _tell(one.as_dict(), as_json, str(one))
        sys.stdout.flush()

    worker.follow(settings, names, stop, Event(), told=told)
    _tell(dict(ended), as_json, f"stopped; {ended.total():,} requests are answered")


@app.command()
def prune(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Remove what readers have not seen for longer than the model keeps it."""
    pruned = jobs.prune(Settings.from_environ(), model)
    shown = [{name: str(value) for name, value in asdict(each).items()} for each in pruned]
    _tell([asdict(each) for each in pruned], as_json, shown)


@app.command()
def status(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what readers see: version, interval, rows and freshness; and what serves next."""
    rows = status_.status(Settings.from_environ(), model)
    shown = [
        {
            "model": row["model"],
            "version": row["model_version"],
            "rows": f"{row['row_count']:,}",
            "newest until": _minute(row["interval_end"]),
            "published": _minute(row["published_at"]),
            "fresh until": _minute(row["fresh_until"]),
        }
        for row in rows
        if row["run_id"]
    ]
    notes = [f"{row['model']}: {note}" for row in rows for note in row["notes"]]
    if shown or as_json or not notes:
        _tell(rows, as_json, shown or "no model has a version yet: `batch-jobs train MODEL`")
    if notes and not as_json:
        _tell(notes, as_json, "\n".join(notes))


def _due(settings: Settings, model: str, span: Interval) -> int:
    """How many intervals of a model lie in a span, which must be past."""
    span.require_past(clock.now())
    schedule = catalog.load_model(model, settings.models).schedule
    return sum(1 for _ in due_between(schedule, span.start, span.end))


@contextmanager
def _bar(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Count on a terminal, towards an end if it is known; elsewhere the log lines tell."""
    columns = (
        *(SpinnerColumn(), TextColumn(what), MofNCompleteColumn(), TimeElapsedColumn()),
        *((BarColumn(), TimeRemainingColumn()) if total else ()),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _tell_promotion(
    answer: promotion.Promotion, as_json: bool, again: Sequence[Run] | None = None
) -> None:
    name = f"{answer.version.model} {answer.version.version}"
    said = "was not promoted" if answer.outcome == "kept" else "is the champion"
    shown = f"{name} {said}: {answer.reason}"
    if again:
        shown += f"; {len(again)} intervals were scored again"
    told = asdict(answer) | ({} if again is None else {"runs": [run.as_dict() for run in again]})
    _tell(told, as_json, shown)


def _joined(gaps: Sequence[Interval]) -> list[dict[str, str]]:
    """Gaps for a person: those that touch make one row."""
    rows: list[dict[str, str]] = []
    for gap in gaps:
        start, end = _minute(gap.start.isoformat()), _minute(gap.end.isoformat())
        if rows and rows[-1]["to"] == start:
            rows[-1] |= {"to": end, "intervals": str(int(rows[-1]["intervals"]) + 1)}
        else:
            rows.append({"from": start, "to": end, "intervals": "1"})
    return rows


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _minute(stored: str) -> str:
    return f"{stored[:10]} {stored[11:16]}Z"


def _tell(answer: Any, as_json: bool, shown: str | Sequence[Mapping[str, str]]) -> None:
    """Print the answer: as JSON for a program, or as a line or a table for a person."""
    if as_json:
        sys.stdout.write(json.dumps(answer, default=_plain) + "\n")
    elif isinstance(shown, str):
        out.print(shown, markup=False, highlight=False, soft_wrap=True)
    else:
        table = Table(box=SIMPLE, pad_edge=False)
        for column in shown[0]:
            # What a person copies stays whole.
            table.add_column(column, no_wrap=column in {"model", "version"}, overflow="fold")
        for row in shown:
            table.add_row(*map(Text, row.values()))  # in which no bracket is a style
        out.print(table)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
