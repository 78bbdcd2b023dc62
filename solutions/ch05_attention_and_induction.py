"""Chapter 05: dictionaries on attention heads, and the circuit that continues what it has read before."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from utils import first_position, layer_of, mine
from utils.material.induction import repeat_log_prob

if TYPE_CHECKING:  # these take ten seconds, and nothing here needs them but the reader
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    SparseTensor = mine.SparseTensor
    SparseParts = tuple[Float[Tensor, " nnz"], Int[Tensor, "nnz 3"], tuple[int, int, int]]  # SparseTensor.sparse


def _demand_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2:
        raise ValueError(
            "tokens must have rank 2, [batch, seq], as model.to_tokens gives them; "
            f"these have shape {tuple(tokens.shape)}"
        )


def _demand_dictionaries(*saes: "SAE") -> None:
    """On the heads' outputs, in the order of the model."""
    for sae in saes:
        if not sae.cfg.metadata.hook_name.endswith("attn.hook_z"):
            raise ValueError(
                f"this needs dictionaries of attention heads, on attn.hook_z; one reads {sae.cfg.metadata.hook_name}"
            )
    layers = [layer_of(sae) for sae in saes]
    if layers != sorted(set(layers)):
        raise ValueError(
            f"sae_from must be at an earlier layer than sae_to, but they read layers {layers[0]} and {layers[1]}: "
            "latents do not depend on later ones"
        )


def _without_sink(latent_acts: Float[Tensor, "batch seq d_sae"], model: "SAETransformerBridge") -> Tensor:
    """The activations, zero where they do not count: at the sink, on which the dictionaries were never trained."""
    first = first_position(model)
    return torch.cat([torch.zeros_like(latent_acts[:, :first]), latent_acts[:, first:]], dim=1)


def _true_acts(
    tokens: Int[Tensor, "batch seq"], saes: "list[SAE]", model: "SAETransformerBridge"
) -> "list[SparseTensor]":
    """Active latents of each dictionary in one run of the untouched model.

    This is what attached dictionaries see with the error term on: whatever a dictionary fails to reconstruct is added
    back, so what comes behind it is the true model, and nothing need be attached at all.
    """
    names = [sae.cfg.metadata.hook_name for sae in saes]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names, stop_at_layer=max(map(layer_of, saes)) + 1)
        dense = [_without_sink(sae.encode(cache[name]), model) for sae, name in zip(saes, names, strict=True)]
    for name, acts in zip(names, dense, strict=True):
        if not acts.any():
            raise ValueError(
                f"no latent of the dictionary at {name} is active on these {tokens.shape[1]} tokens, so there is "
                "nothing to differentiate (the first special token alone does not count)"
            )
    return [mine.SparseTensor.from_dense(acts) for acts in dense]


