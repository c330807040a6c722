"""Reading predictions over HTTP: what readers see, saw, and page through; on both databases."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from urllib.parse import quote

import pyarrow as pa
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from batch_jobs import clock
from batch_jobs.alerts import incidents
from batch_jobs.alerts.problems import Problem
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.monitoring.watching import signs
from batch_jobs.registry import champions, versions
from batch_jobs.registry.versions import ModelVersion
from tests.support.api import detail, serving, settings_of
from tests.support.attempts import MIDNIGHT, claim, publish, score, tick
from tests.support.history import latest, prune

MINUTE = timedelta(minutes=1)


@pytest.fixture
def api(warehouse):
    """A server on a warehouse with nothing in it: `get`, and the warehouse."""
    url = warehouse._url.render_as_string(hide_password=False)
    with serving(settings_of(url)) as client:
        yield SimpleNamespace(
            get=client.get, head=client.head, post=client.post, warehouse=warehouse
        )


def rows_of(answer):
    """Entity and score of each row of a page of NDJSON."""
    assert answer.status_code == 200, answer.text
    lines = map(json.loads, answer.text.splitlines())
    return [(line["entity_id"], line["score"]) for line in lines]


def test_a_prediction_comes_with_its_version_interval_and_publication(api):
    """All that the contract promises of a row, and how fresh the model is."""
    run = publish(api.warehouse, tick(0), {"a": 0.25, "b": 0.5})
    with clock.set_to(tick(0).end + 5 * MINUTE):
        answer = api.get("/models/orders/predictions/a")
    assert answer.status_code == 200
    told = answer.json()
    assert told.pop("published_at")
    assert told == {
        "model": "orders",
        "entity_id": "a",
        "score": 0.25,
        "label": None,
        "model_version": "v1",
        "run_id": run.run_id,
        "interval_start": "2024-03-01T00:00:00Z",
        "interval_end": "2024-03-01T00:10:00Z",
        "fresh_until": "2024-03-01T00:10:00Z",
        "stale": False,
        "age_seconds": 300,
    }


def test_what_is_not_there_is_404_and_says_what_is_missing(api):
    """The model, its first publication, or the entity."""
    assert detail(api.get("/models/unknown/predictions/a"), 404) == "there is no model unknown"
    assert detail(api.get("/models/orders/status"), 404) == "orders has not published anything yet"
    assert "not published" in detail(api.get("/models/orders/predictions"), 404)
    publish(api.warehouse, tick(0), {"a": 0.25})
    assert "this entity" in detail(api.get("/models/orders/predictions/x"), 404)


def test_any_key_can_be_looked_up(api):
    """Percent-encoded as every client does it; a slash may stand as it is."""
    keys = ["a/b", "a b", "ключ", "100%", "../status", "'; DROP TABLE x --", "?a=b", "a/"]
    publish(api.warehouse, tick(0), dict.fromkeys(keys, 0.5))
    for key in keys:
        answer = api.get(f"/models/orders/predictions/{quote(key, safe='')}")
        assert answer.json()["entity_id"] == key
    assert api.get("/models/orders/predictions/a/b").json()["entity_id"] == "a/b"


def test_who_asks_together_gets_his_own_answer(api):
    """Whatever the others ask for: the same entity, another model, one that is not there."""
    publish(api.warehouse, tick(0), {f"order {n}": n / 100 for n in range(40)})
    publish(api.warehouse, tick(0), {"x": 1.0}, mode="replace", model="customers")
    asked = [f"orders/predictions/order {n % 50}" for n in range(150)]
    asked[::10] = ["customers/predictions/x"] * 15
    asked[::15] = ["unknown/predictions/x"] * 10
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda path: api.get(f"/models/{path}"), asked))
    for path, answer in zip(asked, answers, strict=True):
        model, _, entity = path.split("/")
        number = int(entity.split()[-1]) if model == "orders" else 0
        if model == "unknown" or number >= 40:
            assert detail(answer, 404)
        else:
            told = answer.json()
            score = number / 100 if model == "orders" else 1.0
            assert (told["model"], told["entity_id"], told["score"]) == (model, entity, score)


def test_the_promise_is_broken_when_a_due_interval_is_later_than_the_timeout(api):
    """Orders are due every ten minutes, and a run may take half an hour."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    due = tick(1).end + timedelta(minutes=30)
    for moment, stale in ((due, False), (due + MINUTE, True)):
        with clock.set_to(moment):
            told = api.get("/models/orders/predictions/a").json()
            assert (told["stale"], told["age_seconds"]) == (stale, (moment - tick(0).end).seconds)
            assert api.get("/models/orders/status").json()["stale"] is stale
            [ready] = api.get("/readyz").json()["models"]
            assert (ready["model"], ready["stale"]) == ("orders", stale)
            assert f'prediction_api_stale{{model="orders"}} {stale:.1f}' in api.get("/metrics").text


