"""Each command calls one verb, tells a person in lines and a program in JSON, and exits by rule."""

import json
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from batch_jobs.cli import main
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FencedError, IncompleteError
from batch_jobs.interval import newest_due
from batch_jobs.runs import jobs, overview
from tests.support.asking import state, submit
from tests.support.attempts import forget_promotions

SPAN = ("--start", "2024-03-01T00:00:00Z", "--end", "2024-03-01T00:10:00Z")
DAY = ("--start", "2024-03-01T00:00:00Z", "--end", "2024-03-01T00:30:00Z")
# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


class Done(NamedTuple):
    """What a command left behind."""

    exit_code: int
    out: str
    err: str

    @property
    def answer(self):
        """The JSON document on the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `batch-jobs` with arguments in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["batch-jobs", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main.main()
        return Done(exited.value.code or 0, *capsys.readouterr())

    yield run
    logging.getLogger("batch_jobs").handlers = []


@pytest.fixture
def on_shop(run, shop, monkeypatch):
    """Run `batch-jobs` on the shop of the example models."""
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", shop.warehouse)
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", shop.model_store)
    monkeypatch.setenv("BATCH_JOBS_MODELS", ",".join(shop.models))
    return run


def _is_one_clear_line(done):
    return done.err.startswith("error: ") and done.err.count("\n") == 1 and done.out == ""


def test_init_makes_the_warehouse_and_may_be_repeated(run, tmp_path, monkeypatch):
    """The second time it is found."""
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", f"sqlite:///{tmp_path}/w.db")
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path / "models"))
    assert run("init", "--json").answer == {"warehouse": f"sqlite:///{tmp_path}/w.db", "made": True}
    again = run("init")
    assert (again.exit_code, again.out) == (0, f"found the warehouse sqlite:///{tmp_path}/w.db\n")


@pytest.mark.slow
def test_init_loads_the_samples_of_their_own_year(run, tmp_path, monkeypatch):
    """A replay of 2013 needs them there; without the option they are moved to our time."""
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", f"sqlite:///{tmp_path}/w.db")
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path / "models"))
    loaded = run("init", "--samples", "--as-recorded", "--json").answer
    with Warehouse(f"sqlite:///{tmp_path}/w.db").read() as connection:
        first = connection.scalar(text("SELECT min(scheduled_departure) FROM flights"))
    assert (loaded["flights"], first[:10]) == (336_776, "2013-01-01")


def test_init_makes_roles_where_there_are_any(on_shop, shop):
    """On PostgreSQL, as often as wanted; on SQLite one clear line says what decides instead."""
    done = on_shop("--quiet", "init", "--roles", "--json")
    if shop.warehouse.startswith("sqlite"):
        assert (done.exit_code, _is_one_clear_line(done)) == (2, True)
        assert "only PostgreSQL has roles" in done.err
    else:
        assert (done.exit_code, done.answer["to_execute"]) == (0, [])
        assert (
            "batch_jobs_writer, batch_jobs_reader and batch_jobs_requester"
            in on_shop("init", "--roles").out
        )


@on_sqlite
def test_models_lists_every_file_also_a_broken_one(on_shop, tmp_path, monkeypatch):
    """With its mode and what it is about, or what is wrong with it; no warehouse is needed."""
    (tmp_path / "team_broken_models").mkdir()
    (tmp_path / "team_broken_models" / "__init__.py").touch()
    (tmp_path / "team_broken_models" / "broken.py").write_text("model = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BATCH_JOBS_MODELS", "team_broken_models,tests.example_models")
    monkeypatch.delenv("BATCH_JOBS_WAREHOUSE")
    rows = {row["model"]: row for row in on_shop("models", "--json").answer}
    assert rows["orders"] == {
        "model": "orders",
        "mode": "merge",
        "about": "Will this order be returned?",
    }
    assert "must assign a BatchModel" in rows["broken"]["about"]
    assert "Will this order be returned?" in on_shop("models").out.replace("\n", "")


def test_train_and_promote_tell_the_version_and_the_verdict(on_shop):
    """A person reads one line, a program the whole report; both hear where it is drawn."""
    done = on_shop("train", "orders", "--as-of", "2024-03-01T06:00:00Z")
    assert re.match(r"registered orders 20240301T0600-\w{8}: may be promoted: its loss", done.out)
    version = on_shop("train", "orders", "--as-of", "2024-03-01T12:00:00Z", "--json").answer
    assert (version["model"], version["gate"]["promote"]) == ("orders", True)
    assert version["version"] in Path(version["page"]).read_text("utf-8")
    assert re.search(r"; drawn in /.*/gate\.html\n$", done.out)
    promoted = on_shop("promote", "orders", version["version"], "--json").answer
    assert (promoted["outcome"], promoted["champion"]) == ("promoted", version["version"])
    said = on_shop("promote", "orders", version["version"]).out
    assert said == f"orders {version['version']} is the champion: it is the champion already\n"


def test_a_promotion_that_promotes_nobody_has_an_exit_code_of_its_own(on_shop, shop):
    """It is no failure; the version's name and a reason overrule the gate, as the line says."""
    with Warehouse(shop.warehouse).write() as connection:
        turned = "UPDATE orders SET returned = 1 - returned WHERE placed_at < '2024-02-26'"
        connection.execute(text(turned))
    assert (
        "the champion should stay" in on_shop("train", "orders", "--as-of", "2024-03-01T06:00Z").out
    )
    kept = on_shop("promote", "orders")
    assert "was not promoted: " in kept.out
    version = re.search(r"`batch-jobs promote orders (\S+) --reason …`", kept.out)[1]
    told = on_shop("promote", "orders", "--json").answer
    assert (kept.exit_code, told["outcome"], told["version"]["version"]) == (4, "kept", version)
    words = ("--reason", "labels were turned", "--json")
    forced = on_shop("promote", "orders", version, *words).answer
    assert (forced["outcome"], forced["reason"]) == ("promoted", "labels were turned")


