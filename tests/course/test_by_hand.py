"""The oracles of the checkers against the libraries that the exercises use: another way to the same numbers."""

import pytest
import torch

from tests import by_hand
from utils import load
from utils.checks import expect
from utils.checks.expect import CheckFailed

TOKENS = torch.tensor([[1, 504, 8913, 2725], [1, 260, 3575, 281]])
PLACES = (
    "blocks.0.hook_resid_pre",
    "blocks.4.hook_resid_pre",
    "blocks.2.hook_resid_mid",
    "blocks.29.hook_resid_post",
    "blocks.3.attn.hook_z",
    "blocks.3.attn.hook_pattern",
    "blocks.2.mlp.hook_in",
    "blocks.2.hook_mlp_out",
)


@pytest.fixture(scope="module")
def loaded():
    return load()


@pytest.mark.parametrize("place", PLACES)
def test_what_torch_hooks_read_is_what_the_library_caches(loaded, place):
    _, cache = loaded.model.run_with_cache(TOKENS, names_filter=[place])
    want = cache[place].flatten(2) if place.endswith("hook_z") else cache[place]
    torch.testing.assert_close(by_hand.read(loaded.model, TOKENS, place), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [place for place in PLACES if "pattern" not in place])
def test_what_torch_hooks_replace_is_what_the_library_replaces(loaded, place):
    want = loaded.model.run_with_hooks(TOKENS, fwd_hooks=[(place, lambda x, hook: 0.5 * x)])
    got = by_hand.run(loaded.model, TOKENS, changes={place: lambda x: 0.5 * x})
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_a_changed_stream_may_be_a_larger_batch(loaded):
    doubled = by_hand.run(loaded.model, TOKENS[:1], 5, {"blocks.3.hook_resid_pre": lambda x: torch.cat([x, 2 * x, x])})
    alone = by_hand.run(loaded.model, TOKENS[:1], 5)
    torch.testing.assert_close(doubled[[0, 2]], alone.expand(2, -1, -1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(doubled[1], alone[0])


def test_what_was_read_can_be_written_to(loaded):
    first = by_hand.read(loaded.model, TOKENS, PLACES[1])
    first.zero_()
    assert by_hand.read(loaded.model, TOKENS, PLACES[1]).any()


def test_last_tokens_are_read_without_padding(loaded):
    prompts, place = ["Now", "Soon it will rain"], PLACES[1]
    rows = by_hand.last_rows(loaded.model, prompts, place)
    for prompt, row in zip(prompts, rows, strict=True):
        _, cache = loaded.model.run_with_cache(prompt, names_filter=[place])
        torch.testing.assert_close(row, cache[place][0, -1], rtol=1e-4, atol=1e-4)
    for side in ("right", "left"):  # the longest prompt has no padding, the other is another row
        short, longest = by_hand.last_column(loaded.model, prompts, place, side)
        torch.testing.assert_close(longest, rows[1], rtol=1e-4, atol=1e-4)
        assert not expect.agree(short, rows[0], norm="row", rtol=0.01)


def test_fresh_seeds_differ():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len({by_hand.fresh_seed() for _ in range(20)}) > 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["resid_pre.6", "z.16", "transcoder.2"])
def test_latents_and_what_they_write_by_definition(loaded, name):
    sae = loaded.dictionaries[name]
    x = torch.randn(2, 3, 576, generator=torch.Generator().manual_seed(0))
    shaped = x.unflatten(-1, (9, 64)) if name == "z.16" else x
    acts = by_hand.encode(sae, x)
    torch.testing.assert_close(acts, sae.encode(shaped), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_hand.decode(sae, acts), sae.decode(acts).reshape(x.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["topk", "standard"])
def test_stand_ins_are_dictionaries_of_their_place(kind):
    sae = by_hand.stand_in("blocks.3.hook_resid_pre", d_sae=32, kind=kind, k=5)
    x = torch.randn(2, 3, 576, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(by_hand.encode(sae, x), sae.encode(x), rtol=1e-4, atol=1e-4)
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_pre"
    assert (sae.encode(x) > 0).sum(dim=-1).max() <= (5 if kind == "topk" else 32)


def test_what_counts_begins_at_the_first_position(loaded):
    ones = torch.ones(2, 3, 4)
    assert by_hand.counted(loaded.model, ones).sum(dim=(0, 2)).tolist() == [0, 8, 8]
    assert by_hand.from_first(loaded.model, ones, 2 * ones)[0, :, 0].tolist() == [1, 2, 2]


def test_a_wrong_number_is_named_only_if_the_mistake_explains_all_cases():
    def hint_for(function):
        cases = [(2.0,), (3.0,)]
        mistakes = [(lambda x: x + 2, "added"), (lambda x: x * x, "right"), (lambda x: x**3, "cubed")]
        return by_hand.mistake_in_all(function, cases, lambda x: x * x, mistakes)

    assert hint_for(lambda x: x * x) is None
    assert hint_for(lambda x: torch.tensor([x**3])) == "cubed"
    assert hint_for(lambda x: x + 2) == "added"
    assert hint_for(lambda x: x**3 if x < 3 else 0.0) is None
    assert hint_for(lambda x: None) is None


DENSE = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]])


def test_sparse_parts_there_and_back():
    values, indices, shape = by_hand.sparse(DENSE)
    assert (values.tolist(), indices.tolist(), shape) == ([2, 3], [[0, 0, 1], [0, 1, 0]], (1, 2, 2))
    assert torch.equal(by_hand.dense_of(values, indices, shape), DENSE)


def test_same_entries_can_fail_in_each_part():
    values, indices, shape = by_hand.sparse(DENSE)
    by_hand.same_entries((values, indices, shape), DENSE, name="acts", why="")
    for wrong, part in (
        ((values, indices, (1, 2, 3)), "acts.shape"),
        ((values, indices.flip(0), shape), "acts.indices"),
        ((2 * values, indices, shape), "acts.values"),
        (None, "your SparseTensor"),
        (DENSE, "your SparseTensor"),
    ):
        with pytest.raises(CheckFailed, match=part):
            by_hand.same_entries(wrong, DENSE, name="acts", why="")


def test_a_wrong_set_of_entries_is_named_only_as_a_whole():
    mistakes = [(2 * DENSE, "doubled"), (DENSE, "right here, so nothing to say")]
    for factor, hint in ((2, "doubled"), (3, None)):
        with pytest.raises(CheckFailed) as failure:
            by_hand.same_entries(by_hand.sparse(factor * DENSE), DENSE, name="acts", why="", mistakes=mistakes)
        assert failure.value.hint == hint
