"""Checks of chapter 05. Heads are read and replaced with plain torch hooks on the model's modules, dictionaries are
evaluated from their weights, gradients come from autograd through that; what is counted is counted in loops."""

from functools import cache

import torch

from tests.by_hand import counted, decode, dense_of, encode, read, run, sparse, stand_in
from utils import first_position, layer_of
from utils.checks import expect
from utils.checks.exercises import Exercise

HEAD_SCORES = Exercise(
    "head_scores",
    number="5.1",
    title="Which heads look where?",
    difficulty=2,
    importance=4,
    minutes=20,
    hints=(
        """
        `model.run_with_cache(tokens, names_filter=...)` gives the attention patterns: `blocks.L.attn.hook_pattern` has
        the axes `[batch, head, from, to]`. Both scores are means over a few entries of each pattern, and the question
        is only which.
        """,
        """
        Draw the positions for a half of 3: `0 | 1 2 3 | 4 5 6` holds the tokens `s | A B C | A B C`. Position 4 (the
        second A) should look at position 2 (the first B). In general, position p of the second half looks for `p - half
        + 1`. The previous-token score takes position p to p - 1, for p from 2 on.
        """,
        """
        With `half = (tokens.shape[1] - 1) // 2` and `pattern` of one layer: `reader = torch.arange(2, seq)`,
        `pattern[..., reader, reader - 1].mean(dim=(0, 2))`; and `second = torch.arange(half + 1, seq)`, `pattern[...,
        second, second - half + 1].mean(dim=(0, 2))`. Stack over layers.
        """,
    ),
)

LATER_LATENT_ACTS = Exercise(
    "latent_acts_to_later_latent_acts_attn",
    number="5.2a",
    title="From heads to later heads",
    difficulty=4,
    importance=4,
    minutes=25,
    hints=(
        """
        It is the residual function of chapter 04 with two changes: what is replaced and what is read lies *inside* a
        block. So the later z cannot be what the stopped model returns: a second hook has to pick it up.
        """,
        """
        Two hooks in one `run_with_hooks`: one at `sae_from.cfg.metadata.hook_name` returns the reconstruction, with the
        true z put back before `first_position(model)`; one at `sae_to.cfg.metadata.hook_name` puts `sae_to.encode(z)`
        into a list and returns nothing. z has the axes `[batch, seq, head, d_head]`, and so has what `decode` gives.
        (If `decode` complains about `d_head`: a dictionary learns the size of a head when it first encodes. Say
        `sae_from.d_head = model.cfg.d_head` before.)
        """,
        """
        `dense = SparseTensor.from_sparse((values, inds, shape)).dense`, `reconstruction = sae_from.decode(dense)`; in
        the first hook `return torch.cat([z[:, :first], reconstruction[:, first:]], dim=1)`. Run with `stop_at_layer`
        one above the later dictionary's layer, zero the later activations before `first`, and return `later.values,
        (later.dense,)`.
        """,
    ),
)

GRADIENTS = Exercise(
    "latent_to_latent_gradients_attn",
    number="5.2b",
    title="The Jacobian between heads",
    difficulty=3,
    importance=5,
    minutes=20,
    hints=(
        """
        Two steps: the true activations of both dictionaries in one run, then the Jacobian of your function of 5.2a at
        the true earlier ones.
        """,
        """
        For the first step, read both z in one run without changing anything and encode: that is what attached
        dictionaries see with the error term on. For the second, `torch.func.jacrev(f, has_aux=True)` differentiates the
        first output of f by its first argument and hands the second output through. Without `chunk_size`, it holds all
        rows in memory at once.
        """,
        """
        `grads, (dense,) = torch.func.jacrev(latent_acts_to_later_latent_acts_attn, has_aux=True,
        chunk_size=64)(*acts_prev.sparse, sae_from, sae_to, model, tokens)`; return `grads, acts_prev, acts_next,
        SparseTensor.from_dense(dense)`.
        """,
    ),
)

INDUCTION_LATENTS = Exercise(
    "induction_latents",
    number="5.3a",
    title="The second time is different",
    difficulty=2,
    importance=4,
    minutes=15,
    hints=(
        """
        `acts > 0` says where a latent is active. What is left is two means over the right positions and two
        comparisons.
        """,
        """
        Position 0 is the special token and belongs to neither half. With `half = (seq - 1) // 2` the first half is `1 :
        half + 1`, the second `half + 1 :`. A share is a mean over rows *and* positions.
        """,
        """
        `first = (acts > 0)[:, 1 : half + 1].float().mean(dim=(0, 1))`, `second` likewise; then `((second >= min_second)
        & (first <= max_first)).nonzero().squeeze(1)`.
        """,
    ),
)

PREVIOUS_TOKEN_LATENTS = Exercise(
    "previous_token_latents",
    number="5.3b",
    title="Who feeds them?",
    difficulty=4,
    importance=5,
    minutes=30,
    hints=(
        """
        An entry of the Jacobian belongs to a later latent at a position (the reader) and an earlier latent at a
        position (the source). Keep the entries whose reader is an induction latent in the second half and whose source
        stands `half - 1` positions before; add up gradient times activation for each earlier latent.
        """,
        """
        Make a mask of the shape of `grads`: `is_reader[:, None] & (reader_position[:, None] - source_position[None, :]
        == half - 1)`, and the same row of the batch. Then `(grads * values * mask).sum(dim=0)` has one number for each
        earlier active entry, and several entries may be the same latent.
        """,
        """
        `totals.index_add_(0, source_latent, contributions)` adds them up by latent, over all sequences;
        `totals.topk(k).indices` is the answer. Latents that never stand at such a place must not get in with their
        total of 0: raise the error if there are fewer than k that do.
        """,
    ),
)

LOG_PROB_WITHOUT = Exercise(
    "log_prob_without_latents",
    number="5.4a",
    title="Take them out",
    difficulty=3,
    importance=5,
    minutes=20,
    hints=(
        """
        A hook at the dictionary's place gets z. What the latents contribute to it is the sum of activation times
        decoder row. Take away that much and no more: the rest of z stays, so the error term stays.
        """,
        """
        `sae.encode(z)[..., latents] @ sae.W_dec[latents]` has heads side by side, `[batch, seq, n_heads * d_head]`;
        bring it into the shape of z. Before `first_position(model)`, nothing changes.
        """,
        """
        In the hook: `share = (sae.encode(z)[..., latents] @ sae.W_dec[latents]).reshape(z.shape)`, `return
        torch.cat([z[:, :first], (z - share)[:, first:]], dim=1)`. Then run the whole model and return
        `repeat_log_prob(logits, tokens)`.
        """,
    ),
)

