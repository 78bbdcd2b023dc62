"""Moves the course to another repository: one setting, then everything that is stamped from it."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from authoring.build import notebook_text
from utils import paths
from utils.chapters import all_chapters
from utils.errors import CourseError

_SETTING = re.compile(r'(?m)^(repository\s*=\s*)"[^"\n]*"')


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="for instance https://github.com/someone/some-course")


def run(options: argparse.Namespace) -> int:
    """Restamp and say which files changed."""
    changed = restamp(options.address, paths.ROOT)
    print("\n".join(str(path.relative_to(paths.ROOT)) for path in changed) or "nothing changed")
    return 0


def restamp(address: str, root: Path) -> list[Path]:
    """Write the address into pyproject.toml and rebuild; returns the files that changed."""
    address = address.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+){2,}", address):
        raise CourseError(
            f"{address!r} is no address of a repository: give it as https://github.com/someone/some-course"
        )
    setting = root / "pyproject.toml"
    old = setting.read_text(encoding="utf-8")
    new, count = _SETTING.subn(rf'\g<1>"{address}"', old)
    if count != 1:
        raise CourseError(f'{setting} must have one line `repository = "..."` under [tool.course]; it has {count}')
    built = [
        (chapter.notebook, notebook_text(chapter, address)) for chapter in all_chapters(root) if chapter.text.exists()
    ]
    before = tomllib.loads(old)["tool"]["course"]["repository"]
    documents = [(path, _moved(path.read_text(encoding="utf-8"), before, address)) for path in _documents(root)]
    changed = []
    for path, text in [(setting, new), *documents, *built]:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    paths.repository.cache_clear()
    return changed


def _documents(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("*.cff"), *root.glob("docs/**/*.md")])


def _moved(text: str, before: str, after: str) -> str:
    """A document with the address replaced, also where a badge's link holds only `owner/name`."""
    for old, new in ((before, after), (urlsplit(before).path.strip("/"), urlsplit(after).path.strip("/"))):
        text = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w-])", new, text)
    return text
