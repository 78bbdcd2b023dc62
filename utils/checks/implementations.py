"""The implementation under test, behind one interface, whatever it is.

A checker gets an `Implementation`: exercise names are its attributes. Every call goes through a handle, which records
the call for the message, protects the checker's data, and turns what the student's code raises into a StudentError.
Plain data comes back as it is; anything else comes back as a handle. A backend says where the code runs: here
(`LocalBackend`) or in a separate process (`utils.checks.isolation`).
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import torch

from utils import student_work
from utils.chapters import find_chapter
from utils.checks.expect import Opaque, StudentError, describe
from utils.checks.time_limit import one_thread, time_limit
from utils.checks.untouched import untouched
from utils.checks.watch import watch
from utils.errors import CourseError
from utils.paths import ROOT
from utils.plain import is_plain


class NotWritten(StudentError):
    """The stub is still there."""


class Missing(StudentError):
    """The implementation does not define a name that the exercise uses."""


class WrongSignature(StudentError):
    """The call that the exercise specifies does not fit the implementation's parameters."""


STUB_SAYS = re.compile(
    r"(write \S+, then run the check below)?"
)  # torch raises NotImplementedError too, in other words

ERRORS = {kind.__name__: kind for kind in (StudentError, NotWritten, Missing, WrongSignature)}


class Reference:
    """An object of the implementation that is not plain data; only its backend knows what is inside."""


class LocalReference(Reference):
    def __init__(self, value: Any):
        self.value = value


class Backend(Protocol):
    """Where the code under test lives and runs. What it returns is plain data or a Reference."""

    def lookup(self, name: str) -> Any: ...
    def get(self, reference: Any, attribute: str) -> Any: ...
    def call(self, reference: Any, args: tuple, kwargs: dict) -> Any: ...
    def watch(self, model: Any) -> AbstractContextManager[SimpleNamespace]: ...
    def check(self, needs_model: bool, seconds: float) -> AbstractContextManager[None]:
        """Surrounds one check: gets the backend ready, then holds the code inside to the time limit."""
        ...


class Handle(Opaque):
    """Something on the implementation's side: a function, a class, or an object of a student's class."""

    def __init__(self, implementation: Implementation, reference: Any, expression: str):
        self._implementation, self._reference, self._expression = implementation, reference, expression

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self._implementation._get(self, attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._implementation._call(self, args, kwargs)

    def __len__(self) -> int:
        return self._implementation._ask(self, "__len__")

    def __getitem__(self, place: Any) -> Any:
        return self._implementation._ask(self, "__getitem__", place)

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))

    def __bool__(self) -> bool:
        return True  # not the length's business: something is there

    def __repr__(self) -> str:
        return self._expression


class Implementation:
    """What is under test. `label` names it in reports; `only` limits the checks to one exercise, None means all."""

    def __init__(self, backend: Backend, label: str, only: str | None = None):
        self._backend, self._label, self._only = backend, label, only
        self._calls: list[str] = []
        self._arguments: tuple[tuple, dict[str, Any]] = ((), {})  # those of the last call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._wrap(self._backend.lookup(name), name)

    def watch(self, model: Any = None) -> AbstractContextManager[SimpleNamespace]:
        """Observe what the implementation's calls cost: see `utils.checks.watch.watch`."""
        return self._backend.watch(model)

    def _get(self, handle: Handle, attribute: str) -> Any:
        expression = f"{handle._expression}.{attribute}"
        value = self._wrap(self._backend.get(handle._reference, attribute), expression)
        if not isinstance(value, Handle):
            self._calls[-1:] = [expression]
        return value

    def _call(self, handle: Handle, args: tuple, kwargs: dict) -> Any:
        shown = [describe_argument(arg) for arg in args] + [
            f"{key}={describe_argument(value)}" for key, value in kwargs.items()
        ]
        expression = f"{handle._expression}({', '.join(shown)})"
        self._calls[-1:] = [expression]
        self._arguments = (args, kwargs)
        return self._wrap(self._backend.call(handle._reference, args, kwargs), expression)

    def _ask(self, handle: Handle, method: str, *args: Any) -> Any:
        """What one of Python's own methods of the object gives. Not among the calls that a message shows."""
        function = self._backend.get(handle._reference, method)
        expression = f"{handle._expression}[{args[0]!r}]" if args else handle._expression
        return self._wrap(self._backend.call(function, args, {}), expression)

    def _wrap(self, value: Any, expression: str) -> Any:
        return Handle(self, value, expression) if isinstance(value, Reference) else value


def describe_argument(value: Any) -> str:
    """An argument as the message shows it."""
    if isinstance(value, Handle) or is_plain(value):
        return describe(value)
    return {"SAETransformerBridge": "model"}.get(type(value).__name__, type(value).__name__)


class LocalBackend:
    """Runs the implementation in this process.

    `namespace` maps exercise names to objects, `source` says in messages where they are defined, and `tools` is what
    `mine` finds first while a check runs: the namespace, unless told otherwise.
    """

    def __init__(self, namespace: Mapping[str, Any], source: str, tools: Mapping[str, Any] | None = None):
        self.namespace, self.source = namespace, source
        self.tools = namespace if tools is None else tools

    def lookup(self, name: str) -> Any:
        if name not in self.namespace:
            raise Missing("NameError", f"{self.source} does not define `{name}`.")
        return to_reference(self.namespace[name])

    def get(self, reference: LocalReference, attribute: str) -> Any:
        return to_reference(get_attribute(reference.value, attribute))

    def call(self, reference: LocalReference, args: tuple, kwargs: dict) -> Any:
        args, kwargs = protected(args), protected(kwargs)
        return to_reference(call_student(reference.value, args, kwargs))

    def watch(self, model: Any) -> AbstractContextManager[SimpleNamespace]:
        return watch(model)

    @contextmanager
    def check(self, needs_model: bool, seconds: float) -> Iterator[None]:
        with student_work.using(self.tools), nobody_at_the_keyboard(), one_thread(), time_limit(seconds):
            yield


