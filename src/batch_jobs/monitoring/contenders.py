"""Who is compared with what was published, and what they answer to the same rows.

A world that got harder is harder for everybody; a model that got worse is worse than others on the
very same rows. So a constant, the version before and the newest one trained since are asked what
readers were told, each on the rows only that it cannot have learnt from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import UnavailableError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.monitoring.outcomes import drawn, intervals_of
from batch_jobs.redaction import first_line
from batch_jobs.registry.deployment import Deployment
from batch_jobs.registry.loading import load_version
from batch_jobs.registry.versions import ModelVersion, from_row

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

MOST_ROWS = 50_000  # of a week that others are asked; of more, those whose keys' hashes are lowest
CHUNK_ROWS = 50_000
LEAST_SHARE = 0.5  # of a week's time that a version may not have learnt from


@dataclass(frozen=True)
class Answered:
    """What one contender answered to the rows of a week; null where it was not asked.

    Attributes:
        version: its name; of a constant, that of the version that served.
        scores: as they would be published, float64 of shape (rows,).
        predicted: the class, as text; None of a regression.
        classes: text of the classes in the order of `probabilities`.
        probabilities: of all classes, shape (rows, classes); None where they are not told.
    """

    version: str
    scores: NDArray[np.float64]
    predicted: NDArray[Any] | None = None
    classes: Sequence[str] | None = None
    probabilities: NDArray[np.float64] | None = None


@repeatable
def chosen(
    warehouse: Warehouse, name: str, serving: ModelVersion, week: Interval, horizon: datetime
) -> dict[str, ModelVersion]:
    """The versions to compare with: `again` (itself), `before`, and `since` as far as there are.

    Args:
        warehouse: where they are registered.
        name: of the model.
        serving: the version that scored most rows of the week.
        week: whose rows are to be scored again.
        horizon: what was trained or promoted later does not count.
    """
    with warehouse.read() as connection:
        versions = [
            from_row(row)
            for row in connection.execute(
                text("SELECT * FROM model_versions WHERE model = :model AND created_at <= :until"),
                {"model": name, "until": stored_time(horizon)},
            )
        ]
        reigns = connection.scalars(
            text("""
                SELECT version FROM promotions WHERE model = :model AND promoted_at <= :until
                ORDER BY promotion_id"""),
            {"model": name, "until": stored_time(week.end)},
        ).all()
    kept = {version.version: version for version in versions if version.removed_at is None}
    middle = week.start + (week.end - week.start) * LEAST_SHARE
    since = [
        version
        for version in kept.values()
        if version.as_of > serving.as_of and learnt_until(version) <= middle
    ]
    found = {"again": serving.version} if serving.version in kept else {}
    if since:
        newest = max(since, key=lambda version: (version.as_of, version.version))
        found["since"] = newest.version
    if serving.version in reigns:
        last = len(reigns) - 1 - reigns[::-1].index(serving.version)
        before = [version for version in reigns[:last] if version != serving.version]
        if before and before[-1] in kept:
            found["before"] = before[-1]
    return {contender: kept[version] for contender, version in found.items()}


def learnt_until(version: ModelVersion) -> datetime:
    """The moment before which its own rows begin: it may have learnt from them."""
    cut = version.manifest.get("cut")
    return loaded_time(cut or version.as_of)


def constant(
    rows: pd.DataFrame, manifests: Mapping[str, Mapping[str, Any]], serving: str
) -> Answered | None:
    """What the share or the mean known from training answers; None if it was not kept.

    Each row gets that of the version that scored it, as its readers might have had it.
    """
    import numpy as np

    scores = np.full(len(rows), np.nan)
    predicted = np.full(len(rows), None, dtype="object")
    for version, places in rows.groupby("model_version").indices.items():
        manifest = manifests[str(version)]
        told, classes = manifest.get("constant"), manifest.get("classes")
        if not told:  # an older release trained it
            continue
        if classes is None:
            scores[places] = told[0]
            continue
        likely = int(np.argmax(told))
        positive = manifest.get("positive")
        scores[places] = told[likely if positive is None else classes.index(positive)]
        predicted[places] = classes[likely]
    return Answered(serving, scores, predicted) if np.isfinite(scores).any() else None


class Asked:
    """Versions that score the rows of a week again, each with the features that it knows.

    Args:
        deployment: where they are.
        model: as its file has it.
        rows: of a week, as of `outcomes.read_week`, numbered from 0.

    Attributes:
        notes: why a version could not be asked, one sentence each.
    """

    def __init__(self, deployment: Deployment, model: BatchModel, rows: pd.DataFrame) -> None:
        self._deployment, self._model = deployment, model
        share = MOST_ROWS / max(len(rows), 1)
        self._rows = rows if share >= 1 else rows[drawn(rows["entity_id"], share)]
        self._size = len(rows)
        self._features: list[tuple[tuple[str, str, object], pd.DataFrame]] = []
        self.notes: list[str] = []

    def answers(self, version: ModelVersion) -> Answered | None:
        """What it answers; None if it cannot be asked, which a note then tells."""
        try:
            return self._answers(version)
        except (UnavailableError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - its query and its estimator raise anything
            self.notes.append(f"{version.version} cannot score the rows again: {first_line(error)}")
            return None

    def values(self, version: ModelVersion, names: Sequence[str]) -> pd.DataFrame | None:
        """Features of the rows as they are now, null where there is no such row any more."""
        try:
            found = self._read(self._deployment.trained(self._model.name, version.version))
        except (UnavailableError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the source may have changed in any way
            self.notes.append(f"no slices: {first_line(error)}")
            return None
        known = [name for name in names if name in found]
        return found.set_index("place")[known].reindex(range(self._size))

    def _answers(self, version: ModelVersion) -> Answered:
        import numpy as np

        trained = self._deployment.trained(self._model.name, version.version)
        rows = self._read(trained)
        fitted = load_version(self._deployment.settings, self._model, version)
        width = 1 if fitted.classes is None else len(fitted.classes)
        scores = np.full(self._size, np.nan)
        predicted = np.full(self._size, None, dtype="object")
        probabilities = np.full((self._size, width), np.nan)
        for first in range(0, len(rows), CHUNK_ROWS):
            part = rows.iloc[first : first + CHUNK_ROWS]
            answer = fitted.answers(fitted.inputs(part))
            place = part["place"].to_numpy()
            told, labels = fitted.scores_and_labels(answer)
            scores[place], probabilities[place] = told, answer
            predicted[place] = np.array(labels.to_pylist(), dtype="object")
        wild = ~np.isfinite(scores)
        scores[wild] = np.nan
        if fitted.classes is None:
            return Answered(version.version, scores)
        return Answered(version.version, scores, predicted, fitted.classes, probabilities)

    def _read(self, trained: BatchModel) -> pd.DataFrame:
        """The features of the rows, with the `place` of each among them; read once a contract."""
        key = (trained.mode, trained.features_query, trained.features)
        for known, found in self._features:
            if known == key:
                return found
        found = self._placed(trained)
        self._features.append((key, found))
        return found

    def _placed(self, trained: BatchModel) -> pd.DataFrame:
        import pandas as pd

        from batch_jobs.scoring import contract

        wanted = set(self._rows["entity_id"])
        read = []
        for interval in intervals_of(self._model, self._rows):
            chunks = self._deployment.warehouse.stream(
                trained.features_query, bounds(interval), CHUNK_ROWS
            )
            for chunk in chunks:
                checked = contract.check_features(trained, chunk, interval).rows
                read.append(checked[checked["entity_id"].isin(wanted)])
        features = pd.concat(read, ignore_index=True)
        place = self._rows.assign(place=self._rows.index)[
            ["entity_id", "interval_start", "interval_end", "place"]
        ]
        found = place.merge(features, on="entity_id")
        inside = found["as_of"] >= found["interval_start"]
        inside &= found["as_of"] < found["interval_end"]
        return found[inside].drop_duplicates("place").sort_values("place", ignore_index=True)
