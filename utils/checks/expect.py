"""What a checker demands, and the words in which a student learns that it was not met.

Each function compares and raises CheckFailed, which says what was returned, what was expected and why. Values may be
tensors or numpy arrays; `close` and `equal` look at type and shape before they look at numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from utils.checks.exercises import flowing

SMALL = 24  # tensors up to this many entries are printed whole

# Known wrong answers, each with the hint that names the mistake. An answer may be a function that makes it, and so may
# the whole list: they are made only when something is wrong.
Mistakes = Iterable[tuple[Any, str]] | Callable[[], Iterable[tuple[Any, str]]]

# How two tensors may be held against each other: what is measured of the difference and of the wanted one, in words,
# and the usual tolerances, relative and absolute.
NORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, float, float]] = {
    "entry": (torch.abs, "each entry", 1e-4, 1e-5),
    "row": (lambda tensor: tensor.norm(dim=-1), "each row's norm", 1e-4, 0.0),
    "largest": (lambda tensor: tensor.abs().amax(), "the largest entry", 1e-3, 0.0),
    "whole": (lambda tensor: tensor.norm(), "the norm of the whole", 1e-3, 0.0),
}


class CheckFailed(AssertionError):
    """A demand that was not met, in parts.

    Attributes:
        expected: what should have been returned or done.
        returned: what was.
        why: how the checker knows.
        hint: where given, it replaces the check's own hint.
        wanted: the expected value itself, where there is one; else the words of `expected`.
    """

    def __init__(self, *, expected: str, returned: str, why: str = "", hint: str | None = None, wanted: Any = None):
        super().__init__(f"returned: {returned}; expected: {expected}; {why}")
        self.expected, self.returned, self.why = expected, returned, flowing(why)
        self.hint = hint and flowing(hint)
        self.wanted = expected if wanted is None else wanted


class StudentError(Exception):
    """An exception that the implementation under test raised.

    Attributes:
        type_name: the name of its type.
        text: its message.
        where: the line of the implementation that raised it, where known.
        kinds: names of its type and of the types that this one is a kind of.
    """

    def __init__(self, type_name: str, text: str, where: str = "", kinds: Sequence[str] = ()):
        super().__init__(f"{type_name}: {text}")
        self.type_name, self.text, self.where = type_name, text, where
        self.kinds = tuple(kinds) or (type_name,)


class Opaque:
    """What stands for an object of the implementation's own: the handles of `utils.checks.implementations`."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError


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
    """Demand a condition.

    Args:
        condition: what must hold.
        expected: the same in words.
        returned: what was returned instead; described, unless it is a string already.
        why: how the checker knows.
        hint: what to say instead of the check's own hint.

    Raises:
        CheckFailed: it does not hold.
    """
    if not condition:
        shown = returned if isinstance(returned, str) else describe(returned)
        raise CheckFailed(expected=expected, returned=shown, why=why, hint=hint)


def unpack(result: Any, names: Sequence[str]) -> tuple:
    """Demand a tuple with one entry for each name.

    Args:
        result: what was returned; may be a handle of a tuple that holds objects of the implementation's own.
        names: what the entries are, in order.

    Returns:
        The entries.

    Raises:
        CheckFailed: it is no tuple, or one of another length.
    """
    wanted = f"a tuple ({', '.join(names)})"
    items = _items(result)
    if items is None:
        raise CheckFailed(expected=wanted, returned=describe(result), why="the signature promises a tuple")
    that(
        len(items) == len(names),
        expected=f"{wanted} of length {len(names)}",
        returned=f"{len(items)} values: {describe(result)}",
        why="the signature says what is returned, in which order",
    )
    return items


def _items(result: Any) -> tuple | None:
    """The entries of a tuple, a list, or a handle of one; None for anything else."""
    if isinstance(result, tuple | list):
        return tuple(result)
    if not isinstance(result, Opaque):
        return None
    try:
        return tuple(result)
    except StudentError:  # an object without length or without numbered entries
        return None


def tensor(value: Any, *, name: str = "the result", why: str = "", hint: str | None = None) -> torch.Tensor:
    """Demand a tensor; numpy arrays are welcome, other things are not.

    Args:
        value: what was returned.
        name: what it is, in the exercise's words.
        why: how the checker knows.
        hint: what to say instead of the check's own hint.

    Returns:
        It as a tensor.

    Raises:
        CheckFailed: it is something else.
    """
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
    """Demand a tensor of a shape.

    Args:
        value: what was returned.
        wanted: the shape.
        name: what it is, in the exercise's words.
        dims: the axes in the exercise's words.
        why: how the checker knows.
        hint: what to say instead of the check's own hint.

    Returns:
        It as a tensor.

    Raises:
        CheckFailed: it is no tensor, or one of another shape.
    """
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
    """Demand a tensor of a dtype; the arguments are those of `shape`.

    Raises:
        CheckFailed: it is no tensor, or one of another dtype.
    """
    value = tensor(value, name=name, why=why, hint=hint)
    that(
        value.dtype == wanted,
        expected=f"{name} of dtype {wanted}",
        returned=f"dtype {value.dtype}",
        why=why,
        hint=hint,
    )


