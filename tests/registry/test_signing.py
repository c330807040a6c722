"""Nothing loads that training did not make: neither another file nor a manifest edited with it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from sqlalchemy import text

from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError, ConfigurationError
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion, signatures, signing
from batch_jobs.registry.loading import load_version
from batch_jobs.registry.versions import whole_manifest
from batch_jobs.runs import jobs
from batch_jobs.training import train

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = Interval(TRAINED, TRAINED + timedelta(hours=1))
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


def write_keys(folder, name, key=None, encryption=None):
    """Files with a private key and its public one; their paths."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    files = folder / f"{name}-signing.pem", folder / f"{name}-verify.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    files[0].touch(mode=0o600)
    files[0].write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files[1].write_bytes(public)
    return tuple(map(str, files))


@pytest.fixture
def keys(tmp_path):
    """Paths of a private key and of its public one."""
    return write_keys(tmp_path, "ours")


@pytest.fixture
def signed(shop, keys):
    """Settings of a deployment that signs and verifies, whose champion is signed."""
    settings = replace(shop, signing_key=keys[0], verify_key=keys[1])
    version = train.train(settings, "orders", TRAINED + timedelta(hours=6)).version
    promotion.promote(settings, "orders", version, actor="tests", reason="signed")
    return settings


def _champion(settings):
    return champions.champion(Warehouse(settings.warehouse), "orders")


def _load(settings, version=None):
    model = load_model("orders", settings.models)
    return load_version(settings, model, version or _champion(settings))


def _store(settings, **columns):
    """Write columns of the champion's row, as somebody with the writer's rights could."""
    values = ", ".join(f"{name} = :{name}" for name in columns)
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(
            text(f"UPDATE model_versions SET {values} WHERE version = :version"),
            {**columns, "version": _champion(settings).version},
        )


MANIFEST = {"model": "m", "rows": 3, "share": 0.1 + 0.2, "golden": {"a": [1.5, None, "\u00e9"]}}


def test_a_manifest_is_verified_however_its_json_was_written_anew(keys):
    """Databases keep the order of names as they like."""
    manifest = signing.sign(MANIFEST, keys[0])
    turned = dict(reversed(json.loads(json.dumps(manifest)).items()))
    for form in (manifest, turned):
        signing.verify(form, keys[1], "m v1")


def test_every_changed_letter_of_a_manifest_is_found(keys):
    """Or it is no JSON any more, or the same JSON in other letters."""
    written = json.dumps(signing.sign(MANIFEST, keys[0])).encode()
    found = {"refused": 0, "no JSON": 0, "the same": 0}
    for place in range(len(written)):
        for bit in range(8):
            changed = bytearray(written)
            changed[place] ^= 1 << bit
            try:
                manifest = json.loads(changed)
            except ValueError:
                found["no JSON"] += 1
                continue
            if manifest == json.loads(written):
                found["the same"] += 1
                continue
            with pytest.raises(ArtifactError, match="the manifest of m v1 "):
                signing.verify(manifest, keys[1], "m v1")
            found["refused"] += 1
    assert sum(found.values()) == 8 * len(written)
    assert found["refused"] > 4 * len(written)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (None, "not signed"),
        (7, "changed"),
        ("", "changed"),
        ("not base64!", "changed"),
        ("AAAA", "changed"),
    ],
)
def test_no_signature_is_not_a_signature(keys, signature, words):
    """Missing, of another kind, or too short."""
    manifest = MANIFEST if signature is None else {**MANIFEST, "signature": signature}
    with pytest.raises(ArtifactError, match=words):
        signing.verify(manifest, keys[1], "m v1")


def test_a_signature_by_another_key_is_refused(keys, tmp_path):
    """Whoever can make keys cannot make ours."""
    other, _ = write_keys(tmp_path, "other")
    with pytest.raises(ArtifactError, match=r"signed by \w{16}, which is not in .*ours-"):
        signing.verify(signing.sign(MANIFEST, other), keys[1], "m v1")