def test_rollback_makes_an_earlier_version_serve_again(on_shop):
    """With the reason that is recorded."""
    first = on_shop("promote", "orders", "--json").answer["champion"]
    on_shop("train", "orders", "--as-of", "2024-03-01T06:00:00Z")
    on_shop("promote", "orders", "--reason", "try it")
    done = on_shop("rollback", "orders", "--to", first, "--reason", "too eager")
    assert done.out == f"orders {first} is the champion: too eager\n"


def test_predict_publishes_and_tells_its_run(on_shop):
    """The interval comes as it was meant, in UTC; a repetition answers with the same run."""
    run = on_shop("predict", "orders", *SPAN, "--parts", "2", "--json").answer
    assert (run["run_id"], run["state"]) == (1, "published")
    assert run["interval_start"] == "2024-03-01T00:00:00+00:00"
    assert run["rows_read"] == run["rows_scored"] + run["rows_rejected"] + run["rows_skipped"] > 0
    again = on_shop("predict", "orders", *SPAN).out
    assert again == (
        "orders [2024-03-01T00:00:00Z, 2024-03-01T00:10:00Z) is published as run 1: "
        f"{run['rows_scored']} rows scored, 0 rejected\n"
    )
    assert on_shop("predict", "orders", *SPAN, "--force", "--json").answer["run_id"] == 2


def test_backfill_publishes_the_intervals_of_a_span(on_shop):
    """One run each, oldest first."""
    assert [run["run_id"] for run in on_shop("backfill", "orders", *DAY, "--json").answer] == [
        1,
        2,
        3,
    ]
    assert on_shop("backfill", "orders", *DAY).out == "3 intervals of orders are published\n"
    forced = on_shop("backfill", "orders", *DAY, "--force", "--json").answer
    assert [run["run_id"] for run in forced] == [4, 5, 6]


