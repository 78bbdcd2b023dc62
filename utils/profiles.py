"""Models and dictionaries by profile: `load()` gives the default one, ready to work with.

All profiles go one way: TransformerLens's bridge as SAELens extends it, in compatibility mode.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import model_files
from utils.errors import CourseError
from utils.paths import DICTIONARIES, ROOT

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class HubRelease:
    """Dictionaries published on the hub, one a layer.

    :param release: SAELens's name of the release, or the repository that holds it
    :param sae_id: the dictionary's name there, with `{layer}` in it
    """

    release: str
    sae_id: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """A model, how it is prepared, and the dictionaries that belong to it.

    :param model_id: the model's official name
    :param processed: whether LayerNorm is folded and writing weights and unembedding are centred, as they were when the
        profile's dictionaries were trained
    :param sink_in_training: whether the dictionaries were trained on the attention-sink position too. Where they were
        not, the stream passes through untouched there, and its latents do not count as active.
    :param layers: topic -> the layers that the chapters look at
    :param needs: what the profile needs, in words
    :param memory_gb: memory that has to be free, on the device where the model runs
    :param gated: whether the hub wants a token of somebody who has accepted the model's licence
    :param releases: kind of dictionary -> where the hub has them; the default profile's are bundled with the course
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


class Dictionaries(Mapping[str, "SAE[Any]"]):
    """A profile's dictionaries by name, such as "resid_pre.15"; each is loaded when it is first asked for."""

    def __init__(self, profile: Profile, device: str):
        self._profile = profile
        self._device = device
        self._loaded: dict[str, SAE[Any]] = {}

    def loaded(self) -> dict[str, "SAE[Any]"]:
        """Those that have been asked for so far."""
        return dict(self._loaded)

    @cached_property
    def _names(self) -> list[str]:
        if self._profile.on_hub:
            return [f"{kind}.{layer}" for kind, place in self._profile.releases.items() for layer in place.layers]
        return bundled_names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> "SAE[Any]":
        if name not in self._loaded:
            if name not in self._names:
                known = ", ".join(self._names) or "none in this copy of the course"
                raise CourseError(f"Profile {self._profile.name} has no dictionary {name!r}. It has: {known}.")
            if self._profile.on_hub:
                dictionary = _hub_dictionary(self._profile, name, self._device)
            else:
                dictionary = _bundled_dictionary(name)
            self._loaded[name] = dictionary.eval().requires_grad_(False)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        return f"Dictionaries({', '.join(self._names)})"


@dataclass(frozen=True)
class Course:
    """What `load` gives: a model in evaluation mode whose weights want no gradients, and what belongs to it."""

    profile: Profile
    model: "SAETransformerBridge"
    tokenizer: "PreTrainedTokenizerBase"
    dictionaries: Dictionaries

    def __repr__(self) -> str:
        return f"Course({self.profile.name}: {self.profile.model_id}, {len(self.dictionaries)} dictionaries)"


_courses: dict[str, Course] = {}
_loading = threading.Lock()


def load(profile: str = "smollm2") -> Course:
    """The profile's model, tokenizer and dictionaries. Asked again, the same process gets the same object at once.

    :param profile: "smollm2" (runs anywhere), "gpt2" or "gemma2" (from the Hugging Face hub)
    :raises CourseError: an unknown profile, or something on this machine that stands in the way
    """
    if profile not in PROFILES:
        raise CourseError(f"There is no profile {profile!r}. There are: {', '.join(PROFILES)}.")
    with _loading:
        if profile not in _courses:
            _courses[profile] = _load(PROFILES[profile])
        return _courses[profile]


def _load(profile: Profile) -> Course:
    started = time.monotonic()
    short_name = profile.model_id.split("/")[-1]
    if not profile.on_hub:
        source = str(model_files.ensure_model())
    else:
        check_hub(profile)
        source = profile.model_id
    print(f"Loading {short_name} ...", end="", flush=True)
    device = device_for(profile)
    with _hub_trouble_explained(profile), _without_bars():
        model = _boot(profile, source, device)
    print(f" done in {time.monotonic() - started:.0f} s.", flush=True)
    return Course(profile, model, model.tokenizer, Dictionaries(profile, device))


def _boot(profile: Profile, source: str, device: str) -> "SAETransformerBridge":
    import torch
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformers import AutoTokenizer

    model = SAETransformerBridge.boot_transformers(
        source,
        tokenizer=AutoTokenizer.from_pretrained(source),
        device=device,
        # Half the memory where memory is what is short; bfloat16 keeps float32's range.
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )
    model.enable_compatibility_mode(no_processing=not profile.processed)
    model.cfg.model_name = profile.model_id
    model.eval()
    model.requires_grad_(False)
    return model


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
    # transformers switches the hub's bars off together with its own.
    from huggingface_hub.utils import enable_progress_bars

    with contextlib.suppress(Exception):
        enable_progress_bars()