MATCHED_CONTROLS = Exercise(
    "matched_controls",
    number="5.4b",
    title="Equally active, otherwise ordinary",
    difficulty=3,
    importance=5,
    minutes=20,
    hints=(
        """
        Mean activation of every latent first. Then, set by set and latent by latent: who is still free, which `pool` of
        them are nearest, draw one.
        """,
        """
        Keep a mask of free latents: active, not given, not yet in this set. `(mean[free] -
        mean[latent]).abs().argsort()[:pool]` are places *in the list of free latents*, not latent numbers.
        """,
        """
        `free = mask.nonzero().squeeze(1)`, `nearest = free[(mean[free] - mean[latent]).abs().argsort()[:pool]]`, `pick
        = nearest[torch.randint(len(nearest), (), generator=generator)]`, `mask[pick] = False`. A new mask for every
        set, one generator (seeded once) for all.
        """,
    ),
)


def random_repeats(half, rows, seed):
    """The special token and a random sequence, twice."""
    words = torch.randint(200, 40_000, (rows, half), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.ones(rows, 1, dtype=torch.int64), words, words], dim=1)


# ---- 5.1


@cache
def patterns(model, ids):
    """Attention [layer, batch, head, from, to], by torch hooks on the points where the pattern passes."""
    kept = []
    with torch.no_grad():
        run(
            model,
            torch.tensor(ids),
            None,
            {f"blocks.{i}.attn.hook_pattern": kept.append for i in range(model.cfg.n_layers)},
        )
    return torch.stack(kept)


def looks(attention, pairs):
    """Mean attention [layer, head] over rows and (from, to) pairs."""
    return torch.stack([attention[..., start, end] for start, end in pairs]).mean(dim=(0, 2))


def table(model, tokens):
    return patterns(model, tuple(map(tuple, tokens.tolist())))


SINK_COUNTED = """
    Position 1 looks at the special token, and that is the attention sink: every head pours attention into it. Start
    with position 2.
    """
DUPLICATE = """
    This is how much the second A looks at the first A (a duplicate-token head does that). Induction looks one place
    further: at the token *behind* the earlier occurrence, `p - half + 1`.
    """
TOO_FAR = "One place off: position p of the second half should look at `p - half + 1`. Draw it for a half of 3."
WHOLE_SEQUENCE = (
    "The induction score is averaged over too many positions: only those of the second half have an earlier occurrence."
)
LAST_MISSING = """
    Not all tokens of the second half are in the mean: the first of them (position `half + 1`) and the last have an
    earlier occurrence too.
    """
FIRST_ROW = "Only the first row counts here. Both scores are means over all rows of `tokens`."


@HEAD_SCORES.check(
    "previous-token score of every head",
    points=1,
    hint="""
        `pattern[..., p, p - 1]`, averaged over rows and over p from 2 to the end. The axes of the result are `[layer,
        head]`.
        """,
)
def test_previous(impl, model):
    tokens = random_repeats(5, 2, 0)
    previous, _ = expect.unpack(impl.head_scores(model, tokens), ("previous", "induction"))
    attention = table(model, tokens)
    want = looks(attention, [(p, p - 1) for p in range(2, 11)])
    other = looks(attention, [(p, p - 4) for p in range(6, 11)])
    expect.close(
        previous,
        want,
        name="previous",
        dims=("n_layers", "n_heads"),
        mistakes=[
            (looks(attention, [(p, p - 1) for p in range(1, 11)]), SINK_COUNTED),
            (looks(attention, [(p - 1, p) for p in range(2, 11)]), "The axes are from, to: this looks ahead."),
            (other, "This is the induction score: the previous-token score comes first in the tuple."),
            (want * 9 / 10, "Divide by the number of positions that are in the sum, not by all of them."),
            (looks(attention[:, :1], [(p, p - 1) for p in range(2, 11)]), FIRST_ROW),
            (want.T, "The layers are the rows: the axes are `[n_layers, n_heads]`."),
        ],
        norm="largest",
        why="counted entry by entry in the attention of a 2 x 11 batch",
    )


@HEAD_SCORES.check(
    "induction score of every head",
    points=2,
    hint="`pattern[..., p, p - half + 1]`, averaged over rows and over all p of the second half, from `half + 1` on.",
)
def test_induction(impl, model):
    for half, seed in ((5, 0), (7, 1)):
        tokens = random_repeats(half, 2, seed)
        _, induction = expect.unpack(impl.head_scores(model, tokens), ("previous", "induction"))
        attention = table(model, tokens)
        second = range(half + 1, 2 * half + 1)
        expect.close(
            induction,
            looks(attention, [(p, p - half + 1) for p in second]),
            name="induction",
            dims=("n_layers", "n_heads"),
            mistakes=[
                (looks(attention, [(p, p - half) for p in second]), DUPLICATE),
                (looks(attention, [(p, p - half + 2) for p in second]), TOO_FAR),
                (looks(attention, [(p, p - half - 1) for p in second]), TOO_FAR),
                (looks(attention, [(p, p - half + 1) for p in range(half, 2 * half + 1)]), WHOLE_SEQUENCE),
                (looks(attention, [(p, p - half + 1) for p in range(half - 1, 2 * half + 1)]), WHOLE_SEQUENCE),
                (looks(attention, [(p, p - half + 1) for p in range(half + 2, 2 * half + 1)]), LAST_MISSING),
                (looks(attention, [(p, p - half + 1) for p in range(half + 1, 2 * half)]), LAST_MISSING),
                (looks(attention[:, :1], [(p, p - half + 1) for p in second]), FIRST_ROW),
            ],
            norm="largest",
            why=f"counted entry by entry: the second half of {half} tokens looks behind its first occurrence",
        )


@HEAD_SCORES.check(
    "one pass, and only the patterns are kept",
    points=1,
    hint="""
        `run_with_cache` without `names_filter` keeps every activation of the model. `names_filter=lambda name:
        name.endswith("hook_pattern")` keeps the patterns.
        """,
)
def test_head_scores_cost(impl, model):
    tokens = random_repeats(20, 2, 2)
    with impl.watch(model) as seen:
        impl.head_scores(model, tokens)
    expect.cost(
        seen,
        passes=1,
        why="all rows have the same length, and all heads can be read in one go",
        hint="Give the model all rows at once: `tokens` already is a batch.",
    )
    expect.cost(
        seen,
        megabytes=90,
        why="the patterns take 4 MB and the logits 16; everything that can be cached takes more than 200",
    )


@HEAD_SCORES.check(
    "bad input says so",
    points=1,
    hint="""
        Before anything runs: `tokens.ndim` must be 2, and `tokens[:, 1 : half + 1]` must equal `tokens[:, half + 1 :]`.
        Otherwise `raise ValueError(...)` in words that help.
        """,
)
def test_head_scores_errors(impl, model):
    tokens = random_repeats(4, 2, 3)
    expect.raises(lambda: impl.head_scores(model, tokens[0]), "ValueError", why="a single row has rank 1")
    changed = tokens.clone()
    changed[1, -1] += 1
    for bad, what in ((changed, "one token is not repeated"), (tokens[:, :-1], "the last token is missing")):
        expect.raises(lambda bad=bad: impl.head_scores(model, bad), "ValueError", why=f"in these tokens {what}")


