"""A profile's dictionaries by name, loaded when asked for: from this copy of the course, or from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from utils.errors import CourseError
from utils.files import sha256, shown
from utils.models.hub import explained
from utils.models.profiles import Profile
from utils.paths import DICTIONARIES

if TYPE_CHECKING:
    from sae_lens import SAE


class Dictionaries(Mapping[str, "SAE[Any]"]):
    """A profile's dictionaries by name, such as "resid_pre.15"; each is loaded when it is first asked for."""

    def __init__(self, profile: Profile, device: str):
        self._profile = profile
        self._device = device
        self._loaded: dict[str, SAE[Any]] = {}

    def loaded(self) -> dict[str, SAE[Any]]:
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

    def __getitem__(self, name: str) -> SAE[Any]:
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


def _manifest() -> dict[str, dict[str, Any]]:
    """Name -> entry of assets/dictionaries/manifest.json; empty where this copy bundles none."""
    path = DICTIONARIES / "manifest.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["dictionaries"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{shown(path)} is damaged. Restore it: git checkout -- {shown(path)}") from error


def bundled_names() -> list[str]:
    """The dictionaries that come with this copy of the course, by kind and layer."""
    return sorted(_manifest(), key=_kind_and_layer)


def dictionary_faults(name: str) -> list[str]:
    """What is wrong with the files of a bundled dictionary; nothing, if the list is empty."""
    faults = []
    for file, wanted in _manifest()[name]["sha256"].items():
        path = DICTIONARIES / name / file
        if not path.exists():
            faults.append(f"{shown(path)} is missing")
        elif sha256(path) != wanted:
            faults.append(f"{shown(path)} is damaged (it has a wrong checksum)")
    return faults


def _bundled_dictionary(name: str) -> SAE[Any]:
    faults = dictionary_faults(name)
    folder = DICTIONARIES / name
    if faults:
        raise CourseError(f"{faults[0]}. Restore it: git checkout -- {shown(folder)}")
    from sae_lens import SAE

    # Stored in half precision to keep the repository small; computed with in single.
    return SAE.load_from_disk(folder, device="cpu", dtype="float32")


def _kind_and_layer(name: str) -> tuple[str, int]:
    kind, _, layer = name.rpartition(".")
    return kind, int(layer) if layer.isdigit() else -1


def _hub_dictionary(profile: Profile, name: str, device: str) -> SAE[Any]:
    from sae_lens import SAE

    kind, _, layer = name.rpartition(".")
    place = profile.releases[kind]
    with explained(profile):
        return SAE.from_pretrained(place.release, place.sae_id.format(layer=layer), device=device)
