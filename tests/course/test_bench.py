"""The benchmark's own machinery, on a problem that takes no time; the plain formulations, on the fast forms' side."""

import json

import pytest
import torch

import course
from fast.bench import run
from fast.bench.case import Case, Goal, Problem
from fast.bench.inputs import passages
from utils import load


def squares(size, wrong_by=0.0):
    """A fast form that needs `size` numbers; a plain side that needs ten times as many; bounded by 1 operation."""

    def plain():
        return (torch.ones(10 * size) * 2).square()[:size]

    return Problem(
        fast=lambda: torch.ones(size) * 4 * (1 + wrong_by), plain=plain, flops=1, note=f"plain needs {10 * size}"
    )


def case(name="squares", wrong_by=0.0):
    goal = Goal(speed=1e-9, memory=5, share=1e9)
    return Case(name, "numbers", (1000, 2000), lambda course, size: squares(size, wrong_by), goal)


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs `course bench` on the cases given; gives exit status and what was printed."""

    def run_it(*arguments, cases=None):
        monkeypatch.setattr(run, "all_cases", lambda: cases or [case()])
        monkeypatch.setattr(run, "load", lambda: None)
        monkeypatch.setattr(run, "matrix_product_speed", lambda: 1e11)
        status = course.main(["bench", *map(str, arguments)])
        return status, capsys.readouterr().out

    return run_it


def test_every_case_has_a_name_of_its_own_and_growing_sizes():
    cases = run.all_cases()
    assert len({case.name for case in cases}) == len(cases) >= 4
    for case in cases:
        assert case.sizes == tuple(sorted(case.sizes))


def test_table_goals_and_figures(bench, tmp_path):
    status, text = bench("--json", tmp_path / "bench.json")
    assert status == 0
    for words in ("1000 numbers", "2000 numbers", "plain needs 20000", "times less memory, goal 5: reached", "MISSED"):
        assert words in text
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["machine"]["matrix_product_gflops"] == 100
    small, large = figures["measured"]
    assert (small["size"], large["size"]) == (1000, 2000)
    assert large["plain_bytes"] > 5 * large["fast_bytes"] == 5 * 2 * small["fast_bytes"]
    assert large["difference"] == 0
    assert large["goal"] == {"speed": 1e-9, "memory": 5, "share": 1e9}


def test_quick_runs_the_smallest_size_and_judges_no_goal(bench):
    status, text = bench("--quick")
    assert status == 0
    assert "1000 numbers" in text
    assert "2000 numbers" not in text
    assert "MISSED" not in text


def test_disagreement_is_said_and_fails(bench):
    status, text = bench("--quick", cases=[case(), case("wrong squares", wrong_by=1e-3)])
    assert status == 1
    assert "wrong squares, 1000 numbers: fast and plain formulation DISAGREE" in text


def test_difference_is_relative_to_the_largest_entry():
    want = torch.tensor([1.0, -200.0])
    assert run.relative_difference(want + torch.tensor([0.02, 0.0]), want) == pytest.approx(1e-4, rel=1e-3)
    assert run.relative_difference((want, want), (want, want * 2)) == pytest.approx(0.5)
    assert run.relative_difference(want[:1], want) == float("inf")


def test_speed_of_matrix_products_is_plausible():
    assert 1e8 < run.matrix_product_speed(n=256, times=2) < 1e14


def test_cases_are_chosen_by_words(bench):
    _, text = bench("--quick", "circles", cases=[case(), case("circles")])
    assert "circles" in text
    assert "squares" not in text
    assert bench("triangles")[0] == 2


def test_inputs_are_public_text_after_the_special_token():
    tokens = passages(load(), 20, count=3)
    assert tokens.shape == (3, 20)
    assert (tokens[:, 0] == load().tokenizer.bos_token_id).all()
    assert len({tuple(row) for row in tokens.tolist()}) == 3
