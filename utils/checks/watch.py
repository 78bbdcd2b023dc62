"""What a computation costs: forward passes, blocks run, token positions, hooks left behind, random numbers, memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensor storage that operations allocate; `peak` is the most that was alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._followed: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {_key(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if _key(storage) not in given | self._followed:
                self._follow(storage)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        self._followed.add(_key(storage))
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._freed, _key(storage), storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._followed.discard(key)
        self.alive -= size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield from (part.untyped_storage() for part in _dense_parts(leaf))


def _dense_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What has storage: the tensor itself, or what a sparse one is made of."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    return (tensor,) if tensor.layout == torch.strided else ()


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata


@contextmanager
def watch(model: Any = None) -> Iterator[SimpleNamespace]:
    """Observe what runs inside the `with`: the yielded object is filled in when it ends.

    `passes`: forward passes of `model`; `blocks`: how many blocks ran, counted from the first; `tokens`: positions run
    in all, padding included; `unembedded`: whether logits were computed; `hooks_left`: hooks still on the model;
    `peak_bytes`: most tensor memory alive at once beyond what was there before (any model or none); `random`: whether
    torch's global random numbers were drawn from or seeded.
    """
    seen = SimpleNamespace(passes=0, blocks=0, tokens=0, unembedded=False, hooks_left=0, peak_bytes=0, random=False)
    numbers_before = torch.get_rng_state()
    handles = [] if model is None else list(_count_forwards(model, seen))
    hooks_before = _hooks_on(model)
    memory = PeakMemory()
    try:
        with memory:
            yield seen
    finally:
        seen.peak_bytes = memory.peak
        seen.random = not torch.equal(torch.get_rng_state(), numbers_before)
        for handle in handles:
            handle.remove()
        seen.hooks_left = _hooks_on(model) - hooks_before


def _count_forwards(model: Any, seen: SimpleNamespace) -> Iterator[torch.utils.hooks.RemovableHandle]:
    def embedded(module: Any, args: tuple) -> None:
        seen.passes += 1
        seen.tokens += args[0].numel()

    def ran(index: int) -> None:
        seen.blocks = max(seen.blocks, index + 1)

    def unembedded(module: Any, args: tuple) -> None:
        seen.unembedded = True

    yield model.embed.register_forward_pre_hook(embedded)
    yield model.unembed.register_forward_pre_hook(unembedded)
    for index, block in enumerate(model.blocks):
        # A model stopped at block L still enters it; only its attention tells that it ran.
        yield block.attn.register_forward_pre_hook(lambda module, args, index=index: ran(index))


def _hooks_on(model: Any) -> int:
    return (
        0 if model is None else sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())
    )
