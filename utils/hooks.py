"""The one place that knows how hook points are named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import SAE


def layer_of(place: str | SAE[Any]) -> int:
    """The block that a hook point belongs to: 9 for "blocks.9.hook_resid_pre".

    Args:
        place: a hook point's full name, or a dictionary, which means the hook point that it reads.

    Raises:
        ValueError: the name does not say a block.
    """
    name = place if isinstance(place, str) else place.cfg.metadata.hook_name
    match = re.match(r"blocks\.(\d+)\.", name)
    if match is None:
        raise ValueError(f"the hook {name!r} belongs to no block: its name should begin like blocks.9.")
    return int(match[1])
