"""What stands before every route of the API, whatever is asked."""

import asyncio
import socket
from ipaddress import ip_network

import pytest
from limits import parse

from batch_jobs.database.warehouse import Warehouse
from prediction_api.callers import address_of
from prediction_api.config import Config
from prediction_api.rates import Rate
from tests.support.api import KEY, OTHER_KEY, ask, bearer, detail, serving, settings_of
from tests.support.attempts import publish, tick
from tests.support.redis_server import RedisServer

ELSEWHERE = ("203.0.113.5", 8000)


@pytest.fixture
def settings(tmp_path):
    """Settings of a warehouse that is not there: what is tested here comes before it."""
    return settings_of(f"sqlite:///{tmp_path}/w.db")


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer("ключ".encode()), {"Authorization": f"Basic {KEY}"}],
)
def test_who_has_no_key_is_not_let_in(settings, headers):
    """Neither without one, nor with a wrong one, one of odd letters, or one in another form."""
    with serving(settings, keys=(KEY, OTHER_KEY)) as client:
        assert detail(client.get("/models", headers=headers), 401).startswith("send a key")
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_key_lets_in(settings, key):
    """From any machine."""
    config = Config(settings=settings, keys=(KEY, OTHER_KEY))
    headers = [(b"authorization", f"Bearer {key}".encode())]
    assert ask(config, "/metrics", headers=headers, server=ELSEWHERE) == 200


@pytest.mark.parametrize(
    ("server", "status"),
    [(ELSEWHERE, 403), (("127.0.0.1", 80), 200), (("::1", 80), 200), (("/run/a.sock", None), 200)],
)
def test_without_keys_only_this_machine_is_answered(settings, server, status):
    """Even if somebody starts the app on another address by other means than the command."""
    assert ask(Config(settings=settings), "/metrics", server=server) == status


def test_no_web_page_can_make_a_browser_ask(settings):
    """A name that somebody points at 127.0.0.1 is not ours."""
    with serving(settings) as client:
        answer = client.get("/healthz", headers={"Host": "evil.example"})
        assert "PREDICTION_API_HOSTS" in detail(answer, 400)
        assert answer.json()["type"] == "/problems/unknown-host"
        for host in ("0.0.0.0:8000", "[::1]:80", "[::1]", "LOCALHOST"):
            assert client.get("/healthz", headers={"Host": host}).status_code == 200
    with serving(settings, hosts=("api.example.com", "*.in.example.com")) as client:
        for host, status in (("api.example.com", 200), ("a.in.example.com:1", 200), ("in.x", 400)):
            assert client.get("/healthz", headers={"Host": host}).status_code == status