# ---- 5.2: dictionaries small enough to check everything about them


def heads_dictionary(layer, seed, d_sae=96, k=6):
    """A random TopK dictionary on the heads of a layer."""
    return stand_in(f"blocks.{layer}.attn.hook_z", d_sae, k=k, seed=seed, biases=0.05)


def true_acts(model, tokens, sae, count=True):
    acts = encode(sae, read(model, tokens, sae.cfg.metadata.hook_name))
    return counted(model, acts) if count else acts


def later_acts(model, tokens, sae_from, sae_to, dense, first=None, heads=lambda z: z, count=True):
    """The later activations [batch, seq, d_sae] when the earlier ones are `dense`; autograd can follow."""
    first = first_position(model) if first is None else first
    kept = []

    def replace(z):
        return torch.cat([z[:, :first], heads(decode(sae_from, dense))[:, first:]], dim=1)

    places = {sae_from.cfg.metadata.hook_name: replace, sae_to.cfg.metadata.hook_name: kept.append}
    run(model, tokens, layer_of(sae_to) + 1, places)
    later = encode(sae_to, kept[0])
    return counted(model, later) if count else later


PAIR = (2, 4)  # layers of the small dictionaries: five blocks to run
PROMPT = torch.tensor([[1, 504, 8913, 2725, 281, 504, 6330]])


def small_pair():
    return heads_dictionary(PAIR[0], seed=1), heads_dictionary(PAIR[1], seed=2)


def setting(model, tokens=PROMPT):
    sae_from, sae_to = small_pair()
    return sae_from, sae_to, sparse(true_acts(model, tokens, sae_from))


NOT_REPLACED = """
    The later heads see the *true* earlier z here. Does the first hook return the reconstruction? A hook that returns
    nothing changes nothing. And no error term is added back: the reconstruction takes the place of z.
    """
SINK_REPLACED = """
    At the sink position z was replaced too. The dictionaries never saw that position: before `first_position(model)`
    the true z stays.
    """
SINK_COUNTS = """
    Later latents at the sink position are counted as active. Zero the later activations before `first_position(model)`
    before you list them.
    """
NO_BIAS = "The decoder's bias is missing from the reconstruction: `sae_from.decode(...)` adds it."
HEADS_MIXED = """
    The heads are mixed up: side by side means head 0 first, with its d_head numbers in a row. Axes are `[batch, seq,
    head, d_head]`; reshape without transposing.
    """
D_HEAD = """
    The reconstruction takes the place of z (and at the sink z stays); the later z is encoded. If the library says that
    `d_head` is missing: a dictionary learns the size of a head when it first encodes, so set `sae_from.d_head =
    model.cfg.d_head` before you decode.
    """


def mix_heads(model):
    return lambda z: z.unflatten(-1, (model.cfg.d_head, model.cfg.n_heads)).transpose(-1, -2).flatten(-2)


@LATER_LATENT_ACTS.check("what the later heads see", points=2, hint=D_HEAD)
def test_later_acts(impl, model):
    sae_from, sae_to, earlier = setting(model)
    result = impl.latent_acts_to_later_latent_acts_attn(*earlier, sae_from, sae_to, model, PROMPT)
    values, rest = expect.unpack(result, ("values", "(dense,)"))
    (dense,) = expect.unpack(rest, ("dense",))
    start = dense_of(*earlier)
    with torch.no_grad():
        want = later_acts(model, PROMPT, sae_from, sae_to, start)

    def other(**how):
        return lambda: later_acts(model, PROMPT, sae_from, sae_to, start, **how)

    mistakes = [
        (lambda: true_acts(model, PROMPT, sae_to), NOT_REPLACED),
        (other(first=0), SINK_REPLACED),
        (other(count=False), SINK_COUNTS),
        (other(first=0, count=False), SINK_REPLACED),
        (other(heads=lambda z: z - sae_from.b_dec), NO_BIAS),
        (other(heads=mix_heads(model)), HEADS_MIXED),
        (
            lambda: encode(sae_from, decode(sae_from, start)),
            "These are latents of the earlier dictionary: nothing has been run in between.",
        ),
    ]
    expect.close(
        dense,
        want,
        name="dense",
        dims=("batch", "seq", "d_sae"),
        mistakes=mistakes,
        norm="largest",
        why="the same with torch hooks on the output matrices of blocks 2 and 4, and the dictionaries' weights",
    )
    expect.close(
        values,
        want[want.nonzero(as_tuple=True)],
        name="values",
        dims=("nnz_later",),
        norm="largest",
        why="the non-zero entries of dense, in row-major order",
    )


@LATER_LATENT_ACTS.check(
    "two prompts at once",
    points=1,
    hint="`tokens` is a batch, and the indices say which row each latent belongs to. Nothing may assume one row.",
)
def test_later_acts_batch(impl, model):
    tokens = torch.cat([PROMPT, PROMPT.roll(2, dims=1).index_fill(1, torch.tensor([0]), 1)])
    sae_from, sae_to, earlier = setting(model, tokens)
    result = impl.latent_acts_to_later_latent_acts_attn(*earlier, sae_from, sae_to, model, tokens)
    values, rest = expect.unpack(result, ("values", "(dense,)"))
    start = dense_of(*earlier)
    with torch.no_grad():
        want = later_acts(model, tokens, sae_from, sae_to, start)
    (dense,) = expect.unpack(rest, ("dense",))
    expect.close(
        dense,
        want,
        name="dense",
        dims=("batch", "seq", "d_sae"),
        norm="largest",
        why="each row is what it would be alone",
    )
    expect.shape(
        values, (int((want > 0).sum()),), name="values", dims=("nnz_later",), why="one value for each non-zero entry"
    )


@LATER_LATENT_ACTS.check(
    "autograd can follow",
    points=2,
    hint="""
        Between `latent_acts_nonzero` and the result there must be no `torch.no_grad()`, no `.detach()` and no
        `.item()`, and the dense tensor is computed from the values, as `SparseTensor.from_sparse(...).dense` does.
        """,
)
def test_later_acts_gradient(impl, model):
    sae_from, sae_to, (values, indices, shape) = setting(model)
    leaf = values.clone().requires_grad_()
    result = impl.latent_acts_to_later_latent_acts_attn(leaf, indices, shape, sae_from, sae_to, model, PROMPT)
    later, _ = expect.unpack(result, ("values", "(dense,)"))
    expect.that(
        isinstance(later, torch.Tensor) and later.requires_grad,
        expected="values that autograd can differentiate by latent_acts_nonzero",
        returned="values without a graph behind them",
        why="the next exercise differentiates this function",
    )
    weights = torch.linspace(-1, 1, len(later))
    (got,) = torch.autograd.grad(later @ weights, leaf)
    own = values.clone().requires_grad_()
    dense = later_acts(model, PROMPT, sae_from, sae_to, dense_of(own, indices, shape))
    expect.shape(later, (int((dense > 0).sum()),), name="values", dims=("nnz_later",), why="the active later latents")
    (want,) = torch.autograd.grad(dense[dense > 0] @ weights, own)
    expect.close(
        got,
        want,
        name="the gradient of a weighted sum",
        dims=("nnz",),
        norm="largest",
        why="by autograd through plain torch hooks",
    )


