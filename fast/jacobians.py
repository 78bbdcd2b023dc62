"""Jacobians between what is active: latents to later latents, tokens to latents, latents to logits.

The set of active latents is fixed, and an active latent is a linear function of its dictionary's input. So every
gradient starts as an encoder column and ends against a decoder row (or the other way round), and neither a dense
`[seq, d_sae]` decode nor an encode of all columns is ever differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fast.segment import Segment, block_of
from fast.sparse import decode_active, decoder_rows, encoder_columns, require_piecewise_linear
from utils.models.profiles import first_position

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from torch import Tensor

# Positions that are carried through the model together, over all gradients: enough for fast matrix products, few enough
# for the cache. It is the memory budget too: a row of the widest activation takes 6 kB, and a dozen are alive at once.
ROWS = 2048
POSITIONS = 2  # neighbouring positions whose latents share a forward pass


@torch.no_grad()
def latents_to_latents(
    model: SAETransformerBridge,
    tokens: Int[Tensor, "batch seq"],
    sae_from: SAE[Any],
    sae_to: SAE[Any],
    values: Float[Tensor, " nnz_prev"],
    indices: Int[Tensor, "nnz_prev 3"],
) -> tuple[Float[Tensor, "nnz_next nnz_prev"], Float[Tensor, " nnz_next"], Int[Tensor, "nnz_next 3"]]:
    """Gradients of a later dictionary's active latents with respect to an earlier one's.

    The later latents are those of the model into which the earlier dictionary's reconstruction is put in place of what
    it describes: the linear proxy of chapter 04, and for dictionaries on `attn.hook_z` of chapter 05. Positions before
    `first_position(model)` keep their true activation, and their latents do not count.

    Args:
        values: activations of the earlier dictionary's active latents
        indices: their (batch, seq, latent), in row-major order

    Returns:
        the gradients, and the values and indices of the later dictionary's active latents, in row-major order

    Raises:
        ValueError: the tokens' rank, the order of the dictionaries, or an active set that is empty
    """
    first = _checked(model, tokens, sae_from, values, indices)
    _require_later(sae_from, sae_to)
    parts = []
    for here, prompt in _prompts(tokens, indices):
        positions, latents, length = indices[here, 1] - first, indices[here, 2], prompt.shape[1] - first
        earlier = Placed(positions, decoder_rows(sae_from, latents), length)
        entry = decode_active(sae_from, values[here], positions, earlier.vectors, length)
        between = _BetweenLatents(model, prompt, first, entry, sae_from, sae_to)
        acts = between.later_acts()
        later, found = _read_by(sae_to, acts)
        parts.append((between.jacobian(earlier, later), acts[found.unbind(1)], found))
    return _joined(parts, first)


@torch.no_grad()
def tokens_to_latents(
    model: SAETransformerBridge, tokens: Int[Tensor, "batch seq"], sae: SAE[Any]
) -> tuple[Float[Tensor, "batch seq nnz"], Float[Tensor, " nnz"], Int[Tensor, "nnz 3"]]:
    """Gradients of a dictionary's active latents with respect to scale factors of the tokens' embeddings, at 1.

    Forward mode: a tangent per token reaches all latents.

    Returns:
        the gradients, and the values and indices (batch, seq, latent) of the active latents, in row-major order

    Raises:
        ValueError: the tokens' rank, or an active set that is empty
    """
    _require_rank(tokens)
    require_piecewise_linear(sae)
    first = first_position(model)
    parts = []
    for prompt in tokens.split(1):
        embedding = model.embed(prompt)[0]
        with Segment(model, prompt, 0, "hook_embed", _hook(sae)) as segment:
            acts = sae.encode(segment.run(embedding))[0, first:]
            later, found = _read_by(sae, acts)
            tangents = torch.diag_embed(embedding.T).permute(1, 2, 0)  # each token's embedding alone, at its place
            gradients = torch.cat(
                [
                    later.contract(
                        _pushed(lambda x: sae.process_sae_in(segment.run(x)), embedding, chunk)[:, 0, first:]
                    )
                    for chunk in tangents.split(_at_once(len(embedding)))
                ]
            )
        parts.append((gradients, acts[found.unbind(1)], found))
    gradients, values, indices = _joined(parts, first)
    return gradients.reshape(*tokens.shape, -1), values, indices


@torch.no_grad()
def latents_to_logits(
    model: SAETransformerBridge,
    tokens: Int[Tensor, "1 seq"],
    sae: SAE[Any],
    values: Float[Tensor, " nnz"],
    indices: Int[Tensor, "nnz 3"],
    token_ids: Int[Tensor, " n_ids"],
    stream: Float[Tensor, "1 seq d_model"] | None = None,
) -> tuple[Float[Tensor, "n_ids nnz"], Float[Tensor, " n_ids"]]:
    """Gradients of some logits after the last token with respect to active latents, and those logits.

    The dictionary's reconstruction stands in place of what it describes, as for `latents_to_latents`.

    Args:
        values, indices: as for `latents_to_latents`
        stream: for a dictionary of the stream that enters a block, that stream, from the run that found the active
            latents. Without it, the blocks before are run once more, for the positions that stay true

    Raises:
        ValueError: the tokens' rank, more than one prompt, or an active set that is empty
    """
    first = _checked(model, tokens, sae, values, indices)
    if len(tokens) != 1:
        raise ValueError(f"the logits are those of one prompt: tokens must be [1, seq], not {list(tokens.shape)}")
    positions, latents, length = indices[:, 1] - first, indices[:, 2], tokens.shape[1] - first
    earlier = Placed(positions, decoder_rows(sae, latents), length)
    entry = decode_active(sae, values, positions, earlier.vectors, length).requires_grad_()
    with torch.enable_grad():
        with Segment(model, tokens, first, _hook(sae), "ln_final.hook_in", stream) as segment:
            last = segment.run(entry, last=1)
        logits = (model.ln_final(last) @ model.W_U[:, token_ids] + model.b_U[token_ids])[0, 0]
    each = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    (back,) = torch.autograd.grad(logits, entry, each, is_grads_batched=True)
    return earlier.contract(back), logits.detach()


# ---- the two modes, and the short cut between neighbouring attention layers


@dataclass(frozen=True)
class Placed:
    """Vectors at positions of one prompt, in row-major order: what latents write, or what they read.

    Attributes:
        length: number of positions, counted from the first that counts
    """

    positions: Int[Tensor, " nnz"]
    vectors: Float[Tensor, "nnz d"]
    length: int

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def bounds(self) -> list[int]:
        """Position `p` has the vectors from `bounds[p]` up to `bounds[p + 1]`."""
        return torch.searchsorted(self.positions, torch.arange(self.length + 1).to(self.positions)).tolist()

    def alone(self, which: slice, start: int, end: int) -> Float[Tensor, "n window d"]:
        """Each of some vectors at its own position, zeros elsewhere, for the positions from `start` to `end`."""
        vectors = self.vectors[which]
        spread = vectors.new_zeros(len(vectors), end - start, vectors.shape[1])
        spread[range(len(vectors)), self.positions[which] - start] = vectors
        return spread

    def contract(self, x: Float[Tensor, "n window d"]) -> Float[Tensor, "n some"]:
        """Products with `x`, position by position, of all vectors that lie in the window; it starts at position 0."""
        vectors = self.vectors.split([end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False)])
        return torch.cat([x[:, p] @ vectors[p].T for p in range(x.shape[1])], dim=1)


@dataclass(frozen=True)
class _BetweenLatents:
    """One prompt between two dictionaries.

    Attributes:
        first: the first position that counts
        entry: the earlier dictionary's reconstruction from there on
    """

    model: SAETransformerBridge
    prompt: Int[Tensor, "1 seq"]
    first: int
    entry: Float[Tensor, "length d_in"]
    sae_from: SAE[Any]
    sae_to: SAE[Any]

    def later_acts(self) -> Float[Tensor, "length d_sae"]:
        with self._segment(_hook(self.sae_from), _hook(self.sae_to)) as segment:
            return self.sae_to.encode(segment.run(self.entry))[0, self.first :]

    def jacobian(self, earlier: Placed, later: Placed) -> Float[Tensor, "nnz_next nnz_prev"]:
        if not len(earlier) or not len(later):
            return earlier.vectors.new_zeros(len(later), len(earlier))
        if _meet_in_attention(self.sae_from, self.sae_to):
            return self._through_one_attention(earlier, later)
        with self._segment(_hook(self.sae_from), _hook(self.sae_to)) as segment:
            # Backward passes stop at their latent's position; tangents have no such limit.
            if 2 * len(earlier) < len(later):
                return self._forward(segment, earlier, later)
            return self._reverse(segment, self.entry, earlier, later)

    def _reverse(
        self, segment: Segment, entry: Float[Tensor, "length d"], earlier: Placed, later: Placed
    ) -> Float[Tensor, "nnz_next nnz_prev"]:
        """A backward pass per later latent. Nothing looks ahead, so a pass runs no further right than its latent."""
        gradients = earlier.vectors.new_zeros(len(later), len(earlier))
        for start in range(0, later.length, POSITIONS):
            end = min(start + POSITIONS, later.length)
            leaf = entry[:end].detach().requires_grad_()
            with torch.enable_grad():
                output = self.sae_to.process_sae_in(segment.run(leaf, last=end - start))[0]
            for which in _slices(later.bounds[start], later.bounds[end], _at_once(end)):
                cotangents = later.alone(which, start, end)
                (back,) = torch.autograd.grad(output, leaf, cotangents, retain_graph=True, is_grads_batched=True)
                gradients[which, : earlier.bounds[end]] = earlier.contract(back)
        return gradients

    def _forward(self, segment: Segment, earlier: Placed, later: Placed) -> Float[Tensor, "nnz_next nnz_prev"]:
        """A tangent per earlier latent."""

        def read(entry: Tensor) -> Tensor:
            return self.sae_to.process_sae_in(segment.run(entry))[0, self.first :]

        length = len(self.entry)
        return torch.cat(
            [
                later.contract(_pushed(read, self.entry, earlier.alone(which, 0, length)))
                for which in _slices(0, len(earlier), _at_once(length))
            ]
        ).T

    def _through_one_attention(self, earlier: Placed, later: Placed) -> Float[Tensor, "nnz_next nnz_prev"]:
        """From the heads of one block to those of the next, where positions meet in the second attention only.

        Up to that attention's input, what latents write at different positions does not mix: the tangents of all
        positions travel together, in as many passes as a position has latents. Backward passes then run through the
        attention alone, and meet the tangents at its input.
        """
        attention = f"blocks.{block_of(_hook(self.sae_to))}.attn.hook_in"
        rank = torch.arange(len(earlier)) - torch.tensor(earlier.bounds)[earlier.positions.cpu()]
        tangents = self.entry.new_zeros(int(rank.max()) + 1, *self.entry.shape)
        tangents[rank, earlier.positions] = earlier.vectors
        with self._segment(_hook(self.sae_from), attention) as segment:

            def run(entry: Tensor) -> Tensor:
                return segment.run(entry)[0, self.first :]

            chunks = tangents.split(_at_once(len(self.entry)))
            carried = torch.cat([_pushed(run, self.entry, chunk) for chunk in chunks])[rank, earlier.positions]
            attention_input = run(self.entry)
        with self._segment(attention, _hook(self.sae_to)) as segment:
            return self._reverse(segment, attention_input, replace(earlier, vectors=carried), later)

    def _segment(self, start: str, end: str) -> Segment:
        return Segment(self.model, self.prompt, self.first, start, end)


def _pushed(
    function: Callable[[Tensor], Tensor], at: Float[Tensor, "length d"], tangents: Float[Tensor, "n length d"]
) -> Float[Tensor, "n ..."]:
    """What a function makes of tangents: its derivative along each."""
    return torch.func.vmap(lambda tangent: torch.func.jvp(function, (at,), (tangent,))[1])(tangents)


def _at_once(length: int) -> int:
    """How many gradients are carried together on a prompt of this length."""
    return -(-ROWS // length)


def _slices(start: int, end: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, end)) for at in range(start, end, size))


# ---- prompts and active sets


def _prompts(tokens: Tensor, indices: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Each prompt, with the rows of `indices` that are its own."""
    bounds = torch.searchsorted(indices[:, 0].contiguous(), torch.arange(len(tokens) + 1).to(indices)).tolist()
    for row, prompt in enumerate(tokens.split(1)):
        yield slice(bounds[row], bounds[row + 1]), prompt


