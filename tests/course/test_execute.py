"""Executed chapters: what counts as a problem, one real run through a kernel, and moving the repository's address."""

import pytest

from authoring import build as builder
from authoring import execute as runner
from authoring.restamp import restamp
from tests.course.test_build import ADDRESS, CHECKER, SOLUTION, TEXT, write_chapter
from utils.chapters import Chapter, all_chapters
from utils.errors import CourseError
from utils.paths import ROOT

# Stands for the course in the scratch chapter: a check that reports rows, and figures that are written down.
COURSE = """
import json, os
from pathlib import Path
from IPython.display import display


def measured(name, value):
    Path(os.environ["COURSE_MEASURED_OUT"]).write_text(json.dumps({name: value}))


def check(function):
    try:
        passed = function(1, 2) == 3
    except NotImplementedError:
        passed = False
    row = {"check": "adds", "passed": passed, "message": "wrong"}
    display({"application/vnd.sparse-circuits.check+json": {"rows": [row]}, "text/plain": ""}, raw=True)
"""


@pytest.fixture
def chapter(tmp_path) -> Chapter:
    room = tmp_path / "utils"
    room.mkdir()
    (room / "__init__.py").write_text(f"{COURSE}\ndashboard = failed = hint = progress = solution = None\n")
    (room / "setup_cell.py").write_text("def ready(chapter):\n    print('ready', chapter)\n")
    return write(tmp_path)


def write(root, text: str = TEXT, solution: str = SOLUTION) -> Chapter:
    made = write_chapter(root, text, solution, CHECKER)
    made.notebook.write_text(builder.notebook_text(made, ADDRESS), encoding="utf-8")
    return made


def found(chapter: Chapter, *, student: bool = False) -> tuple[list[str], runner.Run]:
    run = runner.execute_chapter(chapter, student=student)
    return list(runner.problems(chapter, run, student=student)), run


def test_a_good_chapter_runs_solved_and_as_a_student_who_skips_everything(chapter):
    problems, run = found(chapter)
    assert problems == []
    assert run.measured == {"total": 2} and run.peak_bytes > 1e7 and run.seconds > 0
    problems, run = found(chapter, student=True)
    assert problems == []
    assert "write add" in str(run.notebook), "the student's run has the stub"


def test_everything_that_is_wrong_is_named(chapter):
    text = TEXT.replace("total = 2", "import warnings\nwarnings.warn('odd')\ntotal = 5\n1 / 0 if total > 5 else 0")
    problems, _ = found(write(chapter.root, text, SOLUTION.replace("a + b", "a - b")))
    assert any("the reference of add fails the check 'adds': wrong" in problem for problem in problems)
    assert any("cell add-code: unexplained on stderr" in problem and "odd" in problem for problem in problems)
    assert any("the text says 2.0 for `total`, the run 5" in problem for problem in problems)
    assert len(problems) == 4


def test_errors_and_figures_that_were_not_reached_are_named(chapter):
    text = TEXT.replace('measured("total", total)', '1 / 0\nmeasured("total", total)')
    problems, _ = found(write(chapter.root, text))
    assert problems[0] == "cell add-measure: ZeroDivisionError: division by zero"
    assert any("`total` was never measured" in problem for problem in problems)


@pytest.mark.parametrize(
    ("rows", "student", "says"),
    [
        ([], False, "check(add) reported nothing"),
        ([], True, "check(add) reported nothing"),
        ([True, False], False, "the reference of add fails the check"),
        ([False, True], True, "the stub of add passes the check"),
        ([True], False, ""),
        ([False], True, ""),
    ],
)
def test_checks_must_pass_solved_and_fail_on_stubs(chapter, rows, student, says):
    report = {"rows": [{"check": "adds", "passed": passed, "message": "no"} for passed in rows]}
    output = {"output_type": "display_data", "data": {runner.ROWS_MIME: report}, "metadata": {}}
    about = {"course": {"role": "check", "exercise": "add"}}
    cell = {"cell_type": "code", "id": "c", "source": "", "metadata": about, "outputs": [output] if rows else []}
    found = list(runner.problems(chapter, runner.Run({"cells": [cell]}), student=student))
    assert len(found) == bool(says) and says in "".join(found)


@pytest.mark.parametrize(
    ("stderr", "left"),
    [
        ("", ""),
        ("Loading:  50%|#####     | 1/2 [00:01<00:01,  1.0s/it]\r", ""),
        ("a.py:3: UserWarning: known thing\n  warnings.warn('known thing')\n", ""),
        ("a.py:3: UserWarning: other\n  warnings.warn('x')\n", "a.py:3: UserWarning: other"),
        ("100%|##########| 2/2 [00:01<00:00]\nb.py:1: FutureWarning: soon\n", "b.py:1: FutureWarning: soon"),
    ],
)
def test_warnings_must_be_expected(stderr, left):
    assert runner.unexplained_warning(stderr, [{"says": "known thing", "why": "harmless"}]).startswith(left)
    if not left:
        assert not runner.unexplained_warning(stderr, [{"says": "known thing", "why": "harmless"}])


def test_restamp_changes_the_setting_and_every_stamp(tmp_path):
    chapter = write_chapter(tmp_path)
    (tmp_path / "pyproject.toml").write_text(f'[tool.course]\nrepository = "{ADDRESS}"\n')
    (tmp_path / "README.md").write_text(
        f"git clone {ADDRESS}.git\n[x](https://mybinder.org/v2/gh/someone/some-course/main)\nsome-course\n"
    )
    new = "https://github.com/elsewhere/that-course"
    changed = restamp(new + ".git", tmp_path)
    assert changed == [tmp_path / "pyproject.toml", tmp_path / "README.md", chapter.notebook]
    assert not builder.is_stale(chapter, new)
    assert (
        tmp_path / "README.md"
    ).read_text() == f"git clone {new}.git\n[x](https://mybinder.org/v2/gh/elsewhere/that-course/main)\nsome-course\n"
    assert f'"{new}"' in (tmp_path / "pyproject.toml").read_text()
    assert restamp(new, tmp_path) == []
    for bad in ("github.com/a/b", "https://github.com/a", "https://github.com/a/b c"):
        with pytest.raises(CourseError, match="is no address"):
            restamp(bad, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("student", [False, True], ids=["solved", "student"])
@pytest.mark.parametrize("chapter", [one for one in all_chapters(ROOT) if one.number == "03"], ids=lambda one: one.name)
def test_a_real_chapter_runs(chapter, student):
    problems, _ = found(chapter, student=student)
    assert problems == []
