"""Random sequences that are said twice, and how well a model continues the second time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

FIRST_WORD = 100  # ids below belong to special tokens and single characters


def repeated_sequences(model: Any, half: int, seeds: Sequence[int]) -> Int[Tensor, "n_seeds seq"]:
    """The first special token, `half` random tokens, and the same tokens again: a row for each seed.

    Position 0 is the special token, 1 to `half` the first half, `half` + 1 to 2 `half` the second.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(FIRST_WORD, len(model.tokenizer), (half,), generator=generator)
        rows.append(torch.cat([model.to_tokens("")[0].cpu(), words, words]))
    return torch.stack(rows).to(model.cfg.device)


def repeat_log_prob(
    logits: Float[Tensor, "batch seq d_vocab"], tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    """Mean log-probability, in nats, of the second half's tokens but its first, which nobody could foresee."""
    half = (tokens.shape[1] - 1) // 2
    said = logits[:, half + 1 : -1].log_softmax(dim=-1)
    return said.gather(-1, tokens[:, half + 2 :, None])[..., 0].mean(dim=1)


def word_pairs(model: Any, n: int = 12, seed: int = 0) -> Int[Tensor, "n_pairs seq"]:
    """`n` random words before `n` others, all n * n pairs, after the special token and three fixed words.

    Row `i * n + j` ends with word `i` of the first kind and word `j` of the second.
    """
    generator = torch.Generator().manual_seed(seed)
    before, own, opening = (torch.randint(200, 49_000, (size,), generator=generator) for size in (n, n, 3))
    start = torch.cat([model.to_tokens("")[0].cpu(), opening])
    return torch.stack([torch.cat([start, b[None], o[None]]) for b in before for o in own]).to(model.cfg.device)
