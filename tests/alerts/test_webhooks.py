"""Services hear of each publication and each end of a request, and can verify that it is so."""

import base64
import hmac
import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text

from batch_jobs.alerts import channels, delivery, outbox_messages, outbox_status, webhooks
from batch_jobs.alerts.problems import Message
from batch_jobs.alerts.webhooks import SignedWebhook
from batch_jobs.database.transactions import stored_time
from batch_jobs.errors import ConfigurationError
from tests.support.attempts import ask, publish, tick

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
CANARY = "T0CANARY0-s3cr3t"


@contextmanager
def service(*statuses, location="/elsewhere"):
    """A real HTTP service, which answers so, and 204 from then on; its URL and what it was sent."""
    left, seen = list(statuses), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.append((self.path, headers, body))
            self.send_response(left.pop(0) if left else 204)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}/{CANARY}", seen
        finally:
            made.shutdown()
            thread.join()


def told_by(url):
    """The channels of a deployment that tells this service."""
    return channels.configured({"BATCH_JOBS_WEBHOOKS": url, "BATCH_JOBS_WEBHOOK_SECRET": SECRET})


def flush(warehouse, found, later=timedelta()):
    """Write and send what there is; how many were taken."""
    now = datetime.now(UTC) + later
    delivery.collect(warehouse, found, now)
    return delivery.send_waiting(warehouse, found, 10, lambda: now)


def verified(headers, body):
    """What an event says, if its signature holds, as a receiver finds out."""
    told = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    wanted = base64.b64encode(hmac.digest(KEY, told, "sha256")).decode()
    assert f"v1,{wanted}" in headers["webhook-signature"].split()
    return json.loads(body)


def test_a_publication_and_the_end_of_a_request_are_told_once(warehouse):
    """In their order, verifiable, with what a receiver needs to ask for the rest."""
    run = publish(warehouse, tick(0), {"a": 0.1, "b": 0.2})
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO requests (request_id, model, client, request_sha256, created_at,
                  rows_read, state, rows_scored, rows_rejected, rows_skipped, finished_at, error)
                VALUES (7, 'orders', '', '', :now, 3, 'failed', 0, 0, 0, :now, 'why')"""),
            {"now": stored_time(datetime.now(UTC))},
        )
    with service() as (url, seen):
        found = told_by(url)
        assert [flush(warehouse, found), flush(warehouse, found)] == [2, 0]
    first, second = (verified(headers, body) for _, headers, body in seen)
    assert (first["type"], second["type"]) == ("predictions.published", "request.failed")
    assert first["data"] == {
        "run_id": run.run_id,
        "model": "orders",
        "model_version": "v1",
        "row_count": 2,
        "interval_start": "2024-03-01T00:00:00Z",
        "interval_end": "2024-03-01T00:10:00Z",
    }
    assert (second["data"]["request_id"], second["data"]["url"]) == (7, "/v1/requests/7")
    assert second["data"]["rows"]["read"] == 3


def test_what_is_not_taken_is_sent_again_by_the_same_id(warehouse):
    """A redirect is not followed, and no address or secret is told of; others wait meanwhile."""
    publish(warehouse, tick(0), {"a": 0.1})
    publish(warehouse, tick(1), {"a": 0.2})
    with service(500, 302) as (url, seen):
        found = told_by(url)
        assert flush(warehouse, found) == 0
        assert flush(warehouse, found) == 0  # it rests
        [lacking] = outbox_status.undelivered(warehouse, datetime.now(UTC))
        assert str(lacking).startswith("events to webhook-")
        assert "2 messages wait" in str(lacking)
        assert str(lacking).count("it answered 500") == 1
        assert flush(warehouse, found, timedelta(minutes=5)) == 0
        assert flush(warehouse, found, timedelta(minutes=20)) == 2
    assert CANARY not in str(lacking) + repr(found)
    assert {path for path, _, _ in seen} == {f"/{CANARY}"}
    ids = [headers["webhook-id"] for _, headers, _ in seen]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    for _, headers, body in seen:
        verified(headers, body)


def test_people_are_told_nothing_of_events_and_programs_nothing_else(warehouse):
    """Alerts wait for a channel for people, whatever services there are."""
    publish(warehouse, tick(0), {"a": 0.1})
    now = datetime.now(UTC)
    outbox_messages.write_alone(warehouse, "alert", Message("line", "text"), now)
    with service() as (url, seen):
        assert flush(warehouse, told_by(url)) == 1
    assert [json.loads(body)["type"] for _, _, body in seen] == ["predictions.published"]
    [lacking] = outbox_status.undelivered(warehouse, datetime.now(UTC))
    assert str(lacking).startswith("alerts, for want of a channel: 1 message waits")
    assert ask(warehouse, "SELECT count(*) FROM outbox_deliveries WHERE sent_at IS NULL") == [(0,)]


def test_without_a_service_no_event_is_kept(warehouse):
    """And one that is set later is told of the last hour alone."""
    publish(warehouse, tick(0), {"a": 0.1})
    assert flush(warehouse, []) == 0
    assert ask(warehouse, "SELECT count(*) FROM outbox_messages") == [(0,)]
    with service() as (url, seen):
        assert flush(warehouse, told_by(url), timedelta(hours=2)) == 0
        assert flush(warehouse, told_by(f"{url}/2")) == 1
    assert len(seen) == 1


def test_a_signature_is_that_of_the_standards_example():
    """So that its libraries verify it; and each key signs, while one takes another's place."""
    [hook] = webhooks.configured(
        "https://x.example/h", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    ).values()
    signed = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert hook.signed(*signed) == expected
    both = SignedWebhook(hook.url, (*hook.keys, KEY)).signed(*signed).split()
    assert (both[0], len(both)) == (expected, 2)


@pytest.mark.parametrize(
    ("addresses", "secret", "words"),
    [
        ("https://x.example/h", "", "needs BATCH_JOBS_WEBHOOK_SECRET, to sign by: make one"),
        ("https://x.example/h", f"{CANARY}", "is no whsec_ with 24 to 64 bytes in base64"),
        ("https://x.example/h", "whsec_AAAA", "24 to 64 bytes"),
        (f"https://x.example/h file:///{CANARY}", SECRET, "address 2 of BATCH_JOBS_WEBHOOKS is"),
        ("https://", SECRET, "address 1 of BATCH_JOBS_WEBHOOKS is none"),
    ],
)
def test_what_is_set_wrongly_is_told_without_its_value(addresses, secret, words):
    """Before anything is sent."""
    environ = {"BATCH_JOBS_WEBHOOKS": addresses, "BATCH_JOBS_WEBHOOK_SECRET": secret}
    with pytest.raises(ConfigurationError, match=words) as caught:
        channels.configured(environ)
    assert CANARY not in str(caught.value)
