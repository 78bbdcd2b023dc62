"""Other ways of writing chapter 05: right ones that must pass, wrong ones that must be caught."""

import torch

from fast import jacobians
from solutions import ch05_attention_and_induction as reference
from utils import first_position, layer_of, mine
from utils.checks.variants import right, wrong


def _half(tokens):
    return (tokens.shape[1] - 1) // 2


def _hook(sae):
    return sae.cfg.metadata.hook_name


# head_scores


def _demand_repeats(tokens):
    half = _half(tokens)
    if tokens.ndim != 2:
        raise ValueError("tokens must have rank 2")
    if tokens.shape[1] != 2 * half + 1 or (tokens[:, 1 : half + 1] != tokens[:, half + 1 :]).any():
        raise ValueError("the second half is not the first")


def _patterns(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    return torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])


def _looks(patterns, offset, start, end=None):
    """Mean of the diagonal `offset` below the main one, for readers from `start` on."""
    diagonal = patterns.diagonal(-offset, dim1=-2, dim2=-1)  # entry i: reader i + offset
    return diagonal[..., start - offset : None if end is None else end - offset].mean(dim=(1, 3))


@right("head_scores")
def by_diagonals(model, tokens):
    if tokens.ndim != 2:
        raise ValueError(f"tokens have rank {tokens.ndim}, not 2")
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens)
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens) - 1, _half(tokens) + 1)


@right("head_scores")
def reduced_in_the_hook(model, tokens):
    if tokens.ndim != 2:
        raise ValueError("tokens: rank 2 is wanted")
    _demand_repeats(tokens)
    half, seq = _half(tokens), tokens.shape[1]
    scores = torch.zeros(2, model.cfg.n_layers, model.cfg.n_heads)

    def hooks(layer):
        def reduce(pattern, hook):
            scores[0, layer] = sum(pattern[:, :, p, p - 1].mean(dim=0) for p in range(2, seq)) / (seq - 2)
            scores[1, layer] = sum(pattern[:, :, p, p - half + 1].mean(dim=0) for p in range(half + 1, seq)) / half

        return f"blocks.{layer}.attn.hook_pattern", reduce

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[hooks(layer) for layer in range(model.cfg.n_layers)])
    return scores[0], scores[1]


@wrong("head_scores", mistake="looks at the sink counted", hint="attention sink")
def sink_counted(model, tokens):
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens)
    return _looks(patterns, 1, 1), _looks(patterns, _half(tokens) - 1, _half(tokens) + 1)


@wrong("head_scores", mistake="duplicate-token score", hint="duplicate-token")
def duplicate_token(model, tokens):
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens)
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens), _half(tokens) + 1)


@wrong("head_scores", mistake="one place too far", hint="one place off")
def one_too_far(model, tokens):
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens)
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens) - 2, _half(tokens) + 1)


@wrong("head_scores", mistake="whole sequence in the induction score", hint="too many positions")
def whole_diagonal(model, tokens):
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens)
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens) - 1, _half(tokens) - 1)


@wrong("head_scores", mistake="last position left out", hint="the last have")
def last_left_out(model, tokens):
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens)
    half = _half(tokens)
    return _looks(patterns, 1, 2), _looks(patterns, half - 1, half + 1, 2 * half)


@wrong("head_scores", mistake="only the first row", hint="first row")
def first_row_only(model, tokens):
    _demand_repeats(tokens)
    patterns = _patterns(model, tokens[:1])
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens) - 1, _half(tokens) + 1)


@wrong("head_scores", mistake="everything cached", hint="names_filter")
def scores_caching_everything(model, tokens):
    _demand_repeats(tokens)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    patterns = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens) - 1, _half(tokens) + 1)


@wrong("head_scores", mistake="bad tokens accepted", hint="tokens[:, 1 : half + 1]")
def anything_goes(model, tokens):
    patterns = _patterns(model, tokens)
    return _looks(patterns, 1, 2), _looks(patterns, _half(tokens) - 1, _half(tokens) + 1)


# latent_acts_to_later_latent_acts_attn


