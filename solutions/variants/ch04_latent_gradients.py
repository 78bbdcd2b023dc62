"""Other ways of writing chapter 04: right ones that must pass, wrong ones that must be caught."""

import torch
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from fast import jacobians
from solutions import ch04_latent_gradients as reference
from utils import first_position, layer_of, mine
from utils.checks.variants import right, wrong


def _checked(tokens, *saes):
    if tokens.dim() != 2:
        raise ValueError(f"tokens: rank 2 wanted, got {tokens.dim()}")
    if len(saes) == 2 and layer_of(saes[0]) >= layer_of(saes[1]):
        raise ValueError("the first dictionary must be the one at the earlier layer")


def _one_prompt(tokens):
    if tokens.dim() != 2 or tokens.shape[0] != 1:
        raise ValueError("tokens of one prompt, [1, seq], please")


def _some_active(acts):
    if acts.values.numel() == 0:
        raise ValueError("no active latents")
    return acts


def _masked(acts, model):
    """Without the latents of the sink."""
    keep = (torch.arange(acts.shape[1]) >= first_position(model)).to(acts)
    return acts * keep[:, None]


def _replacing(sae, dense, model, sink=True, other=None):
    """A hook that puts the reconstruction in; `sink` keeps the first position's stream."""
    new = sae.decode(dense) if other is None else other

    def hook(resid, hook):
        keep = (torch.arange(resid.shape[1]) < first_position(model))[:, None] if sink else False
        return torch.where(torch.as_tensor(keep), resid, new)

    return sae.cfg.metadata.hook_name, hook


def _stream(tokens, sae, model):
    with torch.no_grad():
        return model(tokens, stop_at_layer=layer_of(sae)) if layer_of(sae) else model.embed(tokens)


def _acts(tokens, sae, model, mask=True):
    with torch.no_grad():
        acts = sae.encode(_stream(tokens, sae, model))
        return _some_active(mine.SparseTensor.from_dense(_masked(acts, model) if mask else acts))


# latent_acts_to_later_latent_acts


def _later(values, indices, shape, sae_from, sae_to, model, tokens, *, sink=True, mask=True, late=0, cut=False):
    _checked(tokens, sae_from, sae_to)
    dense = mine.SparseTensor.from_sparse((values, indices, shape)).dense
    hook = _replacing(sae_from, dense.detach() if cut else dense, model, sink)
    acts = sae_to.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae_to) + late))
    later = mine.SparseTensor.from_dense(_masked(acts, model) if mask else acts)
    return later.values, (later.dense,)


@right("latent_acts_to_later_latent_acts")
def later_by_where(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens)


@right("latent_acts_to_later_latent_acts")
def later_from_a_cache(
    latent_acts_nonzero, latent_acts_nonzero_inds, latent_acts_shape, sae_from, sae_to, model, tokens
):
    """The hook and the cache by context managers; the later dictionary's hook is read rather than the output."""
    _checked(tokens, sae_from, sae_to)
    dense = torch.zeros(latent_acts_shape).index_put(tuple(latent_acts_nonzero_inds.T), latent_acts_nonzero)
    kept, name = [], sae_to.cfg.metadata.hook_name
    hooks = [_replacing(sae_from, dense, model), (name, lambda resid, hook: kept.append(resid))]
    with model.hooks(fwd_hooks=hooks):
        model(tokens, stop_at_layer=layer_of(sae_to) + 1)
    acts = _masked(sae_to.encode(kept[0]), model)
    return acts[acts != 0], (acts,)


@wrong("latent_acts_to_later_latent_acts", mistake="the sink's latents count", hint="attention sink")
def later_with_sink(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, mask=False)


@wrong("latent_acts_to_later_latent_acts", mistake="the sink is reconstructed", hint="passes through untouched")
def later_sink_replaced(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, sink=False)


@wrong("latent_acts_to_later_latent_acts", mistake="one block too far", hint="one block too far")
def later_one_block_late(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, late=1)


@wrong("latent_acts_to_later_latent_acts", mistake="graph cut", hint="no_grad")
def later_without_graph(values, indices, shape, sae_from, sae_to, model, tokens):
    return _later(values, indices, shape, sae_from, sae_to, model, tokens, cut=True)


