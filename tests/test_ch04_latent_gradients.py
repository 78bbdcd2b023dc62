"""Checks of chapter 04. The oracles overwrite the stream with plain torch hooks on the model's blocks, many cases in
one pass, and measure slopes by finite differences. Where the machinery is the point, small random dictionaries stand in
for the course's: they reconstruct badly, and that makes a mixed-up stream easy to see."""

import torch

from tests.by_hand import counted, decode, dense_of, encode, from_first, parts, run, same_entries, sparse
from tests.by_hand import stand_in as stand_in_at
from utils import layer_of
from utils.checks import expect
from utils.checks.exercises import Exercise

LATENT_ACTS_TO_LATER_LATENT_ACTS = Exercise(
    "latent_acts_to_later_latent_acts",
    number="4.1",
    title="From latents to later latents",
    difficulty=3,
    importance=5,
    minutes=25,
    hints=(
        """
        Four steps: sparse parts to a dense tensor (your `SparseTensor`), dense tensor to a stream (`sae_from.decode`),
        stream to a later stream (the model, with a hook), later stream to latents (`sae_to.encode`). Then back to
        sparse.
        """,
        """
        The hook at `sae_from.cfg.metadata.hook_name` gets the model's own stream and returns what shall take its place:
        `torch.cat([resid[:, :first], reconstruction[:, first:]], dim=1)` with `first = first_position(model)`. Run with
        `stop_at_layer=L`, where `sae_to` reads `blocks.L.hook_resid_pre`: the model then returns just that stream.
        """,
        """
        `stream = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, replace)], stop_at_layer=L)`; `acts =
        sae_to.encode(stream)`; zeros for the positions before `first` (`torch.cat` again, so that autograd can follow);
        `later = mine.SparseTensor.from_dense(acts)`; `return later.values, (later.dense,)`. No `torch.no_grad()`
        anywhere: gradients shall pass.
        """,
    ),
)

LATENT_TO_LATENT_GRADIENTS = Exercise(
    "latent_to_latent_gradients",
    number="4.2",
    title="A Jacobian between active latents",
    difficulty=3,
    importance=5,
    minutes=25,
    hints=(
        """
        First the point at which to differentiate: one run of the untouched model, both streams kept, both encoded. Then
        differentiate your `latent_acts_to_later_latent_acts` there, by its first argument.
        """,
        """
        `torch.func.jacrev(function, argnums=0, has_aux=True)` gives a function that returns `(jacobian, aux)`: the
        Jacobian of the first thing your function returns, and the rest as it is. That is why the dense tensor comes in
        a tuple of its own.
        """,
        """
        `grads, (dense,) = jacrev(latent_acts_to_later_latent_acts, argnums=0, has_aux=True)(*acts_prev.sparse,
        sae_from, sae_to, model, tokens)` and `acts_next_recon = mine.SparseTensor.from_dense(dense)`. The true
        activations are `sae.encode` of the streams in the cache of `model.run_with_cache(tokens, names_filter=[...],
        stop_at_layer=...)`, with the sink position zeroed.
        """,
    ),
)

TOKENS_TO_LATENT_ACTS = Exercise(
    "tokens_to_latent_acts",
    number="4.3a",
    title="A volume knob for each token",
    difficulty=2,
    importance=4,
    minutes=15,
    hints=(
        """
        The same shape of function as before, with another way in: not a dictionary's latents, but a factor on each
        embedding. Nothing is reconstructed here.
        """,
        "Hook `hook_embed` and return `embeddings * token_scales[..., None]`.",
        """
        `stream = model.run_with_hooks(tokens, fwd_hooks=[('hook_embed', scale)], stop_at_layer=L)`, encode, zeros
        before `first_position(model)`, `SparseTensor.from_dense`, return `values, (dense,)`.
        """,
    ),
)

TOKEN_TO_LATENT_GRADIENTS = Exercise(
    "token_to_latent_gradients",
    number="4.3b",
    title="Which tokens does a latent stand on?",
    difficulty=2,
    importance=4,
    minutes=15,
    hints=(
        "Differentiate `tokens_to_latent_acts` by its first argument, at scales of 1.",
        """
        The Jacobian of an output of shape `[nnz]` by an input of shape `[batch, seq]` has the shape `[nnz, batch,
        seq]`. The latents are wanted last: `movedim(0, -1)`.
        """,
        """
        `ones = torch.ones(tokens.shape)`; `grads, (dense,) = jacrev(tokens_to_latent_acts, argnums=0,
        has_aux=True)(ones, tokens, sae, model)`; `return grads.movedim(0, -1), mine.SparseTensor.from_dense(dense)`.
        """,
    ),
)

LATENT_ACTS_TO_LOGITS = Exercise(
    "latent_acts_to_logits",
    number="4.4a",
    title="From latents to logits",
    difficulty=2,
    importance=4,
    minutes=15,
    hints=(
        """
        The first half is that of 4.1: decode, and let the reconstruction take the stream's place. The second half is
        shorter: let the model run to its end.
        """,
        """
        Without `stop_at_layer`, `run_with_hooks` returns logits of shape `[1, seq, d_vocab]`. What comes next is
        predicted at the last position: `[0, -1]`.
        """,
        """
        `logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, replace)])[0, -1]`; `return logits[token_ids],
        (logits,)`.
        """,
    ),
)

LATENT_TO_LOGIT_GRADIENTS = Exercise(
    "latent_to_logit_gradients",
    number="4.4b",
    title="What speaks for the answer?",
    difficulty=3,
    importance=4,
    minutes=20,
    hints=(
        """
        The k tokens are chosen by the untouched model: its answer is the one to be explained. What is differentiated is
        the model with the reconstruction in it.
        """,
        """
        Three runs, no more: one that reads the stream and gives the true latents, one (it may be the same) that gives
        the true logits, and the one inside `jacrev(latent_acts_to_logits, argnums=0, has_aux=True)`.
        """,
        """
        `logits = model(tokens)[0, -1]`; `token_ids = logits.topk(k).indices`; `grads, (logits_recon,) =
        jacrev(...)(*acts.sparse, sae, model, tokens, token_ids)`. The rows of `grads` follow `token_ids` by themselves.
        """,
    ),
)

GRADIENT_VS_ABLATION = Exercise(
    "gradient_vs_ablation",
    number="4.5",
    title="The gradient's word, and the knife's",
    difficulty=4,
    importance=5,
    minutes=30,
    hints=(
        """
        `predicted` is one line with what you have: the gradient of one logit, times the activations. For `actual`,
        think about what the dictionary's error term does when one latent is set to zero: it stays as it is. So only one
        thing leaves the stream.
        """,
        """
        What leaves is the latent's share: its activation times its decoder row, at its own position. So a hook at the
        dictionary's place takes `acts.values[j] * sae.W_dec[latent]` away from `resid[:, position]`. Run once without
        and once for each latent, and subtract: logit before minus logit after.
        """,
        """
        One run for each latent is right but slow. A hook may return a larger batch than it was given: `resid =
        resid.repeat(n, 1, 1)`, then `resid[torch.arange(n), position] -= share`, and the later blocks run n cases at
        once, the earlier ones only one. Thirty to sixty at a time fit into memory.
        """,
    ),
)

JACOBIAN_PLAN = Exercise(
    "jacobian_plan",
    number="4.6a",
    title="Forward or reverse?",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        """
        Forward mode pushes one *input* direction through the function and gets a column. Reverse mode pulls one
        *output* direction back and gets a row. Which are fewer, columns or rows?
        """,
        """
        As many directions at once as fit the budget: a whole number of them, rounded *down*; but no more than there
        are. And the number of chunks is rounded *up*.
        """,
        """
        `directions = min(n_inputs, n_outputs)`; `chunk = min(directions, budget_bytes // bytes_per_direction)`; a
        ValueError if that is 0; `n_chunks = math.ceil(directions / chunk)`.
        """,
    ),
)