def _demand(tokens, sae_from, sae_to):
    if tokens.dim() != 2:
        raise ValueError("rank of tokens is not 2")
    for sae in (sae_from, sae_to):
        if "hook_z" not in _hook(sae):
            raise ValueError(f"{_hook(sae)} is not a hook_z")
    if layer_of(sae_from) >= layer_of(sae_to):
        raise ValueError("sae_from is not the earlier one")


def _later(values, indices, shape, sae_from, sae_to, model, tokens, *, first=None, count=True, stop=1, decode=None,
           change=True, grad=True, check=True):  # fmt: skip
    """The reference with one thing after another that can go wrong."""
    if check:
        _demand(tokens, sae_from, sae_to)
    first = first_position(model) if first is None else first
    dense = torch.zeros(shape).index_put(indices.unbind(-1), values if grad else values.detach())
    there = (decode or (lambda dense: dense @ sae_from.W_dec + sae_from.b_dec))(dense)
    kept = {}

    def replace(z, hook):
        z = z.clone()
        z[:, first:] = there[:, first:].reshape(z[:, first:].shape)
        return z if change else None

    def keep(z, hook):
        kept["z"] = z

    hooks = [(_hook(sae_from), replace), (_hook(sae_to), keep)]
    model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=None if stop is None else layer_of(sae_to) + stop)
    later = sae_to.encode(kept["z"])
    if count:
        later = later * (torch.arange(later.shape[1]) >= first_position(model))[:, None]
    return later[later.nonzero(as_tuple=True)], (later,)


@right("latent_acts_to_later_latent_acts_attn")
def by_the_weights(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens)


@right("latent_acts_to_later_latent_acts_attn")
def inside_a_context(values, indices, shape, sae_from, sae_to, model, tokens):
    _demand(tokens, sae_from, sae_to)
    first = first_position(model)
    dense = mine.SparseTensor.from_sparse((values, indices, shape)).dense

    def replace(z, hook):
        sae_from.encode(z)  # the first encoding tells the dictionary how large a head is
        z = z.clone()
        z[:, first:] = sae_from.decode(dense)[:, first:]
        return z

    seen = []
    with model.hooks(fwd_hooks=[(_hook(sae_from), replace), (_hook(sae_to), lambda z, hook: seen.append(z))]):
        model(tokens, stop_at_layer=layer_of(sae_to) + 1)
    later = sae_to.encode(seen[0])
    later = torch.nn.functional.pad(later[:, first:], (0, 0, first, 0))
    return mine.SparseTensor.from_dense(later).values, (later,)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="hook returns nothing", hint="*true* earlier z")
def nothing_replaced(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, change=False)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="sink replaced", hint="sink position z was replaced")
def sink_replaced(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, first=0)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="latents at the sink counted", hint="counted as active")
def sink_latents_counted(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, count=False)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="no decoder bias", hint="bias is missing")
def without_bias(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, decode=lambda dense: dense @ sae_from.W_dec)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="heads mixed up", hint="heads are mixed up")
def heads_mixed(values, indices, shape, sae_from, sae_to, model, tokens):
    def decode(dense):
        whole = dense @ sae_from.W_dec + sae_from.b_dec
        return whole.unflatten(-1, (model.cfg.d_head, model.cfg.n_heads)).transpose(-1, -2).flatten(-2)

    return _later(values, indices, shape, sae_from, sae_to, model, tokens, decode=decode)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="graph cut", hint="autograd")
def graph_cut(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, grad=False)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="whole model runs", hint="stop_at_layer=5")
def later_never_stopping(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, stop=None)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="stopped one block early", hint="z of block 4 lies inside")
def later_stopped_early(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, stop=0)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="any input accepted", hint="`rank`, `earlier`")
def later_of_anything(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, check=False)


@wrong("latent_acts_to_later_latent_acts_attn", mistake="first row only", hint="nothing may assume one row")
def later_of_one_row(values, indices, shape, sae_from, sae_to, model, tokens):
    kept = indices[:, 0] == 0
    _, (dense,) = _later(values[kept], indices[kept], (1, *shape[1:]), sae_from, sae_to, model, tokens[:1])
    return dense[dense > 0], (dense,)


# latent_to_latent_gradients_attn


def _true(model, tokens, sae):
    _, cache = model.run_with_cache(tokens, names_filter=_hook(sae), stop_at_layer=layer_of(sae) + 1)
    acts = sae.encode(cache[_hook(sae)])
    return acts * (torch.arange(acts.shape[1]) >= first_position(model))[:, None]


