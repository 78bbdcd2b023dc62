"""How a check's outcome looks: HTML in Jupyter (any theme, screen readers), text elsewhere, rows for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from utils.checks.exercises import Exercise
from utils.checks.rows import Row, failures
from utils.notebook.html import Markup, element, inline

ROWS_MIME = "application/vnd.sparse-circuits.check+json"

# Colours come from the Jupyter theme where there is one, and only repeat what the words say.
STYLE = (
    "border:1px solid var(--jp-border-color1,#8888);border-left:6px solid {edge};border-radius:4px;padding:.5em .9em;"
    "max-width:60em;color:var(--jp-content-font-color1,inherit);background:transparent"
)
GREEN, RED, GREY = "#2e9e4f", "#d64545", "#7a869a"


@dataclass(frozen=True)
class Shown:
    """Something to display: HTML in Jupyter, text elsewhere, and the check's rows for programs."""

    html: str
    text: str
    rows: Sequence[Row] = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/html": self.html, "text/plain": self.text}
        if self.rows:
            bundle[ROWS_MIME] = {"rows": [row.as_json() for row in self.rows]}
        return bundle


def note_view(title: str, text: str) -> Shown:
    return Shown(_box(title, element("div", inline(text))), f"{title}: {text}")


def code_view(title: str, code: str) -> Shown:
    return Shown(_box(title, element("pre", element("code", code))), code)


def table_view(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Shown:
    return Shown(_box(title, _table(heads, rows)), f"{title}\n{tabulate(rows, headers=heads)}")


def check_view(exercise: Exercise, rows: Sequence[Row], kept: str) -> Shown:
    """The outcome of an exercise's checks; `kept` says what became of a solution that passed."""
    return Shown(_rows_html(exercise, rows, kept), _rows_text(exercise, rows, kept), rows)


def _box(title: str, *body: Markup, edge: str = GREY) -> Markup:
    head = element("div", element("strong", title))
    return element("section", head, *body, role="status", aria_label=title, style=STYLE.format(edge=edge))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    cell = "text-align:left;padding:.15em .8em .15em 0;vertical-align:top"
    head = element("tr", *(element("th", text, scope="col", style=cell) for text in heads))
    body = (element("tr", *(element("td", inline(text), style=cell) for text in row)) for row in rows)
    style = "border-collapse:collapse;margin:.4em 0"
    return element("table", element("thead", head), element("tbody", *body), style=style)


def _verdict(exercise: Exercise, rows: Sequence[Row]) -> str:
    passed, points = sum(row.passed for row in rows), sum(row.points for row in rows)
    word = "passed" if passed == len(rows) else "not yet"
    return f"{exercise.name}: {word}. {passed} of {len(rows)} checks, {points} of {exercise.points} points"


def _next_hint(exercise: Exercise) -> str:
    return f"`hint({exercise.name})` gives the next of {len(exercise.hints)} hints."


def _rows_html(exercise: Exercise, rows: Sequence[Row], kept: str) -> Markup:
    done = all(row.passed for row in rows)
    table = [
        [
            ("✓ passed" if row.passed else "✗ failed"),
            row.check,
            f"{row.points}/{row.max_points}",
            f"{row.seconds:.2f} s",
        ]
        for row in rows
    ]
    return _box(
        _verdict(exercise, rows),
        _table(["Result", "Check", "Points", "Time"], table),
        *(_failure_html(row, is_open=number == 0) for number, row in enumerate(failures(rows))),
        element("div", inline(kept if done else _next_hint(exercise))),
        edge=GREEN if done else RED,
    )


def _failure_html(row: Row, is_open: bool) -> Markup:
    assert row.failure is not None
    parts = [*row.failure.parts, *([("Hint", row.hint)] if row.hint else [])]
    lines = (
        element("div", element("strong", f"{label}:"), " ", inline(text)) if label else element("div", inline(text))
        for label, text in parts
    )
    summary = element("summary", "✗ ", inline(row.check))
    return element("details", summary, element("div", *lines, style="padding-left:1em"), open=is_open)


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
