"""How a check's outcome looks, and its rows for programs."""

from __future__ import annotations

from collections.abc import Sequence

from utils.checks.exercises import Exercise
from utils.checks.rows import Row, failures
from utils.notebook.box import GREEN, RED, Shown, box, table
from utils.notebook.html import Markup, element, inline

ROWS_MIME = "application/vnd.sparse-circuits.check+json"


def check_view(exercise: Exercise, rows: Sequence[Row], kept: str) -> Shown:
    """The outcome of an exercise's checks; `kept` says what became of a solution that passed."""
    data = {ROWS_MIME: {"rows": [row.as_json() for row in rows]}}
    return Shown(_rows_html(exercise, rows, kept), _rows_text(exercise, rows, kept), data)


def _verdict(exercise: Exercise, rows: Sequence[Row]) -> str:
    passed, points = sum(row.passed for row in rows), sum(row.points for row in rows)
    word = "passed" if passed == len(rows) else "not yet"
    return f"{exercise.name}: {word}. {passed} of {len(rows)} checks, {points} of {exercise.points} points"


def _next_hint(exercise: Exercise) -> str:
    return f"`hint({exercise.name})` gives the next of {len(exercise.hints)} hints."


def _rows_html(exercise: Exercise, rows: Sequence[Row], kept: str) -> Markup:
    done = all(row.passed for row in rows)
    lines = [
        [
            ("✓ passed" if row.passed else "✗ failed"),
            row.check,
            f"{row.points}/{row.max_points}",
            f"{row.seconds:.2f} s",
        ]
        for row in rows
    ]
    return box(
        _verdict(exercise, rows),
        table(["Result", "Check", "Points", "Time"], lines),
        *(_failure_html(row, number) for number, row in enumerate(failures(rows), start=1)),
        element("div", inline(kept if done else _next_hint(exercise))),
        edge=GREEN if done else RED,
    )


def _failure_html(row: Row, number: int) -> Markup:
    assert row.failure is not None
    parts = [*row.failure.parts, *([("Hint", row.hint)] if row.hint else [])]
    lines = (
        element("div", element("strong", f"{label}:"), " ", inline(text)) if label else element("div", inline(text))
        for label, text in parts
    )
    summary = element("summary", "✗ ", inline(row.check))
    inside = element(
        "div", *lines, _printed_html(row.failure.printed), _replay_html(row, number), style="padding-left:1em"
    )
    return element("details", summary, inside, open=number == 1)


def _replay_html(row: Row, number: int) -> Markup:
    if row.replay is None or row.failure is None or not row.failure.called:
        return Markup("")
    which = f", {number}" if number > 1 else ""
    return element("div", inline(f"To try exactly that call: `args, expected = failed({row.exercise}{which})`."))


def _printed_html(printed: str) -> Markup:
    if not printed:
        return Markup("")
    summary = element("summary", "What was printed meanwhile, the last lines")
    return element("details", summary, element("pre", printed, style="margin:.2em 0"))


def _rows_text(exercise: Exercise, rows: Sequence[Row], kept: str) -> str:
    lines = [_verdict(exercise, rows)]
    lines += [
        f"  {'passed' if row.passed else 'FAILED'}  {row.check}  {row.points}/{row.max_points}  {row.seconds:.2f} s"
        for row in rows
    ]
    for row in failures(rows):
        lines += ["", row.check, row.message, *([f"Hint: {row.hint}"] if row.hint else [])]
    done = all(row.passed for row in rows)
    return "\n".join([*lines, "", kept if done else _next_hint(exercise)])
