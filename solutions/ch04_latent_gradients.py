"""Chapter 04: how latents of one layer depend on latents of an earlier one, on tokens, and what they do to logits."""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap

from utils import first_position, layer_of, mine

if TYPE_CHECKING:  # these take ten seconds, and nothing here needs them but the reader
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    SparseTensor = mine.SparseTensor


def _demand_tokens(tokens: Tensor, one_row: bool = False) -> None:
    wanted = "[1, seq], one prompt" if one_row else "[batch, seq]"
    if tokens.ndim != 2 or (one_row and len(tokens) != 1):
        raise ValueError(
            f"tokens must have rank 2: {wanted}, as model.to_tokens gives them; these have shape {tuple(tokens.shape)}"
        )


def _demand_order(sae_from: "SAE", sae_to: "SAE") -> None:
    if layer_of(sae_from) >= layer_of(sae_to):
        raise ValueError(
            f"sae_from must be at an earlier layer than sae_to, but they read layers {layer_of(sae_from)} and "
            f"{layer_of(sae_to)}: latents do not depend on later ones"
        )


def _without_sink(latent_acts: Float[Tensor, "batch seq d_sae"], model: "SAETransformerBridge") -> Tensor:
    """The activations, zero where they do not count: at the sink, on which the dictionaries were never trained."""
    first = first_position(model)
    return torch.cat([torch.zeros_like(latent_acts[:, :first]), latent_acts[:, first:]], dim=1)


def _true_acts(
    tokens: Int[Tensor, "batch seq"], saes: "list[SAE]", model: "SAETransformerBridge"
) -> "list[SparseTensor]":
    """Active latents of each dictionary in one run of the untouched model.

    This is what attached dictionaries see with the error term on: whatever a dictionary fails to reconstruct is added
    back, so the stream behind it is the true one, and nothing need be attached at all.
    """
    hook_names = [sae.cfg.metadata.hook_name for sae in saes]
    with torch.no_grad():
        _, streams = model.run_with_cache(tokens, names_filter=hook_names, stop_at_layer=max(map(layer_of, saes)) + 1)
        dense = [_without_sink(sae.encode(streams[name]), model) for sae, name in zip(saes, hook_names, strict=True)]
    for sae, acts in zip(saes, dense, strict=True):
        if not acts.any():
            raise ValueError(
                f"no latent of the dictionary at {sae.cfg.metadata.hook_name} is active on these {tokens.shape[1]} "
                "tokens, so there is nothing to differentiate (the first special token alone does not count)"
            )
    return [mine.SparseTensor.from_dense(acts) for acts in dense]


def _reconstruction_hook(latent_acts: Float[Tensor, "batch seq d_sae"], sae: "SAE", model: "SAETransformerBridge"):
    """A hook that puts the dictionary's reconstruction in place of the stream, all but the sink position's.

    The bridge cannot start in the middle of the model. So it starts with the tokens, and what the earlier blocks made
    of them is thrown away here.
    """
    first = first_position(model)
    reconstruction = sae.decode(latent_acts)

    def replace(resid, hook):
        return torch.cat([resid[:, :first], reconstruction[:, first:]], dim=1)

    return sae.cfg.metadata.hook_name, replace