JACOBIAN_BLOCK = Exercise(
    "jacobian_block",
    number="4.6b",
    title="Pay for the smaller side",
    difficulty=5,
    importance=3,
    minutes=45,
    hints=(
        """
        Make a function of the chosen inputs alone, which returns the chosen outputs alone: `f(some) = values at fixed
        places`. Then it has `len(columns)` inputs and `len(rows)` outputs, and either mode applies.
        """,
        """
        Under `vmap` a function may not ask which entries are non-zero, since the answer's length would differ from case
        to case. So run once first to learn the places of the later latents (`dense.nonzero()[rows]`), and in `f` index
        the dense encoding with them. The inputs go in with `values.index_put((columns,), some)`.
        """,
        """
        Forward: `vmap(lambda d: torch.func.jvp(f, (x,), (d,))[1])` on rows of `torch.eye(len(columns))`, `chunk` rows
        at a time, concatenated and transposed. Reverse: `_, pull = torch.func.vjp(f, x)`, then `vmap(pull)` on rows of
        `torch.eye(len(rows))`.
        """,
    ),
)


# How the checks read and change the model: `tests.by_hand`, with cases of one prompt side by side in a batch.


def stand_in(layer, d_sae=48, k=36, **options):
    """A random dictionary of the stream. About half of its pre-activations are positive, so that the number of active
    latents is not the same everywhere."""
    return stand_in_at(f"blocks.{layer}.hook_resid_pre", d_sae=d_sae, k=k, **options)


def stream(model, tokens, stop, at=None, change=None):
    """What enters block `stop`, or the logits if `stop` is None, after what enters block `at` was changed."""
    if at is not None and at == stop:
        return change(run(model, tokens, stop))
    with torch.no_grad():
        return run(model, tokens, stop, {} if at is None else {f"blocks.{at}.hook_resid_pre": change})


def true_acts(model, tokens, sae, sink=False):
    """Dense true activations; those at the sink only if they are asked for."""
    acts = encode(sae, stream(model, tokens, layer_of(sae)))
    return acts if sink else counted(model, acts)


def spliced(model, tokens, sae, dense, stop, sink="kept"):
    """The stream at `stop`, or logits, with the reconstruction of `dense` in place; the sink kept or reconstructed too.
    One prompt may be given many cases of `dense`."""
    reconstruction = decode(sae, dense)

    def change(entering):
        return from_first(model, entering, reconstruction) if sink == "kept" else reconstruction

    return stream(model, tokens, stop, layer_of(sae), change)


def later_acts(model, tokens, sae_from, sae_to, dense):
    return counted(model, encode(sae_to, spliced(model, tokens, sae_from, dense, layer_of(sae_to))))


SINK_COUNTED = """
    Latents at the first position are among the active ones. That is the attention sink, on which these dictionaries
    were never trained: zero their activations at positions before `first_position(model)`.
    """
SINK_RECONSTRUCTED = """
    The stream at the first position was replaced too. The dictionary never saw the attention sink: there the stream
    passes through untouched. Keep `resid[:, :first]` with `first = first_position(model)`.
    """
NOT_REPLACED = """
    These are the later latents of the *untouched* model: the reconstruction has not taken the stream's place. Does your
    hook return a tensor? A hook that returns nothing changes nothing.
    """
RECOMPUTED = """
    These belong to the prompt's own activations, not to those that were handed over. The function must decode
    `latent_acts_nonzero`, whatever the prompt would give.
    """
RECONSTRUCTION_AS_TRUE = """
    These are the activations with the reconstruction in place of the stream. The true ones come from a run that nothing
    was put into (or with the error term on).
    """


def same_true_entries(acts, model, tokens, sae):
    same_entries(
        acts,
        true_acts(model, tokens, sae),
        name="acts",
        why="the untouched model's latents",
        mistakes=[(true_acts(model, tokens, sae, sink=True), SINK_COUNTED)],
    )


TRANSPOSED = "The matrix is transposed: a row for each output (what is differentiated), a column for each input."
TIMES_ACTS = (
    "These are gradients times activations. Here the bare derivative is asked for: multiply later, where needed."
)


def same_slopes(grads, function, x, why, name="grads", step=1e-2, outputs="later latents"):
    """Hold a Jacobian [n_out, n_in] against finite differences in three directions. `function` takes rows of inputs
    [m, n_in] to rows of outputs [m, n_out]; one that is zero at either end has a kink on the way and is left out."""
    directions = torch.randn(3, len(x), generator=torch.Generator().manual_seed(4))
    middle, ups, downs = function(torch.cat([x[None], x + step * directions, x - step * directions])).split((1, 3, 3))
    n_out = middle.shape[1]
    shapes_differ = isinstance(grads, torch.Tensor) and grads.shape == (len(x), n_out) != (n_out, len(x))
    dims, hint = (outputs, "inputs"), TRANSPOSED if shapes_differ else None
    grads = expect.shape(grads, (n_out, len(x)), name=name, dims=dims, why=why, hint=hint).detach().cpu()
    smooth = (ups != 0) & (downs != 0)
    measured = (ups - downs) / (2 * step)

    def follows(jacobian, tolerance):
        pairs = zip(directions @ jacobian.T, measured, smooth, strict=True)
        return [expect.agree(got[at], want[at], norm="largest", rtol=tolerance) for got, want, at in pairs]

    repaired = [
        (grads / x.clamp_min(1e-6), TIMES_ACTS),
        (-grads, "The sign is the wrong way round: the derivative says how the output grows when the input does."),
        *([(grads.T, TRANSPOSED)] if n_out == len(x) else []),
    ]
    for number, right in enumerate(follows(grads, 0.03)):
        if not right:
            at = smooth[number]
            expect.close(
                (grads @ directions[number])[at],
                measured[number][at],
                name=f"`{name} @ direction`, what a small step in that direction does, as measured,",
                norm="largest",
                rtol=0.03,
                why=why,
                hint=next((hint for jacobian, hint in repaired if all(follows(jacobian, 0.05))), None),
            )


EIFFEL = "The Eiffel"  # four tokens with the special one
TOWER = "The Eiffel tower is in"


def rank_error(call):
    expect.raises(
        call,
        "ValueError",
        why="one prompt without its batch axis has rank 1: say so in words, before the model trips over it",
        hint="""
            Begin with `if tokens.ndim != 2: raise ValueError(...)`, and let the text say what shape `tokens` must have.
            """,
    )


def order_error(call):
    expect.raises(
        call,
        "ValueError",
        why="latents do not depend on later ones: a dictionary at a later layer was given as the earlier one",
        hint="""
            Compare the layers in the two hook names, and raise a ValueError that says which dictionary must be at an
            earlier layer.
            """,
    )


def empty_error(call):
    expect.raises(
        call,
        "ValueError",
        why="the first special token alone has no latent that counts, so there is nothing to differentiate",
        hint="If no latent is active (`acts.values` is empty), raise a ValueError that says so.",
    )


def cheap(seen, passes, blocks, why):
    expect.cost(seen, passes=passes, why=why)
    expect.cost(seen, blocks=blocks, why=why, hint=expect.STOP_EARLY)


# 4.1


def changed(dense):
    """Activations that no prompt gives: some of the true ones taken away, the others made weaker."""
    values, indices, shape = sparse(dense)
    keep = torch.arange(len(values)) % 3 != 1
    return dense_of(0.7 * values[keep], indices[keep], shape)


