"""Trained estimators as files: verified before they are loaded.

The sha256 in the warehouse is checked on the very bytes that are then deserialised: unpickling
runs code, and one flipped bit in a tree ensemble can change predictions silently
(https://scikit-learn.org/stable/model_persistence.html).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version as library_version
from types import FunctionType
from typing import Any

from batch_jobs.errors import ArtifactError, StoreUnavailableError
from batch_jobs.model import NAME_PATTERN
from batch_jobs.registry.cache import ArtifactCache
from batch_jobs.registry.local_folder import LocalFolder
from batch_jobs.registry.plain_files import UnfitFileError
from batch_jobs.registry.remote_folder import RemoteFolder
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.settings import is_url

log = logging.getLogger(__name__)

VERSION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_BYTES = 2**33  # of an artifact of which nobody knows how large it is
MOST_OF_MANIFEST = 2**26
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
LIBRARIES = ("joblib", "numpy", "pandas", "scikit-learn")
ARTIFACT = "model.joblib"
MANIFEST = "manifest.json"
PAGE = "gate.html"
# The file system answered, and a retry would not be answered otherwise.
ANSWERED = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class ModelStore:
    """Where the artifacts are, one folder a version.

    Args:
        root: a folder, or a URL that fsspec knows.
        copies: folder of the copies that serve while the store is out of reach; None keeps none.
    """

    def __init__(self, root: str, copies: str | None = None) -> None:
        self._files = RemoteFolder(root) if is_url(root) else LocalFolder(root)
        self._copies = ArtifactCache(copies) if copies else None

    def require_writable(self) -> None:
        """Find out before training whether its result can be kept.

        Raises:
            ConfigurationError: the store cannot be made or written, or too many may write it.
            StoreUnavailableError: it does not answer.
        """
        self._files.require_writable()

    def __str__(self) -> str:
        return str(self._files)

    @property
    def files(self) -> LocalFolder | RemoteFolder:
        """The folder itself."""
        return self._files

    def write(
        self,
        model: str,
        version: str,
        artifact: bytes,
        manifest: Mapping[str, Any],
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        """Keep one version; writing it again changes nothing, unless its file was damaged.

        The manifest comes last: what has none was never wholly written.

        Args:
            model: its name.
            version: its name.
            artifact: the bytes of the estimator.
            manifest: what is known about them.
            beside: other files of the version by name; they are written anew each time.

        Raises:
            ConfigurationError: the store cannot be written, its disk is full, or too many may
                write it.
            StoreUnavailableError: it does not answer.
        """
        folder = _folder(model, version)
        files = dict(beside or {})
        if not self._is_whole(*folder):
            files |= {ARTIFACT: artifact, MANIFEST: json.dumps(manifest, indent=2).encode()}
        if files:
            self._files.write(*folder, files)

    def read(self, version: ModelVersion) -> bytes:
        """The artifact's bytes, whose sha256 is the one the warehouse knows.

        Raises:
            ArtifactError: the file is missing, or its bytes have changed.
            ConfigurationError: too many may write the store, or the folder of the copies.
            StoreUnavailableError: the store does not answer, and there is no copy.
        """
        subject = f"the artifact of {version.model} {version.version}"
        where = (*_folder(version.model, version.version), ARTIFACT)
        version.require_kept()
        if not SHA256_PATTERN.fullmatch(version.sha256):
            raise ArtifactError(f"{subject} has no sha256 in the warehouse, but {version.sha256!r}")
        most = version.manifest.get("size_bytes", MOST_BYTES)
        kept = self._copies.find(version.sha256, most) if self._copies else None
        try:
            self._files.require(*where)
            content = kept or self._files.read(*where, most=most)
        except ANSWERED as error:
            raise ArtifactError(
                f"{subject} cannot be read from {self._files.tell(*where)}: {error.strerror}"
            ) from error
        except (OSError, StoreUnavailableError) as error:
            if kept is None:
                raise _out_of_reach(error, subject) from None
            log.warning("%s; %s is loaded from its verified copy", error, subject)
            return kept
        self._verify(content, version, subject)
        if self._copies and kept is None:
            self._copies.keep(version.sha256, content)
        return content

    def remove(self, model: str, version: str) -> None:
        """Remove all files of a version; what was begun and not ended is completed by the next try.

        Raises:
            ConfigurationError: too many may write the store.
            StoreUnavailableError: it does not answer.
            OSError: nobody may remove anything there.
        """
        # The manifest first, for what has none was never wholly written.
        self._files.remove(*_folder(model, version), [MANIFEST, ARTIFACT, PAGE])

    def page(self, model: str, version: str) -> str | None:
        """Where the gate's report on a version is drawn; None if it is not, or cannot be asked."""
        where = (*_folder(model, version), PAGE)
        try:
            self._files.require(*where)
        except (OSError, StoreUnavailableError):
            return None
        return self._files.tell(*where)

    def read_page(self, model: str, version: str) -> bytes | None:
        """The gate's report on a version; None if it is not drawn, or cannot be read."""
        try:
            return self._files.read(*_folder(model, version), PAGE, most=MOST_OF_MANIFEST)
        except (OSError, UnfitFileError, StoreUnavailableError):
            return None

    def _verify(self, content: bytes, version: ModelVersion, subject: str) -> None:
        found = hashlib.sha256(content).hexdigest()
        if found != version.sha256:
            where = self._files.tell(version.model, version.version, ARTIFACT)
            raise ArtifactError(
                f"{subject} has changed: sha256 {found[:12]}… where the warehouse recorded "
                f"{version.sha256[:12]}…; restore the file, or roll back to another version: "
                f"{where}"
            )

    def _is_whole(self, model: str, version: str) -> bool:
        """Whether the artifact is the one that its own manifest tells of."""
        try:
            manifest = json.loads(self._files.read(model, version, MANIFEST, most=MOST_OF_MANIFEST))
            known = manifest if isinstance(manifest, dict) else {}
            most = known.get("size_bytes", MOST_BYTES)
            content = self._files.read(model, version, ARTIFACT, most=most)
        except (OSError, ValueError, UnfitFileError):
            return False
        told = known.get("sha256")
        return bool(told == hashlib.sha256(content).hexdigest())