def latent_acts_to_later_latent_acts(
    latent_acts_nonzero: Float[Tensor, " nnz"],
    latent_acts_nonzero_inds: Int[Tensor, "nnz 3"],
    latent_acts_shape: tuple[int, int, int],
    sae_from: "SAE",
    sae_to: "SAE",
    model: "SAETransformerBridge",
    tokens: Int[Tensor, "batch seq"],
) -> tuple[Float[Tensor, " nnz_later"], tuple[Float[Tensor, "batch seq d_sae_later"]]]:
    """Active latents of a later layer as a function of the active latents of an earlier one.

    Decode the earlier latents, let the reconstruction take the place of the residual stream, run the blocks between,
    encode. Positions before `first_position(model)` (the attention sink) pass through untouched, and later latents
    there count as 0. Autograd can follow from the first result to `latent_acts_nonzero`.

    The model runs once; blocks from `sae_to`'s on do not run, and no hook stays on the model.

    Args:
        latent_acts_nonzero: activations of the earlier latents, the values of their sparse form (chapter 03). They
            need not be those that the prompt gives.
        latent_acts_nonzero_inds: where they are: a row (row of the batch, position, latent) for each.
        latent_acts_shape: the shape of their dense tensor, (batch, seq, d_sae).
        sae_from: a dictionary of the residual stream, that of the earlier latents.
        sae_to: a dictionary of the residual stream at a later layer.
        model: the language model.
        tokens: the prompts, first special token included: the model cannot start in the middle.

    Returns:
        The non-zero later activations in row-major order, and a tuple with their dense tensor alone, from which the
        positions can be read.

    Raises:
        ValueError: `tokens` is not of rank 2, or `sae_from` is not at an earlier layer than `sae_to` (the same layer
            is not earlier).
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_order(sae_from, sae_to)
    earlier = mine.SparseTensor.from_sparse((latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape))
    hook = _reconstruction_hook(earlier.dense, sae_from, model)
    stream = model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae_to))
    later = mine.SparseTensor.from_dense(_without_sink(sae_to.encode(stream), model))
    return later.values, (later.dense,)
    # END SOLUTION


def latent_to_latent_gradients(
    tokens: Int[Tensor, "batch seq"], sae_from: "SAE", sae_to: "SAE", model: "SAETransformerBridge"
) -> tuple[Float[Tensor, "nnz_later nnz"], "SparseTensor", "SparseTensor", "SparseTensor"]:
    """How each active later latent depends on each active earlier one: the Jacobian between active entries only.

    What is differentiated is `latent_acts_to_later_latent_acts`, at the true earlier activations. Positions before
    `first_position(model)` are not active.

    The model runs a few times (16 at most), not once for each latent; blocks from `sae_to`'s on do not run, and no
    hook stays on the model.

    Args:
        tokens: the prompts, first special token included.
        sae_from: a dictionary of the residual stream.
        sae_to: a dictionary of the residual stream at a later layer.
        model: the language model.

    Returns:
        `grads`: entry [i, j] is the derivative of the i-th entry of `acts_next_recon` by the j-th of `acts_prev`.
        `acts_prev`, `acts_next`: true activations of `sae_from` and `sae_to`, of shape (batch, seq, d_sae), from
        one run with the error term on, so that both see the true stream.
        `acts_next_recon`: those of `sae_to` if the reconstruction by `sae_from` stands in for the stream. This is
        what is differentiated, and it is not the same set as `acts_next`.
        All three are your `SparseTensor`.

    Raises:
        ValueError: `tokens` is not of rank 2, `sae_from` is not at an earlier layer than `sae_to` (the same layer is
            not earlier), or no latent of one of the dictionaries is active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_order(sae_from, sae_to)
    acts_prev, acts_next = _true_acts(tokens, [sae_from, sae_to], model)
    differentiate = jacrev(latent_acts_to_later_latent_acts, argnums=0, has_aux=True)
    grads, (dense,) = differentiate(*acts_prev.sparse, sae_from, sae_to, model, tokens)
    return grads, acts_prev, acts_next, mine.SparseTensor.from_dense(dense)
    # END SOLUTION


