"""A model store behind a URL: a real server of S3's interface, and what happens without it.

Cases 59 and 60 of the failure modes.
"""

import hashlib
import pickle
import random
import shutil
import socket
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from batch_jobs.database import leases
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError, ConfigurationError, StoreUnavailableError
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion, remote_folder
from batch_jobs.registry.remote_folder import RemoteFolder
from batch_jobs.registry.store import ModelStore
from batch_jobs.runs import jobs
from batch_jobs.settings import Settings
from batch_jobs.training import train
from tests.support.artifacts import GOOD, Hostile, version_of
from tests.support.attempts import ask
from tests.support.planned import plan
from tests.support.postgres_server import free_port
from tests.support.s3_server import SECRET, forget_clients

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
HOURS = [Interval(TRAINED + timedelta(hours=n), TRAINED + timedelta(hours=n + 1)) for n in range(4)]
ARTIFACT = "models/orders/v1/model.joblib"
MANIFEST = {"sha256": hashlib.sha256(GOOD).hexdigest()}
# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


@pytest.fixture
def store(bucket):
    """A store in a bucket with one version, and no copies."""
    made = ModelStore(bucket.url)
    made.write("orders", "v1", GOOD, MANIFEST)
    return made


@pytest.fixture
def copied(bucket, store, tmp_path):
    """The same with a copy on this machine."""
    made = ModelStore(bucket.url, str(tmp_path / "copies"))
    made.read(version_of(GOOD))
    return made


@pytest.fixture
def remote_shop(shop, bucket, tmp_path):
    """The shop with its store in a bucket, and a copy of its champion."""
    settings = replace(shop, model_store=bucket.url, model_cache=str(tmp_path / "copies"))
    champion = _champion(settings)
    artifact = ModelStore(shop.model_store).read(champion)
    ModelStore(bucket.url).write("orders", champion.version, artifact, champion.manifest)
    jobs.predict(settings, "orders", HOURS[0])
    return settings


def _champion(settings):
    return champions.champion(Warehouse(settings.warehouse), "orders")


def _states(settings):
    return ask(Warehouse(settings.warehouse), "SELECT state FROM prediction_runs ORDER BY run_id")


def test_what_is_written_to_a_bucket_is_read_from_it(bucket, store):
    """Artifact and manifest, under the same names as in a folder."""
    assert store.read(version_of(GOOD)) == GOOD
    assert bucket.objects() == ["models/orders/v1/manifest.json", ARTIFACT]


def test_what_is_removed_from_a_bucket_is_gone(bucket, store):
    """All of it, also what is there in part; and what is not there at all is gone already."""
    store.write("orders", "v2", GOOD, MANIFEST)
    store.remove("orders", "v2")
    store.remove("orders", "v2")
    assert bucket.objects() == ["models/orders/v1/manifest.json", ARTIFACT]


@on_sqlite
def test_a_model_is_trained_promoted_and_served_from_a_bucket(shop, bucket, tmp_path):
    """Nothing of it lies in a folder but the copy of what was loaded."""
    shutil.rmtree(shop.model_store)
    settings = replace(shop, model_store=bucket.url, model_cache=str(tmp_path / "copies"))
    trained = train.train(settings, "orders", TRAINED + timedelta(hours=6))
    promotion.promote(settings, "orders", trained.version, actor="tests", reason="in a bucket")
    assert jobs.predict(settings, "orders", HOURS[0]).model_version == trained.version
    names = {name.rpartition("/")[2] for name in bucket.objects()}
    assert names == {"gate.html", "manifest.json", "model.joblib"}
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [trained.sha256]


@pytest.mark.failure_mode(41)
def test_every_flipped_bit_in_a_bucket_is_found(bucket, store):
    """At twenty places of the object."""
    for place in random.Random(1).sample(range(len(GOOD)), 20):
        bucket.write(ARTIFACT, GOOD[:place] + bytes([GOOD[place] ^ 4]) + GOOD[place + 1 :])
        with pytest.raises(ArtifactError, match="has changed: sha256"):
            store.read(version_of(GOOD))


