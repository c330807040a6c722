"""ArtifactCache of artifacts on this machine, for when the model store is out of reach.

A copy is named by the sha256 of its bytes and verified on each read, so that it is never anything
but the artifact itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from batch_jobs.errors import ConfigurationError
from batch_jobs.registry.local_folder import write_synced
from batch_jobs.registry.plain_files import UnfitFileError, read_plain

log = logging.getLogger(__name__)

COPIES = 16


class ArtifactCache:
    """A folder of the last artifacts that were loaded, for its owner only.

    Args:
        root: its path.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root).expanduser().absolute()

    def find(self, sha256: str, most: int) -> bytes | None:
        """The bytes with that hash, at most so many; None if there is no copy, or it was changed.

        Raises:
            ConfigurationError: others could have put files into the folder.
        """
        path = self._root / sha256
        try:
            self._require_own()
            content = read_plain(path, most)
            if hashlib.sha256(content).hexdigest() == sha256:
                os.utime(path)
                return content
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return None
        except UnfitFileError:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the copy %s cannot be read: %s", path, error.strerror)
            return None
        log.warning("the copy %s had changed and is removed; the model store is asked", path)
        return None

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep verified bytes, and the last fifteen others; if that fails, a warning says so.

        Raises:
            ConfigurationError: others could put files into the folder.
        """
        temporary = self._root / f".new-{uuid.uuid4().hex}"
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._require_own()
            write_synced(temporary, content, 0o600)
            temporary.replace(self._root / sha256)
            self._forget_old()
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            log.warning(
                "no copy of the artifact is kept in %s (BATCH_JOBS_MODEL_CACHE): %s",
                self._root,
                error.strerror,
            )

    def _forget_old(self) -> None:
        """Remove what was used longest ago; that of a process that was killed is among it."""
        files = [(path.stat().st_mtime, path) for path in self._root.iterdir()]
        for _, path in sorted(files, reverse=True)[COPIES:]:
            path.unlink(missing_ok=True)

    def _require_own(self) -> None:
        found = self._root.stat()
        if found.st_uid != os.geteuid():
            raise ConfigurationError(
                f"the folder {self._root} belongs to another user (number {found.st_uid}); name "
                f"one of your own in BATCH_JOBS_MODEL_CACHE"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigurationError(
                f"others may write the folder {self._root}, which keeps copies of artifacts; run "
                f"`chmod go-w {self._root}`"
            )