@LATER_LATENT_ACTS.check(
    "one pass, stopped behind the later heads",
    points=1,
    hint="""
        z of block 4 lies inside block 4: that block has to run, so `stop_at_layer=5`. Blocks behind it, and the
        unembedding, change nothing.
        """,
)
def test_later_acts_cost(impl, model):
    sae_from, sae_to, earlier = setting(model)
    with impl.watch(model) as seen:
        impl.latent_acts_to_later_latent_acts_attn(*earlier, sae_from, sae_to, model, PROMPT)
    expect.cost(seen, blocks=PAIR[1] + 1, logits=False, why="the later z does not depend on later blocks")
    expect.cost(
        seen,
        passes=1,
        why="one run can replace the earlier z and read the later one",
        hint="Give `run_with_hooks` both hooks at once.",
    )


ERRORS_HINT = """
    Look before you run: `tokens.ndim`, and the layers in `sae.cfg.metadata.hook_name`, which must end in `attn.hook_z`.
    Say in the error which one is wrong, in words like `rank`, `earlier` and `hook_z`.
    """


def demand_errors(call, model):
    """`call(tokens, sae_from, sae_to)` must refuse what does not fit."""
    sae_from, sae_to = small_pair()
    expect.raises(
        lambda: call(PROMPT[0], sae_from, sae_to),
        "ValueError",
        why="tokens of rank 1 are no batch",
    )
    expect.raises(
        lambda: call(PROMPT, sae_to, sae_from),
        "ValueError",
        why="`sae_from` was the later dictionary: it cannot influence an earlier one",
    )
    expect.raises(
        lambda: call(PROMPT, sae_from, sae_from),
        "ValueError",
        why="both dictionaries are at the same layer",
    )


@LATER_LATENT_ACTS.check("bad input says so", points=1, hint=ERRORS_HINT)
def test_later_acts_errors(impl, model, dictionaries):
    _, sae_to, earlier = setting(model)

    def call(tokens, one, other):
        return impl.latent_acts_to_later_latent_acts_attn(*earlier, one, other, model, tokens)

    demand_errors(call, model)
    stream = dictionaries["resid_pre.3"]
    expect.raises(
        lambda: call(PROMPT, stream, sae_to),
        "ValueError",
        why="a dictionary of the residual stream was given where one of heads is needed",
    )


NEXT_IS_RECON = """
    `acts_next` holds the later latents of the *reconstructed* run. The true ones come from a run in which nothing is
    replaced (the error term on).
    """
RECON_IS_TRUE = "`acts_next_recon` holds the true later latents. It is what your function of 5.2a computes."
PREV_RECODED = "`acts_prev` are the true activations: z encoded, once."
TRANSPOSED = "The rows and columns are swapped: rows are the later latents, columns the earlier ones."
TIMES_ACT = "This is activation times gradient. Only the gradient is asked for."


@GRADIENTS.check(
    "the three sets of active latents",
    points=2,
    hint="""
        True activations are those of the untouched model: read both z in one run, encode, zero what lies before
        `first_position(model)`. Only the third set comes from the reconstruction.
        """,
)
def test_gradient_acts(impl, model):
    sae_from, sae_to, earlier = setting(model)
    result = impl.latent_to_latent_gradients_attn(PROMPT, sae_from, sae_to, model)
    _, *sets = expect.unpack(result, ("grads", "acts_prev", "acts_next", "acts_next_recon"))
    start = dense_of(*earlier)
    with torch.no_grad():
        recon = later_acts(model, PROMPT, sae_from, sae_to, start)
    sink, sink_next = (true_acts(model, PROMPT, sae, count=False) for sae in (sae_from, sae_to))
    twice = counted(model, encode(sae_from, decode(sae_from, start)))
    true_next = true_acts(model, PROMPT, sae_to)
    wanted = [
        ("acts_prev", start, [(sink, SINK_COUNTS), (twice, PREV_RECODED)]),
        ("acts_next", true_next, [(recon, NEXT_IS_RECON), (sink_next, SINK_COUNTS)]),
        ("acts_next_recon", recon, [(true_next, RECON_IS_TRUE)]),
    ]
    for acts, (name, want, mistakes) in zip(sets, wanted, strict=True):
        expect.close(
            acts.dense,
            want,
            name=f"{name}.dense",
            dims=("batch", "seq", "d_sae"),
            mistakes=mistakes,
            norm="largest",
            why="z read by torch hooks, encoded with the dictionary's weights",
        )


@cache
def jacobian_by_rows(model):
    """The Jacobian on PROMPT, a backward pass for each row."""
    sae_from, sae_to, (values, indices, shape) = setting(model)
    own = values.clone().requires_grad_()
    dense = later_acts(model, PROMPT, sae_from, sae_to, dense_of(own, indices, shape))
    return torch.stack([torch.autograd.grad(one, own, retain_graph=True)[0] for one in dense[dense > 0]])


@GRADIENTS.check(
    "every entry of the Jacobian",
    points=3,
    hint="""
        Row i: how the i-th active later latent (of the reconstructed run) answers when each active earlier latent grows
        a little. `torch.func.jacrev(f, has_aux=True)` on your function of 5.2a gives exactly that.
        """,
)
def test_gradients(impl, model):
    sae_from, sae_to, (values, _, _) = setting(model)
    result = impl.latent_to_latent_gradients_attn(PROMPT, sae_from, sae_to, model)
    grads, *_ = expect.unpack(result, ("grads", "acts_prev", "acts_next", "acts_next_recon"))
    want = jacobian_by_rows(model)
    expect.close(
        grads,
        want,
        name="grads",
        dims=("nnz_later", "nnz"),
        mistakes=[
            (want.T, TRANSPOSED),
            (want * values, TIMES_ACT),
            (want.abs(), "Signs matter: no absolute values."),
            (torch.zeros_like(want), "All gradients are 0: the graph is cut somewhere."),
        ],
        norm="largest",
        why=f"{len(want)} backward passes through plain torch hooks, one for each later latent",
    )