@wrong("latent_acts_to_later_latent_acts", mistake="the hook returns nothing", hint="untouched* model")
def later_not_replaced(values, indices, shape, sae_from, sae_to, model, tokens):
    _checked(tokens, sae_from, sae_to)
    sae_from.decode(mine.SparseTensor.from_sparse((values, indices, shape)).dense)
    later = mine.SparseTensor.from_dense(_masked(sae_to.encode(_stream(tokens, sae_to, model)), model))
    return later.values, (later.dense,)


@wrong("latent_acts_to_later_latent_acts", mistake="decodes the prompt's own latents", hint="handed over")
def later_recomputed(values, indices, shape, sae_from, sae_to, model, tokens):
    _checked(tokens, sae_from, sae_to)
    return _later(*_acts(tokens, sae_from, model).sparse, sae_from, sae_to, model, tokens)


@wrong("latent_acts_to_later_latent_acts", mistake="all blocks run", hint="stop_at_layer")
def later_never_stopping(values, indices, shape, sae_from, sae_to, model, tokens):
    _checked(tokens, sae_from, sae_to)
    kept, dense = [], mine.SparseTensor.from_sparse((values, indices, shape)).dense
    hooks = [
        _replacing(sae_from, dense, model),
        (sae_to.cfg.metadata.hook_name, lambda resid, hook: kept.append(resid)),
    ]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    later = mine.SparseTensor.from_dense(_masked(sae_to.encode(kept[0]), model))
    return later.values, (later.dense,)


@wrong("latent_acts_to_later_latent_acts", mistake="hooks stay on the model", hint="add_hook")
def later_leaving_a_hook(values, indices, shape, sae_from, sae_to, model, tokens):
    _checked(tokens, sae_from, sae_to)
    model.reset_hooks()
    model.add_hook(*_replacing(sae_from, mine.SparseTensor.from_sparse((values, indices, shape)).dense, model))
    later = mine.SparseTensor.from_dense(_masked(sae_to.encode(model(tokens, stop_at_layer=layer_of(sae_to))), model))
    return later.values, (later.dense,)


@wrong("latent_acts_to_later_latent_acts", mistake="any order of the dictionaries", hint="earlier layer")
def later_any_order(values, indices, shape, sae_from, sae_to, model, tokens):
    _checked(tokens)
    dense = mine.SparseTensor.from_sparse((values, indices, shape)).dense
    hook = _replacing(sae_from, dense, model)
    stream = model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae_to))
    later = mine.SparseTensor.from_dense(_masked(sae_to.encode(stream), model))
    return later.values, (later.dense,)


# latent_to_latent_gradients


@right("latent_to_latent_gradients")
def gradients_fast(tokens, sae_from, sae_to, model):
    """The same sooner: an active latent is linear in the stream, so a gradient starts as an encoder column and ends
    against the decoder rows of active latents, and nothing is carried to tokens that a latent cannot see."""
    _checked(tokens, sae_from, sae_to)
    prev, following = _acts(tokens, sae_from, model), _acts(tokens, sae_to, model)
    grads, *later = jacobians.latents_to_latents(model, tokens, sae_from, sae_to, prev.values, prev.indices)
    return grads, prev, following, mine.SparseTensor.from_sparse((*later, following.shape))


@right("latent_to_latent_gradients")
def gradients_attached(tokens, sae_from, sae_to, model):
    """True activations from attached dictionaries with the error term on; rows one by one."""
    _checked(tokens, sae_from, sae_to)
    saes = [sae_from, sae_to]
    with torch.no_grad():
        _, cache = model.run_with_cache_with_saes(
            tokens,
            saes=saes,
            use_error_term=True,
            names_filter=lambda name: name.endswith("hook_sae_acts_post"),
            stop_at_layer=layer_of(sae_to) + 1,
        )
    names = {layer_of(name): name for name in cache}
    acts = [_masked(cache[names[layer_of(sae)]], model) for sae in saes]
    prev, following = (_some_active(mine.SparseTensor.from_dense(one.clone())) for one in acts)
    leaf = prev.values.clone().requires_grad_()
    values, (dense,) = _later(leaf, prev.indices, prev.shape, sae_from, sae_to, model, tokens)
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values]
    return torch.stack(rows), prev, following, mine.SparseTensor.from_dense(dense.detach())


@wrong("latent_to_latent_gradients", mistake="transposed", hint="transposed")
def gradients_transposed(tokens, sae_from, sae_to, model):
    grads, *acts = reference.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    return grads.T, *acts


