"""Filling a chapter's notebook with somebody's answers."""

import json

import pytest

import course
from authoring import build as builder
from authoring import fill as filler
from tests.course.test_build import ADDRESS, sources, write_chapter

ANSWERS = '''\
import math
from fractions import Fraction

UNUSED = 1
START = Fraction(0)


def _sum(*numbers):
    return sum(numbers, START)


def add(a: Fraction, b: Fraction) -> Fraction:
    """My sum."""
    # BEGIN SOLUTION
    return _sum(a, b)
    # END SOLUTION
'''


@pytest.fixture
def notebook(tmp_path) -> dict:
    return builder.build(write_chapter(tmp_path), ADDRESS)


def test_only_stub_cells_change_and_helpers_come_along(notebook):
    filled, missing = filler.fill(notebook, ANSWERS)
    before, after = sources(notebook), sources(filled)
    assert missing == []
    assert {name for name in before if before[name] != after[name]} == {"add-stub"}
    cell = after["add-stub"]
    assert "UNUSED" not in cell and "import math" not in cell and "SOLUTION" not in cell
    names: dict = {}
    exec(cell, names)
    assert names["add"](1, 2) == 3
    assert "NotImplementedError" in sources(notebook)["add-stub"], "the notebook that was passed in is left as it is"


def test_what_the_answers_lack_keeps_its_stub_and_is_named(notebook):
    filled, missing = filler.fill(notebook, "x = 1\n")
    assert missing == ["add"] and filled == notebook


def test_answers_above_are_not_repeated(notebook):
    stub = next(cell for cell in notebook["cells"] if cell["id"] == "add-stub")
    twice = {**stub, "id": "double-stub", "metadata": {"course": {"role": "stub", "exercise": "double"}}}
    filled, _ = filler.fill(
        {**notebook, "cells": [*notebook["cells"], twice]}, ANSWERS + "\ndef double(a):\n    return add(a, a)\n"
    )
    assert sources(filled)["double-stub"] == "def double(a):\n    return add(a, a)"


@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_command_takes_a_module_or_a_notebook(tmp_path, monkeypatch, capsys, suffix):
    chapter = write_chapter(tmp_path)
    monkeypatch.setattr(filler, "find_chapter", lambda typed: chapter)
    answers, out = tmp_path / f"answers{suffix}", tmp_path / "new" / "out.ipynb"
    cell = {"cell_type": "code", "source": "%matplotlib inline\n" + ANSWERS}
    answers.write_text(ANSWERS if suffix == ".py" else json.dumps({"cells": [cell]}))
    arguments = ["7", "--with", str(answers), "-o", str(out)]
    assert course.main(["fill", *arguments]) == 2
    assert "is not built yet: run `make build`" in capsys.readouterr().err
    chapter.notebook.write_text(builder.notebook_text(chapter, ADDRESS))
    assert course.main(["fill", *arguments]) == 0
    assert "My sum." in sources(json.loads(out.read_text()))["add-stub"]
    answers.unlink()
    assert course.main(["fill", *arguments]) == 2


def test_command_reports_what_is_missing(tmp_path, monkeypatch, capsys):
    chapter = write_chapter(tmp_path)
    chapter.notebook.write_text(builder.notebook_text(chapter, ADDRESS))
    monkeypatch.setattr(filler, "find_chapter", lambda typed: chapter)
    (tmp_path / "empty.py").write_text("")
    assert course.main(["fill", "7", "--with", str(tmp_path / "empty.py"), "-o", str(tmp_path / "out.ipynb")]) == 0
    assert "does not define add: the stub stays" in capsys.readouterr().out