@GRADIENTS.check(
    "a nudge comes through as promised",
    points=1,
    hint="""
        The gradient is that of the function of 5.2a at the true earlier activations. If it is off by a factor, look for
        something that is scaled; if it is off everywhere, for something that is replaced at the wrong place.
        """,
)
def test_gradient_predicts(impl, model):
    sae_from, sae_to, (values, indices, shape) = setting(model)
    result = impl.latent_to_latent_gradients_attn(PROMPT, sae_from, sae_to, model)
    grads, _, _, recon = expect.unpack(result, ("grads", "acts_prev", "acts_next", "acts_next_recon"))
    grads, places = expect.tensor(grads, name="grads").detach(), recon.indices
    direction = torch.linspace(-1, 1, len(values)) * values
    step = 3e-3

    def later(moved):
        with torch.no_grad():
            dense = dense_of(moved, indices, shape)
            return later_acts(model, PROMPT, sae_from, sae_to, dense)[places.unbind(-1)]

    up, down = later(values + step * direction), later(values - step * direction)
    expect.shape(grads, (len(up), len(values)), name="grads", dims=("nnz_later", "nnz"), why="a row for each latent")
    stays = (up > 0) & (down > 0)  # the others leave the k largest on the way
    expect.close(
        (grads @ direction)[stays],
        ((up - down) / (2 * step))[stays],
        rtol=3e-2,
        name="grads @ direction",
        dims=("nnz_later",),
        norm="largest",
        why="all earlier latents were nudged by 0.3 % up and down, and the later ones read",
    )


@GRADIENTS.check("bad input says so", points=1, hint=ERRORS_HINT)
def test_gradient_errors(impl, model):
    demand_errors(lambda tokens, one, other: impl.latent_to_latent_gradients_attn(tokens, one, other, model), model)
    sae_from, sae_to = small_pair()
    if first_position(model) == 1:
        expect.raises(
            lambda: impl.latent_to_latent_gradients_attn(PROMPT[:, :1], sae_from, sae_to, model),
            "ValueError",
            why="the special token alone has no latent that counts: the active set is empty",
            hint="If there is nothing to differentiate, say so: a `ValueError` with the word `active`.",
        )


# ---- 5.3


def planted(half, rows, active):
    """Activations [rows, 1 + 2 half, len(active)]; `active[latent]` lists the (row, position) where it is active."""
    acts = torch.zeros(rows, 1 + 2 * half, len(active))
    for latent, places in enumerate(active):
        for number, (row, position) in enumerate(places):
            acts[row, position, latent] = 0.01 + 3.0 * (number % 3)
    return acts


def everywhere(positions, rows=2):
    return [(row, position) for row in range(rows) for position in positions]


HALVES = "With 4 tokens a half, position 0 is the special token, 1 to 4 are the first half, 5 to 8 the second."


@INDUCTION_LATENTS.check(
    "shares of the two halves",
    points=2,
    hint="""
        Of all positions of the second half, in all rows, on what share is the latent active (larger than 0)? The same
        for the first half.
        """
    + HALVES,
)
def test_induction_planted(impl):
    active = [
        everywhere(range(5, 9)),  # 0: induction at its purest
        everywhere(range(0, 9)),  # 1: always on
        [],  # 2: never on
        everywhere(range(1, 5)),  # 3: the first half only
        everywhere([0, 5, 6, 7, 8]),  # 4: pure, and active at the special token, which belongs to neither half
        everywhere([5, 6]),  # 5: half of the second half: just enough
        [(0, 5), (0, 6), (0, 7), (0, 8)],  # 6: in one row only: just enough
        [(0, 5), (0, 6), (1, 7)],  # 7: 3 of 8: too few
        everywhere([4, 5, 6, 7, 8]),  # 8: a quarter of the first half: just allowed
        [*everywhere([4, 5, 6, 7, 8]), (0, 3)],  # 9: 3 of 8 in the first half: too many
        everywhere([1, 6, 7, 8]),  # 10: a quarter against three quarters
    ]
    want = [0, 4, 5, 6, 8, 10, 11]
    acts = planted(4, 2, [*active, []])
    acts[:, 5:, 11] = 1e-3  # 11: ever so weak, on the whole second half
    expect.equal(
        impl.induction_latents(acts),
        torch.tensor(want),
        name="the latents",
        why="""
            of twelve planted latents, these are active on at least half of the second half's positions and at most a
            quarter of the first's
            """,
        mistakes=lambda: induction_mistakes(acts),
    )


def induction_mistakes(acts):
    """What somebody finds who looks at other positions, or holds the shares against the limits in another way."""
    on, strong = (acts > 0).float(), (acts > 0.005).float()

    def share(of, start, end=None):
        return of[:, start:end].mean(dim=(0, 1))

    limits = "The limits themselves are allowed: `>= min_second`, `<= max_first`."
    position_0 = "Position 0 is the special token and belongs to neither half. " + HALVES
    together = "A share is over all positions of all rows together."
    strength = "A share counts positions: how strong the latent is there does not matter, as long as it is above 0."
    pairs = [
        (share(on, 1, 5), share(on, 5), limits),
        (share(on, 0, 5), share(on, 5), position_0),
        (share(on, 0, 4), share(on, 5), position_0),
        (share(on, 0, 4), share(on, 4), position_0),
        (share(on, 1, 5), share(on, 4), "The halves are cut at the wrong place. " + HALVES),
        (on.amax(dim=0)[1:5].mean(dim=0), on.amax(dim=0)[5:].mean(dim=0), together),
        (on[0, 1:5].mean(dim=0), on[0, 5:].mean(dim=0), together),
        (share(acts, 1, 5), share(acts, 5), strength),
        (share(strong, 1, 5), share(strong, 5), strength),
    ]
    yield (
        (share(on, 5) >= 0.5).nonzero().flatten(),
        "The first half counts too: a latent that is active everywhere is no answer, `max_first`.",
    )
    for first, second, hint in pairs:
        for enough in (second >= 0.5, second > 0.5):
            for little in (first <= 0.25, first < 0.25):
                yield (enough & little).nonzero().flatten(), hint


@INDUCTION_LATENTS.check(
    "other limits, other lengths",
    points=1,
    hint="""
        Use the two arguments, `min_second` and `max_first`, and take the length of a half from the shape:
        `(acts.shape[1] - 1) // 2`. Active means larger than 0, however little.
        """,
)
def test_induction_random(impl):
    generator = torch.Generator().manual_seed(0)
    for half, rows, low, high in ((3, 1, 0.3, 0.7), (6, 4, 0.6, 0.5), (10, 3, 0.75, 0.1)):
        chances = torch.rand(2, 40, generator=generator)
        chance = torch.cat([torch.ones(1, 40), chances[:1].expand(half, -1), chances[1:].expand(half, -1)])
        acts = torch.rand(rows, 1 + 2 * half, 40, generator=generator)
        acts = acts * (torch.rand(acts.shape, generator=generator) < chance) * 0.1
        want = []
        for latent in range(40):
            first = sum(acts[row, p, latent] > 0 for row in range(rows) for p in range(1, half + 1)) / (rows * half)
            second = sum(acts[row, p, latent] > 0 for row in range(rows) for p in range(half + 1, 2 * half + 1))
            if second / (rows * half) >= low and first <= high:
                want.append(latent)
        got = impl.induction_latents(acts, min_second=low, max_first=high)
        expect.equal(
            got,
            torch.tensor(want, dtype=torch.int64),
            name="the latents",
            why=f"counted in loops, for a half of {half}, min_second={low} and max_first={high}",
        )


