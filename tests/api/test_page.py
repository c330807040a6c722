"""The page over HTTP: each of its states, its headers, and who gets it; on both databases."""

import re
from datetime import timedelta

import pytest

from batch_jobs import clock
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.runs import jobs
from batch_jobs.settings import Settings
from prediction_api.plot import Point, plot
from prediction_api.wording import plain_reason
from tests.api.test_reading import api  # noqa: F401 # a fixture
from tests.conftest import TRAINED
from tests.support.api import KEY, OTHER_KEY, bearer, serving, settings_of
from tests.support.attempts import MIDNIGHT, forget_promotions, publish, tick

HEADER = b"amount,country\n"
HOUR = timedelta(hours=1)
KEYS = {"keys": (KEY, OTHER_KEY), "hosts": ("*",)}


def test_what_is_published_is_shown_with_its_freshness(api):  # noqa: F811
    """The score, version and interval of an entity; fresh until a due interval is late."""
    publish(api.warehouse, tick(0), {"a/b": 0.25})
    for late, chip in ((timedelta(0), "Fresh"), (HOUR, "Stale")):
        with clock.set_to(tick(0).end + late):
            page = api.get("/?model=orders&entity=a/b")
        assert page.status_code == 200
        for told in (f">{chip}</strong>", "0.25", "v1", "1 Mar 2024, 00:10 UTC", 'class="line"'):
            assert told in page.text


def test_an_entity_that_is_unknown_gets_keys_that_are_not(api):  # noqa: F811
    """The nearest first; whatever was typed."""
    publish(api.warehouse, tick(0), dict.fromkeys(("order 1", "order 2", "x & y"), 0.5))
    page = api.get("/?model=orders&entity=order 15")
    assert page.status_code == 404
    assert page.text.index(">order 1<") < page.text.index(">order 2<")
    assert "entity=x%20%26%20y" in page.text
    for odd in ("%00", "%ff", "x" * 200, "'; DROP TABLE x --", "<b>"):
        assert api.get(f"/?model=orders&entity={odd}").status_code == 404
    assert api.get(f"/?model=orders&entity={'x' * 201}").status_code == 422


def test_before_the_first_publication_it_says_what_is_missing(shop):
    """A champion, or a run; a file can be sent all the same."""
    with serving(shop, model="orders") as client:
        assert "the first prediction run has still to end" in client.get("/").text
        forget_promotions(Warehouse(shop.warehouse))
        page = client.get("/").text
        assert "no champion yet" in page
        assert "waits until the model has its first champion" in page


def test_without_any_model_it_says_how_to_make_one(warehouse):
    """The page of a server that has nothing to show."""
    url = warehouse._url.render_as_string(hide_password=False)
    with serving(Settings(url, "/nowhere", models=())) as client:
        page = client.get("/")
        assert (page.status_code, "No model yet" in page.text) == (200, True)
        assert client.get("/?model=x").status_code == 404
        assert client.get("/?model=../x").status_code == 404


def test_a_browser_may_run_nothing_that_is_not_ours(api):  # noqa: F811
    """Whatever somebody could smuggle into a page; and keeps none of it."""
    headers = api.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    for name in ("style.css", "page.css", "page.js", "icon.svg"):
        assert api.get(f"/static/{name}").status_code == 200
    for name in ("", "../page.py", "%2e%2e/page.py", "x"):
        assert api.get(f"/static/{name}").status_code == 404


def test_a_warehouse_that_does_not_answer_is_told_on_the_page(tmp_path):
    """503 with a time to try again."""
    with serving(settings_of(f"sqlite:///{tmp_path}/none.db")) as client:
        for path in ("/", "/uploads/1"):
            page = client.get(path)
            assert (page.status_code, page.headers["retry-after"]) == (503, "2")
            assert "does not answer" in page.text
        sent = client.post("/models/orders/uploads", files={"file": HEADER + b"1,kr\n"})
        assert sent.status_code == 503
    assert not list(tmp_path.iterdir())


def test_a_file_leads_to_a_page_of_its_own(shop):
    """And what is wrong with one, to the form it came from."""
    with serving(shop, model="orders") as client:
        sent = client.post("/models/orders/uploads", files={"file": HEADER + b"1,kr\n"})
        assert sent.status_code == 303
        page = client.get(sent.headers["location"])
        assert "1 row waits for the model&#39;s next run, due after" in page.text
        assert '<noscript><meta http-equiv="refresh"' in page.text
        wrong = client.post("/models/orders/uploads", files={"file": b"amount\n1\n"})
        assert (wrong.status_code, "missing: country" in wrong.text) == (422, True)
        assert client.post("/models/none/uploads", files={"file": b"x"}).status_code == 404
        assert client.get("/uploads/1").status_code == 404
        assert client.get("/uploads/x").status_code == 422


@pytest.mark.parametrize("path", ["/", "/?model=orders&entity=a", "/uploads/1", "/uploads/x"])
@pytest.mark.parametrize("cookie", ["", "x", "Ω", "YS13cm9uZy1rZXktb2YtbGVuZ3Ro"])
def test_who_has_no_key_gets_a_form_and_no_data(tmp_path, path, cookie):
    """Whatever is in the cookie; nobody asks the warehouse, which is not there."""
    with serving(settings_of(f"sqlite:///{tmp_path}/none.db"), **KEYS) as client:
        page = client.get(path, headers={"Cookie": f"prediction_api_key={cookie}".encode()})
        assert page.status_code == 401
        assert 'type="password"' in page.text
        assert "orders" not in page.text


