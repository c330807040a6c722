"""Signatures of manifests: Ed25519 (RFC 8032), the private key only where training runs.

A hash tells that bytes are those that somebody recorded; a signature tells who recorded them.
Whoever can write the warehouse and the model store, but has not the private key, can make nothing
load that training did not make.

A signature is `KEY_ID:BASE64`: who verifies may have several public keys, so that keys can be
changed while versions of the one before still serve. Those of older releases have no id.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import ArtifactError, ConfigurationError
from batch_jobs.registry.plain_files import UnfitFileError, read_plain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = "signature"
KEY_ID_LENGTH = 16
MOST_BYTES = 100_000  # of a key
HOW_TO_MAKE = (
    "make a pair with `openssl genpkey -algorithm ed25519 -out signing.pem` and "
    "`openssl pkey -in signing.pem -pubout -out verify.pem`"
)


def sign(manifest: Mapping[str, Any], key_file: str) -> dict[str, Any]:
    """The manifest with its signature.

    Raises:
        ConfigurationError: there is no private Ed25519 key in the file, or others may read it.
    """
    key = private_key(key_file)
    signature = base64.b64encode(key.sign(_signed(manifest))).decode()
    return {**manifest, SIGNATURE: f"{key_id(key.public_key())}:{signature}"}


def verify(manifest: Mapping[str, Any], key_files: str, subject: str) -> None:
    """Check that the holder of a private key of ours made this manifest, every letter of it.

    Args:
        manifest: as it was stored.
        key_files: with the public keys that are accepted, separated by commas.
        subject: whose manifest, for the error.

    Raises:
        ArtifactError: it is not signed, by another key, or it was changed since.
        ConfigurationError: there is no public Ed25519 key in a file.
    """
    keys = public_keys(key_files)
    if SIGNATURE not in manifest:
        raise ArtifactError(
            f"the manifest of {subject} is not signed; train again where BATCH_JOBS_SIGNING_KEY is "
            f"set"
        )
    if _verifier(manifest, keys) is not None:
        return
    signer = _signer(manifest)
    by = f"{signer}, which is not in" if signer not in (*keys, None) else "no key of"
    raise ArtifactError(
        f"the manifest of {subject} was changed since it was signed, or signed by {by} "
        f"{key_files}; if that key is yours, add its public half to BATCH_JOBS_VERIFY_KEY, else "
        f"roll back to another version, or train again"
    )


def signed_by(manifest: Mapping[str, Any], key_files: str | None) -> str | None:
    """The id of the key that signed a manifest; None if there is no signature, or nobody knows.

    Args:
        manifest: as it was stored.
        key_files: with public keys, to find who made a signature of an older release.
    """
    if signer := _signer(manifest):
        return signer
    return _verifier(manifest, public_keys(key_files)) if key_files else None


def _verifier(manifest: Mapping[str, Any], keys: Mapping[str, Ed25519PublicKey]) -> str | None:
    """The id of the key that has signed every letter of a manifest, if it is one of these."""
    from cryptography.exceptions import InvalidSignature

    signer, signature = _signer(manifest), str(manifest.get(SIGNATURE)).rpartition(":")[2]
    for known, key in keys.items():
        if signer in (known, None):
            with suppress(InvalidSignature, ValueError):
                key.verify(_decoded(signature), _signed(manifest))
                return known
    return None


def _signer(manifest: Mapping[str, Any]) -> str | None:
    """Who has signed a manifest, by what it says itself; None if it does not."""
    return str(manifest.get(SIGNATURE, "")).rpartition(":")[0] or None


def key_id(key: Ed25519PublicKey) -> str:
    """What a public key is called: the beginning of its sha256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_LENGTH]


def _decoded(signature: str) -> bytes:
    """The bytes of a signature, if it is written in the one way that we write it."""
    decoded = base64.b64decode(signature, validate=True)
    if base64.b64encode(decoded).decode() != signature:
        raise ValueError("it differs in unused bits")
    return decoded


def private_key(key_file: str) -> Ed25519PrivateKey:
    """The key that signs.

    Raises:
        ConfigurationError: there is no private Ed25519 key in the file, or others may read it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read("BATCH_JOBS_SIGNING_KEY", key_file)
    if Path(key_file).stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigurationError(
            f"BATCH_JOBS_SIGNING_KEY: everybody can read or change {key_file}; run `chmod 600 "
            f"{key_file}`"
        )
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError):  # TypeError: it has a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"BATCH_JOBS_SIGNING_KEY: {key_file} holds no private Ed25519 key without a password; "
            f"{HOW_TO_MAKE}"
        )
    return key


def public_keys(key_files: str) -> dict[str, Ed25519PublicKey]:
    """The keys that verify, by their ids.

    Args:
        key_files: where they are, separated by commas.

    Raises:
        ConfigurationError: there is no public Ed25519 key in a file.
    """
    return {key_id(key): key for key in map(_public_key, key_files.split(","))}


def _public_key(key_file: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read("BATCH_JOBS_VERIFY_KEY", key_file.strip())
    try:
        key = load_pem_public_key(content)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(
            f"BATCH_JOBS_VERIFY_KEY: {key_file} holds no public Ed25519 key; {HOW_TO_MAKE}"
        )
    return key


def _read(variable: str, key_file: str) -> bytes:
    try:
        return read_plain(Path(key_file), MOST_BYTES)
    except UnfitFileError as error:
        raise ConfigurationError(f"{variable}: {error}") from error
    except OSError as error:
        raise ConfigurationError(
            f"{variable}: {key_file} cannot be read: {error.strerror}; {HOW_TO_MAKE}"
        ) from error


def _signed(manifest: Mapping[str, Any]) -> bytes:
    """What the signature is of: the same bytes however a database has written the JSON anew."""
    unsigned = {name: value for name, value in manifest.items() if name != SIGNATURE}
    return json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
