"""Tables of single attention entries: who looks at what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor


def looks_table(words: Sequence[str], indices: Int[Tensor, "n 4"], values: Float[Tensor, " n"]) -> pd.DataFrame:
    """One row for each entry: the head, the token that looks (with three tokens of context), and what it looks at.

    Args:
        words: the tokens as text.
        indices: layer, head, place of the token that looks, place of the token looked at.
        values: the attention, between 0 and 1.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "head": f"L{layer}H{head}",
            "token": "".join(words[reader - 3 : reader]) + " [" + words[reader].strip() + "]",
            "looks at": words[source],
            "tokens back": reader - source,
            "attention": round(value, 3),
        }
        for (layer, head, reader, source), value in zip(indices.tolist(), values.tolist(), strict=True)
    )