def test_gaps_lists_what_was_never_published(on_shop):
    """As a table, as JSON, or in words if there is none."""
    assert on_shop("gaps", "orders").out == "orders has no gap\n"
    newest = newest_due("*/10 * * * *", datetime.now(UTC))
    missed = [(newest.start - timedelta(minutes=10 * n)).isoformat() for n in (3, 2, 1)]
    on_shop("predict", "orders", "--start", missed[0], "--end", missed[1])
    first = {"start": missed[1], "end": missed[2]}
    assert on_shop("gaps", "orders", "--json").answer[0] == first
    table = on_shop("gaps", "orders").out
    assert f"{missed[1][:10]} {missed[1][11:16]}Z" in table
    assert len(table.splitlines()) == 5, "gaps that touch make one row"


def test_prune_tells_what_it_removed(on_shop, shop):
    """Of one model or of all; what readers see is not among it."""
    for _ in range(2):
        on_shop("predict", "orders", *SPAN, "--force")
    before = on_shop("status", "--json").answer
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(
            text("""
            UPDATE prediction_runs SET published_at = '2020-01-01', superseded_at = '2020-01-01'
            WHERE state = 'superseded'""")
        )
    counts = {"expired": 0, "retired": 1, "rows": 1, "rejected": 0, "left": 0, "online": 0}
    counts |= {"requests": 0, "artifacts": 0}
    nothing = dict.fromkeys(counts, 0)
    assert on_shop("prune", "orders", "--json").answer == [{"model": "orders", **counts}]
    assert on_shop("prune", "--json").answer == [
        {"model": name, **nothing} for name in ("customers", "flight_delay", "iris", "orders")
    ]
    assert "customers" in on_shop("prune").out
    assert on_shop("status", "--json").answer == before


def test_answer_tells_what_became_of_requests(on_shop, shop):
    """Of one model or of all; of one that failed the exit code tells."""
    assert on_shop("answer").out == "no request waits\n"
    asked = [submit(shop, "orders", [("a", {"amount": n, "country": None})]) for n in (1, -1)]
    told = on_shop("answer", "orders", "--json").answer
    assert [row["request_id"] for row in told] == asked
    assert [(row["rows_scored"], row["rows_rejected"]) for row in told] == [(1, 0), (0, 1)]
    asked = submit(shop, "orders", [("a", {"amount": 1, "country": None})])
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(text("DELETE FROM request_rows WHERE request_id = :id"), {"id": asked})
    done = on_shop("answer")
    assert done.exit_code == 1
    assert "it has fewer rows than the 1 it announced" in done.out


@on_sqlite
def test_keys_tells_what_each_has_signed(on_shop, shop):
    """Without keys: which versions nobody has signed, and whose champions those are."""
    told = on_shop("keys", "--json").answer
    assert [(key["name"], key["signs"], key["verifies"]) for key in told] == [(None, False, True)]
    assert (told[0]["versions"], told[0]["champions"]) == (2, ["customers", "orders"])
    assert "(no signature)" in on_shop("keys").out


@on_sqlite
def test_topics_without_kafka_are_one_clear_line(on_shop, shop):
    """Before anything is asked."""
    done = on_shop("exchange", "orders", "--requests", "asked", "--answers", "told")
    assert (done.exit_code, _is_one_clear_line(done)) == (2, True)
    assert "not set: BATCH_JOBS_KAFKA (for example kafka-1:9092" in done.err


@pytest.mark.slow
@on_sqlite
def test_answer_follows_until_it_is_told_to_stop(on_shop, shop, tmp_path):
    """A line for each request, a file touched with each turn, and a clean end at SIGTERM."""
    asked = submit(shop, "orders", [("a", {"amount": 1, "country": None})])
    alive = tmp_path / "alive"
    command = [sys.executable, "-m", "batch_jobs", "answer", "--follow", "--json", "--alive", alive]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["request_id"] == asked
        assert alive.exists()
        process.terminate()
        assert process.stdout.read() == '{"done": 1}\n'
    assert process.returncode == 0
    assert state(shop, asked)[0] == "done"