@INDUCTION_LATENTS.check(
    "none is an answer; a wrong shape is not",
    points=1,
    hint="""
        If no latent qualifies, return an empty tensor of whole numbers. If the shape cannot be special token plus two
        halves, raise a ValueError.
        """,
)
def test_induction_none(impl):
    got = impl.induction_latents(torch.zeros(2, 9, 5))
    expect.shape(got, (0,), name="the latents", dims=("n",), why="nothing is ever active")
    expect.dtype(got, torch.int64, name="the latents", why="numbers of latents, also if there are none")
    for bad in (torch.zeros(2, 8, 5), torch.zeros(9, 5)):
        expect.raises(
            lambda bad=bad: impl.induction_latents(bad),
            "ValueError",
            why=f"activations of shape {tuple(bad.shape)} are not rows of a special token and two halves",
        )


def jacobian_case(half, rows, seed, n_latents=12, per_position=3):
    """Random gradients between random active latents on `rows` sequences."""
    generator = torch.Generator().manual_seed(seed)
    seq = 1 + 2 * half
    both = []
    for _ in range(2):
        dense = torch.rand(rows, seq, n_latents, generator=generator)
        keep = dense.argsort(dim=-1).argsort(dim=-1) < per_position
        dense = dense * keep * torch.rand(dense.shape, generator=generator).mul(3).exp()
        dense[:, 0] = 0
        both.append(sparse(dense))
    earlier, later = both
    grads = torch.randn(len(later[0]), len(earlier[0]), generator=generator)
    return grads, earlier, later


def feeding(cases, induction, shift=0, second_only=True, rows_apart=False, term=lambda g, a: g * a):
    """Totals by earlier latent, in loops, and which latents were met."""
    totals, met = torch.zeros(cases[0][1][2][-1]), set()
    for grads, (values, sources, shape), (_, readers, _) in cases:
        half = (shape[1] - 1) // 2
        for i, (row, reader, latent) in enumerate(readers.tolist()):
            if latent not in induction or (second_only and reader <= half):
                continue
            for j, (other_row, source, earlier) in enumerate(sources.tolist()):
                if source == reader - half + 1 + shift and (rows_apart or row == other_row):
                    totals[earlier] += term(grads[i, j], values[j])
                    met.add(earlier)
    return totals, met


def feeding_mistakes(cases, induction):
    return [
        (feeding(cases, induction, term=lambda g, a: g)[0], """
            This adds up gradients. A latent that is hardly active hardly feeds anybody: multiply by its activation.
            """),
        (feeding(cases, induction, term=lambda g, a: (g * a).abs())[0], """
            These are absolute values. What feeds an induction latent makes it larger: keep the sign.
            """),
        (feeding(cases, induction, shift=-1)[0], """
            The source stands one place too early: this is the first A. The answer stands behind it, at the first B,
            `half - 1` positions before the reader.
            """),
        (feeding(cases, induction, shift=1)[0], """
            The source stands one place too late: the first B is `half - 1` positions before the second A.
            """),
        (feeding(cases, induction, second_only=False)[0], """
            Readers in the first half are counted as well. They have no earlier occurrence to look at: only positions
            larger than `half`.
            """),
        (feeding(cases, induction, rows_apart=True)[0], """
            Reader and source are taken from different rows of the batch: their row, `indices[:, 0]`, has to be the
            same.
            """),
        (feeding(cases, range(1000))[0], "All later latents are counted. Only those in `induction` are asked about."),
        (feeding(cases[:1], induction)[0], "Only the first sequence counts here. Totals are over all of `gradients`."),
        (feeding(cases[-1:], induction)[0], "Only the last sequence counts here. Totals are over all of `gradients`."),
        (-feeding(cases, induction)[0], "These are the smallest totals. Largest first: `topk(k)`."),
    ]  # fmt: skip


def demand_feeders(impl, cases, induction, k, why):
    got = impl.previous_token_latents(cases, torch.tensor(induction), k)
    totals, met = feeding(cases, induction)
    ranked = sorted(met, key=lambda latent: -totals[latent])[:k]
    got = expect.shape(got, (k,), name="the latents", dims=("k",), why=why)

    def mistakes():
        for wrong, hint in feeding_mistakes(cases, induction):
            order = wrong.argsort(descending=True)
            yield order[:k], hint
            yield order[wrong[order] != 0][:k], hint  # of somebody who leaves out those that never stand there

    expect.equal(got, torch.tensor(ranked), name="the latents", why=why, mistakes=mistakes)


@PREVIOUS_TOKEN_LATENTS.check(
    "one pair, by hand",
    points=1,
    hint="""
        With a half of 3, the tokens are `s A B C A B C`. The second A is position 4, the first B position 2: 4 - 2 =
        half - 1.
        """,
)
def test_feeders_by_hand(impl):
    # Earlier latents 0 to 4 at positions 1 to 5; one induction latent (7) and another (8), both at position 4.
    sources = torch.tensor([[0, 1, 0], [0, 2, 1], [0, 2, 2], [0, 3, 3], [0, 4, 4]])
    values = torch.tensor([9.0, 1.0, 4.0, 9.0, 9.0])
    readers = torch.tensor([[0, 4, 7], [0, 4, 8]])
    grads = torch.tensor([[5.0, 2.0, 1.0, 5.0, 5.0], [5.0, 9.0, -9.0, 5.0, 5.0]])
    case = (grads, (values, sources, (1, 7, 5)), (torch.ones(2), readers, (1, 7, 9)))
    why = "at position 2 stand latent 1 (activation 1, gradient 2) and latent 2 (activation 4, gradient 1): 2 against 4"
    demand_feeders(impl, [case], [7], 1, why)
    demand_feeders(impl, [case], [7], 2, why)


@PREVIOUS_TOKEN_LATENTS.check(
    "many pairs, brute force",
    points=2,
    hint="""
        An entry counts if its reader is an induction latent in the second half and its source stands `half - 1`
        positions before, in the same row. Sum gradient times activation by earlier latent.
        """,
)
def test_feeders_random(impl):
    for half, rows, seed in ((4, 1, 0), (5, 2, 1), (3, 3, 2)):
        case = jacobian_case(half, rows, seed)
        demand_feeders(impl, [case], [1, 4, 7, 8], 5, f"every pair of entries was visited in loops, half = {half}")


@PREVIOUS_TOKEN_LATENTS.check(
    "several sequences, also of different length",
    points=1,
    hint="""
        Add up over all entries of `gradients`; the length of a half belongs to each of them (its shape), and the same
        latent may occur in all.
        """,
)
def test_feeders_sequences(impl):
    cases = [jacobian_case(half, 1, seed) for half, seed in ((4, 5), (6, 6), (4, 7))]
    demand_feeders(impl, cases, [0, 2, 3, 9], 6, "totals over three sequences, in loops")