def tokens_to_latent_acts(
    token_scales: Float[Tensor, "batch seq"],
    tokens: Int[Tensor, "batch seq"],
    sae: "SAE",
    model: "SAETransformerBridge",
) -> tuple[Float[Tensor, " nnz"], tuple[Float[Tensor, "batch seq d_sae"]]]:
    """Active latents as a function of how strong each token is.

    Each token's embedding (`hook_embed`) is multiplied by its scale before block 0; the true stream runs up to `sae`,
    no reconstruction is involved. At scales of 1 this is the model as it is. Autograd can follow from the first result
    to `token_scales`.

    The model runs once; blocks from the dictionary's on do not run, and no hook stays on the model.

    Args:
        token_scales: a factor for each token, the special ones included.
        tokens: the prompts, first special token included.
        sae: a dictionary of the residual stream.
        model: the language model.

    Returns:
        The non-zero activations in row-major order, and a tuple with their dense tensor alone. Positions before
        `first_position(model)` count as 0.

    Raises:
        ValueError: `tokens` is not of rank 2, or `token_scales` has another shape.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    if token_scales.shape != tokens.shape:
        raise ValueError(
            f"{tuple(token_scales.shape)} token_scales for {tuple(tokens.shape)} tokens: give one for each"
        )

    def scale(embeddings, hook):
        return embeddings * token_scales[..., None]

    hook = ("hook_embed", scale)
    stream = model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae))
    latents = mine.SparseTensor.from_dense(_without_sink(sae.encode(stream), model))
    return latents.values, (latents.dense,)
    # END SOLUTION


def token_to_latent_gradients(
    tokens: Int[Tensor, "batch seq"], sae: "SAE", model: "SAETransformerBridge"
) -> tuple[Float[Tensor, "batch seq nnz"], "SparseTensor"]:
    """How each active latent depends on the strength of each token.

    What is differentiated is `tokens_to_latent_acts`, at scales of 1. The model runs twice for each token at most;
    blocks from the dictionary's on do not run, and no hook stays on the model.

    Args:
        tokens: the prompts, first special token included.
        sae: a dictionary of the residual stream.
        model: the language model.

    Returns:
        `grads`: entry [b, s, i] is the derivative of the i-th active latent by the scale of token s of row b.
        `acts`: the active latents of the untouched model, your `SparseTensor` of shape (batch, seq, d_sae).
        Positions before `first_position(model)` are not active.

    Raises:
        ValueError: `tokens` is not of rank 2, or no latent is active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    (acts,) = _true_acts(tokens, [sae], model)
    ones = torch.ones(tokens.shape, device=tokens.device)
    grads, _ = jacrev(tokens_to_latent_acts, argnums=0, has_aux=True)(ones, tokens, sae, model)
    return grads.movedim(0, -1), acts  # jacrev puts the outputs' axis first: [nnz, batch, seq]
    # END SOLUTION


def latent_acts_to_logits(
    latent_acts_nonzero: Float[Tensor, " nnz"],
    latent_acts_nonzero_inds: Int[Tensor, "nnz 3"],
    latent_acts_shape: tuple[int, int, int],
    sae: "SAE",
    model: "SAETransformerBridge",
    tokens: Int[Tensor, "1 seq"],
    token_ids: Int[Tensor, " k"],
) -> tuple[Float[Tensor, " k"], tuple[Float[Tensor, " d_vocab"]]]:
    """Logits at the last position as a function of the active latents of a layer.

    As in `latent_acts_to_later_latent_acts`, the reconstruction takes the place of the stream (not at the sink), and
    then the model runs to its end. Autograd can follow from the first result to `latent_acts_nonzero`. The model runs
    once, and no hook stays on it.

    Args:
        latent_acts_nonzero: activations of the latents, the values of their sparse form. They need not be those that
            the prompt gives.
        latent_acts_nonzero_inds: where they are: a row (0, position, latent) for each.
        latent_acts_shape: the shape of their dense tensor, (1, seq, d_sae).
        sae: a dictionary of the residual stream.
        model: the language model.
        tokens: one prompt, first special token included.
        token_ids: the tokens whose logits are wanted.

    Returns:
        The logits of `token_ids`, in their order, and a tuple with the logits of the whole vocabulary alone.

    Raises:
        ValueError: `tokens` is not one prompt, of shape [1, seq].
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens, one_row=True)
    latents = mine.SparseTensor.from_sparse((latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape))
    hook = _reconstruction_hook(latents.dense, sae, model)
    logits = model.run_with_hooks(tokens, fwd_hooks=[hook])[0, -1]
    return logits[token_ids], (logits,)
    # END SOLUTION


def latent_to_logit_gradients(
    tokens: Int[Tensor, "1 seq"], sae: "SAE", model: "SAETransformerBridge", k: int
) -> tuple[
    Float[Tensor, "k nnz"], Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"], Int[Tensor, " k"], "SparseTensor"
]:
    """How the `k` largest logits of the last position depend on each active latent.

    What is differentiated is `latent_acts_to_logits`, at the true activations. The model runs a few times (8 at most),
    not once for each latent, and no hook stays on it.

    Args:
        tokens: one prompt, first special token included.
        sae: a dictionary of the residual stream.
        model: the language model.
        k: how many logits.

    Returns:
        `grads`: entry [t, j] is the derivative of the logit of `token_ids[t]` by the j-th active latent.
        `logits`: those of the untouched model at the last position.
        `logits_recon`: those with the dictionary's reconstruction in place of the stream; these are differentiated.
        `token_ids`: the tokens with the `k` largest `logits` (the untouched ones), largest first.
        `acts`: the active latents, your `SparseTensor` of shape (1, seq, d_sae), from the untouched model. Positions
        before `first_position(model)` are not active.

    Raises:
        ValueError: `tokens` is not of shape [1, seq], `k` is not between 1 and the vocabulary's size, or no latent is
            active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens, one_row=True)
    if not 1 <= k <= model.cfg.d_vocab:
        raise ValueError(f"k must be between 1 and {model.cfg.d_vocab}, the size of the vocabulary, not {k}")
    (acts,) = _true_acts(tokens, [sae], model)
    with torch.no_grad():
        logits = model(tokens)[0, -1]
    token_ids = logits.topk(k).indices
    differentiate = jacrev(latent_acts_to_logits, argnums=0, has_aux=True)
    grads, (logits_recon,) = differentiate(*acts.sparse, sae, model, tokens, token_ids)
    return grads, logits, logits_recon, token_ids, acts
    # END SOLUTION