@wrong("latent_to_latent_gradients", mistake="later truth taken from the reconstruction", hint="true ones come from")
def gradients_recon_as_truth(tokens, sae_from, sae_to, model):
    grads, prev, _, recon = reference.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    return grads, prev, recon, recon


@wrong("latent_to_latent_gradients", mistake="truth given as reconstruction", hint="untouched* model")
def gradients_truth_as_recon(tokens, sae_from, sae_to, model):
    grads, prev, following, _ = reference.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    return grads, prev, following, following


@wrong("latent_to_latent_gradients", mistake="gradients times activations", hint="bare derivative")
def gradients_times_acts(tokens, sae_from, sae_to, model):
    grads, prev, *acts = reference.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    return grads * prev.values, prev, *acts


@wrong("latent_to_latent_gradients", mistake="the sink's latents count", hint="attention sink")
def gradients_with_sink(tokens, sae_from, sae_to, model):
    _checked(tokens, sae_from, sae_to)
    prev, following = (_acts(tokens, sae, model, mask=False) for sae in (sae_from, sae_to))
    differentiate = jacrev(lambda *given: _later(*given, mask=False), argnums=0, has_aux=True)
    grads, (dense,) = differentiate(*prev.sparse, sae_from, sae_to, model, tokens)
    return grads, prev, following, mine.SparseTensor.from_dense(dense)


@wrong("latent_to_latent_gradients", mistake="rows of the true later latents", hint="rows follow `acts_next_recon`")
def gradients_true_rows(tokens, sae_from, sae_to, model):
    _checked(tokens, sae_from, sae_to)
    prev, following = _acts(tokens, sae_from, model), _acts(tokens, sae_to, model)
    places = following.indices.unbind(dim=-1)

    def at_places(values):
        dense = _later(values, prev.indices, prev.shape, sae_from, sae_to, model, tokens)[1][0]
        return dense[places], dense

    grads, dense = jacrev(at_places, has_aux=True)(prev.values)
    return grads, prev, following, mine.SparseTensor.from_dense(dense)


@wrong("latent_to_latent_gradients", mistake="dense rows", hint="not active as well")
def gradients_dense(tokens, sae_from, sae_to, model):
    grads, prev, following, recon = reference.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    dense = torch.zeros(*recon.shape, grads.shape[1])
    dense[recon.indices.unbind(dim=-1)] = grads
    return dense.flatten(0, 2), prev, following, recon


@wrong("latent_to_latent_gradients", mistake="empty active set accepted", hint="nothing to differentiate")
def gradients_of_nothing(tokens, sae_from, sae_to, model):
    _checked(tokens, sae_from, sae_to)
    if tokens.shape[1] > first_position(model):
        return reference.latent_to_latent_gradients(tokens, sae_from, sae_to, model)
    nothing = mine.SparseTensor.from_dense(torch.zeros(*tokens.shape, 1))
    return torch.zeros(0, 0), nothing, nothing, nothing


# tokens_to_latent_acts


def _scaled(token_scales, tokens, sae, model, *, name="blocks.0.hook_resid_pre", mask=True):
    if token_scales.shape != tokens.shape:
        raise ValueError("token_scales and tokens must have one shape")
    hook = (name, lambda x, hook: x * token_scales.unsqueeze(-1))
    acts = sae.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae)))
    latents = mine.SparseTensor.from_dense(_masked(acts, model) if mask else acts)
    return latents.values, (latents.dense,)


@right("tokens_to_latent_acts")
def scaled_at_block_0(token_scales, tokens, sae, model):
    _checked(tokens)
    return _scaled(token_scales, tokens, sae, model)


@wrong("tokens_to_latent_acts", mistake="the stream is scaled where it is read", hint="at the very beginning")
def scaled_late(token_scales, tokens, sae, model):
    _checked(tokens)
    if token_scales.shape != tokens.shape:
        raise ValueError("token_scales")
    acts = sae.encode(model(tokens, stop_at_layer=layer_of(sae)) * token_scales[..., None])
    latents = mine.SparseTensor.from_dense(_masked(acts, model))
    return latents.values, (latents.dense,)


@wrong("tokens_to_latent_acts", mistake="the sink's latents count", hint="attention sink")
def scaled_with_sink(token_scales, tokens, sae, model):
    _checked(tokens)
    return _scaled(token_scales, tokens, sae, model, mask=False)


