"""One opened deployment: its models, warehouse and model store, each found and checked once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.model import BatchModel
from batch_jobs.registry.loading import as_trained, load_version
from batch_jobs.registry.references import profiler_of
from batch_jobs.registry.store import ModelStore
from batch_jobs.registry.versions import GOLDEN, ModelVersion, find_version, whole_manifest
from batch_jobs.settings import Settings

if TYPE_CHECKING:
    from batch_jobs.scoring.predict import Predictor


class Deployment:
    """What the verbs work on. Whoever calls one verb may give it the settings instead.

    It is for one attempt at one piece of work, however many intervals that has: what it has read of
    model files and versions stays as it was.

    Args:
        settings: where everything is.
        predictors: that an earlier deployment of these settings has loaded, by model and version.
    """

    def __init__(
        self, settings: Settings, predictors: dict[tuple[str, str], Predictor] | None = None
    ) -> None:
        self.settings = settings
        self._models: dict[str, BatchModel] = {}
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._trained: dict[tuple[str, str], BatchModel] = {}
        self._predictors = {} if predictors is None else predictors

    @cached_property
    def warehouse(self) -> Warehouse:
        """The warehouse, known to be there and of this release.

        Raises:
            ConfigurationError: there is none, or an older release made it.
            WarehouseUnavailableError: the database does not answer.
        """
        return Warehouse.existing(self.settings.warehouse)

    @cached_property
    def store(self) -> ModelStore:
        """The model store."""
        return ModelStore(self.settings.model_store, self.settings.model_cache)

    def model(self, name: str) -> BatchModel:
        """A model as its file has it.

        Raises:
            UnknownModelError: there is no such file.
            ModelFileError: the file is no model's.
        """
        if name not in self._models:
            self._models[name] = load_model(name, self.settings.models)
        return self._models[name]

    def trained(self, name: str, version: str) -> BatchModel:
        """A model as it was when a version was trained; see `loading.as_trained`."""
        key = (name, version)
        if key not in self._trained:
            found = self._version(name, version)
            self._trained[key] = as_trained(self.settings, self.model(name), found)
        return self._trained[key]

    def predictor(self, name: str, version: str, *, profiles: bool = False) -> Predictor:
        """The predictor of a version, loaded and verified; the one before it is let go.

        Args:
            name: of which model.
            version: which one.
            profiles: whether it tells what the rows looked like, as far as its training allows.

        Raises:
            ArtifactError: there is no such version, or it does not load.
        """
        from batch_jobs.scoring.predict import Predictor

        key = (name, version)
        if key not in self._predictors:
            found = self._version(name, version)
            fitted = load_version(self.settings, self.model(name), found)
            self._predictors.clear()
            self._predictors[key] = Predictor(fitted)
            if profiles:
                self._predictors[key].profiler = profiler_of(found)
        return self._predictors[key]

    def is_sound(self, name: str, version: str) -> bool:
        """Whether a version answers its golden rows still; false too if it has none."""
        from batch_jobs.scoring.golden import unlike_golden

        golden = whole_manifest(self.warehouse, self._version(name, version)).get(GOLDEN)
        try:
            fitted = self.predictor(name, version).fitted
            return golden is not None and unlike_golden(fitted, golden) is None
        except Exception:  # noqa: BLE001 - the estimator is the user's code
            return False

    def _version(self, name: str, version: str) -> ModelVersion:
        key = (name, version)
        if key not in self._versions:
            self._versions[key] = find_version(self.warehouse, name, version)
        return self._versions[key]


Place = Settings | Deployment


def opened(place: Place) -> Deployment:
    """The deployment of that place; one that is opened already is taken as it is."""
    return place if isinstance(place, Deployment) else Deployment(place)