def head_scores(
    model: "SAETransformerBridge", tokens: Int[Tensor, "batch seq"]
) -> tuple[Float[Tensor, "n_layers n_heads"], Float[Tensor, "n_layers n_heads"]]:
    """How much every head looks at the previous token, and at the token after the earlier occurrence of its own.

    The model runs once, on all rows together, and no hook stays on it. Of its activations only the attention patterns
    are kept: everything that can be cached would take many times their memory.

    Args:
        model: the language model.
        tokens: each row is the first special token and a sequence of random tokens, twice: with `half` tokens in the
            sequence, position `p` of the second half holds the token of position `p - half`.

    Returns:
        `previous`: mean attention of a token to the one before it, from position 2 on. Position 1 is left out: the
        one before it is the attention sink.
        `induction`: mean attention of the second half's tokens, all of them, to the token that followed the earlier
        occurrence of the same token.
        Both are means over positions and rows, between 0 and 1.

    Raises:
        ValueError: `tokens` is not of rank 2, or a row is not one special token and a sequence said twice.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    half = (tokens.shape[1] - 1) // 2
    if tokens.shape[1] != 1 + 2 * half or half < 2 or not tokens[:, 1 : half + 1].equal(tokens[:, half + 1 :]):
        raise ValueError(
            "tokens must be one special token and the same sequence twice: the second half has to repeat the first"
        )
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("attn.hook_pattern"))
    # [layer, batch, head, from, to]
    patterns = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])
    reader = torch.arange(2, tokens.shape[1])
    previous = patterns[..., reader, reader - 1]
    second = torch.arange(half + 1, tokens.shape[1])
    induction = patterns[..., second, second - half + 1]
    return previous.mean(dim=(1, 3)), induction.mean(dim=(1, 3))
    # END SOLUTION


def latent_acts_to_later_latent_acts_attn(
    latent_acts_nonzero: Float[Tensor, " nnz"],
    latent_acts_nonzero_inds: Int[Tensor, "nnz 3"],
    latent_acts_shape: tuple[int, int, int],
    sae_from: "SAE",
    sae_to: "SAE",
    model: "SAETransformerBridge",
    tokens: Int[Tensor, "batch seq"],
) -> tuple[Float[Tensor, " nnz_later"], tuple[Float[Tensor, "batch seq d_sae_later"]]]:
    """Active latents of a later layer's heads as a function of the active latents of an earlier layer's heads.

    Decode the earlier latents, let the reconstruction take the place of the earlier heads' outputs z, run on to the
    later heads, encode their outputs. Positions before `first_position(model)` (the attention sink) keep their true z,
    and later latents there count as 0. Autograd can follow from the first result to `latent_acts_nonzero`.

    The model runs once; blocks behind `sae_to`'s do not run, and no hook stays on the model.

    Args:
        latent_acts_nonzero: activations of the earlier latents, the values of their sparse form (chapter 03). They
            need not be those that the prompt gives.
        latent_acts_nonzero_inds: where they are: a row (row of the batch, position, latent) for each.
        latent_acts_shape: the shape of their dense tensor, (batch, seq, d_sae).
        sae_from: a dictionary on `attn.hook_z`, that of the earlier latents.
        sae_to: a dictionary on `attn.hook_z` at a later layer.
        model: the language model.
        tokens: the prompts, first special token included: the model cannot start in the middle.

    Returns:
        The non-zero later activations in row-major order, and a tuple with their dense tensor alone, from which the
        positions can be read.

    Raises:
        ValueError: `tokens` is not of rank 2, a dictionary is not on `attn.hook_z`, or `sae_from` is not at an
            earlier layer than `sae_to` (the same layer is not earlier).
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_dictionaries(sae_from, sae_to)
    first = first_position(model)
    earlier = mine.SparseTensor.from_sparse((latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape))
    sae_from.d_head = model.cfg.d_head  # a dictionary learns the size of a head only when it encodes
    reconstruction = sae_from.decode(earlier.dense)
    encodings = []

    def replace(z, hook):
        return torch.cat([z[:, :first], reconstruction[:, first:]], dim=1)

    def keep(z, hook):
        encodings.append(sae_to.encode(z))

    hooks = [(sae_from.cfg.metadata.hook_name, replace), (sae_to.cfg.metadata.hook_name, keep)]
    # z lies inside its block: that block has to run, the next one need not.
    model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=layer_of(sae_to) + 1)
    later = mine.SparseTensor.from_dense(_without_sink(encodings[0], model))
    return later.values, (later.dense,)
    # END SOLUTION