def _sparse(acts):
    return mine.SparseTensor.from_dense(acts)


@right("latent_to_latent_gradients_attn")
def gradients_fast(tokens, sae_from, sae_to, model):
    """Between neighbouring blocks, through values and keys in closed form."""
    _demand(tokens, sae_from, sae_to)
    prev, later = (_sparse(_true(model, tokens, sae)) for sae in (sae_from, sae_to))
    if len(prev.values) == 0:
        raise ValueError("nothing is active")
    grads, *recon = jacobians.latents_to_latents(model, tokens, sae_from, sae_to, prev.values, prev.indices)
    return grads, prev, later, mine.SparseTensor.from_sparse((*recon, later.shape))


@right("latent_to_latent_gradients_attn")
def row_by_row(tokens, sae_from, sae_to, model):
    _demand(tokens, sae_from, sae_to)
    prev, later = (_sparse(_true(model, tokens, sae)) for sae in (sae_from, sae_to))
    if len(prev.values) == 0 or len(later.values) == 0:
        raise ValueError("no active latents")
    leaf = prev.values.clone().requires_grad_()
    values, (dense,) = by_the_weights.implementation(leaf, prev.indices, prev.shape, sae_from, sae_to, model, tokens)
    grads = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values]
    return torch.stack(grads), prev, later, _sparse(dense.detach())


@wrong("latent_to_latent_gradients_attn", mistake="transposed", hint="rows and columns are swapped")
def gradients_transposed(tokens, sae_from, sae_to, model):
    grads, *rest = reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)
    return grads.T, *rest


@wrong("latent_to_latent_gradients_attn", mistake="activation times gradient", hint="activation times gradient")
def attributions(tokens, sae_from, sae_to, model):
    grads, prev, *rest = reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)
    return grads * prev.values, prev, *rest


@wrong("latent_to_latent_gradients_attn", mistake="true later acts are those of the reconstruction", hint="reconstruct")
def later_is_recon(tokens, sae_from, sae_to, model):
    grads, prev, _, recon = reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)
    return grads, prev, recon, recon


@wrong("latent_to_latent_gradients_attn", mistake="recon and true swapped", hint="*reconstructed* run")
def sets_swapped(tokens, sae_from, sae_to, model):
    grads, prev, later, recon = reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)
    return grads, prev, recon, later


@wrong("latent_to_latent_gradients_attn", mistake="sink latents active", hint="sink position are counted")
def gradients_with_sink(tokens, sae_from, sae_to, model):
    grads, _, later, recon = reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)
    _, cache = model.run_with_cache(tokens, names_filter=_hook(sae_from), stop_at_layer=layer_of(sae_from) + 1)
    return grads, _sparse(sae_from.encode(cache[_hook(sae_from)])), later, recon


@wrong("latent_to_latent_gradients_attn", mistake="absolute values", hint="signs matter")
def magnitudes(tokens, sae_from, sae_to, model):
    grads, *rest = reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)
    return grads.abs(), *rest


@wrong("latent_to_latent_gradients_attn", mistake="empty active set accepted", hint="`active`")
def empty_accepted(tokens, sae_from, sae_to, model):
    _demand(tokens, sae_from, sae_to)
    prev, later = (_sparse(_true(model, tokens, sae)) for sae in (sae_from, sae_to))
    if len(prev.values) == 0:
        return torch.zeros(0, 0), prev, later, later
    return reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)


@wrong("latent_to_latent_gradients_attn", mistake="three values returned", hint="length 4")
def one_set_short(tokens, sae_from, sae_to, model):
    return reference.latent_to_latent_gradients_attn(tokens, sae_from, sae_to, model)[:3]


# induction_latents


def _demand_halves(acts):
    if acts.ndim != 3 or acts.shape[1] % 2 == 0 or acts.shape[1] < 3:
        raise ValueError("no special token and two halves")
    return acts.shape[1] // 2


