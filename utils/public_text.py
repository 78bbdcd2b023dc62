"""Tokens of the public corpus, `assets/corpus_public.jsonl.xz`, as a model reads them: text to look for examples in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.top_examples import PASSAGE, public_documents

if TYPE_CHECKING:
    from jaxtyping import Int
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from torch import Tensor


def public_tokens(model: SAETransformerBridge, n_rows: int, length: int = PASSAGE + 1) -> Int[Tensor, "n_rows length"]:
    """Rows of public text, each from the middle of another document, after the model's first special token.

    Always the same rows, the documents in the corpus's (random) order, without padding.

    :raises ValueError: there are not so many documents that are long enough
    """
    import torch

    first, rows = model.tokenizer.bos_token_id, []
    for document in public_documents():
        if len(rows) == n_rows:
            break
        text = document["text"]
        # From the middle, and from a word's beginning: documents begin with titles and licences.
        start = text.find(" ", len(text) // 2)
        ids = model.tokenizer(text[start : start + 12 * length], add_special_tokens=False)["input_ids"]
        if start >= 0 and len(ids) >= length - 1:
            rows.append([first, *ids[: length - 1]])
    if len(rows) < n_rows:
        raise ValueError(f"{len(rows)} public documents have {length - 1} tokens or more; {n_rows} rows were asked for")
    return torch.tensor(rows, device=model.cfg.device)


def str_tokens(model: SAETransformerBridge, ids: Int[Tensor, " n"]) -> list[str]:
    """Each token as text, one by one; line breaks become visible signs."""
    return [model.tokenizer.decode([token]).replace("\n", "⏎").replace("\t", "→") for token in ids.tolist()]
