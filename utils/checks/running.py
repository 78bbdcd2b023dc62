"""Runs an exercise's pytest checkers, in this process, on any implementations, and returns a row for each check."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from utils.chapters import find_chapter
from utils.checks.exercises import Check
from utils.checks.expect import CheckFailed, StudentError
from utils.checks.implementations import Implementation, Missing, NotWritten, WrongSignature
from utils.checks.time_limit import OutOfTime
from utils.paths import ROOT


@dataclass(frozen=True)
class Row:
    """The outcome of one check on one implementation. `points` are those won, `message` is empty when it passed."""

    implementation: str
    exercise: str
    check: str
    points: int
    max_points: int
    passed: bool
    seconds: float
    message: str
    hint: str

    def as_json(self) -> dict[str, Any]:
        row = asdict(self)
        del row["implementation"]
        return row


class Interrupted(Exception):
    """The person pressed stop while checks ran."""


def run_checks(
    chapter: str, implementations: Sequence[Implementation], exercises: Collection[str] | None = None
) -> list[Row]:
    """Run the checks of a chapter, or of the named exercises, on each implementation.

    Raises Interrupted when the run is interrupted, RuntimeError with pytest's own words when a checker cannot be run.
    """
    session = _Session(implementations, exercises)
    options = [
        "-q",
        "--no-header",
        "--disable-plugin-autoload",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:warnings",
        "--capture=sys",
        f"--rootdir={ROOT}",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-o",
        "addopts=",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        status = pytest.main([*options, str(find_chapter(chapter).checker)], plugins=[session])
    if status == pytest.ExitCode.INTERRUPTED:
        raise Interrupted
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"the checks of chapter {chapter} could not be run:\n{said.getvalue()}")
    return session.rows


class _Session:
    """The pytest plugin: hands the implementations to the checkers and collects the rows."""

    def __init__(self, implementations: Sequence[Implementation], exercises: Collection[str] | None):
        self.implementations, self.exercises = implementations, exercises
        self.rows: list[Row] = []

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "impl" in metafunc.fixturenames:
            metafunc.parametrize("impl", self.implementations, ids=lambda implementation: implementation._label)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._wanted(item)]

    def _wanted(self, item: pytest.Item) -> bool:
        check = _check_of(item)
        if check is None or (self.exercises is not None and check.exercise not in self.exercises):
            return False
        return _implementation_of(item)._only in (None, check.exercise)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        _implementation_of(item)._calls.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with _implementation_of(item)._backend.check("model" in item.fixturenames, _check_of(item).seconds):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        report = yield
        if call.when == "call" or (call.when == "setup" and call.excinfo):
            self.rows.append(_row(_implementation_of(item), _check_of(item), call))
        return report


def _check_of(item: pytest.Item) -> Check | None:
    marker = item.get_closest_marker("graded")
    return marker.args[0] if marker else None


def _implementation_of(item: pytest.Item) -> Implementation:
    return item.callspec.params["impl"]


def _row(implementation: Implementation, check: Check, call: pytest.CallInfo) -> Row:
    error = call.excinfo.value if call.excinfo else None
    passed = error is None
    return Row(
        implementation=implementation._label,
        exercise=check.exercise,
        check=check.title,
        points=check.points if passed else 0,
        max_points=check.points,
        passed=passed,
        seconds=round(call.duration, 3),
        message="" if passed else explain(error, check.exercise, implementation._calls),
        hint="" if passed else hint_for(error, check.hint),
    )


def failures(rows: Sequence[Row]) -> list[Row]:
    """The failed rows, each exercise's message once: an unwritten stub fails every check for one reason."""
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        if not row.passed:
            seen.setdefault((row.exercise, row.message), row)
    return list(seen.values())


def explain(error: BaseException, exercise: str, calls: Sequence[str]) -> str:
    """Why a check failed, in lines `Called: ...`, `Returned: ...`, `Expected: ...`, `Why: ...`."""
    called = f"Called: {calls[-1]}" if calls else ""
    match error:
        case CheckFailed():
            lines = [
                called,
                f"Returned: {error.returned}",
                f"Expected: {error.expected}",
                error.why and f"Why: {error.why}",
            ]
        case NotWritten():
            lines = [
                f"`{exercise}` is not written yet: replace the `raise NotImplementedError` in its cell by your code, "
                "run that cell, then check again."
            ]
        case Missing() | WrongSignature():
            lines = [error.text, "Keep the names and the parameters that the stub has: later cells use them."]
        case StudentError():
            lines = [called, f"Raised: {error.type_name}: {error.text}", error.where and f"In {error.where}"]
        case OutOfTime():
            lines = [
                called,
                f"Stopped: {error}. Look for a loop that never ends, or for work that grows much too fast.",
            ]
        case _:
            lines = [
                called,
                f"Returned: something that this check could not work with ({type(error).__name__}: {error})",
                "Expected: what the stub's signature and docstring promise",
            ]
    return "\n".join(line for line in lines if line)


def hint_for(error: BaseException, hint: str) -> str:
    """The check's hint, unless the failure has a better one or has nothing to do with what the check is about."""
    if isinstance(error, CheckFailed) and error.hint:
        return error.hint
    return "" if isinstance(error, NotWritten | Missing | WrongSignature) else hint
