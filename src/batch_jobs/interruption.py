"""Ctrl-C ends a command at once, whatever it does; what was begun is completed or made good later.

Python raises KeyboardInterrupt in the main thread, as soon as that runs Python again. A database's
driver or an estimator may keep it for minutes, and drivers have handlers of their own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

# How long a command may take to tidy up.
GRACE_SECONDS = 2
EXIT_CODE = 128 + signal.SIGINT
SHOW_CURSOR = "\x1b[?25h"

Ask = Callable[..., Any]


@contextmanager
def aside(cancel: Callable[[], None]) -> Iterator[Ask]:
    """A way to call what blocks, `ask(call, *arguments)`, while handlers of signals may run.

    From the main thread, the only one that has handlers, calls are made by another one.

    Args:
        cancel: ends a call that is being made, which then returns or raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda call, *arguments: call(*arguments)
        return
    with ThreadPoolExecutor(1, "aside") as other:

        def ask(call: Callable[..., Any], *arguments: Any) -> Any:
            answer: Future[Any] | None = None
            try:
                answer = other.submit(call, *arguments)
                return answer.result()
            except BaseException:
                if answer is None or not (answer.done() or answer.cancel()):
                    with suppress(Exception):
                        cancel()
                raise

        yield ask


@contextmanager
def ended_by_interruption() -> Iterator[None]:
    """Let this process end soon after a SIGINT in the block, unless it has a handler of its own.

    Also if it has left the block by then, and waits for what it had begun in a thread.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="interruption").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


def _watch(signals: int) -> None:
    while received := os.read(signals, 1):
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours and received == bytes([signal.SIGINT]):
            time.sleep(GRACE_SECONDS)
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), SHOW_CURSOR.encode())
            os._exit(EXIT_CODE)
    os.close(signals)
