"""Read files of folders that others may write, once it is known what they are and how large."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from batch_jobs.errors import ArtifactError


class UnfitFileError(ArtifactError):
    """A file is none of those that a version or a key has."""


def read_plain(path: Path, most: int) -> bytes:
    """The bytes of a file.

    Args:
        path: of the file.
        most: how many bytes it may have.

    Raises:
        UnfitFileError: it is larger, or no plain file: a pipe would never end, a folder have none.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnfitFileError(f"{path} is no plain file; put the file itself there")
        if found.st_size > most:
            raise UnfitFileError(
                f"{path} has {found.st_size:,} bytes, where at most {most:,} belong; restore the "
                f"file, or roll back to another version"
            )
        return file.read(most)
