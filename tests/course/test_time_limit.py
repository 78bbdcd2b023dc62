"""The limit counts processor time; the clock only stops what waits."""

import time

import pytest

from utils.checks import time_limit as module
from utils.checks.time_limit import OutOfTime, time_limit


def test_a_loop_that_never_ends_is_stopped_even_where_everything_is_caught():
    with pytest.raises(OutOfTime, match=r"0\.2 seconds of processor time"), time_limit(0.2):
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue


def test_waiting_uses_no_processor_time():
    with time_limit(0.2):
        time.sleep(0.5)


def test_code_that_only_waits_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr(module, "patience", lambda seconds: seconds)
    with pytest.raises(OutOfTime), time_limit(0.2):
        time.sleep(30)


def test_nothing_is_left_behind():
    with time_limit(0.1):
        pass
    deadline = time.process_time() + 0.3
    while time.process_time() < deadline:
        sum(range(1000))
