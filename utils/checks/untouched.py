"""What a call must leave as it was: its arguments, and of the model its dictionaries, hooks and weights.

A wrong answer may change any of these. It is put back, so that the session and later checks do not suffer, and the
change is what the student is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from safetensors import safe_open
from torch.utils._python_dispatch import _disable_current_modes  # private: docs/upstream.md, "Without a test"
from torch.utils._pytree import tree_leaves

from utils.checks import course_objects
from utils.checks.expect import CheckFailed, StudentError
from utils.models.dictionaries import Dictionaries
from utils.models.loading import load
from utils.models.model_files import ensure_model

SMALL = 4_000_000  # entries: modules up to here are copied, larger ones are read from disk again
SAMPLED = 8  # entries of each weight that are compared
LIBRARIES = ("transformers.", "transformer_lens.model_bridge.")  # hooks of theirs belong to the model


def clear(model: Any) -> None:
    """Take dictionaries and hooks off the model; dictionaries first, since hooks inside them go with them.

    `model.reset_hooks()` visits every module; this visits only the points that have hooks.
    """
    if model.acts_to_saes:
        model.reset_saes()
    for point in model.hook_dict.values():
        if point.fwd_hooks or point.bwd_hooks:
            point.remove_hooks("both", including_permanent=True)


@contextmanager
def untouched(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Surround a call of student code.

    Args:
        arguments: what it is called with, by the parameters' names. Containers are looked into.

    Raises:
        CheckFailed: the call changed what it must leave alone; everything but the arguments has been put back (the
            checker has its own copies of those).
    """
    leaves = [(name, leaf) for name, value in arguments.items() for leaf in tree_leaves(value)]
    versions = [(name, leaf, leaf._version) for name, leaf in leaves if isinstance(leaf, torch.Tensor)]
    with _disable_current_modes():  # looking is not the student's memory
        states = [_state_of(leaf) for _, leaf in leaves if isinstance(leaf, torch.nn.Module)]
        for state in states:
            state.remember()
    grad, problem = torch.is_grad_enabled(), None
    try:
        yield
    except StudentError as error:
        problem = error
    finally:
        changes = ["autograd switched on or off for good"] if torch.is_grad_enabled() != grad else []
        torch.set_grad_enabled(grad)
        with _disable_current_modes(), torch.no_grad():
            changes += [change for state in states for change in state.put_back()]
    changes += {
        name: f"the argument `{name}` overwritten" for name, leaf, was in versions if leaf._version != was
    }.values()
    if changes:
        raise CheckFailed(
            expected="everything outside of the function as it was before the call",
            returned=f"after the call: {', '.join(changes)}",
            why="whoever comes next works with the same objects; the check has put everything back",
            hint=next(hint for mark, hint in HINTS.items() if mark in changes[0]),
        )
    if problem:
        raise problem


WRITES_IN_PLACE = """
    `x += y`, `x[...] = y` and methods that end in an underscore write into x itself, and `model.W_E` is the model's own
    weight. Make a new tensor (`x = x + y`), or work on `x.clone()`.
    """
HINTS = {
    "dictionar": """
        What `add_sae` attaches stays on the model. `run_with_saes`, `run_with_cache_with_saes` and `with
        model.saes(...)` take off again what they attach.
        """,
    "hook": """
        A hook added with `model.add_hook` stays on the model and runs in every later run; remove it, or use
        `run_with_hooks`, which takes its hooks off again.
        """,
    "weight": WRITES_IN_PLACE,
    "overwritten": WRITES_IN_PLACE,
    "autograd": """
        `torch.set_grad_enabled` works on everything that comes later. `with torch.no_grad():` ends with its block.
        """,
}