def splice_mistakes(model, tokens, sae_from, sae_to, dense):
    """Dense later activations of people who have made a mistake, with their hints."""
    everywhere = spliced(model, tokens, sae_from, dense, layer_of(sae_to), sink="replaced")
    kept = spliced(model, tokens, sae_from, dense, layer_of(sae_to))
    with_sink, all_wrong = encode(sae_to, kept), encode(sae_to, everywhere)
    late = spliced(model, tokens, sae_from, dense, layer_of(sae_to) + 1)
    return [
        (with_sink, SINK_COUNTED),
        (counted(model, all_wrong), SINK_RECONSTRUCTED),
        (all_wrong, SINK_RECONSTRUCTED),
        (true_acts(model, tokens, sae_to), NOT_REPLACED),
        (
            counted(model, encode(sae_to, late)),
            """
            The model ran one block too far: `stop_at_layer=L` stops in front of block L, and that is where
            `blocks.L.hook_resid_pre` is.
            """,
        ),
        (later_acts(model, tokens, sae_from, sae_to, true_acts(model, tokens, sae_from)), RECOMPUTED),
    ]


@LATENT_ACTS_TO_LATER_LATENT_ACTS.check(
    "what the later dictionary sees",
    points=2,
    hint="""
        Decode, put the reconstruction in place of the stream by a hook (not at the sink), run up to the later
        dictionary's layer, encode.
        """,
)
def test_later_latents(impl, model):
    tokens, sae_from, sae_to = model.to_tokens(TOWER), stand_in(3), stand_in(5)
    dense = changed(true_acts(model, tokens, sae_from))
    values, aux = expect.unpack(
        impl.latent_acts_to_later_latent_acts(*sparse(dense), sae_from, sae_to, model, tokens), ("values", "(dense,)")
    )
    want = later_acts(model, tokens, sae_from, sae_to, dense)
    (got,) = expect.unpack(aux, ("dense",))
    expect.close(
        got,
        want,
        name="the dense later activations",
        norm="largest",
        dims=("batch", "seq", "d_sae"),
        why="""
            a torch hook on block 3 overwrote the stream with the reconstruction; two of three latents were handed over,
            weakened to 0.7
            """,
        mistakes=lambda: splice_mistakes(model, tokens, sae_from, sae_to, dense),
    )
    as_listed = sparse(torch.as_tensor(got).detach())[0]
    expect.close(
        values,
        as_listed,
        name="`values`",
        norm="largest",
        dims=("nnz",),
        why="the first result holds the non-zero entries of the dense one, in row-major order",
        hint="Take them from `mine.SparseTensor.from_dense(dense).values`.",
    )


@LATENT_ACTS_TO_LATER_LATENT_ACTS.check(
    "with the course's dictionaries, on two prompts at once",
    points=1,
    hint="Everything has a batch axis; rows must not mix. An index is (row, position, latent).",
)
def test_later_latents_batch(impl, model, dictionaries):
    tokens = model.to_tokens(["The Eiffel", "In Paris,"])
    sae_from, sae_to = dictionaries["resid_pre.3"], dictionaries["resid_pre.6"]
    dense = true_acts(model, tokens, sae_from)
    _, aux = expect.unpack(
        impl.latent_acts_to_later_latent_acts(*sparse(dense), sae_from, sae_to, model, tokens), ("values", "(dense,)")
    )
    (got,) = expect.unpack(aux, ("dense",))
    expect.close(
        got,
        later_acts(model, tokens, sae_from, sae_to, dense),
        name="the dense later activations",
        norm="largest",
        dims=("batch", "seq", "d_sae"),
        why="the same with torch hooks, for both prompts",
        mistakes=lambda: splice_mistakes(model, tokens, sae_from, sae_to, dense)[:5],
    )


@LATENT_ACTS_TO_LATER_LATENT_ACTS.check(
    "gradients pass",
    points=1,
    hint="""
        No `torch.no_grad()`, no `.detach()`, no writing into a tensor in place, and
        `SparseTensor.from_sparse(...).dense` must be computed from the values.
        """,
)
def test_later_latents_differentiable(impl, model):
    tokens, sae_from, sae_to = model.to_tokens(EIFFEL), stand_in(3), stand_in(5)
    values, indices, shape = sparse(true_acts(model, tokens, sae_from))
    leaf = values.clone().requires_grad_()
    result, _ = expect.unpack(
        impl.latent_acts_to_later_latent_acts(leaf, indices, shape, sae_from, sae_to, model, tokens),
        ("values", "(dense,)"),
    )
    result = expect.tensor(result, name="`values`")
    expect.that(
        result.requires_grad,
        expected="a result that autograd can follow back to `latent_acts_nonzero`",
        returned="a result without a graph",
        why="the next exercise differentiates this function",
    )

    def total(some):
        return later_acts(model, tokens, sae_from, sae_to, dense_of(some, indices, shape)).sum(dim=(1, 2))[:, None]

    (gradient,) = torch.autograd.grad(result.sum(), leaf)
    same_slopes(
        gradient[None],
        total,
        values,
        name="the gradient of `values.sum()`",
        outputs="the sum",
        why="small steps of the earlier activations move the sum of the later ones so much",
    )


@LATENT_ACTS_TO_LATER_LATENT_ACTS.check(
    "one pass, no further than needed",
    points=1,
    hint="One run of the model with one hook is enough.",
)
def test_later_latents_cost(impl, model):
    tokens, sae_from, sae_to = model.to_tokens(EIFFEL), stand_in(3), stand_in(5)
    dense = true_acts(model, tokens, sae_from)
    with impl.watch(model) as seen:
        result = impl.latent_acts_to_later_latent_acts(*sparse(dense), sae_from, sae_to, model, tokens)
    expect.unpack(result, ("values", "(dense,)"))
    cheap(seen, 1, 6, why="the later dictionary reads what enters block 5, and one run gives it")


@LATENT_ACTS_TO_LATER_LATENT_ACTS.check(
    "bad input is refused in words",
    points=1,
    hint="""
        Two demands: `tokens` of rank 2, and `sae_from` at an earlier layer than `sae_to`. The hook names hold the
        layers.
        """,
)
def test_later_latents_errors(impl, model):
    tokens, early, late = model.to_tokens(EIFFEL), stand_in(3), stand_in(5)
    some = sparse(true_acts(model, tokens, early))
    rank_error(lambda: impl.latent_acts_to_later_latent_acts(*some, early, late, model, tokens[0]))
    order_error(lambda: impl.latent_acts_to_later_latent_acts(*some, late, early, model, tokens))


# 4.2

FOUR = ("grads", "acts_prev", "acts_next", "acts_next_recon")


def latent_function(model, tokens, sae_from, sae_to, dense):
    """The later activations, at the places active for `dense`, as a function of its non-zero entries."""
    _, indices, shape = sparse(dense)
    at = later_acts(model, tokens, sae_from, sae_to, dense).nonzero()[:, 1:].unbind(dim=1)
    return lambda some: later_acts(model, tokens, sae_from, sae_to, dense_of(some, indices, shape))[:, *at]


@LATENT_TO_LATENT_GRADIENTS.check(
    "three sets of active latents",
    points=2,
    seconds=60,
    hint="""
        `acts_prev` and `acts_next` come from the untouched model, `acts_next_recon` from your function of exercise 4.1.
        """,
)
def test_gradient_acts(impl, model):
    tokens, sae_from, sae_to = model.to_tokens("In Paris,"), stand_in(3, seed=1), stand_in(5, seed=1)
    result = impl.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    _, prev, following, recon = expect.unpack(result, FOUR)
    before, after = true_acts(model, tokens, sae_from), true_acts(model, tokens, sae_to)
    through = later_acts(model, tokens, sae_from, sae_to, before)
    sink_before, sink_after = (true_acts(model, tokens, sae, sink=True) for sae in (sae_from, sae_to))
    same_entries(
        prev,
        before,
        name="acts_prev",
        why="the stream at layer 3 was read and encoded",
        mistakes=[(sink_before, SINK_COUNTED)],
    )
    same_entries(
        following,
        after,
        name="acts_next",
        why="the stream at layer 5 of the untouched model was read and encoded",
        mistakes=[(sink_after, SINK_COUNTED), (through, RECONSTRUCTION_AS_TRUE)],
    )
    same_entries(
        recon,
        through,
        name="acts_next_recon",
        why="the stream at layer 3 was overwritten with the reconstruction, and what came to layer 5 was encoded",
        mistakes=lambda: splice_mistakes(model, tokens, sae_from, sae_to, before),
    )


