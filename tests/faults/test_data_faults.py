"""Whatever the source holds: what is wrong is refused, the rest goes through, readers keep theirs.

Cases 51 to 56 of the failure modes, through `serving.predict` on both databases; what a single
row may hold is in tests/scoring/test_contract.py.
"""

import pytest
from sqlalchemy import text

from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.runs import jobs
from tests.fault_models._rows import expected, tick
from tests.support.deployment import shown
from tests.support.mishaps import change, is_as_before, is_published_once, once

on_sqlite = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)
EMPTY = 9  # a tick of the source that is emptied to put other rows in


def put(deployment, rows):
    """Let these `{entity: x}` be the rows of a tick that has no other; `x` is SQL."""
    at = stored_time(tick(EMPTY).start)
    with Warehouse(deployment.url).write() as connection:
        connection.execute(text("DELETE FROM fault_rows WHERE at = :at"), {"at": at})
        for key, x in rows.items():
            sql = f"INSERT INTO fault_rows VALUES ('ticks', :key, :at, :at, {x})"
            connection.execute(text(sql), {"key": key, "at": at})


@pytest.mark.parametrize(("model", "place"), [("ticks", 4), ("population", 0)])
@pytest.mark.failure_mode(51)
def test_a_doubled_key_fails_the_run_wherever_it_is(deployment, model, place):
    """In one chunk or in two; in a table of its own on PostgreSQL it is found by the index."""
    key = list(expected(model, 1))[place]
    doubled = f"""
        INSERT INTO fault_rows SELECT model, entity_id, at, known_at, -1 FROM fault_rows
        WHERE model = '{model}' AND entity_id = '{key}' AND at = :at"""
    change(deployment.settings, doubled, at=stored_time(tick(1).start))
    with pytest.raises(ContractError, match=rf"duplicated in .*{key}") as caught:
        deployment.predict(model, 1)
    assert caught.value.exit_code == 2
    assert is_as_before(deployment, model)
    assert deployment.states(model, 1) == ["failed"]
    change(deployment.settings, "DELETE FROM fault_rows WHERE x = -1")
    assert deployment.predict(model, 1).state == "published"
    assert is_published_once(deployment, model, ["failed", "published"])


@pytest.mark.failure_mode(53)
def test_numbers_at_the_edge_are_scored_or_set_aside(deployment):
    """No row is lost, none stored that is no number; 2^63 fits a double, and infinity is none."""
    finite = {
        "large": 1e308,
        "small": 5e-324,
        "negative": -1e300,
        "zero": -0.0,
        "beyond 2^53": 2.0**53 + 2,
        "beyond 2^63": 2.0**63,
    }
    wild = {"null": "NULL"}
    if deployment.server:
        wild |= {name: f"'{name}'::float8" for name in ("NaN", "Infinity", "-Infinity")}
    else:
        wild |= {"Infinity": "9e999", "-Infinity": "-9e999"}
    put(deployment, {key: repr(x) for key, x in finite.items()} | wild)
    run = deployment.predict("ticks", EMPTY, accept="every third row is wild")
    assert (run.counts.scored, run.counts.rejected) == (len(finite), len(wild))
    scores = deployment.ask("SELECT entity_id, score FROM predictions WHERE run_id > 2")
    assert dict(scores) == pytest.approx(finite, rel=1e-9, abs=1e-6)
    reasons = dict(deployment.ask("SELECT entity_id, reason FROM rejected_rows WHERE run_id > 2"))
    assert reasons.keys() == wild.keys()
    assert all("null" in reasons[key] for key in {"null", "NaN"} & reasons.keys())
    assert all("finite" in reasons[key] for key in ("Infinity", "-Infinity"))


KEYS = [
    *("caf\u00e9", "cafe\u0301", "\u200bzero", "zero", "\u202eright to left", "👩‍👩‍👧"),
    *("'; DROP TABLE predictions; --", '"quoted"', "%s %(x)s :start", "=cmd()", "a\nb", "a\tb"),
    *("\\x41", "\\N", ",", "null", "NaN", "x" * 200, "1e5", " lead", "trail "),
]


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.failure_mode(54)
def test_keys_are_stored_to_the_byte(deployment, parts):
    """Whatever they mean to SQL, CSV, COPY or a spreadsheet; those that look alike stay two."""
    put(deployment, {key: str(place) for place, key in enumerate(KEYS)})
    run = jobs.predict(deployment.settings, "ticks", tick(EMPTY), parts=parts)
    rows = deployment.ask("SELECT entity_id, score FROM predictions WHERE run_id > 2")
    assert {key.encode(): round(score) for key, score in rows} == {
        key.encode(): place for place, key in enumerate(KEYS)
    }
    assert run.counts.scored == len(KEYS)
    assert deployment.ask("SELECT count(*) FROM fault_rows WHERE model = 'population'") != [(0,)]


@on_sqlite
@pytest.mark.parametrize(
    ("key", "words"),
    [("'a' || char(0) || 'b'", "NUL"), ("CAST(X'61EDA080' AS TEXT)", "decode to UTF-8")],
)
@pytest.mark.failure_mode(54)
def test_a_key_that_is_no_text_fails_the_run(deployment, key, words):
    """PostgreSQL cannot hold such a key in the first place."""
    where = f"WHERE entity_id = 'shared-3' AND at = '{stored_time(tick(1).start)}'"
    change(deployment.settings, f"UPDATE fault_rows SET entity_id = {key} {where}")
    with pytest.raises(ContractError, match=words):
        deployment.predict("ticks", 1)
    assert is_as_before(deployment)
    assert deployment.states("ticks", 1) == ["failed"]


