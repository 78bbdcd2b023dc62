"""Checks of chapter 06. MLP inputs are read with plain torch hooks on the model's modules; latents, products and places
are computed again from the weights, in double precision or one by one."""

from functools import lru_cache

import torch

from tests.by_hand import decode, encode, read, run
from utils import layer_of
from utils.checks import expect
from utils.checks.exercises import Exercise

RUN_WITH_TRANSCODERS = Exercise(
    "run_with_cache_with_transcoders",
    number="6.1",
    title="Two hooks",
    difficulty=3,
    importance=4,
    minutes=25,
    hints=(
        """
        Each transcoder needs one hook that *reads*, at `transcoder.cfg.metadata.hook_name`, and, if the error term is
        off, one that *writes*, at `transcoder.cfg.metadata.hook_name_out`. What the first one computes, the second one
        needs: a dictionary that both can see will do.
        """,
        """
        With the error term on, output and reconstruction differ by the error, and adding it back gives the MLP's own
        output: nothing has to be written at all. In the writing hook, start from `mlp_out` and exchange only the
        positions from `first_position(model)` on.
        """,
        """
        Reading: `acts = transcoder.encode(mlp_in)`, zeros at the first positions,
        `cache[model.get_sae_hook_name(transcoder)] = acts`. Writing: `torch.cat([mlp_out[:, :start],
        transcoder.decode(acts)[:, start:]], dim=1)`. Beware of Python's late binding: make the pair of hooks in a
        function that takes the transcoder. Run once with `model.run_with_hooks(tokens, fwd_hooks=hooks)`.
        """,
    ),
)

GET_K_LARGEST = Exercise(
    "get_k_largest_indices",
    number="6.2a",
    title="The k largest, at a distance",
    difficulty=3,
    importance=3,
    minutes=20,
    hints=(
        """
        Keep a mask of the places that are still free: at first, all but the margin. A column c has `buffer` neighbours
        on either side if `buffer <= c < seq - buffer`. Mind `buffer = 0`: `x[:, 0:-0]` is empty.
        """,
        """
        k times: take the largest free place, note it, and mark the places around it, in its row only, as not free.
        `x.masked_fill(~free, -torch.inf).argmax()` gives one place even where there are ties; its row and column are
        `divmod(place, seq)`.
        """,
        """
        The places around it: `free[row, max(0, column - buffer) : column + buffer + 1] = False`. Without `no_overlap`,
        a single `topk(k)` of the masked tensor does it. Before each round: if nothing is free, raise a ValueError that
        says how many places there are.
        """,
    ),
)

INDEX_WITH_BUFFER = Exercise(
    "index_with_buffer",
    number="6.2b",
    title="A window around each place",
    difficulty=2,
    importance=3,
    minutes=10,
    hints=(
        """
        A window is the column plus each of -buffer, ..., 0, ..., buffer. Adding a `[k, 1]` and a `[window]` tensor
        gives all of them at once.
        """,
        """
        `windows = columns[:, None] + torch.arange(-buffer, buffer + 1)` has shape `[k, window]`. Indexing with
        `x[rows[:, None], windows]` broadcasts the rows.
        """,
        """
        Negative columns are legal in Python and wrap around to the end of the row, so look before you index: if any
        window is below 0 or not below `x.shape[1]`, raise a ValueError.
        """,
    ),
)

MAX_ACTIVATING = Exercise(
    "max_activating_examples",
    number="6.3",
    title="Top examples, one pass",
    difficulty=4,
    importance=5,
    minutes=30,
    hints=(
        """
        One hook reads the MLP's input (`stop_at_layer` says where to stop, as in chapter 01). From it, the activations
        of *all* latents you want follow at once: `transcoder.encode(mlp_in)[..., latents]` has shape `[batch, seq,
        n_latents]`. The loop over latents comes after the model, not around it.
        """,
        """
        For each latent, `get_k_largest_indices` finds the places, but it raises where there are fewer than k. Zeros at
        the first positions and in the margin are harmless, since inactive places are dropped anyway: you can pick
        places yourself, k rounds of argmax with the neighbourhood set to zero, until nothing above zero is left.
        """,
        """
        For each latent: `left = acts[..., i].clone()`; zero the columns before `max(buffer, first_position(model))` and
        from `seq - buffer` on; then up to k times `value, place = left.flatten().max(dim=0)`, stop if `value` is 0,
        note `(value, row, column)`, and set `left[row, max(0, column - buffer) : column + buffer + 1] = 0`.
        """,
    ),
)

TOP_LOGITS = Exercise(
    "top_logits",
    number="6.4",
    title="The logit lens",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        """
        What latent i writes is the row `sae.W_dec[i]`. On its way to the logits it passes the final norm, whose weights
        are `model.ln_final.weight`, and the unembedding `model.W_U`, of shape `[d_model, d_vocab]`.
        """,
        """
        The norm multiplies each coordinate by its weight (and divides all by the same number, which is left out here):
        `(model.ln_final.weight * sae.W_dec[i]) @ model.W_U`.
        """,
        """
        `values, token_ids = (logits - logits.mean()).topk(k)`. Before that, raise a ValueError if k is larger than
        `model.W_U.shape[1]`, or if the latent does not exist.
        """,
    ),
)

TOP_DEEMBEDDINGS = Exercise(
    "top_deembeddings",
    number="6.5",
    title="De-embedding",
    difficulty=1,
    importance=4,
    minutes=10,
    hints=(
        """
        What latent i reads is a *column* of the encoder: `sae.W_enc[:, i]`. The embeddings are the rows of `model.W_E`.
        """,
        "The product of every row of `W_E` with that column: `model.W_E @ sae.W_enc[:, i]`, one number per token.",
        "`values, token_ids = (model.W_E @ sae.W_enc[:, i]).topk(k)`, with a ValueError where k or i is too large.",
    ),
)

EXTENDED_EMBEDDING = Exercise(
    "create_extended_embedding",
    number="6.6",
    title="The extended embedding",
    difficulty=3,
    importance=4,
    minutes=20,
    hints=(
        """
        `model.blocks[0]` has `ln2` and `mlp`; both are functions of a tensor `[batch, seq, d_model]`. A token alone is
        a sequence of one, or many tokens are a batch of sequences of one: the MLP looks at each position for itself.
        """,
        """
        A slice of rows e: `e + block.mlp(block.ln2(e[None]))[0]`. Go through `model.W_E` in slices of some thousand
        rows: all 49,152 at once need the MLP's inner activations, several times the result. Under `torch.no_grad()`.
        """,
        """
        Then divide each row by its standard deviation, `row.std(dim=1, keepdim=True)`. Take its mean off before only if
        `not model.cfg.uses_rms_norm`. `torch.cat` the slices.
        """,
    ),
)

