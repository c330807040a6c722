"""The root cause of a failure, by the error that was left, and what to do about it.

Errors come as a line of text, class name first: a task that runs a command has no more, and what is
kept between processes is text. One dead database is one cause, whatever failed for it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from batch_jobs.alerts.problems import Severity

KILLED = "killed"
LIKE = 150  # characters of an error by which others are like it, however much of it was kept
OWN_MISTAKE = "FormError: "
_COMMAND = re.compile(r"`(?:batch-jobs|\./run|airflow|pip|chmod|chown|df) ")
# Tasks that fail so only echo another one.
ECHOES = ("IncompleteError: ",)


@dataclass(frozen=True)
class Kind:
    """A kind of cause.

    Attributes:
        name: of the cause, in words and hyphens.
        pattern: what its errors look like.
        title: what is wrong, with `{task}` for the task that failed.
        next_step: what to do; None if the error itself says it.
        scope: whether it concerns the whole `deployment`, a `model` whatever failed, or the `dag`
            that failed.
        severity: how urgent it is.
        is_told_apart: whether errors of this kind that read differently have different causes.
    """

    name: str
    pattern: str
    title: str
    next_step: str | None = None
    scope: Literal["deployment", "model", "dag"] = "dag"
    severity: Severity = "page"
    is_told_apart: bool = False


WAREHOUSE, LOCKED, REFUSES = "warehouse-away", "warehouse-locked", "warehouse-refuses"
DISK, STORE, VERSION = "disk-full", "store-away", "version"
KINDS = (
    Kind(
        DISK,
        r"No space left on device|disk is full|DiskFull|Disk quota exceeded|ENOSPC|"
        r"could not (?:extend|write).{0,80}space",
        "The disk is full",
        "Make room on the disks of the warehouse and of Airflow: `df -h` shows which is full. "
        "What was not published is published by the next run.",
        "deployment",
    ),
    Kind(
        REFUSES,
        r"the warehouse .{0,300} refuses",
        "The warehouse refuses us",
        "Its rights, password or tables have changed: mend that, then clear the task.",
        "deployment",
    ),
    Kind(
        LOCKED,
        r"database is locked|database table is locked|canceling statement due to lock timeout",
        "The warehouse is locked: nobody can write",
        "Find out who holds it: on SQLite `fuser` on its file, on PostgreSQL `pg_stat_activity`. "
        "The next run publishes what was missed.",
        "deployment",
    ),
    Kind(
        WAREHOUSE,
        r"^WarehouseUnavailableError|the warehouse .{0,300} did not (?:answer|let)|"
        r"cannot make or open the warehouse",
        "The warehouse does not answer",
        "Look at the database. Airflow tries again by itself, and the next run publishes what was "
        "missed.",
        "deployment",
    ),
    Kind(
        STORE,
        r"^StoreUnavailableError|the model store .{0,300} did not answer",
        "The model store does not answer",
        "Look at the store and at its credentials. Airflow tries again by itself.",
        "deployment",
    ),
    Kind(
        VERSION,
        r"^WarehouseVersionError|made by a newer batch-jobs",
        "Upgrade batch-jobs here",
        "Upgrade this installation; nothing was written.",
        "deployment",
    ),
    Kind(
        "model-file",
        r"^ModelFileError|model file \S+\.py",
        "The model file is broken",
        "Mend the file; its DAGs run again by themselves.",
        "model",
    ),
    Kind(
        "out-of-memory",
        r"^MemoryError|exit code (?:-9|137)\b|Cannot allocate memory",
        "{task} ran out of memory",
        "Lower `chunk_rows` or raise `parts` in the model file; the next run heals the gap.",
    ),
    Kind("source-silent", r"the source gave no row for", "The source is silent", scope="model"),
    Kind("rejects", r"rows were rejected", "Too many rows were rejected"),
    Kind("volume", r"rows were read where", "The source gave an odd number of rows"),
    Kind("constant-scores", r"got the same score", "All rows got the same score"),
    Kind(
        "circuit-breaker",
        r"^CircuitBreakerError",
        "The circuit breaker holds predictions back",
        is_told_apart=True,
    ),
    Kind(
        "contract",
        r"^ContractError",
        "The rows do not fit the model",
        "The source or the query is wrong: mend it, then clear the task.",
        is_told_apart=True,
    ),
    Kind(
        "artifact",
        r"^ArtifactError",
        "The model's artifact is unfit",
        "Restore the file, or go back: `batch-jobs rollback {model} --to VERSION --reason WHY`",
    ),
    Kind(
        "training-data", r"^TrainingDataError", "There is too little to learn from", severity="warn"
    ),
    Kind("no-champion", r"^NoChampionError", "No version serves yet", None, "model", "warn"),
    Kind("configuration", r"^ConfigurationError", "The configuration is wrong", is_told_apart=True),
    Kind(
        "timeout",
        r"AirflowTaskTimeout",
        "{task} took too long",
        "See in its log what it waited for.",
    ),
    Kind("incomplete", r"^IncompleteError", "The counts of a run do not add up"),
)
OTHER = Kind("error", "", "{task} failed", is_told_apart=True)
# Whoever meets these, a task or the watch, tells of one incident.
OF_WAREHOUSE = (WAREHOUSE, LOCKED, REFUSES, VERSION)
PATTERNS = {kind.name: re.compile(kind.pattern) for kind in KINDS}


@dataclass(frozen=True)
class Cause:
    """A cause as it was found.

    Attributes:
        name: of the cause, as it is muted by, without its DAG.
        kind: which kind it is.
        error: the error, without what is only wrapped around it.
    """

    name: str
    kind: Kind
    error: str


def classify(error: str) -> Cause:
    """The root cause of an error.

    Args:
        error: one line, class name first, without secrets.
    """
    unwrapped = _unwrapped(error)
    kind = next((kind for kind in KINDS if PATTERNS[kind.name].search(unwrapped)), OTHER)
    name = kind.name
    if kind.is_told_apart:
        name += f"/{_fingerprint(unwrapped)}"
    return Cause(name, kind, unwrapped)


def of_dag_file(error: str) -> str:
    """The cause of a DAG file that does not load: files with one error have one."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    # Process ids and addresses differ from one parse to the next; the error is the same.
    same = re.sub(r"0x[0-9a-f]+|\d+", "#", "".join(lines[-1:]))
    return f"dag-file/{hashlib.sha256(same[:LIKE].encode()).hexdigest()[:4]}"


