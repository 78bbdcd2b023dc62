"""A limit on processor time for code that may never end, in a notebook as well as in a test run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class OutOfTime(BaseException):
    """The code did not end in time. Not an Exception, so that a student's `except Exception` does not swallow it."""

    def __init__(self, seconds: float):
        super().__init__(f"no answer within {seconds:g} seconds of processor time")
        self.seconds = seconds


def patience(seconds: float) -> float:
    """How many seconds by the clock to wait for `seconds` of processor time: a busy machine may need several times as
    many, and code that only sleeps uses none at all."""
    return 30 + 5 * seconds


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread.

    On a busy machine threads that wait for each other spin, and that counts as processor time; and so the limits mean
    the same here as where a class is graded.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the code inside when this process has used `seconds` of processor time, all threads together.

    By the clock, the code may take `patience(seconds)`. Works in the main thread; elsewhere there is no limit. A call
    into compiled code is interrupted when it returns.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise OutOfTime(seconds)

    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, seconds),
        signal.ITIMER_REAL: (signal.SIGALRM, patience(seconds)),
    }
    handlers = {number: signal.signal(number, stop) for number, _ in timers.values()}
    for timer, (_, limit) in timers.items():
        signal.setitimer(timer, limit, 1.0)  # again every second, in case a bare `except` caught it
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
