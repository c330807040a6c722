"""`./run bench drift`: false alarms in a real year without a change, and what changes show.

All flights that left New York in 2013, with the inputs of the bundled model. Each week is judged
day by day by a version that was trained on the 56 days before it, as `batch-jobs monitor` does: the
newest day by itself, and the seven days that end with it, each held against the version that scored
it. Then each change is put into each week, and the table tells how many weeks show it on its first
day, within two days and within the week, what was found first, and after how many days.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from batch_jobs.catalog import load_model
from batch_jobs.database.columns import times
from batch_jobs.database.transactions import bounds
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.monitoring.drift import roots, unusual, usual
from batch_jobs.monitoring.statistics import statistics
from batch_jobs.samples.load import load
from batch_jobs.scoring.bins import bins_of
from batch_jobs.scoring.counts import Counts
from batch_jobs.scoring.profiles import Profiler
from batch_jobs.training.dataset import read_whole, split_by_time
from batch_jobs.training.fit import fit

START = datetime(2013, 1, 1, 3, tzinfo=UTC)
HISTORY, WINDOW, DAYS = 56, 7, 364
CHANGES = {
    "carrier UA renamed": lambda x: x.assign(carrier=x.carrier.replace("UA", "U2")),
    "temp in Celsius": lambda x: x.assign(temp=(x.temp - 32) / 1.8),
    "visib all null": lambda x: x.assign(visib=np.nan),
    "visib 30 % null": lambda x: x.assign(visib=x.visib.where(np.arange(len(x)) % 10 > 2)),
    "pressure 0": lambda x: x.assign(pressure=0.0),
    "clock an hour on": lambda x: x.assign(minute_of_day=(x.minute_of_day + 60) % 1440),
    "a third of JFK missing": lambda x: x[~((x.origin == "JFK") & (np.arange(len(x)) % 3 == 0))],
    "origin_delay_6h 0": lambda x: x.assign(origin_delay_6h=0.0),
    "distance in km": lambda x: x.assign(distance=x.distance * 1.609),
    "humid 0 to 1": lambda x: x.assign(humid=x.humid / 100),
    "temp stuck": lambda x: x.assign(temp=x.temp.iloc[0]),
    "weekday from 0": lambda x: x.assign(weekday=x.weekday - 1),
    "wind in m/s": lambda x: x.assign(wind_speed=x.wind_speed * 0.447),
    "waiting doubled": lambda x: x.assign(waiting=x.waiting * 2),
}


def main(argv=None):
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="./run bench drift", description=__doc__)
    parser.add_argument("--weeks", type=int, default=44, help="judge so many weeks (default: all)")
    parser.add_argument("--warehouse", help="URL of one that has the flights as recorded")
    parser.add_argument("--limit", type=float, default=1.0, help="as in Monitor (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    args = parser.parse_args(argv)
    model = load_model("flight_delay", ("batch_jobs.models",))
    rows, labels = flights(model, args.warehouse)
    found = measure(model, rows, labels, CHANGES, weeks=args.weeks, limit=args.limit)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False, markup=False)
    console.print(table_of(found))
    told = f"weeks without a change: {found['weeks']}, with an alarm: {len(found['quiet'])}"
    console.print(told)
    for week, told in found["quiet"].items():
        console.print(f"  {week}: {told}")
    if args.json:
        sys.stdout.write(f"{json.dumps(found, default=str)}\n")


def flights(model, url=None):
    """Features and labels of the year, typed as the contract gives them."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = Warehouse(url or f"sqlite:///{folder}/warehouse.db")
        if url is None:
            warehouse.ensure_schema()
            load(warehouse, datetime(2013, 7, 1, tzinfo=UTC), shift_weeks=0)
        year = Interval(START, START + timedelta(days=DAYS + 1))
        rows = read_whole(warehouse, model.features_query, year)
        labels = read_whole(warehouse, model.labels_query, year)
        bounds(year)
    rows["as_of"], labels["known_at"] = times(rows["as_of"]), times(labels["known_at"])
    numbers = [name for name, kind in model.features.items() if kind.kind == "number"]
    return rows.astype(dict.fromkeys(numbers, "float64")), labels


