"""Chapter 04: how latents of one layer depend on latents of an earlier one, on tokens, and what they do to logits."""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jvp, vjp, vmap

from fast import jacobians
from utils import first_position, mine

if TYPE_CHECKING:  # these take ten seconds, and nothing here needs them but the reader
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    from solutions.ch03_sparse_tensor import SparseTensor


def _layer(sae: "SAE") -> int:
    """The block whose residual stream a dictionary reads: 6 for `blocks.6.hook_resid_pre`."""
    return int(sae.cfg.metadata.hook_name.split(".")[1])


def _demand_tokens(tokens: Tensor, one_row: bool = False) -> None:
    wanted = "[1, seq], one prompt" if one_row else "[batch, seq]"
    if tokens.ndim != 2 or (one_row and len(tokens) != 1):
        raise ValueError(
            f"tokens must have rank 2: {wanted}, as model.to_tokens gives them; these have shape {tuple(tokens.shape)}"
        )


def _demand_order(sae_from: "SAE", sae_to: "SAE") -> None:
    if _layer(sae_from) >= _layer(sae_to):
        raise ValueError(
            f"sae_from must be at an earlier layer than sae_to, but they read layers {_layer(sae_from)} and "
            f"{_layer(sae_to)}: latents do not depend on later ones"
        )


def _counted(latent_acts: Float[Tensor, "batch seq d_sae"], model: "SAETransformerBridge") -> Tensor:
    """The activations with those zeroed that do not count: where the dictionary was never trained, at the sink."""
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
        _, streams = model.run_with_cache(tokens, names_filter=hook_names, stop_at_layer=max(map(_layer, saes)) + 1)
        dense = [_counted(sae.encode(streams[name]), model) for sae, name in zip(saes, hook_names, strict=True)]
    for sae, acts in zip(saes, dense, strict=True):
        if not acts.any():
            raise ValueError(
                f"no latent of the dictionary at {sae.cfg.metadata.hook_name} is active on these {tokens.shape[1]} "
                "tokens, so there is nothing to differentiate (the first special token alone does not count)"
            )
    return [mine.SparseTensor.from_dense(acts) for acts in dense]


def _reconstruction_hook(latent_acts: Float[Tensor, "batch seq d_sae"], sae: "SAE", model: "SAETransformerBridge"):
    """A hook that puts the dictionary's reconstruction in place of the stream, all but the sink position's.

    The bridge can not start in the middle of the model. So it starts with the tokens, and what the earlier blocks made
    of them is thrown away here.
    """
    first = first_position(model)
    reconstruction = sae.decode(latent_acts)

    def replace(resid, hook):
        return torch.cat([resid[:, :first], reconstruction[:, first:]], dim=1)

    return sae.cfg.metadata.hook_name, replace


def _last_position_hook(model: "SAETransformerBridge"):
    """A hook behind the last block that keeps the last position only: what the others predict is not asked for."""
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda resid, hook: resid[:, -1:]


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
    encode. Autograd can follow from the result to `latent_acts_nonzero`.

    Args:
        latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape: the earlier latents as the three sparse parts
            of chapter 03; the shape is (batch, seq, d_sae), an index is (row, position, latent).
        sae_from, sae_to: dictionaries of the residual stream; `sae_from` at an earlier layer than `sae_to`.
        model: the language model.
        tokens: the prompt: the model can not start in the middle.

    Returns:
        The non-zero later activations in row-major order, and a tuple with their dense tensor alone, from which the
        positions can be read.

    Positions before `first_position(model)` (the attention sink) pass through untouched, and later latents there count
    as 0. Blocks from `sae_to`'s on do not run, and no hook stays on the model.

    Raises:
        ValueError: `tokens` are not of rank 2, or `sae_from` is not at an earlier layer than `sae_to`.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_order(sae_from, sae_to)
    earlier = mine.SparseTensor.from_sparse((latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape))
    hook = _reconstruction_hook(earlier.dense, sae_from, model)
    stream = model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=_layer(sae_to))
    later = mine.SparseTensor.from_dense(_counted(sae_to.encode(stream), model))
    return later.values, (later.dense,)
    # END SOLUTION


