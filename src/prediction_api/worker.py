"""Score requests of many rows in a thread of the server, where no other process does."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event, Thread

from batch_jobs.requests import worker
from batch_jobs.settings import Settings


class RequestWorker:
    """A thread that scores requests that wait, from `start` to `stop`.

    Args:
        settings: where everything is; it needs the rights of a writer.
        names: of the models whose requests are answered; none, and there is no thread.
    """

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        self._stopped, self._woken = Event(), Event()
        arguments = (settings, names, self._stopped, self._woken)
        self._thread = Thread(target=worker.follow, args=arguments, name="answer")
        self._wanted = bool(names)

    def start(self) -> None:
        """Begin."""
        if self._wanted:
            self._thread.start()

    def wake(self) -> None:
        """Look for requests now."""
        self._woken.set()

    def stop(self) -> None:
        """End after the chunk that is being scored."""
        self._stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