WRONG_ROWS = """
    There is a row for each of the latents that are active in the *untouched* model. Only what is computed from the
    reconstruction can be differentiated: rows follow `acts_next_recon`.
    """
DENSE_ROWS = """
    The Jacobian holds latents that are not active as well. Differentiate between active entries only: from
    `acts_prev.values` to the first result of `latent_acts_to_later_latent_acts`.
    """


@LATENT_TO_LATENT_GRADIENTS.check(
    "gradients against small steps",
    points=3,
    seconds=60,
    hint="`jacrev(latent_acts_to_later_latent_acts, argnums=0, has_aux=True)` at the true earlier activations.",
)
def test_gradients(impl, model):
    tokens, sae_from, sae_to = model.to_tokens(EIFFEL), stand_in(3), stand_in(5)
    grads = expect.unpack(impl.latent_to_latent_gradients(tokens, sae_from, sae_to, model), FOUR)[0]
    dense, after = true_acts(model, tokens, sae_from), true_acts(model, tokens, sae_to)
    function, x = latent_function(model, tokens, sae_from, sae_to, dense), sparse(dense)[0]
    grads = expect.tensor(grads, name="grads")
    wanted = (function(x[None]).shape[1], len(x))
    if tuple(grads.shape) == (int((after != 0).sum()), len(x)) != wanted:
        expect.shape(grads, wanted, name="grads", dims=("nnz_later", "nnz"), why="rows are latents", hint=WRONG_ROWS)
    if grads.ndim > 2 or len(grads) == after.numel():
        expect.shape(grads, wanted, name="grads", dims=("nnz_later", "nnz"), why="rows are latents", hint=DENSE_ROWS)
    same_slopes(
        grads,
        function,
        x,
        why="""
            row i is the later latent `acts_next_recon.indices[i]`, column j the earlier one `acts_prev.indices[j]`; a
            torch hook put slightly changed reconstructions into the model
            """,
    )


@LATENT_TO_LATENT_GRADIENTS.check(
    "gradients between the course's dictionaries",
    points=2,
    seconds=60,
    hint="Nothing may depend on the dictionaries' size or kind: decode and encode by their own methods.",
)
def test_gradients_real(impl, model, dictionaries):
    tokens = model.to_tokens(EIFFEL)
    sae_from, sae_to = dictionaries["resid_pre.3"], dictionaries["resid_pre.6"]
    grads = expect.unpack(impl.latent_to_latent_gradients(tokens, sae_from, sae_to, model), FOUR)[0]
    dense = true_acts(model, tokens, sae_from)
    same_slopes(
        grads,
        latent_function(model, tokens, sae_from, sae_to, dense),
        sparse(dense)[0],
        why="the later latents were measured after small steps of the earlier ones",
    )


@LATENT_TO_LATENT_GRADIENTS.check(
    "nothing looks ahead, and prompts do not meet",
    points=1,
    seconds=60,
    hint="""
        An entry can be non-zero only where the later latent is in the same row and at the same position or further
        right. If others are, rows or columns are out of order.
        """,
)
def test_gradients_causal(impl, model):
    tokens, sae_from, sae_to = model.to_tokens(["The Eiffel", "In Paris,"]), stand_in(3), stand_in(5)
    grads, prev, _, recon = expect.unpack(impl.latent_to_latent_gradients(tokens, sae_from, sae_to, model), FOUR)
    before, after = parts(prev, "acts_prev")[1], parts(recon, "acts_next_recon")[1]
    grads = expect.shape(
        grads, (len(after), len(before)), name="grads", dims=("nnz_later", "nnz"), why="a row for each later latent"
    )
    reachable = (after[:, None, 0] == before[None, :, 0]) & (after[:, None, 1] >= before[None, :, 1])
    same = reachable & (after[:, None, 1] == before[None, :, 1])
    size = grads.detach().abs()
    expect.that(
        bool(size[~reachable].max() <= 1e-6 * size.max()),
        expected="zeros where the earlier latent is in another prompt, or at a later position",
        returned=f"entries there up to {size[~reachable].max().item():.3g}",
        why="attention looks back only, and prompts of a batch do not see each other",
    )
    expect.that(
        bool(size[same].max() > 0 and size[reachable & ~same].max() > 0),
        expected="non-zero entries within a token, and from a token to later ones",
        returned=f"at most {size[same].max().item():.3g} within, {size[reachable & ~same].max().item():.3g} across",
        why="MLPs and the stream act within a token, attention across",
    )
    alone = expect.unpack(impl.latent_to_latent_gradients(tokens[1:], sae_from, sae_to, model), FOUR)[0]
    expect.close(
        grads[after[:, 0] == 1][:, before[:, 0] == 1],
        expect.tensor(alone, name="grads").detach(),
        name="the second prompt's block of `grads`",
        norm="largest",
        why="your function gives this for the second prompt alone",
    )


@LATENT_TO_LATENT_GRADIENTS.check(
    "few passes, no hook left",
    points=1,
    seconds=60,
    hint="""
        The model need not run once for each latent: `jacrev` does one forward pass and pulls all rows back through it.
        """,
)
def test_gradients_cost(impl, model):
    tokens, sae_from, sae_to = model.to_tokens(EIFFEL), stand_in(3), stand_in(5)
    with impl.watch(model) as seen:
        result = impl.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    expect.unpack(result, FOUR)
    cheap(seen, 16, 6, why="one run gives both true activations, one more is differentiated; the bound is generous")


@LATENT_TO_LATENT_GRADIENTS.check(
    "bad input is refused in words",
    points=1,
    seconds=60,
    hint="""
        `tokens` of the wrong rank, the later dictionary given as the earlier one, no active latent at all: three
        ValueErrors.
        """,
)
def test_gradients_errors(impl, model):
    tokens, early, late = model.to_tokens(EIFFEL), stand_in(3), stand_in(5)
    rank_error(lambda: impl.latent_to_latent_gradients(tokens[0], early, late, model))
    order_error(lambda: impl.latent_to_latent_gradients(tokens, late, early, model))
    empty_error(lambda: impl.latent_to_latent_gradients(tokens[:, :1], early, late, model))


# 4.3


def with_scales(model, tokens, sae, scales):
    """Dense latents if each token's embedding is multiplied by its scale."""
    scaled = stream(model, tokens, layer_of(sae), 0, lambda entering: entering * scales[..., None])
    return counted(model, encode(sae, scaled))  # many cases of one prompt too


SCALED_LATE = """
    The scales act on the stream where the dictionary reads it. Tokens enter at the very beginning: scale the
    embeddings, `hook_embed`, and let the blocks run on that.
    """
SCALES_UNUSED = "The scales have no effect. Does your hook return the scaled embeddings?"