def test_the_metrics_count_the_incidents_that_last(api):
    """By model and severity, until they are over."""
    for model in ("orders", None):
        problem = Problem(cause="overdue", model=model, title="nothing new", severity="page")
        incidents.report(api.warehouse, problem, f"{model} once", clock.now())
    told = api.get("/metrics").text
    assert 'prediction_api_incidents{model="orders",severity="page"} 1.0' in told
    assert 'prediction_api_incidents{model="",severity="page"} 1.0' in told
    incidents.resolve(api.warehouse, "orders", ["overdue"], clock.now())
    assert 'prediction_api_incidents{model="orders"' not in api.get("/metrics").text


def test_whether_somebody_watches_is_told(api):
    """Nobody at first; then when, and that it is silent once it has missed several looks."""
    assert api.get("/readyz").json()["watch"] is None
    for every, missed in ((timedelta(minutes=1), 5), (None, 17)):
        signs.beat(api.warehouse, MIDNIGHT, every)
        for moment, silent in ((MIDNIGHT + MINUTE, False), (MIDNIGHT + missed * MINUTE, True)):
            with clock.set_to(moment):
                told = api.get("/readyz").json()["watch"]
            assert (told["age_seconds"], told["silent"]) == ((moment - MIDNIGHT).seconds, silent)
    with api.warehouse.write() as connection:
        connection.execute(text("DROP TABLE signs_of_life"))
    assert api.get("/readyz").json()["watch"] is None  # of an older release


def test_models_tell_what_they_are_asked_and_how_fresh_they_are(api):
    """Those there are files for, published or not, and those that others have published."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    publish(api.warehouse, tick(0), {"a": 0.25}, model="somebody_elses")
    models = {model["model"]: model for model in api.get("/models").json()["models"]}
    assert list(models) == ["customers", "orders", "somebody_elses"]
    assert models["orders"]["features"]["amount"] == {
        "kind": "number",
        "ge": 0.0,
        "nullable": False,
    }
    assert (models["orders"]["schedule"], models["orders"]["mode"]) == ("*/10 * * * *", "merge")
    assert models["orders"]["status"]["row_count"] == 1
    assert models["customers"]["status"] is models["orders"]["champion"] is None
    assert models["somebody_elses"]["status"]["stale"] is None


def test_the_champion_is_told(api):
    """The version of the newest promotion."""
    for name in ("v1", "v2"):
        version = ModelVersion("orders", name, "2024-03-01", "0" * 64, {"size_bytes": 0}, {}, {})
        versions.register(api.warehouse, version)
        champion = champions.champion(api.warehouse, "orders")
        expected = champion and champion.version
        champions.promote(
            api.warehouse, version, expected=expected, action="promote", actor="a", reason="b"
        )
    [_, orders] = api.get("/models").json()["models"]
    assert (orders["model"], orders["champion"]) == ("orders", "v2")


def test_the_past_is_what_the_app_saw_then(api):
    """Of the run that was current at that moment, and when it stopped being so."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    first = latest(api.warehouse)
    publish(api.warehouse, tick(1), {"a": 0.75})
    second = latest(api.warehouse)
    url = "/models/orders/predictions/a"
    told = api.get(url, params={"as_of": stored_time(first)}).json()
    assert (told["score"], told["superseded_at"]) == (
        0.25,
        stored_time(second).replace("+00:00", "Z"),
    )
    assert api.get(url, params={"as_of": stored_time(second)}).json()["score"] == 0.75
    before = api.get(url, params={"as_of": stored_time(first - MINUTE)})
    assert "nothing was published, or it is older" in detail(before, 404)