@pytest.mark.failure_mode(42)
def test_a_hostile_object_is_never_unpickled_nor_copied(bucket, store, tmp_path):
    """It is refused before anything is done with it."""
    marker = tmp_path / "marker"
    bucket.write(ARTIFACT, pickle.dumps(Hostile(str(marker))))
    with pytest.raises(ArtifactError, match="has changed"):
        ModelStore(bucket.url, str(tmp_path / "copies")).read(version_of(GOOD))
    assert (marker.exists(), (tmp_path / "copies").exists()) == (False, False)


def test_what_was_taken_out_of_a_bucket_is_gone_though_there_is_a_copy(bucket, copied):
    """The store has answered; whoever took the version away did not want it to serve."""
    bucket.remove(ARTIFACT)
    with pytest.raises(ArtifactError, match=f"{ARTIFACT}: No such file"):
        copied.read(version_of(GOOD))


def test_a_version_without_its_manifest_was_never_written(bucket, store, monkeypatch):
    """Artifact first, manifest last: a training that was cut off between them is repeated."""
    write = RemoteFolder._write

    def lose_power(self, content, *names):
        if names[-1] == "manifest.json":
            raise KeyboardInterrupt
        write(self, content, *names)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "_write", lose_power)
        with pytest.raises(KeyboardInterrupt):
            store.write("orders", "v2", GOOD, MANIFEST)
    assert [key for key in bucket.objects() if "v2" in key] == ["models/orders/v2/model.joblib"]
    store.write("orders", "v2", GOOD, MANIFEST)
    assert len([key for key in bucket.objects() if "v2" in key]) == 2


def test_a_version_in_a_bucket_is_kept_as_it_was_first_written(bucket, store):
    """And what lies beside it is of the last training."""
    store.write("orders", "v1", b"other", {"first": False}, {"gate.html": b"1"})
    store.write("orders", "v1", b"other", {"first": False}, {"gate.html": b"2"})
    assert store.read(version_of(GOOD)) == GOOD
    assert bucket.read("models/orders/v1/gate.html") == b"2"


def test_a_bucket_that_does_not_exist_is_found_out_before_training_and_not_made(bucket):
    """A typing error makes no bucket."""
    buckets = bucket.all_buckets()
    with pytest.raises(ConfigurationError, match="nobodys-bucket/models cannot be written: No su"):
        ModelStore("s3://nobodys-bucket/models").require_writable()
    assert bucket.all_buckets() == buckets


def test_finding_out_leaves_nothing_in_a_bucket(bucket):
    """Not even the probe."""
    ModelStore(bucket.url).require_writable()
    assert bucket.objects() == []


@pytest.mark.failure_mode(59)
def test_a_store_out_of_reach_is_stood_in_for_by_its_copy(s3, bucket, copied, store, caplog):
    """With a warning; without a copy there is one error, which a retry may cure."""
    with s3.away():
        assert copied.read(version_of(GOOD)) == GOOD
        with pytest.raises(StoreUnavailableError, match="there is no copy of it") as caught:
            store.read(version_of(GOOD))
    assert caught.value.exit_code == 1
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"the model store {bucket.url} did not answer: Endpoint")
    assert warning.endswith("the artifact of orders v1 is loaded from its verified copy")
    assert store.read(version_of(GOOD)) == GOOD


@on_sqlite
@pytest.mark.failure_mode(59)
def test_a_champion_with_a_copy_serves_while_the_store_is_away(remote_shop, s3, caplog):
    """Predictions are published as ever."""
    with s3.away():
        jobs.predict(remote_shop, "orders", HOURS[1])
    assert "is loaded from its verified copy" in caplog.text
    assert _states(remote_shop) == [("published",), ("published",)]


@on_sqlite
@pytest.mark.failure_mode(59)
def test_a_run_that_found_neither_store_nor_copy_is_made_good_by_a_retry(remote_shop, s3, tmp_path):
    """The run is not given up, and its retry publishes it."""
    run = plan(remote_shop, "orders", HOURS[1], leases.new_token(), parts=1)
    shutil.rmtree(tmp_path / "copies")
    with s3.away(), pytest.raises(StoreUnavailableError):
        jobs.score(remote_shop, "orders", run.run_id, 0, run.token)
    jobs.score(remote_shop, "orders", run.run_id, 0, leases.new_token())
    assert jobs.publish(remote_shop, run.run_id).state == "published"


