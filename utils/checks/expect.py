"""What a checker demands, and the words in which a student learns that it was not met.

Each function compares and raises CheckFailed, which says what was returned, what was expected and why. Values may be
tensors or numpy arrays; `close` and `equal` look at type and shape before they look at numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

SMALL = 24  # tensors up to this many entries are printed whole


class CheckFailed(AssertionError):
    """A demand that was not met. `hint`, where given, replaces the check's own hint."""

    def __init__(self, *, expected: str, returned: str, why: str = "", hint: str | None = None):
        super().__init__(f"returned: {returned}; expected: {expected}; {why}")
        self.expected, self.returned, self.why, self.hint = expected, returned, why, hint


class StudentError(Exception):
    """An exception that the implementation under test raised: its type's name, its text and the line that raised it."""

    def __init__(self, type_name: str, text: str, where: str = ""):
        super().__init__(f"{type_name}: {text}")
        self.type_name, self.text, self.where = type_name, text, where


def describe(value: Any) -> str:
    """A value in a student's words: kind, shape and, where it is small, the numbers."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return _describe_tensor(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list) and len(value) <= 6:
        inside = ", ".join(describe(item) for item in value)
        return f"({inside}{',' * (len(value) == 1)})" if isinstance(value, tuple) else f"[{inside}]"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({type(value).__name__})"


def _describe_tensor(value: torch.Tensor | np.ndarray) -> str:
    tensor = torch.as_tensor(value).detach()
    kind = "tensor" if isinstance(value, torch.Tensor) else "numpy array"
    head = f"{str(tensor.dtype).removeprefix('torch.')} {kind} of shape {tuple(tensor.shape)}"
    if tensor.is_meta:  # has no numbers: checkers use it as a device that every machine has
        return f"{head} on the device `meta`"
    tensor = tensor.cpu()
    if tensor.numel() == 0:
        return f"{head} (empty)"
    if tensor.numel() <= SMALL:
        return f"{head} {_numbers(tensor)}"
    flat = tensor.flatten()
    if tensor.dtype == torch.bool or tensor.is_complex():
        return head
    low, high = flat.double().min().item(), flat.double().max().item()
    return f"{head}, from {low:.4g} to {high:.4g}, beginning {_numbers(flat[:4])[:-1]}, ...]"


def _numbers(tensor: torch.Tensor) -> str:
    if tensor.ndim == 0:
        item = tensor.item()
        return f"{item:.5g}" if isinstance(item, float) else str(item)
    return "[" + ", ".join(_numbers(row) for row in tensor) + "]"


def that(condition: bool, *, expected: str, returned: Any, why: str = "", hint: str | None = None) -> None:
    """Demand `condition`. `returned` is described unless it is already a string."""
    if not condition:
        shown = returned if isinstance(returned, str) else describe(returned)
        raise CheckFailed(expected=expected, returned=shown, why=why, hint=hint)


def unpack(result: Any, names: Sequence[str]) -> tuple:
    """`result` as a tuple with one entry per name."""
    wanted = f"a tuple ({', '.join(names)})"
    that(
        isinstance(result, tuple | list),
        expected=wanted,
        returned=describe(result),
        why="the signature promises a tuple",
    )
    that(
        len(result) == len(names),
        expected=f"{wanted} of length {len(names)}",
        returned=f"{len(result)} values: {describe(result)}",
        why="the signature says what is returned, in which order",
    )
    return tuple(result)


def tensor(value: Any, *, name: str = "the result", why: str = "", hint: str | None = None) -> torch.Tensor:
    """`value` as a tensor; numpy arrays are welcome, other things are not."""
    that(
        isinstance(value, torch.Tensor | np.ndarray),
        expected=f"{name} to be a tensor",
        returned=describe(value),
        why=why or "the signature promises a tensor",
        hint=hint,
    )
    return torch.as_tensor(value)


def shape(
    value: Any,
    wanted: Sequence[int],
    *,
    name: str = "the result",
    dims: Sequence[str] = (),
    why: str = "",
    hint: str | None = None,
) -> torch.Tensor:
    """Demand a tensor of shape `wanted`; `dims` names the axes in the exercise's words."""
    value = tensor(value, name=name, why=why, hint=hint)
    named = f" = ({', '.join(dims)})" if dims else ""
    that(
        tuple(value.shape) == tuple(wanted),
        expected=f"{name} of shape {tuple(wanted)}{named}",
        returned=f"shape {tuple(value.shape)}: {describe(value)}",
        why=why,
        hint=hint,
    )
    return value


