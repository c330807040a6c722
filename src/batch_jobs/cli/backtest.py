"""The command of a replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from batch_jobs.cli.options import AsJson, End, Model, Start
from batch_jobs.cli.output import bar, count_due, out, shown_figure, tell
from batch_jobs.interval import Interval
from batch_jobs.model import Rule
from batch_jobs.settings import Settings

commands = typer.Typer()


def _known_rules(rules: list[str] | None) -> list[str] | None:
    for rule in rules or []:
        if rule not in get_args(Rule):
            raise typer.BadParameter(f"{rule!r} is not one of {', '.join(get_args(Rule))}")
    return rules


@commands.command()
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
            help="Evaluate by this rule instead of the model's; of several, all compared.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Begin anew what was begun before.")] = False,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Tell, too, what monitoring would have told.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Live through a past time as the DAGs would have, beside the warehouse; goes on if it stopped.

    Writes report.html into the folder.
    """
    from batch_jobs.backtest import monitored
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
        due = count_due(settings, model, span)
        with bar(f"{model} {each.rule or ''}: intervals replayed", due) as advance:
            reports.append(time_machine.live(each, fresh=fresh, progress=advance))
        if monitor:
            looks = len(monitored.moments(each))
            with bar(f"{model} {each.rule or ''}: looks of monitoring", looks) as advance:
                reports[-1]["monitor"] = monitored.watched(each, advance)
    if len(replays) > 1:
        for report, shared in zip(reports, shared_figures(replays), strict=True):
            report["shared"] = shared
    page = home / "report.html"
    page.write_text(replay_page(reports), "utf-8")
    found = summary_table(reports)
    names = [str(row.pop("gate")) for row in found]
    rows = [
        {"": figure}
        | {n: shown_figure(row.get(figure)) for n, row in zip(names, found, strict=True)}
        for figure in found[0]
    ]
    if monitor and not as_json:
        for report in reports:
            _tell_monitored(report)
    if not as_json:
        out.print(f"drawn in {page}", markup=False, highlight=False, soft_wrap=True)
    tell(reports[0] if len(reports) == 1 else {"replays": reports}, as_json, rows)


def _tell_monitored(report: dict[str, Any]) -> None:
    """Alarms and news a month, and each alarm in a line."""
    told = report["monitor"]
    rows = [
        {name: str(value) for name, value in month.items()}
        for month in (*told["months"], _total(told["months"]))
    ]
    tell(None, False, rows)
    for alarm in told["alarms"]:
        line = f"{alarm['at'][:16]}, {alarm['delay_hours']:.0f} h late: {alarm['words']}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _total(months: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {name: sum(month[name] for month in months) for name in ("alarms", "news")}
    return {"month": "all", **sums}
