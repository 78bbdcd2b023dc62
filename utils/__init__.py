"""What a student imports. Everything is looked up on first use, so that `import utils` costs next to nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils import expect, plots
    from utils.check_cell import check, hint, progress, solution
    from utils.kept import mine
    from utils.latents import dashboard
    from utils.loading import load
    from utils.results import measured, result

# Public name -> the module that has it. A module that is itself the public name maps to None.
_HOMES: dict[str, str | None] = {
    "load": "utils.loading",
    "dashboard": "utils.latents",
    "check": "utils.check_cell",
    "hint": "utils.check_cell",
    "solution": "utils.check_cell",
    "progress": "utils.check_cell",
    "mine": "utils.kept",
    "result": "utils.results",
    "measured": "utils.results",
    "plots": None,
    "expect": None,
}

__all__ = [
    "check",
    "dashboard",
    "expect",
    "hint",
    "load",
    "measured",
    "mine",
    "plots",
    "progress",
    "result",
    "solution",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'utils' has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(f"utils.{name}") if home is None else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