# ---- bundled dictionaries


def _manifest() -> dict[str, dict[str, Any]]:
    """Name -> entry of assets/dictionaries/manifest.json; empty where this copy bundles none."""
    path = DICTIONARIES / "manifest.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["dictionaries"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{_shown(path)} is damaged. Restore it: git checkout -- {_shown(path)}") from error


def bundled_names() -> list[str]:
    """The dictionaries that come with this copy of the course, by kind and layer."""
    return sorted(_manifest(), key=_kind_and_layer)


def dictionary_faults(name: str) -> list[str]:
    """What is wrong with the files of a bundled dictionary; nothing, if the list is empty."""
    found = []
    for file, wanted in _manifest()[name]["sha256"].items():
        path = DICTIONARIES / name / file
        if not path.exists():
            found.append(f"{_shown(path)} is missing")
        elif model_files.sha256(path) != wanted:
            found.append(f"{_shown(path)} is damaged (it has a wrong checksum)")
    return found


def _bundled_dictionary(name: str) -> "SAE[Any]":
    faults = dictionary_faults(name)
    folder = DICTIONARIES / name
    if faults:
        raise CourseError(f"{faults[0]}. Restore it: git checkout -- {_shown(folder)}")
    from sae_lens import SAE

    # Stored in half precision to keep the repository small; computed with in single.
    return SAE.load_from_disk(folder, device="cpu", dtype="float32")


def _kind_and_layer(name: str) -> tuple[str, int]:
    kind, _, layer = name.rpartition(".")
    return kind, int(layer) if layer.isdigit() else -1


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# ---- the hub


def _hub_dictionary(profile: Profile, name: str, device: str) -> "SAE[Any]":
    from sae_lens import SAE

    kind, _, layer = name.rpartition(".")
    place = profile.releases[kind]
    with _hub_trouble_explained(profile):
        return SAE.from_pretrained(place.release, place.sae_id.format(layer=layer), device=device)


def device_for(profile: Profile) -> str:
    """Where the profile's model runs: the GPU if it wants one and there is a large enough one, else the CPU.

    :raises CourseError: neither has the memory
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


def check_hub(profile: Profile) -> None:
    """Find out, before anything heavy starts, whether the hub can give what the profile needs.

    :raises CourseError: no token for a gated model, or no answer from the hub, and no copy in the hub's cache
    """
    from huggingface_hub import get_token, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(profile.model_id, "config.json"), str):
        return
    if profile.gated and not get_token():
        raise CourseError(_token_missing(profile))
    trouble = hub_trouble()
    if trouble:
        raise CourseError(_unreachable(profile, trouble))


def hub_trouble(timeout: float = 5.0) -> str | None:
    """Why the hub (or what HF_ENDPOINT names in its place) does not answer; None if it does."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


@contextlib.contextmanager
def _hub_trouble_explained(profile: Profile) -> Iterator[None]:
    """Say what to do about what the hub and its clients raise."""
    try:
        yield
    except Exception as error:
        # While the message "Loading ..." stands there unfinished.
        sys.stdout.flush()
        if not profile.on_hub:
            raise
        names = {type(link).__name__ for link in _chain(error)}
        texts = " ".join(str(link) for link in _chain(error))
        if "GatedRepoError" in names or "gated repo" in texts:
            raise CourseError(_token_missing(profile)) from error
        if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout"}:
            raise CourseError(_unreachable(profile, str(error).splitlines()[0])) from error
        if names & {"OutOfMemoryError", "MemoryError"}:
            raise CourseError(
                f"There is not enough memory for profile {profile.name}, which needs {profile.needs}. "
                "Restart the kernel and close other notebooks, or stay with the default profile: load()"
            ) from error
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _token_missing(profile: Profile) -> str:
    return (
        f"{profile.model_id} is gated: accept its licence on the model's page on the Hugging Face hub, make an access "
        "token there (reading is enough), and run `hf auth login` or set HF_TOKEN before starting Jupyter. Everything "
        "in the course can be done without it, on the default profile: load()"
    )


def _unreachable(profile: Profile, reason: str) -> str:
    return (
        f"Profile {profile.name} comes from the Hugging Face hub, which does not answer ({reason}). Check the network "
        "connection, and HF_ENDPOINT and HF_HUB_OFFLINE if they are set. The default profile needs no hub: load()"
    )