@PREVIOUS_TOKEN_LATENTS.check(
    "nothing to feed, or nobody who does",
    points=1,
    hint="""
        An empty `induction`, or a k larger than the number of latents that stand at a first B of an active induction
        latent, is a ValueError: do not fill up with latents whose total is 0.
        """,
)
def test_feeders_errors(impl):
    case = jacobian_case(3, 1, 3)
    none = torch.empty(0, dtype=torch.int64)
    expect.raises(
        lambda: impl.previous_token_latents([case], none, 1), "ValueError", why="there is no induction latent"
    )
    _, met = feeding([case], [1, 4])
    expect.raises(
        lambda: impl.previous_token_latents([case], torch.tensor([1, 4]), len(met) + 1),
        "ValueError",
        why=f"only {len(met)} earlier latents stand at a place that counts",
    )


# ---- 5.4


def said(model, tokens, logits):
    """Log-probability [batch, seq - 1] of every token but the first, from the position before."""
    return logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def second_half(model, tokens, logits, start=None):
    half = (tokens.shape[1] - 1) // 2
    return said(model, tokens, logits)[:, half + 1 if start is None else start :].mean(dim=1)


SPLIT = 3  # the block of the small dictionary whose latents are taken out


def logits_with(model, tokens, change):
    with torch.no_grad():
        return run(model, tokens, None, {f"blocks.{SPLIT}.attn.hook_z": change})


def without(model, sae, latents, first=None):
    first = first_position(model) if first is None else first

    def change(z):
        share = torch.einsum("bsl,ld->bsd", encode(sae, z)[..., latents], sae.W_dec[latents])
        share[:, :first] = 0
        return z - share

    return change


@LOG_PROB_WITHOUT.check(
    "none taken out: the model as it is",
    points=1,
    hint="""
        `repeat_log_prob(logits, tokens)` of the whole model's logits: a number for each row. With no latents, the hook
        must give z back as it was.
        """,
)
def test_without_none(impl, model):
    tokens, sae = random_repeats(4, 3, 11), heads_dictionary(SPLIT, seed=4)
    with torch.no_grad():
        logits = model(tokens)
    got = impl.log_prob_without_latents(model, tokens, sae, torch.empty(0, dtype=torch.int64))
    whole, want = said(model, tokens, logits), second_half(model, tokens, logits)

    def by_reconstruction():
        return second_half(model, tokens, logits_with(model, tokens, lambda z: decode(sae, encode(sae, z))))

    expect.close(
        got,
        want,
        name="the log-probabilities",
        dims=("batch",),
        mistakes=[
            (whole.mean(dim=1), "This is the mean over both halves: only the second can be foreseen."),
            (whole[:, 4:].mean(dim=1), "The first token of the second half is in the mean: nobody could foresee it."),
            (want.mean().expand(3), "A number for each row, not their common mean."),
            (want.exp(), "These are probabilities: log-probabilities are asked for."),
            (-want, "This is the loss: the log-probability has the other sign."),
            (
                by_reconstruction,
                """
                The dictionary's reconstruction has taken the place of z: keep the error term. Take away what the
                latents contribute, and nothing else.
                """,
            ),
        ],
        norm="largest",
        why="the untouched model's log-softmax at the tokens that follow, from the second one of the second half on",
    )


@LOG_PROB_WITHOUT.check(
    "what these latents did, and no more",
    points=3,
    hint="""
        Take activation times decoder row of the given latents out of z, at every position from `first_position(model)`
        on. What other latents do, the bias and the error stay.
        """,
)
def test_without_some(impl, model):
    tokens, sae = random_repeats(4, 2, 12), heads_dictionary(SPLIT, seed=4, d_sae=32, k=12)
    latents = torch.tensor([3, 4, 8, 9, 15, 16, 21, 30, 31])
    got = impl.log_prob_without_latents(model, tokens, sae, latents)
    others = torch.tensor([latent for latent in range(32) if latent not in latents.tolist()])
    first = first_position(model)

    def reconstructed(z):
        acts = encode(sae, z)
        acts[..., latents] = 0
        return torch.cat([z[:, :first], decode(sae, acts)[:, first:]], dim=1)

    def bias_too(z):
        return without(model, sae, latents)(z) - sae.b_dec * (torch.arange(z.shape[1]) >= first)[:, None]

    def second_only(z):
        keep = torch.arange(z.shape[1])[:, None] <= (z.shape[1] - 1) // 2
        return torch.where(keep, z, without(model, sae, latents)(z))

    def directions(z):
        basis = torch.linalg.qr(sae.W_dec[latents].T)[0]
        gone = z - z @ basis @ basis.T
        return torch.cat([z[:, :first], gone[:, first:]], dim=1)

    changes = [
        (reconstructed, """
            The error term is gone: what the dictionary fails to reconstruct was thrown away too. Subtract what the
            latents contribute from z.
            """),
        (without(model, sae, latents, first=0), SINK_REPLACED),
        (without(model, sae, others), "The *other* latents were taken out: the given ones are to go."),
        (bias_too, "The decoder's bias was taken out as well. It belongs to no latent."),
        (second_only, """
            The latents are zeroed in the second half only. They do their work in the first: zero them at every
            position.
            """),
        (directions, """
            Everything along these decoder rows was removed, whether a latent was active or not. Zeroing a latent takes
            out its activation times its row.
            """),
        (lambda z: z, "Nothing has changed. Does your hook return the changed z?"),
    ]  # fmt: skip

    def scored(change):
        return lambda: second_half(model, tokens, logits_with(model, tokens, change))

    mistakes = [(scored(change), hint) for change, hint in changes]
    expect.close(
        got,
        scored(without(model, sae, latents))(),
        name="the log-probabilities",
        dims=("batch",),
        rtol=2e-5,
        mistakes=mistakes,
        norm="largest",
        why="the same with a torch hook on the output matrix of block 3 and the dictionary's weights",
    )


@LOG_PROB_WITHOUT.check(
    "one pass, no hook left",
    points=1,
    hint="One `run_with_hooks` over the whole batch; it takes its hooks off again.",
)
def test_without_cost(impl, model):
    tokens, sae = random_repeats(3, 2, 13), heads_dictionary(SPLIT, seed=4)
    with impl.watch(model) as seen:
        impl.log_prob_without_latents(model, tokens, sae, torch.tensor([1, 2]))
    expect.cost(
        seen,
        passes=1,
        why="the hook can encode the z that it is given",
        hint="No need to read z first: the hook gets it, and can encode and change it in one pass.",
    )


@LOG_PROB_WITHOUT.check("bad input says so", points=1, hint=ERRORS_HINT)
def test_without_errors(impl, model, dictionaries):
    tokens, sae = random_repeats(3, 2, 14), heads_dictionary(SPLIT, seed=4)
    latents = torch.tensor([1])
    expect.raises(
        lambda: impl.log_prob_without_latents(model, tokens[0], sae, latents),
        "ValueError",
        why="tokens of rank 1 are no batch",
    )
    expect.raises(
        lambda: impl.log_prob_without_latents(model, tokens, dictionaries["resid_pre.3"], latents),
        "ValueError",
        why="a dictionary of the residual stream was given where one of heads is needed",
    )