def test_status_shows_what_readers_see(on_shop):
    """Of one model or of all; and before the first publication, what will serve."""
    told = on_shop("status").out.splitlines()
    assert [line.split("; ")[0] for line in told] == [
        "customers: nothing is published yet",
        "orders: nothing is published yet",
    ]
    on_shop("predict", "orders", *SPAN)
    (row,) = on_shop("status", "orders", "--json").answer
    assert (row["model"], row["row_count"], row["versions"]) == ("orders", 1, 1)
    assert (row["champion"], row["notes"]) == (row["model_version"], [])
    (row,) = on_shop("status", "customers", "--json").answer
    assert (row["run_id"], row["row_count"], row["fresh_until"]) == (None, None, None)
    shown = on_shop("status").out
    assert "orders " in shown
    assert "customers: nothing is published yet; 2024" in shown


@on_sqlite
def test_status_tells_what_to_do_next(on_shop, shop):
    """Train, promote, or wait for the next run."""
    assert on_shop("status", "iris").out == "iris: no version is trained: `batch-jobs train iris`\n"
    on_shop("predict", "orders", *SPAN)
    later = on_shop("train", "orders", "--as-of", "2024-03-01T06:00:00Z", "--json").answer
    assert on_shop("status", "orders", "--json").answer[0]["notes"] == []
    on_shop("promote", "orders", "--reason", "newer")
    (note,) = on_shop("status", "orders", "--json").answer[0]["notes"]
    assert note == f"{later['version']} was promoted, and serves from the next run on"
    forget_promotions(Warehouse(shop.warehouse))
    shown = on_shop("status", "orders").out
    assert "orders: no version is promoted: `batch-jobs promote orders`" in shown


@on_sqlite
def test_log_lines_go_to_standard_error_and_may_be_switched_off(on_shop):
    """Standard output is the answer alone."""
    loud = on_shop("predict", "orders", *SPAN, "--json")
    assert "claimed orders" in loud.err
    assert len(loud.out.splitlines()) == 1
    assert on_shop("--quiet", "predict", "orders", *SPAN, "--json").err == ""


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "orders", "--as-of", "2024-03-01T00:00:00"), "write 2024-03-01T00:00:00Z if"),
        (("train", "orders", "--as-of", "yesterday"), "is not an ISO 8601 time"),
        (("train", "orders", "--as-of", "2999-01-01T00:00:00Z"), "that is in the future"),
        (("train", "order", "--as-of", "2024-03-01T00:00:00Z"), "known models: customers"),
        (("predict", "orders", *SPAN[:3], "2024-03-01T00:00"), "write 2024-03-01T00:00:00Z if"),
        (("predict", "orders", *SPAN[:3], "2999-01-01T00:00:00Z"), "ends in the future"),
        (("predict", "orders", *SPAN[:3], SPAN[1]), "must end after it starts"),
        (("predict", "nobody", *SPAN), "unknown model 'nobody'; known models: customers"),
        (("backfill", "orders", *SPAN[:3], "2999-01-01T00:00:00Z"), "ends in the future"),
        (("gaps", "nobody"), "unknown model 'nobody'"),
        (("status", "nobody"), "unknown model 'nobody'"),
        (("prune", "nobody"), "unknown model 'nobody'"),
        (("answer", "nobody"), "unknown model 'nobody'"),
        (("promote", "orders", "../v1"), "orders has no version '../v1'"),
        (("rollback", "orders", "--to", "v0", "--reason", "x"), "orders has no version 'v0'"),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_2(on_shop, arguments, words):
    """No traceback, nothing on standard output."""
    done = on_shop("--quiet", *arguments)
    assert done.exit_code == 2
    assert _is_one_clear_line(done)
    assert words in done.err