def latent_to_latent_gradients(
    tokens: Int[Tensor, "batch seq"], sae_from: "SAE", sae_to: "SAE", model: "SAETransformerBridge"
) -> tuple[Float[Tensor, "nnz_later nnz"], "SparseTensor", "SparseTensor", "SparseTensor"]:
    """How each active later latent depends on each active earlier one: the Jacobian between active entries only.

    Returns:
        ``grads``: entry [i, j] is the derivative of the i-th entry of ``acts_next_recon`` by the j-th of ``acts_prev``.
        ``acts_prev``, ``acts_next``: true activations of `sae_from` and `sae_to`, of shape (batch, seq, d_sae), from
        one run with the error term on, so that both see the true stream.
        ``acts_next_recon``: those of `sae_to` if the reconstruction by `sae_from` stands in for the stream. This is
        what is differentiated, and it is not the same set as ``acts_next``.

    All three are your `SparseTensor`. Positions before `first_position(model)` are not active.

    Raises:
        ValueError: `tokens` are not of rank 2, `sae_from` is not at an earlier layer than `sae_to`, or no latent is
            active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_order(sae_from, sae_to)
    acts_prev, acts_next = _true_acts(tokens, [sae_from, sae_to], model)
    # In two plain lines, and just as right:
    #     differentiate = torch.func.jacrev(latent_acts_to_later_latent_acts, argnums=0, has_aux=True)
    #     grads, (dense,) = differentiate(*acts_prev.sparse, sae_from, sae_to, model, tokens)
    # The kernel gives the same numbers sooner, because it knows what jacrev can not: an active latent is linear in the
    # stream, so each gradient starts as an encoder column and ends against the decoder rows of active latents; no dense
    # [seq, d_sae] tensor is ever differentiated, and nothing is carried to tokens that a latent can not see.
    values, indices, _ = acts_prev.sparse
    grads, *later = jacobians.latents_to_latents(model, tokens, sae_from, sae_to, values, indices)
    return grads, acts_prev, acts_next, mine.SparseTensor.from_sparse((*later, acts_next.shape))
    # END SOLUTION


def tokens_to_latent_acts(
    token_scales: Float[Tensor, "batch seq"],
    tokens: Int[Tensor, "batch seq"],
    sae: "SAE",
    model: "SAETransformerBridge",
) -> tuple[Float[Tensor, " nnz"], tuple[Float[Tensor, "batch seq d_sae"]]]:
    """Active latents as a function of how strong each token is.

    Each token's embedding (`hook_embed`) is multiplied by its scale before block 0; the true stream runs up to `sae`,
    no reconstruction is involved. At scales of 1 this is the model as it is.

    Returns:
        The non-zero activations in row-major order, and a tuple with their dense tensor alone. Positions before
        `first_position(model)` count as 0.

    Raises:
        ValueError: `tokens` are not of rank 2, or there is not one scale for each.
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
    stream = model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=_layer(sae))
    latents = mine.SparseTensor.from_dense(_counted(sae.encode(stream), model))
    return latents.values, (latents.dense,)
    # END SOLUTION


def token_to_latent_gradients(
    tokens: Int[Tensor, "batch seq"], sae: "SAE", model: "SAETransformerBridge"
) -> tuple[Float[Tensor, "batch seq nnz"], "SparseTensor"]:
    """How each active latent depends on the strength of each token.

    Returns:
        ``grads``: entry [b, s, i] is the derivative of the i-th active latent by the scale of token s of row b, at
        scales of 1.
        ``acts``: the active latents, your `SparseTensor` of shape (batch, seq, d_sae).

    Raises:
        ValueError: `tokens` are not of rank 2, or no latent is active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    (acts,) = _true_acts(tokens, [sae], model)
    # Plainly, with a backward pass for each of hundreds of latents:
    #     ones = torch.ones(tokens.shape)
    #     grads, _ = torch.func.jacrev(tokens_to_latent_acts, argnums=0, has_aux=True)(ones, tokens, sae, model)
    #     grads = grads.movedim(0, -1)
    # There are far fewer tokens than latents, so the kernel goes forward: one direction for each token.
    grads, _, _ = jacobians.tokens_to_latents(model, tokens, sae)
    return grads, acts
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
    then the model runs to its end.

    Returns:
        The logits of `token_ids`, in their order, and a tuple with the logits of the whole vocabulary alone.

    Raises:
        ValueError: `tokens` are not one prompt, of shape [1, seq].
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens, one_row=True)
    latents = mine.SparseTensor.from_sparse((latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape))
    hooks = [_reconstruction_hook(latents.dense, sae, model), _last_position_hook(model)]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
    return logits[token_ids], (logits,)
    # END SOLUTION


def latent_to_logit_gradients(
    tokens: Int[Tensor, "1 seq"], sae: "SAE", model: "SAETransformerBridge", k: int
) -> tuple[
    Float[Tensor, "k nnz"], Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"], Int[Tensor, " k"], "SparseTensor"
]:
    """How the `k` largest logits of the last position depend on each active latent.

    Returns:
        ``grads``: entry [t, j] is the derivative of the logit of ``token_ids[t]`` by the j-th active latent.
        ``logits``: those of the untouched model at the last position.
        ``logits_recon``: those with the dictionary's reconstruction in place of the stream; these are differentiated.
        ``token_ids``: the tokens with the `k` largest ``logits`` (the untouched ones), largest first.
        ``acts``: the active latents, your `SparseTensor` of shape (1, seq, d_sae), from the untouched model.

    Raises:
        ValueError: `tokens` are not of shape [1, seq], `k` is not between 1 and the vocabulary's size, or no latent is
            active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens, one_row=True)
    if not 1 <= k <= model.cfg.d_vocab:
        raise ValueError(f"k must be between 1 and {model.cfg.d_vocab}, the size of the vocabulary, not {k}")
    (acts,) = _true_acts(tokens, [sae], model)
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[_last_position_hook(model)])[0, -1]
        token_ids = logits.topk(k).indices
        _, (logits_recon,) = latent_acts_to_logits(*acts.sparse, sae, model, tokens, token_ids)
    # Plainly: torch.func.jacrev(latent_acts_to_logits, argnums=0, has_aux=True)(*acts.sparse, sae, model, tokens,
    # token_ids) gives the gradients, and logits_recon with them. The kernel unembeds the wanted tokens only.
    grads, _ = jacobians.latents_to_logits(model, tokens, sae, *acts.sparse[:2], token_ids)
    return grads, logits, logits_recon, token_ids, acts
    # END SOLUTION