@TOKENS_TO_LATENT_ACTS.check(
    "each token with its own factor",
    points=2,
    hint="""
        The hook at `hook_embed` returns `embeddings * token_scales[..., None]`; then run up to the dictionary and
        encode.
        """,
)
def test_token_scales(impl, model, dictionaries):
    tokens, sae = model.to_tokens(["The Eiffel", "In Paris,"]), dictionaries["resid_pre.6"]
    for scales in (torch.tensor([[1.0, 0.5, 2.0, 1.0], [1.5, 1.0, 1.0, 0.25]]), torch.ones(2, 4)):
        values, aux = expect.unpack(impl.tokens_to_latent_acts(scales, tokens, sae, model), ("values", "(dense,)"))
        (got,) = expect.unpack(aux, ("dense",))
        late = stream(model, tokens, 6) * scales[..., None]
        with_sink = encode(sae, stream(model, tokens, 6, 0, lambda entering, by=scales: entering * by[..., None]))
        whole = stream(model, tokens, 6, 0, lambda entering, by=scales: entering * by.mean())
        expect.close(
            got,
            with_scales(model, tokens, sae, scales),
            name="the dense latents",
            norm="largest",
            dims=("batch", "seq", "d_sae"),
            why=f"a torch hook on block 0 multiplied the embeddings by {scales.tolist()}",
            mistakes=[
                (with_sink, SINK_COUNTED),
                (true_acts(model, tokens, sae), SCALES_UNUSED),
                (counted(model, encode(sae, late)), SCALED_LATE),
                (counted(model, encode(sae, whole)), "One factor for all tokens: each must have its own."),
            ],
        )
        expect.close(
            values,
            sparse(torch.as_tensor(got).detach())[0],
            name="`values`",
            norm="largest",
            dims=("nnz",),
            why="the non-zero entries of the dense tensor, in row-major order",
        )


@TOKENS_TO_LATENT_ACTS.check(
    "one pass, and gradients get through",
    points=1,
    hint="One run with one hook, stopped at the dictionary's layer, without `torch.no_grad()`.",
)
def test_token_scales_cost(impl, model):
    tokens, sae = model.to_tokens(EIFFEL), stand_in(4)
    scales = torch.ones(tokens.shape).requires_grad_()
    with impl.watch(model) as seen:
        result = impl.tokens_to_latent_acts(scales, tokens, sae, model)
    values, _ = expect.unpack(result, ("values", "(dense,)"))
    values = expect.tensor(values, name="`values`")
    cheap(seen, 1, 5, why="the dictionary reads what enters block 4, and one run gives it")
    expect.that(
        values.requires_grad,
        expected="a result that autograd can follow back to `token_scales`",
        returned="a result without a graph",
        why="the next exercise differentiates this function",
    )
    (gradient,) = torch.autograd.grad(values.sum(), scales)
    same_slopes(
        gradient,
        lambda some: with_scales(model, tokens, sae, some).sum(dim=(1, 2))[:, None],
        torch.ones(tokens.shape[1]),
        name="the gradient of `values.sum()`",
        outputs="the sum",
        why="small changes of the scales move the sum so much",
    )


@TOKENS_TO_LATENT_ACTS.check(
    "bad input is refused in words",
    points=1,
    hint="`tokens` of rank 2, and as many scales: otherwise a ValueError. Broadcasting would hide the second mistake.",
)
def test_token_scales_errors(impl, model):
    tokens, sae = model.to_tokens(EIFFEL), stand_in(4)
    rank_error(lambda: impl.tokens_to_latent_acts(torch.ones(4), tokens[0], sae, model))
    expect.raises(
        lambda: impl.tokens_to_latent_acts(torch.ones(1, 1), tokens, sae, model),
        "ValueError",
        why="one scale for four tokens: broadcasting would quietly use it for all",
        hint="Compare `token_scales.shape` with `tokens.shape` and raise a ValueError where they differ.",
    )


@TOKEN_TO_LATENT_GRADIENTS.check(
    "gradients against small steps",
    points=2,
    hint="Differentiate `tokens_to_latent_acts` at scales of 1, and move the axis of the latents to the end.",
)
def test_token_gradients(impl, model, dictionaries):
    tokens, sae = model.to_tokens(EIFFEL), dictionaries["resid_pre.6"]
    grads, acts = expect.unpack(impl.token_to_latent_gradients(tokens, sae, model), ("grads", "acts"))
    dense = true_acts(model, tokens, sae)
    same_true_entries(acts, model, tokens, sae)
    at = dense.nonzero()[:, 1:].unbind(dim=1)
    last = "The axes are (batch, seq, nnz): the tokens first, then the latents. `jacrev` gives the latents first."
    grads = expect.shape(
        grads,
        (1, 4, int((dense != 0).sum())),
        name="grads",
        dims=("batch", "seq", "nnz"),
        why="a number for each token and each active latent",
        hint=last,
    )
    same_slopes(
        grads[0].T,
        lambda scales: with_scales(model, tokens, sae, scales)[:, *at],
        torch.ones(4),
        name="grads[0].T",
        step=1e-3,
        why="embeddings were made slightly stronger and weaker by a torch hook",
    )


@TOKEN_TO_LATENT_GRADIENTS.check(
    "nothing looks ahead, and prompts do not meet",
    points=1,
    hint="""
        A latent can depend on the tokens of its own row, up to its own position. If other entries are not zero, the
        axes are mixed up: (batch, seq, nnz).
        """,
)
def test_token_gradients_causal(impl, model):
    tokens, sae = model.to_tokens(["The Eiffel", "In Paris,"]), stand_in(4)
    grads, _ = expect.unpack(impl.token_to_latent_gradients(tokens, sae, model), ("grads", "acts"))
    indices = true_acts(model, tokens, sae).nonzero()
    grads = expect.shape(
        grads,
        (2, 4, len(indices)),
        name="grads",
        dims=("batch", "seq", "nnz"),
        why="a number for each token and latent",
    )
    row, position = torch.arange(2)[:, None, None], torch.arange(4)[None, :, None]
    reachable = (row == indices[:, 0]) & (position <= indices[:, 1])
    size = grads.detach().abs()
    expect.that(
        bool(size[~reachable].max() <= 1e-6 * size.max()),
        expected="zeros where the token is in another prompt, or further right than the latent",
        returned=f"entries there up to {size[~reachable].max().item():.3g}",
        why="attention looks back only, and prompts of a batch do not see each other",
    )
    own = reachable & (position == indices[:, 1])
    expect.that(
        bool(size[own].max() > 0 and size[reachable & ~own].max() > 0),
        expected="non-zero entries for a latent's own token, and for earlier ones",
        returned=f"at most {size[own].max().item():.3g} and {size[reachable & ~own].max().item():.3g}",
        why="tokens act on their own latents and, through attention, on those of later tokens",
    )


@TOKEN_TO_LATENT_GRADIENTS.check(
    "few passes, bad input refused",
    points=1,
    hint="Not one pass for each latent; and a ValueError for `tokens` of the wrong rank, or where no latent is active.",
)
def test_token_gradients_cost(impl, model):
    tokens, sae = model.to_tokens(EIFFEL), stand_in(4)
    with impl.watch(model) as seen:
        result = impl.token_to_latent_gradients(tokens, sae, model)
    expect.unpack(result, ("grads", "acts"))
    cheap(seen, 8, 5, why="reverse mode needs one run, forward mode one for each token at most")
    rank_error(lambda: impl.token_to_latent_gradients(tokens[0], sae, model))
    empty_error(lambda: impl.token_to_latent_gradients(tokens[:, :1], sae, model))


# 4.4

FIRST_LOGITS = "These are logits of the *first* position. What comes next is predicted at the last one: `[0, -1]`."
LOG_PROBS = "These are (log-)probabilities. Logits are asked for, as the model gives them."


def logits_of(model, tokens, sae=None, dense=None, sink="kept"):
    """Logits [seq, d_vocab] of the untouched model, or with the reconstruction of `dense`."""
    return (stream(model, tokens, None) if sae is None else spliced(model, tokens, sae, dense, None, sink))[0]


def slices_of_logits(model, tokens, sae, dense, ids):
    """Logits of some tokens at the last position, for many cases of `dense` in one pass."""
    return spliced(model, tokens, sae, dense, None)[:, -1, ids]


def logit_mistakes(model, tokens, sae, dense):
    right, untouched = logits_of(model, tokens, sae, dense), logits_of(model, tokens)
    return [
        (untouched[-1], NOT_REPLACED.replace("later latents", "logits")),
        (right[0], FIRST_LOGITS),
        (right[-2], "These are logits of the last position but one."),
        (right[-1].log_softmax(-1), LOG_PROBS),
        (right[-1].softmax(-1), LOG_PROBS),
        (logits_of(model, tokens, sae, dense, sink="replaced")[-1], SINK_RECONSTRUCTED),
    ]


