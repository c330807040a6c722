"""The windows of a model that can be judged: those whose outcomes are known well enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from batch_jobs.errors import ArtifactError
from batch_jobs.evaluation.published import LOSSES, Kind
from batch_jobs.model import BatchModel
from batch_jobs.monitoring import performance_rows
from batch_jobs.monitoring.performance_rows import PUBLISHED, Figure, Grain, Window
from batch_jobs.registry.deployment import Deployment
from batch_jobs.registry.versions import find_version

ENOUGH = 0.8  # of the share of outcomes that training had: fewer are those that come early


@dataclass(frozen=True)
class JudgedWindow:
    """A window that can be judged, and its figures over all rows by contender and metric."""

    window: Window
    kind: Kind
    figures: Mapping[tuple[str, str], Figure]

    @property
    def published(self) -> Figure:
        """The metric that tells most of what was published."""
        names = {"binary": "log_loss", "classes": "accuracy", "regression": "rmse"}
        return self.figures[PUBLISHED, names[self.kind]]

    def compared(self, contender: str) -> Figure | None:
        """How a contender did on the same rows, if it was asked."""
        return self.figures.get((contender, LOSSES[self.kind]))

    @property
    def scale(self) -> float:
        """What a constant loses, or without one what was published does."""
        constant = self.compared("constant")
        if constant is not None:
            return constant.value
        value = self.published.value
        return {"binary": value, "classes": 1 - value, "regression": value**2}[self.kind]


def judged_windows(
    deployment: Deployment, model: BatchModel, grain: Grain, most: int, now: datetime
) -> list[JudgedWindow]:
    """The last windows of a grain whose outcomes are known well enough, oldest first."""
    warehouse, fewest = deployment.warehouse, model.gate.min_rows
    known = [
        window
        for (of, _), window in performance_rows.windows(warehouse, model.name).items()
        if of == grain and window.end <= now and window.label_count >= fewest
    ][-2 * most :]
    if not known:
        return []
    figures = performance_rows.figures(warehouse, model.name, grain, known[0].start)
    found = []
    for window in known:
        told = {
            (each.contender, each.metric): each
            for each in figures.get(window.start, [])
            if not each.slice and not each.estimated
        }
        version = next(
            (each.model_version for (who, _), each in told.items() if who == PUBLISHED), None
        )
        if version is None:
            continue
        try:
            manifest = find_version(warehouse, model.name, version).manifest
        except ArtifactError:
            continue
        share = window.label_count / max(window.row_count, 1)
        if window.final or share >= ENOUGH * float(manifest.get("label_coverage") or 1):
            found.append(JudgedWindow(window, _kind(told), told))
    return found[-most:]


def _kind(figures: Mapping[tuple[str, str], Figure]) -> Kind:
    if (PUBLISHED, "rmse") in figures:
        return "regression"
    return "classes" if (PUBLISHED, "accuracy") in figures else "binary"
