"""Trained estimators as files: written whole or not at all, verified before they are loaded.

Files are written under a temporary name, fsynced and renamed, so a final name is never half a
file. The sha256 in the warehouse is checked on the very bytes that are then deserialised:
unpickling runs code, and one flipped bit in a tree ensemble can change predictions silently
(https://scikit-learn.org/stable/model_persistence.html).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import uuid
import warnings
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

from batch_jobs.errors import ArtifactError, ConfigurationError
from batch_jobs.registry import ModelVersion

VERSION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIBRARIES = ("joblib", "numpy", "pandas", "scikit-learn")
ARTIFACT = "model.joblib"
MANIFEST = "manifest.json"


class ModelStore:
    """The folder that holds the artifacts, one folder a version.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root).expanduser().absolute()

    def require_writable(self) -> None:
        """Find out before training whether its result can be kept.

        Raises:
            ConfigurationError: the folder cannot be made or written.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o750)
            probe = self._root / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"the model store {self._root} cannot be written: {error.strerror}"
            ) from error

    def write(self, model: str, version: str, artifact: bytes, manifest: Mapping[str, Any]) -> None:
        """Keep one version; writing it again changes nothing, unless its file was damaged.

        Raises:
            ConfigurationError: the store cannot be written, or its disk is full.
        """
        final = self._folder(model, version)
        temporary = final.parent / f".new-{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True, mode=0o750)
            _write_synced(temporary / ARTIFACT, artifact)
            _write_synced(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
            _sync_folder(temporary)
            if not final.exists():
                temporary.rename(final)
                _sync_folder(final.parent)
            elif not _is_whole(final):
                for name in (MANIFEST, ARTIFACT):
                    (temporary / name).replace(final / name)
                _sync_folder(final)
        except OSError as error:
            raise ConfigurationError(
                f"the model store {self._root} cannot be written: {error.strerror}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self, version: ModelVersion) -> bytes:
        """The artifact's bytes, whose sha256 is the one the warehouse knows.

        Raises:
            ArtifactError: the file is missing, or its bytes have changed.
        """
        path = self._folder(version.model, version.version) / ARTIFACT
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"the artifact of {version.model} {version.version} cannot be read from {path}: "
                f"{error.strerror}"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != version.sha256:
            raise ArtifactError(
                f"the artifact of {version.model} {version.version} has changed: sha256 "
                f"{found[:12]}… where the warehouse recorded {version.sha256[:12]}…; restore the "
                f"file, or roll back to another version: {path}"
            )
        return content

    def _folder(self, model: str, version: str) -> Path:
        if not VERSION_PATTERN.fullmatch(version):
            raise ArtifactError(f"{version!r} is not a model version")
        return self._root / model / version


def _is_whole(folder: Path) -> bool:
    """Whether the artifact is the one that its own manifest tells of."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content = (folder / ARTIFACT).read_bytes()
    except (OSError, ValueError):
        return False
    return bool(manifest.get("sha256") == hashlib.sha256(content).hexdigest())


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o640)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def serialize(estimator: Any) -> bytes:
    """The bytes of a fitted estimator."""
    import joblib

    buffer = io.BytesIO()
    joblib.dump(estimator, buffer, compress=3)
    return buffer.getvalue()


def deserialize_bytes(content: bytes) -> Any:
    """What was serialized; only for bytes that somebody has vouched for."""
    import joblib

    return joblib.load(io.BytesIO(content))


def deserialize(content: bytes, version: ModelVersion, policy: str = "same") -> Any:
    """The estimator in verified bytes.

    Args:
        content: whose hash holds.
        version: whose bytes they are.
        policy: `same` refuses what other versions of scikit-learn or numpy wrote, which is
            unsupported; `golden` leaves that to the version's golden rows.

    Raises:
        ArtifactError: other library versions wrote it, or it does not load any more.
    """
    from sklearn.exceptions import InconsistentVersionWarning

    trained, here = version.manifest["libraries"], libraries()
    differing = [
        f"{name} {trained.get(name)} (here {here[name]})"
        for name in ("scikit-learn", "numpy")
        if trained.get(name) != here[name]
    ]
    if differing and policy == "same":
        raise ArtifactError(
            f"{version.model} {version.version} was trained with {', '.join(differing)}; "
            f"train again with the libraries that score"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error" if policy == "same" else "ignore", InconsistentVersionWarning)
        try:
            return deserialize_bytes(content)
        except InconsistentVersionWarning as warning:
            raise ArtifactError(f"{version.model} {version.version}: {warning}") from warning
        except Exception as error:  # unpickling imports the user's modules, which may have moved
            raise ArtifactError(
                f"{version.model} {version.version} cannot be loaded: {type(error).__name__}: "
                f"{error}; train again"
            ) from error


def libraries() -> dict[str, str]:
    """Versions of Python and of the libraries that a fitted estimator depends on."""
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {
        name: library_version(name) for name in LIBRARIES
    }


def name_version(as_of: datetime, artifact: bytes) -> str:
    """A version's name: when its data ended, and the start of its hash."""
    return f"{as_of:%Y%m%dT%H%M}-{hashlib.sha256(artifact).hexdigest()[:8]}"