@LATENT_ACTS_TO_LOGITS.check(
    "logits at the last position",
    points=2,
    hint="Put the reconstruction in place, let the model run to its end, and take `[0, -1]`.",
)
def test_logits(impl, model, dictionaries):
    tokens, sae = model.to_tokens(TOWER), dictionaries["resid_pre.24"]
    for dense in (true_acts(model, tokens, sae), changed(true_acts(model, tokens, sae))):
        ids = torch.tensor([7042, 11, 260])
        chosen, aux = expect.unpack(
            impl.latent_acts_to_logits(*sparse(dense), sae, model, tokens, ids), ("logits", "(all_logits,)")
        )
        (everything,) = expect.unpack(aux, ("all_logits",))
        want = logits_of(model, tokens, sae, dense)[-1]
        expect.close(
            everything,
            want,
            name="the logits of the whole vocabulary",
            norm="largest",
            dims=("d_vocab",),
            why="a torch hook on block 24 overwrote the stream with the reconstruction",
            mistakes=lambda dense=dense: logit_mistakes(model, tokens, sae, dense),
        )
        expect.close(
            chosen,
            want[ids],
            name="the logits of `token_ids`",
            norm="largest",
            dims=("k",),
            why=f"the entries {ids.tolist()} of the same logits, in this order",
            mistakes=[
                (want[ids.sort().values], "The order of `token_ids` is to be kept."),
                (want.topk(3).values, "These are the largest logits, not those of `token_ids`."),
            ],
        )