PULLBACK = Exercise(
    "pullback",
    number="6.7a",
    title="Weights to weights",
    difficulty=2,
    importance=5,
    minutes=15,
    hints=(
        """
        An earlier latent i writes its decoder row into the stream; the later latent reads its encoder column from it.
        How much of the row is read is one scalar product.
        """,
        """
        All rows at once: `transcoder_from.W_dec @ transcoder_to.W_enc[:, latent_idx]`, shape `[d_sae]` of the earlier
        one.
        """,
        """
        The number of a transcoder's block is in its hook name: `int(transcoder.cfg.metadata.hook_name.split('.')[1])`.
        What is written in block L can be read from block L + 1 on: raise a ValueError if the first is not smaller than
        the second.
        """,
    ),
)

INFLUENCE = Exercise(
    "influence",
    number="6.7b",
    title="The pullback at work",
    difficulty=2,
    importance=4,
    minutes=15,
    hints=(
        """
        The pullback says how much of each unit of activation is read; multiply by how much activation there is. You
        need the earlier transcoder's latents on these tokens: one hook, one `encode`.
        """,
        """
        The hook is `transcoder_from.cfg.metadata.hook_name`, and `stop_at_layer` is its block's number plus 1. Set the
        activations before `first_position(model)` to zero.
        """,
        "`acts * mine.pullback(transcoder_from, transcoder_to, latent_idx)`: `[batch, seq, d_sae]` times `[d_sae]`.",
    ),
)


# How the checks see the model: torch hooks on its modules.


TEXTS = (
    "The old library on the corner of the square was closed for the winter, and nobody knew when it would open again.",
    "In 1923 the company sold its first engine to a railway in Argentina, which returned it two years later, unused.",
    "To make the soup, chop three onions, fry them in butter, add water and salt, and wait until your guests complain.",
    "Whenever the river rose above the second step, the mayor sent a letter to the bishop and a boat to the baker.",
)


@lru_cache(maxsize=1)
def some_tokens(model):
    """Four sentences, cut to 20 tokens."""
    return torch.cat([model.to_tokens(text)[:, :20] for text in TEXTS])


def replaced(output, transcoder, acts):
    return decode(transcoder, acts)


def own_run(model, tokens, transcoders=(), write=None, start=1):
    """(logits, MLP inputs by block) of a run with torch hooks. From position `start` on, an MLP's output becomes what
    `write` makes of it, the transcoder and its latents."""
    inputs, changes = {}, {}

    def exchange(transcoder):
        block = layer_of(transcoder)

        def enters(mlp_in):
            inputs[block] = mlp_in.clone()

        def leaves(output):
            acts = encode(transcoder, inputs[block][:, start:])
            return torch.cat([output[:, :start], write(output[:, start:], transcoder, acts)], dim=1)

        changes[transcoder.cfg.metadata.hook_name] = enters
        if write:
            changes[transcoder.cfg.metadata.hook_name_out] = leaves

    for transcoder in transcoders:
        exchange(transcoder)
    with torch.no_grad():
        return run(model, tokens, None, changes), inputs


def latents_at(model, transcoder):
    """Latents of a transcoder on `some_tokens`, the first position included."""
    return encode(transcoder, read(model, some_tokens(model), transcoder.cfg.metadata.hook_name))


# 6.1

OWN_NAME = """
    The cache's keys are the bridge's names for a transcoder's latents: `model.get_sae_hook_name(transcoder)`, for
    instance `blocks.8.mlp.hook_out.hook_sae_acts_post`.
    """
SINK_REPLACED = """
    The first position was replaced too. It is the attention sink, which the transcoders have never seen: from
    `first_position(model)` on, and only there, the transcoder's output takes the MLP's place.
    """
NOTHING_REPLACED = """
    These are the model's own logits: nothing was replaced. Without the error term, the hook at `hook_name_out` must
    *return* the transcoder's output.
    """
REPLACED_ANYWAY = """
    These are the logits of a model whose MLP was replaced. With the error term on, what the transcoder gets wrong is
    added back, so that the MLP's own output stays.
    """
ADDED = "The transcoder's output was added to the MLP's. It must take its place."
LATE_BINDING = """
    Only the last transcoder's latents are there: hook functions made in a loop all see the loop's last transcoder.
    Python binds late, so make the pair of hooks in a function of its own that takes the transcoder.
    """
NO_BIAS = "The decoder's bias `b_dec` is missing: use `transcoder.decode(acts)`, which adds it."


def logits_and_latents(impl, model, transcoders, tokens, use_error_term):
    """What came back, as (logits, list of latents)."""
    result = impl.run_with_cache_with_transcoders(model, transcoders, tokens, use_error_term)
    logits, cache = expect.unpack(result, ("logits", "cache"))
    expect.that(
        isinstance(cache, dict),
        expected="cache: a dict from hook names to latents",
        returned=expect.describe(cache),
        why="the signature says so",
        hint="`run_with_cache_with_saes(..., return_cache_object=False)` gives a plain dict too.",
    )
    found = []
    for transcoder in transcoders:
        name = model.get_sae_hook_name(transcoder)
        expect.that(
            name in cache,
            expected=f"a cache with the key {name!r}",
            returned=f"keys {list(cache)[:6]}",
            why="latents are found under the bridge's own name for them",
            hint=LATE_BINDING if model.get_sae_hook_name(transcoders[-1]) in cache else OWN_NAME,
        )
        acts = expect.shape(
            cache[name],
            (*tokens.shape, transcoder.W_dec.shape[0]),
            name=f"the latents under {name!r}",
            dims=("batch", "seq", "d_sae"),
            why="an activation for each token and each latent",
        )
        found.append(acts.detach().cpu())
    logits = expect.shape(
        logits, (*tokens.shape, model.cfg.d_vocab), name="logits", dims=("batch", "seq", "d_vocab"), why="whole run"
    )
    return logits.detach().cpu(), found


