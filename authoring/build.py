"""Builds `chapters/NN_name.ipynb` from the chapter's text, its reference solution and its checker module."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import re
import statistics
import symtable
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import nbformat

from authoring import readme
from authoring.chapter_text import MEASURE, Cell, ChapterText, figures, measured_names, read_text
from authoring.setup_cell import setup_source
from authoring.stubs import stub_source
from utils.chapters import Chapter, find_chapters
from utils.checks.exercises import Exercise, exercises_in
from utils.errors import CourseError
from utils.paths import ROOT, repository
from utils.source import extract, plain_python

BRANCH = "main"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapters", nargs="*", help="for instance 03; all when none is named")
    parser.add_argument("--check", action="store_true", help="only say which notebooks are stale (exit status 1)")
    parser.add_argument("--report", action="store_true", help="say how long the code cells are that students read")


def run(options: argparse.Namespace) -> int:
    """Build what is stale; with `--check`, exit status 1 if something is. With `--report`, only describe the cells."""
    chapters = find_chapters(options.chapters)
    if options.report:
        print(report(chapters))
        return 0
    stale = [chapter for chapter in chapters if is_stale(chapter, repository())]
    for chapter in stale:
        if options.check:
            print(f"stale: {chapter.shown(chapter.notebook)}")
        else:
            chapter.notebook.write_text(notebook_text(chapter, repository()), encoding="utf-8")
            print(f"built {chapter.shown(chapter.notebook)}")
    map_is_stale = any(chapter.root == ROOT for chapter in chapters) and readme.is_stale()
    if map_is_stale and options.check:
        print("stale: the map of chapters in README.md")
    elif map_is_stale:
        readme.build()
        print("built the map of chapters in README.md")
    if options.check and (stale or map_is_stale):
        print("Run `make build`, and commit the notebooks with their texts.")
        return 1
    print(f"{len(chapters) - len(stale)} of {len(chapters)} notebooks were up to date")
    return 0


def is_stale(chapter: Chapter, address: str) -> bool:
    """Whether the chapter's notebook is missing or differs from what its sources give."""
    current = chapter.notebook.read_text(encoding="utf-8") if chapter.notebook.exists() else None
    return current != notebook_text(chapter, address)


def notebook_text(chapter: Chapter, address: str) -> str:
    """The notebook file's text: the same bytes for the same sources."""
    return as_text(build(chapter, address))


