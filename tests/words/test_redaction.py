"""Secrets are taken out of every text that leaves."""

import random
import string
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.redaction import LINE_LENGTH, first_line, redact

WORDS = st.text(string.ascii_letters + string.digits, min_size=8, max_size=40)
WORD_LETTERS = string.ascii_letters + string.digits + "-_."
PLACES = [
    "postgresql+psycopg://batch:{}@db.internal:5432/serving",
    "could not connect to redis://:{}@cache/0, giving up",
    "https://{}@github.com/org/repo.git",
    "POST https://hooks.slack.com/services/T0000/B0000/{} failed",
    "POST https%3A%2F%2Fhooks.slack.com%2Fservices%2FT0000%2FB0000%2F{} failed",
    "unknown url type: /T00000000/B00000000/{}",
    "host=db user=batch password={} dbname=serving",
    "PASSWORD='{} and more' refused",
    '{{"api_key": "{}"}}',
    "aws_secret_access_key = {}",
    "SLACK_TOKEN={}; retrying",
    "Authorization: Bearer {}",
    "batch-jobs --password {} --json",
    "xoxb-{}",
    "postgresql%2Bpsycopg%3A%2F%2Fbatch%3A{}%40db%3A5432%2Fserving",
    "callback?x=1&access_token%3D{}%26y%3D2",
    "GET /?api_key={}&x=1",
    "{{'password': '{}', 'host': 'db'}}",
    '{{"dsn": "postgresql://batch:{}@db/serving"}}',
    "Server=db;Pwd={};Database=serving",
    "discord refused https://discord.com/api/webhooks/123456789/{}",
    "https://chat.example/hooks/{} answered 500",
    "https://hc-ping.com/{} timed out",
    "https://org.webhook.office.com/webhookb2/{}/IncomingWebhook/x",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "proxy http://user:{}@proxy:3128 and http://other/path",
    "mysql://u:{}@h1,postgres://v:w@h2",
    "token : {}",
    "--api-key   {}",
]


@pytest.mark.parametrize("place", PLACES)
def test_secret_is_taken_out_wherever_it_is_written(place):
    """In each place where a secret is known to turn up, it is gone and the rest is not."""
    text = redact(place.format("s3cr3tCanary"))

    assert "s3cr3tCanary" not in text
    assert "***" in text


@given(st.sampled_from(PLACES), WORDS.map(lambda word: f"Zq{word}"))
def test_no_secret_survives_whatever_it_is_made_of(place, secret):
    """A secret is known by its place, not by its look."""
    assert secret not in redact(place.format(secret))


@given(st.text(string.ascii_letters + string.digits + "!$%^&*()_-+=.,?/:;@#~", min_size=8))
def test_raw_password_in_a_url_does_not_survive(password):
    """A password that should have been percent-encoded, and was not, is taken out whole."""
    assert redact(f"postgresql://batch:{password}@db/serving") == "postgresql://***@db/serving"


@given(WORDS)
def test_known_secret_is_taken_out_in_every_form(secret):
    """A secret that is known goes, plain and percent-encoded."""
    known = f"/{secret}/x"

    assert redact(f"{known} {quote(known, safe='')}", [known]) == "*** ***"


def test_of_a_thousand_texts_none_leaks():
    """Errors as they come, with a secret of odd characters in one of its places."""
    chance = random.Random(20261122)
    raw = string.ascii_letters + string.digits + "!$%^*()_-+=.,?/:@#~"
    leaks = []
    for number in range(1_000):
        place = chance.choice(PLACES)
        letters = raw if "://batch:{}@" in place and "dsn" not in place else WORD_LETTERS
        secret = "".join(chance.choice(letters) for _ in range(chance.randint(10, 60)))
        noise = " ".join(
            "".join(chance.choice(string.printable) for _ in range(chance.randint(0, 30)))
            for _ in range(3)
        )
        text = f"{noise} {place.format(secret)} {noise}"
        leaks += [(number, text) for told in (redact(text),) if secret in told]
    assert leaks == []


@pytest.mark.parametrize(
    "piece",
    [
        *("a-", "a", "a.", "a=", "a:", "--a-", "--a ", "a://", "a://b:", "a@", "a://a:a@", "%40"),
        *("%3a%2f%2f", "password", "password=", "password='", 'password="\\"', "token: "),
        *("hooks.slack.com/", "hooks.slack.com/a/", "http://a/hooks/", "/hooks/", "T", "TAA/"),
        *("TAA/BAA/", "xoxb-", "bot1234567:", "bearer ", "basic  ", "AKIA", "AKIAAAAAAAAAAAAA"),
        *("ghp_", "ghp_0123456789abcdef", "eyJ-", "eyJaaaaaa.", "eyJ", " ", "'", '"', "\\"),
        *("-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "-", "%3d", "a%3a", "secret.", "=", ": "),
        "hc-ping.com/",
    ],
)
def test_time_grows_with_the_length_and_no_faster(piece):
    """The longest of errors holds no alert up: 100 kB of the worst text of each pattern."""
    text = (piece * 100_000)[:100_000]
    begun = time.process_time()
    redact(text)
    redact(f"{text} x")
    assert time.process_time() - begun < 0.5  # 0.1 s where nothing else runs; it took minutes


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghij",
        "eyJhbGciOi.eyJzdWIiOi.SflKxwRJSM",
        "T00000000/B00000000/XXXXXXXX",
    ],
)
def test_token_of_a_known_kind_is_taken_out_by_its_look(token):
    """Keys of AWS, GitHub and Slack and JSON web tokens need no name beside them."""
    assert redact(f"refused {token}, see the log") == "refused ***, see the log"


@given(st.text())
def test_redacting_twice_changes_nothing(text):
    """A redacted text has nothing left to take out."""
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'dep_delay'",
        "flights: 3 duplicate keys, for example 2013-01-01T05:15/UA/1545/EWR",
        "no such table: flights",
        "https://airflow.apache.org/docs/apache-airflow/stable/index.html",
        "[2026-11-22T14:50:00Z, 2026-11-22T15:00:00Z) ends in the future",
    ],
)
def test_ordinary_error_is_left_as_it_is(text):
    """What helps to find the fault is not taken out with the secrets."""
    assert redact(text) == text


def test_first_line_names_the_class_and_stops_at_the_line():
    """Of a long exception only its class and first line are told."""
    assert (
        first_line(ValueError("\n  3 rows are wrong \nrow 1: ..."))
        == "ValueError: 3 rows are wrong"
    )


def test_exception_without_a_message_is_told_by_its_class():
    """An empty message leaves the class."""
    assert first_line(MemoryError()) == "MemoryError"


def test_exception_that_cannot_be_printed_is_told_by_its_class():
    """A broken `__str__` does not break the alert."""

    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no")

    assert first_line(Broken()) == "Broken"


@given(st.text(), st.integers(0, 5000))
def test_first_line_is_short_and_one_line(text, repeats):
    """However long and odd the exception, its line fits a phone."""
    line = first_line(ValueError(text + "x y" * repeats))

    assert len(line) <= LINE_LENGTH
    assert line.isprintable()


def test_secret_cut_in_two_does_not_survive():
    """A secret at the end of what is read is not left as a half that no pattern knows."""
    error = ValueError("a " * 1_990 + "password=" + "s3cr3t" * 50)

    assert "s3cr3t" not in first_line(error)
