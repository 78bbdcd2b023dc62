"""What a student imports. Everything is looked up on first use, so that `import utils` costs next to nothing.

This is the face: students' kept code mentions these names, and they stay. What lies behind it may move.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.checks.watch import watch
    from utils.dashboards.page import dashboard
    from utils.hooks import layer_of
    from utils.models.doctor import verify_environment
    from utils.models.loading import Loaded, load
    from utils.models.profiles import first_position
    from utils.notebook import plots
    from utils.notebook.check_cell import check, failed, hint, progress, solution
    from utils.notebook.results import measured, result
    from utils.student_work import mine

# Public name -> the module that has it, or that is it.
_HOMES = {
    "Loaded": "utils.models.loading",
    "check": "utils.notebook.check_cell",
    "dashboard": "utils.dashboards.page",
    "failed": "utils.notebook.check_cell",
    "first_position": "utils.models.profiles",
    "hint": "utils.notebook.check_cell",
    "layer_of": "utils.hooks",
    "load": "utils.models.loading",
    "measured": "utils.notebook.results",
    "mine": "utils.student_work",
    "plots": "utils.notebook.plots",
    "progress": "utils.notebook.check_cell",
    "result": "utils.notebook.results",
    "solution": "utils.notebook.check_cell",
    "verify_environment": "utils.models.doctor",
    "watch": "utils.checks.watch",
}

__all__ = [
    "Loaded",
    "check",
    "dashboard",
    "failed",
    "first_position",
    "hint",
    "layer_of",
    "load",
    "measured",
    "mine",
    "plots",
    "progress",
    "result",
    "solution",
    "verify_environment",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'utils' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = getattr(home, name, home)  # `plots` is a module itself
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
