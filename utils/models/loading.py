"""`load()` gives a profile's model, tokenizer and dictionaries, ready to work with.

All profiles go one way: TransformerLens's bridge as SAELens extends it, in compatibility mode.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.errors import CourseError
from utils.models import model_files
from utils.models.dictionaries import Dictionaries
from utils.models.hub import check_hub, explained
from utils.models.profiles import PROFILES, Profile

if TYPE_CHECKING:
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """What `load` gives: a model in evaluation mode whose weights want no gradients, and what belongs to it."""

    profile: Profile
    model: SAETransformerBridge
    tokenizer: PreTrainedTokenizerBase
    dictionaries: Dictionaries

    def __repr__(self) -> str:
        return f"Loaded({self.profile.name}: {self.profile.model_id}, {len(self.dictionaries)} dictionaries)"


_loaded: dict[str, Loaded] = {}
_loading = threading.Lock()


def load(profile: str = "smollm2") -> Loaded:
    """The profile's model, tokenizer and dictionaries. Asked again, the same process gets the same object at once.

    Args:
        profile: "smollm2" (runs anywhere), "gpt2" or "gemma2" (from the Hugging Face hub)

    Raises:
        CourseError: an unknown profile, or something on this machine that stands in the way
    """
    if profile not in PROFILES:
        raise CourseError(f"There is no profile {profile!r}. There are: {', '.join(PROFILES)}.")
    with _loading:
        if profile not in _loaded:
            _loaded[profile] = _load(PROFILES[profile])
        return _loaded[profile]


def _load(profile: Profile) -> Loaded:
    started = time.monotonic()
    short_name = profile.model_id.split("/")[-1]
    if not profile.on_hub:
        source = str(model_files.ensure_model())
    else:
        check_hub(profile)
        source = profile.model_id
    print(f"Loading {short_name} ...", end="", flush=True)
    device = device_for(profile)
    with explained(profile), _without_bars():
        model = _boot(profile, source, device)
    print(f" done in {time.monotonic() - started:.0f} s.", flush=True)
    return Loaded(profile, model, model.tokenizer, Dictionaries(profile, device))


def _boot(profile: Profile, source: str, device: str) -> SAETransformerBridge:
    import torch
    from transformers import AutoTokenizer

    from utils.models.bridge import SAETransformerBridge

    model = SAETransformerBridge.boot_transformers(
        source,
        tokenizer=AutoTokenizer.from_pretrained(source),
        device=device,
        # Half the memory where memory is what is short; bfloat16 keeps float32's range.
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )
    model.__class__ = SAETransformerBridge  # whichever class it is booted as
    model.enable_compatibility_mode(no_processing=not profile.processed)
    model.cfg.model_name = profile.model_id
    model.eval()
    model.requires_grad_(False)
    return model


def device_for(profile: Profile) -> str:
    """Where the profile's model runs: the GPU if it wants one and there is a large enough one, else the CPU.

    Raises:
        CourseError: neither has the memory
    """
    import psutil

    if profile.wants_gpu:
        import torch

        if torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= profile.memory_gb * 1e9:
            return "cuda"
    free = psutil.virtual_memory().available / 1e9
    if profile.on_hub and free < profile.memory_gb:
        raise CourseError(
            f"Profile {profile.name} needs {profile.needs}; its model takes {profile.memory_gb:.0f} GB of memory, and "
            f"{free:.1f} GB are free. Close other notebooks, use a larger machine, or stay with the default profile: "
            "load()"
        )
    return "cpu"


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers shows a bar even for half a second's work; what is to be fetched still shows the hub's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    _keep_hub_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _keep_hub_bars() -> None:
    # transformers switches the hub's bars off together with its own (docs/upstream.md, 8).
    from huggingface_hub.utils import enable_progress_bars

    with contextlib.suppress(Exception):
        enable_progress_bars()
