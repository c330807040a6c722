"""The records of the benchmark as a table for people."""

import importlib.util
import os

from rich import box
from rich.table import Table

NOTES = """\
floor: what no one can avoid, each part alone, summed: ADBC reads into Arrow{sqlite_reader};
  predict_proba of an array in memory; key, score and label by one bulk insert into a bare table
  (PostgreSQL: ADBC, UNLOGGED). Best of {repeats} each.
ours: batch_jobs.runs.jobs.predict, everything on, over a run as large. Best of {repeats}.
pandas: read_sql(chunksize=50000), predict_proba, to_sql(if_exists="replace", then "append").
mlflow: the same with mlflow.pyfunc. orm: row by row, on fewer rows; its ratio is that of rows/s.
PostgreSQL runs with fsync on and default settings. Libraries are imported before the clock starts.
RSS: peak of the whole process. WAL: bytes written; on SQLite the largest size of its log.
lock: longest wait of a rival who finds the lock taken that a second publisher needs: BEGIN
  IMMEDIATE; on PostgreSQL the lock of the model (ours) or of the table that is written (others).
readers: p50 / p99 / max of look-ups by two readers in what is being published, and how many
  failed; idle: before it; computing: beside as many processes as processors that only compute and
  touch no database. They and the rival watch runs of their own, not those that are timed; ours then
  builds its index by one process, since others are connected."""

NUMBERS = (
    *("seconds", "rows/s", "x floor", "RSS MB", "WAL MB", "lock ms"),
    *("readers ms", "failed", "idle ms", "computing ms"),
)


def notes(repeats):
    """How the figures came about, and what else the machine was busy with."""
    reader = "" if importlib.util.find_spec("adbc_driver_sqlite") else " (SQLite: sqlite3)"
    machine = f"{os.cpu_count()} processors, load average {os.getloadavg()[2]:.1f}"
    return f"{NOTES.format(repeats=repeats, sqlite_reader=reader)}\nmachine: {machine} (15 minutes)"


def table_of(records):
    """A row for each record, and one for each part of the floor."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("database", "rows", "system"):
        table.add_column(name, no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right")
    before = None
    for record in records:
        flights = " flights" if record["dataset"] == "flights" else ""
        cell = (record["database"], f"{record['rows']:,}{flights}")
        if before not in (None, cell):
            table.add_section()
        table.add_row(*(cell if cell != before else ("", "")), *_cells(record))
        for part in ("read", "predict", "write"):
            if seconds := record.get(f"{part}_seconds"):
                table.add_row("", "", f"  {part}", f"{seconds:.2f}", style="dim")
        before = cell
    return table


def _cells(record):
    if record["seconds"] is None:
        return [f"{record['system']}: not installed"]
    rows = f" ({record['measured_rows']:,} rows)" if record["system"] == "orm" else ""
    wal = record["wal_bytes"]
    return [
        f"{record['system']}{rows}",
        f"{record['seconds']:.2f}",
        f"{record['rows_per_second']:,}",
        _shown(record["ratio_to_floor"], ".2f"),
        _shown(record["peak_rss_mb"], ",.0f"),
        _shown(wal and wal / 1e6, ",.1f"),
        _shown(record["writer_lock_ms"], ",.0f"),
        _latencies(record, "reader"),
        _shown(record["reader_errors"], ","),
        _latencies(record, "reader_idle"),
        _latencies(record, "reader_control"),
    ]


def _latencies(record, who):
    if record[f"{who}_max_ms"] is None:
        return ""
    return " / ".join(_shown(record[f"{who}_{what}_ms"], ",.1f") for what in ("p50", "p99", "max"))


def _shown(number, form):
    return "" if number is None else format(number, form)
