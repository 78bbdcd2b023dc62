"""How a check's outcome looks: HTML in Jupyter (any theme, screen readers), text elsewhere, rows for programs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from utils.checks.exercises import Exercise
from utils.checks.running import Row, failures

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
    return Shown(_box(title, f"<div>{_inline(text)}</div>"), f"{title}: {text}")


def code_view(title: str, code: str) -> Shown:
    return Shown(_box(title, f"<pre><code>{html.escape(code)}</code></pre>"), code)


def table_view(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Shown:
    return Shown(_box(title, _table(heads, rows)), f"{title}\n{tabulate(rows, headers=heads)}")


def check_view(found: Exercise, rows: Sequence[Row], kept: str) -> Shown:
    """The outcome of an exercise's checks; `kept` says what became of a solution that passed."""
    return Shown(_rows_html(found, rows, kept), _rows_text(found, rows, kept), rows)


def _box(title: str, body: str, edge: str = GREY) -> str:
    return (
        f'<section role="status" aria-label="{html.escape(title, quote=True)}" style="{STYLE.format(edge=edge)}">'
        f"<div><strong>{html.escape(title)}</strong></div>{body}</section>"
    )


def _inline(text: str) -> str:
    """Escaped text with `code` in code style and line breaks kept."""
    parts = html.escape(text).split("`")
    marked = "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
    return marked.replace("\n", "<br>")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cell = 'style="text-align:left;padding:.15em .8em .15em 0;vertical-align:top"'
    head = "".join(f'<th scope="col" {cell}>{html.escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f"<td {cell}>{_inline(text)}</td>" for text in row) + "</tr>" for row in rows)
    style = 'style="border-collapse:collapse;margin:.4em 0"'
    return f"<table {style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _verdict(found: Exercise, rows: Sequence[Row]) -> str:
    passed, points = sum(row.passed for row in rows), sum(row.points for row in rows)
    word = "passed" if passed == len(rows) else "not yet"
    return f"{found.name}: {word}. {passed} of {len(rows)} checks, {points} of {found.points} points"


def _next_hint(found: Exercise) -> str:
    return f"`hint({found.name})` gives the next of {len(found.hints)} hints."


def _rows_html(found: Exercise, rows: Sequence[Row], kept: str) -> str:
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
    body = _table(["Result", "Check", "Points", "Time"], table)
    body += "".join(_failure_html(row, is_open=number == 0) for number, row in enumerate(failures(rows)))
    return _box(
        _verdict(found, rows),
        body + f"<div>{_inline(kept if done else _next_hint(found))}</div>",
        GREEN if done else RED,
    )


def _failure_html(row: Row, is_open: bool) -> str:
    lines = []
    for line in row.message.split("\n"):
        head, colon, rest = line.partition(": ")
        known = colon and head in ("Called", "Returned", "Expected", "Why", "Raised", "Stopped")
        lines.append(f"<div><strong>{head}:</strong> {_inline(rest)}</div>" if known else f"<div>{_inline(line)}</div>")
    hint = f"<div><strong>Hint:</strong> {_inline(row.hint)}</div>" if row.hint else ""
    inside = f'<div style="padding-left:1em">{"".join(lines)}{hint}</div>'
    return f"<details{' open' * is_open}><summary>✗ {_inline(row.check)}</summary>{inside}</details>"


def _rows_text(found: Exercise, rows: Sequence[Row], kept: str) -> str:
    lines = [_verdict(found, rows)]
    lines += [
        f"  {'passed' if row.passed else 'FAILED'}  {row.check}  {row.points}/{row.max_points}  {row.seconds:.2f} s"
        for row in rows
    ]
    for row in failures(rows):
        lines += ["", row.check, *row.message.split("\n"), *([f"Hint: {row.hint}"] if row.hint else [])]
    done = all(row.passed for row in rows)
    return "\n".join([*lines, "", kept if done else _next_hint(found)])
