"""What a chapter is: number, title, files, checker module. Every command, the builder and the release ask here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from utils.errors import CourseError
from utils.paths import ROOT

_NAME = re.compile(r"\d\d_[a-z0-9_]+")


@dataclass(frozen=True)
class Chapter:
    """A chapter such as `03_sparse_tensor` of the course in `root`."""

    name: str
    root: Path = ROOT

    @property
    def number(self) -> str:
        """The two digits that the name begins with, such as "03"."""
        return self.name[:2]

    @property
    def title(self) -> str:
        """The title in the notebook's first line, without the number."""
        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        return "".join(cells[0]["source"]).split("\n")[0].partition("·")[2].strip()

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
        """A path as a message names it: from the course's root."""
        return path.relative_to(self.root).as_posix()

    def load_checker(self) -> ModuleType:
        """The checker module; that of this course is the one that pytest collects, too."""
        name = f"tests.{self.checker.stem}"
        if self.root == ROOT:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, self.checker)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def all_chapters(root: Path = ROOT) -> list[Chapter]:
    """Every chapter, in order, from the texts or, where these are left out, from the notebooks."""
    names = {path.stem for pattern in ("text/*.md", "*.ipynb") for path in (root / "chapters").glob(pattern)}
    return [Chapter(name, root) for name in sorted(names) if _NAME.fullmatch(name)]


def find_chapter(typed: str, root: Path = ROOT) -> Chapter:
    """The chapter that a person means by "3", "03", "ch03", "03_sparse_tensor" or a path to one of its files.

    Raises:
        CourseError: there is no such chapter.
    """
    number = Path(typed).stem.removeprefix("test_").removeprefix("ch").split("_")[0].zfill(2)
    chapters = {chapter.number: chapter for chapter in all_chapters(root)}
    if number not in chapters:
        known = ", ".join(chapter.name for chapter in chapters.values()) or "none yet"
        raise CourseError(f"there is no chapter {typed!r}; the chapters are: {known}")
    return chapters[number]


def find_chapters(typed: Sequence[str], root: Path = ROOT) -> list[Chapter]:
    """The chapters that a person names; all when none is named."""
    return [find_chapter(word, root) for word in typed] if typed else all_chapters(root)


_at_work = "00"


def begin(number: str) -> None:
    """Say which chapter this session works on; the set-up cell does."""
    global _at_work
    _at_work = number


def at_work() -> str:
    """The number of the chapter that this session works on; "00" before a set-up cell has run."""
    return _at_work
