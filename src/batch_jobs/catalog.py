"""Find model files and read them: one file, one BatchModel, no heavy import."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from batch_jobs.errors import ConfigurationError, ModelFileError, UnknownModelError
from batch_jobs.model import NAME_PATTERN, BatchModel
from batch_jobs.settings import BUNDLED_MODELS

Source = str | BatchModel  # an importable package with model files, or a model itself


def model_names(sources: Sequence[Source]) -> list[str]:
    """Names of all models, sorted; a name in an earlier source hides a later one.

    Raises:
        ConfigurationError: a package cannot be found.
    """
    packages, given = _apart(sources)
    return sorted({name for name, _ in _model_modules(packages)} | set(given))


def load_model(name: str, sources: Sequence[Source]) -> BatchModel:
    """Read one model file, unless the model itself is given.

    Raises:
        UnknownModelError: no file has that name.
        ModelFileError: the file cannot be imported, or its `model` is not a valid BatchModel.
    """
    packages, given = _apart(sources)
    if name in given:
        return given[name]
    modules = dict(reversed(list(_model_modules(packages))))
    if name not in modules:
        raise UnknownModelError(name, sorted(modules))
    subject = f"model file {name}.py"
    try:
        module = import_module(modules[name])
    except ValidationError as error:
        raise ModelFileError(subject, _problems(error)) from error
    except (Exception, SystemExit) as error:  # whatever the user's file raises is a finding
        raise ModelFileError(subject, [f"{type(error).__name__}: {error}"]) from error
    model = getattr(module, "model", None)
    if not isinstance(model, BatchModel):
        raise ModelFileError(subject, ["must assign a BatchModel to the name `model`"])
    if not NAME_PATTERN.match(name):
        raise ModelFileError(
            subject, [f"its name must match {NAME_PATTERN.pattern}, because it becomes a DAG id"]
        )
    return model.model_copy(update={"name": name, "file": module.__file__ or ""})


def own_package(sources: Sequence[Source]) -> tuple[str, Path]:
    """The first package of a team's own, and its folder.

    Raises:
        ConfigurationError: there is none, or it cannot be found.
    """
    packages, _ = _apart(sources)
    if packages[0] == BUNDLED_MODELS:
        raise ConfigurationError(
            "not set: BATCH_JOBS_MODELS, the importable package for your model files (for example "
            "my_team.models)"
        )
    list(_model_modules(packages))
    spec = find_spec(packages[0])
    folder = next(iter(spec.submodule_search_locations or [""])) if spec else ""
    return packages[0], Path(folder)


def _apart(sources: Sequence[Source]) -> tuple[list[str], dict[str, BatchModel]]:
    packages = [source for source in sources if isinstance(source, str)]
    given = [source for source in reversed(sources) if isinstance(source, BatchModel)]
    return packages, {model.name: model for model in given}


def _model_modules(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            spec = find_spec(package)
        except (ModuleNotFoundError, ValueError):
            spec = None
        except Exception as error:  # importing the user's parent package may raise anything
            raise ConfigurationError(
                f"BATCH_JOBS_MODELS names {package!r}, whose import fails: "
                f"{type(error).__name__}: {error}"
            ) from error
        if spec is None or spec.submodule_search_locations is None:
            raise ConfigurationError(
                f"BATCH_JOBS_MODELS names {package!r}, which is not an importable package"
            )
        for module in pkgutil.iter_modules(list(spec.submodule_search_locations)):
            if not module.ispkg and not module.name.startswith("_"):
                yield module.name, f"{package}.{module.name}"


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'model'}: {problem['msg']}"
        for problem in error.errors()
    ]