def test_a_page_of_another_site_is_told_by_which_setting_it_could_ask(settings):
    """Before it asks, as browsers find out; a page that is named may."""
    preflight = {"Access-Control-Request-Method": "GET"}
    with serving(settings, origins=("https://app.example.com",)) as client:
        for origin, status in (("https://app.example.com", 200), ("https://other.example", 403)):
            answer = client.options("/v1/models", headers={"Origin": origin, **preflight})
            assert answer.status_code == status
        assert "PREDICTION_API_ORIGINS" in detail(answer, 403)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.5", "198.51.100.1", "203.0.113.5"),  # no proxy of ours: anybody writes it
        ("10.0.0.2", "", "10.0.0.2"),
        ("10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.2", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.2", "6.6.6.6, 198.51.100.1, 10.0.0.3", "198.51.100.1"),  # the first is made up
        ("10.0.0.2", "[2001:db8::1]:80", "2001:db8::1"),
        ("10.0.0.2", "198.51.100.1, nonsense", "10.0.0.2"),
    ],
)
def test_behind_a_proxy_that_is_named_a_client_is_who_came_to_it(peer, forwarded, address):
    """Else a rate would take all of them for one; and nobody can make himself another one."""
    scope = {"client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
    assert address_of(scope, (ip_network("10.0.0.0/8"),)) == address
    assert address_of(scope, ()) == peer


def test_replicas_count_together_what_a_client_asks_and_alone_without_their_store():
    """A real Redis, which goes away meanwhile: nobody waits for it, and a rate there is still."""

    async def asked(replicas, times):
        return [bool(await replicas[n % 2].exceeded("a client")) for n in range(times)]

    async def tried():
        with RedisServer() as redis:
            replicas = [Rate(parse("4/hour"), redis.url) for _ in range(2)]
            together = await asked(replicas, 6)
        return together, await asked(replicas, 10)

    together, alone = asyncio.run(tried())
    assert together == [False] * 4 + [True] * 2
    assert alone == [False] * 8 + [True] * 2


def test_a_head_is_answered_once_and_at_once(settings):
    """Also where who gets listens for ever; the connection serves the next."""
    with serving(settings_with_runs(settings)) as client:
        head = client.head("/v1/models/orders/events")
        assert (head.status_code, head.headers["content-type"][:17]) == (200, "text/event-stream")
        got = client.get("/healthz")
        head = client.head("/healthz")
        assert (head.content, head.headers["content-length"]) == (b"", str(len(got.content)))
        refused = client.put("/healthz")
        assert (refused.headers["allow"], detail(refused, 405)) == (
            "GET, HEAD",
            "this path is asked by GET, HEAD",
        )


def settings_with_runs(settings):
    """The same, once something is published."""
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    publish(warehouse, tick(0), {"a": 0.1})
    return settings


def test_a_client_that_asks_too_often_has_to_wait(settings):
    """It is told how long; who has a key of his own is counted by himself."""
    with serving(settings, keys=(KEY, OTHER_KEY), rate=parse("3/hour")) as client:
        for _ in range(3):
            assert client.get("/metrics", headers=bearer(KEY)).status_code == 200
        refused = client.get("/metrics", headers=bearer(KEY))
        assert "more than 3 per 1 hour" in detail(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert client.get("/metrics", headers=bearer(OTHER_KEY)).status_code == 200


def test_nobody_gets_a_rate_of_his_own_by_a_key_that_he_made_up(settings):
    """Wrong keys are counted by where they come from."""
    with serving(settings, keys=(KEY,), rate=parse("3/hour")) as client:
        answers = [client.get("/metrics", headers=bearer(f"guess-{n}")) for n in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]


def test_what_is_not_http_json_or_a_route_is_a_problem(settings):
    """Errors of the framework have the same form as ours."""
    with serving(settings) as client:
        assert detail(client.get("/nothing"), 404).startswith("there is no such path")
        assert detail(client.delete("/healthz"), 405) == "this path is asked by GET, HEAD"


@pytest.mark.parametrize("database", ["sqlite", "refused", "silent"])
def test_a_warehouse_that_is_down_is_told_as_such(tmp_path, database, monkeypatch):
    """503 and when to try again: no file, a closed port, a host that never answers."""
    monkeypatch.setattr("prediction_api.database.CONNECT_SECONDS", 0.2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if database == "silent":
            listening.listen()
        port = listening.getsockname()[1]
        url = f"postgresql+psycopg://a:b@127.0.0.1:{port}/warehouse"
        url = f"sqlite:///{tmp_path}/w.db" if database == "sqlite" else url
        with serving(settings_of(url), seconds=0.5) as client:
            for path in ("/readyz", "/models", "/models/orders/status"):
                answer = client.get(path)
                assert detail(answer, 503)
                assert answer.headers["retry-after"] == "2"
            assert client.get("/healthz").status_code == 200
            monkeypatch.setattr("prediction_api.database.CONNECT_SECONDS", 60)
            monkeypatch.setattr("prediction_api.routers.probes.AT_ONCE_SECONDS", 0.1)
            assert "prediction_api_warehouse_up 0.0" in client.get("/metrics").text


def test_the_metrics_count_routes_and_not_what_was_asked(settings):
    """Their number is bounded whatever clients ask for."""
    with serving(settings) as client:
        for number in range(3):
            client.get(f"/models/orders/predictions/secret-{number}")
            client.request("TRACE", f"/nothing-{number}")
        told = client.get("/metrics").text
    route = "/models/{model}/predictions/{entity_id:key}"
    assert f'prediction_api_requests_total{{method="GET",route="{route}",status="503"}} 3.0' in told
    assert 'prediction_api_requests_total{method="other",route="none",status="404"} 3.0' in told
    assert "secret" not in told


def test_an_error_of_ours_tells_nothing_of_itself(settings, monkeypatch, caplog):
    """500, and the rest is in the log."""

    def fail(_):
        raise RuntimeError("a secret")

    monkeypatch.setattr("prediction_api.routers.probes.state_of", fail)
    with serving(settings) as client:
        assert "secret" not in detail(client.get("/readyz"), 500)
    assert "a secret" in caplog.text


def test_what_can_be_asked_is_told_to_who_may_ask(settings):
    """By the page's cookie or a program's key; a probe without one learns that it is ready."""
    with serving(settings, keys=(KEY,), hosts=("*",), model="orders") as client:
        for path in ("/docs", "/openapi.json"):
            assert client.get(path).status_code == 401
        told = client.get("/openapi.json", headers=bearer(KEY)).json()
        assert told["security"] == [{"key": []}]
        assert (
            client.post("/sign-in", data={"key": KEY, "to": "/docs"}).headers["location"] == "/docs"
        )
        page = client.get("/docs")
        assert client.get("/openapi.json").json() == told
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://127.0.0.1", "")
    assert "https://" not in page.text
    assert all(path in page.text for path in told["paths"])


def test_without_keys_no_program_is_told_to_send_one(settings):
    """OpenAPI has no word of it."""
    with serving(settings) as client:
        told = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 200
    assert "security" not in told
    assert "securitySchemes" not in told["components"]


def test_a_probe_without_a_key_learns_that_the_server_is_ready(warehouse):
    """And nothing of the models; who has one learns how fresh they are."""
    publish(warehouse, tick(0), {"a": 0.5})
    url = warehouse._url.render_as_string(hide_password=False)
    with serving(settings_of(url), keys=(KEY,), hosts=("*",)) as client:
        assert client.get("/readyz").json() == {"ready": True, "models": [], "watch": None}
        [model] = client.get("/readyz", headers=bearer(KEY)).json()["models"]
    assert model["model"] == "orders"
