"""The builder: text + solution + checkers -> notebook."""

import json
import textwrap
from pathlib import Path

import nbformat
import pytest

import course
from authoring import build as builder
from authoring.chapter_text import Figure, figures
from utils.chapters import Chapter, all_chapters, find_chapters
from utils.errors import CourseError
from utils.paths import repository

ADDRESS = "https://github.com/someone/some-course"

TEXT = """\
---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
course:
  title: Small things
  promise: You will add.
  objectives: [add two numbers, see what a sum is, "read `0.5`: a number"]
  needs: ["chapter 00"]
  minutes: 75
---

## Before we start

Some prose.

```{code-cell} ipython3
from fractions import Fraction
from utils import check
```

+++ {"exercise": "add"}

Add $a$ and $b$.

```{code-cell} ipython3
total = 2
```

```{code-cell} ipython3
:tags: [measure]

from utils import measured

measured("total", total)
```

The total is 2<!-- measured: total -->.

+++ {"folded": "What to notice"}

It is *2.0*<!-- measured: total -->.
"""

SOLUTION = '''\
from fractions import Fraction


def add(a: Fraction, b: Fraction) -> Fraction:
    """The sum."""
    # BEGIN SOLUTION
    return _plus(a, b)
    # END SOLUTION


def _plus(a, b):
    return a + b
'''

CHECKER = """\
from utils.checks.exercises import Exercise

ADD = Exercise("add", number="7.1", title="A sum", difficulty=2, importance=5, minutes=10, hints=("Think.", "Use `+`."))


@ADD.check("adds", points=2, hint="Use plus.")
def test_add(impl):
    assert impl.add(1, 2) == 3


@ADD.check("adds again", hint="Use plus.")
def test_add_again(impl):
    assert impl.add(1, 1) == 2
"""


@pytest.fixture
def chapter(tmp_path) -> Chapter:
    return write_chapter(tmp_path)


def write_chapter(root: Path, text: str = TEXT, solution: str = SOLUTION, checker: str = CHECKER) -> Chapter:
    made = Chapter("07_small_things", root)
    for path, content in ((made.text, text), (made.solution, solution), (made.checker, checker)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return made


def sources(notebook: dict) -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}


def test_cells_come_in_order_with_readable_ids(chapter):
    assert list(sources(builder.build(chapter, ADDRESS))) == [
        *("start-opening", "start-setup", "before-we-start-text", "before-we-start-code"),
        *("add-problem", "add-hints", "add-stub", "add-check", "add-code", "add-text", "add-text-2"),
    ]


def test_measuring_cells_are_left_out_and_put_back_at_their_place(chapter):
    lesson, whole = (sources(builder.build(chapter, ADDRESS, measuring=measuring)) for measuring in (False, True))
    assert "measured(" in whole["add-measure"]
    order = list(whole)
    assert order[order.index("add-code") + 1] == "add-measure"
    del whole["add-measure"]
    assert whole == lesson and list(whole) == list(lesson)
    assert not any("measured" in lesson[name] for name in lesson if not name.startswith("add-text"))


def test_the_report_counts_lesson_and_stub_cells(chapter):
    _, row, everything = builder.report([chapter]).splitlines()
    (with_stubs, without_stubs) = (row.split()[1:5], row.split()[5:])
    assert with_stubs == ["3", "2", "3", "3"] and without_stubs == ["2", "1.5", "2", "2"]
    assert everything.split()[1:] == row.split()[1:]


def test_the_opening_tells_what_the_chapter_is(chapter):
    opening = sources(builder.build(chapter, ADDRESS))["start-opening"]
    for part in (
        "# 07 · Small things",
        "You will add.",
        "- add two numbers",
        "chapter 00",
        "1 h 15 min",
        "1 exercise, 3 points",
    ):
        assert part in opening
    for link in (
        "https://colab.research.google.com/github/someone/some-course/blob/main/chapters/07_small_things.ipynb",
        "https://kaggle.com/kernels/welcome?src=https://github.com/someone/some-course/blob/main/chapters/07_small_things.ipynb",
        "https://mybinder.org/v2/gh/someone/some-course/main?labpath=chapters%2F07_small_things.ipynb",
    ):
        assert f"({link})" in opening