def test_a_signature_without_an_id_is_of_an_older_release_and_holds(keys, tmp_path):
    """It is tried with every key; none of ours is none."""
    manifest = signing.sign(MANIFEST, keys[0])
    old = {**manifest, "signature": manifest["signature"].partition(":")[2]}
    _, public = write_keys(tmp_path, "other")
    signing.verify(old, keys[1], "m v1")
    signing.verify(old, f"{public}, {keys[1]}", "m v1")
    with pytest.raises(ArtifactError, match=r"signed by no key of .*other-verify"):
        signing.verify(old, public, "m v1")


def test_keys_are_changed_while_versions_of_the_one_before_serve(signed, keys, tmp_path):
    """The new one is added where it verifies, then signs, then the old one is taken away."""
    new = write_keys(tmp_path, "new")
    names = [next(iter(signing.public_keys(public))) for _, public in (keys, new)]
    early = replace(signed, signing_key=new[0])
    with pytest.raises(ConfigurationError, match=rf"signs as {names[1]}, and .* {names[0]} alone"):
        train.train(early, "orders", TRAINED + timedelta(hours=12))
    both = replace(early, verify_key=f"{keys[1]},{new[1]}")
    version = train.train(both, "orders", TRAINED + timedelta(hours=12))
    assert version.manifest["signature"].startswith(f"{names[1]}:")
    told = _champion(both).manifest
    old = {**told, "signature": told["signature"].partition(":")[2]}  # as of an older release
    _store(both, manifest=json.dumps(old))
    assert jobs.predict(both, "orders", HOUR).model_version == _champion(both).version
    warehouse = Warehouse(both.warehouse)
    assert {key.name: key for key in signatures.keys(both, warehouse)} == {
        names[1]: signatures.Key(names[1], signs=True, verifies=True, versions=1, champions=()),
        names[0]: signatures.Key(
            names[0], signs=False, verifies=True, versions=1, champions=("orders",)
        ),
        None: signatures.Key(
            None, signs=False, verifies=False, versions=2, champions=("customers",)
        ),
    }
    promotion.promote(both, "orders", version.version, actor="tests", reason="signed anew")
    new_alone = replace(both, verify_key=new[1])
    assert jobs.predict(new_alone, "orders", HOUR, force=True).model_version == version.version


def test_what_is_trained_is_signed_and_scores(signed):
    """The private key is not needed to score."""
    scoring = replace(signed, signing_key=None)
    assert jobs.predict(scoring, "orders", HOUR).model_version == _champion(signed).version


def test_a_signature_is_worth_nothing_without_its_key(shop):
    """What was trained before there were keys does not load once one is asked for."""
    with pytest.raises(ArtifactError, match="is not signed; train again where"):
        _load(replace(shop, verify_key=str(write_keys(Path(shop.model_store), "late")[1])))


class Hostile:
    """Unpickling it runs code."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def _forged(settings, tmp_path):
    """Put a hostile file in the champion's place, and its hash wherever a hash is."""
    champion = _champion(settings)
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Hostile(marker))
    digest = hashlib.sha256(hostile).hexdigest()
    (Path(settings.model_store) / "orders" / champion.version / "model.joblib").write_bytes(hostile)
    manifest = {**champion.manifest, "sha256": digest, "size_bytes": len(hostile)}
    _store(settings, sha256=digest, manifest=json.dumps(manifest))
    return marker


def test_a_manifest_that_is_edited_with_its_hash_is_refused(signed, tmp_path):
    """Before a byte is unpickled: the hostile file leaves no marker; hashes alone let it in."""
    forged = _champion(signed).version
    marker = _forged(signed, tmp_path)
    with pytest.raises(ArtifactError, match="was changed since it was signed"):
        jobs.predict(signed, "orders", HOUR)
    later = train.train(signed, "orders", TRAINED + timedelta(hours=9)).version
    promotion.promote(signed, "orders", later, actor="tests", reason="instead")
    with pytest.raises(ArtifactError, match="was changed since it was signed"):
        promotion.rollback(signed, "orders", forged, actor="eve", reason="mine")
    assert not marker.exists()
    by_hash = replace(signed, verify_key="hash-only")
    with pytest.raises(ArtifactError, match="does not answer its golden rows"):
        promotion.rollback(by_hash, "orders", forged, actor="eve", reason="mine")
    assert marker.exists()


