"""The public corpus, `assets/corpus_public.jsonl.xz`, and its tokens as a model reads them.

Text becomes tokens in one way only: a document is tokenised without special tokens and cut, from its start, into
passages of `PASSAGE` tokens, the last one shorter; each passage runs on its own, after the tokenizer's first special
token.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from utils.errors import CourseError
from utils.files import shown
from utils.paths import ASSETS

if TYPE_CHECKING:
    from jaxtyping import Int
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from torch import Tensor

CORPUS = ASSETS / "corpus_public.jsonl.xz"
PASSAGE = 127  # and the first special token: 128


@cache
def public_documents() -> list[dict[str, str]]:
    """The documents of the public corpus: `doc` (a name), `source`, `genre` and `text`.

    Raises:
        CourseError: the file is missing or damaged.
    """
    try:
        with lzma.open(CORPUS, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise CourseError(f"{shown(CORPUS)} is missing. Restore it: git checkout -- {shown(CORPUS)}") from error
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise CourseError(f"{shown(CORPUS)} is damaged. Restore it: git checkout -- {shown(CORPUS)}") from error


def passages(ids: Sequence[int]) -> list[Sequence[int]]:
    """The passages of one document's tokens."""
    return [ids[start : start + PASSAGE] for start in range(0, len(ids), PASSAGE)]


def public_tokens(model: SAETransformerBridge, n_rows: int, length: int = PASSAGE + 1) -> Int[Tensor, "n_rows length"]:
    """Rows of public text, each from the middle of another document, after the model's first special token.

    Always the same rows, the documents in the corpus's (random) order, without padding.

    Raises:
        ValueError: there are not so many documents that are long enough
    """
    import torch

    first = model.tokenizer.bos_token_id
    rows: list[list[int]] = []
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


def marked(model: SAETransformerBridge, ids: Int[Tensor, " n"], place: int) -> str:
    """Tokens as one text, that at `place` in brackets."""
    words = str_tokens(model, ids)
    return "".join([*words[:place], f"[{words[place]}]", *words[place + 1 :]])
