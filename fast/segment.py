"""The stretch of the model between two of its activations, entered with the earlier one replaced, for one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.nn.functional import pad
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from utils.hooks import layer_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from torch import Tensor

RESIDUAL = "hook_resid_pre"


def block_of(hook_name: str) -> int:
    """The number of the block that a hook belongs to; 0 for the embedding's."""
    return layer_of(hook_name) if hook_name.startswith("blocks.") else 0


class Segment:
    """From the activation at one hook to the activation at a later one: `with Segment(...) as segment`.

    The blocks before are run once, for what has to stay true: the positions before `first` and, where the earlier hook
    lies inside its block, the stream that goes past it. Hooks are attached once too, since `run_with_hooks` takes as
    long to look one up as to run a block on a short prompt.

    Attributes:
        tokens: one prompt, `[1, seq]`
        first: from this position on, the earlier activation is replaced
        earlier: "hook_embed", or a hook of a block: the stream that enters it, or something inside
        later: a later hook of a block, inside or where the stream enters, or "ln_final.hook_in"
        stream: the true stream that enters the earlier hook's block, where it is known
    """

    def __init__(
        self,
        model: SAETransformerBridge,
        tokens: Int[Tensor, "1 seq"],
        first: int,
        earlier: str,
        later: str,
        stream: Float[Tensor, "1 seq d_model"] | None = None,
    ) -> None:
        self._model, self._tokens, self.first, self._earlier, self._later = model, tokens, first, earlier, later
        self._stream = stream
        self._start = block_of(earlier)
        self._to_stream = later == "ln_final.hook_in" or later.endswith(RESIDUAL)
        if later == "ln_final.hook_in":
            self._last_block = model.cfg.n_layers - 1
        else:
            self._last_block = block_of(later) - self._to_stream

    def __enter__(self) -> Self:
        hooks = [(self._earlier, self._replace), *self._on_last_positions(), (self._later, _stop)]
        if self._start > 0:
            entering = self._true_stream() if self._stream is None else self._stream
            hooks.insert(0, (f"blocks.{self._start}.{RESIDUAL}", lambda stream, hook: entering[:, : self._length]))
        points = self._model.hook_dict
        with ExitStack() as inside:
            inside.enter_context(passed_over(self._model.blocks[: self._start]))
            for name, hook in hooks:
                points[name].add_hook(hook, level=id(self))
                inside.callback(points[name].remove_hooks, "fwd", level=id(self))
            self._inside = inside.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._inside.close()

    def run(self, replacement: Float[Tensor, "n d"], last: int | None = None) -> Float[Tensor, "1 last ..."]:
        """The later activation at the last positions of a prompt that ends where the replacement ends.

        Args:
            replacement: the earlier activation from position `first` on, heads side by side
            last: how many positions are wanted; all if None
        """
        self._replacement, self._length = replacement, self.first + len(replacement)
        self._last = last or self._length
        return self._model(self._tokens[:, : self._length])[:, -self._last :]

    def _true_stream(self) -> Float[Tensor, "1 seq d_model"]:
        """The stream that enters the earlier hook's block, as far as anything reads it."""
        seq = self._tokens.shape[1]
        within_attention = self._later.startswith(f"blocks.{self._start}.attn.")
        kept = self.first if self._earlier.endswith(RESIDUAL) or within_attention else seq
        if kept == 0:
            return torch.zeros(1, seq, self._model.cfg.d_model, dtype=self._model.cfg.dtype, device=self._tokens.device)
        with torch.no_grad():
            return pad(self._model(self._tokens[:, :kept], stop_at_layer=self._start), (0, 0, 0, seq - kept))

    def _replace(self, activation: Tensor, hook: Any) -> Tensor:
        there = self._replacement.reshape(1, -1, *activation.shape[2:])
        return torch.cat([activation[:, : self.first], there], dim=1)

    def _on_last_positions(self) -> Iterator[tuple[str, Any]]:
        """Hooks that narrow what serves only the last positions to these: the last block, but for keys and values."""
        block = f"blocks.{self._last_block}"
        parts = [f"{block}.attn.q", f"{block}.attn.o", f"{block}.mlp"] if self._to_stream else [f"{block}.attn.q"]
        for part in parts:
            yield f"{part}.hook_in", lambda x, hook: x[:, -self._last :]
            yield f"{part}.hook_out", lambda x, hook: pad(x, (*[0, 0] * (x.ndim - 2), self._length - x.shape[1], 0))


def _stop(activation: Tensor, hook: Any) -> None:
    raise StopAtLayerException(activation)


@contextmanager
def passed_over(blocks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside the `with`, these blocks give back the stream as they get it: the bridge has no `start_at_layer`.

    See docs/upstream.md, 9.
    """
    for block in blocks:
        # The bridge's own __setattr__ would hand this on to the block that it wraps.
        vars(block)["forward"] = lambda stream, *args, **kwargs: stream
    try:
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