def test_a_manifest_of_another_version_is_refused(signed):
    """A true signature, but of what was trained before."""
    first = _champion(signed)
    second = train.train(signed, "orders", TRAINED + timedelta(hours=9))
    swapped = replace(second, manifest=whole_manifest(Warehouse(signed.warehouse), first))
    with pytest.raises(ArtifactError, match=f"is that of orders {first.version}; roll back"):
        _load(signed, swapped)
    with pytest.raises(ArtifactError, match="is that of"):
        _load(signed, replace(second, sha256=first.sha256))


@pytest.mark.parametrize("manifest", ["null", "[]"])
@on_sqlite
def test_a_manifest_that_is_no_manifest_is_told(signed, manifest):
    """In one line, by every command."""
    name = _champion(signed).version
    _store(signed, manifest=manifest)
    with pytest.raises(ArtifactError, match=f"the manifest of orders {name} is not a JSON object"):
        champions.champion(Warehouse(signed.warehouse), "orders")


# --- Keys


@on_sqlite
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"not a key", "holds no private Ed25519 key"),
        ("curve", "holds no private Ed25519 key"),
        ("password", "holds no private Ed25519 key without a password"),
    ],
)
def test_a_signing_key_that_is_none_is_found_out_before_training(shop, tmp_path, content, words):
    """The error says how to make one; nothing is registered."""
    path = tmp_path / "key.pem"
    if isinstance(content, bytes):
        path.write_bytes(content)
        path.chmod(0o600)
    elif content == "curve":
        path = write_keys(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))[0]
    elif content == "password":
        path = write_keys(tmp_path, "closed", encryption=BestAvailableEncryption(b"x"))[0]
    with pytest.raises(ConfigurationError, match=f"{words}.*openssl genpkey") as caught:
        train.train(replace(shop, signing_key=str(path)), "orders", TRAINED)
    assert caught.value.exit_code == 2


@on_sqlite
@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602])
def test_a_signing_key_that_others_can_read_or_change_is_refused(shop, keys, mode):
    """As ssh does."""
    Path(keys[0]).chmod(mode)
    with pytest.raises(ConfigurationError, match=r"everybody can read or change .*chmod 600"):
        train.train(replace(shop, signing_key=keys[0]), "orders", TRAINED)
    assert stat.S_IMODE(Path(keys[0]).stat().st_mode) == mode


@on_sqlite
def test_training_that_nobody_could_load_does_not_begin(shop, keys):
    """Where signatures are asked for, training needs the key that makes them."""
    with pytest.raises(ConfigurationError, match="there is no BATCH_JOBS_SIGNING_KEY to sign with"):
        train.train(replace(shop, verify_key=keys[1]), "orders", TRAINED)


@on_sqlite
@pytest.mark.parametrize("content", [None, b"not a key"])
def test_a_public_key_that_is_none_is_a_wrong_setting(shop, tmp_path, content):
    """Not a fault of the version."""
    path = tmp_path / "verify.pem"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"BATCH_JOBS_VERIFY_KEY: .*openssl pkey"):
        _load(replace(shop, verify_key=str(path)))


def test_a_version_of_an_older_release_loads_once_its_golden_rows_are_out_of_readers_reach(signed):
    """The step to this schema takes them out of the manifest, letter by letter."""
    warehouse = Warehouse(signed.warehouse)
    champion = _champion(signed)
    whole = whole_manifest(warehouse, champion)
    number = warehouse.database.name
    script = files("batch_jobs.database").joinpath("migrations", number, "7.sql").read_text()
    step = script.split("-- == golden rows ==")[1].split("-- == end of golden rows ==")[0]
    _store(signed, manifest=json.dumps(whole))
    with warehouse.write() as connection:
        connection.execute(text("DROP TABLE golden_rows"))
    assert _load(signed, _champion(signed)) is not None  # an API that is upgraded first
    with warehouse.write() as connection:
        warehouse.database.run_script(connection, step)
    assert "golden" not in _champion(signed).manifest
    assert whole_manifest(warehouse, _champion(signed)) == whole
    assert _load(signed, _champion(signed)) is not None
