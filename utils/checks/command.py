"""`course check`: a chapter's checks from the shell."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

from utils.chapters import find_chapter
from utils.checks.exercises import chapter_exercises
from utils.checks.expect import StudentError
from utils.checks.implementations import Implementation, from_file, reference, solution_file
from utils.checks.rows import Row, failures
from utils.checks.running import run_checks
from utils.errors import CourseError
from utils.files import write_atomically
from utils.source import definitions, extract, notebook_source


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "chapter", help='a chapter ("03", "03_sparse_tensor") or a notebook whose exercise cells are checked'
    )
    parser.add_argument("--with", dest="file", type=Path, help="a Python file that defines the exercise names")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--isolated", action="store_true", help="run the implementation in a separate process")


def run(options: argparse.Namespace) -> int:
    """Exit status 0 only if every check passed, else 1."""
    chapter = find_chapter(options.chapter).number
    try:
        with _implementation(chapter, options) as implementation:
            rows = run_checks(chapter, [implementation])
    except StudentError as error:
        raise CourseError(error.text) from error
    except OSError as error:
        raise CourseError(f"{error.filename} cannot be read: {error.strerror}") from error
    if options.json:
        write_atomically(options.json, json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    print(report(rows))
    return 0 if rows and all(row.passed for row in rows) else 1


@contextmanager
def _implementation(chapter: str, options: argparse.Namespace) -> Iterator[Implementation]:
    """What the command line names: a file, a notebook's cells, or the reference."""
    with tempfile.TemporaryDirectory() as scratch:
        path = options.file
        if path is None and options.chapter.endswith(".ipynb"):
            path = Path(scratch) / f"{Path(options.chapter).stem}.py"
            path.write_text(exercise_cells(chapter, Path(options.chapter)), encoding="utf-8")
        if not options.isolated:
            yield reference(chapter) if path is None else from_file(path)
            return
        from utils.checks.isolation import isolated

        with isolated(path or solution_file(chapter)) as implementation:
            yield implementation


def exercise_cells(chapter: str, notebook: Path) -> str:
    """The notebook's definitions of the chapter's exercises, with what they stand on, as one module's source."""
    source = notebook_source(notebook)
    names = [exercise.name for exercise in chapter_exercises(chapter) if exercise.name in definitions(source)]
    return "\n\n\n".join(extract(source, name, constants_only=True).code for name in names)


def report(rows: Sequence[Row]) -> str:
    """The rows as text: a table, then what went wrong, check by check."""
    table = [
        [
            "passed" if row.passed else "FAILED",
            row.exercise,
            row.check,
            f"{row.points}/{row.max_points}",
            f"{row.seconds:.2f}",
        ]
        for row in rows
    ]
    parts = [tabulate(table, headers=["", "exercise", "check", "points", "seconds"])]
    for row in failures(rows):
        hint = f"\nHint: {row.hint}" if row.hint else ""
        parts.append(f"{row.exercise}: {row.check}\n{row.message}{hint}")
    parts.append(f"{sum(row.points for row in rows)} of {sum(row.max_points for row in rows)} points")
    return "\n\n".join(parts)