def _read_by(sae: SAE[Any], acts: Float[Tensor, "length d_sae"]) -> tuple[Placed, Int[Tensor, "nnz 2"]]:
    """What a dictionary's active latents read, and their (position, latent)."""
    found = acts.nonzero()
    return Placed(found[:, 0].contiguous(), encoder_columns(sae, found[:, 1]).T, len(acts)), found


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, values and (batch, seq, latent) of all prompts; between prompts gradients are zero."""
    if not any(len(values) for _, values, _ in parts):
        raise ValueError(
            "the active set is empty: no latent of the dictionary is active, so there is nothing to explain"
        )
    gradients = [gradients for gradients, _, _ in parts]
    indices = [
        torch.cat([torch.full_like(found[:, :1], row), found + found.new_tensor([first, 0])], dim=1)
        for row, (_, _, found) in enumerate(parts)
    ]
    whole = gradients[0] if len(parts) == 1 else torch.block_diag(*gradients)
    return whole, torch.cat([values for _, values, _ in parts]), torch.cat(indices)


def _meet_in_attention(sae_from: SAE[Any], sae_to: SAE[Any]) -> bool:
    """Whether both describe heads, of neighbouring blocks."""
    heads = _hook(sae_from).endswith("hook_z") and _hook(sae_to).endswith("hook_z")
    return heads and block_of(_hook(sae_to)) == block_of(_hook(sae_from)) + 1


def _checked(model: SAETransformerBridge, tokens: Tensor, sae: SAE[Any], values: Tensor, indices: Tensor) -> int:
    """The first position that counts, once the inputs are known to fit together."""
    _require_rank(tokens)
    require_piecewise_linear(sae)
    if values.ndim != 1 or indices.shape != (len(values), 3):
        raise ValueError(
            f"values {list(values.shape)} and indices {list(indices.shape)} do not fit together: they must be [nnz] "
            "and [nnz, 3], with a row (batch, seq, latent) for each active latent"
        )
    if len(values) == 0:
        raise ValueError("the active set is empty: there is no latent to take gradients with respect to")
    first = first_position(model)
    if int(indices[:, 1].min()) < first:
        raise ValueError(
            "no latent is active at the attention-sink position: there the stream passes through untouched"
        )
    if bool(((indices[:, 0] * tokens.shape[1] + indices[:, 1]).diff() < 0).any()):
        raise ValueError("indices must be in row-major order: by prompt, then by position")
    return first


def _require_rank(tokens: Tensor) -> None:
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have rank 2, [batch, seq], not {list(tokens.shape)}")


def _require_later(sae_from: SAE[Any], sae_to: SAE[Any]) -> None:
    require_piecewise_linear(sae_to)
    if block_of(_hook(sae_from)) >= block_of(_hook(sae_to)):
        raise ValueError(
            f"the later dictionary must lie after the earlier one: sae_from is at {_hook(sae_from)} and sae_to at "
            f"{_hook(sae_to)}"
        )


def _hook(sae: SAE[Any]) -> str:
    return sae.cfg.metadata.hook_name
