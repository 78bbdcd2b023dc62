"""The machinery of checks, on chapter 03's exercise, which needs no model."""

import contextlib
import json
import textwrap
from types import SimpleNamespace

import pytest
import torch

import course
from utils.checks.exercises import find_exercise
from utils.checks.expect import CheckFailed
from utils.checks.implementations import Implementation, LocalBackend, from_file, reference
from utils.checks.running import run_checks
from utils.plain import dumps

NAME = "SparseTensor"
RAISING = """
    class SparseTensor:
        @classmethod
        def from_dense(cls, dense):
            return [][3]
        from_sparse = from_dense
    """


def rows_of(tmp_path, code):
    file = tmp_path / "attempt.py"
    file.write_text(textwrap.dedent(code))
    return run_checks("03", [from_file(file)])


def test_the_reference_wins_every_point():
    rows = run_checks("03", [reference("03")])
    assert all(row.passed and row.points == row.max_points for row in rows)
    assert sum(row.points for row in rows) == find_exercise(NAME).points


def test_a_missing_name_is_said(tmp_path):
    rows = rows_of(tmp_path, "something = 1")
    assert not any(row.passed for row in rows)
    assert "does not define `SparseTensor`" in rows[0].message


def test_an_exception_names_the_students_line(tmp_path):
    rows = rows_of(tmp_path, RAISING)
    assert "Raised: IndexError" in rows[0].message
    assert "line 5: `return [][3]`" in rows[0].message
    assert "Called: SparseTensor.from_dense(float32 tensor" in rows[0].message


def test_wrong_parameters_are_told_from_errors_inside(tmp_path):
    rows = rows_of(
        tmp_path,
        """
        class SparseTensor:
            @classmethod
            def from_dense(cls): ...
        """,
    )
    assert "`from_dense(...)`, but it is defined as `from_dense()`" in rows[0].message


def test_an_endless_loop_is_stopped_even_if_it_swallows_exceptions(monkeypatch):
    class SparseTensor:
        @classmethod
        def from_dense(cls, dense):
            while True:
                with contextlib.suppress(Exception):
                    dense = dense + 1

        from_sparse = from_dense

    for check in find_exercise(NAME).checks:
        monkeypatch.setitem(vars(check), "seconds", 0.2)
    rows = run_checks("03", [Implementation(LocalBackend({NAME: SparseTensor}, "test"), "loop")])
    assert not any(row.passed for row in rows)
    assert "Stopped: no answer within 0.2 seconds" in rows[0].message


def test_an_argument_that_was_overwritten_is_named_and_the_checkers_data_stay():
    implementation = Implementation(LocalBackend({"wipe": lambda x: x.zero_()}, "test"), "wiping")
    data = torch.ones(3)
    with pytest.raises(CheckFailed, match="the argument `x` overwritten"):
        implementation.wipe(data)
    assert data.tolist() == [1, 1, 1]


def test_a_file_that_stops_while_loading_is_named(tmp_path, capsys):
    file = tmp_path / "broken.py"
    file.write_text("x = 1\nraise RuntimeError('no')\n")
    assert course.main(["check", "03", "--with", str(file)]) == 2
    assert "broken.py stops while it is loaded: no" in capsys.readouterr().err


def test_unknown_chapters_list_the_known_ones(capsys):
    assert course.main(["check", "77"]) == 2
    assert "03_sparse_tensor" in capsys.readouterr().err


def test_json_rows(tmp_path):
    out = tmp_path / "rows.json"
    assert course.main(["check", "3", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    known = {"exercise", "check", "points", "max_points", "passed", "seconds", "message", "hint"}
    assert set(rows[0]) == known | {"failure"}
    assert {row["exercise"] for row in rows} == {NAME}


def test_a_failure_keeps_its_parts(tmp_path):
    rows = rows_of(tmp_path, RAISING)
    failure = rows[0].as_json()["failure"]
    assert failure["raised"] == "IndexError: list index out of range"
    assert failure["line"] == "line 5: `return [][3]`"
    assert failure["called"].startswith("SparseTensor.from_dense(float32 tensor")
    assert failure["returned"] == ""


def test_after_a_time_out_the_exercises_other_checks_are_not_run(monkeypatch):
    calls = []

    class SparseTensor:
        @classmethod
        def from_dense(cls, dense):
            calls.append(dense)
            while True:
                pass

        from_sparse = from_dense

    for check in find_exercise(NAME).checks:
        monkeypatch.setitem(vars(check), "seconds", 0.2)
    rows = run_checks("03", [Implementation(LocalBackend({NAME: SparseTensor}, "test"), "loop")])
    assert len(calls) == 1
    assert not any(row.passed for row in rows)
    assert "Stopped: " in rows[0].message
    assert all(row.message.startswith("Not run: ") for row in rows[1:])


def test_input_fails_at_once_with_a_sentence():
    implementation = Implementation(
        LocalBackend({NAME: SimpleNamespace(from_dense=lambda dense: input())}, "t"), "asks"
    )
    (row, *_) = run_checks("03", [implementation])
    assert "`input()` waits for a person" in row.failure.raised
    assert row.seconds < 5


def test_what_was_printed_last_is_kept():
    def from_dense(dense):
        print("\n".join(f"line {number}" for number in range(100_000)))
        return None

    implementation = Implementation(LocalBackend({NAME: SimpleNamespace(from_dense=from_dense)}, "test"), "printing")
    (row, *_) = run_checks("03", [implementation])
    assert row.failure.printed.splitlines() == [f"line {number}" for number in range(99_980, 100_000)]


def test_objects_that_are_not_data_do_not_cross():
    with pytest.raises(TypeError, match="is not plain data"):
        dumps({"code": lambda: None})
