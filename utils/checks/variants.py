"""Decorators for `solutions/variants`: right solutions written differently, and wrong ones that must be caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Variant:
    """An implementation of one exercise. `mistake` is None for a right one; `hint` is what a failing check must say."""

    exercise: str
    label: str
    implementation: object
    mistake: str | None = None
    hint: str = ""


def right(exercise: str) -> Callable:
    """Mark a differently written right solution of `exercise`."""
    return lambda answer: Variant(exercise, answer.__name__, answer)


def wrong(exercise: str, *, mistake: str, hint: str) -> Callable:
    """Mark a plausible wrong solution; a failing check's message or hint must contain `hint` (in any case)."""
    return lambda answer: Variant(exercise, answer.__name__, answer, mistake, hint)


def variants_of(module: ModuleType) -> list[Variant]:
    return [value for value in vars(module).values() if isinstance(value, Variant)]