def test_a_moment_without_an_offset_is_not_understood(api):
    """Nor what is no time, or none that has a place in UTC's calendar."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    wrong = ["", "now", "2024-03-01", "2024-03-01T00:00:00", "1" * 41, "0001-01-01T00:00:00+23:00"]
    for moment in wrong:
        assert detail(api.get("/models/orders/predictions/a", params={"as_of": moment}), 422)


def test_the_ends_of_time_are_moments_too(api):
    """Nothing was published by the first, and the last has still to come."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    for moment, status in (("0001-01-01T00:00:00Z", 404), ("9999-12-31T23:59:59Z", 422)):
        answer = api.get("/models/orders/predictions/a", params={"as_of": moment})
        assert answer.status_code == status


def test_a_parameter_that_nobody_reads_is_refused(api):
    """And not answered as if it had not been there."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    wrong = api.get("/v1/models/orders/predictions/a", params={"as_off": "2024-03-01T00:00:00Z"})
    assert "no parameter 'as_off'; it has as_of" in detail(wrong, 422)
    assert "it has none" in detail(api.get("/v1/models?limit=1"), 422)


def test_who_has_an_answer_is_told_so_until_there_is_another(api):
    """304 by ETag: the same run, as fresh as it was, is the same answer whatever its age."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    for path in ("/models/orders/predictions/a", "/models/orders/status"):
        with clock.set_to(tick(0).end):
            tag = api.get(path).headers["etag"]
        with clock.set_to(tick(0).end + MINUTE):
            have = api.get(path, headers={"If-None-Match": f'"x", {tag}'})
            assert (have.status_code, have.content, have.headers["etag"]) == (304, b"", tag)
        assert api.get(path, headers={"If-None-Match": tag}).json()["stale"] is True
    publish(api.warehouse, tick(1), {"a": 0.25})
    with clock.set_to(tick(0).end):
        assert api.get(path, headers={"If-None-Match": tag}).status_code == 200


def follow(api, answer):
    """Each page, from this answer on."""
    while True:
        yield answer
        if "next" not in answer.links:
            return
        answer = api.get(answer.links["next"]["url"])


def test_an_export_has_each_row_of_one_run_once(api):
    """Whatever is published meanwhile: that of the first page, which its rows name."""
    rows = {f"key {n}/é": n / 10 for n in range(7)}
    run = publish(api.warehouse, tick(0), rows, mode="replace", model="customers")
    seen = []
    first = api.get("/models/customers/predictions?limit=3")
    for number, page in enumerate(follow(api, first), start=1):
        publish(api.warehouse, tick(number), {"new": 1.0}, mode="replace", model="customers")
        seen += rows_of(page)
        assert page.headers["x-model-version"] == "v1"
        assert page.headers["x-interval-end"] == "2024-03-01T00:10:00Z"
        assert page.headers["x-published-at"]
        assert f'"run_id": {run.run_id},' in page.text
    assert seen == sorted(rows.items())


def test_an_export_whose_run_is_retired_ends_with_410(api):
    """And not with fewer rows; who has the ETag of a page is told so too."""
    rows = {"a": 0.1, "b": 0.2, "c": 0.3}
    run = publish(api.warehouse, tick(0), rows, mode="replace", model="customers")
    page = api.get("/models/customers/predictions?limit=2")
    assert rows_of(page) == [("a", 0.1), ("b", 0.2)]
    known = {"If-None-Match": page.headers["etag"]}
    assert api.get(page.url, headers=known).status_code == 304
    publish(api.warehouse, tick(1), {"d": 0.4}, mode="replace", model="customers")
    assert rows_of(api.get(page.links["next"]["url"])) == [("c", 0.3)]
    prune(api.warehouse, latest(api.warehouse, "customers") + MINUTE, model="customers")
    gone = api.get(page.links["next"]["url"])
    assert "is retired; begin again at /v1/models/customers/predictions" in detail(gone, 410)
    old = api.get(f"/models/customers/runs/{run.run_id}/predictions?limit=2", headers=known)
    assert old.status_code == 410


