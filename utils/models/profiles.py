"""The profiles: which model, prepared how, with which dictionaries. `utils.models.loading` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.errors import CourseError


@dataclass(frozen=True)
class HubRelease:
    """Dictionaries published on the hub, one a layer.

    Attributes:
        release: SAELens's name of the release, or the repository that holds it
        sae_id: the dictionary's name there, with `{layer}` in it
    """

    release: str
    sae_id: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """A model, how it is prepared, and the dictionaries that belong to it.

    Attributes:
        model_id: the model's official name
        processed: whether LayerNorm is folded and writing weights and unembedding are centred, as they were when the
            profile's dictionaries were trained
        sink_in_training: whether the dictionaries were trained on the attention-sink position too. Where they were
            not, the stream passes through untouched there, and its latents do not count as active.
        layers: topic -> the layers that the chapters look at
        needs: what the profile needs, in words
        memory_gb: memory that has to be free, on the device where the model runs
        gated: whether the hub wants a token of somebody who has accepted the model's licence
        releases: kind of dictionary -> where the hub has them; the default profile's are bundled with the course
    """

    name: str
    model_id: str
    processed: bool
    sink_in_training: bool
    layers: Mapping[str, tuple[int, ...]]
    needs: str
    memory_gb: float
    on_hub: bool = False
    gated: bool = False
    wants_gpu: bool = False
    releases: Mapping[str, HubRelease] = field(default_factory=dict)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smollm2",
            model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            processed=False,
            sink_in_training=False,
            layers={
                "days": (9,),
                "categories": (8, 14, 20, 26),
                "latents_to_latents": (3, 6),
                "tokens_to_latents": (6,),
                "latents_to_logits": (24,),
                "attention": (16, 17),
                "transcoders": tuple(range(9)),
            },
            needs="a laptop's CPU: no account, no token, no GPU, no hub",
            memory_gb=2.0,
        ),
        Profile(
            name="gpt2",
            model_id="gpt2",
            processed=True,
            sink_in_training=True,
            layers={
                "latents_to_latents": (0, 3),
                "tokens_to_latents": (3,),
                "latents_to_logits": (9,),
                "attention": (4, 5),
                "transcoders": tuple(range(9)),
            },
            needs="the Hugging Face hub",
            memory_gb=3.0,
            on_hub=True,
            releases={
                "resid_pre": HubRelease("gpt2-small-res-jb", "blocks.{layer}.hook_resid_pre", tuple(range(12))),
                "z": HubRelease("gpt2-small-hook-z-kk", "blocks.{layer}.hook_z", tuple(range(12))),
                "transcoder": HubRelease(
                    "callummcdougall/arena-demos-transcoder",
                    "gpt2-small-layer-{layer}-mlp-transcoder-folded-b_dec_out",
                    tuple(range(9)),
                ),
            },
        ),
        Profile(
            name="gemma2",
            model_id="google/gemma-2-2b",
            processed=False,
            sink_in_training=False,
            layers={"categories": (8, 14, 20, 25), "residual": (20,), "temporal": (12,)},
            needs="the Hugging Face hub, a token (the model is gated), and a GPU with 15 GB",
            memory_gb=12.0,
            on_hub=True,
            gated=True,
            wants_gpu=True,
            releases={
                "resid_post": HubRelease("gemma-scope-2b-pt-res-canonical", "layer_{layer}/width_16k/canonical", (20,)),
                "temporal": HubRelease("temporal-sae-gemma-2-2b", "blocks.{layer}.hook_resid_post", (12,)),
            },
        ),
    )
}


def first_position(model: Any) -> int:
    """The first token position whose latents count, in the profile that `model` belongs to.

    1 where the profile's dictionaries were not trained on the attention-sink position: there the stream passes through
    untouched, and its latents do not count as active. Else 0.

    Raises:
        CourseError: the model is of no profile
    """
    for profile in PROFILES.values():
        if profile.model_id == model.cfg.model_name:
            return 0 if profile.sink_in_training else 1
    raise CourseError(f"{model.cfg.model_name} belongs to no profile: use the model that load() gives.")
