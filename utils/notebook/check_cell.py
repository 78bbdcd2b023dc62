"""`check`, `hint`, `solution` and `progress`: what a student calls in a cell."""

from __future__ import annotations

import inspect
import json
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.checks.exercises import Exercise, find_exercise
from utils.checks.implementations import Implementation, LocalBackend, solution_file
from utils.checks.rows import Row, failures
from utils.checks.running import Interrupted, run_checks
from utils.errors import CourseError
from utils.files import write_atomically
from utils.notebook.box import code, note, shell, show
from utils.notebook.check_view import check_view
from utils.notebook.course_map import map_view
from utils.paths import MINE
from utils.source import NotDefined, extract, join_cells
from utils.student_work import keep

PROGRESS = MINE / "progress.json"
_failures: dict[str, list[Row]] = {}  # exercise -> the red rows of its last check, each reason once


def check(answer: Any) -> None:
    """Check your function or class: `check(pca)`. What passes is kept in `mine/` for later chapters."""
    try:
        exercise = _exercise(answer)
    except CourseError as error:
        _note("No check was run", str(error))
        return
    live = _session_names().get(exercise.name) if isinstance(answer, str) else answer
    try:
        rows = run_checks(exercise.chapter, [_implementation(exercise, live)], [exercise.name])
    except Interrupted:
        _note(
            "Stopped",
            f"You interrupted the check of `{exercise.name}`. Nothing was lost; run the cell again when you like.",
        )
        return
    _failures[exercise.name] = failures(rows)
    kept = _keep(exercise, live) if all(row.passed for row in rows) else ""
    _record(exercise, rows)
    show(check_view(exercise, rows, kept))


def failed(answer: Any, number: int = 1) -> tuple[tuple, Any]:
    """The call at which a check failed, to be tried again: `args, expected = failed(pca)`, then `pca(*args)`.

    Args:
        answer: your function or class.
        number: which of the red rows of its last check, from 1.

    Returns:
        The arguments, and what was expected: a value, or words where it was no value.

    Raises:
        CourseError: the last check had no such row, or it failed before anything was called.
    """
    exercise = _exercise(answer)
    rows = _failures.get(exercise.name, [])
    if not 1 <= number <= len(rows):
        known = f"{len(rows)} red rows" if rows else "no red row"
        raise CourseError(f"The last check of `{exercise.name}` in this session had {known}: run the check, then ask.")
    replay = rows[number - 1].replay
    if replay is None:
        raise CourseError(f"That check of `{exercise.name}` failed before it called anything.")
    if replay.kwargs:
        function = _session_names().get(exercise.name, answer)
        return inspect.signature(function).bind(*replay.args, **replay.kwargs).args, replay.expected
    return replay.args, replay.expected


def hint(answer: Any) -> None:
    """Show the next hint of an exercise: `hint(pca)`. After the last one it starts again."""
    try:
        exercise = _exercise(answer)
    except CourseError as error:
        _note("No hint", str(error))
        return
    state = _progress()
    given = state["hints"].get(exercise.name, 0) % len(exercise.hints)
    state["hints"][exercise.name] = given + 1
    _save(state)
    _note(f"Hint {given + 1} of {len(exercise.hints)} for {exercise.name}", exercise.hints[given])


def solution(answer: Any) -> None:
    """Show the reference solution, where this copy of the course contains it."""
    try:
        exercise = _exercise(answer)
        module = solution_file(exercise.chapter).read_text(encoding="utf-8")
    except CourseError as error:
        _note("No solution", str(error))
        return
    lines = extract(module, exercise.name).code.splitlines()
    source = "\n".join(line for line in lines if line.strip() not in ("# BEGIN SOLUTION", "# END SOLUTION"))
    show(code(f"Reference solution of {exercise.name}", source))


def progress() -> None:
    """Show the course map: what has passed, your points, how long the rest takes, and where to go on."""
    state = _progress()
    show(map_view(state["passed"], state["points"]))


def _exercise(given: Any) -> Exercise:
    """The exercise that a student means: by the object's name, or by the name itself."""
    if isinstance(given, str):
        return find_exercise(given)
    name = getattr(given, "__name__", None)
    if not callable(given) or name is None:
        kind = type(given).__name__
        raise CourseError(
            f"That is a {kind}, not a function or a class: pass the object itself, not called, as in `check(pca)`."
        )
    if name == "<lambda>":
        raise CourseError(
            "A lambda has no name to find its exercise by: write it with `def`, under the name that the stub has."
        )
    return find_exercise(name)


def _implementation(exercise: Exercise, live: Any) -> Implementation:
    """The implementation in the student's session: the object to check, and what else the session defines.

    `mine` stays what has passed: a session may hold the bare stub of an exercise that was solved last week.
    """
    chosen = {} if live is None else {exercise.name: live}
    return Implementation(LocalBackend(ChainMap(chosen, _session_names()), "Your notebook", tools=chosen), "notebook")


def _session_names() -> dict[str, Any]:
    ipython = shell()
    if ipython is not None:
        return ipython.user_ns
    import __main__

    return vars(__main__)


def _keep(exercise: Exercise, live: Any) -> str:
    """Keep what passed for later chapters; returns a sentence for the student."""
    try:
        taken = extract(_session_source(live), exercise.name, constants_only=True)
    except (NotDefined, OSError, TypeError):
        return "Its source cannot be read, so it is not kept for later chapters: define it in a cell and check again."
    if taken.needs:
        names = ", ".join(f"`{name}`" for name in taken.needs)
        return (
            f"It uses {names} from your notebook, so it is not kept for later chapters: "
            "make that an argument or define it inside."
        )
    path = keep(exercise.chapter, exercise.name, taken.code, live)
    return f"Kept in {path.parent.name}/{path.name} for later chapters."


def _session_source(live: Any) -> str:
    """The cells run so far, joined; outside a notebook, the file that the object comes from."""
    ipython = shell()
    cells = ipython.user_ns.get("In") if ipython is not None else None
    if cells:
        return join_cells(cells)
    path = inspect.getsourcefile(live)
    if path is None:
        raise OSError
    return Path(path).read_text(encoding="utf-8")


def _progress() -> dict[str, Any]:
    """What is known of the student's progress; it survives the kernel because it is a file."""
    empty: dict[str, Any] = {"points": {}, "passed": [], "hints": {}}
    try:
        return {**empty, **json.loads(PROGRESS.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return empty


def _record(exercise: Exercise, rows: Sequence[Row]) -> None:
    state = _progress()
    points = sum(row.points for row in rows)
    state["points"][exercise.name] = max(points, state["points"].get(exercise.name, 0))
    if all(row.passed for row in rows):
        state["passed"] = sorted({*state["passed"], exercise.name})
    _save(state)


def _save(state: dict[str, Any]) -> None:
    write_atomically(PROGRESS, json.dumps(state, indent=1, sort_keys=True) + "\n")


def _note(title: str, text: str) -> None:
    show(note(title, text))
