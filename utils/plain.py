"""Plain data as bytes: tensors, numbers, strings, None and containers of these, in the safetensors format.

The tensors are the file's tensors, the structure around them is JSON in its metadata. Reading executes nothing, so the
bytes may come from a process that is not trusted. Stored results of demos use the same format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

SCALARS = (bool, int, float, str, type(None))


def is_plain(value: Any) -> bool:
    """Whether `value` can cross a process boundary as data."""
    if isinstance(value, dict):
        return all(is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(is_plain(item) for item in value)
    return isinstance(value, (*SCALARS, torch.Tensor, torch.dtype, np.ndarray, np.generic)) or _is_frame(value)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_frame(value: Any) -> bool:
    return type(value).__name__ == "DataFrame" and type(value).__module__.startswith("pandas")


def dumps(value: Any, special: Callable[[Any], dict | None] = lambda value: None) -> bytes:
    """`value` as bytes. `special` may turn what is not plain into a JSON tag of its own; else that is a TypeError."""
    tensors: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> str:
        name = f"t{len(tensors)}"
        tensors[name] = tensor.detach().cpu().contiguous().clone()  # safetensors refuses shared storage
        return name

    def encode(item: Any) -> Any:
        if isinstance(item, np.generic):
            item = item.item()
        if isinstance(item, SCALARS):
            return item
        if isinstance(item, dict):
            return {"dict": [[encode(key), encode(inner)] for key, inner in item.items()]}
        for kind in (tuple, list, set, frozenset):
            if isinstance(item, kind):
                return {kind.__name__: [encode(inner) for inner in item]}
        if isinstance(item, torch.Tensor) and item.is_meta:
            return {"meta": list(item.shape), "dtype": dtype_name(item.dtype)}
        if isinstance(item, torch.Tensor):
            return {"tensor": keep(item), "grad": item.requires_grad}
        if isinstance(item, torch.dtype):
            return {"dtype": dtype_name(item)}
        if isinstance(item, np.ndarray) and item.dtype != object:
            return {"array": keep(torch.from_numpy(np.ascontiguousarray(item)))}
        if _is_frame(item):
            columns = {name: item[name].tolist() for name in item.columns}
            return {"frame": encode(columns), "index": encode(item.index.tolist())}
        tag = special(item)
        if tag is None:
            raise TypeError(f"a {type(item).__name__} is not plain data")
        return tag

    structure = json.dumps(encode(value))
    return save(tensors, metadata={"structure": structure})


def loads(blob: bytes, special: Callable[[dict, torch.Tensor | None], Any] | None = None) -> Any:
    """The value in `blob`. `special` gets (tag, tensor or None), in the order written, for every tensor and for every
    tag that the writer's `special` made, and returns the object that it stands for."""
    tensors = load(blob)
    header_length = int.from_bytes(blob[:8], "little")
    structure = json.loads(json.loads(blob[8 : 8 + header_length])["__metadata__"]["structure"])

    def decode(tag: Any) -> Any:
        if not isinstance(tag, dict):
            return tag
        if "tensor" in tag:
            tensor = tensors[tag["tensor"]]
            return special(tag, tensor) if special else tensor
        if "meta" in tag:
            return torch.empty(tag["meta"], dtype=getattr(torch, tag["dtype"]), device="meta")
        if "dtype" in tag:
            return getattr(torch, tag["dtype"])
        if "array" in tag:
            return tensors[tag["array"]].numpy()
        if "dict" in tag:
            return {decode(key): decode(inner) for key, inner in tag["dict"]}
        for kind in (tuple, list, set, frozenset):
            if kind.__name__ in tag:
                return kind(decode(inner) for inner in tag[kind.__name__])
        if "frame" in tag:
            import pandas as pd

            return pd.DataFrame(decode(tag["frame"]), index=decode(tag["index"]))
        if special:
            return special(tag, None)
        raise ValueError(f"unknown tag {sorted(tag)} in plain data")

    return decode(structure)
