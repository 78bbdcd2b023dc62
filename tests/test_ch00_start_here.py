"""Checks of chapter 00's warm-up. The oracle runs Hugging Face's own forward pass, one prompt at a time."""

from functools import cache

import torch

from utils.checks import expect
from utils.checks.exercises import Exercise

POSITION_NORMS = Exercise(
    "position_norms",
    number="0.1",
    title="How long is the stream?",
    difficulty=2,
    importance=3,
    minutes=10,
    hints=(
        """
        Take it one prompt at a time first. `model.run_with_cache(tokens, names_filter=hook_name)` returns the logits
        and a cache; `cache[hook_name]` has shape `[1, seq, d]`, and of its three axes exactly one should be gone at the
        end because you took a norm over it.
        """,
        """
        The number in the hook's name is the block: `int(hook_name.split('.')[1])`. Pass `stop_at_layer=` one more than
        that. For several prompts, collect one vector of norms for each; they have different lengths, so a plain
        `torch.stack` will not do.
        """,
        """
        `torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True, padding_value=float('nan'))` makes one matrix with a
        hole wherever a prompt has no such position, and `.nanmean(dim=0)` averages around the holes.
        """,
    ),
)

HOOK = "blocks.3.hook_resid_pre"
LONG, SHORT = "The ferry stayed in the frozen harbour all week", "Soup for everybody"


@cache
def hidden_states(model, prompt):
    with torch.no_grad():
        return model.original_model.model(model.to_tokens(prompt), output_hidden_states=True).hidden_states


def lengths_of_vectors(model, prompt, block):
    """Norm of the stream entering `block` at each position: square root of the summed squares, in Python."""
    vectors = hidden_states(model, prompt)[block][0].double().tolist()
    return torch.tensor([sum(entry * entry for entry in vector) ** 0.5 for vector in vectors])


@POSITION_NORMS.check(
    "one norm for each position",
    points=0,
    hint="""
        The norm is over the last axis, the d_model numbers of one token's vector: `.norm(dim=-1)`. It is a length (root
        of the sum of squares), not an average of squares, and position 0, the special first token, is part of it.
        """,
)
def test_one_prompt(impl, model):
    want = lengths_of_vectors(model, SHORT, 3)
    got = expect.shape(
        impl.position_norms(model, [SHORT], HOOK),
        want.shape,
        name="the norms",
        dims=("seq",),
        why=f"the prompt has {len(want)} tokens with the special first one",
    )
    expect.close(got, want, name="the norms", rtol=1e-3, why="each is the length of one token's vector")


@POSITION_NORMS.check(
    "prompts of different length",
    points=0,
    hint="""
        Padding is not text. Where one prompt has ended, its padding tokens must not be averaged in, and the longer
        prompt's last positions must not be cut off: each position is averaged over the prompts that have it.
        """,
)
def test_different_lengths(impl, model):
    long, short = lengths_of_vectors(model, LONG, 3), lengths_of_vectors(model, SHORT, 3)
    want = long.clone()
    want[: len(short)] = (long[: len(short)] + short) / 2
    got = impl.position_norms(model, [SHORT, LONG], HOOK)
    expect.shape(got, want.shape, name="the norms", dims=("longest",), why="the longest prompt says how many there are")
    expect.close(
        got[len(short) :],
        want[len(short) :],
        name=f"the norms from position {len(short)} on",
        rtol=1e-3,
        why="only the longer prompt has these positions, so they are its norms and nothing else",
    )
    expect.close(
        got[: len(short)],
        want[: len(short)],
        name="the norms of the first positions",
        rtol=1e-3,
        hint="Take the norms first and average them afterwards: the mean of two lengths is not the length of the mean.",
        why="both prompts have these positions: the mean of the two lengths",
    )


@POSITION_NORMS.check(
    "the model runs no further than it must",
    points=0,
    hint="""
        Nothing after the hook can change the answer, so the rest of the model is work for nothing: pass
        `stop_at_layer=block + 1`, where `block` is the number in the hook's name. At block 3 of 30 that saves nearly
        nine tenths of the work. If you add hooks yourself, remove them (`run_with_hooks` and `run_with_cache` do).
        """,
)
def test_stops(impl, model):
    with impl.watch(model) as seen:
        got = impl.position_norms(model, [SHORT], HOOK)
    expect.tensor(got, name="the norms")
    expect.cost(seen, blocks=4, logits=False, why=f"{HOOK} is known before block 3 has even begun")


@POSITION_NORMS.check(
    "any hook, any layer",
    points=0,
    hint="""
        Read the block number from the name, do not assume it; and note that `hook_mlp_out` comes late in its block, so
        the model must run through the block that is named: stop at `block + 1`.
        """,
)
def test_other_hooks(impl, model):
    for block in (1, 6):
        got = impl.position_norms(model, [SHORT], f"blocks.{block}.hook_resid_pre")
        expect.close(
            got,
            lengths_of_vectors(model, SHORT, block),
            name=f"the norms at block {block}",
            rtol=1e-3,
            why="the stream that enters this block",
        )
        after = impl.position_norms(model, [SHORT], f"blocks.{block}.hook_resid_post")
        expect.close(
            after,
            lengths_of_vectors(model, SHORT, block + 1),
            rtol=1e-3,
            name=f"the norms after block {block}",
            why="`resid_post` of one block is `resid_pre` of the next",
        )