@pytest.fixture
def behind(bucket, copied, tmp_path, monkeypatch):
    """The store with its copy, seen by a client that finds another server: `behind(port)`."""

    def find(port):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        forget_clients()
        return ModelStore(bucket.url, str(tmp_path / "copies"))

    return find


@pytest.mark.failure_mode(59)
def test_a_server_that_never_answers_is_not_waited_for(behind, monkeypatch, caplog):
    """It accepts, and then it is silent; the copy serves."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(remote_folder, "ANSWER_SECONDS", 1)
        assert behind(silent.getsockname()[1]).read(version_of(GOOD)) == GOOD
    assert "did not answer: no answer within 1 s; the artifact of orders v1 is" in caplog.text


class Refusing(BaseHTTPRequestHandler):
    """A store that lets nobody in any more, as when credentials have expired."""

    def do_HEAD(self):
        """Refuse to read."""
        self.send_error(403)

    def do_PUT(self):
        """Refuse to write."""
        self.send_error(403)

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.failure_mode(59)
def test_a_store_that_refuses_is_stood_in_for_by_its_copy(behind, caplog):
    """Credentials expire at night; but training is told at once that it may not write."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        store = behind(server.server_port)
        assert store.read(version_of(GOOD)) == GOOD
        with pytest.raises(ConfigurationError, match="cannot be written: PermissionError: Forb"):
            store.require_writable()
        server.shutdown()
    assert "refuses: PermissionError: Forbidden; the artifact of orders v1 is loaded" in caplog.text


def test_credentials_are_in_no_message(tmp_path, caplog):
    """Neither from a URL nor from its own library's error; and the settings show no URL."""
    url = f"ftp://writer:{SECRET}@127.0.0.1:{free_port()}/models"
    with pytest.raises(
        StoreUnavailableError, match=r"ftp://\*\*\*@127.0.0.1:\d+/models did"
    ) as told:
        ModelStore(url).read(version_of(GOOD))
    with pytest.raises(ConfigurationError, match=r"nosuch://\*\*\*@here cannot be opened") as odd:
        ModelStore(f"nosuch://writer:{SECRET}@here?secret={SECRET}").require_writable()
    settings = Settings(warehouse="sqlite://", model_store=url)
    shown = [*traceback.format_exception(told.value), *traceback.format_exception(odd.value)]
    assert SECRET not in "".join([*shown, repr(settings), caplog.text])


def test_what_a_library_says_of_its_own_options_is_not_told(bucket, store):
    """Errors are told again without any text of the options."""
    store._files._opened[0].storage_options["key"] = SECRET
    told = store._files._told(ValueError(f"bad signature for {SECRET}"))
    assert told == "ValueError: bad signature for ***"


@pytest.mark.parametrize(
    ("url", "words"),
    [("nosuch://models", "Protocol not known: nosuch"), ("gs://bucket/models", "install gcsfs")],
)
def test_a_url_that_nobody_can_open_is_a_wrong_setting(url, words):
    """The error says what could be missing."""
    with pytest.raises(
        ConfigurationError, match=rf"BATCH_JOBS_MODEL_STORE: .*{words}.*pip install"
    ):
        ModelStore(url).require_writable()


def test_a_folder_may_be_written_as_a_url(tmp_path):
    """It is a folder all the same, with its rights looked at; other spellings are refused."""
    store = ModelStore(f"file://{tmp_path}/models")
    store.write("orders", "v1", GOOD, MANIFEST)
    assert (tmp_path / ARTIFACT).read_bytes() == GOOD
    with pytest.raises(ConfigurationError, match=r"write local://.* as a folder"):
        ModelStore(f"local://{tmp_path}/models").require_writable()


def test_a_server_that_is_no_object_store_keeps_versions_too():
    """Folders are made where there are such things."""
    store = ModelStore("memory://models")
    store.require_writable()
    store.write("orders", "v1", GOOD, MANIFEST)
    assert store.read(version_of(GOOD)) == GOOD
    with pytest.raises(ArtifactError, match=r"v2/model.joblib: No such file"):
        store.read(version_of(GOOD, "v2"))