@wrong("tokens_to_latent_acts", mistake="scales ignored", hint="no effect")
def scales_ignored(token_scales, tokens, sae, model):
    return reference.tokens_to_latent_acts(torch.ones_like(token_scales), tokens, sae, model)


@wrong("tokens_to_latent_acts", mistake="one factor for all", hint="each must have its own")
def scaled_together(token_scales, tokens, sae, model):
    _checked(tokens)
    return _scaled(token_scales.mean() * torch.ones_like(token_scales), tokens, sae, model)


@wrong("tokens_to_latent_acts", mistake="broadcasts", hint="token_scales.shape")
def scales_broadcast(token_scales, tokens, sae, model):
    _checked(tokens)
    return _scaled(token_scales * torch.ones(tokens.shape), tokens, sae, model)


# token_to_latent_gradients


@right("token_to_latent_gradients")
def token_gradients_fast(tokens, sae, model):
    """Forward, one direction for each token, of which there are far fewer than latents."""
    _checked(tokens)
    acts = _acts(tokens, sae, model)
    return jacobians.tokens_to_latents(model, tokens, sae)[0], acts


@right("token_to_latent_gradients")
def token_gradients_by_jacfwd(tokens, sae, model):
    _checked(tokens)
    acts = _acts(tokens, sae, model)
    places = acts.indices.unbind(dim=-1)

    def at_places(scales):
        hook = ("hook_embed", lambda x, hook: x * scales[..., None])
        return sae.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae)))[places]

    return jacfwd(at_places)(torch.ones(tokens.shape)).movedim(0, -1), acts


@wrong("token_to_latent_gradients", mistake="latents first", hint="axes are (batch, seq, nnz)")
def token_gradients_latents_first(tokens, sae, model):
    grads, acts = reference.token_to_latent_gradients(tokens, sae, model)
    return grads.movedim(-1, 0), acts


@wrong("token_to_latent_gradients", mistake="at other scales than 1", hint="at scales of 1")
def token_gradients_at_zero(tokens, sae, model):
    _checked(tokens)
    acts = _acts(tokens, sae, model)
    places = acts.indices.unbind(dim=-1)

    def at_places(scales):
        hook = ("hook_embed", lambda x, hook: x * scales[..., None])
        return sae.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae)))[places]

    return jacfwd(at_places)(torch.full(tokens.shape, 0.1)).movedim(0, -1), acts


@wrong("token_to_latent_gradients", mistake="the sink's latents count", hint="attention sink")
def token_gradients_with_sink(tokens, sae, model):
    _checked(tokens)
    acts = _acts(tokens, sae, model, mask=False)
    function = jacrev(lambda *given: _scaled(*given, mask=False), argnums=0, has_aux=True)
    grads, _ = function(torch.ones(tokens.shape), tokens, sae, model)
    return grads.permute(1, 2, 0), acts


@wrong("token_to_latent_gradients", mistake="sign", hint="sign is the wrong way round")
def token_gradients_negative(tokens, sae, model):
    grads, acts = reference.token_to_latent_gradients(tokens, sae, model)
    return -grads, acts


@wrong("token_to_latent_gradients", mistake="a pass for each latent", hint="pass for each latent")
def token_gradients_one_by_one(tokens, sae, model):
    _checked(tokens)
    acts = _acts(tokens, sae, model)
    rows = []
    for place in acts.indices.tolist():
        scales = torch.ones(tokens.shape).requires_grad_()
        rows.append(torch.autograd.grad(_scaled(scales, tokens, sae, model)[1][0][tuple(place)], scales)[0])
    return torch.stack(rows).movedim(0, -1), acts


# latent_acts_to_logits


def _logits(values, indices, shape, sae, model, tokens, *, sink=True, position=-1):
    _one_prompt(tokens)
    dense = mine.SparseTensor.from_sparse((values, indices, shape)).dense
    return model.run_with_hooks(tokens, fwd_hooks=[_replacing(sae, dense, model, sink)])[0, position]


@right("latent_acts_to_logits")
def logits_of_all_positions(values, indices, shape, sae, model, tokens, token_ids):
    logits = _logits(values, indices, shape, sae, model, tokens)
    return logits.index_select(0, token_ids), (logits,)


@wrong("latent_acts_to_logits", mistake="first position", hint="*first* position")
def logits_first(values, indices, shape, sae, model, tokens, token_ids):
    logits = _logits(values, indices, shape, sae, model, tokens, position=0)
    return logits[token_ids], (logits,)