def gradient_vs_ablation(
    tokens: Int[Tensor, "1 seq"], sae: "SAE", model: "SAETransformerBridge", token_id: int
) -> tuple[Float[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """What each active latent does for one logit of the last position: as the gradient has it, and in truth.

    Returns:
        ``predicted``: activation times gradient, the gradient as in `latent_to_logit_gradients`.
        ``actual``: what the logit of the untouched model *loses* when that latent, at that position, is zeroed in the
        true stream: logit before minus logit after, with the error term kept, so that nothing else changes.

    Both are in logits and follow the order of ``acts``. Positive means that the latent speaks for the token.

    Raises:
        ValueError: `tokens` are not of shape [1, seq], or no latent is active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens, one_row=True)
    (acts,) = _true_acts(tokens, [sae], model)
    token_ids = torch.tensor([token_id], device=tokens.device)
    grads, _ = jacobians.latents_to_logits(model, tokens, sae, *acts.sparse[:2], token_ids)
    predicted = acts.values * grads[0]

    # To zero latent j at position p is to take its share of the reconstruction, activation times decoder row, out of
    # the stream there. The row comes from decoding, so that nothing is assumed about how the dictionary scales.
    _, position, latent = acts.indices.unbind(dim=-1)
    alone = torch.zeros(len(acts.values), sae.cfg.d_sae, device=tokens.device)
    alone[torch.arange(len(latent)), latent] = acts.values
    shares = sae.decode(alone) - sae.decode(torch.zeros_like(alone))

    def logit(removed: Float[Tensor, "n d_model"], at: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The logit in n runs at once; blocks before the dictionary see one row, which is then copied n times."""

        def remove(resid, hook):
            resid = resid.repeat(len(at), 1, 1)
            resid[torch.arange(len(at)), at] -= removed
            return resid

        hooks = [(sae.cfg.metadata.hook_name, remove), _last_position_hook(model)]
        return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1, token_id]

    with torch.no_grad():
        before = logit(torch.zeros_like(shares[:1]), position[:1])
        after = [logit(*some) for some in zip(shares.split(64), position.split(64), strict=True)]
    return predicted, before - torch.cat(after)
    # END SOLUTION


def jacobian_plan(n_inputs: int, n_outputs: int, bytes_per_direction: int, budget_bytes: int) -> tuple[str, int, int]:
    """How to compute a Jacobian of `n_outputs` rows and `n_inputs` columns with the fewest directions.

    Args:
        bytes_per_direction: memory that one direction takes while it is under way, in either mode.
        budget_bytes: memory for all that are under way together.

    Returns:
        ``mode``: ``"forward"``, one direction for each input, or ``"reverse"``, one for each output.
        ``chunk``: how many directions to take at once: as many as fit, and no more than there are.
        ``n_chunks``: how many such chunks there are; the last may be smaller.

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

    Args:
        rows: which later latents, as places in the list ``acts_next_recon``.
        columns: which earlier latents, as places in the list ``acts_prev``.
        chunk: at most so many directions are under way together. Fewer forward directions than reverse ones: forward.

    Raises:
        ValueError: as `latent_to_latent_gradients`, or `chunk` is below 1.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_order(sae_from, sae_to)
    if chunk < 1:
        raise ValueError(f"at least one direction must be under way at a time, so chunk can not be {chunk}")
    values, indices, shape = _true_acts(tokens, [sae_from], model)[0].sparse
    with torch.no_grad():  # where are the later latents? Their places must be known before a forward pass is mapped
        _, (dense,) = latent_acts_to_later_latent_acts(values, indices, shape, sae_from, sae_to, model, tokens)
    places = mine.SparseTensor.from_dense(dense).indices[rows].unbind(dim=-1)

    def f(some: Float[Tensor, " n_columns"]) -> Float[Tensor, " n_rows"]:
        latents = mine.SparseTensor.from_sparse((values.index_put((columns,), some), indices, shape))
        hook = _reconstruction_hook(latents.dense, sae_from, model)
        return sae_to.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=_layer(sae_to)))[places]

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
