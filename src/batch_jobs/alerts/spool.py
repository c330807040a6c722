"""The spool: what happens while the warehouse is away is kept in a file of this machine.

Each line is one event, in the order of things; whoever reaches the warehouse again brings them
over, in that order and at most once. Until then the file also says what was told already, so that
one dead warehouse is one message here too, and not one a model, a task and a retry. Several
processes share it under a lock. It is bounded, belongs to its user alone, and where its disk is
full a temporary folder takes its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from batch_jobs.alerts.problems import Incident, Problem
from batch_jobs.redaction import first_line
from batch_jobs.settings import AlertSettings

log = logging.getLogger(__name__)

MOST_BYTES = 4_000_000
LOCK_SECONDS = 3.0
ASIDE = ".taken"
Event = dict[str, Any]


@dataclass(frozen=True)
class Met:
    """A problem as the spool knows it.

    Attributes:
        incident: that it belongs to, as far as this machine knows.
        is_due: whether to tell it now.
        event: the id of its event.
        is_kept: whether a file took it.
    """

    incident: Incident
    is_due: bool
    event: str
    is_kept: bool


class Spool:
    """The events of one deployment on this machine.

    Args:
        warehouse: its URL, of which the file's name keeps a hash alone.
        environ: with `BATCH_JOBS_SPOOL`, a folder; by default one of this user.
    """

    def __init__(self, warehouse: str, environ: Mapping[str, str] = os.environ) -> None:
        name = f"{hashlib.sha256(warehouse.encode()).hexdigest()[:16]}.jsonl"
        state = environ.get("XDG_STATE_HOME") or "~/.local/state"
        own = AlertSettings.from_environ(environ).spool or f"{state}/batch-jobs/alerts"
        other = Path(tempfile.gettempdir(), f"batch-jobs-alerts-{os.getuid()}")
        self.files = (Path(own).expanduser() / name, other / name)

    def is_empty(self) -> bool:
        """Whether there is nothing in it; asked often, so it takes no lock."""
        return not any(_size(path) for path in self.files) and not self._aside()

    def events(self) -> list[Event]:
        """What is in it, in order."""
        with _locked(self.files, ".lock"):
            return self._read()

    def add(self, kind: str, at: datetime, **more: Any) -> Event | None:
        """Add an event; None, and a line in the log, if no file takes it."""
        event = _event(kind, at, **more)
        with _locked(self.files, ".lock"):
            return event if self._append(event) else None

    def add_problem(
        self,
        problem: Problem,
        key: str,
        at: datetime,
        channels: Sequence[str],
        is_due: Callable[[Sequence[datetime]], bool],
    ) -> Met | None:
        """Add a problem, and say whether to tell it now; it is noted as told before it is.

        Args:
            problem: what was met.
            key: names the occurrence.
            at: when.
            channels: that are told.
            is_due: says of the times at which this cause was told whether it is due again.

        Returns:
            How it was met; None if this occurrence is known.
        """
        with _locked(self.files, ".lock"):
            known = self._read()
            if any(each.get("key") == key for each in known):
                return None
            untold = {each["of"] for each in known if each["kind"] == "untold"}
            alike = [
                each
                for each in known
                if each["kind"] == "problem"
                if each["problem"]["model"] == problem.model
                if each["problem"]["cause"] == problem.cause
            ]
            told = [
                datetime.fromisoformat(each["at"])
                for each in alike
                if each["told"] and each["id"] not in untold
            ]
            is_told = bool(channels) and is_due(told)
            event = _event("problem", at, key=key, problem=asdict(problem), told=is_told)
            event["channels"] = list(channels)
            since = datetime.fromisoformat(alike[0]["at"]) if alike else at
            incident = Incident(0, problem, len(alike) + 1, since, at, len(told))
            return Met(incident, is_told, event["id"], is_kept=self._append(event))

    @contextmanager
    def taken(self) -> Iterator[list[Event]]:
        """The events, to be brought over; they are gone once the block has ended well.

        There are none if another process is at it. They are set aside first, so that the database
        may take its time without keeping anybody from adding to the spool.
        """
        with _locked(self.files, ".flush", patience=0) as alone:
            if not alone:
                yield []
                return
            with _locked(self.files, ".lock"):
                for path in self.files:
                    if _size(path):
                        path.rename(path.with_suffix(f".{uuid4()}{ASIDE}"))
                aside = self._aside()
                events = _in_order(aside)
            yield events
            for path in aside:
                path.unlink(missing_ok=True)

    def _aside(self) -> list[Path]:
        return [
            found
            for path in self.files
            for found in sorted(path.parent.glob(f"{path.stem}.*{ASIDE}"), key=_made)
        ]

    def _read(self) -> list[Event]:
        return _in_order([*self._aside(), *self.files])

    def _append(self, event: Event) -> bool:
        line = (json.dumps(event) + "\n").encode()
        problem = "it is full"
        for path in self.files:
            try:
                if _size(path) + len(line) > MOST_BYTES:
                    continue
                _prepare(path)
                handle = os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
                )
                with os.fdopen(handle, "ab") as file:
                    before = file.tell()
                    try:
                        file.write(line)
                        file.flush()
                        os.fsync(handle)
                    except OSError:
                        os.ftruncate(handle, before)
                        raise
            except OSError as error:
                problem = first_line(error)
            else:
                return True
        log.warning("an alert could not be kept in the spool: %s", problem)
        return False


def _event(kind: str, at: datetime, **more: Any) -> Event:
    return {"id": str(uuid4()), "kind": kind, "at": at.isoformat(), **more}


def _prepare(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{path.parent} belongs to somebody else")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _in_order(paths: Iterable[Path]) -> list[Event]:
    """The events of the files; those of one file in its order, those of several by their times."""
    found: list[list[Event]] = []
    for path in paths:
        events = []
        with suppress(OSError):
            for line in path.read_text("utf-8").splitlines():
                with suppress(ValueError):  # the half line of a disk that was full
                    events.append(json.loads(line))
        found.append(events)
    return list(heapq.merge(*found, key=lambda event: str(event["at"])))


@contextmanager
def _locked(files: Iterable[Path], suffix: str, patience: float = LOCK_SECONDS) -> Iterator[bool]:
    """Hold the lock in the first folder that has room for one; whether it is held.

    Who waited long enough goes on without: an alert comes first.
    """
    for path in files:
        try:
            _prepare(path)
            handle = os.open(path.with_suffix(suffix), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue
        try:
            yield _lock(handle, patience)
        finally:
            os.close(handle)
        return
    yield False


def _lock(handle: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True
