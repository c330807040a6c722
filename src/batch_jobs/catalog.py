"""Find model files and read them: one file, one BatchModel, no heavy import."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from batch_jobs.errors import ConfigurationError, ModelFileError, UnknownModelError
from batch_jobs.model import NAME_PATTERN, BatchModel
from batch_jobs.settings import BUNDLED_MODELS

Source = str | BatchModel  # an importable package with model files, or a model itself


class ModelFile(NamedTuple):
    """A file of a package of models, whether or not there is a model in it.

    Attributes:
        name: of its model; of a file that is misnamed, what it might be renamed to.
        stem: the file's name without `.py`.
        module: what is imported.
        problem: why its name or its place is wrong, if it is.
    """

    name: str
    stem: str
    module: str
    problem: str | None = None


def model_names(sources: Sequence[Source]) -> list[str]:
    """Names of all models, sorted; a name in an earlier source hides a later one.

    Each could be the name of a model: a misnamed file goes by one that nothing else has.

    Raises:
        ConfigurationError: a package cannot be found.
    """
    packages, given = _apart(sources)
    return sorted(_seen(packages).keys() | given.keys())


def hidden_files(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """The modules of model files that an earlier package hides, each with the one that hides it.

    Raises:
        ConfigurationError: a package cannot be found.
    """
    packages, _ = _apart(sources)
    seen = _seen(packages)
    modules = [file.module for file in _model_files(packages) if file.problem is None]
    names = [(module, seen[module.rpartition(".")[2]].module) for module in modules]
    return [(module, first) for module, first in names if module != first]


def load_model(name: str, sources: Sequence[Source]) -> BatchModel:
    """Read one model file, unless the model itself is given.

    Raises:
        UnknownModelError: no file has that name.
        ModelFileError: the file is misnamed or cannot be imported, or its `model` is not a valid
            BatchModel.
    """
    packages, given = _apart(sources)
    if name in given:
        return given[name]
    file = _plain_file(packages, name)
    if file is None:
        seen = _seen(packages)
        file = seen.get(name) or next((file for file in seen.values() if file.stem == name), None)
        if file is None:
            raise UnknownModelError(name, sorted(seen))
    subject = f"model file {_printable(file.stem)}.py"
    if file.problem is not None:
        raise ModelFileError(subject, [file.problem])
    try:
        module = import_module(file.module)
    except ValidationError as error:
        raise ModelFileError(subject, _problems(error)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's file raises, or a watchdog during it
        raise ModelFileError(subject, [f"{type(error).__name__}: {error}"]) from error
    model = getattr(module, "model", None)
    if not isinstance(model, BatchModel):
        raise ModelFileError(subject, ["must assign a BatchModel to the name `model`"])
    return model.model_copy(update={"name": file.name, "file": module.__file__ or ""})


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
    list(_model_files(packages))
    spec = find_spec(packages[0])
    folder = next(iter(spec.submodule_search_locations or [""])) if spec else ""
    return packages[0], Path(folder)


def _apart(sources: Sequence[Source]) -> tuple[list[str], dict[str, BatchModel]]:
    packages = [source for source in sources if isinstance(source, str)]
    given = [source for source in reversed(sources) if isinstance(source, BatchModel)]
    return packages, {model.name: model for model in given}


def _plain_file(packages: Sequence[str], name: str) -> ModelFile | None:
    """The file of that name, found without a look at all the others; None if it is not so plain."""
    if not NAME_PATTERN.fullmatch(name):
        return None
    for package in packages:
        paths = [Path(folder) / name for folder in _folders(package)]
        if any(path.exists() for path in paths):
            return None
        if any(path.with_suffix(".py").is_file() for path in paths):
            return _model_file(package, name)
    return None


def _seen(packages: Sequence[str]) -> dict[str, ModelFile]:
    """Every model file by the name it goes by."""
    seen: dict[str, ModelFile] = {}
    found = list(_model_files(packages))
    for file in sorted(found, key=lambda file: not NAME_PATTERN.fullmatch(file.stem)):
        if NAME_PATTERN.fullmatch(file.stem):
            seen.setdefault(file.name, file)
        else:
            names = (f"{file.name[:58]}_{number}" if number else file.name for number in count())
            free = next(name for name in names if name not in seen)
            seen[free] = file._replace(name=free)
    return seen


def _model_files(packages: Sequence[str]) -> Iterator[ModelFile]:
    for package in packages:
        stems: dict[str, bool] = {}
        for folder in _folders(package):
            stems |= {found.name: found.ispkg for found in pkgutil.iter_modules([folder])}
            for path in sorted(Path(folder).glob("*.py")):
                stems.setdefault(path.stem, False)
                if stems[path.stem]:
                    yield _model_file(package, path.stem, f"the folder {path.stem} hides it")
        for stem, is_folder in stems.items():
            if not is_folder and not stem.startswith(("_", ".")):
                yield _model_file(package, stem)


def _model_file(package: str, stem: str, problem: str | None = None) -> ModelFile:
    name = stem
    if not NAME_PATTERN.fullmatch(stem):
        words = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
        name = (words if words[:1].isalpha() else f"model_{words}".rstrip("_"))[:63]
        problem = (
            f"its name must match {NAME_PATTERN.pattern}, because it becomes a DAG id; rename it, "
            f"for example to {name}.py, or remove it"
        )
    elif problem is not None:
        problem = f"{problem}; rename one of the two"
    return ModelFile(name, stem, f"{package}.{stem}", problem)


def _folders(package: str) -> list[str]:
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
    return list(spec.submodule_search_locations)


def _printable(name: str) -> str:
    """A file's name, whose bytes need not be text."""
    return name.encode(errors="backslashreplace").decode()


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'model'}: {problem['msg']}"
        for problem in error.errors()
    ]