def test_a_key_is_kept_where_no_script_and_no_other_site_gets_it(shop):
    """It opens the page and nothing else, and only what that key has sent."""
    with serving(shop, model="orders", **KEYS) as client:
        form = {"key": KEY, "to": "https://evil.example/"}
        signed = client.post("/sign-in", data=form)
        assert (signed.status_code, signed.headers["location"]) == (303, "/")
        flags = signed.headers["set-cookie"]
        assert all(flag in flags for flag in ("HttpOnly", "SameSite=strict", "Path=/"))
        assert KEY not in flags
        behind = client.post("/sign-in", data=form, headers={"X-Forwarded-Proto": "https"})
        assert "Secure" in behind.headers["set-cookie"]
        client.cookies.clear()
        client.cookies.set("prediction_api_key", flags.partition("=")[2].partition(";")[0])
        assert client.get("/").status_code == 200
        assert client.get("/models").status_code == 401
        others = client.post("/requests", content=HEADER + b"1,kr\n", headers=FOREIGN)
        assert client.get(f"/uploads/{others.json()['id']}").status_code == 404
        assert "Max-Age=0" in client.post("/sign-out").headers["set-cookie"]


FOREIGN = bearer(OTHER_KEY) | {"Content-Type": "text/csv"}


def points(*scores, version="v1"):
    """A history of one score an hour."""
    return [
        Point(score, version, MIDNIGHT + number * HOUR, None) for number, score in enumerate(scores)
    ]


def test_a_history_is_a_line_of_steps():
    """Each score from its publication to the next, probabilities between 0 and 1."""
    drawn = plot(points(0.0, 1.0, 0.5), MIDNIGHT + 4 * HOUR)
    assert drawn.path == "M0.0 100.0H250.0L250.0 0.0H500.0L500.0 50.0H1000.0"
    assert (drawn.low, drawn.high) == (0, 1)
    assert len(drawn.dots) == 3


def test_a_gap_is_left_open_and_another_version_marked():
    """What readers could not see is not drawn."""
    first, second = points(0.5, 0.6)
    gone = Point(0.5, "v0", first.since, first.since + HOUR / 2)
    drawn = plot([gone, second], MIDNIGHT + 2 * HOUR)
    assert drawn.path == "M0.0 50.0H250.0M500.0 40.0H1000.0"
    assert drawn.marks == [500.0]


@pytest.mark.parametrize("scores", [[5.0], [1e308, -1e308], [-3.0, -3.0], [0.0]])
def test_any_scores_can_be_drawn(scores):
    """One of them, the largest there are, and the same again and again; now, or long ago."""
    for now in (MIDNIGHT, MIDNIGHT + HOUR, MIDNIGHT + 10_000 * HOUR):
        drawn = plot(points(*scores), now)
        assert all(0 <= x <= 1000 and 0 <= y <= 100 for x, y in drawn.dots)


def test_a_prediction_is_named_in_words(shop):
    """What the chance is of, and what is predicted, as the model's file names them."""
    jobs.predict(shop, "orders", Interval(TRAINED, TRAINED + HOUR))
    with serving(shop, model="orders") as client:
        key = client.get("/v1/models/orders/predictions?limit=1").json()["entity_id"]
        page = client.get(f"/?entity={key}").text
        assert "<h1>Returned orders</h1>" in page
        assert "chance of returned" in page
        assert re.search(r"<dt>Predicted</dt><dd>(kept|returned)</dd>", page)


@pytest.mark.parametrize(("model", "mode"), [("orders", "merge"), ("customers", "replace")])
def test_all_scores_are_shown_with_the_highest(api, model, mode):  # noqa: F811
    """How many lie where, as of the newest publication."""
    rows = {f"k{number}": number / 40 for number in range(40)}
    publish(api.warehouse, tick(0), rows, mode=mode, model=model)
    page = api.get(f"/?model={model}").text
    assert "40 current predictions" in page
    assert "from 0 to 1: 4, 4, 4, 4, 4, 4, 4, 4, 4, 4" in page
    assert page.index(">k39<") < page.index(">k38<")
    publish(api.warehouse, tick(1), {"new": 5.0}, mode=mode, model=model)
    assert f"{41 if mode == 'merge' else 1} current prediction" in api.get(f"/?model={model}").text


def test_keys_that_begin_as_typed_come_first(api):  # noqa: F811
    """In both modes, among many others."""
    rows = dict.fromkeys((f"{letter}-{number}" for letter in "abc" for number in range(30)), 0.5)
    for model, mode in (("orders", "merge"), ("customers", "replace")):
        publish(api.warehouse, tick(0), rows, mode=mode, model=model)
        page = api.get(f"/?model={model}&entity=b-2x").text
        assert re.findall(r">(\w-\d+)</a></li>", page)[:3] == ["b-2", "b-20", "b-21"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "amount fails greater_than_or_equal_to(0.0): -1.0",
            "amount is -1, and must be at least 0",
        ),
        ("x fails less_than_or_equal_to(5): 1e+20", "x is 1e+20, and must be at most 5"),
        ("amount fails not_nullable: None", "amount is missing"),
        ("c fails isin('a', 'b'): 'z'", "c is 'z', and must be one of 'a', 'b'"),
        ("a is not a number: 'many'; b fails finite: inf", None),
        ("whatever: it is", "whatever: it is"),
    ],
)
def test_a_reason_is_told_in_words(reason, told):
    """As a person would; what is not known stays as it is."""
    several = "a is 'many', which is no number; b is too large a number"
    assert plain_reason(reason) == (told or several)
