"""The findings of `check`: what was to be proved, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from batch_jobs.errors import BatchJobsError
from batch_jobs.redaction import first_line


@dataclass(frozen=True)
class Finding:
    """What became of one proof.

    Attributes:
        proof: what was to be proved.
        holds: whether it was.
        said: figures, or what is wrong and what would be right.
    """

    proof: str
    holds: bool
    said: str


class Unproved(Exception):
    """A proof that does not hold, in words."""


class Report:
    """What has been found so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.said: list[str] = []
        self._causes: dict[str, str] = {}  # and the proof that has met it first

    def say(self, words: str) -> None:
        """Add a figure to the proof that is being tried."""
        self.said.append(words)

    @contextmanager
    def proof(self, what: str) -> Iterator[None]:
        """Whatever is raised inside is a finding, and the next proof is tried."""
        self.said = []
        began = time.monotonic()
        holds = True
        try:
            yield
        except (Unproved, BatchJobsError) as error:
            holds, self.said = False, [self._once(what, str(error))]
        except Exception as error:  # noqa: BLE001 - the user's queries and estimator may raise anything
            holds, self.said = False, [self._once(what, first_line(error))]
        said = "; ".join(self.said) or f"{time.monotonic() - began:.1f} s"
        self.findings.append(Finding(what, holds, said))

    def _once(self, proof: str, cause: str) -> str:
        """A cause that an earlier proof has met already is told by that one."""
        before = self._causes.setdefault(cause, proof)
        return cause if before == proof else f"for the same reason as: {before}"