def test_rows_that_are_not_published_cannot_be_exported(api):
    """A run that is staged, of another model, or that nobody has claimed."""
    staged = claim(api.warehouse, tick(0))
    score(api.warehouse, staged, {"a": 0.1})
    other = publish(api.warehouse, tick(0), {"a": 0.1}, model="customers", mode="replace")
    for run_id in (staged.run_id, other.run_id, 99):
        answer = api.get(f"/models/orders/runs/{run_id}/predictions")
        assert detail(answer, 404) == f"orders has published no run {run_id}"


def test_no_cell_of_a_csv_is_a_formula(api):
    """Text that begins like one gets an apostrophe; numbers stay numbers, quotes are doubled."""
    keys = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "\na", "-5", "+1e3", 'a"b,c', "plain"]
    run = publish(api.warehouse, tick(0), dict.fromkeys(keys, -0.5))
    answer = api.get(f"/models/orders/runs/{run.run_id}/predictions", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    cells = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    numbers = {"-5", "+1e3"}
    assert sorted(row["entity_id"] for row in cells) == sorted(
        f"'{key}" if key[0] in "=+-@\t\r\n" and key not in numbers else key for key in keys
    )
    assert {row["score"] for row in cells} == {"-0.5"}
    assert {row["published_at"][-1] for row in cells} == {"Z"}  # as everywhere
    assert answer.headers["x-changed-cells"] == "7"
    path = "/models/orders/predictions"
    for url in (str(answer.url.path), path):
        raw = api.get(url, params={"format": "csv", "raw": "true", "limit": 100})
        whole = csv.DictReader(io.StringIO(raw.content.decode(), newline=""))
        assert sorted(row["entity_id"] for row in whole) == sorted(keys)
        assert "x-changed-cells" not in raw.headers
    assert api.get(path, params={"format": "csv"}).headers["x-changed-cells"] == "7"
    assert "x-changed-cells" not in api.get(path, params={"format": "arrow"}).headers


def test_an_arrow_stream_has_the_columns_of_the_contract(api):
    """Typed, in the order of the view, and so has an empty page."""
    run = publish(api.warehouse, tick(0), {"a": 0.1, "b": 0.2})
    url = f"/models/orders/runs/{run.run_id}/predictions"
    for after, keys in (("", ["a", "b"]), ("b", [])):
        answer = api.get(url, params={"format": "arrow", "after": after})
        table = pa.ipc.open_stream(answer.content).read_all()
        assert table.column("entity_id").to_pylist() == keys
        assert table.schema.field("score").type == pa.float64()
        assert table.schema.field("interval_end").type == pa.timestamp("us", "UTC")
        with api.warehouse.read() as connection:
            view = connection.exec_driver_sql("SELECT * FROM current_predictions").keys()
        assert table.column_names == list(view)
    assert table.column("published_at").to_pylist() == []


def test_a_reader_s_rights_are_enough(postgres, postgres_url):
    """On PostgreSQL, for all that only reads."""
    warehouse = Warehouse(postgres_url)
    warehouse.ensure_schema()
    warehouse.ensure_roles()
    publish(warehouse, tick(0), {"a": 0.1})
    postgres.execute("CREATE ROLE api_reader LOGIN PASSWORD 'secret' IN ROLE batch_jobs_reader")
    url = make_url(postgres_url).set(username="api_reader", password="secret")
    paths = ["models", "models/orders/status", "models/orders/predictions/a", "readyz", "metrics"]
    past = f"models/orders/predictions/a?as_of={clock.now():%Y-%m-%dT%H:%M:%S.%fZ}"
    with serving(settings_of(url.render_as_string(hide_password=False))) as client:
        exports = [
            "models/orders/runs/1/predictions",
            "v1/models/orders/predictions",
            "?model=orders",
        ]
        for path in (*paths, past, *exports):
            assert client.get(f"/{path}").status_code == 200, path
    postgres.execute("DROP ROLE api_reader")


def test_a_warehouse_that_comes_back_is_read_again(tmp_path):
    """Also one that was put in the place of another file."""
    url = f"sqlite:///{tmp_path}/w.db"
    with serving(settings_of(url)) as client:
        assert client.get("/readyz").status_code == 503
        for number in (1, 2):
            made = Warehouse(f"sqlite:///{tmp_path}/{number}.db")
            made.ensure_schema()
            publish(made, tick(0), {"a": number / 10})
            made.database.after_removal()  # nothing is left in its log
            for name in ("w.db-wal", "w.db-shm"):
                (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / f"{number}.db").rename(tmp_path / "w.db")
            assert client.get("/models/orders/predictions/a").json()["score"] == number / 10


def test_the_metrics_tell_no_freshness_of_before_the_warehouse_was_away(tmp_path):
    """An old figure would be taken for a fresh one; another gauge tells why there is none."""
    made = Warehouse(f"sqlite:///{tmp_path}/w.db")
    made.ensure_schema()
    publish(made, tick(0), {"a": 0.1})
    with serving(settings_of(str(made))) as client:
        up, age = "prediction_api_warehouse_up 1.0", 'prediction_api_age_seconds{model="orders"}'
        assert all(part in client.get("/metrics").text for part in (up, age))
        with made.write() as connection:
            view = "SELECT sql FROM sqlite_master WHERE name = 'serving_status'"
            definition = connection.exec_driver_sql(view).scalar_one()
            connection.exec_driver_sql("DROP VIEW serving_status")
        told = client.get("/metrics").text
        assert "prediction_api_warehouse_up 0.0" in told
        assert age not in told
        with made.write() as connection:
            connection.exec_driver_sql(definition)
        assert all(part in client.get("/metrics").text for part in (up, age))


def test_a_parameter_that_nobody_knows_is_refused(api):
    """A slip of the pen would get the answer to another question; pages and probes take any."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    path = "/models/orders/predictions/a"
    for query, words in {
        "as_off=2024-03-01T00:00:00Z": "this path has no parameter 'as_off'; it has as_of",
        "as_of=2024-03-01T00:00:00Z&as_of=2024-03-02T00:00:00Z": "as_of: given twice",
    }.items():
        assert detail(api.get(f"{path}?{query}"), 422) == words
    for other in ("/models", "/models/orders/status", "/requests/1", "/predict/1", "/metrics"):
        assert api.get(f"{other}?x=1").status_code == 422
    assert api.get("/healthz?x=1").status_code == api.get("/?x=1").status_code == 200


def test_nobody_is_told_what_readers_will_see(api):
    """The answer would change; a clock that is a little ahead asks for now."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    path = "/models/orders/predictions/a?as_of="
    answer = api.get(f"{path}2999-01-01T00:00:00Z")
    assert "which has still to come" in detail(answer, 422)
    ahead = (clock.now() + timedelta(milliseconds=500)).isoformat().replace("+00:00", "Z")
    assert api.get(f"{path}{ahead}").json()["as_of"] < ahead
    looked_up = api.post(
        "/models/orders/predictions:lookup",
        json={"entity_ids": ["a"], "as_of": "2999-01-01T00:00:00Z"},
    )
    assert looked_up.status_code == 422


def test_head_is_answered_as_get_without_its_body(api):
    """By every route; what is not there for GET is not there for HEAD."""
    publish(api.warehouse, tick(0), {"a": 0.25})
    paths = ["/healthz", "/readyz", "/", "/models", "/metrics", "/static/page.css", "/nothing"]
    paths += ["/models/orders/predictions/a", "/v1/models/orders/predictions", "/predict"]
    for path in paths:
        got, head = api.get(path), api.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        if path not in {"/", "/metrics"}:
            assert head.headers["content-length"] == got.headers["content-length"]
    assert 'method="HEAD",route="/models"' in api.get("/metrics").text


def test_every_key_that_can_be_stored_can_be_asked_for(api):
    """Also what a client or a proxy would take out of a path."""
    keys = [".", "..", "a/b", "a\nb", "a\n", "a?b", "a#b", "%2F", " ", "+", "a//b", "é", "'"]
    publish(api.warehouse, tick(0), {key: n / 100 for n, key in enumerate(keys)})
    path = "/models/orders/predictions:lookup"
    told = api.post(path, json={"entity_ids": keys}).json()
    assert [one["entity_id"] for one in told["predictions"]] == keys