def test_an_exercise_has_heading_hints_stub_and_check(chapter):
    notebook = builder.build(chapter, ADDRESS)
    cells = sources(notebook)
    assert cells["add-problem"] == (
        "## Exercise 7.1: A sum\n\n"
        "Difficulty 🔴🔴⚪⚪⚪ (2 of 5) · Importance 🔵🔵🔵🔵🔵 (5 of 5) · 10 minutes · 3 points\n\n"
        "Add $a$ and $b$."
    )
    assert cells["add-hints"].count("<details>") == 2 and "Hint 2 of 2" in cells["add-hints"]
    assert cells["add-stub"].endswith('raise NotImplementedError("write add, then run the check below")')
    assert cells["add-check"] == "check(add)"
    roles = {cell["id"]: cell["metadata"].get("course") for cell in notebook["cells"]}
    assert roles["add-stub"] == {"exercise": "add", "role": "stub"}
    assert roles["add-check"] == {"exercise": "add", "role": "check"}
    assert roles["start-setup"] == {"role": "setup"}
    assert cells["add-text-2"].startswith("<details>\n<summary><b>What to notice</b></summary>\n\nIt is")


def test_the_set_up_cell_is_short_and_knows_its_chapter(chapter):
    cell = sources(builder.build(chapter, ADDRESS))["start-setup"]
    assert len(cell.splitlines()) <= 15
    assert ADDRESS in cell and 'ready("07")' in cell
    compile(cell, "set-up", "exec")


def test_the_file_is_deterministic_valid_and_without_traces_of_a_run(chapter):
    first, second = (builder.notebook_text(chapter, ADDRESS) for _ in range(2))
    assert first == second and first.endswith("}\n")
    notebook = nbformat.reads(first, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"course", "kernelspec", "language_info"}
    assert all(
        cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code"
    )


def test_a_new_cell_leaves_other_ids_alone(chapter):
    before = list(sources(builder.build(chapter, ADDRESS)))
    chapter.text.write_text(
        TEXT.replace("## Before we start\n", "## Before we start\n\nNew.\n\n+++\n"), encoding="utf-8"
    )
    assert set(sources(builder.build(chapter, ADDRESS))) == {*before, "before-we-start-text-2"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            '"exercise": "add"',
            '"exercise": "sub"',
            "chapters/text/07_small_things.md:24: no exercise `sub` in tests/test_ch07",
        ),
        ('+++ {"exercise": "add"}', "+++", "exercise `add` has no place"),
        ('"folded": "What to notice"', '"exercise": "add"', ":42: exercise `add` already stands in line 24"),
        ('{"exercise": "add"}', '{"exercice": "add"}', ":24: unknown cell option exercice"),
        ("total is 2<!--", "total is<!--", ":38: the mark <!-- measured: total --> has no number directly before it"),
        (
            "2<!-- measured: total -->.\n\n+++",
            "2<!-- measured: tote -->.\n\n+++",
            ":38: the figure `tote` is never measured",
        ),
        ("  promise: You will add.\n", "", "front matter lacks `course: promise`"),
        ("minutes: 75", "minutes: long", "`course: minutes` must be a int"),
        ("minutes: 75", "minutes: 75\n  mintues: 3", "unknown front matter `course: mintues`"),
        ("total = 2\n", "total = = 2\n", ":27: invalid syntax"),
        ("total = 2\n", "measured = 2\n", ":27: readers do not measure: move `measured` into a cell of its own"),
        ('measured("total", total)', "total = 2", "which the lesson uses: set it in the lesson"),
        ("import measured\n", "import measured, check\n", "left out of the notebook, but sets check"),
        ("from fractions import Fraction\n", "", ":23: the stub of `add` uses Fraction, which no code cell above it"),
    ],
)
def test_errors_name_file_line_and_remedy(tmp_path, old, new, says):
    assert old in TEXT
    with pytest.raises(CourseError) as caught:
        builder.build(write_chapter(tmp_path, TEXT.replace(old, new, 1)), ADDRESS)
    assert says in str(caught.value)


