"""Mishaps that a test brings about, and what must hold after them."""

import ctypes
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from batch_jobs import failpoints
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry.store import ModelStore
from tests.support.deployment import shown

CAPABILITY_VERSION = 0x20080522  # of linux/capability.h
WAITING = """
    SELECT pid, pg_blocking_pids(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s"""


@contextmanager
def once(place, act, hit=1):
    """Call `act` when this process comes to a place of the library for the n-th time."""
    left, other = hit, failpoints._act

    def obey(name):
        nonlocal left
        if other is not None:
            other(name)
        if name == place:
            left -= 1
            if left == 0:
                act()

    failpoints.arm(obey)
    try:
        yield
    finally:
        failpoints.arm(other)
    assert left <= 0, f"it never came to {place}"


def with_small_files(settings, size, act, *arguments):
    """Act in a process none of whose files may grow beyond a size, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return act(settings, *arguments)


def with_little_memory(settings, more, act, *arguments):
    """Act in a process that may map only so many more bytes of memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return act(settings, *arguments)


def without_privileges(settings, act, *arguments):
    """Act in a process that permissions bind even if it is root's."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")
    return act(settings, *arguments)


def session(deployment, **options):
    """A connection of somebody else to the same database, which commits each statement."""
    database = make_url(deployment.url).database
    where = "-c search_path=serving,public"
    return deployment.server.connect(database, options=where, **options)


@contextmanager
def held(deployment, *statements):
    """A transaction of somebody else that has run these statements and is left open."""
    with session(deployment, autocommit=False) as connection:
        for statement in statements:
            connection.execute(statement)
        yield connection
        connection.rollback()


def waiting(deployment, query):
    """`[(pid, blocking pids)]` of those who wait for a lock in a statement like this."""
    with session(deployment) as connection:
        return connection.execute(WAITING, (query,)).fetchall()


def with_query(settings, *, port=None, **query):
    """The settings with more in the URL of the warehouse: options of PostgreSQL, a proxy's port."""
    url = make_url(settings.warehouse)
    if url.get_backend_name() == "sqlite":
        return settings
    url = url.set(port=port or url.port).update_query_dict(query)
    return replace(settings, warehouse=url.render_as_string(hide_password=False))


def change(settings, *statements, **values):
    """Run statements on the warehouse of a deployment."""
    with Warehouse(settings.warehouse).write() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


def is_as_before(deployment, model="ticks"):
    """Whether an app reads what it read before the fault, and nothing is wrong with it."""
    return deployment.seen(model) == shown(model, [0])


def is_published_once(deployment, model="ticks", states=("published",)):
    """Whether tick 1 is published and its runs ended like this; the next one tidies up."""
    assert deployment.seen(model) == shown(model, [0, 1])
    assert tuple(deployment.states(model, 1)) == tuple(states)
    if "failed" in states:
        deployment.predict(model, 2)
        assert deployment.seen(model) == shown(model, [0, 1, 2])
    assert (deployment.leftovers(), deployment.unsound()) == ([], [])
    return True


def write_artifact(settings, version, size):
    """Keep so many bytes as the artifact of a version."""
    ModelStore(settings.model_store).write("ticks", version, bytes(size), {})


def peak_memory(settings, act, *arguments):
    """By how many bytes the memory of this process had grown when it was largest."""
    before = _memory("VmRSS")
    act(settings, *arguments)
    return _memory("VmHWM") - before


def _memory(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if name in line]
    return int(line.split()[1]) * 1024
