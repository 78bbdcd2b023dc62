"""What a latent reads and writes, in tokens: tables of what your own tools of chapter 06 compute, and a yardstick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from utils.hooks import layer_of
from utils.material.public_text import marked, str_tokens
from utils.models.profiles import first_position
from utils.student_work import mine

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from torch import Tensor


def ranking(
    model: SAETransformerBridge, values: Float[Tensor, " k"], token_ids: Int[Tensor, " k"], label: str
) -> pd.DataFrame:
    """Tokens and their values, one below the other; `label` says what was ranked."""
    import pandas as pd

    words = [repr(word) for word in str_tokens(model, token_ids)]
    return pd.DataFrame({label: words, "value": [f"{value:+.2f}" for value in values.tolist()]})


def show_top_logits(model: SAETransformerBridge, sae: SAE[Any], latent_idx: int, k: int = 10) -> pd.DataFrame:
    """The tokens that a latent makes more probable, by your `top_logits`."""
    values, token_ids = mine.top_logits(model, sae, latent_idx, k)
    return ranking(model, values, token_ids, "logit lens")


def show_top_deembeddings(model: SAETransformerBridge, sae: SAE[Any], latent_idx: int, k: int = 10) -> pd.DataFrame:
    """The tokens whose embeddings a latent reads most strongly, by your `top_deembeddings`."""
    values, token_ids = mine.top_deembeddings(model, sae, latent_idx, k)
    return ranking(model, values, token_ids, "de-embedding")


def show_top_deembeddings_extended(
    model: SAETransformerBridge,
    sae: SAE[Any],
    latent_idx: int,
    k: int = 10,
    extended: Float[Tensor, "d_vocab d_model"] | None = None,
) -> pd.DataFrame:
    """The same for the extended embedding, by your `create_extended_embedding`.

    Args:
        extended: the extended embedding, where you have it already: making it takes seconds
    """
    extended = mine.create_extended_embedding(model) if extended is None else extended
    values, token_ids = (extended @ sae.W_enc[:, latent_idx]).topk(k)
    return ranking(model, values, token_ids, "extended de-embedding")


def examples_table(
    model: SAETransformerBridge,
    tokens: Int[Tensor, "batch seq"],
    places: Float[Tensor, "n 3"],
    latent_idx: int,
    window: int = 8,
) -> pd.DataFrame:
    """Places where a latent is active, one a row, each in a window of text.

    Args:
        places: activation, row and column of each; `window` tokens on either side are there.
    """
    import pandas as pd

    spots = [(act, int(row), int(column)) for act, row, column in places.tolist()]
    texts = [marked(model, tokens[row, column - window : column + window + 1], window) for _, row, column in spots]
    return pd.DataFrame({"latent": latent_idx, "activation": [f"{act:.1f}" for act, _, _ in spots], "text": texts})


def mean_activations(
    model: SAETransformerBridge, transcoder: SAE[Any], tokens: Int[Tensor, "batch seq"], at_least: int = 3
) -> tuple[Int[Tensor, " n_kinds"], Float[Tensor, "n_kinds d_sae"]]:
    """The tokens that occur `at_least` so often, and the mean activation of every latent on each of them."""
    name, start = transcoder.cfg.metadata.hook_name, first_position(model)
    kinds, which, counts = tokens[:, start:].unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(kinds), transcoder.cfg.d_sae)
    for rows in torch.arange(len(tokens)).split(8):
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens[rows], names_filter=name, stop_at_layer=layer_of(name) + 1)
            acts = transcoder.encode(cache[name][:, start:])
        sums.index_add_(0, which[rows].flatten(), acts.flatten(0, 1))
    often = counts >= at_least
    return kinds[often], sums[often] / counts[often, None]
