"""Let every detector judge what a look has found out, and tell roots from their echoes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from batch_jobs.alerts import causes
from batch_jobs.alerts.problems import Problem
from batch_jobs.monitoring.watching import of_airflow, of_machines, of_models, of_training
from batch_jobs.monitoring.watching.facts import Facts
from batch_jobs.redaction import first_line

log = logging.getLogger(__name__)

Key = tuple[str | None, str]  # of a problem: its model and its cause


@dataclass(frozen=True)
class Detector:
    """One thing that may be wrong.

    Attributes:
        causes: the kinds of problem that it finds; what follows a `/` in a cause is no kind.
        find: finds them.
        can: whether the look has found out what it judges by.
    """

    causes: tuple[str, ...]
    find: Callable[[Facts], Iterable[Problem]]
    can: Callable[[Facts], bool] = lambda _: True


@dataclass(frozen=True)
class Judgement:
    """What is wrong, and what was judged at all.

    Attributes:
        problems: roots and echoes.
        echoes: those that another one explains.
        judged: the causes that would have been found; of others nobody knows whether they are over.
        failed: what could not be judged because a detector failed.
    """

    problems: Sequence[Problem]
    echoes: frozenset[Key]
    judged: frozenset[str]
    failed: Sequence[str]

    def is_over(self, cause: str) -> bool:
        """Whether a problem with that cause, which was not found, is over."""
        return kind(cause) in self.judged


def _answers(facts: Facts) -> bool:
    return facts.warehouse.away is None


def _knows_dags(facts: Facts) -> bool:
    return _answers(facts) and (facts.airflow is None or facts.airflow.dags is not None)


def _airflow_answers(facts: Facts) -> bool:
    return facts.airflow is None or facts.airflow.away is None


DETECTORS = (
    Detector(causes.OF_WAREHOUSE, of_machines.warehouse),
    Detector(("outbox",), of_machines.outbox, _answers),
    Detector(("airflow-away",), of_airflow.airflow_away),
    Detector(("airflow-refuses",), of_airflow.airflow_refuses, _airflow_answers),
    Detector(
        tuple(f"airflow-{name.replace('_', '-')}" for name in of_airflow.HURTS),
        of_airflow.unhealthy,
        _airflow_answers,
    ),
    Detector(
        ("dag-file",),
        of_airflow.broken_file,
        lambda facts: facts.airflow is None or facts.airflow.broken_files is not None,
    ),
    Detector(("dag-paused",), of_airflow.dag_paused, _knows_dags),
    Detector(("dag-missing",), of_airflow.dag_missing, _knows_dags),
    Detector(("run-hangs",), of_airflow.hanging_run, _knows_dags),
    Detector(("service-away",), of_machines.service_away),
    Detector(("numbers-still",), of_machines.numbers_still),
    Detector(("disk", "disk-full"), of_machines.disk),
    Detector(("clock",), of_machines.clock_back, _answers),
    Detector(("model-file",), of_training.model_file, _answers),
    Detector(("overdue",), of_models.overdue, _answers),
    Detector(("gap",), of_models.gap, _answers),
    Detector(("attempt-hangs",), of_models.hanging_attempt, _answers),
    Detector(("source-silent",), of_models.source_silent, _answers),
    Detector(("source-unasked",), of_models.source_unasked, _answers),
    Detector(("no-champion",), of_training.no_champion, _knows_dags),
    Detector(("never-ran",), of_training.never_ran, _knows_dags),
    Detector(("training-overdue",), of_training.training_overdue, _knows_dags),
    Detector(("gate-refuses",), of_training.gate_refuses, _answers),
    Detector(("approval",), of_training.approval, _knows_dags),
)
OWN = frozenset(cause for detector in DETECTORS for cause in detector.causes) | {"watch-fails"}

_UNPUBLISHED = ("overdue", "gap", "never-ran", "attempt-hangs", "run-hangs")
_STOPPED = (*_UNPUBLISHED, "training-overdue", "no-champion")
# What follows from what: of a root of the whole deployment for every model, else for its own.
EXPLAINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(causes.OF_WAREHOUSE, (*_STOPPED, "outbox", "service-away", "numbers-still")),
    causes.STORE: _STOPPED,
    causes.DISK: ("disk", *causes.OF_WAREHOUSE, *_STOPPED),
    "airflow-away": _STOPPED,
    "airflow-metadatabase": (
        *("airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "dag-missing"),
        *_STOPPED,
    ),
    "airflow-scheduler": (*_STOPPED, "approval"),
    "dag-file": ("dag-missing",),
    "dag-paused/predict": _UNPUBLISHED,
    "dag-paused/train": ("training-overdue", "no-champion"),
    "dag-missing/predict": _UNPUBLISHED,
    "dag-missing/train": ("training-overdue", "no-champion"),
    "model-file": ("dag-missing", *_STOPPED),
    "approval": ("no-champion",),
    "no-champion": _UNPUBLISHED,
    "source-silent": ("overdue", "gap"),
    "attempt-hangs": ("overdue", "gap", "run-hangs"),
    "run-hangs/predict": ("overdue", "gap"),
    "run-hangs/train": ("training-overdue",),
    "clock": ("training-overdue", "numbers-still", "approval", *_UNPUBLISHED),
    # Others tell of a failure with its own words; that something is then late is no news.
    "predict": ("overdue", "gap"),
    "train": ("training-overdue",),
}


def kind(cause: str) -> str:
    """The kind of a cause, which a detector finds."""
    return cause.partition("/")[0]


def judge(facts: Facts, detectors: Sequence[Detector] = DETECTORS) -> Judgement:
    """What is wrong. A detector that fails is one warning, and stops no other."""
    problems: list[Problem] = []
    judged: set[str] = {"watch-fails"}
    failed: list[str] = []
    for detector in detectors:
        if not detector.can(facts):
            continue
        try:
            problems += detector.find(facts)
            judged.update(detector.causes)
        except Exception as error:
            log.exception("a detector failed")
            failed.append(f"{detector.causes[0]}: {first_line(error)}")
    if failed:
        problems.append(_failure(failed))
    if facts.behind:  # what was late may seem to be in time again
        judged -= {*EXPLAINS["clock"]}
    return Judgement(problems, frozenset(_echoes(problems, facts)), frozenset(judged), failed)


def _failure(failed: Sequence[str]) -> Problem:
    return Problem(
        cause="watch-fails",
        model=None,
        title=f"the watch cannot judge {' or '.join(each.partition(':')[0] for each in failed)}",
        detail="; ".join(failed),
        severity="warn",
        impact="nobody would hear of that; all else is watched",
        next_step="see the watch's log, and report it",
        subject="watch",
    )


def _echoes(problems: Sequence[Problem], facts: Facts) -> Iterator[Key]:
    """Those that another problem explains, or an incident that somebody else has opened."""
    roots = {(problem.model, problem.cause) for problem in problems}
    theirs = {key for key in facts.warehouse.open if kind(key[1]) not in OWN}
    for problem in problems:
        for model, cause in roots | theirs:
            if model in (None, problem.model) and kind(problem.cause) in _explained(cause):
                yield problem.model, problem.cause


def _explained(cause: str) -> tuple[str, ...]:
    stage = cause.partition("-")[0]  # `predict-killed` and its like
    return EXPLAINS.get(cause) or EXPLAINS.get(kind(cause)) or EXPLAINS.get(stage) or ()
