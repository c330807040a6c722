"""One week of a model before its judge: who is compared, how, and the figures of its windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.monitoring import contenders, judged_rows
from batch_jobs.monitoring.contenders import Answered, Asked
from batch_jobs.monitoring.judged_rows import Rules
from batch_jobs.monitoring.performance_rows import Figure
from batch_jobs.registry.deployment import Deployment
from batch_jobs.registry.versions import ModelVersion, find_version

if TYPE_CHECKING:
    import pandas as pd

METHOD = 1  # another number has all windows that are not final computed anew


class WeeksJudge:
    """Judges the windows of one week; the contenders are asked at most once.

    Args:
        deployment: where the versions are.
        model: as its file has it.
        rows: of the week, as of `outcomes.read_week`.
        week: which.
        now: versions that were made later are not asked.
    """

    def __init__(
        self,
        deployment: Deployment,
        model: BatchModel,
        rows: pd.DataFrame,
        week: Interval,
        now: datetime,
    ) -> None:
        self._deployment, self._model, self._rows = deployment, model, rows
        self._asked = Asked(deployment, model, rows)
        names = sorted(rows["model_version"].unique())
        versions = {name: find_version(deployment.warehouse, model.name, name) for name in names}
        self._manifests = {name: version.manifest for name, version in versions.items()}
        counts = rows["model_version"].value_counts()
        self._serving = versions[max(names, key=lambda name: (counts[name], name))]
        horizon = min(now, week.end + model.monitor.performance.labels_within)
        self._others = contenders.chosen(
            deployment.warehouse, model.name, self._serving, week, horizon
        )
        self._rules = _rules(model, rows, list(self._manifests.values()))
        self._slices = _slices(model)
        self._answered: dict[str, Answered] | None = None
        self._values: pd.DataFrame | None = None

    @property
    def notes(self) -> list[str]:
        """Why somebody could not be asked."""
        return self._asked.notes

    def digest(self, rows: pd.DataFrame) -> str:
        """Of all that the figures of these rows rest on."""
        rules = self._rules
        told = {
            "method": METHOD,
            "kind": rules.kind,
            "classes": rules.classes,
            "confidence": rules.confidence,
            "fewest": rules.fewest,
            "slices": self._slices,
            "serving": self._serving.version,
            "others": {name: version.version for name, version in self._others.items()},
        }
        found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        columns = ["entity_id", "interval_start", "score", "predicted", "model_version"]
        found.update(hashed(rows[columns].assign(truth=judged_rows.truth_of(rules, rows))))
        return found.hexdigest()

    def figures(self, rows: pd.DataFrame, *, brief: bool) -> list[Figure]:
        """All figures of the rows of one window; `brief` ones tell of contenders the loss alone."""
        if self._slices and self._values is None:
            self._values = self._asked.values(self._serving, self._slices)
        if self._answered is None and rows["known_at"].notna().any():
            self._answered = self._ask()
        # Which row of the week each is: rows of one key and interval were published once or more.
        place = self._place(rows)
        return judged_rows.figures_of(
            replace(self._rules, brief=brief),
            rows.set_axis(place, axis="index"),
            self._answered or {},
            self._values,
            self._serving.version,
        )

    def _place(self, rows: pd.DataFrame) -> Any:
        keys = ["entity_id", "interval_start", "interval_end", "run_id"]
        numbered = self._rows[keys].assign(place=self._rows.index)
        return rows[keys].merge(numbered, on=keys, how="left")["place"].to_numpy("int64")

    def _ask(self) -> dict[str, Answered]:
        found = {}
        told = contenders.constant(self._rows, self._manifests, self._serving.version)
        if told is not None:
            found["constant"] = told
        for name, version in self._others.items():
            answered = self._asked.answers(version)
            if answered is not None:
                found[name] = self._honest(name, version, answered)
        return found

    def _honest(self, name: str, version: ModelVersion, answered: Answered) -> Answered:
        """Without the answers to what it has learnt from, or, of itself, to what others scored."""
        import numpy as np

        leave_out = (
            self._rows["model_version"] != version.version
            if name == "again"
            else self._rows["interval_start"] < contenders.learnt_until(version)
        )
        answered.scores[leave_out.to_numpy()] = np.nan
        return answered


def hashed(rows: pd.DataFrame) -> bytes:
    """What is the same for the same rows in the same order only."""
    import pandas as pd

    found = pd.util.hash_pandas_object(rows, index=False).to_numpy()
    return found.astype("<u8").tobytes()


def _rules(model: BatchModel, rows: pd.DataFrame, manifests: Sequence[Mapping[str, Any]]) -> Rules:
    """How a model is judged; its classes are those of its versions, whichever of them came."""
    from batch_jobs.evaluation.ground_truth import classes_of

    classes = classes_of(rows.rename(columns={"label": "truth"}), manifests)
    return Rules(
        kind=judged_rows.kind_of(classes),
        classes=classes,
        population=model.mode == "replace",
        confidence=model.monitor.performance.confidence,
        fewest=model.gate.min_rows,
    )


def _slices(model: BatchModel) -> list[str]:
    named = model.monitor.performance.slices
    return list(model.gate.slices if named is None else named)