@wrong("latent_acts_to_logits", mistake="log-probabilities", hint="probabilities")
def logits_as_log_probs(values, indices, shape, sae, model, tokens, token_ids):
    logits = _logits(values, indices, shape, sae, model, tokens).log_softmax(dim=-1)
    return logits[token_ids], (logits,)


@wrong("latent_acts_to_logits", mistake="the sink is reconstructed", hint="passes through untouched")
def logits_sink_replaced(values, indices, shape, sae, model, tokens, token_ids):
    logits = _logits(values, indices, shape, sae, model, tokens, sink=False)
    return logits[token_ids], (logits,)


@wrong("latent_acts_to_logits", mistake="largest logits instead of those asked for", hint="not those of `token_ids`")
def logits_largest(values, indices, shape, sae, model, tokens, token_ids):
    logits = _logits(values, indices, shape, sae, model, tokens)
    return logits.topk(len(token_ids)).values, (logits,)


@wrong("latent_acts_to_logits", mistake="nothing replaced", hint="untouched* model")
def logits_untouched(values, indices, shape, sae, model, tokens, token_ids):
    _one_prompt(tokens)
    logits = model(tokens)[0, -1] + 0 * values.sum()
    return logits[token_ids], (logits,)


@wrong("latent_acts_to_logits", mistake="no graph", hint="no_grad")
def logits_without_graph(values, indices, shape, sae, model, tokens, token_ids):
    with torch.no_grad():
        logits = _logits(values, indices, shape, sae, model, tokens)
    return logits[token_ids], (logits,)


@wrong("latent_acts_to_logits", mistake="only the first of several prompts", hint="what shape `tokens` must have")
def logits_of_the_first_prompt(values, indices, shape, sae, model, tokens, token_ids):
    if tokens.dim() != 2:
        raise ValueError("tokens must have rank 2")
    logits = _logits(values, indices, shape, sae, model, tokens[:1])
    return logits[token_ids], (logits,)


# latent_to_logit_gradients


@right("latent_to_logit_gradients")
def logit_gradients_fast(tokens, sae, model, k):
    """Only the wanted tokens are unembedded, at the last position alone."""
    _one_prompt(tokens)
    if k < 1 or k > model.cfg.d_vocab:
        raise ValueError(f"k = {k} tokens cannot be chosen")
    acts = _acts(tokens, sae, model)
    with torch.no_grad():
        logits = model(tokens)[0, -1]
        through = _logits(*acts.sparse, sae, model, tokens)
    ids = logits.topk(k).indices
    grads, _ = jacobians.latents_to_logits(model, tokens, sae, acts.values, acts.indices, ids)
    return grads, logits, through, ids, acts


@right("latent_to_logit_gradients")
def logit_gradients_by_jacrev(tokens, sae, model, k):
    _one_prompt(tokens)
    if k < 1 or k > model.cfg.d_vocab:
        raise ValueError(f"k = {k} tokens cannot be chosen")
    acts = _acts(tokens, sae, model)
    with torch.no_grad():
        logits = model(tokens)[0, -1]
    ids = logits.argsort(descending=True)[:k]

    def function(values):
        through = _logits(values, acts.indices, acts.shape, sae, model, tokens)
        return through[ids], through

    grads, through = jacrev(function, has_aux=True)(acts.values)
    return grads, logits, through, ids, acts


@wrong(
    "latent_to_logit_gradients",
    mistake="tokens chosen by the reconstruction",
    hint="top tokens of the *reconstruction*",
)
def logit_gradients_of_recon_tokens(tokens, sae, model, k):
    _one_prompt(tokens)
    _, logits, through, _, acts = reference.latent_to_logit_gradients(tokens, sae, model, k)
    ids = through.topk(k).indices
    grads = jacrev(lambda values: _logits(values, acts.indices, acts.shape, sae, model, tokens)[ids])(acts.values)
    return grads, logits, through, ids, acts


@wrong("latent_to_logit_gradients", mistake="gradients of probabilities", hint="`jacrev(latent_acts_to_logits")
def logit_gradients_of_log_probs(tokens, sae, model, k):
    _, logits, through, ids, acts = reference.latent_to_logit_gradients(tokens, sae, model, k)

    def log_probs(values):
        return _logits(values, acts.indices, acts.shape, sae, model, tokens).log_softmax(dim=-1)[ids]

    return jacrev(log_probs)(acts.values), logits, through, ids, acts