@pytest.mark.failure_mode(52)
def test_a_key_that_is_missing_fails_the_run(deployment):
    """A prediction for nobody helps nobody; the message counts them."""
    where = f"WHERE entity_id = 'shared-3' AND at = '{stored_time(tick(1).start)}'"
    change(deployment.settings, f"UPDATE fault_rows SET entity_id = NULL {where}")
    with pytest.raises(ContractError, match="entity_id is null or blank in 1 of"):
        deployment.predict("ticks", 1)
    assert is_as_before(deployment)
    assert deployment.states("ticks", 1) == ["failed"]


@pytest.mark.failure_mode(55)
def test_a_source_that_gains_a_column_is_read_as_before(deployment):
    """What the query does not name is not read."""
    change(deployment.settings, "ALTER TABLE fault_rows ADD COLUMN note TEXT")
    deployment.predict("ticks", 1)
    assert is_published_once(deployment)


@pytest.mark.parametrize("statement", ["RENAME COLUMN x TO y", "DROP COLUMN x"])
@pytest.mark.failure_mode(55)
def test_a_source_that_lost_a_column_stops_before_anything_is_claimed(deployment, statement):
    """In the words of the database, and exit 2."""
    change(deployment.settings, f"ALTER TABLE fault_rows {statement}")
    with pytest.raises(ContractError, match="x") as caught:
        deployment.predict("ticks", 1)
    assert caught.value.exit_code == 2
    assert is_as_before(deployment)
    assert deployment.states("ticks", 1) == []


@on_postgres
@pytest.mark.failure_mode(55)
def test_a_column_of_another_type_gives_the_same_scores(deployment):
    """As long as what it holds can be read as numbers."""
    kinds = ("numeric(20, 3)", "bigint", "real", "text")
    for number, kind in enumerate(kinds, 1):
        change(deployment.settings, f"ALTER TABLE fault_rows ALTER COLUMN x TYPE {kind}")
        deployment.predict("ticks", number)
    assert deployment.seen("ticks") == shown("ticks", range(len(kinds) + 1))


@pytest.mark.failure_mode(55)
def test_times_without_an_offset_fail_the_run(deployment):
    """Nobody knows which moment they mean."""
    naive = (
        "ALTER TABLE fault_rows ALTER COLUMN at TYPE timestamp"
        if deployment.server
        else "UPDATE fault_rows SET at = replace(at, '+00:00', '')"
    )
    change(deployment.settings, naive)
    with pytest.raises(ContractError, match="as_of"):
        deployment.predict("ticks", 1)
    assert is_as_before(deployment)
    assert deployment.states("ticks", 1) == ["failed"]


@on_sqlite
@pytest.mark.failure_mode(55)
def test_a_column_of_mixed_types_sets_its_bad_rows_aside(deployment):
    """SQLite lets a column of numbers hold anything; what can be read as a number is one."""
    at = f"at = '{stored_time(tick(1).start)}'"
    change(
        deployment.settings,
        "ALTER TABLE fault_rows RENAME TO strict_rows",
        "CREATE TABLE fault_rows (model, entity_id, at, known_at, x)",
        "INSERT INTO fault_rows SELECT model, entity_id, at, known_at, NULL FROM strict_rows",
        f"UPDATE fault_rows SET x = '103' WHERE entity_id = 'group-01-3' AND {at}",
        f"UPDATE fault_rows SET x = 104 WHERE entity_id = 'group-01-4' AND {at}",
        f"UPDATE fault_rows SET x = 150.0 WHERE entity_id = 'shared-0' AND {at}",
        f"UPDATE fault_rows SET x = 'many' WHERE entity_id = 'shared-1' AND {at}",
        f"UPDATE fault_rows SET x = X'00FF' WHERE entity_id = 'shared-2' AND {at}",
    )
    run = deployment.predict("ticks", 1, accept="two thirds are wild")
    scores = deployment.ask(f"SELECT entity_id, score FROM predictions WHERE run_id = {run.run_id}")
    assert {key: round(score) for key, score in scores} == {
        "group-01-3": 103,
        "group-01-4": 104,
        "shared-0": 150,
    }
    assert (run.counts.read, run.counts.rejected) == (12, 9)


@pytest.mark.failure_mode(56)
def test_a_source_that_changes_while_it_is_read_is_read_as_it_was(deployment):
    """All chunks of a part are of one snapshot, whatever is committed in between."""
    at = stored_time(tick(1).start)

    def rewrite():
        change(
            deployment.settings,
            "UPDATE fault_rows SET x = x + 7 WHERE at = :at",
            "DELETE FROM fault_rows WHERE at = :at AND entity_id LIKE 'shared%'",
            "INSERT INTO fault_rows VALUES ('ticks', 'new', :at, :at, 1)",
            at=at,
        )

    with once("score.chunk_staged", rewrite):
        jobs.predict(deployment.settings, "ticks", tick(1), parts=1)
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
