"""What a benchmark case is. Every module of `fast.bench.cases` has a tuple `CASES` of them; `course bench` finds it.

A case names one quantity that a fast form computes, and the sizes at which it is computed. For a size it makes a
`Problem`: the same question to the fast form and to the plain formulation, on the same inputs. The runner calls the two
in turn (fast, plain, fast, plain, ...), takes medians, measures memory in runs of their own, and compares answers.

    CASES = (
        Case(
            name="top examples, 100 latents of transcoder.8",
            size_name="passages",
            sizes=(64, 128, 256),
            goal=Goal(speed=50),
            make=_top_examples,
        ),
    )

    def _top_examples(loaded: Loaded, size: int) -> Problem:
        tokens = passages(loaded, length=128, count=size)           # fast.bench.inputs
        ...
        return Problem(fast=lambda: ..., plain=lambda: ...)

`make` does what both sides need and neither is timed for: loading, tokens, active latents. The two functions take no
arguments and give a tensor, or a tuple of tensors, of equal shapes and in the same order, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from utils.models.loading import Loaded

Answer: TypeAlias = "Tensor | tuple[Tensor, ...]"


@dataclass(frozen=True)
class Goal:
    """What is wanted at the largest size: the plain formulation's figure over the fast form's.

    Attributes:
        speed: of time
        memory: of peak extra memory
        share: the least time that the problem's `flops` could take at this machine's matrix-product speed, over the
            time that the fast form takes
    """

    speed: float | None = None
    memory: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Problem:
    """One quantity at one size.

    Attributes:
        fast: computes it with the fast form
        plain: computes it plainly
        flops: floating-point operations of the matrix products that bound the fast form, if a bound is known
        note: what the reader of the table has to know about this problem, such as that the plain formulation runs
            in chunks because it would not fit
    """

    fast: Callable[[], Answer]
    plain: Callable[[], Answer]
    flops: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A quantity and the sizes at which it is benchmarked.

    Attributes:
        name: what is computed, between what, in the words of the table's first column
        size_name: what the sizes count, such as "tokens"
        sizes: growing; the goal is held at the last. `--quick` runs the first only
        make: the problem of a size
        goal: what is wanted at the last size
    """

    name: str
    size_name: str
    sizes: tuple[int, ...]
    make: Callable[[Loaded, int], Problem]
    goal: Goal = Goal()