class ModuleState:
    """One module's weights, the hooks on it and, if it is the model, its dictionaries; made once for each module."""

    def __init__(self, module: torch.nn.Module):
        self._module: Any = module
        self._name = "the model" if hasattr(module, "acts_to_saes") else "a dictionary"
        modules = list(module.modules())
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._places = [
            (owner, key, parameter, names[id(parameter)])
            for owner in modules
            for key, parameter in owner._parameters.items()
            if parameter is not None
        ]
        self._stores = [
            store
            for owner in modules
            for store in (owner._forward_hooks, owner._forward_pre_hooks, owner._backward_hooks)
        ]
        self._data = [parameter.detach() for _, _, parameter, _ in self._places]
        flat = [values.flatten() for values in self._data]
        self._samples = [values[:: max(1, len(values) // SAMPLED)] for values in flat]
        self._original = _originals(module)

    def remember(self) -> None:
        """Note how things are now."""
        self._versions = [parameter._version for _, _, parameter, _ in self._places]
        self._sample = torch.cat(self._samples) if self._samples else torch.empty(0)
        self._hooks = set(self._hooks_now())
        self._dictionaries = set(getattr(self._module, "acts_to_saes", ()))

    def put_back(self) -> Iterator[str]:
        """Put back what is not as it was remembered, and name it."""
        if added := set(getattr(self._module, "acts_to_saes", ())) - self._dictionaries:
            self._module.reset_saes(list(added))
            yield f"{_count(len(added), 'dictionary', 'dictionaries')} attached to {self._name}"
        if hooks := set(self._hooks_now()) - self._hooks:
            self._take_off(hooks)
            yield f"{_count(len(hooks), 'hook')} left on {self._name}"
        if changed := self._changed():
            for number in changed:
                owner, key, parameter, name = self._places[number]
                owner._parameters[key] = parameter
                parameter.data = self._data[number]
                parameter.copy_(self._original(name))
            tensors = len({self._places[number][3] for number in changed})
            yield f"{_count(tensors, 'weight')} of {self._name} changed"

    def _changed(self) -> list[int]:
        """Numbers of the weights that were written to, by in-place methods (their version tells) or by other ways."""
        changed = {
            number
            for number, (owner, key, parameter, _) in enumerate(self._places)
            if owner._parameters.get(key) is not parameter
            or parameter._version != self._versions[number]
            or parameter.data_ptr() != self._data[number].data_ptr()
        }
        if self._samples and not torch.equal(torch.cat(self._samples), self._sample):
            before = self._sample.split([len(sample) for sample in self._samples])
            pairs = enumerate(zip(self._samples, before, strict=True))
            changed |= {number for number, (now, then) in pairs if not torch.equal(now, then)}
        return sorted(changed)

    def _hooks_now(self) -> Iterator[tuple[int, int]]:
        """(number of the store, key) of all hooks but those that the libraries hang up for good at a first run."""
        for number, store in enumerate(self._stores):
            if store:  # hardly any of the six thousand has a hook
                for key, hook in store.items():
                    if not getattr(hook, "__module__", "").startswith(LIBRARIES):
                        yield number, key

    def _take_off(self, hooks: Iterable[tuple[int, int]]) -> None:
        for number, key in hooks:
            del self._stores[number][key]
        for point in getattr(self._module, "hook_dict", {}).values():
            point.fwd_hooks = [handle for handle in point.fwd_hooks if handle.hook.id in point._forward_hooks]
            point.bwd_hooks = [handle for handle in point.bwd_hooks if handle.hook.id in point._backward_hooks]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _originals(module: torch.nn.Module) -> Callable[[str], torch.Tensor]:
    """A function that gives a weight as it was, by its name: from a copy, or from disk where copies would be large."""
    weights = dict(module.named_parameters())
    name = course_objects.name_of(module) if sum(value.numel() for value in weights.values()) > SMALL else None
    kept = {key: value.clone() for key, value in weights.items() if name is None or value.numel() < SMALL / 100}

    def original(key: str) -> torch.Tensor:
        if key in kept:
            return kept[key]
        if name == "model":
            with safe_open(ensure_model() / "model.safetensors", "pt") as file:
                return file.get_tensor(key.replace("._original_component", ""))
        assert name is not None
        return Dictionaries(load().profile, "cpu")[name].state_dict()[key]

    return original


@lru_cache(maxsize=32)
def _state_of(module: torch.nn.Module) -> ModuleState:
    return ModuleState(module)
