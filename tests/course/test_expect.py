"""Every demand can be met and can fail, and says in parts what was wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.checks import expect
from utils.checks.exercises import Exercise
from utils.checks.expect import CheckFailed, StudentError
from utils.checks.implementations import Implementation, LocalBackend

ROWS = torch.tensor([[100.0, 0.0], [0.0, 1.0]])


def failure(demand, *args, **kwargs):
    with pytest.raises(CheckFailed) as caught:
        demand(*args, **kwargs)
    return caught.value


# What each norm lets pass: the size of an error in one entry of ROWS, in the large row or in the small one.
NORM_CASES = [
    ("entry", 1e-3, (0, 0), 0.09, 0.11),
    ("entry", 1e-3, (1, 1), 0.0009, 0.0011),
    ("entry", 1e-3, (1, 0), 0.0, 1e-6),
    ("row", 1e-3, (0, 1), 0.09, 0.11),
    ("row", 1e-3, (1, 0), 0.0009, 0.0011),
    ("largest", 1e-3, (1, 1), 0.09, 0.11),
    ("whole", 1e-3, (1, 1), 0.09, 0.11),
]


@pytest.mark.parametrize(("norm", "rtol", "place", "passes", "fails"), NORM_CASES)
def test_one_definition_of_equal_with_its_norm(norm, rtol, place, passes, fails):
    for error, agrees in ((passes, True), (fails, False)):
        got = ROWS.clone()
        got[place] += error
        assert expect.agree(got, ROWS, norm=norm, rtol=rtol, atol=0) is agrees


def test_the_whole_norm_adds_up_what_the_largest_does_not():
    want = torch.full((400,), 10.0)
    got = want + 0.009
    assert expect.agree(got, want, norm="largest")
    assert expect.agree(got, want, norm="whole")
    one_large = torch.cat([torch.tensor([10.0]), torch.zeros(399)])
    assert expect.agree(one_large + 0.009, one_large, norm="largest")
    assert not expect.agree(one_large + 0.009, one_large, norm="whole")


@pytest.mark.parametrize("norm", expect.NORMS)
def test_equal_numbers_only(norm):
    nothing = torch.zeros(2, 0)
    assert expect.agree(nothing, nothing, norm=norm)
    assert expect.agree(np.ones((2, 2)), torch.ones(2, 2), norm=norm)
    for wrong in (None, [1.0, 1.0], torch.ones(3), torch.full((2, 2), torch.nan), torch.ones(2, 2) * (1 + 1j)):
        assert not expect.agree(wrong, torch.ones(2, 2), norm=norm)


def test_infinities_must_be_the_same():
    want = torch.tensor([torch.inf, 1.0, torch.nan])
    assert expect.agree(want.clone(), want)
    for wrong in (
        [-torch.inf, 1, torch.nan],
        [5.0, 1, torch.nan],
        [torch.inf, 1, 1],
        [torch.inf, torch.nan, torch.nan],
    ):
        assert not expect.agree(torch.tensor(wrong), want)


def test_close_says_what_differs():
    expect.close(ROWS.clone(), ROWS, why="")
    wrong = failure(expect.close, 2 * ROWS, ROWS, name="the rows", why="counted", hint="halve it")
    assert (wrong.why, wrong.hint) == ("counted", "halve it")
    assert wrong.expected.startswith("the rows = float32 tensor of shape (2, 2)")
    assert "200" in wrong.returned
    assert "to 0.001 of the largest entry" in failure(expect.close, 2 * ROWS, ROWS, norm="largest", why="").expected
    assert "off by 1 of it" in failure(expect.close, 2 * ROWS, ROWS, norm="row", why="").returned
    large = torch.zeros(50)
    off = large.clone()
    off[7] = 3
    assert "1 of 50 entries differ, the first at (7,): 3, not 0" in failure(expect.close, off, large, why="").expected
    assert "shape (2,)" in failure(expect.close, torch.zeros(2), large, why="").returned
    assert "to be a tensor" in failure(expect.close, None, large, why="").expected


def test_close_of_numbers():
    expect.close(torch.tensor([2.0]), 2.0, why="")
    assert "a number" in failure(expect.close, "2", 2.0, why="").expected
    failure(expect.close, 2.1, 2.0, why="")


def test_a_mistake_is_named_only_where_it_explains_the_whole_answer():
    mistakes = [(ROWS, "right on this input"), (2 * ROWS, "twice"), (lambda: ROWS.T[:1], "one row")]
    assert failure(expect.close, 2 * ROWS, ROWS, why="", mistakes=mistakes).hint == "twice"
    assert failure(expect.close, ROWS[:1], ROWS, why="", mistakes=lambda: mistakes).hint == "one row"
    half_twice = torch.stack([2 * ROWS[0], ROWS[1]])
    assert failure(expect.close, half_twice, ROWS, why="", mistakes=mistakes, hint="other").hint == "other"
    assert failure(expect.equal, (1, 3), (1, 2), why="", mistakes=[((1, 2), "no"), ((1, 3), "yes")]).hint == "yes"


def test_mistakes_are_made_only_when_something_is_wrong():
    def mistakes():
        raise AssertionError("made for a right answer")

    expect.close(ROWS, ROWS, why="", mistakes=mistakes)
    expect.equal(3, 3, why="", mistakes=mistakes)


def test_equal():
    expect.equal(torch.tensor([1, 2]), torch.tensor([1, 2]), why="")
    expect.equal(2.0, 2, why="")
    for got, want in ((torch.tensor([1, 3]), torch.tensor([1, 2])), ("2", 2), ((1, 2), [1, 2]), ({"a": 1}, {"a": 2})):
        failure(expect.equal, got, want, why="")
    assert "of shape (2,) = (n)" in failure(expect.equal, ROWS, torch.tensor([1, 2]), dims=("n",), why="").expected


def test_raises_accepts_a_kind_of_the_type():
    implementation = Implementation(LocalBackend({"parse": int, "decode": bytes.decode, "find": [].index}, ""), "")
    expect.raises(lambda: implementation.parse("x"), "ValueError", why="")
    expect.raises(lambda: implementation.decode(b"\xff"), "ValueError", why="UnicodeDecodeError is one")
    expect.raises(lambda: implementation.parse("x"), ("KeyError", "ValueError"), mentions=("literal",), why="")
    assert "no error: 3" in failure(expect.raises, lambda: implementation.parse("3"), "ValueError", why="").returned
    assert "ValueError" in failure(expect.raises, lambda: implementation.parse("x"), "KeyError", why="").returned
    words = failure(expect.raises, lambda: implementation.parse("x"), "ValueError", mentions=("rank",), why="")
    assert "mentions rank" in words.expected


CHEAP = {"passes": 1, "blocks": 4, "tokens": 12, "unembedded": False, "hooks_left": 0, "peak_bytes": 2e6}
LIMITS = {"passes": 1, "blocks": 4, "tokens": 12, "logits": False, "megabytes": 3, "why": "enough"}
DEAR = [
    ({"hooks_left": 1}, "no hook", "1 hooks"),
    ({"passes": 2}, "one forward pass", "2 passes"),
    ({"passes": 0}, "one forward pass", "0 passes"),
    ({"blocks": 5}, "at most blocks 0 to 3 and no logits", "5 blocks"),
    ({"unembedded": True}, "no logits", "logits too"),
    ({"tokens": 13}, "at most 12 token positions", "13 positions"),
    ({"tokens": 0}, "at most 12 token positions", "0 positions"),
    ({"peak_bytes": 3e6}, "less than 3 MB", "3.0 MB"),
]


@pytest.mark.parametrize(("what", "expected", "returned"), DEAR, ids=[str(what) for what, *_ in DEAR])
def test_each_cost_can_be_too_high(what, expected, returned):
    expect.cost(SimpleNamespace(**CHEAP), **LIMITS)
    wrong = failure(expect.cost, SimpleNamespace(**CHEAP | what), **LIMITS)
    assert expected in wrong.expected
    assert returned in wrong.returned


def test_no_pass_at_all():
    expect.cost(SimpleNamespace(**CHEAP | {"passes": 0}), passes=0, why="")
    assert failure(expect.cost, SimpleNamespace(**CHEAP), passes=0, why="").expected == "no forward pass"


class Pair:
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


def test_handles_have_length_index_and_order():
    namespace = {"pair": lambda: (Pair(1, 2), torch.ones(2)), "alone": lambda: Pair(7), "object": object}
    implementation = Implementation(LocalBackend(namespace, ""), "")
    first, second = expect.unpack(implementation.pair(), ("first", "second"))
    assert (len(first), first[1], list(first), second.tolist()) == (2, 2, [1, 2], [1, 1])
    (only,) = implementation.alone()
    assert only == 7
    assert implementation.object()  # true without a length
    with pytest.raises(StudentError):
        len(implementation.object())
    assert "promises a tuple" in failure(expect.unpack, implementation.object(), ("a", "b")).why
    assert "of length 3" in failure(expect.unpack, implementation.pair(), ("a", "b", "c")).expected
    failure(expect.unpack, 5, ("a",))


def test_shape_dtype_tensor():
    expect.shape(ROWS, (2, 2))
    expect.dtype(ROWS, torch.float32)
    failure(expect.shape, ROWS, (2, 3))
    failure(expect.dtype, ROWS, torch.int64)
    failure(expect.tensor, [1.0])


def test_texts_flow():
    exercise = Exercise(
        "text",
        number="1.1",
        title="",
        difficulty=1,
        importance=1,
        minutes=1,
        hints=(
            """
            Two lines
            of a hint.
            """,
        ),
    )
    assert exercise.hints == ("Two lines of a hint.",)
    exercise.check("title", hint="\n    One\n    hint.\n    ")
    assert exercise.checks[0].hint == "One hint."
    wrong = CheckFailed(expected="", returned="", why="so\n  it is", hint="\n  think\n  ")
    assert (wrong.why, wrong.hint) == ("so it is", "think")
