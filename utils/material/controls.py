"""What a finding is held against: directions and planes that were drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def random_plane(n: int, seed: int, inside: Float[Tensor, "k n"] | None = None) -> Float[Tensor, "2 n"]:
    """Two random orthonormal rows of `n` numbers.

    Args:
        inside: orthonormal rows; the plane lies in their span, which is smaller than the whole space.
    """
    rows = torch.randn(n if inside is None else len(inside), 2, generator=torch.Generator().manual_seed(seed))
    plane = torch.linalg.qr(rows)[0].T
    return plane if inside is None else plane @ inside
