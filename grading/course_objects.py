"""Names for what the course itself has loaded, so that it crosses between judge and worker without being sent."""

from __future__ import annotations

from typing import Any

import utils


def name_of(item: Any) -> str | None:
    """The name of a course object, or None for anything else."""
    course = utils.load()
    if item is course.model:
        return "model"
    return next((name for name, loaded in course.dictionaries.loaded().items() if item is loaded), None)


def named(name: str) -> Any:
    """The course object of that name in this process."""
    course = utils.load()
    return course.model if name == "model" else course.dictionaries[name]
