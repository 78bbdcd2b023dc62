"""Reads a chapter's text: front matter, cells with their line numbers, and the figures marked as measured."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupytext.myst import MystMetadataParsingError, myst_to_notebook

from utils.errors import CourseError

_REQUIRED = {"title": str, "promise": str, "objectives": list, "needs": list, "minutes": int}
_OPTIONAL = {"expected_warnings": list}
MEASURE = "measure"  # the tag of cells that only measure figures for the prose
_CELL_KEYS = {"exercise", "folded", "tags"}
_MARK = re.compile(r"<!--\s*measured:\s*([^>]*?)\s*-->")
_NUMBER = re.compile(r"(?P<number>[-−+]?\d[\d,]*(?:\.\d+)?(?:e[-−+]?\d+)?)(?P<percent>\s?%)?[*_`]*$")


@dataclass(frozen=True)
class Cell:
    """A cell of the text. `line` is where its content begins in the file."""

    kind: str
    source: str
    line: int
    options: dict[str, Any]

    @property
    def measures(self) -> bool:
        """Whether it is a code cell that only measures figures for the prose: no reader's notebook has it."""
        return self.kind == "code" and MEASURE in self.options.get("tags", [])


@dataclass(frozen=True)
class Figure:
    """A number in prose that the executed chapter must reproduce."""

    name: str
    printed: str

    @property
    def value(self) -> float:
        """What the printed number says, a percentage as a share."""
        return float(self._digits()) / (100 if self._is_percentage else 1)

    @property
    def unit(self) -> float:
        """One unit of the last printed digit."""
        mantissa, _, exponent = self._digits().partition("e")
        decimals = len(mantissa.partition(".")[2])
        return 10.0 ** (int(exponent or 0) - decimals) / (100 if self._is_percentage else 1)

    def agrees_with(self, value: float) -> bool:
        """Whether `value`, rounded to the printed digits, is at most one unit of the last digit away."""
        return math.isfinite(value) and abs(round(value / self.unit) - round(self.value / self.unit)) <= 1

    @property
    def _is_percentage(self) -> bool:
        return self.printed.endswith("%")

    def _digits(self) -> str:
        return self.printed.rstrip("% ").replace("−", "-").replace(",", "")


@dataclass(frozen=True)
class ChapterText:
    """The parsed text. `file` is its name for messages."""

    file: str
    course: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)


def read_text(path: Path, shown: str) -> ChapterText:
    """Parse and judge a text. Raises CourseError that names the file, the line and what to do."""
    if not path.exists():
        raise CourseError(f"{shown} does not exist: write it, or remove the chapter's notebook")
    source = path.read_text(encoding="utf-8")
    try:
        notebook = myst_to_notebook(source, add_source_map=True)
    except MystMetadataParsingError as error:
        raise CourseError(f"{shown}: a block of metadata is not valid: {error}") from None
    lines = source.splitlines()
    cells = [
        Cell(cell.cell_type, cell.source, _content_line(lines, start, cell.cell_type), dict(cell.metadata))
        for cell, start in zip(notebook.cells, notebook.metadata["source_map"], strict=True)
    ]
    for cell in cells:
        _judge(cell, shown)
    return ChapterText(shown, _front_matter(notebook.metadata.get("course"), shown), cells)


def figures(markdown: str, where: str) -> list[Figure]:
    """The measured figures in a markdown text. Raises CourseError for a mark without a number before it."""
    marked = []
    for mark in _MARK.finditer(markdown):
        number = _NUMBER.search(markdown[: mark.start()])
        line = markdown.count("\n", 0, mark.start())
        if number is None or not re.fullmatch(r"\w+", mark[1]):
            at = f"{where.rsplit(':', 1)[0]}:{int(where.rsplit(':', 1)[1]) + line}" if ":" in where else where
            raise CourseError(
                f"{at}: the mark {mark[0]} has no number directly before it; "
                "write for instance `0.51<!-- measured: share -->`"
            )
        marked.append(Figure(mark[1], number["number"] + ("%" if number["percent"] else "")))
    return marked


def measured_names(code: str) -> Iterator[str]:
    """Names that code cells measure: the constant first arguments of `measured(...)`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "measured":
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield str(first.value)
            elif isinstance(first, ast.JoinedStr):  # measured(f"score_{layer}", ...): any name that fits
                parts = [part.value if isinstance(part, ast.Constant) else "*" for part in first.values]
                yield "".join(map(str, parts))


def _content_line(lines: list[str], start: int, kind: str) -> int:
    """The first line (from 1) of a cell's content; `start` is the line of its fence, or the first after a break."""
    line = start + 1
    while kind == "markdown" and line < len(lines) and not lines[line - 1].strip():
        line += 1
    return line


def _judge(cell: Cell, shown: str) -> None:
    unknown = set(cell.options) - _CELL_KEYS
    if unknown:
        raise CourseError(
            f"{shown}:{cell.line}: unknown cell option {', '.join(sorted(unknown))}; "
            f"a cell may have {', '.join(sorted(_CELL_KEYS))}"
        )
    if cell.kind == "raw":
        raise CourseError(f"{shown}:{cell.line}: raw cells are not shown in a notebook: write markdown")
    if cell.kind == "markdown":
        figures(cell.source, f"{shown}:{cell.line}")
    else:
        from utils.source import plain_python

        try:
            compile(plain_python(cell.source), shown, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            raise CourseError(f"{shown}:{cell.line + (error.lineno or 1) - 1}: {error.msg}") from None


def _front_matter(course: Any, shown: str) -> dict[str, Any]:
    if not isinstance(course, dict):
        raise CourseError(f"{shown}: the front matter lacks the block `course:` with {', '.join(_REQUIRED)}")
    for key, kind in _REQUIRED.items():
        if key not in course:
            raise CourseError(f"{shown}: the front matter lacks `course: {key}`: add it")
        if not isinstance(course[key], kind):
            raise CourseError(f"{shown}: front matter `course: {key}` must be a {kind.__name__}, not {course[key]!r}")
    unknown = set(course) - set(_REQUIRED) - set(_OPTIONAL)
    if unknown:
        raise CourseError(f"{shown}: unknown front matter `course: {', '.join(sorted(unknown))}`: remove or correct it")
    if not 3 <= len(course["objectives"]) <= 5:
        raise CourseError(
            f"{shown}: front matter `course: objectives` has {len(course['objectives'])} entries; give 3 to 5"
        )
    for warning in course.get("expected_warnings", []):
        if not isinstance(warning, dict) or set(warning) != {"says", "why"}:
            raise CourseError(
                f"{shown}: every entry of `course: expected_warnings` needs `says` and `why`, not {warning!r}"
            )
    return dict(course)
