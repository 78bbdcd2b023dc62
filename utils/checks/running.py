"""Runs an exercise's pytest checkers, in this process, on any implementations, and returns a row for each check."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import pytest

from utils.chapters import find_chapter
from utils.checks.exercises import Check
from utils.checks.expect import CheckFailed, StudentError
from utils.checks.implementations import Implementation, Missing, NotWritten, WrongSignature, protected
from utils.checks.rows import Failure, Replay, Row
from utils.checks.time_limit import OutOfTime
from utils.paths import ROOT

# Pytest as quiet and quick as it gets: nothing that collects garbage after every check, writes files or reads settings.
OPTIONS = (
    "-q",
    "--no-header",
    "--disable-plugin-autoload",
    *("-p", "no:cacheprovider"),
    *("-p", "no:warnings"),
    *("-p", "no:unraisableexception"),
    *("-p", "no:threadexception"),
    *("-p", "no:logging"),
    "--capture=no",  # `Tail` keeps what matters of what is printed
    f"--rootdir={ROOT}",
    *("-c", str(ROOT / "pyproject.toml")),
    *("-o", "addopts="),
)


class Interrupted(Exception):
    """The person pressed stop while checks ran."""


def run_checks(
    chapter: str, implementations: Sequence[Implementation], exercises: Collection[str] | None = None
) -> list[Row]:
    """Run the checks of a chapter, or of the named exercises, on each implementation.

    Args:
        chapter: its number, such as "03".

    Raises:
        Interrupted: the person pressed stop.
        RuntimeError: a checker cannot be run; in pytest's own words.
    """
    session = _Session(implementations, exercises)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        status = pytest.main([*OPTIONS, str(find_chapter(chapter).checker)], plugins=[session])
    if status == pytest.ExitCode.INTERRUPTED:
        raise Interrupted
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"the checks of chapter {chapter} could not be run:\n{said.getvalue()}")
    return session.rows


class Tail(io.TextIOBase):
    """What was printed, of which only the last lines are kept, however much it is."""

    LINES, CHARACTERS = 20, 4000

    def __init__(self) -> None:
        self._kept = ""

    def write(self, text: str) -> int:
        self._kept = (self._kept + text)[-self.CHARACTERS :]
        return len(text)

    def __str__(self) -> str:
        return "\n".join(self._kept.splitlines()[-self.LINES :])


class _OverTime(Exception):
    """An earlier check of the exercise ran out of time: this one would only take as long again."""


class _Session:
    """The pytest plugin: hands the implementations to the checkers and collects the rows."""

    def __init__(self, implementations: Sequence[Implementation], exercises: Collection[str] | None):
        self.implementations, self.exercises = implementations, exercises
        self.rows: list[Row] = []
        self.over_time: set[tuple[str, str]] = set()  # (implementation, exercise)
        self.printed = Tail()  # during the check at work
        self.spent = 0.0  # processor seconds of the check at work

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "impl" in metafunc.fixturenames:
            metafunc.parametrize("impl", self.implementations, ids=lambda implementation: implementation._label)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._is_wanted(item)]

    def _is_wanted(self, item: pytest.Item) -> bool:
        if item.get_closest_marker("graded") is None:
            return False
        exercise = _check_of(item).exercise
        if self.exercises is not None and exercise not in self.exercises:
            return False
        return _implementation_of(item)._only in (None, exercise)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        _implementation_of(item)._calls.clear()
        _implementation_of(item)._arguments = ((), {})
        self.printed, self.spent = Tail(), 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        implementation, check = _implementation_of(item), _check_of(item)
        key = (implementation._label, check.exercise)
        if key in self.over_time:
            raise _OverTime
        began = time.process_time()
        try:
            with (
                contextlib.redirect_stdout(self.printed),
                contextlib.redirect_stderr(self.printed),
                implementation._backend.check("model" in _fixtures_of(item), check.seconds),
            ):
                return (yield)
        except OutOfTime:
            self.over_time.add(key)
            raise
        finally:
            self.spent = time.process_time() - began

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport:
        """Note the row. The report says nothing of the traceback, which takes pytest longer than most checks take."""
        if call.when == "call" or (call.when == "setup" and call.excinfo):
            row = _row(_implementation_of(item), _check_of(item), call)
            if row.failure:
                failure = replace(row.failure, printed=str(self.printed))
                row = replace(row, failure=failure, replay=_replay(_implementation_of(item), call))
            self.rows.append(replace(row, processor_seconds=self.spent))
        assert call.when != "collect"
        outcome: Literal["failed", "passed"] = "failed" if call.excinfo else "passed"
        return pytest.TestReport(item.nodeid, item.location, {}, outcome, None, call.when, duration=call.duration)


def _check_of(item: pytest.Item) -> Check:
    marker = item.get_closest_marker("graded")
    assert marker is not None
    return marker.args[0]


def _implementation_of(item: pytest.Item) -> Implementation:
    return item.callspec.params["impl"]  # type: ignore[attr-defined]


def _fixtures_of(item: pytest.Item) -> Sequence[str]:
    return item.fixturenames  # type: ignore[attr-defined]


def _row(implementation: Implementation, check: Check, call: pytest.CallInfo[None]) -> Row:
    error = call.excinfo.value if call.excinfo else None
    return Row(
        implementation=implementation._label,
        exercise=check.exercise,
        check=check.title,
        points=0 if error else check.points,
        max_points=check.points,
        seconds=round(call.duration, 3),
        failure=explain(error, check, implementation._calls) if error else None,
    )


def _replay(implementation: Implementation, call: pytest.CallInfo[None]) -> Replay | None:
    if not implementation._calls:
        return None
    args, kwargs = implementation._arguments
    wanted = getattr(call.excinfo.value, "wanted", None) if call.excinfo else None
    return Replay(protected(args), protected(kwargs), protected(wanted))


def explain(error: BaseException, check: Check, calls: Sequence[str]) -> Failure:
    """Why a check failed: what `error` says, with the last of the `calls` that the check made."""
    called = calls[-1] if calls else ""
    match error:
        case CheckFailed():
            return Failure(
                called=called,
                returned=error.returned,
                expected=error.expected,
                why=error.why,
                hint=error.hint or check.hint,
            )
        case NotWritten():
            return Failure(
                note=f"`{check.exercise}` is not written yet: replace the `raise NotImplementedError` in its cell by "
                "your code, run that cell, then check again."
            )
        case Missing() | WrongSignature():
            return Failure(
                note=f"{error.text}\nKeep the names and the parameters that the stub has: later cells use them."
            )
        case StudentError():
            return Failure(called=called, raised=f"{error.type_name}: {error.text}", line=error.where, hint=check.hint)
        case OutOfTime():
            return Failure(
                called=called,
                stopped=f"{error}. Look for a loop that never ends, or for work that grows much too fast.",
                hint=check.hint,
            )
        case _OverTime():
            return Failure(note="Not run: an earlier check of this exercise ran out of time, and this one would, too.")
        case _:
            return Failure(
                called=called,
                returned=f"something that this check could not work with ({type(error).__name__}: {error})",
                expected="what the stub's signature and docstring promise",
                hint=check.hint,
            )
