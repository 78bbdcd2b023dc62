"""Exercises and their graded checks: what a checker module in `tests/` declares and everything else reads."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from utils.paths import TESTS


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
        for dots in (self.difficulty, self.importance):
            if dots not in range(1, 6):
                raise ValueError(f"exercise {self.name}: difficulty and importance are 1 to 5 dots, not {dots}")

    def check(self, title: str, *, hint: str, points: int = 1, seconds: float = 30) -> Callable:
        """Decorator: make a test function a graded check of this exercise."""
        made = Check(self.name, title, points, hint, seconds)
        self.checks.append(made)
        return pytest.mark.graded(made)

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)

    @property
    def chapter(self) -> str:
        return self.number.split(".")[0].zfill(2)


def exercises_of(module: ModuleType) -> list[Exercise]:
    """The exercises that a checker module declares, in order."""
    return [value for value in vars(module).values() if isinstance(value, Exercise)]


def checker_files() -> dict[str, Path]:
    """Chapter number -> its checker module's file, for instance "03" -> tests/test_ch03_sparse_tensor.py."""
    return {path.stem[7:9]: path for path in sorted(TESTS.glob("test_ch[0-9][0-9]_*.py"))}


def chapter_key(text: str) -> str:
    """The chapter number in what a person types: "3", "03", "03_sparse_tensor" or a path to the notebook."""
    key = Path(text).stem.removeprefix("ch").split("_")[0].zfill(2)
    if key not in checker_files():
        known = ", ".join(path.stem[7:] for path in checker_files().values())
        raise LookupError(f"no chapter {text!r}; the chapters with exercises are {known}")
    return key


@cache
def chapter_exercises(chapter: str) -> list[Exercise]:
    """The exercises of a chapter, in order."""
    return exercises_of(importlib.import_module(f"tests.{checker_files()[chapter].stem}"))


@cache
def all_exercises() -> dict[str, Exercise]:
    """Every exercise of the course by name; names are unique."""
    found: dict[str, Exercise] = {}
    for chapter in checker_files():
        for exercise in chapter_exercises(chapter):
            if exercise.name in found:
                raise ValueError(f"two exercises are named {exercise.name!r}: rename one in {checker_files()[chapter]}")
            found[exercise.name] = exercise
    return found


def find_exercise(name: str) -> Exercise:
    """The exercise of that name; a LookupError suggests the nearest names."""
    exercises = all_exercises()
    if name in exercises:
        return exercises[name]
    near = difflib.get_close_matches(name, exercises, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else ""
    raise LookupError(f"The course has no exercise named `{name}`.{meant} Keep the name that the stub has.")
