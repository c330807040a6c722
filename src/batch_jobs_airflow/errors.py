"""The errors of batch_jobs as Airflow's, which say whether to try again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from batch_jobs.errors import BatchJobsError, FencedError, NoChampionError, UnavailableError


@contextmanager
def translated() -> Iterator[None]:
    """Turn our errors into Airflow's: only what did not answer is retried, one is no failure."""
    try:
        yield
    except NoChampionError as error:
        raise AirflowSkipException(str(error)) from error
    except UnavailableError:
        raise
    except BatchJobsError as error:
        raise AirflowFailException(str(error)) from error


@contextmanager
def left_to_newer() -> Iterator[None]:
    """Skip what a newer attempt has claimed before this one could: nothing was begun."""
    try:
        yield
    except FencedError as error:
        raise AirflowSkipException(str(error)) from error


def raise_one(errors: Sequence[Exception]) -> None:
    """Raise what several runs have failed with: as one that may pass, if one of them may."""
    for error in errors:
        if isinstance(error, UnavailableError) or not isinstance(error, BatchJobsError):
            raise error
    if errors:
        raise AirflowFailException("; ".join(map(str, errors))) from errors[0]