@LATENT_ACTS_TO_LOGITS.check(
    "one pass, and gradients get through",
    points=1,
    hint="One run with hooks, without `torch.no_grad()`.",
)
def test_logits_gradient(impl, model):
    tokens, sae, ids = model.to_tokens(EIFFEL), stand_in(27), torch.tensor([7042, 11])
    values, indices, shape = sparse(true_acts(model, tokens, sae))
    leaf = values.clone().requires_grad_()
    with impl.watch(model) as seen:
        result = impl.latent_acts_to_logits(leaf, indices, shape, sae, model, tokens, ids)
    chosen, _ = expect.unpack(result, ("logits", "(all_logits,)"))
    cheap(seen, 1, 30, why="one run with the reconstruction in it gives all logits")
    chosen = expect.shape(chosen, (2,), name="the logits of `token_ids`", dims=("k",), why="one for each token")
    expect.that(
        chosen.requires_grad,
        expected="a result that autograd can follow back to `latent_acts_nonzero`",
        returned="a result without a graph",
        why="the next exercise differentiates this function",
    )
    (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
    same_slopes(
        gradient[None],
        lambda some: slices_of_logits(model, tokens, sae, dense_of(some, indices, shape), ids).sum(dim=1, keepdim=True),
        values,
        name="the gradient of the two logits' sum",
        outputs="the sum",
        step=3e-2,
        why="small steps of the activations move the sum so much",
    )


@LATENT_ACTS_TO_LOGITS.check(
    "bad input is refused in words",
    points=1,
    hint="""
        The logits of *one* prompt are asked for, so `tokens` must have the shape `[1, seq]`: anything else is a
        ValueError.
        """,
)
def test_logits_errors(impl, model):
    tokens, sae = model.to_tokens(EIFFEL), stand_in(27)
    some, ids = sparse(true_acts(model, tokens, sae)), torch.tensor([11])
    rank_error(lambda: impl.latent_acts_to_logits(*some, sae, model, tokens[0], ids))
    rank_error(lambda: impl.latent_acts_to_logits(*some, sae, model, tokens.repeat(2, 1), ids))


FIVE = ("grads", "logits", "logits_recon", "token_ids", "acts")


@LATENT_TO_LOGIT_GRADIENTS.check(
    "what is explained: logits, tokens, latents",
    points=2,
    seconds=60,
    hint="""
        `logits` and `token_ids` belong to the untouched model, `logits_recon` to the one with the reconstruction in it.
        """,
)
def test_logit_gradient_parts(impl, model):
    tokens, sae, k = model.to_tokens(TOWER), stand_in(24), 6
    _, logits, recon, ids, acts = expect.unpack(impl.latent_to_logit_gradients(tokens, sae, model, k), FIVE)
    dense = true_acts(model, tokens, sae)
    want, through = logits_of(model, tokens)[-1], logits_of(model, tokens, sae, dense)[-1]
    expect.close(
        logits,
        want,
        name="`logits`",
        norm="largest",
        dims=("d_vocab",),
        why="those of the untouched model at the last position",
        mistakes=[
            (through, RECONSTRUCTION_AS_TRUE.replace("activations", "logits")),
            (want.log_softmax(-1), LOG_PROBS),
        ],
    )
    expect.close(
        recon,
        through,
        name="`logits_recon`",
        norm="largest",
        dims=("d_vocab",),
        why="those with the reconstruction in place of the stream",
        mistakes=lambda: logit_mistakes(model, tokens, sae, dense),
    )
    of_recon = torch.is_tensor(ids) and torch.equal(ids.cpu(), through.topk(k).indices)
    expect.equal(
        ids,
        want.topk(k).indices,
        name="`token_ids`",
        why=f"the {k} tokens with the largest logits in the untouched model, largest first",
        hint="""
            These are the top tokens of the *reconstruction*. The model's own answer is to be explained: take the top
            tokens of the untouched logits.
            """
        if of_recon
        else "`logits.topk(k).indices`, largest first.",
    )
    same_true_entries(acts, model, tokens, sae)


@LATENT_TO_LOGIT_GRADIENTS.check(
    "gradients against small steps",
    points=2,
    seconds=60,
    hint="`jacrev(latent_acts_to_logits, argnums=0, has_aux=True)` at the true activations, for `token_ids`.",
)
def test_logit_gradients(impl, model, dictionaries):
    tokens, sae = model.to_tokens(EIFFEL), dictionaries["resid_pre.24"]
    grads = expect.unpack(impl.latent_to_logit_gradients(tokens, sae, model, 3), FIVE)[0]
    dense, ids = true_acts(model, tokens, sae), logits_of(model, tokens)[-1].topk(3).indices
    values, indices, shape = sparse(dense)
    same_slopes(
        grads,
        lambda some: slices_of_logits(model, tokens, sae, dense_of(some, indices, shape), ids),
        values,
        outputs="token_ids",
        step=3e-2,
        why="""
            row t is the logit of `token_ids[t]`, column j the latent `acts.indices[j]`; slightly changed
            reconstructions were put into the model
            """,
    )


@LATENT_TO_LOGIT_GRADIENTS.check(
    "few passes, bad input refused",
    points=1,
    seconds=60,
    hint="""
        A ValueError for `tokens` that are not `[1, seq]`, for a `k` that the vocabulary does not have, and where no
        latent is active.
        """,
)
def test_logit_gradient_errors(impl, model):
    tokens, sae = model.to_tokens(EIFFEL), stand_in(27)
    with impl.watch(model) as seen:
        result = impl.latent_to_logit_gradients(tokens, sae, model, 2)
    expect.unpack(result, FIVE)
    cheap(seen, 8, 30, why="the true activations, the true logits, and one run to differentiate")
    rank_error(lambda: impl.latent_to_logit_gradients(tokens[0], sae, model, 2))
    empty_error(lambda: impl.latent_to_logit_gradients(tokens[:, :1], sae, model, 2))
    for k in (model.cfg.d_vocab + 1, 0):
        expect.raises(
            lambda k=k: impl.latent_to_logit_gradients(tokens, sae, model, k),
            "ValueError",
            why=f"there are {model.cfg.d_vocab} tokens to choose from, so k = {k} makes no sense",
            hint="Demand `1 <= k <= model.cfg.d_vocab` before anything runs, and raise a ValueError that names k.",
        )


# 4.5


def without_each(dense, indices):
    """A batch of copies of `dense`, each with one entry zeroed."""
    cases = dense.repeat(len(indices), 1, 1)
    cases[torch.arange(len(indices)), indices[:, 1], indices[:, 2]] = 0
    return cases


def losses(model, tokens, sae, dense, indices, token_id):
    """What the logit loses when one latent's share leaves the true stream, for several latents."""
    shares = decode(sae, dense) - decode(sae, without_each(dense, indices))
    after = stream(model, tokens, None, layer_of(sae), lambda entering: entering - shares)[:, -1, token_id]
    return stream(model, tokens, None)[0, -1, token_id] - after


def ablation_case(model, sae, prompt=EIFFEL):
    tokens = model.to_tokens(prompt)
    dense = true_acts(model, tokens, sae)
    return tokens, dense, *sparse(dense), int(stream(model, tokens, None)[0, -1].argmax())


TWO = ("predicted", "actual")


@GRADIENT_VS_ABLATION.check(
    "predicted: activation times gradient",
    points=2,
    seconds=90,
    hint="`acts.values * grads[0]`, where `grads` are those of exercise 4.4 for this one token.",
)
def test_predicted(impl, model):
    sae = stand_in(27, d_sae=16, k=12)
    tokens, _, values, indices, shape, token_id = ablation_case(model, sae)
    predicted, actual = expect.unpack(impl.gradient_vs_ablation(tokens, sae, model, token_id), TWO)
    for name, got in (("predicted", predicted), ("actual", actual)):
        expect.shape(got, (len(values),), name=f"`{name}`", dims=("nnz",), why="a number for each active latent")
    predicted = predicted.detach().cpu()
    shares = torch.randn(3, len(values), generator=torch.Generator().manual_seed(7))
    steps = torch.cat([values * (1 + 0.02 * shares), values * (1 - 0.02 * shares)])
    up, down = slices_of_logits(model, tokens, sae, dense_of(steps, indices, shape), token_id).split(3)
    want = (up - down) / 0.04
    repaired = (
        (
            predicted * values,
            "Multiply by the activation: `predicted` is in logits, not in logits per unit of activation.",
        ),
        (-predicted, "The sign is the wrong way round: positive means that the latent speaks for the token."),
    )

    def follows(answer):
        return expect.agree(shares @ answer, want, norm="largest", rtol=0.05)

    expect.close(
        shares @ predicted,
        want,
        name="`shares @ predicted`, what the logit does, per step, when activations change by small random shares,",
        norm="largest",
        rtol=0.05,
        why="""
            share times (activation times gradient), summed, is the slope of the logit in that direction, with the
            reconstruction in the model
            """,
        hint=next((hint for answer, hint in repaired if follows(answer)), None),
    )


@GRADIENT_VS_ABLATION.check(
    "actual: one latent leaves the true stream",
    points=3,
    seconds=90,
    hint="""
        Take the latent's activation times its decoder row out of the stream at its position, nothing else: logit before
        minus logit after.
        """,
)
def test_actual(impl, model):
    sae = stand_in(27, d_sae=32, k=8)  # where one latent goes, others could take its place among the k largest
    tokens, dense, values, indices, _, _ = ablation_case(model, sae)
    token_id = int(stream(model, tokens, None)[0, -1].topk(2).indices[1])  # not the model's own answer
    _, actual = expect.unpack(impl.gradient_vs_ablation(tokens, sae, model, token_id), TWO)
    actual = expect.shape(
        actual, (len(values),), name="`actual`", dims=("nnz",), why="a number for each active latent"
    ).detach()
    some = torch.cat([values.topk(4).indices, torch.tensor([0, len(values) - 1])]).unique()
    want = losses(model, tokens, sae, dense, indices[some], token_id)
    after = slices_of_logits(model, tokens, sae, without_each(dense, indices[some]), token_id)
    within = logits_of(model, tokens, sae, dense)[-1, token_id] - after
    swapped = logits_of(model, tokens)[-1, token_id] - after
    expect.close(
        actual[some],
        want,
        name=f"`actual` of latents {some.tolist()}",
        norm="largest",
        rtol=5e-3,
        why="a torch hook took each one's share out of the true stream, and the logit was read before and after",
        mistakes=[
            (
                -want,
                "The sign is the wrong way round: what the logit *loses* is the logit before minus the logit after.",
            ),
            (
                within,
                """
                Here the stream was the reconstruction before and after. The truth is asked for: keep the error term, so
                that only the one latent's share leaves the true stream.
                """,
            ),
            (
                swapped,
                """
                The logit after was taken with the reconstruction in place, the one before without: so everything that
                the dictionary misses was removed as well. Keep the error term.
                """,
            ),
        ],
    )


@GRADIENT_VS_ABLATION.check(
    "in the order of the latents, position by position",
    points=1,
    seconds=90,
    hint="Both follow the order of `acts`, which is row-major. Each latent is taken away at its own position only.",
)
def test_ablation_order(impl, model):
    sae = stand_in(25, d_sae=12, kind="standard")
    tokens, dense, values, indices, _, token_id = ablation_case(model, sae, prompt="In Paris,")
    predicted, actual = expect.unpack(impl.gradient_vs_ablation(tokens, sae, model, token_id), TWO)
    expect.shape(predicted, (len(values),), name="`predicted`", dims=("nnz",), why="a number for each active latent")
    want = losses(model, tokens, sae, dense, indices, token_id)
    expect.close(
        actual,
        want,
        name="`actual`",
        norm="largest",
        dims=("nnz",),
        rtol=5e-3,
        why="a torch hook took each one's share out of the true stream; this stand-in has a ReLU, not a TopK",
        mistakes=[
            (-want, "The sign is the wrong way round: logit before minus logit after."),
            (
                want[torch.argsort(indices[:, 2], stable=True)],
                "The latents are in another order: position by position, and by number within a position.",
            ),
        ],
    )


@GRADIENT_VS_ABLATION.check(
    "clean and strict",
    points=1,
    seconds=90,
    hint="No hook left behind; a ValueError for `tokens` that are not `[1, seq]` and where no latent is active.",
)
def test_ablation_errors(impl, model):
    tokens, sae = model.to_tokens("Paris"), stand_in(27, d_sae=12, k=8)
    with impl.watch(model) as seen:
        result = impl.gradient_vs_ablation(tokens, sae, model, 11)
    expect.unpack(result, TWO)
    cheap(seen, 40, 30, why="one run before, at most one for each latent, and a few to differentiate")
    rank_error(lambda: impl.gradient_vs_ablation(tokens[0], sae, model, 11))
    empty_error(lambda: impl.gradient_vs_ablation(tokens[:, :1], sae, model, 11))


# 4.6


def best_plan(n_inputs, n_outputs, per_direction, budget):
    """By trying every mode and every chunk: fewest directions, then fewest chunks, then the smallest such chunk."""
    plans = []
    for mode, directions in (("forward", n_inputs), ("reverse", n_outputs)):
        for chunk in range(1, directions + 1):
            if chunk * per_direction <= budget:
                left, chunks = directions, 0
                while left > 0:
                    left, chunks = left - chunk, chunks + 1
                plans.append((directions, chunks, mode, chunk))
    fewest = min(plans)[0]
    return [(mode, chunk, chunks) for directions, chunks, mode, chunk in plans if directions == fewest]


MODES = """
    Forward mode takes a direction for each *input*, reverse mode one for each *output*: the smaller number wins. Few
    inputs and many outputs: forward.
    """


@JACOBIAN_PLAN.check("the cheaper mode", points=1, hint=MODES)
def test_plan_mode(impl):
    for n_inputs, n_outputs in ((8, 224), (448, 224), (576, 5), (2, 3), (1, 40)):
        plan = expect.unpack(impl.jacobian_plan(n_inputs, n_outputs, 10, 10_000), ("mode", "chunk", "n_chunks"))
        want = best_plan(n_inputs, n_outputs, 10, 10_000)[0][0]
        expect.equal(plan[0], want, name="`mode`", why=f"{n_inputs} inputs, {n_outputs} outputs", hint=MODES)
    same = expect.unpack(impl.jacobian_plan(7, 7, 10, 10_000), ("mode", "chunk", "n_chunks"))
    expect.that(
        same[0] in ("forward", "reverse"),
        expected="`mode` 'forward' or 'reverse'",
        returned=same[0],
        why="7 by 7: either",
    )


@JACOBIAN_PLAN.check(
    "chunks that fit",
    points=2,
    hint="""
        `chunk` is the budget divided by what one direction takes, rounded down, and no more than there are directions;
        `n_chunks` is rounded up.
        """,
)
def test_plan_chunks(impl):
    for case in (
        (8, 224, 10, 35),
        (8, 224, 10, 39),
        (448, 224, 1000, 64_000),
        (448, 224, 1000, 65_999),
        (30, 9, 7, 63),
        (4, 9, 7, 630),
    ):
        got = expect.unpack(impl.jacobian_plan(*case), ("mode", "chunk", "n_chunks"))
        plans = best_plan(*case)
        most = max(chunk for _, chunk, _ in plans)
        want = next(plan for plan in plans if plan[1] == most)
        directions = min(case[:2])
        rounded_up = got[1] * case[2] > case[3]
        hint = (
            f"{got[1]} directions take {got[1] * case[2]} bytes, more than the budget: round down."
            if isinstance(got[1], int) and rounded_up
            else f"There are only {directions} directions, so a chunk cannot have {got[1]}."
            if isinstance(got[1], int) and got[1] > directions
            else "The last chunk may be smaller, but it is one: round `n_chunks` up."
            if got[1] == want[1]
            else None
        )
        expect.equal(
            tuple(got),
            want,
            name="(mode, chunk, n_chunks)",
            why=f"""
                {case[0]} inputs, {case[1]} outputs, {case[2]} bytes a direction, {case[3]} bytes in all: every plan was
                tried
                """,
            hint=hint,
        )


@JACOBIAN_PLAN.check(
    "no plan is better than a bad one",
    points=1,
    hint="Not even one direction fits, or there is nothing to compute: a ValueError, before somebody divides by zero.",
)
def test_plan_errors(impl):
    for case in ((8, 224, 100, 99), (0, 4, 10, 100), (4, 0, 10, 100)):
        expect.raises(
            lambda case=case: impl.jacobian_plan(*case),
            "ValueError",
            why="a Jacobian with no entries" if 0 in case else "one direction takes 100 bytes and there are 99",
        )


def block_case(model, d_sae=160, k=120, prompt="The Eiffel"):
    tokens, sae_from, sae_to = model.to_tokens(prompt), stand_in(3, d_sae, k), stand_in(6, d_sae, k)
    dense = true_acts(model, tokens, sae_from)
    return tokens, sae_from, sae_to, dense, later_acts(model, tokens, sae_from, sae_to, dense)


@JACOBIAN_BLOCK.check(
    "the right entries, in both modes",
    points=2,
    seconds=60,
    hint="""
        Row i is the later latent `acts_next_recon.indices[rows[i]]`, column j the earlier one
        `acts_prev.indices[columns[j]]`, in the order given. Forward mode gives columns, so its stack of results must be
        transposed.
        """,
)
def test_block(impl, model):
    tokens, sae_from, sae_to, dense, later = block_case(model)
    values, indices, shape = sparse(dense)
    places = later.nonzero()
    last = len(places) - 1
    for rows, columns in (
        (torch.tensor([last, 40, last - 7, 3]), torch.tensor([11, 5])),
        (torch.tensor([last - 1, 2]), torch.tensor([30, 4, 17, 0, 8])),
    ):
        got = impl.jacobian_block(tokens, sae_from, sae_to, model, rows, columns, 3)

        def function(some, rows=rows, columns=columns):
            changed = values.repeat(len(some), 1)
            changed[:, columns] = some
            acts = later_acts(model, tokens, sae_from, sae_to, dense_of(changed, indices, shape))
            return acts[:, *places[rows, 1:].T]

        same_slopes(
            got,
            function,
            values[columns],
            name="the block",
            outputs="rows",
            step=3e-2,
            why=f"rows {rows.tolist()}, columns {columns.tolist()}: measured after small steps of the earlier latents",
        )


LIMIT, REFERENCE, NAIVE, CHUNK_LIMIT = 10, 4, 21, 4  # MB

WHOLE = """
    This looks like the memory of the whole Jacobian, or of the larger side. Differentiate a function from the chosen
    inputs to the chosen outputs only, and take the mode with fewer directions.
    """


@JACOBIAN_BLOCK.check(
    "two columns cost two directions, two rows as well",
    points=2,
    seconds=60,
    hint=WHOLE,
)
def test_block_cost(impl, model):
    tokens, sae_from, sae_to, dense, later = block_case(model)
    n_in, n_out = int((dense != 0).sum()), int((later != 0).sum())
    few = torch.tensor([1, 3])
    for rows, columns in ((torch.arange(n_out), few), (few, torch.arange(n_in))):
        with impl.watch(model) as seen:
            got = impl.jacobian_block(tokens, sae_from, sae_to, model, rows, columns, 1000)
        expect.shape(got, (len(rows), len(columns)), dims=("n_rows", "n_columns"), why="the block that was asked for")
        cheap(seen, 5, 7, why="the place of the latents, the point itself, and two directions")
        expect.cost(
            seen,
            megabytes=LIMIT,
            why=f"""
                {len(rows)} rows and {len(columns)} columns, so two directions: the reference needs {REFERENCE} MB, the
                naive way (all rows in reverse mode) {NAIVE} MB
                """,
        )


@JACOBIAN_BLOCK.check(
    "no more under way than the chunk allows",
    points=2,
    seconds=60,
    hint="""
        Cut the directions into pieces of `chunk`, and run `vmap` on one piece at a time. What is done must be let go.
        """,
)
def test_block_chunks(impl, model):
    tokens, sae_from, sae_to, dense, later = block_case(model)
    n_in, n_out = int((dense != 0).sum()), int((later != 0).sum())
    seen = {}
    rows = torch.arange(0, n_out, 3)
    for chunk in (4, 1000):
        with impl.watch(model) as seen[chunk]:
            got = impl.jacobian_block(tokens, sae_from, sae_to, model, rows, torch.arange(n_in), chunk)
        expect.shape(got, (len(rows), n_in), dims=("n_rows", "n_columns"), why="the block that was asked for")
    expect.cost(
        seen[4],
        megabytes=CHUNK_LIMIT,
        why=f"""
            `chunk` is 4; with all {len(rows)} rows under way together it was {seen[1000].peak_bytes / 1e6:.1f} MB
            """,
    )


@JACOBIAN_BLOCK.check(
    "bad input is refused in words",
    points=1,
    seconds=60,
    hint="As in exercise 4.2, and a `chunk` below 1.",
)
def test_block_errors(impl, model):
    tokens, early, late = model.to_tokens(EIFFEL), stand_in(3), stand_in(6)
    few = torch.tensor([0, 1])
    rank_error(lambda: impl.jacobian_block(tokens[0], early, late, model, few, few, 2))
    order_error(lambda: impl.jacobian_block(tokens, late, early, model, few, few, 2))
    empty_error(lambda: impl.jacobian_block(tokens[:, :1], early, late, model, few, few, 2))
    expect.raises(
        lambda: impl.jacobian_block(tokens, early, late, model, few, few, 0),
        "ValueError",
        why="nothing at a time is never done",
        hint="Raise a ValueError that names `chunk` if it is below 1.",
    )
