"""What the active latents of one transcoder give the active latents of a later one, by the weights between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from torch import Tensor


def active_influences(
    transcoder_from: SAE[Any],
    transcoder_to: SAE[Any],
    acts_from: Float[Tensor, "position d_sae"],
    acts_to: Float[Tensor, "position d_sae_to"],
) -> tuple[Float[Tensor, " pair"], Int[Tensor, "pair 3"]]:
    """At each position, the influence of every active earlier latent on every active later one.

    The influence is the earlier activation times the product of its decoder row with the later latent's encoder column.
    Of each position, only the rows and columns of active latents meet: some 60 by 60 of the 3072 by 3072 products.

    Returns:
        influences, and for each its position, earlier latent and later latent, in this order
    """
    values, where = [], []
    columns = transcoder_to.W_enc.T.contiguous()  # a latent's column is gathered as one stretch of memory
    for position, (earlier, later) in enumerate(zip(acts_from, acts_to, strict=True)):
        sources, targets = earlier.nonzero()[:, 0], later.nonzero()[:, 0]
        written = transcoder_from.W_dec[sources] * earlier[sources, None]
        values.append((written @ columns[targets].T).flatten())
        pairs = torch.cartesian_prod(sources, targets).reshape(-1, 2)
        where.append(torch.cat([torch.full((len(pairs), 1), position), pairs], dim=1))
    return torch.cat(values), torch.cat(where)
