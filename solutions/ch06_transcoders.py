"""Chapter 06: transcoders, what makes their latents fire, and what feeds them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from utils import first_position, layer_of, mine

if TYPE_CHECKING:  # takes ten seconds, and nothing here needs it but the reader
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge


def run_with_cache_with_transcoders(
    model: "SAETransformerBridge",
    transcoders: Sequence["SAE"],
    tokens: Int[Tensor, "batch seq"],
    use_error_term: bool = True,
) -> tuple[Float[Tensor, "batch seq d_vocab"], dict[str, Float[Tensor, "batch seq d_sae"]]]:
    """Run the model once with transcoders beside its MLPs (with the error term) or in their place (without).

    Positions before `first_position(model)` (the attention sink) are none of the transcoders' business: there the
    MLP's own output stays, and latents count as 0. The model runs once, with all transcoders; none of them, and no
    hook, stays on it.

    Args:
        model: the language model.
        transcoders: each reads the model at the hook `cfg.metadata.hook_name` and stands for the activation at
            `cfg.metadata.hook_name_out`.
        tokens: the prompts, first special token included.
        use_error_term: if True, what a transcoder gets wrong is added back, so that the model computes what it always
            does. If False, the transcoder's output takes the place of the MLP's.

    Returns:
        `logits`: those of this run.
        `cache`: a dict with the latents of each transcoder in this run, under the bridge's name for them,
        `model.get_sae_hook_name(transcoder)`.

    Raises:
        ValueError: `tokens` is not of rank 2, or a dictionary is not a transcoder (its `hook_name_out` is None).
    """
    # BEGIN SOLUTION
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have rank 2, [batch, seq]; these have rank {tokens.ndim}")
    start, cache, hooks = first_position(model), {}, []

    def two_hooks(transcoder):
        place = transcoder.cfg.metadata
        if place.hook_name_out is None:
            raise ValueError(f"the dictionary at {place.hook_name} is not a transcoder: it has no hook_name_out")
        name = model.get_sae_hook_name(transcoder)

        def read(mlp_in, hook):
            acts = transcoder.encode(mlp_in)
            cache[name] = torch.cat([torch.zeros_like(acts[:, :start]), acts[:, start:]], dim=1)

        def write(mlp_out, hook):
            return torch.cat([mlp_out[:, :start], transcoder.decode(cache[name][:, start:])], dim=1)

        # With the error term, what would be written is what is there already.
        return [(place.hook_name, read)] + ([] if use_error_term else [(place.hook_name_out, write)])

    for transcoder in transcoders:
        hooks += two_hooks(transcoder)
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, cache
    # END SOLUTION


def get_k_largest_indices(
    x: Float[Tensor, "batch seq"], k: int, buffer: int = 0, no_overlap: bool = True
) -> Int[Tensor, "k 2"]:
    """The places (row, column) of the k largest entries, largest first; every place at most once.

    Extra memory stays within a small multiple of that of `x`: no table of pairs of places.

    Args:
        x: any numbers, negative ones too.
        k: how many places.
        buffer: only columns with at least so many neighbours on either side are considered.
        no_overlap: if True, no place stands in the same row within `buffer` columns of one that is larger: take the
            largest entry, then the largest that is not within `buffer` of it, and so on. If False, only the margin
            that `buffer` asks for is kept.

    Returns:
        A row (row of `x`, column) per place, int64. Among equal entries any may come first.

    Raises:
        ValueError: `x` is not of rank 2, or there are no k such places.
    """
    # BEGIN SOLUTION
    if x.ndim != 2:
        raise ValueError(f"x must have rank 2, [batch, seq]; this one has rank {x.ndim}")
    width = x.shape[1]
    free = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    free[:, buffer : width - buffer] = True
    reach, places = buffer if no_overlap else 0, []
    while len(places) < k:
        if not free.any():
            raise ValueError(
                f"k = {k} places were asked for, but x of shape {tuple(x.shape)} has only {len(places)} with "
                f"buffer = {buffer} and no_overlap = {no_overlap}"
            )
        row, column = divmod(x.masked_fill(~free, -torch.inf).argmax().item(), width)
        free[row, max(0, column - reach) : column + reach + 1] = False
        places.append((row, column))
    return torch.tensor(places, dtype=torch.int64, device=x.device).reshape(-1, 2)
    # END SOLUTION


def index_with_buffer(
    x: Float[Tensor, "batch seq"], indices: Int[Tensor, "k 2"], buffer: int = 0
) -> Float[Tensor, "k window"]:
    """The entries at the given places with `buffer` neighbours on either side: window = 2 buffer + 1 entries each.

    Args:
        x: activations or tokens.
        indices: places (row, column). The tensor is not changed.
        buffer: how many neighbours on either side.

    Returns:
        A row per place, in the order given, with the dtype of `x`.

    Raises:
        ValueError: a window would reach beyond the beginning or the end of its row.
    """
    # BEGIN SOLUTION
    rows, columns = indices.unbind(dim=1)
    windows = columns[:, None] + torch.arange(-buffer, buffer + 1, device=columns.device)
    if ((windows < 0) | (windows >= x.shape[1])).any():
        raise ValueError(f"a window of {buffer} columns on either side does not fit into a row of {x.shape[1]}")
    return x[rows[:, None], windows]
    # END SOLUTION


def max_activating_examples(
    model: "SAETransformerBridge",
    transcoder: "SAE",
    tokens: Int[Tensor, "batch seq"],
    latents: Sequence[int],
    k: int,
    buffer: int = 0,
) -> dict[int, list[tuple[float, int, int]]]:
    """For each latent, its k strongest places in the tokens: (activation, row, column), strongest first.

    Places are chosen as by `get_k_largest_indices` with `no_overlap`, from the positions where the latent is
    active: a latent that is active at fewer places has a shorter list, or an empty one. Positions before
    `first_position(model)` do not count.

    *One pass*, however many latents: every row of tokens goes through the model once (in batches of rows, if you like),
    and no further than the block that the transcoder reads. No hook stays on the model.

    Args:
        model: the language model.
        transcoder: a transcoder; it reads the model at the hook `cfg.metadata.hook_name`.
        tokens: the texts, first special token included.
        latents: numbers of latents.
        k: how many places at most.
        buffer: places have so many columns of their row on either side, and are further apart than that.

    Returns:
        latent -> list of (activation, row, column), with a key for each of `latents`.

    Raises:
        ValueError: `tokens` is not of rank 2, or the transcoder has no latent of one of the numbers. They run from
            0; -1 is none.
    """
    # BEGIN SOLUTION
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have rank 2, [batch, seq]; these have rank {tokens.ndim}")
    d_sae = transcoder.W_dec.shape[0]
    if unknown := [latent for latent in latents if not 0 <= latent < d_sae]:
        raise ValueError(f"the transcoder has the latents 0 to {d_sae - 1}; there is no latent {unknown[0]}")
    hook_name, batches = transcoder.cfg.metadata.hook_name, []

    def keep(mlp_in, hook):
        batches.append(transcoder.encode(mlp_in)[..., list(latents)])

    with torch.no_grad():
        for rows in tokens.split(8):  # of all latents, only those of eight rows exist at a time
            model.run_with_hooks(rows, fwd_hooks=[(hook_name, keep)], stop_at_layer=layer_of(hook_name) + 1)
    acts = torch.cat(batches)
    acts[:, : first_position(model)] = 0
    return {latent: _strongest(acts[..., n], k, buffer) for n, latent in enumerate(latents)}
    # END SOLUTION


def _strongest(acts: Float[Tensor, "batch seq"], k: int, buffer: int) -> list[tuple[float, int, int]]:
    """The k strongest places of one latent, or as many as there are: take the largest, strike out what lies near."""
    left, width, places = acts.clone(), acts.shape[1], []
    left[:, :buffer] = 0
    left[:, max(0, width - buffer) :] = 0
    while len(places) < k and left.max() > 0:
        row, column = divmod(left.argmax().item(), width)
        places.append((left[row, column].item(), row, column))
        left[row, max(0, column - buffer) : column + buffer + 1] = 0
    return places


def top_logits(
    model: "SAETransformerBridge", sae: "SAE", latent_idx: int, k: int
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The logit lens: which tokens a latent makes more probable if what it writes goes straight to the output.

    The logits are `(w * W_dec[latent_idx]) @ W_U` with w the weights of the model's final norm
    (`model.ln_final.weight`); what the norm divides by is the same for all latents and is left out. A constant added
    to all logits changes no probability, so their mean over the vocabulary is taken off.

    Args:
        model: the language model.
        sae: a transcoder, or a dictionary of the residual stream.
        latent_idx: the latent's number.
        k: how many tokens.

    Returns:
        `values`: the k largest logits minus the mean over the vocabulary, largest first.
        `token_ids`: the tokens they belong to.

    Raises:
        ValueError: k is larger than the vocabulary, or there is no such latent. Numbers run from 0; -1 is none.
    """
    # BEGIN SOLUTION
    if k > model.W_U.shape[1]:
        raise ValueError(f"k = {k} is larger than the vocabulary of {model.W_U.shape[1]} tokens")
    if not 0 <= latent_idx < len(sae.W_dec):
        raise ValueError(f"the dictionary has the latents 0 to {len(sae.W_dec) - 1}; there is no latent {latent_idx}")
    with torch.no_grad():
        logits = (model.ln_final.weight * sae.W_dec[latent_idx]) @ model.W_U
        values, token_ids = (logits - logits.mean()).topk(k)
    return values, token_ids
    # END SOLUTION


