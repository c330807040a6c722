"""A few rows are computed at once, in three forms; and pages of named sites may ask."""

import pytest

from tests.support.api import KEY, bearer, detail, serving

ORDERS = [{"amount": 90.0, "country": "kr"}, {"amount": 20, "country": "us"}]
LISTED = [[90.0, "kr"], [20, "us"]]
COLUMNS = {"amount": [90.0, 20], "country": ["kr", "us"]}


@pytest.fixture
def client(shop):
    """A client of a server of the shop."""
    with serving(shop, model="orders") as made:
        yield made


def tensors(**columns):
    """Columns as inputs of the Open Inference Protocol."""
    return [
        {"name": name, "shape": [len(data)], "datatype": "FP64", "data": data}
        for name, data in columns.items()
    ]


def test_every_form_gives_what_one_row_after_the_other_would(client):
    """By name or listed, by rows or columns; each is kept."""
    alone = [client.post("/v1/predict", json={"features": row}).json() for row in ORDERS]
    scores = [one["score"] for one in alone]
    for rows in (ORDERS, LISTED):
        told = client.post("/v1/models/orders/predictions:compute", json={"rows": rows}).json()
        assert [one["score"] for one in told["predictions"]] == scores
        kept = client.get(f"/v1/predict/{told['predictions'][1]['id']}").json()
        assert (kept["score"], kept["features"]["country"]) == (scores[1], "us")
    told = client.post("/v2/models/orders/infer", json={"id": "7", "inputs": tensors(**COLUMNS)})
    assert (told.json()["id"], told.json()["model_version"]) == ("7", alone[0]["model_version"])
    [score, label] = told.json()["outputs"]
    assert (score["name"], score["shape"], score["data"]) == ("score", [2], scores)
    assert label["data"] == [one["result"] for one in alone]
    for body in (
        {"dataframe_split": {"columns": list(COLUMNS), "data": LISTED}},
        {"dataframe_records": ORDERS},
        {"instances": LISTED},
        {"inputs": COLUMNS},
    ):
        for path in ("/invocations", "/v1/models/orders/invocations"):
            told = client.post(path, json=body).json()
            assert [one["score"] for one in told["predictions"]] == scores, body


def test_a_client_of_the_protocol_finds_its_way(client):
    """Health, what the model is asked for, and one input that has all features."""
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/orders/ready"):
        assert client.get(path).status_code == 200
    told = client.get("/v2/models/orders").json()
    assert [one["name"] for one in told["inputs"]] == ["amount", "country"]
    fitting = {"inputs": tensors(**COLUMNS)}
    assert "no file" in detail(client.post("/v2/models/none/infer", json=fitting), 404)
    whole = {"name": "all", "shape": [2, 2], "datatype": "BYTES", "data": LISTED}
    assert client.post("/v2/models/orders/infer", json={"inputs": [whole]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"inputs": tensors(amount=[1, 2], country=["kr"])}, 422, "not all as many values"),
        ({"inputs": tensors(amount=[1] * 101, country=["kr"] * 101)}, 413, "101 rows; send 1 to"),
        ({"inputs": tensors(amount=[], country=[])}, 422, "0 rows"),
        ({"inputs": tensors(amount=[-1], country=["kr"])}, 422, "does not fit"),
        ({"inputs": tensors(amount=[1])}, 422, "does not fit"),
        (
            {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [1]}]},
            422,
            "shape",
        ),
    ],
)
def test_what_does_not_fit_is_told(client, body, status, told):
    """With the number of the row, and what is done with many."""
    answer = client.post("/v2/models/orders/infer", json=body)
    assert told in detail(answer, status)
    if told == "does not fit":
        assert answer.json()["errors"][0]["where"].startswith("body.rows.0.")


def test_only_pages_of_named_sites_may_ask(shop):
    """A browser asks first whether it may; without the setting no site may."""
    site, other = "https://app.example.com", "https://evil.example"
    wanted = {"Method": "POST", "Headers": "authorization"}
    asked = {f"Access-Control-Request-{name}": value for name, value in wanted.items()}
    keys = {"keys": (KEY,), "hosts": ("*",), "model": "orders"}
    path, allowed = "/v1/requests", "access-control-allow-origin"
    with serving(shop, origins=(site,), **keys) as client:
        for origin, told in ((site, site), (other, None)):
            answer = client.options(path, headers={"Origin": origin, **asked})
            assert answer.headers.get(allowed) == told
            sent = bearer(KEY) | {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            answer = client.post(path, json={"rows": ORDERS}, headers=sent)
            assert (answer.status_code, answer.headers.get(allowed)) == (202 if told else 403, told)
        assert "access-control-allow-credentials" not in answer.headers
    with serving(shop, **keys) as client:
        answer = client.options(path, headers={"Origin": site, **asked})
        assert (answer.status_code, answer.headers.get(allowed)) == (405, None)
