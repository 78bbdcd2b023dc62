"""The map of chapters in README: built from the texts' front matter and the checkers, like the notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from authoring.chapter_text import read_text
from utils.chapters import Chapter, all_chapters
from utils.checks.exercises import exercises_in
from utils.errors import CourseError
from utils.paths import ROOT

README = ROOT / "README.md"
BEGIN = "<!-- The map of chapters is built by `make build`: edit the texts' front matter and the checkers. -->"
END = "<!-- End of the map. -->"
HEAD = """| | chapter | hours | builds on | exercises | points | afterwards you can |
| --- | --- | --- | --- | --- | --- | --- |"""


def is_stale(readme: Path = README) -> bool:
    """Whether README's map differs from what the sources give."""
    text = readme.read_text(encoding="utf-8")
    return text != with_map(text, all_chapters())


def build(readme: Path = README) -> None:
    """Write the map into README."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_map(text, all_chapters()), encoding="utf-8")


def with_map(text: str, chapters: Sequence[Chapter]) -> str:
    """README's text with the map between its two marks replaced.

    Raises:
        CourseError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise CourseError(f"README.md lacks the mark `{END if begin else BEGIN}`: put it back around the chapters' map")
    return f"{before}{BEGIN}\n\n{chapter_map(chapters)}\n\n{END}{after}"


def chapter_map(chapters: Sequence[Chapter]) -> str:
    """A Markdown table with a row for each chapter, and a sentence with the sums."""
    facts = [(chapter, read_text(chapter.text, chapter.shown(chapter.text)).course) for chapter in chapters]
    exercises = [exercise for chapter in chapters for exercise in exercises_in(chapter)]
    hours = sum(course["minutes"] for _, course in facts) / 60
    points = sum(exercise.points for exercise in exercises)
    total = f"Together {hours:.0f} hours, {len(exercises)} exercises and {points} points."
    return "\n".join([HEAD, *(_row(chapter, course) for chapter, course in facts), "", total])


def _row(chapter: Chapter, course: dict[str, Any]) -> str:
    exercises = exercises_in(chapter)
    cells = [
        chapter.number,
        f"[{course['title']}]({chapter.shown(chapter.notebook)})",
        f"{course['minutes'] / 60:.1f}",
        ", ".join(need.removeprefix("chapter ") for need in course["needs"]) or "-",
        str(len(exercises)),
        str(sum(exercise.points for exercise in exercises)),
        _abilities(course["objectives"]),
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _abilities(objectives: Sequence[str]) -> str:
    """The first objective in sight, the others folded."""
    first, *others = objectives
    folded = "<br>".join(f"• {other}" for other in others)
    return f"{first}<details><summary>and {len(others)} more</summary>{folded}</details>"