def of_warehouse(error: str) -> str:
    """The cause of a question to the warehouse that was not answered: one of `OF_WAREHOUSE`."""
    name = classify(error).kind.name
    return name if name in OF_WAREHOUSE else WAREHOUSE


def kind_of(name: str) -> Kind:
    """The kind of that name."""
    return next(kind for kind in KINDS if kind.name == name)


def step_in(error: str) -> str | None:
    """What an error itself says is to be done: all from the first clause with a command in it."""
    parts = re.split(r"(?<=[;:]) ", error)
    for place, part in enumerate(parts):
        if _COMMAND.search(part):
            return " ".join(parts[place:])
    return None


def _unwrapped(error: str) -> str:
    """The error itself: of a command, or of the first of several intervals."""
    error = re.sub(r"^\w*Exception: (?=exit code )", "", error)
    error = re.sub(r"^exit code (?!-9\b|137\b)-?\d+: (?:error: )?", "", error)
    return re.sub(
        r"^(?:IntervalsError: )?\d+ intervals are not published, from .{1,80}? on: ", "", error
    )


def _fingerprint(error: str) -> str:
    """Errors that say the same of other rows, runs and times have the same one."""
    kind, colon, said = error.partition(": ")
    words = re.sub(r"for example [^;]*", "", said if colon else error).lower()
    words = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "#", words)
    same = ["#" if re.search(r"[\d/\\]", word) else word for word in words.split()]
    short = hashlib.sha256(" ".join(same).encode()).hexdigest()[:4]
    named = re.fullmatch(r"(?:[a-z_]\w*\.)*([A-Z]\w{2,40})", kind) if colon else None
    return f"{named[1].lower()}-{short}" if named and "Error" in kind else short
