"""What the student has passed: kept in `mine/chNN.py`, used by later exercises and chapters through `mine`."""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.files import write_atomically
from utils.paths import MINE, SOLUTIONS

NO_REFERENCE = "COURSE_NO_REFERENCE"  # set by runs that must do without the reference, as in a student release


class NotYet(LookupError):
    """An exercise that has not passed its check, in a copy without the reference."""

    def __init__(self, name: str):
        super().__init__(f"`{name}` has not passed its check yet: solve that exercise first, then run this again.")
        self.name = name


class Mine:
    """Exercise names as attributes: `mine.pca` is the student's own passed `pca`.

    Looked up in what passed in this session, then in `mine/chNN.py`, then, where this copy contains it, in the
    reference. Raises NotYet when there is none.
    """

    def __init__(self) -> None:
        self._passed: dict[str, Any] = {}
        self._in_use: list[Mapping[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        session = (*reversed(self._in_use), self._passed)
        for namespace in chain(session, _kept_namespaces(name), _reference_namespaces(name)):
            if name in namespace:
                return namespace[name]
        raise NotYet(name)

    def __repr__(self) -> str:
        return f"mine: {', '.join(sorted({*self._passed, *kept_names()})) or 'nothing has passed yet'}"


mine = Mine()


@contextmanager
def using(namespace: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `mine` looks in `namespace` first: the implementation under test brings its own tools."""
    mine._in_use.append(namespace)
    try:
        yield
    finally:
        mine._in_use.pop()


def keep(chapter: str, name: str, code: str, live: Any) -> Path:
    """Store `code`, the standalone source of exercise `name`, in `mine/chNN.py` in place of an earlier one."""
    mine._passed[name] = live
    path = MINE / f"ch{chapter}.py"
    blocks = {**_blocks(path), name: code.strip()}
    text = f'"""Chapter {chapter}: your solutions that passed. Written by check(); later chapters build on it."""\n'
    text += "".join(f"\n\n# >>> {key}\n{block}\n# <<< {key}\n" for key, block in blocks.items())
    write_atomically(path, text)
    return path


def kept_names() -> list[str]:
    return [name for path in sorted(MINE.glob("ch[0-9][0-9].py")) for name in _blocks(path)]


def _blocks(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    return dict(re.findall(r"^# >>> (\w+)\n(.*?)\n# <<< \1$", path.read_text(encoding="utf-8"), re.M | re.S))


def _kept_namespaces(name: str) -> Iterator[dict[str, Any]]:
    for path in sorted(MINE.glob("ch[0-9][0-9].py")):
        if name in (blocks := _blocks(path)):
            namespace: dict[str, Any] = vars(ModuleType(f"mine.{path.stem}"))
            exec(compile(blocks[name], str(path), "exec"), namespace)
            mine._passed[name] = namespace[name]
            yield namespace


def _reference_namespaces(name: str) -> Iterator[dict[str, Any]]:
    if os.environ.get(NO_REFERENCE):
        return
    for path in sorted(SOLUTIONS.glob("ch[0-9][0-9]_*.py")):
        if name in _top_level_names(path):
            yield vars(importlib.import_module(f"solutions.{path.stem}"))


def _top_level_names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