@RUN_WITH_TRANSCODERS.check(
    "with the error term: everything is as it was",
    points=2,
    hint="""
        With the error term on, the logits are the model's own, and the latents are `transcoder.encode` of what the MLP
        reads: the activation at `transcoder.cfg.metadata.hook_name`.
        """,
)
def test_error_term_on(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.8"], some_tokens(model)[:1, :12]
    own, inputs = own_run(model, tokens, [transcoder])
    logits, (acts,) = logits_and_latents(impl, model, [transcoder], tokens, True)
    want = encode(transcoder, inputs[8])
    expect.close(
        acts[:, 1:],
        want[:, 1:],
        name="the latents from position 1 on",
        norm="whole",
        mistakes=[
            (
                want[:, 1:] * 0
                + (inputs[8].double() @ transcoder.W_enc.double() + transcoder.b_enc.double())[:, 1:].float(),
                "These are pre-activations: `transcoder.encode` applies the threshold too.",
            ),
        ],
        why="the MLP's input was read with a torch hook on the module and encoded by the definition",
        hint="""
            Is it the right activation? Encode what the MLP *reads*, at `hook_name`, not what it writes and not the
            stream before the norm.
            """,
    )
    expect.close(
        logits,
        own,
        name="the logits",
        norm="whole",
        why="reconstruction plus error is what was there",
        mistakes=lambda: [(own_run(model, tokens, [transcoder], replaced)[0], REPLACED_ANYWAY)],
    )


@RUN_WITH_TRANSCODERS.check(
    "without: the transcoder instead of the MLP",
    points=2,
    hint="""
        Without the error term, `transcoder.decode(latents)` takes the place of the activation at `hook_name_out`, from
        `first_position(model)` on.
        """,
)
def test_error_term_off(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.2"], some_tokens(model)[1:2, :12]
    logits, _ = logits_and_latents(impl, model, [transcoder], tokens, False)

    def other(write, start=1):
        return lambda: own_run(model, tokens, [transcoder], write, start)[0]

    expect.close(
        logits,
        own_run(model, tokens, [transcoder], replaced)[0],
        name="the logits",
        norm="whole",
        why="a torch hook on the MLP of block 2 returned the transcoder's output, but for the first position",
        mistakes=[
            (other(None), NOTHING_REPLACED),
            (other(replaced, start=0), SINK_REPLACED),
            (other(lambda output, transcoder, acts: output + decode(transcoder, acts)), ADDED),
            (other(lambda output, transcoder, acts: decode(transcoder, acts) - transcoder.b_dec), NO_BIAS),
        ],
    )


@RUN_WITH_TRANSCODERS.check(
    "several at once: the later one reads what the earlier one wrote",
    points=2,
    seconds=90,
    hint="""
        All hooks go into one run. Without the error term, the transcoder of block 5 must encode the stream that
        contains the output of the transcoder of block 3, not that of the untouched model. (And beware of late binding:
        hook functions made in a loop all see the loop's last transcoder, unless each is made by a function of its own.)
        """,
)
def test_several(impl, model, dictionaries):
    pair, tokens = [dictionaries["transcoder.3"], dictionaries["transcoder.5"]], some_tokens(model)[2:, :12]
    want, inputs = own_run(model, tokens, pair, replaced)
    logits, found = logits_and_latents(impl, model, pair, tokens, False)
    for transcoder, acts in zip(pair, found, strict=True):
        block = layer_of(transcoder)
        expect.close(
            acts[:, 1:],
            encode(transcoder, inputs[block])[:, 1:],
            name=f"the latents in block {block} from position 1 on",
            norm="whole",
            rtol=1e-2,  # a latent at its threshold may go either way
            why="both transcoders were put in place with torch hooks on the MLPs",
        )
    expect.close(
        logits, want, name="the logits", norm="whole", rtol=1e-2, why="both MLPs were replaced with torch hooks"
    )


@RUN_WITH_TRANSCODERS.check(
    "no latent is active on the sink",
    points=1,
    hint="""
        Set the latents before `first_position(model)` to zero: the transcoders never saw the first position, and what
        they say about it means nothing.
        """,
)
def test_sink_latents(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.2"], some_tokens(model)[:2, :6]
    for with_error in (True, False):
        _, (acts,) = logits_and_latents(impl, model, [transcoder], tokens, with_error)
        active = int((acts[:, 0] != 0).sum())
        expect.that(
            active == 0,
            expected="no active latent at position 0",
            returned=f"{active} active latents at position 0",
            why="`first_position(model)` is 1 in this profile",
        )
        expect.that(
            bool((acts[:, 1:] > 0).any()),
            expected="active latents at the other positions",
            returned="none",
            why="every other token activates some latents",
        )


@RUN_WITH_TRANSCODERS.check(
    "one run, nothing left behind, and clear words for what cannot be",
    points=1,
    hint="""
        `run_with_hooks` (or `with model.saes(...)`) takes off again what it puts on. Before running: `tokens.ndim` must
        be 2, and `transcoder.cfg.metadata.hook_name_out` must not be None; else raise a ValueError that says so.
        """,
)
def test_run_is_clean(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.8"], some_tokens(model)[:2, :6]
    with impl.watch(model) as seen:
        impl.run_with_cache_with_transcoders(model, [transcoder], tokens, False)
    expect.cost(
        seen,
        passes=1,
        why="reading and writing happen in the same run",
        hint="""
            One run does both: the transcoder reads at `hook_name`, and shortly afterwards, in the same run, writes at
            `hook_name_out`.
            """,
    )
    expect.raises(
        lambda: impl.run_with_cache_with_transcoders(model, [transcoder], tokens[0], True),
        "ValueError",
        why="`tokens` of rank 1 is one sequence, not a batch",
        hint="Look at `tokens.ndim` first, and raise a ValueError that says so.",
    )
    expect.raises(
        lambda: impl.run_with_cache_with_transcoders(model, [dictionaries["resid_pre.6"]], tokens, True),
        "ValueError",
        why="this dictionary reconstructs what it reads: it is not a transcoder",
        hint="Raise a ValueError that says so if `cfg.metadata.hook_name_out` is None.",
    )


# 6.2

BY_HAND = torch.tensor(
    [
        [9.0, 1.0, 2.0, 7.0, 6.0, 0.5],
        [0.0, 5.0, 8.0, 3.0, 4.0, 1.5],
    ]
)


def places_of(got, k, why):
    """Indices as a list of (row, column) pairs, after their shape and kind."""
    got = expect.shape(
        got,
        (k, 2),
        name="the indices",
        dims=("k", "row and column"),
        why=why,
        hint="""
            One row per place: `[row, column]`. A place in the flattened tensor becomes a pair by `divmod(place, seq)`.
            """,
    )
    expect.that(
        not got.is_floating_point(),
        expected="whole numbers",
        returned=expect.describe(got),
        why="indices are whole numbers",
        hint="Make the result an int64 tensor.",
    )
    return [tuple(pair) for pair in got.tolist()]


def demand_greedy(x, places, buffer, no_overlap, why, named="the indices"):
    """Each place in turn must be a largest one of those that are still allowed; among ties, any will do."""
    rows, width = x.shape
    free = torch.zeros(rows, width, dtype=torch.bool)
    free[:, buffer : width - buffer] = True
    for number, (row, column) in enumerate(places):
        shown = f"{named} {places}" if len(places) <= 8 else f"{named}, of which number {number} is {(row, column)}"
        expect.that(
            0 <= row < rows and 0 <= column < width,
            expected=f"rows from 0 to {rows - 1}, columns from 0 to {width - 1}",
            returned=shown,
            why=why,
            hint="""
                A place in the flattened tensor becomes (row, column) by `divmod(place, seq)`; seq is the *second* size.
                If you cut the margin off first, add `buffer` to the columns again.
                """,
        )
        if not free[row, column]:
            raise expect.CheckFailed(
                expected="places that are allowed",
                returned=shown,
                why=why,
                hint=_why_not_free(places, number, width, buffer, no_overlap) + (ALL_NEGATIVE if x.max() < 0 else ""),
            )
        best = x[free].max()
        expect.that(
            x[row, column].item() == best.item(),
            expected=f"next, a place with the value {best:g}, the largest that is allowed",
            returned=f"{shown}; x at {(row, column)} is {x[row, column]:g}",
            why=why,
            hint="""
                Go from large to small. After each choice, only places in the same row within `buffer` columns are out;
                all others, in other rows too, stay allowed. If you cut the margin off first, add `buffer` to the
                columns.
                """,
        )
        reach = buffer if no_overlap else 0
        free[row, max(0, column - reach) : column + reach + 1] = False


ALL_NEGATIVE = " (All entries of x are negative: what is excluded must count as -inf, not as 0, which would win.)"


def _why_not_free(places, number, width, buffer, no_overlap):
    row, column = places[number]
    if not buffer <= column < width - buffer:
        return f"""
            Column {column} lies in the margin: with buffer = {buffer}, only columns {buffer} to {width - buffer - 1}
            have enough neighbours on both sides.
            """
    if (row, column) in places[:number]:
        return """
            The same place comes twice. Where two entries are equal, each is a place of its own: look for places, not
            for values.
            """
    return f"""
        Two places in row {row} are within {buffer} columns of each other, which `no_overlap` forbids: after each
        choice, exclude the columns from column - buffer to column + buffer, both included, in that row.
        """


@GET_K_LARGEST.check(
    "twelve numbers, by hand",
    points=2,
    hint="""
        In [[9, 1, 2, 7, 6, 0.5], [0, 5, 8, 3, 4, 1.5]] the largest three are at (0, 0), (1, 2), (0, 3). With buffer = 1
        the first and last columns are out, and so are neighbours of what was taken: (1, 2), (0, 3), (1, 4).
        """,
)
def test_largest_by_hand(impl):
    for k, buffer, no_overlap, want in (
        (3, 0, True, [(0, 0), (1, 2), (0, 3)]),
        (3, 0, False, [(0, 0), (1, 2), (0, 3)]),
        (3, 1, True, [(1, 2), (0, 3), (1, 4)]),
        (3, 1, False, [(1, 2), (0, 3), (0, 4)]),
        (4, 1, True, [(1, 2), (0, 3), (1, 4), (0, 1)]),
    ):
        why = f"in this small tensor the answer can be seen: {want}"
        got = places_of(impl.get_k_largest_indices(BY_HAND, k, buffer, no_overlap), k, why)
        demand_greedy(BY_HAND, got, buffer, no_overlap, why)


@GET_K_LARGEST.check(
    "exact ties: every place once",
    points=1,
    hint="""
        Where entries are equal, each is a place of its own and any of them may come first, but none may come twice.
        Look for places (`argmax`, `topk`), not for places that have a certain *value*.
        """,
)
def test_ties(impl):
    x = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0, 3.0], [3.0, 0.0, 2.0, 2.0, 2.0, 1.0]])
    for k, buffer, no_overlap in ((7, 0, True), (7, 0, False), (3, 1, True), (4, 1, False)):
        why = "many entries of this tensor are equal"
        got = places_of(impl.get_k_largest_indices(x, k, buffer, no_overlap), k, why)
        demand_greedy(x, got, buffer, no_overlap, why)


@GET_K_LARGEST.check(
    "any tensor, any buffer",
    points=2,
    hint="""
        Choose the largest, exclude its neighbourhood of `buffer` columns on either side in its own row, choose again.
        Negative numbers are numbers: what is excluded must not come back as a zero.
        """,
)
def test_largest_any(impl):
    generator = torch.Generator().manual_seed(0)
    for rows, width, k, buffer, no_overlap in (
        (5, 20, 8, 2, True),
        (1, 30, 6, 2, True),
        (8, 9, 8, 3, True),
        (6, 12, 10, 3, False),
        (3, 16, 12, 0, True),
    ):
        x = torch.randint(-40, 0, (rows, width), generator=generator) / 4
        why = (
            f"x has shape ({rows}, {width}), all its entries are negative, buffer = {buffer}, no_overlap = {no_overlap}"
        )
        got = places_of(impl.get_k_largest_indices(x, k, buffer, no_overlap), k, why)
        demand_greedy(x, got, buffer, no_overlap, why)


@GET_K_LARGEST.check(
    "when there are not so many",
    points=1,
    hint="""
        Count what is free before you take the next one. If nothing is, or if `x` is not of rank 2, raise a ValueError:
        an endless loop, a shorter answer or a place that was excluded are all worse.
        """,
    seconds=10,
)
def test_largest_impossible(impl):
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    for k, buffer, no_overlap, there in ((13, 0, False, 12), (5, 1, True, 4), (3, 2, True, 2), (1, 3, True, 0)):
        expect.raises(
            lambda k=k, buffer=buffer, no_overlap=no_overlap: impl.get_k_largest_indices(x, k, buffer, no_overlap),
            "ValueError",
            why=f"""
                x has shape (2, 6); with buffer = {buffer} and no_overlap = {no_overlap} there are at most {there}
                places, and k = {k}
                """,
        )
    expect.raises(
        lambda: impl.get_k_largest_indices(x[0], 1, 0, True),
        "ValueError",
        why="x of rank 1 has no rows",
        hint="Raise a ValueError if `x.ndim` is not 2.",
    )


@GET_K_LARGEST.check(
    "two hundred thousand entries",
    points=1,
    seconds=60,
    hint="""
        Let torch look for the largest: `argmax` or `topk` of the whole tensor. Going through all entries in Python, or
        sorting them k times, takes far too long for real texts.
        """,
)
def test_largest_is_fast(impl):
    x = torch.rand(400, 512, generator=torch.Generator().manual_seed(2))
    with impl.watch() as seen:
        got = places_of(impl.get_k_largest_indices(x, 40, 5, True), 40, "x has shape (400, 512)")
    demand_greedy(x, got, 5, True, "x has shape (400, 512), k = 40, buffer = 5")
    expect.cost(
        seen,
        megabytes=40,
        why="x itself takes less than 1 MB",
        hint="A table of all pairs of places is much larger than x. Choose one place after the other.",
    )


@INDEX_WITH_BUFFER.check(
    "windows by hand",
    points=2,
    hint="For x = [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]], place (1, 2) and buffer = 1, the window is [11, 12, 13].",
)
def test_windows_by_hand(impl):
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [10.0, 11.0, 12.0, 13.0, 14.0]])
    indices = torch.tensor([[1, 2], [0, 1], [0, 3]])
    for buffer, want in (
        (1, [[11, 12, 13], [0, 1, 2], [2, 3, 4]]),
        (0, [[12], [1], [3]]),
    ):
        got = impl.index_with_buffer(x, indices, buffer)
        expect.shape(
            got,
            (3, 2 * buffer + 1),
            name="the windows",
            dims=("k", "window"),
            why="`buffer` entries on either side and the one in the middle",
            hint="""
                `torch.arange(-buffer, buffer + 1)` has 2 buffer + 1 entries: the upper end is not included, hence the +
                1.
                """,
        )
        expect.close(
            got,
            torch.tensor(want, dtype=torch.float32),
            name="the windows",
            why="the middle of each window is the entry at the place itself",
        )