@on_sqlite
@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "orders"),
        ("train", "orders"),
        ("rollback", "orders", "--to", "v0"),
        ("predict", "orders", *SPAN, "--parts", "0"),
        ("predict", "orders", *SPAN, "--parts", "257"),
        ("conquer", "orders"),
        ("status", "--yaml"),
    ],
)
def test_wrong_usage_exits_2_and_shows_how_to_get_help(on_shop, arguments):
    """As any command line does."""
    done = on_shop(*arguments)
    assert done.exit_code == 2
    assert "--help" in done.err


@pytest.mark.parametrize(
    "arguments", [("init",), ("status",), ("predict", "orders", *SPAN), ("gaps", "orders")]
)
def test_without_an_environment_every_variable_is_named_at_once(run, arguments):
    """With examples; exit 2."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert _is_one_clear_line(done)
    assert "BATCH_JOBS_WAREHOUSE (for" in done.err
    assert "BATCH_JOBS_MODEL_STORE (for" in done.err


def test_a_warehouse_of_a_newer_release_exits_2(on_shop, shop):
    """Whatever the command, before anything is written."""
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    for command in (("init",), ("status",), ("predict", "orders", *SPAN), ("promote", "orders")):
        done = on_shop("--quiet", *command)
        assert (done.exit_code, _is_one_clear_line(done)) == (2, True)
        assert "upgrade batch-jobs" in done.err


@on_sqlite
@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(IncompleteError("run 1 lost a row"), 1), (FencedError("a newer attempt"), 3)],
)
def test_a_failed_run_exits_1_and_a_fenced_one_3(on_shop, monkeypatch, error, exit_code):
    """So that a scheduler can tell them apart."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(jobs, "predict", fail)
    done = on_shop("predict", "orders", *SPAN)
    assert (done.exit_code, done.err) == (exit_code, f"error: {error}\n")


@on_sqlite
def test_an_error_of_the_database_is_one_line_without_password_or_values(on_shop, monkeypatch):
    """Neither the statement nor what was bound to it, nor a traceback; exit 1."""

    def fail(*_, **__):
        dsn = "connection to postgresql://writer:hunter2@db/serving failed: password=hunter2"
        raise OperationalError("SELECT :x", {"x": "hunter2"}, Exception(dsn))

    monkeypatch.setattr(overview, "status", fail)
    done = on_shop("status")
    assert done.exit_code == 1
    assert _is_one_clear_line(done)
    assert "hunter2" not in done.err
    assert "connection to postgresql://***@db/serving failed" in done.err


def test_a_url_with_a_password_is_refused_without_it(run, monkeypatch, tmp_path):
    """Nothing of it is printed."""
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path))
    for url in ("mysql://writer:hunter2@db/serving", "postgresql://w:hunter2@db:port/x", "hunter2"):
        monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", url)
        done = run("status")
        assert (done.exit_code, _is_one_clear_line(done)) == (2, True)
        assert "hunter2" not in done.err


def test_help_lists_every_command_and_says_what_each_does(run, monkeypatch):
    """A person who types nothing but --help finds the way."""
    monkeypatch.setenv("COLUMNS", "120")
    done = run("--help")
    for name, command in typer.main.get_command(main.app).commands.items():
        assert f" {name} " in done.out
        assert command.help
    assert done.exit_code == 0


def test_it_is_a_program(shop):
    """A process of its own, with its streams and its exit codes."""
    environ = os.environ | {
        "BATCH_JOBS_WAREHOUSE": shop.warehouse,
        "BATCH_JOBS_MODEL_STORE": shop.model_store,
        "PYTHONPATH": "src",
    }
    for arguments, expected in (
        (["answer", "--json"], (0, "[]\n", 0)),
        (["gaps", "x"], (2, "", 1)),
    ):
        command = [sys.executable, "-m", "batch_jobs", *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == expected