def dtype(value: Any, wanted: torch.dtype, *, name: str = "the result", why: str = "", hint: str | None = None) -> None:
    value = tensor(value, name=name, why=why, hint=hint)
    that(
        value.dtype == wanted,
        expected=f"{name} of dtype {wanted}",
        returned=f"dtype {value.dtype}",
        why=why,
        hint=hint,
    )


def close(
    got: Any,
    want: Any,
    *,
    why: str,
    name: str = "the result",
    rtol: float = 1e-4,
    atol: float = 1e-5,
    hint: str | None = None,
) -> None:
    """Demand numbers equal to `want` within the tolerances, after the same shape."""
    if not isinstance(want, torch.Tensor | np.ndarray):
        that(
            isinstance(got, int | float | np.number | torch.Tensor | np.ndarray) and np.size(_array(got)) == 1,
            expected=f"{name} = {describe(want)}, a number",
            returned=describe(got),
            why=why,
            hint=hint,
        )
        got, want = torch.as_tensor(got).reshape(()), torch.as_tensor(want)
    want = torch.as_tensor(want).detach().cpu()
    got = shape(got, want.shape, name=name, why=why, hint=hint).detach().cpu()
    match = torch.isclose(got.double(), want.double(), rtol=rtol, atol=atol, equal_nan=True)
    if match.all():
        return
    expected = f"{name} = {describe(want)}"
    if want.numel() > SMALL:
        at = tuple((~match).nonzero()[0].tolist())
        wrong = f"{int((~match).sum())} of {want.numel()} entries differ"
        expected += f"; {wrong}, the first at {at}: {got[at]:.5g}, not {want[at]:.5g}"
    raise CheckFailed(expected=expected, returned=describe(got), why=why, hint=hint)


def equal(got: Any, want: Any, *, why: str, name: str = "the result", hint: str | None = None) -> None:
    """Demand exactly `want`: tuples, strings, numbers, containers, or a tensor of whole numbers or truth values."""
    if isinstance(want, torch.Tensor | np.ndarray):
        want = torch.as_tensor(want).cpu()
        got = shape(got, want.shape, name=name, why=why, hint=hint).detach().cpu()
        same = torch.equal(got.double(), want.double())
    else:
        same = type_matches(got, want) and bool(got == want)
    that(same, expected=f"{name} = {describe(want)}", returned=describe(got), why=why, hint=hint)


def type_matches(got: Any, want: Any) -> bool:
    """Whether `got` may be compared with `want`: the same type, a subclass, or two kinds of number."""
    numbers = (int, float, np.number)
    return isinstance(got, type(want)) or (isinstance(got, numbers) and isinstance(want, numbers))


def raises(
    call: Callable[[], Any],
    types: str | tuple[str, ...],
    *,
    why: str,
    mentions: Sequence[str] = (),
    hint: str | None = None,
) -> None:
    """Demand that `call` raises one of the named exception types, with a text that mentions each word."""
    types = (types,) if isinstance(types, str) else types
    wanted = f"a {' or '.join(types)}" + (f" whose text mentions {', '.join(mentions)}" if mentions else "")
    try:
        result = call()
    except StudentError as error:
        that(error.type_name in types, expected=wanted, returned=f"{error.type_name}: {error.text}", why=why, hint=hint)
        missing = [word for word in mentions if word.lower() not in error.text.lower()]
        that(not missing, expected=wanted, returned=f"{error.type_name}: {error.text}", why=why, hint=hint)
        return
    raise CheckFailed(expected=wanted, returned=f"no error: {describe(result)}", why=why, hint=hint)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
