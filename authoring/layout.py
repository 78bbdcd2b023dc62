"""The files that belong to one chapter."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import CourseError
from utils.exercises import Exercise, exercises_of
from utils.paths import ROOT

_NAME = re.compile(r"\d\d_[a-z0-9_]+")


@dataclass(frozen=True)
class Chapter:
    """A chapter such as `03_sparse_tensor` of the course in `root`."""

    name: str
    root: Path = ROOT

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def text(self) -> Path:
        return self.root / "chapters" / "text" / f"{self.name}.md"

    @property
    def notebook(self) -> Path:
        return self.root / "chapters" / f"{self.name}.ipynb"

    @property
    def solution(self) -> Path:
        return self.root / "solutions" / f"ch{self.name}.py"

    @property
    def checker(self) -> Path:
        return self.root / "tests" / f"test_ch{self.name}.py"

    def shown(self, path: Path) -> str:
        """A path as an error message names it: from the course's root."""
        return path.relative_to(self.root).as_posix()

    def exercises(self) -> list[Exercise]:
        """The exercises that the chapter's checker module declares, in order; none where there is no such module."""
        if not self.checker.exists():
            return []
        spec = importlib.util.spec_from_file_location(f"checkers_{self.name}", self.checker)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return exercises_of(module)


def all_chapters(root: Path = ROOT) -> list[Chapter]:
    """Every chapter, in order, from the texts or, where these are left out, from the notebooks."""
    names = {path.stem for pattern in ("text/*.md", "*.ipynb") for path in (root / "chapters").glob(pattern)}
    return [Chapter(name, root) for name in sorted(names) if _NAME.fullmatch(name)]


def named_chapters(wanted: Sequence[str], root: Path = ROOT) -> list[Chapter]:
    """The chapters that a person names as "3", "03", "03_sparse_tensor" or by a path; all when none is named."""
    chapters = all_chapters(root)
    if not wanted:
        return chapters
    by_number = {chapter.number: chapter for chapter in chapters}
    found = []
    for word in wanted:
        number = Path(word).stem.removeprefix("ch").split("_")[0].zfill(2)
        if number not in by_number:
            known = ", ".join(chapter.name for chapter in chapters) or "none yet"
            raise CourseError(f"there is no chapter {word!r}; the chapters are: {known}")
        found.append(by_number[number])
    return found
