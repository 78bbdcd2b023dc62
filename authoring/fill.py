"""Puts solutions into a chapter's notebook: how tests and teaching assistants make submissions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from authoring.build import as_text
from utils.chapters import Chapter, find_chapter
from utils.errors import CourseError
from utils.source import NotDefined, extract, read_source

_MARKERS = ("# BEGIN SOLUTION", "# END SOLUTION")


def main(args: Sequence[str] | None = None) -> int:
    """`course fill CHAPTER --with FILE -o OUT`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="course fill", description="Write a chapter's notebook with its exercise cells taken from a Python file."
    )
    parser.add_argument("chapter", help="for instance 03")
    parser.add_argument(
        "--with", dest="file", type=Path, required=True, help="a .py file or a notebook with the answers"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the notebook to write")
    options = parser.parse_args(args)
    try:
        chapter = find_chapter(options.chapter)
        filled, missing = fill(read_notebook(chapter), read_source(options.file))
    except (CourseError, OSError, SyntaxError) as error:
        print(f"course fill: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(as_text(filled), encoding="utf-8")
    print(f"wrote {options.output}")
    if missing:
        print(f"{options.file} does not define {', '.join(missing)}: the stub stays in the notebook")
    return 0


def read_notebook(chapter: Chapter) -> dict[str, Any]:
    """The chapter's built notebook as JSON."""
    if not chapter.notebook.exists():
        raise CourseError(f"{chapter.shown(chapter.notebook)} is not built yet: run `make build`")
    return json.loads(chapter.notebook.read_text(encoding="utf-8"))


def fill(notebook: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """A copy of the notebook with its stub cells filled from module-like source, and the names that the source lacks.

    A cell brings the imports, helpers and assignments that its answer uses. Answers in cells above are not repeated.
    """
    cells, missing, above = [], [], []
    for cell in notebook["cells"]:
        about = cell["metadata"].get("course", {})
        if about.get("role") == "stub":
            try:
                code = extract(source, about["exercise"], known=above).code
                above.append(about["exercise"])
                cell = {**cell, "source": _without_markers(code).splitlines(keepends=True)}
            except NotDefined:
                missing.append(about["exercise"])
        cells.append(cell)
    return {**notebook, "cells": cells}, missing


def _without_markers(code: str) -> str:
    return "\n".join(line for line in code.splitlines() if line.strip() not in _MARKERS)
