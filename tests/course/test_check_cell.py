"""What a student sees from `check`, `hint`, `solution` and `progress`, in a real IPython session."""

import json

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from utils import student_work
from utils.checks.exercises import find_exercise
from utils.checks.implementations import solution_file
from utils.errors import CourseError
from utils.notebook import check_cell, results
from utils.notebook.check_view import ROWS_MIME

SOLUTION = solution_file("03").read_text()
STUB = "class SparseTensor:\n    @classmethod\n    def from_dense(cls, dense):\n        raise NotImplementedError"


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A fresh session with a fresh mine/; returns a function that runs a cell and gives what it displayed."""
    for module in (student_work, check_cell):
        monkeypatch.setattr(module, "MINE", tmp_path / "mine")
    monkeypatch.setattr(check_cell, "PROGRESS", tmp_path / "mine" / "progress.json")
    monkeypatch.setattr(student_work.mine, "_passed", {})
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()

    def run(cell):
        with capture_output() as captured:
            shell.run_cell(cell, store_history=True).raise_error()
        return [output.data for output in captured.outputs] or captured.stdout

    run("from utils import check, hint, mine, progress, solution")
    yield run
    InteractiveShell.clear_instance()


def test_a_stub_is_told_what_to_do(session):
    session(STUB)
    (shown,) = session("check(SparseTensor)")
    assert "is not written yet" in shown["text/html"]
    assert not any(row["passed"] for row in shown[ROWS_MIME]["rows"])
    assert not check_cell.MINE.joinpath("ch03.py").exists()


def test_what_passes_is_kept_and_survives_the_kernel(session, monkeypatch):
    session(SOLUTION)
    (shown,) = session("check(SparseTensor)")
    assert "SparseTensor: passed" in shown["text/html"]
    assert "Kept in mine/ch03.py" in shown["text/plain"]
    monkeypatch.setattr(student_work.mine, "_passed", {})  # a new kernel knows nothing of the old
    monkeypatch.setenv(student_work.NO_REFERENCE, "1")
    dense = student_work.mine.SparseTensor.from_dense
    assert dense.__module__ == "mine.ch03"
    (shown,) = session("progress()")
    assert "1 of 1" in shown["text/plain"] and "15/15" in shown["text/plain"]


def test_a_failed_call_can_be_tried_again(session):
    session(SOLUTION.replace("return cls(dense[", "return cls(2 * dense["))
    (shown,) = session("check(SparseTensor)")
    assert "args, expected = failed(SparseTensor)" in shown["text/html"]
    session("from utils import failed\nargs, expected = failed(SparseTensor)")
    names = check_cell._session_names()
    sparse = names["SparseTensor"].from_dense(*names["args"])
    assert sparse.values.equal(2 * names["expected"])
    with pytest.raises(CourseError, match="run the check, then ask"):
        check_cell.failed("SparseTensor", 99)


def test_the_report_is_for_every_reader(session):
    session(STUB)
    (shown,) = session("check(SparseTensor)")
    page = shown["text/html"]
    assert 'role="status"' in page and 'aria-label="SparseTensor: not yet' in page and 'scope="col"' in page
    assert "✗ failed" in page, "the words say it, not only the colour"
    assert "var(--jp-content-font-color1" in page, "the theme gives the text its colour"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("def SparseTenso(): ...\ncheck(SparseTenso)", "Did you mean `SparseTensor`?"),
        ("check(lambda x: x)", "A lambda has no name"),
        ("check(3)", "That is a int, not a function or a class"),
        ("check('nothing_like_it')", "The course has no exercise named `nothing_like_it`"),
    ],
)
def test_what_is_no_exercise_is_explained(session, cell, words):
    (shown,) = session(cell)
    assert words in shown["text/plain"]


def test_hints_come_one_by_one_and_begin_again(session):
    session(STUB)
    heads = [session("hint(SparseTensor)")[0]["text/plain"][:11] for _ in range(4)]
    assert heads == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Hint 1 of 3"]


def test_the_solution_is_shown_where_there_is_one(session, monkeypatch):
    session(STUB)
    (shown,) = session("solution(SparseTensor)")
    assert "def from_sparse" in shown["text/plain"] and "BEGIN SOLUTION" not in shown["text/plain"]

    def none(chapter):
        raise CourseError("This copy of the course comes without the reference solutions.")

    monkeypatch.setattr(check_cell, "solution_file", none)
    (shown,) = session("solution(SparseTensor)")
    assert "comes without" in shown["text/plain"]


def test_names_of_the_notebook_that_can_not_be_kept_are_named(session):
    session("secret = object()")
    session(SOLUTION.replace("self._values = values\n", "self._values = values if secret else 0\n", 1))
    (shown,) = session("check(SparseTensor)")
    assert "It uses `secret` from your notebook, so it is not kept" in shown["text/plain"]


def test_a_stub_in_the_session_does_not_hide_what_has_passed(session, monkeypatch):
    monkeypatch.setattr(student_work.mine, "_passed", {"earlier": lambda: "passed"})
    session("def earlier():\n    raise NotImplementedError\n\ndef later():\n    return mine.earlier()")
    later = check_cell._session_names()["later"]
    implementation = check_cell._implementation(find_exercise("SparseTensor"), later)
    with implementation._backend.check(needs_model=False, seconds=5):
        assert implementation.SparseTensor() == "passed"


def test_damaged_progress_is_no_catastrophe(session):
    check_cell.PROGRESS.parent.mkdir(parents=True, exist_ok=True)
    check_cell.PROGRESS.write_text("{ not json")
    session(STUB)
    session("hint(SparseTensor)")
    assert json.loads(check_cell.PROGRESS.read_text())["hints"] == {"SparseTensor": 1}


def test_results_fall_back_on_what_is_stored(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setenv(results.RECORD, "1")
    value = {"means": torch.arange(3.0), "names": ["a", "b"], "share": 0.5}
    results.result("some_means", lambda: value)
    monkeypatch.delenv(results.RECORD)
    monkeypatch.setenv(student_work.NO_REFERENCE, "1")
    monkeypatch.setattr(student_work, "MINE", tmp_path / "empty")
    stored = results.result("some_means", lambda: student_work.mine.not_passed_yet)
    assert stored["means"].tolist() == [0, 1, 2] and stored["names"] == ["a", "b"] and stored["share"] == 0.5
    assert "`not_passed_yet` has not passed its check yet" in capsys.readouterr().out