def as_text(notebook: dict[str, Any]) -> str:
    """A notebook as the text of a file."""
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def build(chapter: Chapter, address: str, *, measuring: bool = False) -> dict[str, Any]:
    """The chapter's notebook as nbformat JSON, validated.

    Args:
        address: the repository's.
        measuring: with the cells that measure the prose's figures, which no reader's notebook has. The others keep
            their ids.
    """
    text = read_text(chapter.text, chapter.shown(chapter.text))
    exercises = {exercise.name: exercise for exercise in exercises_in(chapter)}
    _check_places(text, exercises, chapter)
    _check_measured(text)
    cells = [
        _markdown(_opening(chapter, text, exercises.values(), address), role="opening"),
        _setup_cell(setup_source(chapter.number, address)),
    ]
    above: list[str] = []  # the code that has run when a stub's cell is reached
    for cell in text.cells:
        if cell.measures:
            cells += [_code(cell.source, role="measure")] if measuring else []
        elif cell.kind == "code":
            above.append(plain_python(cell.source))
            cells.append(_code(cell.source, tags=cell.options.get("tags")))
        elif "exercise" in cell.options:
            exercise = exercises[cell.options["exercise"]]
            stub = _stub(chapter, exercise, above, f"{text.file}:{cell.line}")
            above.append(stub)
            cells += _exercise_cells(exercise, cell.source, stub)
        else:
            folded = cell.options.get("folded")
            cells.append(_markdown(_folded(folded, cell.source) if folded else cell.source))
    notebook = {
        "cells": _with_ids(cells),
        "metadata": {
            "course": {"chapter": chapter.number},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    nbformat.validate(notebook)
    return notebook


def report(chapters: Sequence[Chapter]) -> str:
    """How many lines the code cells have that students read, as a table; set-up and check cells do not count."""
    columns = f"{'cells':>5} {'median':>6} {'9 in 10':>7} {'longest':>7}"
    cells = {chapter.name: build(chapter, repository())["cells"] for chapter in chapters}
    cells["all"] = [cell for one_chapter in cells.values() for cell in one_chapter]
    rows = [f"{name:30}{_lengths(its, None, 'stub')}{'':17}{_lengths(its, None)}" for name, its in cells.items()]
    return "\n".join([f"{'lines of code cells':30}{columns}{'without stubs:':>17}{columns}", *rows])


def _lengths(cells: Iterable[dict[str, Any]], *roles: str | None) -> str:
    """Of the code cells in these roles: how many, and of their lines the median, the ninth decile and the maximum."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    lines = sorted(len(cell["source"]) for cell in code if cell["metadata"].get("course", {}).get("role") in roles)
    if not lines:
        return f"{0:5}{'':23}"
    return f"{len(lines):5} {statistics.median(lines):6g} {lines[math.ceil(0.9 * len(lines)) - 1]:7} {lines[-1]:7}"


# What the text and the checkers must agree on


def _check_places(text: ChapterText, exercises: dict[str, Exercise], chapter: Chapter) -> None:
    placed: dict[str, int] = {}
    for cell in text.cells:
        name = cell.options.get("exercise")
        if name is None:
            continue
        if name not in exercises:
            known = ", ".join(exercises) or "none"
            raise CourseError(
                f"{text.file}:{cell.line}: no exercise `{name}` in {chapter.shown(chapter.checker)}; "
                f"it declares: {known}"
            )
        if name in placed:
            raise CourseError(f"{text.file}:{cell.line}: exercise `{name}` already stands in line {placed[name]}")
        placed[name] = cell.line
    for name, exercise in exercises.items():
        if name not in placed:
            raise CourseError(
                f'{text.file}: exercise `{name}` has no place: start its problem with `+++ {{"exercise": "{name}"}}`'
            )
        if exercise.chapter != chapter.number:
            raise CourseError(
                f"{chapter.shown(chapter.checker)}: exercise `{name}` has number {exercise.number}, "
                f"not {int(chapter.number)}.n"
            )


def _check_measured(text: ChapterText) -> None:
    """Figures are measured, by cells that the lesson can do without."""
    lesson: set[str] = set()
    for cell in text.cells:
        if cell.kind == "code" and not cell.measures:
            lesson |= _names(cell)
            if "measured" in lesson:
                raise CourseError(
                    f"{text.file}:{cell.line}: readers do not measure: move `measured` into a cell of its own below "
                    f"this one, which begins with `:tags: [{MEASURE}]`"
                )
    measuring = [cell for cell in text.cells if cell.measures]
    for cell in measuring:
        if taken := lesson & _names(cell, set_only=True):
            raise CourseError(
                f"{text.file}:{cell.line}: this cell is left out of the notebook, but sets {', '.join(sorted(taken))}, "
                "which the lesson uses: set it in the lesson, or give it another name"
            )
    measured = [name for cell in measuring for name in measured_names(plain_python(cell.source))]
    for cell in text.cells:
        if cell.kind != "markdown":
            continue
        for figure in figures(cell.source, f"{text.file}:{cell.line}"):
            if not any(fnmatch.fnmatchcase(figure.name, pattern) for pattern in measured):
                raise CourseError(
                    f"{text.file}:{cell.line}: the figure `{figure.name}` is never measured: write "
                    f'`measured("{figure.name}", ...)` in a code cell that begins with `:tags: [{MEASURE}]`'
                )


def _names(cell: Cell, set_only: bool = False) -> set[str]:
    """The notebook's names that a code cell sets or uses, in its functions, too; or only those that it sets."""
    tables = [symtable.symtable(plain_python(cell.source), "cell", "exec")]
    names: set[str] = set()
    for table in tables:  # grows: a function's table stands inside that of the cell
        for symbol in table.get_symbols():
            is_set = symbol.is_assigned() or symbol.is_imported()
            if (table.get_type() == "module" or symbol.is_global()) and (is_set or not set_only):
                names.add(symbol.get_name())
        tables += table.get_children()
    return names - {"_"}


def _stub(chapter: Chapter, exercise: Exercise, above: list[str], where: str) -> str:
    if not chapter.solution.exists():
        raise CourseError(
            f"{where}: exercise `{exercise.name}` needs its reference in {chapter.shown(chapter.solution)}"
        )
    stub = stub_source(chapter.solution.read_text(encoding="utf-8"), exercise.name, chapter.shown(chapter.solution))
    missing = extract("\n\n".join([*above, stub]), exercise.name).needs
    if missing:
        raise CourseError(
            f"{where}: the stub of `{exercise.name}` uses {', '.join(missing)}, "
            "which no code cell above it imports or defines"
        )
    return stub


# Cells


def _opening(chapter: Chapter, text: ChapterText, exercises: Iterable[Exercise], address: str) -> str:
    course = text.course
    exercises = list(exercises)
    graded = sum(exercise.points for exercise in exercises)
    count = f"{len(exercises)} exercise{'s' if len(exercises) != 1 else ''}"
    facts = [f"**Time:** about {_duration(course['minutes'])}"]
    if exercises:
        facts.append(f"**To do:** {count}" + (f", {graded} points" if graded else ", ungraded"))
    parts = [
        f"# {chapter.number} · {course['title']}",
        launchers(address, chapter.shown(chapter.notebook)),
        str(course["promise"]).strip(),
        "**Afterwards you can**\n\n" + "\n".join(f"- {one}" for one in course["objectives"]),
        f"**You need:** {', '.join(course['needs']) or 'nothing from earlier chapters'}  \n" + "  \n".join(facts),
    ]
    return "\n\n".join(part for part in parts if part)


def launchers(address: str, path: str) -> str:
    """Links that open the notebook at `path` elsewhere; in words, because pictures from the net are broken offline.

    Nothing for a repository that is not on GitHub, which is the only host that all three know.
    """
    where = urlsplit(address)
    if where.hostname != "github.com":
        return ""
    slug = where.path.strip("/")
    page = f"https://github.com/{slug}/blob/{BRANCH}/{path}"
    links = {
        "Colab": f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/{path}",
        "Kaggle": f"https://kaggle.com/kernels/welcome?src={page}",
        "Binder": f"https://mybinder.org/v2/gh/{slug}/{BRANCH}?labpath={quote(path, safe='')}",
    }
    return "Open in " + " · ".join(f"[{name}]({link})" for name, link in links.items())


def _exercise_cells(exercise: Exercise, problem: str, stub: str) -> list[dict[str, Any]]:
    about: dict[str, Any] = {"exercise": exercise.name}
    cells = [_markdown(f"{_heading(exercise)}\n\n{problem}", role="problem", **about)]
    if exercise.hints:
        count = len(exercise.hints)
        hints = (_folded(f"Hint {number} of {count}", hint) for number, hint in enumerate(exercise.hints, start=1))
        cells.append(_markdown("\n\n".join(hints), role="hints", **about))
    cells.append(_code(stub.rstrip("\n"), role="stub", **about))
    cells.append(_code(f"check({exercise.name})", role="check", **about))
    return cells


def _heading(exercise: Exercise) -> str:
    points = f"{exercise.points} point{'s' if exercise.points != 1 else ''}" if exercise.points else "ungraded"
    facts = [
        f"Difficulty {_dots('🔴', exercise.difficulty)}",
        f"Importance {_dots('🔵', exercise.importance)}",
        f"{exercise.minutes} minutes",
        points,
    ]
    return f"## Exercise {exercise.number}: {exercise.title}\n\n{' · '.join(facts)}"


def _dots(dot: str, count: int) -> str:
    return f"{dot * count}{'⚪' * (5 - count)} ({count} of 5)"


def _duration(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} minutes"
    return f"{hours} h {rest:02d} min" if rest else f"{hours} hour{'s' if hours > 1 else ''}"


def _folded(label: str, markdown: str) -> str:
    # Markdown inside an HTML block is rendered only after an empty line.
    return f"<details>\n<summary><b>{label}</b></summary>\n\n{markdown.strip()}\n\n</details>"


def _markdown(source: str, role: str | None = None, **about: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": _metadata(role, None, about), "source": _lines(source)}


def _code(source: str, role: str | None = None, tags: list[str] | None = None, **about: str) -> dict[str, Any]:
    metadata = _metadata(role, tags, about)
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": _lines(source)}


def _setup_cell(source: str) -> dict[str, Any]:
    """Folded in JupyterLab and in Colab: it is to be run, not to be read."""
    cell = _code(source, role="setup")
    cell["metadata"] |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
    return cell


def _metadata(role: str | None, tags: list[str] | None, about: dict[str, str]) -> dict[str, Any]:
    return {**({"course": {"role": role, **about}} if role else {}), **({"tags": list(tags)} if tags else {})}


def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


# Ids


def _with_ids(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every cell an id made of the heading it stands under (or its exercise) and its role there.

    A new cell changes only the ids of its like that follow it under the same heading.
    """
    section = "start"
    taken: dict[str, int] = {}
    for cell in cells:
        source = "".join(cell["source"])
        course = cell["metadata"].get("course", {})
        if "exercise" in course:
            section = slug(course["exercise"])
        elif cell["cell_type"] == "markdown" and course.get("role") != "opening":
            headings = re.findall(r"^#{1,6} +(.+)$", re.sub(r"^```.*?^```", "", source, flags=re.M | re.S), flags=re.M)
            section = slug(headings[0]) if headings else section
        role = course.get("role") or ("text" if cell["cell_type"] == "markdown" else "code")
        name = f"{section}-{role}"
        taken[name] = taken.get(name, 0) + 1
        cell["id"] = name if taken[name] == 1 else f"{name}-{taken[name]}"
    ids = [cell["id"] for cell in cells]
    for cell in cells:  # two equal headings, or a heading that ends in a number: rare, and still unique
        while ids.count(cell["id"]) > 1:
            ids[ids.index(cell["id"])] = cell["id"] = f"{cell['id']}-x"
    return cells


def slug(heading: str) -> str:
    """A heading as part of a cell id: lower case, letters and digits, at most 40 characters."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "section"
