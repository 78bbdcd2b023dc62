"""The implementation under test in a process of its own: plain data crosses, student objects stay behind handles.

This is the judge's side. It starts `utils.checks.worker` on one Python file and talks to it over a pipe in bytes that
reading never executes (`utils.plain`). Course objects, such as the model, cross by name, small dictionaries that a
check has built by their weights. Autograd works across: the worker keeps the graph of each call and answers
vector-Jacobian products.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import torch
from torch.utils._pytree import tree_leaves, tree_map

from utils import plain
from utils.checks import course_objects
from utils.checks.expect import CheckFailed, StudentError
from utils.checks.implementations import ERRORS, Handle, Implementation, Reference
from utils.checks.time_limit import OutOfTime, patience
from utils.paths import ROOT, SOLUTIONS
from utils.student_work import NO_REFERENCE

START_SECONDS = 120  # of processor time: to start, import torch and load the model
LOOK_EVERY = 0.1  # seconds between two looks at the processor time of a worker that has not answered


class Leaf:
    """A tensor that wants gradients, as it was sent once: judge and worker list them in the same order."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


class RemoteReference(Reference):
    """An object in the worker, and the leaves that it was made from."""

    def __init__(self, number: int, leaves: list[Leaf]):
        self.number, self.leaves = number, leaves


class _Remote(torch.autograd.Function):
    """Puts a call in the worker into the judge's autograd graph."""

    @staticmethod
    def forward(
        ctx: Any, backend: IsolatedBackend, tape: int, outputs: list[torch.Tensor], *leaves: torch.Tensor
    ) -> Any:
        ctx.backend, ctx.tape = backend, tape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        gradients = ctx.backend.request("vjp", tape=ctx.tape, cotangents=list(cotangents))
        return None, None, None, *gradients


class IsolatedBackend:
    """Runs the implementation in `file` in a worker process, which is replaced when it dies or runs out of time."""

    def __init__(self, file: Path):
        self.file = file
        self._worker: subprocess.Popen | None = None

    # What a Backend does.

    def lookup(self, name: str) -> Any:
        return self._ask("lookup", name=name, source=str(self.file))

    def get(self, reference: RemoteReference, attribute: str) -> Any:
        return self._ask("get", of=reference, attribute=attribute)

    def call(self, reference: RemoteReference, args: tuple, kwargs: dict) -> Any:
        return self._ask("call", of=reference, args=args, kwargs=kwargs)

    @contextmanager
    def watch(self, model: Any) -> Iterator[SimpleNamespace]:
        seen = SimpleNamespace()
        self.request("watch", model=model)
        try:
            yield seen
        finally:
            vars(seen).update(self.request("watched"))

    @contextmanager
    def check(self, needs_model: bool, seconds: float) -> Iterator[None]:
        self._start()
        self._set_deadline(START_SECONDS)
        self.request("load", model=needs_model)
        self._set_deadline(seconds)
        try:
            yield
        except OutOfTime:
            self.close()
            raise

    # Talking to the worker.

    def request(self, operation: str, **parts: Any) -> Any:
        """The worker's answer to one request, raising what the student's code raised."""
        return self._exchange(operation, parts)[0]["value"]

    def _ask(self, operation: str, **parts: Any) -> Any:
        """Like `request`, with what comes back joined to the judge's autograd graph."""
        answer, leaves = self._exchange(operation, parts)
        value, tape = answer["value"], answer["tape"]
        if tape is None:
            return value
        outputs = [leaf.detach() for leaf in tree_leaves(value) if _wants_gradient(leaf)]
        joined = iter(_Remote.apply(self, tape, outputs, *(leaf.tensor for leaf in leaves)))
        return tree_map(lambda leaf: next(joined) if _wants_gradient(leaf) else leaf, value)

    def _exchange(self, operation: str, parts: dict) -> tuple[dict, list[Leaf]]:
        leaves: list[Leaf] = []

        def incoming(tag: dict, tensor: torch.Tensor | None) -> Any:
            return RemoteReference(tag["reference"], leaves) if tensor is None else tensor.requires_grad_(tag["grad"])

        self._send(plain.dumps({"operation": operation, **_with_leaves(parts, leaves)}, _outgoing))
        answer = plain.loads(self._receive(), incoming)
        if "error" in answer:
            kind, *words = answer["error"]
            raise ERRORS.get(kind, StudentError)(*words)
        if "failure" in answer:
            raise CheckFailed(**answer["failure"])
        return answer, leaves

    def _send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except OSError:
            self._died()

    def _receive(self) -> bytes:
        while not self._pipe.poll(LOOK_EVERY):
            if self._processor_seconds() > self._stop_at or time.monotonic() > self._give_up_at:
                raise OutOfTime(self._seconds)
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._died()

    def _died(self) -> NoReturn:
        status = self._worker.wait() if self._worker else None
        self.close()
        raise StudentError(
            "Crash", f"the process that ran this code ended (status {status}) before it answered"
        ) from None

    def _set_deadline(self, seconds: float) -> None:
        self._seconds = seconds
        self._stop_at = self._processor_seconds() + seconds
        self._give_up_at = time.monotonic() + patience(seconds)

    def _processor_seconds(self) -> float:
        """What the worker has used so far; a dead one uses nothing, and reading from it tells that it died."""
        try:
            times = psutil.Process(self._worker.pid).cpu_times() if self._worker else None
        except psutil.Error:
            return 0.0
        return times.user + times.system if times else 0.0

    def _start(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            return
        self._pipe, theirs = Pipe()
        self._scratch = tempfile.TemporaryDirectory(prefix="check-")
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "utils.checks.worker", str(theirs.fileno()), str(self.file.resolve())],
            pass_fds=[theirs.fileno()],
            cwd=self._scratch.name,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self._without_reference()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def _without_reference(self) -> dict[str, str]:
        """A submission must do without the reference; a chapter of the reference may build on the others."""
        return {} if self.file.resolve().parent == SOLUTIONS else {NO_REFERENCE: "1"}

    def close(self) -> None:
        """End the worker; the next check starts a new one."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker = None
            self._pipe.close()
            self._scratch.cleanup()


def _with_leaves(tree: Any, leaves: list[Leaf]) -> Any:
    """`tree` with references for handles; what in it wants gradients is added to `leaves`, in order."""
    if isinstance(tree, Handle):
        tree = tree._reference
    if isinstance(tree, RemoteReference):
        leaves.extend(leaf for leaf in tree.leaves if leaf not in leaves)
    elif _wants_gradient(tree):
        leaves.append(Leaf(tree))
    elif isinstance(tree, dict):
        return {key: _with_leaves(value, leaves) for key, value in tree.items()}
    elif isinstance(tree, list | tuple):
        return type(tree)(_with_leaves(value, leaves) for value in tree)
    return tree


def _outgoing(item: Any) -> dict | None:
    if isinstance(item, RemoteReference):
        return {"reference": item.number}
    return course_objects.tag_of(item)


def _wants_gradient(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


@contextmanager
def isolated(file: Path) -> Iterator[Implementation]:
    """The implementation in `file`, run in a process of its own. A file that does not load raises at once."""
    backend = IsolatedBackend(file)
    try:
        with backend.check(needs_model=False, seconds=START_SECONDS):
            yield Implementation(backend, str(file))
    finally:
        backend.close()