def activities(seed, n=60, dead=10):
    """Activations [3, 7, n] with mean activities far enough apart to have no ties; the last `dead` never active."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(n, generator=generator).mul(3).exp()
    mean[n - dead :] = 0
    shape = torch.rand(3, 7, n, generator=generator) * (torch.rand(3, 7, n, generator=generator) < 0.5)
    shape[0, 0] += 0.1
    return shape / shape.mean(dim=(0, 1)) * mean


def greedy(mean, latents):
    """The nearest free latent for each in turn."""
    free = [latent for latent in range(len(mean)) if mean[latent] > 0 and latent not in latents.tolist()]
    chosen = []
    for latent in latents.tolist():
        pick = min(free, key=lambda other: abs(mean[other] - mean[latent]))
        free.remove(pick)
        chosen.append(pick)
    return chosen


@MATCHED_CONTROLS.check(
    "a pool of one: the nearest latent that is free",
    points=2,
    hint="""
        With `pool=1` nothing is random: each control is the free latent whose mean activation is nearest. Free means
        active somewhere, not one of the given, not yet in this set. The mean is that of the activation, and not of how
        often the latent is active.
        """,
)
def test_nearest(impl):
    for seed in range(3):
        acts = activities(seed)
        latents = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:12]
        acts[..., latents[:2]] *= 0.001  # hardly active: a latent that never is would be nearest
        mean = acts.mean(dim=(0, 1))
        got = impl.matched_controls(acts, latents, 2, 0, pool=1)
        expect.shape(got, (2, 12), name="the controls", dims=("n_sets", "n"), why="a row for each set")
        demand_allowed(got, mean, latents)
        expect.equal(
            got,
            torch.tensor([greedy(mean, latents)] * 2),
            name="the controls",
            why="for each latent in turn, the free one with the nearest mean activation, by brute force",
        )


def demand_allowed(got, mean, latents):
    got = expect.tensor(got, name="the controls")
    given = torch.isin(got, latents)
    expect.that(
        not given.any(),
        expected="controls that are none of the given latents",
        returned=expect.describe(got),
        why=f"{int(given.sum())} of them are the latents that were to be controlled for",
        hint="A latent is always nearest to itself: leave the given latents out of the candidates.",
    )
    expect.that(
        bool((mean[got] > 0).all()),
        expected="controls that are active somewhere",
        returned=expect.describe(got),
        why=f"{int((mean[got] == 0).sum())} of them are never active: taking them out changes nothing",
        hint="Leave out latents whose mean activation is 0.",
    )
    for row in got:
        expect.that(
            len(row.unique()) == len(row),
            expected="a set without repetition",
            returned=expect.describe(row),
            why="the same latent can be taken out only once",
            hint="Within a set, a latent that has been drawn is not free any more.",
        )


@MATCHED_CONTROLS.check(
    "drawn at random from the pool",
    points=2,
    hint="""
        Each control is one of the `pool` nearest free latents, each as probable as the others:
        `nearest[torch.randint(len(nearest), (), generator=generator)]`. Seed one generator, once.
        """,
)
def test_drawn(impl):
    acts = activities(5)
    mean = acts.mean(dim=(0, 1))
    latents = torch.tensor([7, 30, 2, 41])
    got = impl.matched_controls(acts, latents, 40, 3, pool=4)
    expect.shape(got, (40, 4), name="the controls", dims=("n_sets", "n"), why="a row for each set")
    demand_allowed(got, mean, latents)
    others = [latent for latent in range(50) if latent not in latents.tolist()]
    for column, latent in enumerate(latents.tolist()):
        ranked = sorted(others, key=lambda other, latent=latent: abs(mean[other] - mean[latent]))
        seen = set(torch.as_tensor(got)[:, column].tolist())
        # Up to `column` of the nearest may be taken already.
        far = seen - set(ranked[: 4 + column])
        expect.that(
            not far,
            expected=f"controls of latent {latent} among its nearest",
            returned=f"{sorted(far)}, which are not among the {4 + column} nearest",
            why="mean activations have to match, and the pool is 4",
            hint="""
                `argsort()` gives places in the list that was sorted. If that list holds free latents only, a place in
                it is not the latent's number: index the list with it.
                """,
        )
        expect.that(
            len(seen) >= 3,
            expected="different controls in different sets",
            returned=f"only {sorted(seen)} in 40 sets",
            why="a control is drawn from a pool of 4",
            hint="""
                The sets are all alike. Draw anew for every set: seed the generator once, before the first set, and pick
                at random among the pool.
                """,
        )
    few = activities(8, n=14, dead=4)
    sets = impl.matched_controls(few, torch.arange(5), 3, 0, pool=4)
    expect.equal(
        expect.shape(sets, (3, 5), name="the controls", dims=("n_sets", "n"), why="a row for each set").sort().values,
        torch.arange(5, 10).expand(3, -1),
        name="the controls, sorted",
        why="10 latents are active and 5 of them given, so each set needs all of the other 5",
        hint="Where fewer than `pool` latents are still free, draw from those that are.",
    )
    lopsided = max(torch.as_tensor(got)[:, 0].bincount())
    expect.that(
        lopsided <= 24,
        expected="all four of the pool drawn about equally often",
        returned=f"one latent in {lopsided} of 40 sets",
        why="each of the pool should be as probable as the others",
    )


@MATCHED_CONTROLS.check(
    "the same seed, the same sets",
    points=1,
    hint="""
        Use `torch.Generator().manual_seed(seed)` and hand it to `torch.randint`; the global random numbers are not
        yours to seed, and depend on what ran before.
        """,
)
def test_seeded(impl):
    acts, latents = activities(6), torch.tensor([1, 20, 33, 45, 4])
    one = impl.matched_controls(acts, latents, 3, 1)
    torch.rand(5)
    again, other = impl.matched_controls(acts, latents, 3, 1), impl.matched_controls(acts, latents, 3, 2)
    expect.equal(
        expect.tensor(again, name="the controls"),
        expect.tensor(one, name="the controls"),
        name="the second call with seed 1",
        why="nothing else has changed",
    )
    expect.that(
        not torch.equal(torch.as_tensor(one), torch.as_tensor(other)),
        expected="other sets for another seed",
        returned="the same for seeds 1 and 2",
        why="the seed decides what is drawn",
        hint="Use the argument `seed`.",
    )


@MATCHED_CONTROLS.check(
    "nothing to match, or nothing to match with",
    points=1,
    hint="Raise a ValueError if `latents` is empty, or if fewer other latents are ever active than one set needs.",
)
def test_control_errors(impl):
    acts = activities(7, n=14, dead=4)
    expect.raises(
        lambda: impl.matched_controls(acts, torch.empty(0, dtype=torch.int64), 2, 0),
        "ValueError",
        why="the active set is empty: there is nothing to find controls for",
    )
    expect.raises(
        lambda: impl.matched_controls(acts, torch.arange(6), 2, 0),
        "ValueError",
        why="10 latents are active, 6 of them are given: 4 others are too few",
    )