def top_deembeddings(
    model: "SAETransformerBridge", sae: "SAE", latent_idx: int, k: int
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The tokens whose embeddings a latent reads most strongly: the largest entries of `W_E @ W_enc[:, latent_idx]`.

    Args:
        model: the language model.
        sae: a transcoder, or a dictionary of the residual stream.
        latent_idx: the latent's number.
        k: how many tokens.

    Returns:
        `values`: the k largest entries, largest first. `token_ids`: the tokens they belong to.

    Raises:
        ValueError: k is larger than the vocabulary, or there is no such latent. Numbers run from 0; -1 is none.
    """
    # BEGIN SOLUTION
    if k > len(model.W_E):
        raise ValueError(f"k = {k} is larger than the vocabulary of {len(model.W_E)} tokens")
    if not 0 <= latent_idx < sae.W_enc.shape[1]:
        raise ValueError(
            f"the dictionary has the latents 0 to {sae.W_enc.shape[1] - 1}; there is no latent {latent_idx}"
        )
    with torch.no_grad():
        values, token_ids = (model.W_E @ sae.W_enc[:, latent_idx]).topk(k)
    return values, token_ids
    # END SOLUTION


def create_extended_embedding(model: "SAETransformerBridge") -> Float[Tensor, "d_vocab d_model"]:
    """What the stream holds of each token after the first MLP, were there no attention: embedding plus MLP 0.

    Row t is `e + mlp(ln2(e))` with e the embedding of token t and mlp and ln2 those of block 0, scaled to unit
    standard deviation. Where the model's norm centres (LayerNorm), the row's mean is taken off first; where it does not
    (RMSNorm, `model.cfg.uses_rms_norm`), the mean stays.

    Extra memory, the result included, is at most five times the result's. The model's weights are not changed.

    Args:
        model: the language model.

    Returns:
        A row per token of the vocabulary, in the order of `model.W_E`, without gradient. Whether the standard
        deviation divides by d_model or by d_model - 1, and is taken about the mean or about 0, is all the same.
    """
    # BEGIN SOLUTION
    block, rows = model.blocks[0], []
    with torch.no_grad():
        for e in model.W_E.split(4096):
            # Norm and MLP expect a sequence axis: here, a sequence of one batch.
            row = e + block.mlp(block.ln2(e[None]))[0]
            if not model.cfg.uses_rms_norm:
                row = row - row.mean(dim=1, keepdim=True)
            rows.append(row / row.std(dim=1, keepdim=True))
    return torch.cat(rows)
    # END SOLUTION


def pullback(transcoder_from: "SAE", transcoder_to: "SAE", latent_idx: int) -> Float[Tensor, " d_sae"]:
    """How much of what each latent of an earlier transcoder writes is read by one latent of a later transcoder.

    `p[i]` is the product of the earlier transcoder's decoder row i with the later one's encoder column
    `latent_idx`: weights only, no text, no activation. The model does not run, and the product of the whole matrices
    is never made (extra memory stays below 3 MB).

    Args:
        transcoder_from: the earlier transcoder, which writes.
        transcoder_to: the later transcoder, which reads.
        latent_idx: a latent of the later one.

    Returns:
        An entry per latent of the earlier transcoder, without gradient.

    Raises:
        ValueError: `transcoder_from` does not lie in an earlier block than `transcoder_to` (the same block is not
            earlier), or the later one has no such latent. Numbers run from 0; -1 is none.
    """
    # BEGIN SOLUTION
    earlier, later = layer_of(transcoder_from), layer_of(transcoder_to)
    if earlier >= later:
        raise ValueError(f"transcoder_from lies in block {earlier}; it must lie before transcoder_to, in block {later}")
    d_sae = transcoder_to.W_enc.shape[1]
    if not 0 <= latent_idx < d_sae:
        raise ValueError(f"the later transcoder has the latents 0 to {d_sae - 1}; there is no latent {latent_idx}")
    return (transcoder_from.W_dec @ transcoder_to.W_enc[:, latent_idx]).detach()
    # END SOLUTION


def influence(
    model: "SAETransformerBridge",
    transcoder_from: "SAE",
    transcoder_to: "SAE",
    latent_idx: int,
    tokens: Int[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d_sae"]:
    """The pullback at work: each earlier latent's activation at each token, times its entry of the pullback.

    Positions before `first_position(model)` do not count: there the influence is 0. The model runs once, and no
    further than the block of `transcoder_from`; no hook stays on it.

    Args:
        model: the language model.
        transcoder_from: the earlier transcoder.
        transcoder_to: the later transcoder.
        latent_idx: a latent of the later one.
        tokens: the texts, first special token included.

    Returns:
        Entry [b, s, i] is the influence of the earlier latent i at token s of row b, with its sign.

    Raises:
        ValueError: `tokens` is not of rank 2, and where `pullback` raises one.
    """
    # BEGIN SOLUTION
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have rank 2, [batch, seq]; these have rank {tokens.ndim}")
    p = mine.pullback(transcoder_from, transcoder_to, latent_idx)
    hook_name = transcoder_from.cfg.metadata.hook_name
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=hook_name, stop_at_layer=layer_of(hook_name) + 1)
        acts = transcoder_from.encode(cache[hook_name])
    acts[:, : first_position(model)] = 0
    return acts * p
    # END SOLUTION
