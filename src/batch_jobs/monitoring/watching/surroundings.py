"""Look at what stands around: the prediction API, numbers for Prometheus, disks of this machine.

What must be known of earlier looks is in a memory of plain values, which each look gives back.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, MutableMapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from batch_jobs.interval import parse_time
from batch_jobs.monitoring.watching.facts import Disk, Service
from batch_jobs.monitoring.watching.questions import Answer, UnansweredError, ask
from batch_jobs.settings import Settings, WatchSettings, is_url

Memory = MutableMapping[str, Any]

# Numbers that a program's library moves by itself, also when the program's own stand still.
OF_THE_PROCESS = ("process_", "python_", "go_", "promhttp_", "statsd_exporter_", "scrape_")
POINTS = 36  # of a disk, in the memory
APART = timedelta(minutes=5)  # are the points
LONG_ENOUGH = timedelta(minutes=30)  # to tell how fast a disk fills


def services(settings: WatchSettings, memory: Memory, now: datetime) -> Iterator[Service]:
    """The prediction API and the numbers that there are, each asked once."""
    key = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    if settings.api_url:
        base = settings.api_url.rstrip("/")
        ready = _service("prediction API", f"{base}/readyz", {})
        yield ready
        if ready.away is None:
            yield _numbers("prediction API's metrics", f"{base}/metrics", key, memory, now)
    if settings.airflow_metrics:
        yield _numbers("Airflow's metrics", settings.airflow_metrics, {}, memory, now)


def _service(name: str, url: str, headers: dict[str, str]) -> Service:
    try:
        answer = ask(url, headers=headers)
    except UnansweredError as error:
        return Service(name, url, str(error))
    return Service(name, url, None if answer.is_success else f"it answered {answer.status}")


def _numbers(
    name: str, url: str, headers: dict[str, str], memory: Memory, now: datetime
) -> Service:
    """Numbers, and for how long they have been the same: our own question should move some."""
    try:
        answer = ask(url, headers=headers)
    except UnansweredError as error:
        return Service(name, url, str(error))
    if not answer.is_success:
        return Service(name, url, f"it answered {answer.status}")
    return Service(name, url, still_for=_still_for(f"numbers {url}", answer, memory, now))


def _still_for(key: str, answer: Answer, memory: Memory, now: datetime) -> timedelta:
    own = [
        line
        for line in answer.text.splitlines()
        if line and not line.startswith(("#", *OF_THE_PROCESS))
    ]
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
    before = memory.get(key) or {}
    since = parse_time(before["since"]) if before.get("digest") == digest else now
    since = min(since, now)  # a clock that went back
    memory[key] = {"digest": digest, "since": since.isoformat()}
    return now - since


def disks(settings: Settings, memory: Memory, now: datetime) -> Iterator[Disk]:
    """The disks of the warehouse, if it is a file, and of the model store, if it is a folder."""
    seen: dict[int, str] = {}
    for what, folder in _folders(settings):
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen[device] = what
        usage = shutil.disk_usage(folder)
        full_in = _full_in(f"disk {folder}", usage.free, memory, now)
        yield Disk(what, str(folder), usage.total, usage.free, full_in)


def _folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    url = make_url(settings.warehouse)
    candidates = []
    if url.get_backend_name() == "sqlite" and url.database:
        candidates.append(("the warehouse", Path(url.database).absolute().parent))
    if not is_url(settings.model_store):
        store = settings.model_store.removeprefix("file://")
        candidates.append(("the model store", Path(store).absolute()))
    yield from ((what, folder) for what, folder in candidates if folder.is_dir())


def _full_in(key: str, free: int, memory: Memory, now: datetime) -> timedelta | None:
    """When a disk is full, if it goes on filling as in the last hours."""
    points = [[at, was] for at, was in memory.get(key) or [] if parse_time(at) <= now]
    if not points or now - parse_time(points[-1][0]) >= APART:
        points = [*points, [now.isoformat(), free]][-POINTS:]
    memory[key] = points
    began, was = parse_time(points[0][0]), int(points[0][1])
    if now - began < LONG_ENOUGH or was <= free:
        return None
    return min(timedelta(days=3650), (now - began) * (free / (was - free)))
