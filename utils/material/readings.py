"""Tables of what a latent reads and writes, in tokens. They show what your own tools of chapter 06 compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.material.public_text import str_tokens
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

    :param extended: the extended embedding, where you have it already: making it takes seconds
    """
    extended = mine.create_extended_embedding(model) if extended is None else extended
    values, token_ids = (extended @ sae.W_enc[:, latent_idx]).topk(k)
    return ranking(model, values, token_ids, "extended de-embedding")