def agree(got: Any, want: Any, *, norm: str = "entry", rtol: float | None = None, atol: float | None = None) -> bool:
    """Whether two tensors of numbers are equal: the one definition of it.

    Args:
        got: what was returned.
        want: what it is held against.
        norm: what is measured of their difference, a key of NORMS; it may be as large as `atol` plus `rtol` times the
            same of `want`. "entry": each entry for itself; "row": the last axis; "largest": the largest entry;
            "whole": all entries together.
        rtol: the relative tolerance; by default the norm's own.
        atol: the absolute one, likewise.

    Returns:
        True only for tensors (or numpy arrays) of the same shape and finite or equal entries.
    """
    if not isinstance(got, torch.Tensor | np.ndarray):
        return False
    got, want = torch.as_tensor(got).detach().cpu(), torch.as_tensor(want).detach().cpu()
    if got.shape != want.shape or got.is_complex() != want.is_complex():
        return False
    if want.numel() == 0:
        return True
    return bool(_within(got, want, norm, rtol, atol).all())


def _within(got: torch.Tensor, want: torch.Tensor, norm: str, rtol: float | None, atol: float | None) -> torch.Tensor:
    """Where the difference is within the tolerances: a truth value for each entry, each row, or the whole."""
    measure, _, usual_rtol, usual_atol = NORMS[norm]
    rtol, atol = usual_rtol if rtol is None else rtol, usual_atol if atol is None else atol
    return measure(_difference(got, want)) <= atol + rtol * measure(_finite(want))


