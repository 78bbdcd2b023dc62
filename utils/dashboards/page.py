"""`dashboard("resid_pre.15", 123)` shows what is known about a single latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

from utils.dashboards.facts import facts
from utils.dashboards.view import show_latent
from utils.models.loading import load

if TYPE_CHECKING:
    from sae_lens import SAE


def dashboard(dictionary: str | SAE[Any], latent: SupportsIndex, profile: str = "smollm2") -> None:
    """Show what is known about a latent: top examples, histogram, logit lens, nearest latents.

    Args:
        dictionary: a name, such as "resid_pre.15", or a dictionary that was loaded by its name
        latent: its number, from 0
        profile: as for `load`; for hub profiles, Neuronpedia's page is shown in place of examples

    Raises:
        CourseError: unknown dictionary, latent out of range, or a file of the course missing or damaged
    """
    show_latent(facts(load(profile), dictionary, latent))