@INDEX_WITH_BUFFER.check(
    "tokens stay tokens, and windows may touch the edge",
    points=1,
    hint="""
        Index x itself; do not write into a new float tensor. A window that ends exactly at the first or last column
        fits.
        """,
)
def test_windows_of_tokens(impl):
    x = torch.arange(24).reshape(3, 8)
    indices = torch.tensor([[2, 3], [0, 4], [2, 3], [1, 3]])
    got = impl.index_with_buffer(x, indices, 3)
    want = torch.stack([x[row, column - 3 : column + 4] for row, column in indices.tolist()])
    expect.equal(
        got, want, name="the windows", why="(0, 4) with 3 neighbours on either side reaches the last column, 7"
    )
    expect.dtype(got, torch.int64, name="the windows", why="x holds token ids")


@INDEX_WITH_BUFFER.check(
    "a window that does not fit",
    points=1,
    hint="""
        In Python, column -1 is the last column: a window that reaches beyond the beginning quietly wraps around to the
        end of the row. Check the columns yourself and raise a ValueError.
        """,
)
def test_windows_that_do_not_fit(impl):
    x = torch.arange(24).reshape(3, 8)
    for place in ([1, 1], [0, 6]):
        expect.raises(
            lambda place=place: impl.index_with_buffer(x, torch.tensor([[2, 4], place]), 2),
            "ValueError",
            why=f"the window of 2 columns on either side of column {place[1]} reaches beyond a row of 8",
        )