def _folder(model: str, version: str) -> tuple[str, str]:
    """The names of a version's folders, which lead nowhere else."""
    if not NAME_PATTERN.fullmatch(model):
        raise ArtifactError(f"{model!r} is not a model's name")
    if not VERSION_PATTERN.fullmatch(version):
        raise ArtifactError(f"{version!r} is not a model version")
    return model, version


def _out_of_reach(error: Exception, subject: str) -> StoreUnavailableError:
    told = error.strerror if isinstance(error, OSError) else error
    return StoreUnavailableError(f"{subject} cannot be read, and there is no copy of it: {told}")


def serialize(estimator: Any) -> bytes:
    """The bytes of a fitted estimator, whatever else this process has imported."""
    import joblib

    buffer = io.BytesIO()
    with _without_dill():
        joblib.dump(estimator, buffer, compress=3)
    return buffer.getvalue()


@contextmanager
def _without_dill() -> Iterator[None]:
    """Let joblib store what pickle stores, as pickle does.

    Airflow imports dill, which tells pickle to store functions and classes by value; joblib
    remembers that if it is imported later. Loading would then need dill, or storing not end.
    """
    import pickle

    from joblib.numpy_pickle import NumpyPickler

    plain: Any = vars(pickle)["_Pickler"]
    before = NumpyPickler.dispatch
    NumpyPickler.dispatch = {
        **{kind: save for kind, save in before.items() if save.__module__ == pickle.__name__},
        dict: plain.save_dict,
        FunctionType: plain.save_global,
        type: plain.save_type,
    }
    try:
        yield
    finally:
        NumpyPickler.dispatch = before


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


def name_version(as_of: datetime, artifact: bytes, contract: Mapping[str, Any]) -> str:
    """A version's name: when its data ended, and the start of the hash of all that it is."""
    told = hashlib.sha256(artifact)
    told.update(json.dumps(contract).encode())
    return f"{as_of:%Y%m%dT%H%M}-{told.hexdigest()[:8]}"