@contextmanager
def nobody_at_the_keyboard() -> Iterator[None]:
    """Inside, `input()` fails at once instead of waiting for an answer that nobody will give."""

    def no_input(*_: Any) -> str:
        raise RuntimeError("`input()` waits for a person, and a check has none: take what you need as an argument")

    before = builtins.input
    builtins.input = no_input
    try:
        yield
    finally:
        builtins.input = before


def to_reference(value: Any) -> Any:
    """Plain data as it is (named tuples and sizes as tuples), anything else as a reference."""
    if isinstance(value, tuple) and is_plain(value):
        return tuple(value)
    return value if is_plain(value) else LocalReference(value)


def protected(tree: Any) -> Any:
    """Arguments for the student's code: tensors are copies, so that it cannot change the checker's."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, Handle):
        return tree._reference.value
    if isinstance(tree, dict):
        return {key: protected(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(protected(value) for value in tree)
    return tree


def get_attribute(owner: Any, attribute: str) -> Any:
    """An attribute of the student's object; that it lacks one is distinguished from errors inside a property."""
    with student_code():
        try:
            return getattr(owner, attribute)
        except AttributeError as error:
            if error.obj is not owner or error.name != attribute:
                raise
            kind = "function" if inspect.isroutine(owner) else "class" if isinstance(owner, type) else "object"
            name = getattr(owner, "__name__", type(owner).__name__)
            raise Missing(
                "AttributeError", f"The exercise uses `{name}.{attribute}`, but this {kind} has no `{attribute}`."
            ) from None


def call_student(function: Any, args: tuple, kwargs: dict) -> Any:
    """Call the student's function or class.

    Args:
        function: what to call.
        args: its arguments, copies where they are tensors; that it left them alone is checked.
        kwargs: its named arguments, likewise.

    Raises:
        WrongSignature: the arguments do not fit its parameters.
        StudentError: it raised something itself.
        CheckFailed: it changed what it must leave as it was; see `utils.checks.untouched`.
    """
    with untouched(bound(function, args, kwargs)), student_code():
        return function(*args, **kwargs)


def bound(function: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments by the function's own names for them.

    Raises:
        WrongSignature: they do not fit its parameters.
    """
    name = getattr(function, "__name__", repr(function))
    if not callable(function):
        raise WrongSignature("TypeError", f"`{name}` is a {type(function).__name__}, not something to call.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins have none: the call itself will tell
        return {str(number): value for number, value in enumerate(args)} | kwargs
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        given = ", ".join([*("..." for _ in args), *(f"{key}=..." for key in kwargs)])
        raise WrongSignature(
            "TypeError",
            f"The exercise calls `{name}({given})`, but it is defined as "
            f"`{name}({', '.join(signature.parameters)})`: {error}.",
        ) from None


@contextmanager
def student_code() -> Iterator[None]:
    """Turn what the code inside raises into a StudentError that names the line."""
    try:
        yield
    except StudentError:
        raise
    except student_work.NotYet as missing:
        raise StudentError("NotYet", str(missing)) from None
    except Exception as error:
        if isinstance(error, NotImplementedError) and STUB_SAYS.fullmatch(str(error)):
            raise NotWritten("NotImplementedError", str(error)) from None
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        raise StudentError(type(error).__name__, str(error), failing_line(error), kinds) from None


def failing_line(error: BaseException) -> str:
    """The last line of the student's own code on the way to the error: its number and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    machinery = str(ROOT / "utils")
    libraries = ("site-packages", "dist-packages", str(Path(linecache.__file__).parent), machinery)
    own = [frame for frame in frames if not any(part in frame.filename for part in libraries)]
    return f"line {own[-1].lineno}: `{own[-1].line}`" if own and own[-1].line else ""


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own; what it raises becomes a StudentError that names the file."""
    module = ModuleType(f"submission_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickling look their module up
    linecache.checkcache(str(path))
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
    except OSError as error:
        raise StudentError(type(error).__name__, f"{path} cannot be read: {error.strerror}.") from None
    except SyntaxError as error:
        raise StudentError("SyntaxError", f"{path}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:
        raise StudentError(
            type(error).__name__, f"{path} stops while it is loaded: {error}", failing_line(error)
        ) from None
    return module


def solution_file(chapter: str) -> Path:
    """The reference module's file; a CourseError where this copy has none."""
    path = find_chapter(chapter).solution
    if not path.exists():
        raise CourseError(
            "This copy of the course comes without the reference solutions: name a file or a notebook to check."
        )
    return path


def reference(chapter: str) -> Implementation:
    """The reference solution of a chapter."""
    module = importlib.import_module(f"solutions.{solution_file(chapter).stem}")
    return Implementation(LocalBackend(vars(module), module.__name__), "reference")


def from_file(path: Path) -> Implementation:
    """Any Python file that defines exercise names."""
    return Implementation(LocalBackend(vars(load_file(path)), str(path)), str(path))