def measure(model, rows, labels, changes, *, weeks=44, limit=1.0):
    """What is found in each week without a change, and with each."""
    day = (rows["as_of"] - pd.Timestamp(START)).dt.days.to_numpy()
    quiet_days, quiet, changed = [], {}, {name: [] for name in changes}
    for number in range(weeks):
        first = HISTORY + WINDOW * number
        version = Version(model, rows[(day >= first - HISTORY) & (day < first)], labels, first)
        week = rows[(day >= first) & (day < first + WINDOW)]
        own = version.days(week)
        seen = [judged(quiet_days + own[: each + 1], limit) for each in range(len(own))]
        told = [found for one in seen for found in one]
        if told:
            quiet[str(START.date() + timedelta(days=first))] = "; ".join(dict.fromkeys(told))
        for name, change in changes.items():
            changed[name].append(first_alarm(quiet_days, version.days(change(week.copy())), limit))
        quiet_days = (quiet_days + own)[-WINDOW + 1 :]
    return {"weeks": weeks, "quiet": quiet, "changes": changed}


class Version:
    """A version trained on some rows, and what is usual for it."""

    def __init__(self, model, rows, labels, first):
        as_of = START + timedelta(days=first)
        self.model, self.fitted = model, None
        if labels is not None:
            self.fitted = fit(model, split_by_time(model, rows, labels, as_of).fit)
        scores, _ = self._answered(rows)
        classes = self.fitted.classes if self.fitted else None
        bins = bins_of(rows, scores, model.features, classes)
        self.profiler = Profiler(bins, self.fitted.categories if self.fitted else {})
        counts, days = self._counts(rows)
        names, values = statistics(counts, np.ones(len(counts)), self.profiler.layout)
        self.usual = usual(names, values, days)

    def days(self, rows):
        """What each day is like, as `unusual` takes it."""
        counts, days = self._counts(rows)
        _, values = statistics(counts, np.ones(len(counts)), self.profiler.layout)
        return [
            (self.usual, figures, int(weekday), float(count))
            for figures, weekday, count in zip(values, days, counts[:, 0], strict=True)
        ]

    def _counts(self, rows):
        scores, labels = self._answered(rows)
        day = (rows["as_of"] - pd.Timestamp(START)).dt.days.to_numpy()
        counts = []
        for each in np.unique(day):
            here = np.flatnonzero(day == each)
            read = Counts(len(here), len(here))
            own = labels.take(pa.array(here))
            counts.append(self.profiler.of(rows.iloc[here], scores[here], own, read).counts)
        weekdays = (np.unique(day) + START.weekday()) % 7
        return np.stack(counts), weekdays

    def _answered(self, rows):
        if self.fitted is None:
            return np.zeros(len(rows)), pa.nulls(len(rows), pa.string())
        return self.fitted.scores_and_labels(self.fitted.answers(self.fitted.inputs(rows)))


def judged(days, limit):
    """What is told of the newest day, and of the window that ends with it."""
    told = []
    for window in (days[-1:], days[-WINDOW:]):
        if len(window) == 1 or 2 * len(window) > WINDOW:
            told += [
                f"{each.statistic.kind} {each.statistic.feature} {each.statistic.item}".strip()
                for each in roots(unusual(window, limit))
            ][: 1 if len(window) == 1 else 2]
    return told


def first_alarm(before, days, limit):
    """On which day of a change something is found, from 1 on, and what; None if nothing is."""
    for number in range(len(days)):
        if told := judged(before + days[: number + 1], limit):
            return number + 1, told[0]
    return None


def table_of(found):
    """A row a change."""
    table = Table(title="changes put into a week: share of weeks in which they are found")
    for column in ("change", "first day", "2 days", "week", "median delay", "mostly found as"):
        table.add_column(column)
    for name, alarms in found["changes"].items():
        days = np.array([alarm[0] if alarm else 99 for alarm in alarms])
        told = Counter(alarm[1] for alarm in alarms if alarm).most_common(2)
        table.add_row(
            name,
            *(f"{np.mean(days <= most):.0%}" for most in (1, 2, WINDOW)),
            f"{np.median(days):.0f} d" if np.median(days) < 99 else "-",
            ", ".join(f"{what} ({count})" for what, count in told),
        )
    return table


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
