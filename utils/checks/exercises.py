"""Exercises and their graded checks: what a checker module in `tests/` declares and everything else reads."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from types import ModuleType

import pytest

from utils.chapters import Chapter, all_chapters, find_chapter
from utils.errors import CourseError
from utils.files import shown


def flowing(text: str) -> str:
    """A text without the line breaks and the indentation that it has in the source."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Check:
    """One graded check of an exercise.

    `title` says what is established, `hint` names the likely mistake, `seconds` is the time limit.
    """

    exercise: str
    title: str
    points: int
    hint: str
    seconds: float


@dataclass
class Exercise:
    """One exercise: its name is the name of the function or class that the student writes.

    `difficulty` and `importance` are dots from 1 to 5, `hints` go from gentle to nearly the answer.
    """

    name: str
    _: KW_ONLY
    number: str
    title: str
    difficulty: int
    importance: int
    minutes: int
    hints: tuple[str, ...]
    checks: list[Check] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.hints = tuple(map(flowing, self.hints))
        for dots in (self.difficulty, self.importance):
            if dots not in range(1, 6):
                raise ValueError(f"exercise {self.name}: difficulty and importance are 1 to 5 dots, not {dots}")

    def check(self, title: str, *, hint: str, points: int = 1, seconds: float = 30) -> Callable:
        """Decorator: make a test function a graded check of this exercise."""
        graded = Check(self.name, title, points, flowing(hint), seconds)
        self.checks.append(graded)
        return pytest.mark.graded(graded)

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)

    @property
    def chapter(self) -> str:
        return self.number.split(".")[0].zfill(2)


def exercises_of(module: ModuleType) -> list[Exercise]:
    """The exercises that a checker module declares, in order."""
    return [value for value in vars(module).values() if isinstance(value, Exercise)]


def exercises_in(chapter: Chapter) -> list[Exercise]:
    """The exercises of a chapter, in order; none where it has no checker module."""
    return exercises_of(chapter.load_checker()) if chapter.checker.exists() else []


@cache
def chapter_exercises(number: str) -> list[Exercise]:
    """The exercises of this course's chapter of that number, in order."""
    return exercises_in(find_chapter(number))


@cache
def all_exercises() -> dict[str, Exercise]:
    """Every exercise of the course by name; names are unique."""
    exercises: dict[str, Exercise] = {}
    for chapter in all_chapters():
        for exercise in chapter_exercises(chapter.number):
            if exercise.name in exercises:
                raise CourseError(f"two exercises are named {exercise.name!r}: rename one in {shown(chapter.checker)}")
            exercises[exercise.name] = exercise
    return exercises


def find_exercise(name: str) -> Exercise:
    """The exercise of that name.

    Raises:
        CourseError: there is none; the message suggests the nearest names.
    """
    exercises = all_exercises()
    if name in exercises:
        return exercises[name]
    near = difflib.get_close_matches(name, exercises, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else ""
    raise CourseError(f"The course has no exercise named `{name}`.{meant} Keep the name that the stub has.")
