"""`check`, `hint`, `solution` and `progress`: what a student calls in a cell."""

from __future__ import annotations

import inspect
import json
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.chapters import all_chapters
from utils.checks.exercises import Exercise, all_exercises, chapter_exercises, find_exercise
from utils.checks.implementations import Implementation, LocalBackend, solution_file
from utils.checks.rows import Row
from utils.checks.running import Interrupted, run_checks
from utils.errors import CourseError
from utils.files import write_atomically
from utils.notebook.check_view import Shown, check_view, code_view, note_view, table_view
from utils.paths import MINE
from utils.source import NotDefined, extract, join_cells
from utils.student_work import keep

PROGRESS = MINE / "progress.json"


def check(answer: Any) -> None:
    """Check your function or class: `check(pca)`. What passes is kept in `mine/` for later chapters."""
    try:
        exercise = _exercise(answer)
    except CourseError as error:
        _show_note("No check was run", str(error))
        return
    live = _session_names().get(exercise.name) if isinstance(answer, str) else answer
    try:
        rows = run_checks(exercise.chapter, [_implementation(exercise, live)], [exercise.name])
    except Interrupted:
        _show_note(
            "Stopped",
            f"You interrupted the check of `{exercise.name}`. Nothing was lost; run the cell again when you like.",
        )
        return
    kept = _keep(exercise, live) if all(row.passed for row in rows) else ""
    _record(exercise, rows)
    _show(check_view(exercise, rows, kept))


def hint(answer: Any) -> None:
    """Show the next hint of an exercise: `hint(pca)`. After the last one it starts again."""
    try:
        exercise = _exercise(answer)
    except CourseError as error:
        _show_note("No hint", str(error))
        return
    state = _progress()
    given = state["hints"].get(exercise.name, 0) % len(exercise.hints)
    state["hints"][exercise.name] = given + 1
    _save(state)
    _show_note(f"Hint {given + 1} of {len(exercise.hints)} for {exercise.name}", exercise.hints[given])


def solution(answer: Any) -> None:
    """Show the reference solution, where this copy of the course contains it."""
    try:
        exercise = _exercise(answer)
        source = solution_file(exercise.chapter).read_text(encoding="utf-8")
    except CourseError as error:
        _show_note("No solution", str(error))
        return
    lines = extract(source, exercise.name).code.splitlines()
    code = "\n".join(line for line in lines if line.strip() not in ("# BEGIN SOLUTION", "# END SOLUTION"))
    _show(code_view(f"Reference solution of {exercise.name}", code))


def progress() -> None:
    """Show the course map with your points."""
    state = _progress()
    table = [
        [
            chapter.name,
            f"{exercise.number} {exercise.title}",
            exercise.name,
            "passed" if exercise.name in state["passed"] else "open",
            f"{state['points'].get(exercise.name, 0)}/{exercise.points}",
        ]
        for chapter in all_chapters()
        for exercise in chapter_exercises(chapter.number)
    ]
    won = sum(state["points"].get(name, 0) for name in all_exercises())
    total = f"{won} of {sum(exercise.points for exercise in all_exercises().values())} points"
    _show(table_view(f"Your progress: {total}", ["Chapter", "Exercise", "Name", "State", "Points"], table))


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
    shell = _shell()
    if shell is not None:
        return shell.user_ns
    import __main__

    return vars(__main__)


def _shell() -> Any:
    """IPython's shell, or None in a plain interpreter."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


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
    shell = _shell()
    cells = shell.user_ns.get("In") if shell is not None else None
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


def _show(shown: Shown) -> None:
    if _shell() is None:
        print(shown.text)
        return
    from IPython.display import display

    display(shown)


def _show_note(title: str, text: str) -> None:
    _show(note_view(title, text))
