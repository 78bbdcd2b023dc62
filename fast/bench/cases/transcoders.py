"""Top examples of many latents, and the influences between active latents, against what one would write first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fast.bench.case import Case, Goal, Problem
from fast.bench.inputs import passages
from fast.top_examples import encode, read, top_examples
from fast.transcoders import active_influences
from utils.hooks import layer_of
from utils.models.profiles import first_position

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from utils.models.loading import Loaded

SEQ = 64
N_LATENTS = 100
K, BUFFER = 10, 5


# ---- top examples


@torch.no_grad()
def one_pass_for_each(loaded: Loaded, dictionary: SAE[Any], tokens: Tensor, latents: list[int]) -> Tensor:
    """The activations at the k places of each latent, `[n_latents, k]`, by a run of the model per latent."""
    return torch.stack([examples_of_one(loaded, dictionary, tokens, latent) for latent in latents])


def examples_of_one(loaded: Loaded, dictionary: SAE[Any], tokens: Tensor, latent: int) -> Tensor:
    hook_name = dictionary.cfg.metadata.hook_name
    layer = layer_of(hook_name)
    _, seen = loaded.model.run_with_cache(tokens, names_filter=hook_name, stop_at_layer=layer + 1)
    acts = dictionary.encode(seen[hook_name])[..., latent]
    acts[:, : max(BUFFER, first_position(loaded.model))] = 0
    acts[:, -BUFFER:] = 0
    best = []
    for _ in range(K):
        row, column = divmod(acts.argmax().item(), acts.shape[1])
        best.append(acts[row, column].clone())
        acts[row, max(0, column - BUFFER) : column + BUFFER + 1] = 0
    return torch.stack(best)


def top_examples_problem(loaded: Loaded, rows: int) -> Problem:
    dictionary = loaded.dictionaries["transcoder.8"]
    tokens = passages(loaded, length=SEQ, count=rows)
    latents = busiest(loaded, dictionary, tokens)
    start = first_position(loaded.model)
    return Problem(
        fast=lambda: top_examples(loaded.model, dictionary, tokens, latents, K, BUFFER, start)[0],
        plain=lambda: one_pass_for_each(loaded, dictionary, tokens, latents),
    )


def busiest(loaded: Loaded, dictionary: SAE[Any], tokens: Tensor) -> list[int]:
    """The latents that are active at most places."""
    with torch.no_grad():
        acts = encode(dictionary, read(loaded.model, dictionary, tokens), torch.arange(dictionary.cfg.d_sae))
    return (acts > 0).flatten(0, 1).sum(dim=0).topk(N_LATENTS).indices.tolist()


# ---- influences between active latents


def dense_influences(transcoder_from: SAE[Any], transcoder_to: SAE[Any], acts_from: Tensor, acts_to: Tensor) -> Tensor:
    """All pairs of latents at all positions; those of active pairs are picked out at the end."""
    with torch.no_grad():
        products = transcoder_from.W_dec @ transcoder_to.W_enc
        influences = acts_from[:, :, None] * products
        return influences[(acts_from[:, :, None] > 0) & (acts_to[:, None, :] > 0)]


def influences_problem(loaded: Loaded, positions: int) -> Problem:
    pair = [loaded.dictionaries["transcoder.7"], loaded.dictionaries["transcoder.8"]]
    tokens = passages(loaded, length=positions + 1)
    with torch.no_grad():
        acts = [
            encode(transcoder, read(loaded.model, transcoder, tokens), torch.arange(transcoder.cfg.d_sae))[0, 1:]
            for transcoder in pair
        ]
    return Problem(
        fast=lambda: active_influences(*pair, *acts)[0].detach(),
        plain=lambda: dense_influences(*pair, *acts),
    )


CASES = (
    Case(
        name=f"top {K} examples of {N_LATENTS} latents of transcoder.8",
        size_name=f"rows of {SEQ} tokens",
        sizes=(2, 4, 8),
        goal=Goal(speed=50),
        make=top_examples_problem,
    ),
    Case(
        name="influences between active latents, transcoder.7 on transcoder.8",
        size_name="tokens",
        sizes=(4, 8, 16),
        make=influences_problem,
    ),
)
