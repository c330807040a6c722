"""A model store behind any URL that fsspec knows: S3, Google Cloud Storage and their like.

Credentials come from where each library looks for them (for S3 `AWS_ACCESS_KEY_ID` and its like, a
profile or a role) or from fsspec's own configuration (`FSSPEC_S3_ENDPOINT_URL`). None of them is
ever shown, nor what the library itself said: errors are told again without what is secret.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from batch_jobs.errors import (
    BatchJobsError,
    ConfigurationError,
    StoreUnavailableError,
)
from batch_jobs.redaction import first_line, redact
from batch_jobs.registry.plain_files import UnfitFileError

ANSWER_SECONDS = 45
TRANSFER_SECONDS = 600
PROBE = ".writable"
SHORTEST_SECRET = 4


class RemoteFolder:
    """A folder of an object store, or of another server.

    Args:
        url: such as `s3://bucket/models`.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return redact(self._url.partition("?")[0])

    def tell(self, *names: str) -> str:
        """Where a file is, for a message."""
        return "/".join((str(self), *names))

    def require_writable(self) -> None:
        """Find out whether files can be kept here.

        Raises:
            ConfigurationError: the URL leads nowhere, or nobody may write there.
            StoreUnavailableError: it did not answer.
        """
        self._write(b"", PROBE)
        with suppress(BatchJobsError, OSError):  # who may write need not be allowed to delete
            self._call("rm_file", [PROBE], patience=ANSWER_SECONDS)

    def require(self, *names: str) -> None:
        """Find out whether a file is there; raises what `read` raises."""
        self._ask("info", *names, patience=ANSWER_SECONDS)

    def read(self, *names: str, most: int) -> bytes:
        """The bytes of a file, which are at most so many.

        Raises:
            UnfitFileError: they are more.
            FileNotFoundError: it is not there.
            ConfigurationError: nobody knows how to open the URL.
            StoreUnavailableError: it did not answer, or lets us not read.
        """
        size = self._ask("info", *names, patience=ANSWER_SECONDS).get("size") or 0
        if size > most:
            raise UnfitFileError(
                f"{self.tell(*names)} has {size:,} bytes, where at most {most:,} belong; restore "
                f"the file, or roll back to another version"
            )
        content: bytes = self._ask("cat_file", *names, patience=TRANSFER_SECONDS)
        return content

    def write(self, model: str, version: str, files: Mapping[str, bytes]) -> None:
        """Keep the files of a version, one after the other, each of them whole.

        Raises:
            ConfigurationError: the URL leads nowhere, or nobody may write there.
            StoreUnavailableError: it did not answer.
        """
        for name, content in files.items():
            self._write(content, model, version, name)

    def put(self, name: str, content: bytes) -> None:
        """Keep a file of the store itself.

        Raises:
            ConfigurationError: the URL leads nowhere, or nobody may write there.
            StoreUnavailableError: it did not answer.
        """
        self._write(content, name)

    def remove(self, model: str, version: str, names: Sequence[str]) -> None:
        """Remove the files of a version, one after the other; those that are not there are not.

        Raises:
            ConfigurationError: nobody knows how to open the URL.
            PermissionError: who may write need not be allowed to delete.
            StoreUnavailableError: it did not answer.
        """
        for name in names:
            with suppress(FileNotFoundError):
                self._call("rm_file", (model, version, name), patience=ANSWER_SECONDS)
        if not self._is_object_store:
            with suppress(BatchJobsError, OSError):  # somebody may keep something else there
                self._call("rmdir", (model, version), patience=ANSWER_SECONDS)

    def _ask(self, verb: str, *names: str, patience: int) -> Any:
        try:
            return self._call(verb, names, patience=patience)
        except PermissionError as error:  # credentials expire, and are renewed
            raise StoreUnavailableError(
                f"the model store {self} refuses: {error.strerror}"
            ) from None

    def _write(self, content: bytes, *names: str) -> None:
        try:
            if not self._is_object_store:  # where making a folder could make a bucket
                exist_ok = True
                self._call("makedirs", names[:-1], exist_ok, patience=ANSWER_SECONDS)
            self._call("pipe_file", names, content, patience=TRANSFER_SECONDS)
        except (FileNotFoundError, PermissionError) as error:
            raise ConfigurationError(
                f"the model store {self} cannot be written: {error.strerror}"
            ) from None

    def _call(self, verb: str, names: Sequence[str], *values: Any, patience: int) -> Any:
        """Do something with a path, and tell what went wrong without credentials."""
        from fsspec.asyn import sync

        try:
            files, root = self._opened
            path = "/".join((root, *names))
            if self._is_object_store:
                act = getattr(files, f"_{verb}")
                return sync(files.loop, act, path, *values, timeout=patience)
            return getattr(files, verb)(path, *values)
        except ConfigurationError:
            raise
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "No such file or bucket") from None
        except PermissionError as error:
            raise PermissionError(errno.EACCES, self._told(error)) from None
        except TimeoutError:
            told = f"no answer within {patience} s"
        except Exception as error:  # noqa: BLE001 - each library has errors of its own
            told = self._told(error)
        raise StoreUnavailableError(f"the model store {self} did not answer: {told}")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path of the folder in it.

        Raises:
            ConfigurationError: nobody knows how to open the URL.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        try:
            # A listing that was true a while ago is no answer to whether a file is there.
            files, root = url_to_fs(self._url, use_listings_cache=False)
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"BATCH_JOBS_MODEL_STORE: {self} cannot be opened: {self._told(error)}; write a "
                f"folder or a URL that fsspec knows, and install what it needs (for s3:// "
                f"`pip install 'batch-jobs[s3]'`)"
            ) from None
        if isinstance(files, LocalFileSystem):
            raise ConfigurationError(
                f"BATCH_JOBS_MODEL_STORE: write {self} as a folder, without {self._url[:8]}…"
            )
        return files, root.rstrip("/")

    @property
    def _is_object_store(self) -> bool:
        """Whether it knows no folders; fsspec talks to those, and to no other, asynchronously."""
        return bool(self._opened[0].async_impl)

    def _told(self, error: BaseException) -> str:
        opened = self.__dict__.get("_opened")
        options = _texts(opened[0].storage_options) if opened else ()
        address = urlsplit(self._url)
        secrets = (*options, address.username or "", address.password or "")
        return first_line(error, [each for each in secrets if len(each) >= SHORTEST_SECRET])


def _texts(options: Any) -> Iterator[str]:
    """Every text in nested options."""
    if isinstance(options, str):
        yield options
    elif isinstance(options, Mapping):
        for value in options.values():
            yield from _texts(value)
