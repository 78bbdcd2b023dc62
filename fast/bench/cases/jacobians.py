"""Jacobians between active latents, tokens and logits, against `torch.func.jacrev` through dense dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import torch

from fast import jacobians
from fast.bench.case import Case, Goal, Problem
from fast.bench.inputs import passages
from fast.segment import block_of
from utils.models.profiles import first_position

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from torch import Tensor

    from utils.models.loading import Loaded

N_LOGITS = 10
MOST_MEMORY = 16e9
BEYOND_THE_BOUND = (
    "the bound counts a whole pass for each latent; up to the one attention in which positions meet, the fast form "
    "carries all positions together, so that its share of the bound may be above 1"
)


# ---- the plain formulations


def dense_latents(
    loaded: Loaded, tokens: Int[Tensor, "1 seq"], sae_from: SAE[Any], values: Tensor, indices: Tensor, hook_name: str
) -> Tensor:
    """The activation at a later hook, from all rows of the decoder."""
    acts = torch.zeros(*tokens.shape, sae_from.cfg.d_sae).index_put(indices.unbind(1), values)
    reconstruction = sae_from.decode(acts)
    first = first_position(loaded.model)

    def replace(activation: Tensor, hook: Any) -> Tensor:
        return torch.cat([activation[:, :first], reconstruction[:, first:]], dim=1)

    return dense_run(loaded, tokens, [(_hook(sae_from), replace)], hook_name)


def dense_run(loaded: Loaded, tokens: Tensor, hooks: list[Any], hook_name: str) -> Tensor:
    if hook_name == "logits":
        return loaded.model.run_with_hooks(tokens, fwd_hooks=hooks)
    kept = []
    hooks = [*hooks, (hook_name, lambda activation, hook: kept.append(activation))]
    loaded.model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=block_of(hook_name) + 1)
    return kept[0]


def active(loaded: Loaded, sae: SAE[Any], activation: Tensor) -> tuple[Float[Tensor, " nnz"], Int[Tensor, "nnz 3"]]:
    """The non-zero latents, but for those at positions that do not count."""
    acts = sae.encode(activation)
    acts[:, : first_position(loaded.model)] = 0
    indices = acts.nonzero()
    return acts[indices.unbind(1)], indices


# ---- the problems


def _latents_to_latents(name_from: str, name_to: str, loaded: Loaded, length: int) -> Problem:
    tokens, sae_from, sae_to = passages(loaded, length), loaded.dictionaries[name_from], loaded.dictionaries[name_to]
    with torch.no_grad():
        values, indices = active(loaded, sae_from, dense_run(loaded, tokens, [], _hook(sae_from)))
        later = active(loaded, sae_to, dense_latents(loaded, tokens, sae_from, values, indices, _hook(sae_to)))

    def plain(values: Tensor) -> Tensor:
        return sae_to.encode(dense_latents(loaded, tokens, sae_from, values, indices, _hook(sae_to)))[
            later[1].unbind(1)
        ]

    chunk, note = _chunk(loaded, length, len(later[0]), 2 * sae_to.cfg.d_sae + sae_from.cfg.d_sae)
    if _hook(sae_to).endswith("hook_z"):
        note = "; ".join(filter(None, (note, BEYOND_THE_BOUND)))
    return Problem(
        fast=lambda: jacobians.latents_to_latents(loaded.model, tokens, sae_from, sae_to, values, indices)[0],
        plain=lambda: torch.func.jacrev(plain, chunk_size=chunk)(values),
        flops=2 * _weights_between(loaded, _hook(sae_from), _hook(sae_to)) * _passes(indices, later[1], length),
        note=note,
    )


def _tokens_to_latents(name: str, loaded: Loaded, length: int) -> Problem:
    tokens, sae = passages(loaded, length), loaded.dictionaries[name]
    with torch.no_grad():
        _, indices = active(loaded, sae, dense_run(loaded, tokens, [], _hook(sae)))

    def plain(scales: Tensor) -> Tensor:
        scale = ("hook_embed", lambda embedding, hook: embedding * scales[..., None])
        return sae.encode(dense_run(loaded, tokens, [scale], _hook(sae)))[indices.unbind(1)]

    chunk, note = _chunk(loaded, length, len(indices), 2 * sae.cfg.d_sae)
    positions = torch.arange(length)
    return Problem(
        fast=lambda: jacobians.tokens_to_latents(loaded.model, tokens, sae)[0],
        plain=lambda: torch.func.jacrev(plain, chunk_size=chunk)(torch.ones(tokens.shape)).permute(1, 2, 0),
        flops=2 * _weights_between(loaded, "blocks.0.hook_resid_pre", _hook(sae)) * float((length - positions).sum()),
        note=note,
    )


def _latents_to_logits(name: str, loaded: Loaded, length: int) -> Problem:
    tokens, sae = passages(loaded, length), loaded.dictionaries[name]
    with torch.no_grad():
        stream = dense_run(loaded, tokens, [], _hook(sae))
        values, indices = active(loaded, sae, stream)
        token_ids = dense_latents(loaded, tokens, sae, values, indices, "logits")[0, -1].topk(N_LOGITS).indices

    def plain(values: Tensor) -> Tensor:
        return dense_latents(loaded, tokens, sae, values, indices, "logits")[0, -1, token_ids]

    return Problem(
        fast=lambda: jacobians.latents_to_logits(loaded.model, tokens, sae, values, indices, token_ids, stream)[0],
        plain=lambda: torch.func.jacrev(plain)(values),
        note="the fast form starts at the dictionary, from the true stream there; the plain side at the first block, "
        "as the bridge has to",
    )


def _chunk(loaded: Loaded, length: int, passes: int, latents: int) -> tuple[int | None, str]:
    """How many backward passes of the plain formulation fit at once; None for all."""
    a_pass = 4 * length * (latents + 6 * loaded.model.cfg.d_mlp)
    most = int(min(MOST_MEMORY, 0.6 * psutil.virtual_memory().available) / a_pass)
    if passes <= most:
        return None, ""
    return (
        most,
        f"plain in chunks of {most} of {passes} backward passes: all at once would take {passes * a_pass / 1e9:.0f} GB",
    )


def _passes(earlier: Tensor, later: Tensor, length: int) -> float:
    """Positions that a pass per latent of the smaller side covers: a later latent's past, an earlier one's future."""
    return float(min((length - earlier[:, 1]).sum(), (later[:, 1] + 1).sum()))


def _weights_between(loaded: Loaded, earlier: str, later: str) -> int:
    """How many weights of matrices lie between two hooks, each on the stream that enters a block or on its heads' z."""
    blocks = loaded.model.blocks
    total = sum(_weights(block) for block in blocks[block_of(earlier) : block_of(later)])
    for hook_name, sign in ((earlier, -1), (later, 1)):
        if hook_name.endswith("hook_z"):
            attn = blocks[block_of(hook_name)].attn
            total += sign * sum(map(_weights, (attn.q, attn.k, attn.v)))
    return total


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)


def _hook(sae: SAE[Any]) -> str:
    return sae.cfg.metadata.hook_name


def _case(name: str, make: Callable[[Loaded, int], Problem], goal: Goal, sizes: tuple[int, ...] = (16, 64)) -> Case:
    return Case(name=name, size_name="tokens", sizes=sizes, make=make, goal=goal)


CASES = (
    _case(
        "latents to latents, resid_pre 3 to 6",
        partial(_latents_to_latents, "resid_pre.3", "resid_pre.6"),
        Goal(speed=2, memory=10, share=0.5),
        sizes=(16, 32, 64),
    ),
    _case(
        "latents to latents, z 16 to 17",
        partial(_latents_to_latents, "z.16", "z.17"),
        Goal(speed=2, memory=10, share=0.5),
    ),
    _case("tokens to latents, resid_pre 6", partial(_tokens_to_latents, "resid_pre.6"), Goal(speed=20)),
    _case(
        f"latents to {N_LOGITS} logits, resid_pre 24",
        partial(_latents_to_logits, "resid_pre.24"),
        Goal(speed=3),
        sizes=(16, 32, 64),
    ),
)