def gradient_vs_ablation(
    tokens: Int[Tensor, "1 seq"], sae: "SAE", model: "SAETransformerBridge", token_id: int
) -> tuple[Float[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """What each active latent does for one logit of the last position: as the gradient has it, and in truth.

    The model runs once for each latent at most, and a few times more; no hook stays on it.

    Args:
        tokens: one prompt, first special token included.
        sae: a dictionary of the residual stream.
        model: the language model.
        token_id: the token whose logit is meant.

    Returns:
        `predicted`: activation times gradient, the gradient as in `latent_to_logit_gradients`.
        `actual`: what the logit of the untouched model *loses* when that latent, at that position, is zeroed in the
        true stream: logit before minus logit after, with the error term kept, so that nothing else changes.
        Both are in logits, an entry for each active latent of the untouched model, in row-major order; positions
        before `first_position(model)` are not active. Positive means that the latent speaks for the token.

    Raises:
        ValueError: `tokens` is not of shape [1, seq], or no latent is active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens, one_row=True)
    (acts,) = _true_acts(tokens, [sae], model)
    token_ids = torch.tensor([token_id], device=tokens.device)
    differentiate = jacrev(latent_acts_to_logits, argnums=0, has_aux=True)
    grads, _ = differentiate(*acts.sparse, sae, model, tokens, token_ids)
    predicted = acts.values * grads[0]

    # Behind the last block only the last position goes on: what the others predict is not asked for.
    only_last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda resid, hook: resid[:, -1:]

    def logit_without(share):
        """The logit when shares [n, seq, d_model] are taken out of the stream: n runs at once."""
        remove = sae.cfg.metadata.hook_name, lambda resid, hook: resid - share
        return model.run_with_hooks(tokens, fwd_hooks=[remove, only_last])[:, -1, token_id]

    after = []
    with torch.no_grad():
        before = logit_without(0)
        for indices, values in zip(acts.indices.split(64), acts.values.split(64), strict=True):
            alone = torch.zeros(len(values), *acts.shape[1:], device=tokens.device)
            alone[torch.arange(len(values)), indices[:, 1], indices[:, 2]] = values
            # What a latent alone adds to the reconstruction is its share of the stream. All else stays, the error too.
            after.append(logit_without(sae.decode(alone) - sae.decode(torch.zeros_like(alone))))
    return predicted, before - torch.cat(after)
    # END SOLUTION


def jacobian_plan(n_inputs: int, n_outputs: int, bytes_per_direction: int, budget_bytes: int) -> tuple[str, int, int]:
    """How to compute a Jacobian of `n_outputs` rows and `n_inputs` columns with the fewest directions.

    Args:
        n_inputs: how many inputs the function has.
        n_outputs: how many outputs it has.
        bytes_per_direction: memory that one direction takes while it is under way, in either mode.
        budget_bytes: memory for all that are under way together.

    Returns:
        `mode`: `"forward"`, one direction for each input, or `"reverse"`, one for each output. Where both take
        as many, either.
        `chunk`: how many directions to take at once: as many as fit, and no more than there are.
        `n_chunks`: how many such chunks there are; the last may be smaller.

    Raises:
        ValueError: there is no input or no output, or not even one direction fits the budget.
    """
    # BEGIN SOLUTION
    if min(n_inputs, n_outputs) < 1:
        raise ValueError(f"a Jacobian with {n_outputs} rows and {n_inputs} columns has no entries to compute")
    mode, directions = ("forward", n_inputs) if n_inputs < n_outputs else ("reverse", n_outputs)
    chunk = min(directions, budget_bytes // bytes_per_direction)
    if chunk < 1:
        raise ValueError(f"one direction takes {bytes_per_direction} bytes, but the budget is {budget_bytes}")
    return mode, chunk, math.ceil(directions / chunk)
    # END SOLUTION


def jacobian_block(
    tokens: Int[Tensor, "batch seq"],
    sae_from: "SAE",
    sae_to: "SAE",
    model: "SAETransformerBridge",
    rows: Int[Tensor, " n_rows"],
    columns: Int[Tensor, " n_columns"],
    chunk: int,
) -> Float[Tensor, "n_rows n_columns"]:
    """The entries of `latent_to_latent_gradients` in some rows and columns, for the price of the smaller side.

    Fewer columns than rows: forward mode, a direction for each column; otherwise reverse mode, a direction for each
    row. Two passes of the model and one for each chunk of directions are enough (5 at most, where they fit into one
    chunk); memory grows with the directions under way and not with the larger side. Blocks from `sae_to`'s on do not
    run, and no hook stays on the model.

    Args:
        tokens: the prompts, first special token included.
        sae_from: a dictionary of the residual stream.
        sae_to: a dictionary of the residual stream at a later layer.
        model: the language model.
        rows: which later latents, as places in the list `acts_next_recon`.
        columns: which earlier latents, as places in the list `acts_prev`.
        chunk: at most so many directions are under way together.

    Returns:
        Entry [i, j] is the derivative of the later latent `rows[i]` by the earlier latent `columns[j]`.

    Raises:
        ValueError: as `latent_to_latent_gradients`, or `chunk` is below 1.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_order(sae_from, sae_to)
    if chunk < 1:
        raise ValueError(f"at least one direction must be under way at a time, so chunk cannot be {chunk}")
    values, indices, shape = _true_acts(tokens, [sae_from], model)[0].sparse
    with torch.no_grad():  # where are the later latents? Their places must be known before a forward pass is mapped
        _, (dense,) = latent_acts_to_later_latent_acts(values, indices, shape, sae_from, sae_to, model, tokens)
    places = mine.SparseTensor.from_dense(dense).indices[rows].unbind(dim=-1)

    def f(some: Float[Tensor, " n_columns"]) -> Float[Tensor, " n_rows"]:
        latents = mine.SparseTensor.from_sparse((values.index_put((columns,), some), indices, shape))
        hook = _reconstruction_hook(latents.dense, sae_from, model)
        return sae_to.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae_to)))[places]

    x = values[columns]
    mode, _, _ = jacobian_plan(len(columns), len(rows), 1, chunk)
    if mode == "forward":  # one column at a time: how all rows move when one input does
        directions = torch.eye(len(columns), device=x.device)
        push = vmap(lambda direction: jvp(f, (x,), (direction,))[1])
        return torch.cat([push(some) for some in directions.split(chunk)]).T
    directions = torch.eye(len(rows), device=x.device)  # one row at a time: where one output comes from
    _, pull = vjp(f, x)
    return torch.cat([vmap(pull)(some)[0] for some in directions.split(chunk)])
    # END SOLUTION
