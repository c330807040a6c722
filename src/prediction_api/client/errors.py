"""What can go wrong between an app and the prediction API.

PredictionApiError
├── MisconfiguredError     the URL, the key or the model is wrong: no waiting helps
├── AwayError              the server does not answer, or says that it cannot now
├── RefusedError           the server understood, and does not do it
└── NoPredictionError      there is nothing that the policy lets be given
"""

from __future__ import annotations


class PredictionApiError(Exception):
    """Something went wrong between an app and the prediction API."""


class MisconfiguredError(PredictionApiError):
    """The URL, the key or the model is wrong, which no default hides."""


class AwayError(PredictionApiError):
    """The server does not answer, or says that it cannot now.

    Attributes:
        retry_after: the seconds after which it wants to be asked again; None if it says nothing.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(PredictionApiError):
    """The server understood what was asked, and does not do it.

    Attributes:
        status: of the answer.
        detail: what the server says.
        retry_after: the seconds after which it may do it; None if it says nothing.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"the API answers {status}: {detail}")
        self.status, self.detail, self.retry_after = status, detail, retry_after


class NoPredictionError(PredictionApiError):
    """There is nothing that the policy lets be given."""
