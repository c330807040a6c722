"""What is predicted, in a person's words, as the model's file names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from batch_jobs.model import BatchModel
from prediction_api.champions import Champion

_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"
# How `batch_jobs.scoring.contract` tells why a row is rejected, and what a person is told.
_REASONS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^(\w+) fails not_nullable: .*"), lambda m: f"{m[1]} is missing"),
    (re.compile(r"^(\w+) fails finite: .*"), lambda m: f"{m[1]} is too large a number"),
    (
        re.compile(rf"^(\w+) fails greater_than_or_equal_to\(({_NUMBER})\): ({_NUMBER})"),
        lambda m: f"{m[1]} is {float(m[3]):g}, and must be at least {float(m[2]):g}",
    ),
    (
        re.compile(rf"^(\w+) fails less_than_or_equal_to\(({_NUMBER})\): ({_NUMBER})"),
        lambda m: f"{m[1]} is {float(m[3]):g}, and must be at most {float(m[2]):g}",
    ),
    (
        re.compile(r"^(\w+) fails isin\(([^()]*)\): (.*)"),
        lambda m: f"{m[1]} is {m[3]}, and must be one of {m[2]}",
    ),
    (
        re.compile(r"^(\w+) is not a number: (.*)"),
        lambda m: f"{m[1]} is {m[2]}, which is no number",
    ),
    (re.compile(r"^(\w+) is not text: (.*)"), lambda m: f"{m[1]} is {m[2]}, which is no text"),
)


@dataclass(frozen=True)
class Wording:
    """How a model's predictions are called.

    Attributes:
        title: what the page is headed by.
        positive: of two classes, the one whose probability is the score; None of others.
        labels: words for classes.
    """

    title: str
    positive: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def class_name(self, label: str) -> str:
        """A class in words."""
        return self.labels.get(label, f"class {label}" if label.isdigit() else label)

    def score_is(self, label: str | None) -> str:
        """What a score is the probability of; empty for a value."""
        if label is None:
            return ""
        return self.class_name(label if self.positive is None else self.positive)


def wording_of(name: str, model: BatchModel | None, champion: Champion | None) -> Wording:
    """The words for a model's predictions."""
    if model is None:
        return Wording(name)
    positive = model.positive
    if champion is not None:
        positive = champion.fitted.positive
    elif positive is None and 1 <= len(model.labels) <= 2:
        positive = max(model.labels)  # of two classes the last one, as scikit-learn sorts them
    return Wording(model.title or name, positive, model.labels)


def plain_reason(reason: str) -> str:
    """Why a row was rejected, in a person's words where they are known."""
    return "; ".join(map(_plain, reason.split("; ")))


def _plain(part: str) -> str:
    for pattern, told in _REASONS:
        if found := pattern.fullmatch(part):
            return told(found)
    return part