@wrong("latent_to_logit_gradients", mistake="any k accepted", hint="no error")
def logit_gradients_any_k(tokens, sae, model, k):
    if k > model.cfg.d_vocab or k < 1:
        return reference.latent_to_logit_gradients(tokens, sae, model, 1)
    return reference.latent_to_logit_gradients(tokens, sae, model, k)


@wrong(
    "latent_to_logit_gradients", mistake="logits of the reconstruction given as the model's", hint="true ones come from"
)
def logit_gradients_recon_logits(tokens, sae, model, k):
    grads, _, through, ids, acts = reference.latent_to_logit_gradients(tokens, sae, model, k)
    return grads, through, through, ids, acts


@wrong("latent_to_logit_gradients", mistake="transposed", hint="transposed")
def logit_gradients_transposed(tokens, sae, model, k):
    grads, *rest = reference.latent_to_logit_gradients(tokens, sae, model, k)
    return grads.T, *rest


@wrong("latent_to_logit_gradients", mistake="the true logits twice", hint="untouched* model")
def logit_gradients_untouched(tokens, sae, model, k):
    grads, logits, _, ids, acts = reference.latent_to_logit_gradients(tokens, sae, model, k)
    return grads, logits, logits, ids, acts


# gradient_vs_ablation


def _predicted(tokens, sae, model, token_id):
    _one_prompt(tokens)
    acts = _acts(tokens, sae, model)
    ids = torch.tensor([token_id])
    return acts, jacrev(reference.latent_acts_to_logits, has_aux=True)(*acts.sparse, sae, model, tokens, ids)[0][0]


def _ablated(tokens, sae, model, token_id, acts, share):
    """The logit when `share(latent, value)` is taken out of the stream, one latent after the other."""
    found = []
    for (_, position, latent), value in zip(acts.indices.tolist(), acts.values, strict=True):

        def remove(resid, hook, position=position, latent=latent, value=value):
            resid = resid.clone()
            resid[0, position] -= share(latent, value)
            return resid

        hook = (sae.cfg.metadata.hook_name, remove)
        with torch.no_grad():
            found.append(model.run_with_hooks(tokens, fwd_hooks=[hook])[0, -1, token_id])
    return torch.stack(found)


@right("gradient_vs_ablation")
def ablation_one_by_one(tokens, sae, model, token_id):
    acts, gradient = _predicted(tokens, sae, model, token_id)
    after = _ablated(tokens, sae, model, token_id, acts, lambda latent, value: value * sae.W_dec[latent])
    with torch.no_grad():
        return acts.values * gradient, model(tokens)[0, -1, token_id] - after


@right("gradient_vs_ablation")
def ablation_with_error_term(tokens, sae, model, token_id):
    """Reconstruction without one latent, plus the error of the whole one; all cases in one large batch."""
    acts, gradient = _predicted(tokens, sae, model, token_id)
    n = len(acts.values)
    with torch.no_grad():
        stream = _stream(tokens, sae, model)
        error = stream - sae.decode(acts.dense)
        dense = acts.dense.repeat(n, 1, 1)
        dense[torch.arange(n), acts.indices[:, 1], acts.indices[:, 2]] = 0
        hook = (sae.cfg.metadata.hook_name, lambda resid, hook: sae.decode(dense) + error)
        after = model.run_with_hooks(tokens, fwd_hooks=[hook])[:, -1, token_id]
        return acts.values * gradient, model(tokens)[0, -1, token_id] - after


@wrong("gradient_vs_ablation", mistake="ablated inside the reconstruction", hint="keep the error term")
def ablation_in_reconstruction(tokens, sae, model, token_id):
    acts, gradient = _predicted(tokens, sae, model, token_id)
    cases = acts.values.repeat(len(acts.values), 1) * (1 - torch.eye(len(acts.values)))
    with torch.no_grad():
        before = _logits(*acts.sparse, sae, model, tokens)[token_id]
        after = [_logits(case, acts.indices, acts.shape, sae, model, tokens)[token_id] for case in cases]
    return acts.values * gradient, before - torch.stack(after)


@wrong(
    "gradient_vs_ablation", mistake="true before, reconstruction after", hint="everything that the dictionary misses"
)
def ablation_without_error(tokens, sae, model, token_id):
    acts, gradient = _predicted(tokens, sae, model, token_id)
    cases = acts.values.repeat(len(acts.values), 1) * (1 - torch.eye(len(acts.values)))
    with torch.no_grad():
        before = model(tokens)[0, -1, token_id]
        after = [_logits(case, acts.indices, acts.shape, sae, model, tokens)[token_id] for case in cases]
    return acts.values * gradient, before - torch.stack(after)