def latent_to_latent_gradients_attn(
    tokens: Int[Tensor, "batch seq"], sae_from: "SAE", sae_to: "SAE", model: "SAETransformerBridge"
) -> tuple[Float[Tensor, "nnz_later nnz"], "SparseTensor", "SparseTensor", "SparseTensor"]:
    """How each active latent of the later heads depends on each active latent of the earlier ones.

    What is differentiated is `latent_acts_to_later_latent_acts_attn`, at the true earlier activations. Positions before
    `first_position(model)` are not active.

    Args:
        tokens: the prompts, first special token included.
        sae_from: a dictionary on `attn.hook_z`.
        sae_to: a dictionary on `attn.hook_z` at a later layer.
        model: the language model.

    Returns:
        `grads`: entry [i, j] is the derivative of the i-th entry of `acts_next_recon` by the j-th of `acts_prev`.
        `acts_prev`, `acts_next`: true activations of `sae_from` and `sae_to`, of shape (batch, seq, d_sae), from
        one run with the error term on, so that both see the true heads.
        `acts_next_recon`: those of `sae_to` if the reconstruction by `sae_from` stands in for the earlier heads. This
        is what is differentiated, and it is not the same set as `acts_next`.
        All three are your `SparseTensor`.

    Raises:
        ValueError: `tokens` is not of rank 2, a dictionary is not on `attn.hook_z`, `sae_from` is not at an earlier
            layer than `sae_to` (the same layer is not earlier), or no latent of one of the dictionaries is active.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_dictionaries(sae_from, sae_to)
    acts_prev, acts_next = _true_acts(tokens, [sae_from, sae_to], model)
    # Ten words said twice have 1,280 rows. All at once would take twenty times the memory: 64 are pulled back together.
    function = latent_acts_to_later_latent_acts_attn
    differentiate = torch.func.jacrev(function, argnums=0, has_aux=True, chunk_size=64)
    grads, (dense,) = differentiate(*acts_prev.sparse, sae_from, sae_to, model, tokens)
    return grads, acts_prev, acts_next, mine.SparseTensor.from_dense(dense)
    # END SOLUTION


def induction_latents(
    acts: Float[Tensor, "batch seq d_sae"], min_second: float = 0.5, max_first: float = 0.25
) -> Int[Tensor, " n"]:
    """Latents that are active when something is said for the second time, and not when it is said for the first.

    Args:
        acts: activations on sequences said twice: position 0 is the special token and belongs to neither half, then
            come two halves of equal length. A latent is active where it is larger than 0, however little.
        min_second: the least share of the second half's positions, those of all rows together, on which a latent is
            active. The limit itself is allowed.
        max_first: the largest share of the first half's positions on which it is; this limit is allowed too.

    Returns:
        The latents' numbers, sorted (int64); an empty tensor, if none is like that.

    Raises:
        ValueError: `acts` is not of rank 3, or there are not two halves of equal length behind the first position.
    """
    # BEGIN SOLUTION
    if acts.ndim != 3:
        raise ValueError(f"acts must have rank 3, [batch, seq, d_sae], not shape {tuple(acts.shape)}")
    half = (acts.shape[1] - 1) // 2
    if half < 1 or acts.shape[1] != 1 + 2 * half:
        raise ValueError(f"{acts.shape[1]} positions are not one special token and two halves of equal length")
    active = (acts > 0).float()
    first = active[:, 1 : half + 1].mean(dim=(0, 1))
    second = active[:, half + 1 :].mean(dim=(0, 1))
    return ((second >= min_second) & (first <= max_first)).nonzero().squeeze(1)
    # END SOLUTION


def previous_token_latents(
    gradients: "Sequence[tuple[Tensor, SparseParts, SparseParts]]",
    induction: Int[Tensor, " n"],
    k: int,
) -> Int[Tensor, " k"]:
    """The earlier latents that feed the induction latents from the one place where the answer can be found.

    When the second A is read, the token to come is B, the one behind the first A. So for every induction latent that is
    active at a position of the second half (the second A), look at the latents that are active at the position behind
    the earlier occurrence of the same token (the first B), and add up activation times gradient:
    how much of the induction latent comes, in linear approximation, from there.

    Args:
        gradients: `(grads, acts_prev.sparse, acts_next_recon.sparse)` of `latent_to_latent_gradients_attn` for any
            number of batches of sequences said twice. The length of a half follows from the shape (batch, seq, d_sae)
            and may differ from one to the next; a reader and its source stand in the same row.
        induction: latents of the later dictionary.
        k: how many to return.

    Returns:
        Latents of the earlier dictionary (int64) with the largest sums over all sequences, positions and induction
        latents, largest first. Only latents that are active at one of the places that count are among them.

    Raises:
        ValueError: `gradients` or `induction` is empty, or fewer than `k` latents are active at the places that count.
    """
    # BEGIN SOLUTION
    if not gradients or len(induction) == 0:
        raise ValueError("gradients of at least one sequence and at least one induction latent are needed")
    totals = torch.zeros(gradients[0][1][2][-1])
    at_first_b = torch.zeros(len(totals), dtype=torch.bool)
    for grads, (values, sources, shape), (_, readers, _) in gradients:
        half = (shape[1] - 1) // 2
        is_second_a = torch.isin(readers[:, 2], induction) & (readers[:, 1] > half)
        same_row = readers[:, None, 0] == sources[None, :, 0]
        pairs = is_second_a[:, None] & same_row & (readers[:, None, 1] - sources[None, :, 1] == half - 1)
        totals.index_add_(0, sources[:, 2], (grads * values * pairs).sum(dim=0))
        at_first_b[sources[pairs.any(dim=0), 2]] = True
    if k > at_first_b.sum():
        raise ValueError(f"k cannot be {k}: only {at_first_b.sum()} latents are active where induction is fed from")
    return totals.masked_fill(~at_first_b, -torch.inf).topk(k).indices
    # END SOLUTION


def log_prob_without_latents(
    model: "SAETransformerBridge", tokens: Int[Tensor, "batch seq"], sae: "SAE", latents: Int[Tensor, " n"]
) -> Float[Tensor, " batch"]:
    """How well the model says the second half when some latents are zeroed at every position.

    What these latents contribute, activation times decoder row, is taken out of z. The error term is kept: what the
    dictionary does not reconstruct, its bias, and what other latents do, stay in z. Positions before
    `first_position(model)` stay as they are.

    The model runs once, and no hook stays on it.

    Args:
        model: the language model.
        tokens: each row is the first special token and a random sequence, twice.
        sae: a dictionary on `attn.hook_z`.
        latents: which to zero; none is allowed, and leaves the model as it is.

    Returns:
        For each row the mean log-probability in nats of the second half's tokens but its first, as `repeat_log_prob`
        has it.

    Raises:
        ValueError: `tokens` is not of rank 2, or the dictionary is not on `attn.hook_z`.
    """
    # BEGIN SOLUTION
    _demand_tokens(tokens)
    _demand_dictionaries(sae)
    first = first_position(model)

    def remove(z, hook):
        share = sae.encode(z)[..., latents] @ sae.W_dec[latents]
        return torch.cat([z[:, :first], (z - share.reshape(z.shape))[:, first:]], dim=1)

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(sae.cfg.metadata.hook_name, remove)])
    return repeat_log_prob(logits, tokens)
    # END SOLUTION


def matched_controls(
    acts: Float[Tensor, "batch seq d_sae"], latents: Int[Tensor, " n"], n_sets: int, seed: int, pool: int = 8
) -> Int[Tensor, "n_sets n"]:
    """Sets of other latents that are as active as the given ones: what an ablation has to be compared with.

    For each latent in turn, a control is drawn at random from the `pool` other latents whose mean activation, over all
    rows and positions, is nearest to its own, each with the same probability. Left out are the given latents
    themselves, latents that are never active, and those that the set already has.

    Args:
        acts: activations on the tokens that the ablation is measured on.
        latents: those that need controls.
        n_sets: how many sets to draw, each independently of the others.
        seed: of the random numbers: the same sets for the same seed, whatever was drawn elsewhere.
        pool: how many latents a control is drawn from; all that are left, if these are fewer.

    Returns:
        A row per set (int64); column i is the control of `latents[i]`.

    Raises:
        ValueError: `latents` is empty, or fewer other latents are active than a set needs.
    """
    # BEGIN SOLUTION
    mean = acts.flatten(0, -2).mean(dim=0)
    is_candidate = (mean > 0).index_fill(0, latents, False)
    if not 0 < len(latents) <= is_candidate.sum():
        raise ValueError(f"{is_candidate.sum()} other latents are active: no controls for {len(latents)} latents")
    generator = torch.Generator().manual_seed(seed)
    controls = torch.empty(n_sets, len(latents), dtype=torch.int64)
    for row in controls:
        free = is_candidate.clone()
        for column, latent in enumerate(latents):
            choices = free.nonzero().squeeze(1)
            nearest = choices[(mean[choices] - mean[latent]).abs().argsort()[:pool]]
            row[column] = nearest[torch.randint(len(nearest), (), generator=generator)]
            free[row[column]] = False
    return controls
    # END SOLUTION
