"""The worker's side of an isolated check: runs one Python file's code and answers the judge's requests.

`python -m utils.checks.worker PIPE FILE`. It knows neither checks nor expected values. See `utils.checks.isolation`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes  # private: docs/upstream.md, "Without a test"
from torch.utils._pytree import tree_leaves

from utils import plain, student_work
from utils.checks import course_objects
from utils.checks.expect import CheckFailed, StudentError
from utils.checks.implementations import Missing, call_student, get_attribute, load_file, student_code
from utils.checks.watch import watch


class Remembered:
    """Stands for an object that stays in the worker."""

    def __init__(self, number: int):
        self.number = number


def _outgoing(item: Any) -> dict | None:
    return {"reference": item.number} if isinstance(item, Remembered) else None


class Worker:
    """Holds the student's objects by number, and the graph of each call that gradients may be asked of."""

    def __init__(self, file: Path):
        self.file = file
        self.namespace: dict[str, Any] = {}
        self.objects: list[tuple[Any, list[torch.Tensor]]] = []
        self.tapes: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        self.watching = ExitStack()
        self.seen: Any = None

    def answer(self, message: bytes) -> bytes:
        """The answer to one request, whatever happens in the student's code."""
        leaves: list[torch.Tensor] = []
        try:
            with _disable_current_modes():  # what a request brings, dictionaries too, is not the student's memory
                request = plain.loads(message, lambda tag, tensor: self._incoming(tag, tensor, leaves))
            value = getattr(self, f"do_{request.pop('operation')}")(**request)
            if not plain.is_plain(value):
                value = self._remember(value, leaves)
            return plain.dumps({"value": value, "tape": self._tape(value, leaves)}, _outgoing)
        except StudentError as error:
            words = [error.type_name, error.text, error.where, error.kinds]
            return plain.dumps({"error": [type(error).__name__, *words]})
        except CheckFailed as failure:
            return plain.dumps({"failure": vars(failure)})

    def _incoming(self, tag: dict, tensor: torch.Tensor | None, leaves: list[torch.Tensor]) -> Any:
        if tensor is not None:
            if tag["grad"]:
                leaves.append(tensor.requires_grad_())
            return tensor
        if "reference" not in tag:
            return course_objects.from_tag(tag)
        value, its_leaves = self.objects[tag["reference"]]
        leaves.extend(leaf for leaf in its_leaves if not any(leaf is known for known in leaves))
        return value

    def _remember(self, value: Any, leaves: list[torch.Tensor]) -> Remembered:
        self.objects.append((value, list(leaves)))
        return Remembered(len(self.objects) - 1)

    def _tape(self, value: Any, leaves: list[torch.Tensor]) -> int | None:
        outputs = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if not outputs or not leaves:
            return None
        self.tapes.append((outputs, list(leaves)))
        return len(self.tapes) - 1

    # One method for each kind of request.

    def do_load(self, model: bool) -> None:
        if not self.namespace:
            self.namespace = vars(load_file(self.file))
        if model:
            course_objects.named("model")

    def do_lookup(self, name: str, source: str) -> Any:
        if name not in self.namespace:
            raise Missing("NameError", f"{source} does not define `{name}`.")
        return self.namespace[name]

    def do_get(self, of: Any, attribute: str) -> Any:
        with student_work.using(self.namespace):
            return get_attribute(of, attribute)

    def do_call(self, of: Any, args: tuple, kwargs: dict) -> Any:
        with student_work.using(self.namespace):
            return call_student(of, args, kwargs)

    def do_watch(self, model: Any) -> None:
        self.seen = self.watching.enter_context(watch(model))

    def do_watched(self) -> dict[str, Any]:
        self.watching.close()
        return vars(self.seen)

    def do_vjp(self, tape: int, cotangents: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs, leaves = self.tapes[tape]
        with student_code():
            gradients = torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(gradients, leaves, strict=True)
        ]


def main() -> None:
    torch.set_num_threads(1)  # as in a notebook's check
    pipe, file = Connection(int(sys.argv[1])), Path(sys.argv[2])
    worker = Worker(file)
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:  # the judge is done
            return
        pipe.send_bytes(worker.answer(message))


if __name__ == "__main__":
    main()
