"""The implementation in a process of its own gives the same rows as here, and can do no harm to the judge."""

import textwrap

import pytest
import torch

from utils import load
from utils.checks.expect import StudentError
from utils.checks.implementations import Implementation, from_file, solution_file
from utils.checks.isolation import isolated
from utils.checks.running import run_checks
from utils.checks.time_limit import OutOfTime

FILE = """
import os, time
import torch

class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    @property
    def product(self):
        return self.a * self.b

def make_pair(a, b): return Pair(a, b)
def doubled(x): return 2 * x
def fails(x): raise ValueError(f"no {x}")
def sleeps(): time.sleep(60)
def spins():
    while True: pass
def dies(): os._exit(3)
def shape_of(x): return x.shape
def encoded(sae, x): return type(sae).__name__, sae.encode(x)

def borrows():
    from utils import mine
    return mine.pca
"""


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    file = tmp_path_factory.mktemp("submission") / "attempt.py"
    file.write_text(textwrap.dedent(FILE))
    with isolated(file) as implementation:
        yield implementation


@pytest.fixture
def small_dictionary():
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    return TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2)).eval().requires_grad_(False)


def rows_without_seconds(rows):
    return [{**row.as_json(), "seconds": 0} for row in rows]


@pytest.mark.slow
def test_chapter_03_gives_the_same_rows_both_ways(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        solution_file("03").read_text().replace("index_put(", "mul(2).index_put(").replace("int64)", "int32)")
    )
    for file in (solution_file("03"), wrong):
        here = run_checks("03", [from_file(file)])
        with isolated(file) as implementation:
            there = run_checks("03", [implementation])
        assert rows_without_seconds(here) == rows_without_seconds(there)


@pytest.mark.slow
def test_the_reference_builds_on_earlier_chapters_and_a_submission_may_not(remote):
    with pytest.raises(StudentError, match="pca` has not passed"):
        remote.borrows()
    with isolated(solution_file("02")) as implementation:
        reference = Implementation(implementation._backend, "reference", only="layer_geometry")
        rows = run_checks("02", [reference])
    assert len(rows) == 4
    assert all(row.passed for row in rows), rows


def test_plain_data_and_errors_cross(remote):
    assert remote.doubled(3) == 6
    assert remote.shape_of(torch.zeros(2, 3)) == (2, 3)
    with pytest.raises(StudentError, match="ValueError: no 7"):
        remote.fails(7)


def test_a_dictionary_that_a_check_built_crosses(remote, small_dictionary):
    x = torch.randn(2, 4)
    name, acts = remote.encoded(small_dictionary, x)
    assert name == "TopKSAE"
    assert torch.equal(acts, small_dictionary.encode(x))


def test_a_dictionary_that_is_loaded_for_a_call_is_not_the_students_memory(remote):
    sae = load().dictionaries["resid_pre.24"]
    with remote.watch() as seen:
        remote.encoded(sae, torch.zeros(1, 576))
    assert 0 < seen.peak_bytes < sae.W_dec.numel()  # one row of latents, not the weights


def test_gradients_cross_in_both_directions(remote):
    a, b = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([5.0, 7.0], requires_grad=True)
    product = remote.make_pair(remote.doubled(a), b).product
    assert product.tolist() == [20, 42]
    (product * torch.tensor([1.0, 10.0])).sum().backward()
    assert a.grad.tolist() == [10, 140]
    assert b.grad.tolist() == [4, 60]


def test_one_leaf_used_twice_counts_twice(remote):
    a = torch.tensor([3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(remote.make_pair(a, a).product.sum(), a)
    assert gradient.tolist() == [6]


@pytest.mark.slow
def test_time_limit_and_death_are_survived(remote):
    with pytest.raises(OutOfTime), remote._backend.check(False, 0.3):
        remote.spins()
    with pytest.raises(StudentError, match=r"Crash.*status 3"), remote._backend.check(False, 30):
        remote.dies()
    with remote._backend.check(False, 30):
        assert remote.doubled(1) == 2


def test_code_that_only_waits_is_stopped_by_the_clock(remote, monkeypatch):
    monkeypatch.setattr("utils.checks.isolation.patience", lambda seconds: seconds)
    with remote._backend.check(False, 30):
        remote.doubled(1)
    with pytest.raises(OutOfTime), remote._backend.check(False, 0.3):
        remote.sleeps()
