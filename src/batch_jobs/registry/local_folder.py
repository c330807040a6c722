"""A model store in a folder of this machine or of a network file system.

Files are written under a temporary name, fsynced and renamed, so a final name is never half a
file.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from batch_jobs import clock
from batch_jobs.errors import ArtifactError, ConfigurationError
from batch_jobs.registry.plain_files import read_plain

PROBE_BYTES = 2**16
ABANDONED_SECONDS = 24 * 3600  # after which nobody is still writing a version's files


class LocalFolder:
    """A folder that nobody but its owner, or a group that is meant to, can write.

    Args:
        root: its path, or the same as a URL.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root.removeprefix("file://")).expanduser().absolute()

    def __str__(self) -> str:
        return str(self._root)

    def tell(self, *names: str) -> str:
        """Where a file is, for a message."""
        return str(self._root.joinpath(*names))

    def require_writable(self) -> None:
        """Find out whether files can be kept here.

        Raises:
            ConfigurationError: the folder cannot be made or written, or too many may write it.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o750)
            require_unshared(self._root)
            probe = self._root / f".probe-{uuid.uuid4().hex}"
            try:
                probe.write_bytes(bytes(PROBE_BYTES))  # a full disk has room for an empty file
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def require(self, *names: str) -> None:
        """Find out whether a file is there; raises what `read` raises."""
        self._inside(*names).stat()

    def read(self, *names: str, most: int) -> bytes:
        """The bytes of a file, which are at most so many.

        Raises:
            ArtifactError: a link leads elsewhere, or it is larger, or no plain file.
            ConfigurationError: too many may write a folder on the way.
            OSError: it cannot be read.
        """
        return read_plain(self._inside(*names), most)

    def write(self, model: str, version: str, files: Mapping[str, bytes]) -> None:
        """Keep the files of a version, all of them at one moment unless it has some already.

        Raises:
            ArtifactError: a link leads elsewhere.
            ConfigurationError: the folder cannot be written, its disk is full, or too many may
                write it.
        """
        self.require_writable()
        final = self._inside(model, version)
        temporary = final.parent / f".new-{uuid.uuid4().hex}"
        mode = stat.S_IMODE(self._root.stat().st_mode) & ~stat.S_IRWXO | stat.S_IRWXU
        try:
            for folder in (final.parent, temporary):
                if not folder.exists():
                    folder.mkdir()
                    folder.chmod(mode)
            for name, content in files.items():
                write_synced(temporary / name, content, mode & 0o660)
            _sync_folder(temporary)
            _move(temporary, final, files)
            _sweep(final.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def put(self, name: str, content: bytes) -> None:
        """Keep a file of the store itself; one that is there stays.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        new = self._root / f".new-{uuid.uuid4().hex}"
        mode = stat.S_IMODE(self._root.stat().st_mode) & 0o660
        try:
            write_synced(new, content, mode)
            with suppress(FileExistsError):
                os.link(new, self._root / name)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            new.unlink(missing_ok=True)

    def remove(self, model: str, version: str, names: Sequence[str]) -> None:  # noqa: ARG002
        """Remove a version's folder, at one moment as far as its name goes.

        Raises:
            ArtifactError: a link leads elsewhere.
            ConfigurationError: too many may write a folder on the way.
            OSError: it cannot be removed.
        """
        folder = self._inside(model, version)
        aside = folder.with_name(f".old-{version}")
        with suppress(FileNotFoundError):
            shutil.rmtree(aside)  # which an earlier try has left
        with suppress(FileNotFoundError):
            folder.rename(aside)
            shutil.rmtree(aside)

    def _inside(self, *names: str) -> Path:
        """The path of these names below the root, if it is what it seems to be."""
        path = self._root.joinpath(*names)
        true = os.path.realpath(path)
        if true != os.path.join(os.path.realpath(self._root), *names):  # noqa: PTH118
            raise ArtifactError(
                f"a symbolic link leads from {path} to {true}; put the files themselves there"
            )
        for folder in (self._root, *(self._root.joinpath(*names[:n]) for n in (1, 2))):
            if folder.is_dir():
                require_unshared(folder)
        return path

    def _unwritable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(f"the model store {self} cannot be written: {error.strerror}")


def _sweep(folder: Path) -> None:
    """Remove what trainings that were killed while they wrote have left."""
    for left in folder.glob(".new-*"):
        with suppress(FileNotFoundError):
            if clock.now().timestamp() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def require_unshared(folder: Path) -> None:
    """Refuse a folder in which others could put files.

    A group that may write is meant to where the set-group-ID bit is set too, as for shared git
    repositories and volumes of Kubernetes.

    Raises:
        ConfigurationError: everybody, or a group without that bit, may write the folder.
    """
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH:
        who = "everybody" if mode & stat.S_ISGID else "everybody and its group"
        raise ConfigurationError(
            f"{who} may write the folder {folder}, and so change what is loaded from there; run "
            f"`chmod {'o' if mode & stat.S_ISGID else 'go'}-w {folder}`"
        )
    if mode & stat.S_IWGRP and not mode & stat.S_ISGID:
        raise ConfigurationError(
            f"the group of the folder {folder} may write it, and so change what is loaded from "
            f"there; run `chmod g-w {folder}`, or `chmod g+s {folder}` if that is meant"
        )


def write_synced(path: Path, content: bytes, mode: int) -> None:
    """Write a new file, and see it on the disk.

    Raises:
        OSError: it cannot be written, or is there.
    """
    with path.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(temporary: Path, final: Path, names: Mapping[str, bytes]) -> None:
    """Give the folder its name, or its files theirs if the name is taken."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        for name in names:
            (temporary / name).replace(final / name)
        _sync_folder(final)
    _sync_folder(final.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
