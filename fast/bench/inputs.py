"""Inputs of the benchmark: real public text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from utils.material.public_text import public_documents

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from utils.models.loading import Loaded


def passages(loaded: Loaded, length: int, count: int = 1) -> Int[Tensor, "count length"]:
    """The first special token and `length - 1` more, from the start of the first documents that are long enough."""
    found = []
    for document in public_documents():
        ids = loaded.tokenizer(document["text"], add_special_tokens=False)["input_ids"]
        if len(ids) >= length - 1:
            found.append([loaded.tokenizer.bos_token_id, *ids[: length - 1]])
        if len(found) == count:
            return torch.tensor(found)
    raise ValueError(f"{len(found)} public documents have {length - 1} tokens or more; {count} were asked for")
