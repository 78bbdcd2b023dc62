"""Puts solutions into a chapter's notebook: how tests and teaching assistants make submissions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from authoring.build import as_text
from utils.chapters import Chapter, find_chapter
from utils.errors import CourseError
from utils.files import write_atomically
from utils.source import NotDefined, extract, read_source

_MARKERS = ("# BEGIN SOLUTION", "# END SOLUTION")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapter", help="for instance 03")
    parser.add_argument(
        "--with", dest="file", type=Path, required=True, help="a .py file or a notebook with the answers"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the notebook to write")


def run(options: argparse.Namespace) -> int:
    """Write the filled notebook and say which exercises the file does not define."""
    chapter = find_chapter(options.chapter)
    try:
        filled, missing = fill(read_notebook(chapter), read_source(options.file))
    except (OSError, SyntaxError) as error:
        raise CourseError(f"{options.file}: {error}") from error
    write_atomically(options.output, as_text(filled))
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
    cells: list[dict[str, Any]] = []
    missing: list[str] = []
    above: list[str] = []
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