def _difference(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """In double precision; 0 where both are the same infinity or both are not a number."""
    got, want = _double(got), _double(want)
    return torch.where((got == want) | (got.isnan() & want.isnan()), 0, got - want)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return _double(tensor).nan_to_num(0, 0, 0)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_complex() else tensor.double()


def mistake_in(got: Any, want: Any, mistakes: Mistakes, same: Callable[[Any, Any], bool]) -> str | None:
    """The hint of the known wrong answer that was given.

    Args:
        got: what was returned, known to be wrong.
        want: what is right. A mistake that gives the same on this input explains nothing, and is passed over.
        mistakes: the known wrong answers.
        same: whether two answers are the same, as a whole.

    Returns:
        The first mistake's hint, or None.
    """
    with torch.no_grad():
        for wrong, hint in mistakes() if callable(mistakes) else mistakes:
            answer = wrong() if callable(wrong) else wrong
            if same(got, answer) and not same(answer, want):
                return hint
    return None


def close(
    got: Any,
    want: Any,
    *,
    why: str,
    name: str = "the result",
    dims: Sequence[str] = (),
    norm: str = "entry",
    rtol: float | None = None,
    atol: float | None = None,
    mistakes: Mistakes = (),
    hint: str | None = None,
) -> None:
    """Demand numbers equal to the wanted ones, after the same shape.

    Args:
        got: what was returned.
        want: a number, or a tensor.
        why: how the checker knows.
        name: what it is, in the exercise's words.
        dims: the axes in the exercise's words.
        norm: what is compared, see `agree`.
        rtol: the relative tolerance; by default the norm's own.
        atol: the absolute one, likewise.
        mistakes: known wrong answers with their hints.
        hint: what to say where none of them was given, instead of the check's own hint.

    Raises:
        CheckFailed: they are not equal.
    """
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

    def same(one: Any, other: Any) -> bool:
        return agree(one, other, norm=norm, rtol=rtol, atol=atol)

    if same(got, want):
        return
    hint = mistake_in(got, want, mistakes, same) or hint
    got = shape(got, want.shape, name=name, dims=dims, why=why, hint=hint).detach().cpu()
    expected, returned = _apart(got, want, name, norm, rtol, atol)
    raise CheckFailed(expected=expected, returned=returned, why=why, hint=hint, wanted=want)


def _apart(
    got: torch.Tensor, want: torch.Tensor, name: str, norm: str, rtol: float | None, atol: float | None
) -> tuple[str, str]:
    """Two tensors of the same shape that differ, in words: what was expected, what was returned."""
    expected, returned = f"{name} = {describe(want)}", describe(got)
    measure, words, usual, _ = NORMS[norm]
    if norm != "entry":
        off = (measure(_difference(got, want)) / measure(_finite(want)).clamp_min(1e-30)).amax().item()
        rtol = usual if rtol is None else rtol
        return f"{expected}, to {rtol:g} of {words}", f"{returned}, off by {off:.2g} of it"
    if want.numel() > SMALL:
        wrong = (~_within(got, want, norm, rtol, atol)).nonzero()
        at = tuple(wrong[0].tolist())
        expected += f"; {len(wrong)} of {want.numel()} entries differ, the first at {at}: "
        expected += f"{got[at]:.5g}, not {want[at]:.5g}"
    return expected, returned


def equal(
    got: Any,
    want: Any,
    *,
    why: str,
    name: str = "the result",
    dims: Sequence[str] = (),
    mistakes: Mistakes = (),
    hint: str | None = None,
) -> None:
    """Demand exactly the wanted: tuples, strings, numbers, containers, or a tensor of whole numbers or truth values.

    Args:
        got: what was returned.
        want: what is right.
        why: how the checker knows.
        name: what it is, in the exercise's words.
        dims: a tensor's axes in the exercise's words.
        mistakes: known wrong answers with their hints.
        hint: what to say where none of them was given, instead of the check's own hint.

    Raises:
        CheckFailed: it is something else.
    """
    if is_same(got, want):
        return
    hint = mistake_in(got, want, mistakes, is_same) or hint
    if isinstance(want, torch.Tensor | np.ndarray):
        shape(got, tuple(want.shape), name=name, dims=dims, why=why, hint=hint)
    expected = f"{name} = {describe(want)}"
    raise CheckFailed(expected=expected, returned=describe(got), why=why, hint=hint, wanted=want)


def is_same(got: Any, want: Any) -> bool:
    """Whether two values are exactly equal, as `equal` demands it."""
    if isinstance(want, torch.Tensor | np.ndarray):
        if not isinstance(got, torch.Tensor | np.ndarray) or tuple(got.shape) != tuple(want.shape):
            return False
        got, want = torch.as_tensor(got).detach().cpu(), torch.as_tensor(want).detach().cpu()
        return got.is_complex() == want.is_complex() and torch.equal(_double(got), _double(want))
    return type_matches(got, want) and bool(got == want)


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
    """Demand that a call raises an exception.

    Args:
        call: calls the implementation.
        types: the name of the type, or names of which any will do; a kind of one of them will do too.
        why: how the checker knows that it must.
        mentions: words that its text must contain; only where the docstring promises them.
        hint: what to say instead of the check's own hint.

    Raises:
        CheckFailed: it raises nothing, or something else.
    """
    types = (types,) if isinstance(types, str) else types
    wanted = f"a {' or '.join(types)}" + (f" whose text mentions {', '.join(mentions)}" if mentions else "")
    try:
        result = call()
    except StudentError as error:
        shown = f"{error.type_name}: {error.text}"
        that(any(kind in types for kind in error.kinds), expected=wanted, returned=shown, why=why, hint=hint)
        missing = [word for word in mentions if word.lower() not in error.text.lower()]
        that(not missing, expected=wanted, returned=shown, why=why, hint=hint)
        return
    raise CheckFailed(expected=wanted, returned=f"no error: {describe(result)}", why=why, hint=hint)


HOOKS_STAY = """
    `run_with_hooks` takes its hooks off again; what is added with `add_hook` or `add_sae` stays on the model, and runs
    in every later run.
    """
STOP_EARLY = """
    Pass `stop_at_layer=L`: the model stops in front of block L. What comes later, the unembedding too, cannot change
    what was read before.
    """


def cost(
    seen: SimpleNamespace,
    *,
    why: str,
    passes: int | None = None,
    blocks: int | None = None,
    logits: bool = True,
    tokens: int | None = None,
    megabytes: float | None = None,
    hint: str | None = None,
) -> None:
    """Demand that a call was cheap and left no hook on the model.

    Args:
        seen: what `impl.watch(model)` observed.
        why: why so much is enough.
        passes: at most so many forward passes of the model, and at least one; 0 means none.
        blocks: at most so many blocks, counted from the first.
        logits: whether logits may be computed.
        tokens: at most so many token positions run in all, padding included, and at least one.
        megabytes: less than so much tensor memory alive at once.
        hint: what to say instead of the check's own hint; a hook that was left has words of its own.

    Raises:
        CheckFailed: it was not.
    """
    that(
        seen.hooks_left == 0,
        expected="no hook on the model afterwards",
        returned=f"{seen.hooks_left} hooks",
        why="whoever uses the model next would run your hook too",
        hint=HOOKS_STAY,
    )
    if passes is not None:
        that(
            min(passes, 1) <= seen.passes <= passes,
            expected=("no forward pass", "one forward pass")[passes] if passes < 2 else f"at most {passes} passes",
            returned=f"{seen.passes} passes",
            why=why,
            hint=hint,
        )
    if tokens is not None:
        that(
            0 < seen.tokens <= tokens,
            expected=f"each token run once: at most {tokens} token positions, padding included",
            returned=f"{seen.tokens} positions in {seen.passes} passes",
            why=why,
            hint=hint,
        )
    if blocks is not None or not logits:
        limit = f"at most blocks 0 to {blocks - 1}" if blocks is not None else ""
        that(
            (blocks is None or seen.blocks <= blocks) and (logits or not seen.unembedded),
            expected=" and ".join(filter(None, [limit, "" if logits else "no logits"])),
            returned=f"{seen.blocks} blocks ran, {'logits too' if seen.unembedded else 'no logits'}",
            why=why,
            hint=hint,
        )
    if megabytes is not None:
        that(
            seen.peak_bytes < megabytes * 1e6,
            expected=f"less than {megabytes:g} MB of tensors alive at once",
            returned=f"{seen.peak_bytes / 1e6:.1f} MB",
            why=why,
            hint=hint,
        )


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