@wrong("gradient_vs_ablation", mistake="after minus before", hint="sign is the wrong way round")
def ablation_sign(tokens, sae, model, token_id):
    predicted, actual = reference.gradient_vs_ablation(tokens, sae, model, token_id)
    return predicted, -actual


@wrong("gradient_vs_ablation", mistake="predicted as a change", hint="sign is the wrong way round")
def ablation_predicted_sign(tokens, sae, model, token_id):
    predicted, actual = reference.gradient_vs_ablation(tokens, sae, model, token_id)
    return -predicted, actual


@wrong("gradient_vs_ablation", mistake="bare gradient", hint="Multiply by the activation")
def ablation_bare_gradient(tokens, sae, model, token_id):
    _, gradient = _predicted(tokens, sae, model, token_id)
    return gradient, reference.gradient_vs_ablation(tokens, sae, model, token_id)[1]


@wrong("gradient_vs_ablation", mistake="decoder row without activation", hint="activation times its decoder row")
def ablation_bare_row(tokens, sae, model, token_id):
    acts, gradient = _predicted(tokens, sae, model, token_id)
    after = _ablated(tokens, sae, model, token_id, acts, lambda latent, value: sae.W_dec[latent])
    with torch.no_grad():
        return acts.values * gradient, model(tokens)[0, -1, token_id] - after


@wrong("gradient_vs_ablation", mistake="the decoder's bias leaves as well", hint="nothing else")
def ablation_with_bias(tokens, sae, model, token_id):
    acts, gradient = _predicted(tokens, sae, model, token_id)
    after = _ablated(tokens, sae, model, token_id, acts, lambda latent, value: value * sae.W_dec[latent] + sae.b_dec)
    with torch.no_grad():
        return acts.values * gradient, model(tokens)[0, -1, token_id] - after


# jacobian_plan


