"""The course as a map: how far each chapter is, how long the rest takes, and where to go on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from utils.chapters import Chapter, all_chapters
from utils.checks.exercises import Exercise, chapter_exercises
from utils.notebook.box import Shown, box, table
from utils.notebook.html import Markup, element

BAR = 10  # characters
HEADS = ("Chapter", "", "Exercises", "Minutes left", "Points")


@dataclass(frozen=True)
class Stage:
    """A chapter of the map."""

    chapter: Chapter
    exercises: Sequence[Exercise]
    passed: Collection[str]
    points: Mapping[str, int]

    @property
    def left(self) -> list[Exercise]:
        """The exercises that have not passed, in order."""
        return [exercise for exercise in self.exercises if exercise.name not in self.passed]

    @property
    def won(self) -> int:
        return sum(self.points.get(exercise.name, 0) for exercise in self.exercises)

    @property
    def most(self) -> int:
        """All points that the chapter gives; 0 where it is not graded."""
        return sum(exercise.points for exercise in self.exercises)

    @property
    def name(self) -> str:
        return f"{self.chapter.number} {self.chapter.title}"

    @property
    def figures(self) -> list[str]:
        """The row's columns but for the first."""
        total, done = len(self.exercises), len(self.exercises) - len(self.left)
        bar = "█" * round(BAR * done / total) if total else ""
        minutes = sum(exercise.minutes for exercise in self.left)
        points = f"{self.won}/{self.most}" if self.most else ""
        return [bar.ljust(BAR, "░"), f"{done} of {total}", f"{minutes}" if minutes else "", points]


def map_view(passed: Collection[str], points: Mapping[str, int]) -> Shown:
    """The map to display.

    Args:
        passed: names of the exercises that have passed.
        points: name -> the points won so far, of exercises that have been tried.
    """
    stages = [Stage(chapter, chapter_exercises(chapter.number), passed, points) for chapter in all_chapters()]
    title = f"Your progress: {sum(stage.won for stage in stages)} of {sum(stage.most for stage in stages)} points"
    links = [_link(stage.chapter, stage.name) for stage in stages]
    rows = [[link, *stage.figures] for link, stage in zip(links, stages, strict=True)]
    lines = [[stage.name, *stage.figures] for stage in stages]
    text = tabulate(lines, headers=HEADS, disable_numparse=True)
    open_stages = [stage for stage in stages if stage.left]
    if not open_stages:
        end = "Everything has passed."
        return Shown(box(title, table(HEADS, rows), element("div", end)), f"{title}\n{text}\n{end}")
    here = open_stages[0]
    exercise = f"{here.left[0].number} {here.left[0].title}"
    go_on = element("div", "Go on with ", _link(here.chapter, exercise), f", about {here.left[0].minutes} minutes.")
    return Shown(
        box(title, table(HEADS, rows), go_on),
        f"{title}\n{text}\nGo on with {exercise} in {here.chapter.notebook.name}.",
    )


def _link(chapter: Chapter, text: str) -> Markup:
    return element("a", text, href=chapter.notebook.name)