@right("induction_latents")
def by_counting(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    counts = (acts[:, 1:].unflatten(1, (2, half)) > 0).sum(dim=(0, 2)) / (half * len(acts))
    found = [n for n in range(acts.shape[2]) if counts[0, n] <= max_first and counts[1, n] >= min_second]
    return torch.tensor(found, dtype=torch.long)


@right("induction_latents")
def by_where(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    first, second = acts[:, 1:].flatten(0, 1).sign().view(len(acts), 2, half, -1).mean(dim=2).mean(dim=0)
    return torch.where(torch.logical_and(second >= min_second, first <= max_first))[0]


@wrong("induction_latents", mistake="always-on latents kept", hint="max_first")
def always_on(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    return ((acts[:, half + 1 :] > 0).float().mean(dim=(0, 1)) >= min_second).nonzero().squeeze(1)


@wrong("induction_latents", mistake="special token in the first half", hint="belongs to neither half")
def sink_in_first_half(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    active = (acts > 0).float()
    first, second = active[:, :half].mean(dim=(0, 1)), active[:, half + 1 :].mean(dim=(0, 1))
    return ((second >= min_second) & (first < max_first)).nonzero().squeeze(1)


@wrong("induction_latents", mistake="strict limits", hint="limits themselves are allowed")
def strict_limits(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    active = (acts > 0).float()
    first, second = active[:, 1 : half + 1].mean(dim=(0, 1)), active[:, half + 1 :].mean(dim=(0, 1))
    return ((second > min_second) & (first < max_first)).nonzero().squeeze(1)


@wrong("induction_latents", mistake="mean activation instead of share", hint="share")
def mean_activation(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    first, second = acts[:, 1 : half + 1].mean(dim=(0, 1)), acts[:, half + 1 :].mean(dim=(0, 1))
    return ((second >= min_second) & (first <= max_first)).nonzero().squeeze(1)


@wrong("induction_latents", mistake="every row for itself", hint="all rows together")
def in_any_row(acts, min_second=0.5, max_first=0.25):
    half = _demand_halves(acts)
    active = (acts > 0).float()
    first, second = active[:, 1 : half + 1].mean(dim=(0, 1)), active[:, half + 1 :].mean(dim=1).amax(dim=0)
    return ((second >= min_second) & (first <= max_first)).nonzero().squeeze(1)


@wrong("induction_latents", mistake="limits not used", hint="two arguments")
def fixed_limits(acts, min_second=0.5, max_first=0.25):
    return reference.induction_latents(acts)


@wrong("induction_latents", mistake="any shape accepted", hint="ValueError")
def any_shape(acts, min_second=0.5, max_first=0.25):
    half = (acts.shape[1] - 1) // 2
    active = (acts > 0).float()
    first, second = active[:, 1 : half + 1].mean(dim=(0, 1)), active[:, half + 1 :].mean(dim=(0, 1))
    return ((second >= min_second) & (first <= max_first)).nonzero().squeeze(1)


# previous_token_latents


@right("previous_token_latents")
def in_loops(gradients, induction, k):
    totals, wanted = {}, set(induction.tolist())
    for grads, (values, sources, shape), (_, readers, _) in gradients:
        half = shape[1] // 2
        for i, (row, reader, latent) in enumerate(readers.tolist()):
            if latent in wanted and reader > half:
                at = (sources[:, 0] == row) & (sources[:, 1] == reader - half + 1)
                for j in at.nonzero().flatten().tolist():
                    source = int(sources[j, 2])
                    totals[source] = totals.get(source, 0.0) + float(grads[i, j] * values[j])
    if not wanted or k > len(totals):
        raise ValueError(f"there are {len(totals)} such latents, fewer than k = {k}, or no induction latent")
    return torch.tensor(sorted(totals, key=totals.get, reverse=True)[:k])


@right("previous_token_latents")
def position_by_position(gradients, induction, k):
    if not len(induction):
        raise ValueError("no induction latents given")
    totals = torch.full((gradients[0][1][2][2],), torch.nan)
    for grads, (values, sources, shape), (_, readers, _) in gradients:
        half = shape[1] // 2
        for row in range(shape[0]):
            for second_a in range(half + 1, 2 * half + 1):
                is_reader = (readers[:, 0] == row) & (readers[:, 1] == second_a) & torch.isin(readers[:, 2], induction)
                is_source = (sources[:, 0] == row) & (sources[:, 1] == second_a - half + 1)
                if is_reader.any():
                    latents = sources[is_source, 2]
                    fed = (grads[is_reader][:, is_source] * values[is_source]).sum(dim=0)
                    totals[latents] = totals[latents].nan_to_num() + fed
    known = (~totals.isnan()).nonzero().squeeze(1)
    if k > len(known):
        raise ValueError(f"k is {k}, but there are {len(known)}")
    return known[totals[known].argsort(descending=True)[:k]]


def _feeders(gradients, induction, k, *, shift=0, second=True, rows=True, term=lambda g, a: g * a, largest=True,
             strict=True):  # fmt: skip
    if len(induction) == 0 and strict:
        raise ValueError("no induction latent")
    totals = torch.zeros(gradients[0][1][2][2])
    met = torch.zeros(len(totals), dtype=torch.bool)
    for grads, (values, sources, shape), (_, readers, _) in gradients:
        half = shape[1] // 2
        pairs = readers[:, None, 1] - sources[None, :, 1] == half - 1 - shift
        pairs = pairs & torch.isin(readers[:, 2], induction)[:, None]
        if second:
            pairs = pairs & (readers[:, 1] > half)[:, None]
        if rows:
            pairs = pairs & (readers[:, None, 0] == sources[None, :, 0])
        totals.index_add_(0, sources[:, 2], (term(grads, values) * pairs).sum(dim=0))
        met[sources[pairs.any(dim=0), 2]] = True
    if strict:
        if k > met.sum():
            raise ValueError(f"k = {k} is too many")
        totals = totals.masked_fill(~met, -torch.inf if largest else torch.inf)
    return totals.topk(k, largest=largest).indices


@wrong("previous_token_latents", mistake="gradients without activations", hint="multiply by its activation")
def gradient_alone(gradients, induction, k):
    return _feeders(gradients, induction, k, term=lambda g, a: g)


@wrong("previous_token_latents", mistake="absolute values", hint="keep the sign")
def absolute_feeding(gradients, induction, k):
    return _feeders(gradients, induction, k, term=lambda g, a: (g * a).abs())


@wrong("previous_token_latents", mistake="source at the first A", hint="half - 1")
def at_the_first_a(gradients, induction, k):
    return _feeders(gradients, induction, k, shift=-1)


@wrong("previous_token_latents", mistake="smallest first", hint="largest first")
def smallest(gradients, induction, k):
    return _feeders(gradients, induction, k, largest=False)


@wrong("previous_token_latents", mistake="rows of the batch mixed", hint="different rows")
def rows_mixed(gradients, induction, k):
    return _feeders(gradients, induction, k, rows=False)


@wrong("previous_token_latents", mistake="only the first sequence", hint="first sequence")
def first_sequence(gradients, induction, k):
    return _feeders(gradients[:1], induction, k)


@wrong("previous_token_latents", mistake="readers anywhere", hint="readers in the first half")
def readers_anywhere(gradients, induction, k):
    return _feeders(gradients, induction, k, second=False)


@wrong("previous_token_latents", mistake="filled up with zeros", hint="whose total is 0")
def filled_up(gradients, induction, k):
    return _feeders(gradients, induction, k, strict=False)


@wrong("previous_token_latents", mistake="all later latents", hint="only those in `induction`")
def all_readers(gradients, induction, k):
    if len(induction) == 0:
        raise ValueError("no induction latent")
    return _feeders(gradients, torch.arange(100), k)


# log_prob_without_latents


def _demand_heads(tokens, sae):
    if tokens.ndim != 2:
        raise ValueError("tokens: rank 2")
    if not _hook(sae).endswith("hook_z"):
        raise ValueError("no dictionary on hook_z")


def _second_half(logits, tokens, start=None):
    half = _half(tokens)
    said = logits.log_softmax(dim=-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return said[:, half + 1 if start is None else start :].mean(dim=1)


def _without(model, tokens, sae, change, start=None):
    _demand_heads(tokens, sae)
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(_hook(sae), lambda z, hook: change(z))])
    return _second_half(logits, tokens, start)


def _from_first(model, z, changed):
    first = first_position(model)
    return torch.cat([z[:, :first], changed[:, first:]], dim=1)


@right("log_prob_without_latents")
def by_two_reconstructions(model, tokens, sae, latents):
    def change(z):
        acts = sae.encode(z)
        rest = acts.index_fill(-1, latents, 0.0)
        return _from_first(model, z, z - (sae.decode(acts) - sae.decode(rest)))

    return _without(model, tokens, sae, change)


@right("log_prob_without_latents")
def latent_by_latent(model, tokens, sae, latents):
    def change(z):
        acts, flat = sae.encode(z), z.flatten(2).clone()
        for latent in latents.tolist():
            flat[:, first_position(model) :] -= acts[:, first_position(model) :, latent, None] * sae.W_dec[latent]
        return flat.view_as(z)

    return _without(model, tokens, sae, change)


@wrong("log_prob_without_latents", mistake="error term dropped", hint="error term")
def error_dropped(model, tokens, sae, latents):
    def change(z):
        return _from_first(model, z, sae.decode(sae.encode(z).index_fill(-1, latents, 0.0)))

    return _without(model, tokens, sae, change)


@wrong("log_prob_without_latents", mistake="sink touched", hint="sink position z was replaced")
def sink_touched(model, tokens, sae, latents):
    def change(z):
        return z - (sae.encode(z)[..., latents] @ sae.W_dec[latents]).view_as(z)

    return _without(model, tokens, sae, change)


@wrong("log_prob_without_latents", mistake="the others zeroed", hint="*other* latents")
def others_zeroed(model, tokens, sae, latents):
    def change(z):
        acts = sae.encode(z).index_fill(-1, latents, 0.0)
        return _from_first(model, z, z - (acts @ sae.W_dec).view_as(z))

    return _without(model, tokens, sae, change if len(latents) else lambda z: z)


@wrong("log_prob_without_latents", mistake="both halves scored", hint="both halves")
def both_halves(model, tokens, sae, latents):
    def change(z):
        return _from_first(model, z, z - (sae.encode(z)[..., latents] @ sae.W_dec[latents]).view_as(z))

    return _without(model, tokens, sae, change, start=0)


@wrong("log_prob_without_latents", mistake="unforeseeable token scored", hint="nobody could foresee")
def first_of_second_half(model, tokens, sae, latents):
    def change(z):
        return _from_first(model, z, z - (sae.encode(z)[..., latents] @ sae.W_dec[latents]).view_as(z))

    return _without(model, tokens, sae, change, start=_half(tokens))


@wrong("log_prob_without_latents", mistake="hook returns nothing", hint="return the changed z")
def nothing_returned(model, tokens, sae, latents):
    return _without(model, tokens, sae, lambda z: None)


@wrong("log_prob_without_latents", mistake="directions removed", hint="activation times its row")
def directions_removed(model, tokens, sae, latents):
    def change(z):
        if len(latents) == 0:
            return z
        basis = torch.linalg.qr(sae.W_dec[latents].T)[0]
        flat = z.flatten(2)
        return _from_first(model, z, (flat - flat @ basis @ basis.T).view_as(z))

    return _without(model, tokens, sae, change)


@wrong("log_prob_without_latents", mistake="a hook stays on the model", hint="add_hook")
def hook_stays(model, tokens, sae, latents):
    _demand_heads(tokens, sae)
    model.reset_hooks()

    def change(z, hook):
        return _from_first(model, z, z - (sae.encode(z)[..., latents] @ sae.W_dec[latents]).view_as(z))

    model.add_hook(_hook(sae), change)
    with torch.no_grad():
        return _second_half(model(tokens), tokens)


# matched_controls


def _demand_controls(acts, latents):
    mean = acts.mean(dim=(0, 1))
    others = set((mean > 0).nonzero().flatten().tolist()) - set(latents.tolist())
    if len(latents) == 0 or len(others) < len(latents):
        raise ValueError("too few other latents, or none to match")
    return mean, others


@right("matched_controls")
def with_sets(acts, latents, n_sets, seed, pool=8):
    mean, others = _demand_controls(acts, latents)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n_sets):
        free, row = set(others), []
        for latent in latents.tolist():
            nearest = sorted(free, key=lambda other: abs(mean[other] - mean[latent]).item())[:pool]
            row.append(nearest[torch.randperm(len(nearest), generator=generator)[0]])
            free.remove(row[-1])
        rows.append(row)
    return torch.tensor(rows)


@right("matched_controls")
def by_distances(acts, latents, n_sets, seed, pool=8):
    mean, _ = _demand_controls(acts, latents)
    generator = torch.Generator().manual_seed(seed)
    distance = (mean[latents, None] - mean[None]).abs()
    distance[:, mean <= 0] = torch.inf
    distance[:, latents] = torch.inf
    sets = []
    for _ in range(n_sets):
        left, chosen = distance.clone(), []
        for i in range(len(latents)):
            near = left[i].topk(min(pool, len(mean)), largest=False)
            near = near.indices[near.values.isfinite()]
            pick = near[int(torch.rand((), generator=generator) * len(near))]
            left[:, pick] = torch.inf
            chosen.append(pick)
        sets.append(torch.stack(chosen))
    return torch.stack(sets)


def _controls(acts, latents, n_sets, seed, pool, *, mean=None, exclude=True, dead=False, once=True, reseed=False,
              local=False, strict=True):  # fmt: skip
    if strict:
        _demand_controls(acts, latents)
    mean = acts.mean(dim=(0, 1)) if mean is None else mean
    generator = torch.Generator().manual_seed(seed)
    candidate = mean > (-1 if dead else 0)
    if exclude:
        candidate[latents] = False
    controls = torch.zeros(n_sets, len(latents), dtype=torch.int64)
    for row in controls:
        if reseed:
            generator.manual_seed(seed)
        free = candidate.clone()
        for i, latent in enumerate(latents):
            choices = free.nonzero().squeeze(1)
            near = (mean[choices] - mean[latent]).abs().argsort()[:pool]
            near = near if local else choices[near]
            row[i] = near[torch.randint(len(near), (), generator=generator)]
            free[row[i]] = not once
    return controls


@wrong("matched_controls", mistake="its own control", hint="nearest to itself")
def own_control(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, seed, pool, exclude=False)


@wrong("matched_controls", mistake="the same control twice", hint="not free any more")
def control_twice(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, seed, pool, once=False)


@wrong("matched_controls", mistake="the same set again and again", hint="sets are all alike")
def alike(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, seed, pool, reseed=True)


@wrong("matched_controls", mistake="places instead of latents", hint="places in the list")
def places(acts, latents, n_sets, seed, pool=8):
    mean, others = _demand_controls(acts, latents)
    generator = torch.Generator().manual_seed(seed)
    if pool == 1:
        return _controls(acts, latents, n_sets, seed, pool)
    free = torch.tensor(sorted(others))
    rows = []
    for _ in range(n_sets):
        row = []
        for latent in latents:
            near = (mean[free] - mean[latent]).abs().argsort()[: pool + len(latents)]
            near = torch.tensor([n for n in near.tolist() if n not in row and n not in latents.tolist()])[:pool]
            row.append(int(near[torch.randint(len(near), (), generator=generator)]))
        rows.append(row)
    return torch.tensor(rows)


@wrong("matched_controls", mistake="matched by how often", hint="how often")
def matched_by_density(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, seed, pool, mean=(acts > 0).float().mean(dim=(0, 1)))


@wrong("matched_controls", mistake="global random numbers", hint="torch.Generator")
def unseeded(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, int(torch.randint(1 << 30, ())), pool)


@wrong("matched_controls", mistake="seed not used", hint="argument `seed`")
def seed_not_used(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, 0, pool)


@wrong("matched_controls", mistake="any random latents", hint="nearest")
def not_matched(acts, latents, n_sets, seed, pool=8):
    _, others = _demand_controls(acts, latents)
    others, generator = torch.tensor(sorted(others)), torch.Generator().manual_seed(seed)
    return torch.stack(
        [others[torch.randperm(len(others), generator=generator)[: len(latents)]] for _ in range(n_sets)]
    )


@wrong("matched_controls", mistake="dead latents as controls", hint="never active")
def dead_controls(acts, latents, n_sets, seed, pool=8):
    _demand_controls(acts, latents)
    return _controls(acts, latents, n_sets, seed, pool, dead=True)


@wrong("matched_controls", mistake="nothing to match accepted", hint="ValueError")
def no_demands(acts, latents, n_sets, seed, pool=8):
    return _controls(acts, latents, n_sets, seed, pool, strict=False)