def test_an_exercise_of_another_chapter_is_refused(tmp_path):
    with pytest.raises(CourseError, match=r"`add` has number 3\.1, not 7\.n"):
        builder.build(write_chapter(tmp_path, checker=CHECKER.replace("7.1", "3.1")), ADDRESS)


def test_missing_reference_is_named(chapter):
    chapter.solution.unlink()
    with pytest.raises(CourseError, match=r"needs its reference in solutions/ch07_small_things\.py"):
        builder.build(chapter, ADDRESS)


def test_stale_notebooks_are_seen(chapter):
    assert builder.is_stale(chapter, ADDRESS)
    chapter.notebook.write_text(builder.notebook_text(chapter, ADDRESS), encoding="utf-8")
    assert not builder.is_stale(chapter, ADDRESS)
    assert builder.is_stale(chapter, ADDRESS + "-moved")
    assert find_chapters(["7"], chapter.root) == find_chapters([str(chapter.notebook)], chapter.root) == [chapter]
    with pytest.raises(CourseError, match="the chapters are: 07_small_things"):
        find_chapters(["8"], chapter.root)


@pytest.mark.parametrize(
    ("printed", "right", "wrong"),
    [
        ("0.51", (0.51, 0.5149, 0.5), (0.53, 0.494, float("nan"))),
        ("51%", (0.51, 0.52), (0.53, 51)),
        ("1,234", (1234, 1235), (1236, 1.234)),
        ("−3.0", (-3.04, -2.9), (3.0, -2.8)),
        ("2.5e-3", (0.0025, 0.0026), (0.0027, 0.002)),
        ("7", (7.4, 8), (9, float("inf"))),
    ],
)
def test_a_measured_figure_may_be_off_by_one_unit_of_its_last_digit(printed, right, wrong):
    (figure,) = figures(f"about {printed}<!-- measured: it -->", "file.md:1")
    assert figure == Figure("it", printed)
    assert all(figure.agrees_with(value) for value in right)
    assert not any(figure.agrees_with(value) for value in wrong)


def test_figures_stand_in_emphasis_too():
    assert [one.printed for one in figures("**0.9**<!-- measured: a --> and `12 %`<!--measured: b-->", "x:1")] == [
        "0.9",
        "12%",
    ]


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.name)
def test_built_notebooks_are_current(chapter):
    assert not builder.is_stale(chapter, repository()), textwrap.dedent(
        f"""{chapter.notebook.name} does not match its text, solution and checkers: run `make build`."""
    )


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.name)
def test_readers_meet_no_long_cell_and_measure_nothing(chapter):
    cells = json.loads(chapter.notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        about = cell["metadata"].get("course", {})
        if cell["cell_type"] == "code" and about.get("role") != "stub":
            assert len(cell["source"]) <= 45, cell["id"]
            assert "measured" not in "".join(cell["source"]), cell["id"]


def test_command_builds_and_reports(chapter, monkeypatch, capsys):
    monkeypatch.setattr(builder, "find_chapters", lambda wanted: [chapter])
    assert course.main(["build", "--check"]) == 1
    assert "stale: chapters/07_small_things.ipynb" in capsys.readouterr().out
    assert course.main(["build"]) == 0 and course.main(["build", "--check"]) == 0
    capsys.readouterr()
    assert course.main(["build", "--report"]) == 0
    assert capsys.readouterr().out == builder.report([chapter]) + "\n"
    assert json.loads(chapter.notebook.read_text())["nbformat"] == 4
    chapter.checker.write_text("")
    assert course.main(["build"]) == 2
    assert "no exercise `add`" in capsys.readouterr().err