# 6.3


def brute_force(acts, latent, k, buffer, start):
    """[(act, row, column)] by going through all places of one latent, largest first."""
    rows, width = acts.shape[:2]
    places = [
        (acts[row, column, latent].item(), row, column)
        for row in range(rows)
        for column in range(max(buffer, start), width - buffer)
        if acts[row, column, latent] > 0
    ]
    chosen = []
    for act, row, column in sorted(places, key=lambda place: -place[0]):
        if len(chosen) < k and all(row != r or abs(column - c) > buffer for _, r, c in chosen):
            chosen.append((act, row, column))
    return chosen


def examples_of(impl, model, transcoder, tokens, latents, k, buffer):
    got = impl.max_activating_examples(model, transcoder, tokens, latents, k, buffer)
    expect.that(
        isinstance(got, dict) and set(got) == set(latents),
        expected=f"a dict with the keys {sorted(latents)}",
        returned=expect.describe(got),
        why="a list of places for each latent, found under its number (an int)",
        hint="""
            Keys are the latents' numbers as they were given, also for a latent that is never active: its list is empty.
            """,
    )
    for latent, found in got.items():
        good = isinstance(found, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 3 for one in found)
        expect.that(
            good,
            expected="a list of (activation, row, column)",
            returned=f"for latent {latent}: {expect.describe(found)}",
            why="the signature says so",
        )
    return {latent: [(float(a), int(r), int(c)) for a, r, c in found] for latent, found in got.items()}


@lru_cache(maxsize=2)
def chosen_latents(model, transcoder):
    """Some latents that are active at many places of `some_tokens`, some that are at few, one that never is."""
    acts = latents_at(model, transcoder)[:, 1:]
    count = (acts > 0).flatten(0, 1).sum(dim=0)
    many = count.argsort(descending=True)[:3].tolist()
    few = (count == 2).nonzero().flatten()[:2].tolist()
    never = (count == 0).nonzero().flatten()[:1].tolist()
    on_sink = latents_at(model, transcoder)[:, 0].sum(dim=0)
    sink = (on_sink * ((count > 0) & (count < 20))).argmax().item()
    return tuple(dict.fromkeys([*many, *few, *never, sink]))


LISTED = """
    For each latent: the largest activation of all rows and columns, then the next that is not within `buffer` columns
    of one that was taken, in the same row, and so on; only active places, at most k. Activations are those of
    `transcoder.encode(mlp_in)`, bias and threshold included.
    """
AROUND_THE_MODEL = """
    The loop over latents must not be around the model: one run gives the activations of all of them,
    `transcoder.encode(mlp_in)[..., latents]`. Batches of rows are fine, as long as each row runs once.
    """


def _diagnosis(acts, got, want, latent, k, buffer, start=1):
    places, wanted = [one[1:] for one in got], [one[1:] for one in want]
    if any(act <= 0 for act, *_ in got):
        return "Places where the latent is not active do not count: leave them out, even if the list gets short."
    if any(column < start for _, column in places):
        return """
            A place at the first position: that is the attention sink, which the transcoder has never seen. Positions
            before `first_position(model)` do not count.
            """
    if any(not buffer <= column < acts.shape[1] - buffer for _, column in places):
        return "A place in the margin: `buffer` columns on either side must be inside the row."
    near_by = [(a, b) for n, a in enumerate(places) for b in places[:n] if a[0] == b[0] and abs(a[1] - b[1]) <= buffer]
    if near_by:
        return f"Places {near_by[0]} are in the same row within buffer = {buffer} columns of each other."
    if len({row for row, _ in places}) == len(places) and len({row for row, _ in wanted}) < len(wanted):
        return """
            Each row gave one place at most. A row may give several, as long as they are more than `buffer` columns
            apart.
            """
    if sorted(places) == sorted(wanted) and places != wanted:
        return "The places are right, their order is not: strongest first."
    if len(got) > k:
        return "At most k places for each latent."
    return LISTED