@right("jacobian_plan")
def plan_by_negative_division(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    if n_inputs <= 0 or n_outputs <= 0:
        raise ValueError("nothing to compute")
    mode = "reverse" if n_outputs < n_inputs else "forward"
    n = {"forward": n_inputs, "reverse": n_outputs}[mode]
    fit = int(budget_bytes // bytes_per_direction)
    if not fit:
        raise ValueError("the budget is too small for one direction")
    return mode, min(fit, n), -(-n // min(fit, n))


def _plan(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    return reference.jacobian_plan(n_inputs, n_outputs, bytes_per_direction, budget_bytes)


@wrong("jacobian_plan", mistake="modes swapped", hint="Few inputs and many outputs: forward")
def plan_swapped(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    _, chunk, n = _plan(n_inputs, n_outputs, bytes_per_direction, budget_bytes)
    return "reverse" if n_inputs < n_outputs else "forward", chunk, n


@wrong("jacobian_plan", mistake="always reverse", hint="Few inputs and many outputs: forward")
def plan_always_reverse(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    return _plan(max(n_inputs, n_outputs), n_outputs, bytes_per_direction, budget_bytes)


@wrong("jacobian_plan", mistake="chunk larger than what there is", hint="There are only")
def plan_chunk_too_large(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    mode, _, n = _plan(n_inputs, n_outputs, bytes_per_direction, budget_bytes)
    return mode, budget_bytes // bytes_per_direction, n


@wrong("jacobian_plan", mistake="chunk rounded up", hint="round down")
def plan_chunk_rounded_up(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    mode, _, _ = _plan(n_inputs, n_outputs, bytes_per_direction, budget_bytes)
    chunk = min(n_inputs, n_outputs, round(budget_bytes / bytes_per_direction))
    return mode, chunk, -(-min(n_inputs, n_outputs) // chunk)


@wrong("jacobian_plan", mistake="last chunk forgotten", hint="round `n_chunks` up")
def plan_last_chunk_lost(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    mode, chunk, _ = _plan(n_inputs, n_outputs, bytes_per_direction, budget_bytes)
    return mode, chunk, min(n_inputs, n_outputs) // chunk


@wrong("jacobian_plan", mistake="at least one direction, fits or not", hint="a ValueError")
def plan_over_budget(n_inputs, n_outputs, bytes_per_direction, budget_bytes):
    return _plan(n_inputs, n_outputs, bytes_per_direction, max(budget_bytes, bytes_per_direction))


# jacobian_block


def _block_function(tokens, sae_from, sae_to, model, rows, columns, chunk):
    """The chosen outputs as a function of the chosen inputs, and the point."""
    _checked(tokens, sae_from, sae_to)
    if chunk < 1:
        raise ValueError("chunk must be at least 1")
    acts = _acts(tokens, sae_from, model)
    with torch.no_grad():
        places = _later(*acts.sparse, sae_from, sae_to, model, tokens)[1][0].nonzero()[rows].T

    def function(some):
        values = acts.values.scatter(0, columns, some)
        dense = mine.SparseTensor.from_sparse((values, acts.indices, acts.shape)).dense
        hook = _replacing(sae_from, dense, model)
        return sae_to.encode(model.run_with_hooks(tokens, fwd_hooks=[hook], stop_at_layer=layer_of(sae_to)))[
            tuple(places)
        ]

    return function, acts.values[columns]


@right("jacobian_block")
def block_by_chunked_library(tokens, sae_from, sae_to, model, rows, columns, chunk):
    function, x = _block_function(tokens, sae_from, sae_to, model, rows, columns, chunk)
    if len(rows) > len(columns):
        pushes = [
            vmap(lambda v: jvp(function, (x,), (v,))[1], out_dims=1)(v) for v in torch.eye(len(columns)).split(chunk)
        ]
        return torch.cat(pushes, dim=1)
    return jacrev(function, chunk_size=chunk)(x)


@wrong("jacobian_block", mistake="always reverse", hint="larger side")
def block_always_reverse(tokens, sae_from, sae_to, model, rows, columns, chunk):
    function, x = _block_function(tokens, sae_from, sae_to, model, rows, columns, chunk)
    return jacrev(function, chunk_size=chunk)(x)


@wrong("jacobian_block", mistake="always forward", hint="larger side")
def block_always_forward(tokens, sae_from, sae_to, model, rows, columns, chunk):
    function, x = _block_function(tokens, sae_from, sae_to, model, rows, columns, chunk)
    return torch.cat([vmap(lambda v: jvp(function, (x,), (v,))[1])(v) for v in torch.eye(len(columns)).split(chunk)]).T


@wrong("jacobian_block", mistake="whole Jacobian, then cut out", hint="chosen inputs to the chosen outputs")
def block_cut_out(tokens, sae_from, sae_to, model, rows, columns, chunk):
    _checked(tokens, sae_from, sae_to)
    if chunk < 1:
        raise ValueError("chunk must be at least 1")
    acts = _acts(tokens, sae_from, model)
    grads, _ = jacrev(_later, argnums=0, has_aux=True)(*acts.sparse, sae_from, sae_to, model, tokens)
    return grads[rows][:, columns]


@wrong("jacobian_block", mistake="chunk ignored", hint="pieces of `chunk`")
def block_without_chunks(tokens, sae_from, sae_to, model, rows, columns, chunk):
    if chunk < 1:
        raise ValueError("chunk must be at least 1")
    return reference.jacobian_block(tokens, sae_from, sae_to, model, rows, columns, 10**6)


@wrong("jacobian_block", mistake="forward result not transposed", hint="transposed")
def block_not_transposed(tokens, sae_from, sae_to, model, rows, columns, chunk):
    block = reference.jacobian_block(tokens, sae_from, sae_to, model, rows, columns, chunk)
    return block.T if len(columns) < len(rows) else block


@wrong("jacobian_block", mistake="rows sorted", hint="in the order given")
def block_sorted(tokens, sae_from, sae_to, model, rows, columns, chunk):
    return reference.jacobian_block(tokens, sae_from, sae_to, model, rows.sort().values, columns, chunk)


@wrong("jacobian_block", mistake="last chunk lost", hint="shape")
def block_last_chunk_lost(tokens, sae_from, sae_to, model, rows, columns, chunk):
    function, x = _block_function(tokens, sae_from, sae_to, model, rows, columns, chunk)
    if len(columns) < len(rows):
        return jacfwd(function)(x)
    _, pull = vjp(function, x)
    whole = torch.eye(len(rows))[: max(chunk, len(rows) // chunk * chunk)]
    return torch.cat([vmap(pull)(some)[0] for some in whole.split(chunk)])
