"""Links between latents of two layers: summaries, tables and pictures of a Jacobian (chapters 04 and 05)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor


def jacobian_summary(jacobian: dict[str, Any], n_tokens: int, n_links: int = 2000) -> dict[str, Any]:
    """What the figures need of a Jacobian between latents, small enough to be stored.

    A link's *contribution* is its gradient times the activation that it starts from.

    Args:
        jacobian: `grads` [later, earlier], and `prev`, `next`, `recon`: the active latents as values, indices and
            shape, earlier ones, later ones, and later ones under reconstruction. An index is batch, token, latent.
        n_tokens: length of the prompt.
        n_links: how many of the strongest links to keep.

    Returns:
        `by token`: sizes of all contributions, summed [later token, earlier token]; of the strongest links `links`
        (later token, later latent, earlier token, earlier latent), `gradient` and `contribution`; `counts` of active
        latents: earlier, later in truth, later under reconstruction, in one of these two but not both; and for each
        token `there`, later latents active in truth, and `kept`, those of them still active under reconstruction.
    """
    grads, (values, source, _), (_, target, _) = jacobian["grads"], jacobian["prev"], jacobian["recon"]
    contributions = grads * values
    by_token = torch.zeros(n_tokens, n_tokens)
    by_token.index_put_((target[:, None, 1], source[None, :, 1]), contributions.abs(), accumulate=True)
    strongest = contributions.abs().flatten().topk(n_links).indices
    row, column = strongest // grads.shape[1], strongest % grads.shape[1]
    true_places = {tuple(place) for place in jacobian["next"][1].tolist()}
    recon_places = {tuple(place) for place in target.tolist()}
    return {
        "by token": by_token,
        "links": torch.stack([target[row, 1], target[row, 2], source[column, 1], source[column, 2]], dim=1),
        "gradient": grads[row, column],
        "contribution": contributions[row, column],
        "counts": [len(values), len(true_places), len(recon_places), len(true_places ^ recon_places)],
        "kept": [sum(place[1] == token for place in true_places & recon_places) for token in range(n_tokens)],
        "there": [sum(place[1] == token for place in true_places) for token in range(n_tokens)],
    }


def links_table(
    summary: dict[str, Any], words: Sequence[str], earlier: int, later: int, *, inside: bool, n: int = 8
) -> pd.DataFrame:
    """The strongest links of a Jacobian's summary, one a row.

    Args:
        words: the tokens as text.
        earlier, later: the two layers.
        inside: those within a token; else those from one token to another.
    """
    import pandas as pd

    links = summary["links"]
    chosen = ((links[:, 0] == links[:, 2]) == inside).nonzero()[:n, 0]
    return pd.DataFrame(
        {
            "from": f"{earlier}.{from_latent} at {words[from_token]!r}",
            "to": f"{later}.{to_latent} at {words[to_token]!r}",
            "gradient": round(summary["gradient"][place].item(), 3),
            "contribution": round(summary["contribution"][place].item(), 2),
        }
        for place, (to_token, to_latent, from_token, from_latent) in zip(
            chosen.tolist(), links[chosen].tolist(), strict=True
        )
    )


def crosses(n_rows: int, n_columns: int, row: int, column: int | None = None) -> list[list[str]]:
    """Text for a heatmap's cells: "x" in one, or in a whole row, and nothing elsewhere."""
    return [["x" if i == row and column in (None, j) else "" for j in range(n_columns)] for i in range(n_rows)]


def coarse_jacobian(
    grads: Float[Tensor, "later earlier"],
    later_positions: Int[Tensor, " later"],
    earlier_positions: Int[Tensor, " earlier"],
    n_positions: int,
    cells: int = 8,
) -> Float[Tensor, "size size"]:
    """A Jacobian made small enough for a screen: the largest magnitude among the latents that share a cell.

    Args:
        later_positions, earlier_positions: where the latents of the rows and columns stand, from 1, in rising order.
        n_positions: positions after the first, which has no latents.
        cells: each position has `cells` by `cells`, so that `size` is `n_positions * cells`.
    """

    def places(positions: Tensor) -> Tensor:
        rank = torch.arange(len(positions)) - torch.searchsorted(positions, positions)
        n_there = torch.bincount(positions, minlength=n_positions + 1)[positions]
        return (positions - 1) * cells + rank * cells // n_there

    size = n_positions * cells
    flat = places(later_positions.contiguous())[:, None] * size + places(earlier_positions.contiguous())
    picture = torch.zeros(size * size).scatter_reduce(0, flat.flatten(), grads.abs().flatten(), "amax")
    return picture.reshape(size, size)