@MAX_ACTIVATING.check(
    "the same as going through all places",
    points=3,
    hint=LISTED,
)
def test_examples(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.8"], some_tokens(model)
    latents, acts = list(chosen_latents(model, transcoder)), latents_at(model, transcoder)
    for k, buffer in ((4, 0), (5, 2)):
        got = examples_of(impl, model, transcoder, tokens, latents, k, buffer)
        for latent in latents:
            want = brute_force(acts, latent, k, buffer, start=1)
            hint = _diagnosis(acts, got[latent], want, latent, k, buffer)
            expect.that(
                [one[1:] for one in got[latent]] == [one[1:] for one in want],
                expected=f"places of latent {latent}: {[one[1:] for one in want]}",
                returned=f"{[one[1:] for one in got[latent]]}",
                why=f"all {acts[..., 0].numel()} places of these tokens were gone through, k = {k}, buffer = {buffer}",
                hint=hint,
            )
            expect.close(
                torch.tensor([one[0] for one in got[latent]]),
                torch.tensor([one[0] for one in want]),
                name=f"the activations of latent {latent}",
                rtol=1e-3,
                atol=1e-3,
                why="the MLP's input was read with a torch hook and encoded by the definition",
                hint="The numbers must be the latent's activations at these places, `transcoder.encode(mlp_in)`.",
            )


@MAX_ACTIVATING.check(
    "one pass, however many latents",
    points=2,
    hint=AROUND_THE_MODEL,
)
def test_one_pass(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.3"], some_tokens(model)
    latents = list(range(40))
    with impl.watch(model) as seen:
        examples_of(impl, model, transcoder, tokens, latents, 3, 1)
    expect.cost(seen, tokens=tokens.numel(), why="40 latents were asked for", hint=AROUND_THE_MODEL)
    expect.cost(
        seen,
        blocks=4,
        logits=False,
        why="the transcoder reads in block 3; nothing behind it matters",
        hint="Pass `stop_at_layer=L + 1` where L is the transcoder's block.",
    )


@MAX_ACTIVATING.check(
    "what cannot be asked for",
    points=1,
    hint="Raise a ValueError if `tokens.ndim` is not 2, and one if a latent's number is not below d_sae.",
)
def test_examples_bad_input(impl, model, dictionaries):
    transcoder, tokens = dictionaries["transcoder.0"], some_tokens(model)[:2, :6]
    expect.raises(
        lambda: impl.max_activating_examples(model, transcoder, tokens[0], [1], 2, 0),
        "ValueError",
        why="`tokens` of rank 1 is one sequence, not a batch",
    )
    d_sae = transcoder.W_dec.shape[0]
    for latent in (d_sae, -1):
        expect.raises(
            lambda latent=latent: impl.max_activating_examples(model, transcoder, tokens, [1, latent], 2, 0),
            "ValueError",
            why=f"the transcoder's latents have the numbers 0 to {d_sae - 1}, and {latent} was asked for",
        )


# 6.4 and 6.5


def ranked(got, want, k, *, token_of, what, why, mistakes, hint=None, any_constant=False):
    """Demand (values, token_ids) of the k largest of `want`; `mistakes`: what else may have been ranked, and hints."""
    values, ids = expect.unpack(got, ("values", "token_ids"))
    swapped = "The two are the wrong way round: values first, token ids second, as `topk` gives them."
    ids = expect.shape(ids, (k,), name="token_ids", dims=("k",), why=f"the {k} tokens with the largest {what}")
    expect.that(
        not ids.is_floating_point(),
        expected="token_ids: whole numbers",
        returned=expect.describe(ids),
        why="a token id is a whole number",
        hint=swapped,
    )
    values = expect.shape(values, (k,), name="values", dims=("k",), why=f"the {k} largest {what}, largest first")
    values, ids = values.detach().cpu().double(), ids.detach().cpu()
    inside = bool(((ids >= 0) & (ids < len(want))).all())
    best = want.topk(k)
    told = next((hint for wrong, hint in mistakes if torch.equal(wrong.topk(k).indices, ids)), hint)
    if inside and torch.equal(ids.sort().values, best.indices.sort().values) and not torch.equal(ids, best.indices):
        told = "The tokens are right, their order is not: largest value first."
    # Neighbours in the ranking may be equal within rounding.
    right = inside and torch.allclose(want[ids], best.values, rtol=1e-3, atol=1e-4) and len(set(ids.tolist())) == k
    expect.that(
        right,
        expected=f"token_ids {best.indices[:6].tolist()}..., that is {[token_of(i) for i in best.indices[:6]]}",
        returned=f"{ids[:6].tolist()}..., that is {[token_of(i) for i in ids[:6] if 0 <= i < len(want)]}",
        why=why,
        hint=told,
    )
    offset = (values - best.values).mean() if any_constant else 0.0
    told = next((hint for wrong, hint in mistakes if torch.allclose(wrong[ids].double(), values, rtol=1e-3)), hint)
    expect.close(
        (values - offset).float(),
        best.values.float(),
        name="values",
        rtol=1e-3,
        atol=1e-3,
        why=why,
        hint=told,
    )


FINAL_NORM = """
    This is the decoder row times the unembedding alone. Between the stream and the logits lies the final norm, and its
    weights differ from one coordinate to the next: multiply the row by `model.ln_final.weight` first.
    """
WRITES_NOT_READS = (
    "This looks at what the latent *reads*, its encoder column. The logit lens asks what it *writes*: the decoder row."
)
READS_NOT_WRITES = """
    This looks at what the latent *writes*, its decoder row. De-embedding asks what it *reads*: the encoder column,
    `sae.W_enc[:, latent_idx]`.
    """
PROBABILITIES = "These are probabilities. The logit lens gives logits: leave the softmax out."
SMALLEST = """
    These are the tokens with the smallest values, the most negative ones. `topk` gives the largest unless it is told
    otherwise. Or was it the absolute value that was ranked? A token that is pushed *down* is not a top token.
    """
BY_MAGNITUDE = (
    "These are ranked by absolute value. A token that is pushed *down* strongly is not a top token: no `abs()`."
)


def a_few_latents(model, transcoder):
    """Latents for which the mistakes would be seen."""
    return chosen_latents(model, transcoder)[:2]


@TOP_LOGITS.check(
    "decoder row, final norm, unembedding",
    points=2,
    hint="`(model.ln_final.weight * sae.W_dec[latent_idx]) @ model.W_U`, then the mean off, then `topk(k)`.",
)
def test_top_logits(impl, model, dictionaries):
    transcoder = dictionaries["transcoder.8"]
    for latent in a_few_latents(model, transcoder):
        written, read = transcoder.W_dec[latent].detach(), transcoder.W_enc[:, latent].detach()
        weight, W_U = model.ln_final.weight.detach(), model.W_U.detach()
        logits = (written * weight) @ W_U
        plain = written @ W_U
        ranked(
            impl.top_logits(model, transcoder, latent, 10),
            logits - logits.mean(),
            10,
            token_of=model.to_string,
            what="logits",
            any_constant=True,
            why=f"these are the logits of latent {latent}, computed anew",
            mistakes=[
                (plain, FINAL_NORM),
                (plain - plain.mean(), FINAL_NORM),
                ((read * weight) @ W_U, WRITES_NOT_READS),
                (read @ W_U, WRITES_NOT_READS),
                (-logits, SMALLEST),
                (logits.softmax(dim=0), PROBABILITIES),
                ((logits - logits.mean()).abs(), BY_MAGNITUDE),
                (logits.abs(), BY_MAGNITUDE),
            ],
        )


@TOP_LOGITS.check(
    "a residual dictionary has decoder rows too; k is what you ask for",
    points=1,
    hint="""
        Nothing in the logit lens is special to transcoders: `sae.W_dec[latent_idx]` and the model's own weights are all
        it needs. The result has exactly k entries.
        """,
)
def test_top_logits_resid(impl, model, dictionaries):
    sae = dictionaries["resid_pre.6"]
    weight, W_U = model.ln_final.weight.detach(), model.W_U.detach()
    logits = (sae.W_dec[7].detach() * weight) @ W_U
    plain = sae.W_dec[7].detach() @ W_U
    ranked(
        impl.top_logits(model, sae, 7, 3),
        logits - logits.mean(),
        3,
        token_of=model.to_string,
        what="logits",
        any_constant=True,
        why="latent 7 of the residual dictionary at layer 6, k = 3",
        mistakes=[(plain, FINAL_NORM), (plain - plain.mean(), FINAL_NORM), (-logits, SMALLEST)],
    )


def demand_limits(function, model, transcoder):
    vocabulary, d_sae = model.cfg.d_vocab, transcoder.W_dec.shape[0]
    expect.raises(
        lambda: function(model, transcoder, 0, vocabulary + 1),
        "ValueError",
        why=f"the vocabulary has {vocabulary} tokens, and k = {vocabulary + 1} were asked for",
        hint="Compare k with the size of the vocabulary and raise a ValueError.",
    )
    for latent in (d_sae, -1):
        expect.raises(
            lambda latent=latent: function(model, transcoder, latent, 5),
            "ValueError",
            why=f"the transcoder's latents have the numbers 0 to {d_sae - 1}, and {latent} was asked for",
            hint="""
                Raise a ValueError unless `0 <= latent_idx` and latent_idx is below the number of latents. In Python, -1
                means the last one.
                """,
        )


@TOP_LOGITS.check(
    "more tokens than there are, a latent that does not exist",
    points=1,
    hint="Raise a ValueError if k is larger than the vocabulary or if there is no such latent.",
)
def test_top_logits_limits(impl, model, dictionaries):
    demand_limits(impl.top_logits, model, dictionaries["transcoder.8"])


@TOP_DEEMBEDDINGS.check(
    "embeddings times encoder column",
    points=2,
    hint="`(model.W_E @ sae.W_enc[:, latent_idx]).topk(k)`: one number for each token of the vocabulary.",
)
def test_top_deembeddings(impl, model, dictionaries):
    transcoder = dictionaries["transcoder.8"]
    W_E = model.W_E.detach()
    for latent in a_few_latents(model, transcoder):
        read, written = transcoder.W_enc[:, latent].detach(), transcoder.W_dec[latent].detach()
        scores = W_E @ read
        unit = scores / W_E.norm(dim=1)
        ranked(
            impl.top_deembeddings(model, transcoder, latent, 10),
            scores,
            10,
            token_of=model.to_string,
            what="entries of W_E @ W_enc[:, latent_idx]",
            why=f"this is the product for latent {latent}, computed anew",
            mistakes=[
                (W_E @ written, READS_NOT_WRITES),
                (-scores, SMALLEST),
                (scores.abs(), BY_MAGNITUDE),
                (unit, "These are divided by the embeddings' lengths: a plain product is asked for."),
                (
                    unit / read.norm(),
                    "These are cosines: a plain product is asked for, with nothing divided by lengths.",
                ),
                (
                    scores + transcoder.b_enc[latent],
                    """
                    The encoder's bias is added. It is the same for all tokens and tells nothing about them: leave it
                    out.
                    """,
                ),
            ],
        )


@TOP_DEEMBEDDINGS.check(
    "more tokens than there are, a latent that does not exist",
    points=1,
    hint="Raise a ValueError if k is larger than the vocabulary or if there is no such latent.",
)
def test_top_deembeddings_limits(impl, model, dictionaries):
    demand_limits(impl.top_deembeddings, model, dictionaries["transcoder.8"])


# 6.6

SAMPLE = torch.arange(17, 49152, 701)


@lru_cache(maxsize=64)
def extended_by(impl, model):
    """(some rows, whether they want gradients, what it cost) of an implementation, made once: it takes seconds."""
    with impl.watch() as seen:
        got = impl.create_extended_embedding(model)
    got = expect.shape(
        got,
        tuple(model.W_E.shape),
        name="the extended embedding",
        dims=("d_vocab", "d_model"),
        why="a row for each token of the vocabulary",
        hint="`mlp` and `ln2` expect `[batch, seq, d_model]`: give them `e[None]` and take `[0]` of what comes back.",
    )
    return got[SAMPLE].detach().cpu().clone(), got.requires_grad, seen


def extended_rows(model, ids, *, norm=True, mlp=True, skip=True):
    """Rows before scaling, from the model's raw weights, in double precision; SwiGLU written out."""
    block = model.blocks[0]
    e = model.W_E[ids].detach().double()
    weight = block.ln2.weight.detach().double()
    x = e * (e.square().mean(dim=1, keepdim=True) + model.cfg.eps).rsqrt() * weight if norm else e
    parts = {name.split("_proj")[0].split(".")[-1]: value for name, value in _mlp_weights(block)}
    gate = x @ parts["gate"].T
    hidden = gate * torch.sigmoid(gate) * (x @ parts["up"].T)
    return (e if skip else 0 * e) + (hidden @ parts["down"].T if mlp else 0)


def _mlp_weights(block):
    original = block.mlp.original_component
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield name, getattr(original, name).weight.detach().double()


def in_units(rows):
    return rows / rows.square().mean(dim=1, keepdim=True).sqrt()


@EXTENDED_EMBEDDING.check(
    "embedding plus first MLP, scaled",
    points=3,
    seconds=180,
    hint="""
        Row t is `e + block.mlp(block.ln2(e))` with `block = model.blocks[0]`, divided by its standard deviation. The
        mean stays, since this model has an RMSNorm.
        """,
)
def test_extended_rows(impl, model):
    got, _, _ = extended_by(impl, model)
    raw = extended_rows(model, SAMPLE)
    want = in_units(raw)
    centred = raw - raw.mean(dim=1, keepdim=True)
    factors = got.double() / raw  # by column or for the whole, whatever they were computed from
    no_skip, no_norm = extended_rows(model, SAMPLE, skip=False), extended_rows(model, SAMPLE, norm=False)
    embedding = extended_rows(model, SAMPLE, mlp=False)
    mistakes = [
        (raw, "The rows are not scaled: divide each by its standard deviation."),
        (
            centred / centred.std(dim=1, keepdim=True),
            "The rows' means were taken off. This model's norm is an RMSNorm, which does not centre: the mean stays.",
        ),
        (
            raw / raw.norm(dim=1, keepdim=True),
            "The rows have length 1. Unit *standard deviation* is asked for, which is longer by the root of d_model.",
        ),
        (in_units(no_skip), "The embedding itself is missing: the MLP's output is *added* to it, as in the stream."),
        (no_skip, "The embedding itself is missing: the MLP's output is *added* to it, as in the stream."),
        (in_units(no_norm), "The MLP reads *normalised* rows: put `block.ln2` in front of it."),
        (in_units(embedding), "This is the embedding alone; the output of the first MLP has to be added."),
        (embedding, "This is the embedding alone; the output of the first MLP has to be added."),
        (raw * factors.median(), "All rows were divided by one number. Each row has a standard deviation of its own."),
        (
            raw * factors.median(dim=0).values,
            "Each *column* was scaled. Scale each row: `dim=1`, one number per token.",
        ),
    ]
    # Whether the deviation divides by d_model or d_model - 1, and is taken about the mean or about 0, is all the same.
    expect.close(
        got,
        want.float(),
        name=f"rows {SAMPLE[:3].tolist()}...",
        dims=("token", "d_model"),
        mistakes=[(wrong.float(), hint) for wrong, hint in mistakes],
        norm="whole",
        rtol=3e-3,
        why="these rows were computed from the raw weights in double precision, SwiGLU written out",
    )


@EXTENDED_EMBEDDING.check(
    "frugal, and without gradients",
    points=1,
    seconds=180,
    hint="""
        Go through `model.W_E` in slices of some thousand rows, under `torch.no_grad()`: for all rows at once, the MLP's
        inner activations alone take several times the result.
        """,
)
def test_extended_memory(impl, model):
    _, wants_gradient, seen = extended_by(impl, model)
    expect.cost(
        seen,
        megabytes=5 * model.W_E.numel() * 4 / 1e6,
        why="five times the result is allowed; the reference needs little more than twice the result",
    )
    expect.that(
        not wants_gradient,
        expected="a tensor that wants no gradient",
        returned="one with `requires_grad`",
        why="it is a table to look things up in; the graph behind it would stay in memory",
    )


# 6.7


@PULLBACK.check(
    "decoder rows times encoder column",
    points=2,
    hint="`p[i]` is the scalar product of `transcoder_from.W_dec[i]` and `transcoder_to.W_enc[:, latent_idx]`.",
)
def test_pullback(impl, model, dictionaries):
    earlier, later = dictionaries["transcoder.3"], dictionaries["transcoder.8"]
    for latent in a_few_latents(model, later):
        rows, column = earlier.W_dec.detach().double(), later.W_enc[:, latent].detach().double()
        want = torch.stack([(row * column).sum() for row in rows])
        cosines = want / rows.norm(dim=1) / column.norm()
        wrong_ends = later.W_dec.detach().double()[latent]
        expect.close(
            impl.pullback(earlier, later, latent),
            want.float(),
            name="the pullback",
            norm="whole",
            dims=("d_sae of the earlier one",),
            mistakes=[
                (
                    cosines.float(),
                    "These are cosines. A plain scalar product is asked for: nothing is divided by lengths.",
                ),
                (
                    (earlier.W_dec.double() @ wrong_ends).float(),
                    """
                    The later latent's *decoder* row was used: that is what it writes. What it reads is its encoder
                    column, `transcoder_to.W_enc[:, latent_idx]`.
                    """,
                ),
                (
                    (earlier.W_enc.double().T @ column).float(),
                    """
                    The earlier latents' *encoder* columns were used: that is what they read. What they write are the
                    rows of `transcoder_from.W_dec`.
                    """,
                ),
                (
                    (later.W_dec.double() @ earlier.W_enc[:, latent].double()).float(),
                    "The two transcoders are the wrong way round: the *earlier* one writes, the *later* one reads.",
                ),
                (
                    want.relu().float(),
                    "Negative entries count too: what is written may also hold the later latent down.",
                ),
            ],
            why=f"all scalar products with latent {latent} of block 8 were taken one by one",
        )


@PULLBACK.check(
    "no text, no order reversed",
    points=2,
    hint="""
        The block's number is in `transcoder.cfg.metadata.hook_name`. What is written in block 8 cannot be read in block
        3, nor in block 8 itself: raise a ValueError. And one if the later transcoder has no such latent.
        """,
)
def test_pullback_order(impl, model, dictionaries):
    earlier, later = dictionaries["transcoder.3"], dictionaries["transcoder.8"]
    for first, second in ((later, earlier), (later, later)):
        expect.raises(
            lambda first=first, second=second: impl.pullback(first, second, 0),
            "ValueError",
            why=f"transcoder_from lies in block {layer_of(first)}, transcoder_to in block {layer_of(second)}",
        )
    d_sae = later.W_enc.shape[1]
    for latent in (d_sae, -1):
        expect.raises(
            lambda latent=latent: impl.pullback(earlier, later, latent),
            "ValueError",
            why=f"the later transcoder's latents have the numbers 0 to {d_sae - 1}, and {latent} was asked for",
        )
    with impl.watch(model) as seen:
        impl.pullback(earlier, later, 0)
    expect.cost(
        seen,
        passes=0,
        megabytes=3,
        why="one column is asked for, and weights are all it needs",
        hint="Take the one column of `W_enc` *before* you multiply: the product of whole matrices takes 38 MB.",
    )


@INFLUENCE.check(
    "activations times pullback",
    points=2,
    hint="""
        `acts * pullback`, with the latents of `transcoder_from` on these tokens and zeros before
        `first_position(model)`.
        """,
)
def test_influence(impl, model, dictionaries):
    earlier, later, tokens = dictionaries["transcoder.3"], dictionaries["transcoder.8"], some_tokens(model)
    latent = a_few_latents(model, later)[0]
    acts = latents_at(model, earlier)
    p = (earlier.W_dec.double() @ later.W_enc[:, latent].double()).float()
    with_sink = acts * p
    want = with_sink.clone()
    want[:, 0] = 0
    active = (want != 0) * p
    expect.close(
        impl.influence(model, earlier, later, latent, tokens),
        want,
        name="the influence",
        norm="whole",
        dims=("batch", "seq", "d_sae"),
        mistakes=[
            (
                with_sink,
                """
                The first position counts here, the attention sink: set the activations before `first_position(model)`
                to zero.
                """,
            ),
            (active, "This is the pullback wherever a latent is active; it must be multiplied by *how* active it is."),
            (want.relu(), "Negative influences count too: an earlier latent may hold the later one down."),
            (want.abs(), "The sign tells whether the later latent is driven or held down: no `abs()`."),
        ],
        why="activations were read with torch hooks and multiplied with scalar products of the weights",
    )


@INFLUENCE.check(
    "frugal, clean, and clear about rank",
    points=1,
    hint="""
        The model need not go beyond the block of `transcoder_from`: `stop_at_layer` is its number plus 1. Raise a
        ValueError if `tokens.ndim` is not 2.
        """,
)
def test_influence_cost(impl, model, dictionaries):
    earlier, later, tokens = dictionaries["transcoder.3"], dictionaries["transcoder.8"], some_tokens(model)[:2, :8]
    with impl.watch(model) as seen:
        impl.influence(model, earlier, later, 0, tokens)
    expect.cost(
        seen,
        passes=1,
        blocks=4,
        logits=False,
        why="only the latents of block 3 are needed; the later transcoder enters by its weights",
    )
    expect.raises(
        lambda: impl.influence(model, earlier, later, 0, tokens[0]),
        "ValueError",
        why="`tokens` of rank 1 is one sequence, not a batch",
    )
    expect.raises(
        lambda: impl.influence(model, later, earlier, 0, tokens),
        "ValueError",
        why="transcoder_from lies in block 8, transcoder_to in block 3",
        hint="`pullback` raises a ValueError for transcoders in the wrong order: use it, before you run the model.",
    )
