"""A time limit for code that may never end, in a notebook as well as in a test run."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """The code did not end in time. Not an Exception, so that a student's `except Exception` does not swallow it."""

    def __init__(self, seconds: float):
        super().__init__(f"no answer within {seconds:g} seconds")
        self.seconds = seconds


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the code inside when `seconds` have passed.

    Works in the main thread; elsewhere there is no limit. A call into compiled code is interrupted when it returns.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
    elif hasattr(signal, "setitimer"):
        with _by_alarm(seconds):
            yield
    else:
        with _by_interrupt(seconds):
            yield


@contextmanager
def _by_alarm(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise OutOfTime(seconds)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again every second, in case a bare `except` caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _by_interrupt(seconds: float) -> Iterator[None]:
    """For Windows, which has no alarms: what a press of the interrupt button does."""
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if not expired.is_set():
            raise
        raise OutOfTime(seconds) from None
    finally:
        timer.cancel()
