"""How what is not plain data crosses from judge to worker: what the course has loaded by its name, a small dictionary
that a check built by its configuration and weights."""

from __future__ import annotations

import base64
from typing import Any

from utils import plain
from utils.models.loading import load


def tag_of(item: Any) -> dict | None:
    """What stands for `item` in a message, or None if it cannot cross."""
    name = name_of(item)
    if name:
        return {"course": name}
    if _is_dictionary(item):
        weights = base64.b64encode(plain.dumps(dict(item.state_dict()))).decode()
        return {"dictionary": item.cfg.to_dict(), "weights": weights}
    return None


def from_tag(tag: dict) -> Any:
    """The object in this process that a tag stands for, or None if the tag is no such."""
    if "course" in tag:
        return named(tag["course"])
    if "dictionary" not in tag:
        return None
    from sae_lens import SAE

    built = SAE.from_dict(tag["dictionary"])
    built.load_state_dict(plain.loads(base64.b64decode(tag["weights"])))
    return built.eval().requires_grad_(False)


def named(name: str) -> Any:
    """The course's object of that name in this process."""
    loaded = load()
    return loaded.model if name == "model" else loaded.dictionaries[name]


def name_of(item: Any) -> str | None:
    """The name that the course knows a loaded object by: "model" or a dictionary's."""
    loaded = load()
    if item is loaded.model:
        return "model"
    return next((name for name, known in loaded.dictionaries.loaded().items() if item is known), None)


def _is_dictionary(item: Any) -> bool:
    return any(base.__module__.startswith("sae_lens.saes.") for base in type(item).__mro__)
