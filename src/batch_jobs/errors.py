"""Every error of the package, as one tree.

    BatchJobsError              exit 1   the job failed
    ├── InputError              exit 2   wrong usage, configuration or data: repeating will not help
    │   ├── ConfigurationError           a setting, connection or folder is missing or wrong
    │   ├── ModelFileError               a model file does not define a valid BatchModel
    │   ├── UnknownModelError            no model file has that name
    │   ├── IntervalError                a time or interval is naive, reversed or in the future
    │   ├── FormError                    what a person entered to trigger a DAG makes no sense
    │   ├── ContractError                rows do not fit what the model declares
    │   ├── TrainingDataError            too few, or too uniform, labelled rows to learn from
    │   ├── NoChampionError              the model has no promoted version yet
    │   ├── ArtifactError                stored model bytes are missing, changed or unfit to load
    │   └── WarehouseVersionError        the warehouse was made by a newer release
    ├── IncompleteError         exit 1   a run may not be published: counts do not add up
    ├── CircuitBreakerError     exit 1   a run is complete, but not what readers should see
    ├── IntervalsError          exit 1   some intervals of several are not published
    ├── UnavailableError        exit 1   something did not answer: repeating may help
    │   ├── WarehouseUnavailableError    the database did not answer in time
    │   └── StoreUnavailableError        the model store did not answer, and there is no copy
    └── FencedError             exit 3   a newer attempt owns the interval

Airflow retries an UnavailableError, and whatever is not in this tree; never an InputError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BatchJobsError(Exception):
    """A job failed."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, without its constructor: another process may be told of it."""
        return _again, (type(self), self.args, self.__dict__)


def _again(
    kind: type[BatchJobsError], args: tuple[Any, ...], said: dict[str, Any]
) -> BatchJobsError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(said)
    return error


class InputError(BatchJobsError):
    """Usage, configuration or data is wrong; the same call will fail again."""

    exit_code = 2


class ConfigurationError(InputError):
    """A setting, connection or folder is missing or wrong."""


class _Problems(InputError):
    """Several problems of one kind, reported together."""

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        super().__init__(f"{subject}: " + "; ".join(self.problems))


class ModelFileError(_Problems):
    """A model file does not define a valid BatchModel."""


class UnknownModelError(InputError):
    """No model file has the name asked for."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"unknown model {name!r}; known models: {', '.join(known) or 'none'}")


class IntervalError(InputError):
    """A time or an interval is naive, reversed or in the future."""


class FormError(InputError):
    """What a person entered to trigger a DAG makes no sense; nothing was started."""


class ContractError(_Problems):
    """Rows read from the source do not fit what the model declares."""


class TrainingDataError(InputError):
    """Labelled rows are too few, or too uniform, to learn from."""


class NoChampionError(InputError):
    """The model has no promoted version yet."""

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(
            f"{model} has no champion yet; run `batch-jobs train {model} --as-of TIME` "
            f"and `batch-jobs promote {model}` (or the DAG train_{model}) first"
        )


class ArtifactError(InputError):
    """Stored model bytes are missing, changed or unfit to load."""


class WarehouseVersionError(InputError):
    """The warehouse was made by a newer release of batch-jobs."""


class IncompleteError(BatchJobsError):
    """A prediction run may not be published because its counts do not add up."""


class CircuitBreakerError(BatchJobsError):
    """A prediction run is complete, but looks so wrong that readers keep the one before."""

    def __init__(self, subject: str, problems: Sequence[str], advice: str) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        super().__init__(f"{subject} is not published: {'; '.join(problems)}; {advice}")


class IntervalsError(BatchJobsError):
    """Some intervals of several could not be published; the others are."""

    def __init__(self, failed: Mapping[Any, Exception]) -> None:
        self.failed = dict(failed)
        interval, error = next(iter(self.failed.items()))
        codes = {getattr(each, "exit_code", self.exit_code) for each in self.failed.values()}
        if len(codes) == 1:
            self.exit_code = codes.pop()
        super().__init__(
            f"{len(self.failed)} intervals are not published, from {interval} on: {error}"
        )


class UnavailableError(BatchJobsError):
    """Something outside did not answer; the same call may succeed later."""


class WarehouseUnavailableError(UnavailableError):
    """The database did not answer, or let nobody through, for as long as we had patience."""


class StoreUnavailableError(UnavailableError):
    """The model store did not answer, and there is no copy of what was wanted."""


class FencedError(BatchJobsError):
    """A newer attempt has claimed the interval; this one must change nothing."""

    exit_code = 3
