"""Where latents are most active in given text: any number of latents in one pass of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from fast.sparse import encode_columns

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from torch import Tensor

MEMORY = 256_000_000  # bytes that the activations of one batch of rows may take, all layers' workings included


def top_examples(
    model: SAETransformerBridge,
    dictionary: SAE[Any],
    tokens: Int[Tensor, "batch seq"],
    latents: Sequence[int],
    k: int,
    buffer: int = 0,
    start: int = 0,
    memory: int = MEMORY,
) -> tuple[Float[Tensor, "n_latents k"], Int[Tensor, "n_latents k 2"]]:
    """The largest activations of each latent, largest first, and their places (row, column).

    The strongest place comes first; then again and again the strongest one that is not in the same row within `buffer`
    columns of one that was taken. Every token goes through the model once, in batches of whole rows, and no further
    than the dictionary's input; only the wanted latents are encoded. Places exclude each other within a row only, so
    the best of all rows are the best of the batches' best.

    Args:
        buffer: places have so many columns of their row on either side
        start: columns before this one do not count

    Returns:
        where a latent has fewer than `k` active places, the activations end in zeros, and the places mean nothing
    """
    acts = torch.zeros(len(latents), k)
    places = torch.zeros(len(latents), k, 2, dtype=torch.int64)
    with torch.no_grad():
        for row, batch in activations(model, dictionary, tokens, latents, memory):
            found, where = strongest(batch, k, buffer, start)
            where[..., 0] += row
            acts, order = torch.cat([acts, found], dim=1).sort(dim=1, descending=True, stable=True)
            order = order[:, :k, None].expand(-1, -1, 2)
            acts, places = acts[:, :k], torch.cat([places, where], dim=1).gather(1, order)
    return acts, places


def activations(
    model: SAETransformerBridge,
    dictionary: SAE[Any],
    tokens: Int[Tensor, "batch seq"],
    latents: Sequence[int],
    memory: int = MEMORY,
) -> Iterator[tuple[int, Float[Tensor, "n_latents rows seq"]]]:
    """Activations of some latents in batches of rows, each with the number of its first row."""
    columns = torch.as_tensor(latents, dtype=torch.int64)
    # A block's workings are about thirty streams wide; the latents are there three times while places are picked.
    per_row = 4 * tokens.shape[1] * (30 * model.cfg.d_model + 3 * len(columns))
    rows = max(1, memory // per_row)
    for row in range(0, len(tokens), rows):
        inputs = read(model, dictionary, tokens[row : row + rows])
        yield row, encode(dictionary, inputs, columns).movedim(-1, 0).float()


def read(
    model: SAETransformerBridge, dictionary: SAE[Any], tokens: Int[Tensor, "rows seq"]
) -> Float[Tensor, "rows seq d"]:
    """What the dictionary reads; the model goes no further."""

    def stop(activation: Tensor, hook: Any) -> None:
        raise StopAtLayerException(activation)

    return model.run_with_hooks(tokens, fwd_hooks=[(dictionary.cfg.metadata.hook_name, stop)])


def encode(
    dictionary: SAE[Any], inputs: Float[Tensor, "... d"], columns: Int[Tensor, " n_latents"]
) -> Float[Tensor, "... n_latents"]:
    """The activations of some latents, without those of the others where the architecture allows it."""
    if dictionary.cfg.architecture() not in ("transcoder", "jumprelu_transcoder"):
        return dictionary.encode(inputs)[..., columns]  # TopK compares all latents with each other
    before = encode_columns(dictionary, inputs, columns)
    acts = before.relu()
    if hasattr(dictionary, "threshold"):
        acts = acts * (before > dictionary.threshold[columns])
    return acts


def strongest(
    acts: Float[Tensor, "n_latents rows seq"], k: int, buffer: int, start: int = 0
) -> tuple[Float[Tensor, "n_latents k"], Int[Tensor, "n_latents k 2"]]:
    """The same among given activations, by k rounds that each take one place of every latent."""
    first, last = max(buffer, start), acts.shape[-1] - buffer
    left = acts[..., first:last].clone()
    width = left.shape[-1]
    values = torch.zeros(len(left), k)
    places = torch.zeros(len(left), k, 2, dtype=torch.int64)
    if left.numel() == 0:
        return values, places
    which = torch.arange(len(left))[:, None]
    nearby = torch.arange(-buffer, buffer + 1)
    for place in range(k):
        best, at = left.flatten(1).max(dim=1)
        if not (best > 0).any():
            break
        row, column = at // width, at % width
        values[:, place] = best
        places[:, place] = torch.stack([row, column + first], dim=1)
        left[which, row[:, None], (column[:, None] + nearby).clamp(0, width - 1)] = 0
    return values, places
