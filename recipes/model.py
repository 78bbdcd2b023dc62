"""The model as the recipes run it: plain Transformers, streams read and replaced by hooks, nothing after the last
one run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from utils.models.model_files import ensure_model

FIRST_TOKEN = 1  # `<|im_start|>`, as `to_tokens` of the bridge prepends it; its position is the attention sink


def load_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(ensure_model(), dtype=dtype).eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ensure_model())


class _Stop(Exception):
    """Ends a forward pass where its last wanted stream is known."""


def _place(model: PreTrainedModel, stream: str) -> tuple[nn.Module, bool]:
    """The module at which a stream such as `z.16` is seen, and whether it is the module's output."""
    kind, layer = stream.rsplit(".", 1)
    block = model.model.layers[int(layer)]
    return {
        "resid_pre": (block, False),
        "z": (block.self_attn.o_proj, False),
        "mlp_in": (block.mlp, False),
        "mlp_out": (block.mlp, True),
    }[kind]


def depth(stream: str) -> tuple[int, int]:
    """Sorts streams in the order in which a forward pass meets them."""
    kind, layer = stream.rsplit(".", 1)
    return int(layer), ("resid_pre", "z", "mlp_in", "mlp_out").index(kind)


@contextmanager
def replaced(model: PreTrainedModel, stream: str, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model with `function` applied to a stream `[batch, seq, 576]` in every pass, the sink position left as it
    is."""
    module, is_output = _place(model, stream)

    def swapped(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], function(x[:, 1:]).to(x.dtype)], dim=1)

    if is_output:
        handle = module.register_forward_hook(lambda _module, _args, output: swapped(output))
    else:
        handle = module.register_forward_pre_hook(lambda _module, args: (swapped(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def run_to(model: PreTrainedModel, tokens: Tensor, streams: list[str]) -> dict[str, Tensor]:
    """One forward pass that stops at the deepest of `streams` and returns them all, each `[batch, seq, 576]`."""
    seen: dict[str, Tensor] = {}
    last = max(streams, key=depth)
    handles = []

    def keep(stream: str, x: Tensor) -> None:
        seen[stream] = x
        if stream == last:
            raise _Stop

    for stream in streams:
        module, is_output = _place(model, stream)
        if is_output:
            handles.append(module.register_forward_hook(lambda _m, _a, out, stream=stream: keep(stream, out)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _m, args, stream=stream: keep(stream, args[0])))
    try:
        model.model(tokens, use_cache=False)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
