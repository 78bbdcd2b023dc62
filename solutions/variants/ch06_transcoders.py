"""Other ways of writing chapter 06: right ones that must pass, wrong ones that must be caught."""

import torch

from fast.top_examples import top_examples
from solutions import ch06_transcoders as reference
from utils import first_position, layer_of
from utils.checks.variants import right, wrong


def _demand_rank(tokens):
    if tokens.ndim != 2:
        raise ValueError(f"tokens of rank {tokens.ndim}, not 2")


# run_with_cache_with_transcoders


@right("run_with_cache_with_transcoders")
def by_the_bridge(model, transcoders, tokens, use_error_term=True):
    """The bridge's own support; without the error term it is cut where it would have been added, but for the sink."""
    _demand_rank(tokens)
    if any(transcoder.cfg.metadata.hook_name_out is None for transcoder in transcoders):
        raise ValueError("not a transcoder")
    start = first_position(model)

    def cut(error, hook):
        error = error.clone()
        error[:, start:] = 0
        return error

    cuts = [(model.get_sae_hook_name(transcoder, "hook_sae_error"), cut) for transcoder in transcoders]
    names = [model.get_sae_hook_name(transcoder) for transcoder in transcoders]
    cache = {}

    def keep(acts, hook):
        cache[hook.name] = acts.clone()
        cache[hook.name][:, :start] = 0

    with torch.no_grad(), model.saes(saes=list(transcoders), use_error_term=True):
        hooks = [(name, keep) for name in names] + ([] if use_error_term else cuts)
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, cache


@right("run_with_cache_with_transcoders")
def with_an_explicit_error(model, transcoders, tokens, use_error_term=True):
    _demand_rank(tokens)
    start, cache, hooks = first_position(model), {}, []
    for transcoder in transcoders:
        if transcoder.cfg.metadata.hook_name_out is None:
            raise ValueError("a transcoder is wanted")

        def read(x, hook, transcoder=transcoder):
            acts = transcoder.encode(x)
            acts[:, :start] = 0
            cache[model.get_sae_hook_name(transcoder)] = acts

        def write(x, hook, transcoder=transcoder):
            out = transcoder.decode(cache[model.get_sae_hook_name(transcoder)])
            error = x - out
            if not use_error_term:
                error[:, start:] = 0
            return out + error

        hooks += [(transcoder.cfg.metadata.hook_name, read), (transcoder.cfg.metadata.hook_name_out, write)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return model(tokens), cache


def _hand(model, transcoders, tokens, use_error_term, *, start=1, sink_acts=False, add=False, error=None, name=None):
    _demand_rank(tokens)
    cache, hooks = {}, []
    error = use_error_term if error is None else error
    for transcoder in transcoders:
        if transcoder.cfg.metadata.hook_name_out is None:
            raise ValueError("a transcoder is wanted")
        key = name(transcoder) if name else model.get_sae_hook_name(transcoder)

        def read(x, hook, transcoder=transcoder, key=key):
            acts = transcoder.encode(x)
            if not sink_acts:
                acts[:, :1] = 0
            cache[key] = acts

        def write(x, hook, transcoder=transcoder, key=key):
            x = x.clone()
            written = transcoder.decode(cache[key])[:, start:]
            x[:, start:] = x[:, start:] + written if add else written
            return x

        hooks.append((transcoder.cfg.metadata.hook_name, read))
        hooks += [] if error else [(transcoder.cfg.metadata.hook_name_out, write)]
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks), cache


@wrong("run_with_cache_with_transcoders", mistake="the sink's output is replaced", hint="attention sink")
def replacing_the_sink(model, transcoders, tokens, use_error_term=True):
    return _hand(model, transcoders, tokens, use_error_term, start=0, sink_acts=True)


@wrong("run_with_cache_with_transcoders", mistake="latents on the sink", hint="never saw the first position")
def latents_on_the_sink(model, transcoders, tokens, use_error_term=True):
    return _hand(model, transcoders, tokens, use_error_term, sink_acts=True)


@wrong("run_with_cache_with_transcoders", mistake="output added", hint="must take its place")
def adding_the_output(model, transcoders, tokens, use_error_term=True):
    return _hand(model, transcoders, tokens, use_error_term, add=True)


@wrong("run_with_cache_with_transcoders", mistake="always replaced", hint="With the error term on")
def ignoring_the_switch(model, transcoders, tokens, use_error_term=True):
    return _hand(model, transcoders, tokens, use_error_term, error=False)


@wrong("run_with_cache_with_transcoders", mistake="never replaced", hint="nothing was replaced")
def never_replacing(model, transcoders, tokens, use_error_term=True):
    return _hand(model, transcoders, tokens, use_error_term, error=True)


@wrong("run_with_cache_with_transcoders", mistake="other keys", hint="get_sae_hook_name")
def under_the_hook_name(model, transcoders, tokens, use_error_term=True):
    return _hand(model, transcoders, tokens, use_error_term, name=lambda t: t.cfg.metadata.hook_name)


@wrong("run_with_cache_with_transcoders", mistake="late binding in a loop", hint="late binding")
def the_last_one_for_all(model, transcoders, tokens, use_error_term=True):
    _demand_rank(tokens)
    cache, hooks = {}, []
    for transcoder in transcoders:
        if transcoder.cfg.metadata.hook_name_out is None:
            raise ValueError("a transcoder is wanted")

        key = model.get_sae_hook_name(transcoder)

        def read(x, hook, key=key):
            acts = transcoder.encode(x)  # noqa: B023
            cache[key] = torch.cat([0 * acts[:, :1], acts[:, 1:]], dim=1)

        def write(x, hook, key=key):
            return torch.cat([x[:, :1], transcoder.decode(cache[key])[:, 1:]], dim=1)  # noqa: B023

        hooks.append((transcoder.cfg.metadata.hook_name, read))
        hooks += [] if use_error_term else [(transcoder.cfg.metadata.hook_name_out, write)]
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks), cache


@wrong("run_with_cache_with_transcoders", mistake="reads the MLP's output", hint="what the MLP *reads*")
def reading_the_output(model, transcoders, tokens, use_error_term=True):
    _demand_rank(tokens)
    cache, hooks = {}, []
    for transcoder in transcoders:
        if transcoder.cfg.metadata.hook_name_out is None:
            raise ValueError("a transcoder is wanted")

        def both(x, hook, transcoder=transcoder):
            acts = transcoder.encode(x)
            cache[model.get_sae_hook_name(transcoder)] = torch.cat([0 * acts[:, :1], acts[:, 1:]], dim=1)
            return None if use_error_term else torch.cat([x[:, :1], transcoder.decode(acts)[:, 1:]], dim=1)

        hooks.append((transcoder.cfg.metadata.hook_name_out, both))
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks), cache


@wrong(
    "run_with_cache_with_transcoders",
    mistake="encoded in a first, untouched run",
    hint="not that of the untouched model",
)
def reading_beforehand(model, transcoders, tokens, use_error_term=True):
    logits, cache = reference.run_with_cache_with_transcoders(model, transcoders, tokens, True)
    if use_error_term:
        return logits, cache
    hooks = []
    for transcoder in transcoders:

        def write(x, hook, transcoder=transcoder):
            written = transcoder.decode(cache[model.get_sae_hook_name(transcoder)])
            return torch.cat([x[:, :1], written[:, 1:]], dim=1)

        hooks.append((transcoder.cfg.metadata.hook_name_out, write))
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks), cache


@wrong("run_with_cache_with_transcoders", mistake="hooks stay on the model", hint="add_hook")
def leaving_hooks(model, transcoders, tokens, use_error_term=True):
    logits, cache = reference.run_with_cache_with_transcoders(model, transcoders, tokens, use_error_term)
    for transcoder in transcoders:
        model.add_hook(transcoder.cfg.metadata.hook_name, lambda x, hook: None)
    return logits, cache


# get_k_largest_indices


def _limits(x, k, count):
    if x.ndim != 2:
        raise ValueError(f"x has rank {x.ndim}")
    if k > count:
        raise ValueError(f"only {count} places for k = {k}")


@right("get_k_largest_indices")
def by_sorting_once(x, k, buffer=0, no_overlap=True):
    """Sort everything, then walk down the list with a set of what is excluded."""
    _limits(x, 0, 0)
    inner = x[:, buffer : x.shape[1] - buffer]
    chosen, taken = [], set()
    for place in inner.flatten().argsort(descending=True, stable=True).tolist():
        if len(chosen) == k:
            break
        row, column = place // inner.shape[1], place % inner.shape[1] + buffer
        if (row, column) in taken:
            continue
        chosen.append([row, column])
        reach = buffer if no_overlap else 0
        taken.update((row, column + step) for step in range(-reach, reach + 1))
    _limits(x, k, len(chosen))
    return torch.tensor(chosen).reshape(-1, 2)


@right("get_k_largest_indices")
def by_masking_lists(x, k, buffer=0, no_overlap=True):
    """All candidates sorted; after each choice, the list is filtered."""
    _limits(x, 0, 0)
    width = x.shape[1]
    order = x.reshape(-1).argsort(descending=True)
    rows, columns = order // width, order % width
    inside = (columns >= buffer) & (columns < width - buffer)
    rows, columns = rows[inside], columns[inside]
    if not no_overlap:
        _limits(x, k, len(rows))
        return torch.stack([rows, columns], dim=1)[:k]
    chosen = torch.empty(0, 2, dtype=torch.int64)
    while len(chosen) < k:
        if len(rows) == 0:
            raise ValueError(f"there are only {len(chosen)} places, not k = {k}")
        chosen = torch.cat([chosen, torch.stack([rows[:1], columns[:1]], dim=1)])
        near = (rows == rows[0]) & ((columns - columns[0]).abs() <= buffer)
        rows, columns = rows[~near], columns[~near]
    return chosen


@wrong("get_k_largest_indices", mistake="x[:, 0:-0] is empty", hint="ValueError")
def sliced_with_minus(x, k, buffer=0, no_overlap=True):
    _limits(x, 0, 0)
    inner = x[:, buffer:-buffer]
    found = reference.get_k_largest_indices(inner, k, 0, True) if not no_overlap or buffer == 0 else None
    if found is None:
        masked = torch.full_like(x, -torch.inf)
        masked[:, buffer:-buffer] = inner
        return reference.get_k_largest_indices(masked, k, buffer, no_overlap)
    return found + torch.tensor([0, buffer])


@wrong("get_k_largest_indices", mistake="margin cut off, columns not moved back", hint="add `buffer` to the columns")
def columns_of_the_inner_part(x, k, buffer=0, no_overlap=True):
    return (reference.get_k_largest_indices(x, k, buffer, no_overlap) - torch.tensor([0, buffer])).clamp_min(0)


@wrong("get_k_largest_indices", mistake="ties found by value, so twice", hint="comes twice")
def by_value(x, k, buffer=0, no_overlap=True):
    places = reference.get_k_largest_indices(x, k, buffer, no_overlap)
    values = [x[row, column] for row, column in places.tolist()]
    free = torch.zeros_like(x, dtype=torch.bool)
    free[:, buffer : x.shape[1] - buffer] = True
    return torch.stack([((x == value) & free).nonzero()[0] for value in values])


@wrong("get_k_largest_indices", mistake="overlaps allowed", hint="`no_overlap` forbids")
def with_overlaps(x, k, buffer=0, no_overlap=True):
    reference.get_k_largest_indices(x, k, buffer, no_overlap)
    return reference.get_k_largest_indices(x, k, buffer, False)


@wrong("get_k_largest_indices", mistake="neighbours in other rows excluded too", hint="in other rows too")
def excluding_columns(x, k, buffer=0, no_overlap=True):
    reference.get_k_largest_indices(x, k, buffer, no_overlap)
    if not no_overlap:
        return reference.get_k_largest_indices(x, k, buffer, False)
    left = x.clone()
    left[:, :buffer] = left[:, x.shape[1] - buffer :] = -torch.inf
    chosen = []
    for _ in range(k):
        row, column = divmod(left.argmax().item(), x.shape[1])
        chosen.append([row, column])
        left[:, max(0, column - buffer) : column + buffer + 1] = -torch.inf
    return torch.tensor(chosen)


@wrong("get_k_largest_indices", mistake="margin not kept", hint="margin")
def ignoring_the_margin(x, k, buffer=0, no_overlap=True):
    reference.get_k_largest_indices(x, k, buffer, no_overlap)
    order = x.flatten().argsort(descending=True)
    chosen = []
    for place in order.tolist():
        row, column = divmod(place, x.shape[1])
        if not no_overlap or all(r != row or abs(c - column) > buffer for r, c in chosen):
            chosen.append((row, column))
    return torch.tensor(chosen[:k])


@wrong("get_k_largest_indices", mistake="excluded places become zeros", hint="-inf")
def excluded_by_zero(x, k, buffer=0, no_overlap=True):
    reference.get_k_largest_indices(x, k, buffer, no_overlap)
    left = torch.zeros_like(x)
    left[:, buffer : x.shape[1] - buffer] = x[:, buffer : x.shape[1] - buffer]
    chosen = []
    for _ in range(k):
        row, column = divmod(left.argmax().item(), x.shape[1])
        chosen.append([row, column])
        reach = buffer if no_overlap else 0
        left[row, max(0, column - reach) : column + reach + 1] = 0
    return torch.tensor(chosen)


@wrong("get_k_largest_indices", mistake="a shorter answer where k cannot be met", hint="shorter answer")
def as_many_as_there_are(x, k, buffer=0, no_overlap=True):
    _limits(x, 0, 0)
    while k:
        try:
            return reference.get_k_largest_indices(x, k, buffer, no_overlap)
        except ValueError:
            k -= 1
    return torch.zeros(0, 2, dtype=torch.int64)


@wrong("get_k_largest_indices", mistake="rows and columns swapped", hint="divmod")
def swapped(x, k, buffer=0, no_overlap=True):
    return reference.get_k_largest_indices(x, k, buffer, no_overlap).flip(1)


# index_with_buffer


@right("index_with_buffer")
def windows_by_slices(x, indices, buffer=0):
    rows = []
    for row, column in indices.tolist():
        if column < buffer or column + buffer >= x.shape[1]:
            raise ValueError("the window does not fit")
        rows.append(x[row, column - buffer : column + buffer + 1])
    return torch.stack(rows)


@right("index_with_buffer")
def windows_by_unfold(x, indices, buffer=0):
    first = indices[:, 1] - buffer
    if (first < 0).any() or (first + 2 * buffer >= x.shape[1]).any():
        raise ValueError("the window does not fit")
    return x.unfold(1, 2 * buffer + 1, 1)[indices[:, 0], first]


@wrong("index_with_buffer", mistake="window one too short", hint="+ 1")
def windows_too_short(x, indices, buffer=0):
    rows, columns = indices.unbind(dim=1)
    reference.index_with_buffer(x, indices, buffer)
    return x[rows[:, None], columns[:, None] + torch.arange(-buffer, max(1, buffer))]


@wrong("index_with_buffer", mistake="wraps around", hint="wraps around")
def windows_wrapping(x, indices, buffer=0):
    rows, columns = indices.unbind(dim=1)
    return x[rows[:, None], (columns[:, None] + torch.arange(-buffer, buffer + 1)) % x.shape[1]]


@wrong("index_with_buffer", mistake="window moved into the row", hint="Check the columns yourself")
def windows_moved(x, indices, buffer=0):
    rows, columns = indices.unbind(dim=1)
    columns = columns.clamp(buffer, x.shape[1] - buffer - 1)
    return x[rows[:, None], columns[:, None] + torch.arange(-buffer, buffer + 1)]


@wrong("index_with_buffer", mistake="filled into floats", hint="new float tensor")
def windows_of_floats(x, indices, buffer=0):
    return reference.index_with_buffer(x, indices, buffer).float()


@wrong("index_with_buffer", mistake="rows and columns swapped", hint="")
def windows_swapped(x, indices, buffer=0):
    return reference.index_with_buffer(x, indices.flip(1), buffer)


@wrong("index_with_buffer", mistake="edge refused", hint="ends exactly")
def windows_shy_of_the_edge(x, indices, buffer=0):
    columns = indices[:, 1]
    if buffer > 1 and (columns + buffer + 1 >= x.shape[1]).any():
        raise ValueError("does not fit")
    return reference.index_with_buffer(x, indices, buffer)


# max_activating_examples


def _acts(model, transcoder, tokens, rows=None, stop=True):
    _demand_rank(tokens)
    hook_name, kept = transcoder.cfg.metadata.hook_name, []
    for part in tokens.split(rows or len(tokens)):
        with torch.no_grad():
            model.run_with_hooks(
                part,
                fwd_hooks=[(hook_name, lambda x, hook: kept.append(transcoder.encode(x)))],
                **({"stop_at_layer": layer_of(transcoder) + 1} if stop else {}),
            )
    return torch.cat(kept)


def _known(transcoder, latents):
    if min(latents) < 0 or max(latents) >= transcoder.cfg.d_sae:
        raise ValueError("no such latent")


def _pick(acts, k, buffer, start=1, only_active=True):
    left, found = acts.clone(), []
    left[:, : max(start, buffer)] = 0
    left[:, left.shape[1] - buffer :] = 0
    for _ in range(k):
        value, place = left.flatten().max(dim=0)
        if only_active and value <= 0:
            break
        row, column = divmod(place.item(), left.shape[1])
        found.append((value.item(), row, column))
        left[row, max(0, column - buffer) : column + buffer + 1] = 0 if only_active else -1
    return found


@right("max_activating_examples")
def in_batches_of_one_row(model, transcoder, tokens, latents, k, buffer=0):
    _demand_rank(tokens)
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens, rows=1)
    return {latent: _pick(acts[..., latent], k, buffer) for latent in latents}


@right("max_activating_examples")
def examples_fast(model, transcoder, tokens, latents, k, buffer=0):
    """Only the wanted columns are encoded, and all latents take their next place at the same time."""
    _demand_rank(tokens)
    _known(transcoder, latents)
    acts, places = top_examples(model, transcoder, tokens, latents, k, buffer, start=first_position(model))
    return {
        latent: [(act, row, column) for act, (row, column) in zip(a, p, strict=True) if act > 0]
        for latent, a, p in zip(latents, acts.tolist(), places.tolist(), strict=True)
    }


@right("max_activating_examples")
def with_own_largest(model, transcoder, tokens, latents, k, buffer=0):
    """Through `get_k_largest_indices`, asked for less where there is less."""
    _demand_rank(tokens)
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens)
    acts[:, 0] = 0
    found = {}
    for latent in latents:
        own, places = acts[..., latent], []
        for wanted in range(k, 0, -1):
            try:
                places = reference.get_k_largest_indices(own, wanted, buffer, True).tolist()
                break
            except ValueError:
                continue
        found[latent] = [(own[row, column].item(), row, column) for row, column in places if own[row, column] > 0]
    return found


@right("max_activating_examples")
def with_a_filtered_cache(model, transcoder, tokens, latents, k, buffer=0):
    _demand_rank(tokens)
    _known(transcoder, latents)
    name = transcoder.cfg.metadata.hook_name
    _, cache = model.run_with_cache(tokens, names_filter=name, stop_at_layer=layer_of(transcoder) + 1)
    columns = torch.tensor(latents)
    before = cache[name] @ transcoder.W_enc[:, columns] + transcoder.b_enc[columns]
    acts = torch.where(before > transcoder.threshold[columns], before, 0.0).detach()
    return {latent: _pick(acts[..., n], k, buffer) for n, latent in enumerate(latents)}


@wrong("max_activating_examples", mistake="one run for each latent", hint="around the model")
def a_run_for_each(model, transcoder, tokens, latents, k, buffer=0):
    _demand_rank(tokens)
    _known(transcoder, latents)
    return {latent: _pick(_acts(model, transcoder, tokens)[..., latent], k, buffer) for latent in latents}


@wrong("max_activating_examples", mistake="the sink counts", hint="attention sink")
def with_the_sink(model, transcoder, tokens, latents, k, buffer=0):
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens)
    return {latent: _pick(acts[..., latent], k, buffer, start=0) for latent in latents}


@wrong("max_activating_examples", mistake="padded with inactive places", hint="not active")
def with_inactive_places(model, transcoder, tokens, latents, k, buffer=0):
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens)
    return {latent: _pick(acts[..., latent], k, buffer, only_active=False) for latent in latents}


@wrong("max_activating_examples", mistake="never stopped", hint="stop_at_layer")
def running_on(model, transcoder, tokens, latents, k, buffer=0):
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens, stop=False)
    return {latent: _pick(acts[..., latent], k, buffer) for latent in latents}


@wrong("max_activating_examples", mistake="the best of each row", hint="A row may give several")
def one_a_row(model, transcoder, tokens, latents, k, buffer=0):
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens)
    found = {}
    for latent in latents:
        places = [_pick(row[None, :, latent], 1, buffer) for row in acts]
        flat = [(place[0][0], row, place[0][2]) for row, place in enumerate(places) if place]
        found[latent] = sorted(flat, reverse=True)[:k]
    return found


@wrong("max_activating_examples", mistake="overlapping places", hint="within buffer")
def examples_overlapping(model, transcoder, tokens, latents, k, buffer=0):
    _known(transcoder, latents)
    acts = _acts(model, transcoder, tokens)
    acts[:, : max(1, buffer)] = 0
    acts[:, acts.shape[1] - buffer :] = 0
    found = {}
    for latent in latents:
        values, places = acts[..., latent].flatten().topk(k)
        pairs = [divmod(place, acts.shape[1]) for place in places.tolist()]
        found[latent] = [(v, *pair) for v, pair in zip(values.tolist(), pairs, strict=True) if v > 0]
    return found


@wrong("max_activating_examples", mistake="pre-activations", hint="transcoder.encode")
def examples_of_pre_activations(model, transcoder, tokens, latents, k, buffer=0):
    _known(transcoder, latents)
    _demand_rank(tokens)
    kept = []
    with torch.no_grad():
        model.run_with_hooks(
            tokens,
            fwd_hooks=[(transcoder.cfg.metadata.hook_name, lambda x, hook: kept.append(x))],
            stop_at_layer=layer_of(transcoder) + 1,
        )
        acts = (kept[0] @ transcoder.W_enc).relu()
    return {latent: _pick(acts[..., latent], k, buffer) for latent in latents}


@wrong("max_activating_examples", mistake="numbers of the list instead of latents", hint="under its number")
def keyed_by_order(model, transcoder, tokens, latents, k, buffer=0):
    found = reference.max_activating_examples(model, transcoder, tokens, latents, k, buffer)
    return {number + 5000: places for number, places in enumerate(found.values())}


@wrong("max_activating_examples", mistake="a batch left unmerged", hint="")
def best_of_the_last_row(model, transcoder, tokens, latents, k, buffer=0):
    _demand_rank(tokens)
    _known(transcoder, latents)
    found = {}
    for row in tokens:
        found = reference.max_activating_examples(model, transcoder, row[None], latents, k, buffer)
    return found


# top_logits


@right("top_logits")
def logits_by_the_norm_itself(model, sae, latent_idx, k):
    """Through the model's own norm, whose division is undone."""
    if k > model.cfg.d_vocab:
        raise ValueError("k exceeds the vocabulary")
    if latent_idx not in range(sae.cfg.d_sae):
        raise ValueError("no such latent")
    with torch.no_grad():
        row = 1000 * sae.W_dec[latent_idx]
        logits = (model.ln_final(row[None, None])[0, 0] * row.square().mean().sqrt() / 1000) @ model.W_U
        order = logits.argsort(descending=True)[:k]
    return logits[order] - logits.mean(), order


@right("top_logits")
def logits_without_mean(model, sae, latent_idx, k):
    """A constant means nothing."""
    if k > model.cfg.d_vocab or not 0 <= latent_idx < sae.W_dec.shape[0]:
        raise ValueError(f"k = {k} tokens or latent {latent_idx} do not exist")
    found = (model.W_U.T @ (sae.W_dec[latent_idx] * model.ln_final.weight)).detach().topk(k)
    return found.values, found.indices


def _ranked(logits, k):
    found = (logits - logits.mean()).detach().topk(k)
    return found.values, found.indices


def _check_limits(model, sae, latent_idx, k):
    reference.top_logits(model, sae, latent_idx, k)


@wrong("top_logits", mistake="final norm's weights forgotten", hint="final norm")
def logits_without_norm(model, sae, latent_idx, k):
    _check_limits(model, sae, latent_idx, k)
    return _ranked(sae.W_dec[latent_idx] @ model.W_U, k)


@wrong("top_logits", mistake="encoder column", hint="decoder row")
def logits_of_the_encoder(model, sae, latent_idx, k):
    _check_limits(model, sae, latent_idx, k)
    return _ranked((sae.W_enc[:, latent_idx] * model.ln_final.weight) @ model.W_U, k)


@wrong("top_logits", mistake="smallest", hint="smallest")
def logits_smallest(model, sae, latent_idx, k):
    _check_limits(model, sae, latent_idx, k)
    logits = (sae.W_dec[latent_idx] * model.ln_final.weight) @ model.W_U
    found = (logits - logits.mean()).detach().topk(k, largest=False)
    return found.values, found.indices


@wrong("top_logits", mistake="probabilities", hint="softmax")
def logits_as_probabilities(model, sae, latent_idx, k):
    _check_limits(model, sae, latent_idx, k)
    found = ((sae.W_dec[latent_idx] * model.ln_final.weight) @ model.W_U).softmax(dim=0).detach().topk(k)
    return found.values, found.indices


@wrong("top_logits", mistake="values and ids swapped", hint="wrong way round")
def logits_swapped(model, sae, latent_idx, k):
    values, ids = reference.top_logits(model, sae, latent_idx, k)
    return ids, values


@wrong("top_logits", mistake="always ten", hint="exactly k")
def logits_always_ten(model, sae, latent_idx, k):
    _check_limits(model, sae, latent_idx, k)
    return reference.top_logits(model, sae, latent_idx, 10)


@wrong("top_logits", mistake="no look at limits", hint="vocabulary")
def logits_unlimited(model, sae, latent_idx, k):
    found = ((sae.W_dec[latent_idx % sae.cfg.d_sae] * model.ln_final.weight) @ model.W_U).detach()
    return _ranked(found, min(k, len(found)))


# top_deembeddings


@right("top_deembeddings")
def deembedding_by_sorting(model, sae, latent_idx, k):
    if not 0 <= latent_idx < sae.cfg.d_sae or k > len(model.W_E):
        raise ValueError(f"there is no latent {latent_idx}, or fewer tokens than k = {k}")
    scores = torch.einsum("vd,d->v", model.W_E, sae.W_enc.T[latent_idx])
    values, ids = scores.detach().sort(descending=True)
    return values[:k], ids[:k]


@right("top_deembeddings")
def deembedding_in_slices(model, sae, latent_idx, k):
    if not (0 <= latent_idx < sae.W_enc.shape[1] and k <= model.W_E.shape[0]):
        raise ValueError("no such latent, or k too large")
    column = sae.W_enc[:, latent_idx].detach()
    found = torch.cat([rows.detach() @ column for rows in model.W_E.split(10_000)]).topk(k)
    return found.values, found.indices


def _deembedded(model, sae, latent_idx, k, scores):
    reference.top_deembeddings(model, sae, latent_idx, k)
    found = scores.detach().topk(k)
    return found.values, found.indices


@wrong("top_deembeddings", mistake="decoder row", hint="what it *reads*")
def deembedding_the_decoder(model, sae, latent_idx, k):
    return _deembedded(model, sae, latent_idx, k, model.W_E @ sae.W_dec[latent_idx % sae.cfg.d_sae])


@wrong("top_deembeddings", mistake="absolute values", hint="absolute value")
def deembedding_magnitudes(model, sae, latent_idx, k):
    return _deembedded(model, sae, latent_idx, k, (model.W_E @ sae.W_enc[:, latent_idx % sae.cfg.d_sae]).abs())


@wrong("top_deembeddings", mistake="cosines", hint="divided by")
def deembedding_cosines(model, sae, latent_idx, k):
    scores = torch.cosine_similarity(model.W_E, sae.W_enc[:, latent_idx % sae.cfg.d_sae], dim=1)
    return _deembedded(model, sae, latent_idx, k, scores)


@wrong("top_deembeddings", mistake="bias added", hint="bias")
def deembedding_with_bias(model, sae, latent_idx, k):
    number = latent_idx % sae.cfg.d_sae
    return _deembedded(model, sae, latent_idx, k, model.W_E @ sae.W_enc[:, number] + sae.b_enc[number])


@wrong("top_deembeddings", mistake="row of the encoder", hint="")
def deembedding_a_row(model, sae, latent_idx, k):
    return _deembedded(model, sae, latent_idx, k, model.W_E @ sae.W_enc.reshape(sae.cfg.d_sae, -1)[latent_idx % 3072])


@wrong("top_deembeddings", mistake="no look at limits", hint="vocabulary")
def deembedding_unlimited(model, sae, latent_idx, k):
    scores = (model.W_E @ sae.W_enc[:, latent_idx % sae.cfg.d_sae]).detach()
    found = scores.topk(min(k, len(scores)))
    return found.values, found.indices


# create_extended_embedding


def _raw_rows(model, e):
    block = model.blocks[0]
    return e + block.mlp(block.ln2(e[None]))[0]


def _in_slices(model, rows_of):
    with torch.no_grad():
        return torch.cat([rows_of(e) for e in model.W_E.split(4096)])


@right("create_extended_embedding")
def by_batches_of_single_tokens(model):
    """Each token a sequence of its own; scaled by the root mean square."""

    def rows_of(e):
        alone = e[:, None]
        rows = (alone + model.blocks[0].mlp(model.blocks[0].ln2(alone)))[:, 0]
        return rows * rows.square().mean(dim=1, keepdim=True).rsqrt()

    return _in_slices(model, rows_of)


@right("create_extended_embedding")
def by_raw_weights(model):
    block = model.blocks[0]
    swiglu = block.mlp.original_component
    out = torch.empty(model.W_E.shape)
    with torch.no_grad():
        for first in range(0, len(out), 2048):
            e = model.W_E[first : first + 2048]
            x = e * (e.square().mean(dim=1, keepdim=True) + 1e-5).rsqrt() * block.ln2.weight
            gate = torch.nn.functional.silu(swiglu.gate_proj(x))
            rows = e + swiglu.down_proj(gate * swiglu.up_proj(x))
            out[first : first + 2048] = rows / rows.std(dim=1, keepdim=True, correction=0)
    return out


@wrong("create_extended_embedding", mistake="mean taken off", hint="RMSNorm")
def extended_centred(model):
    def rows_of(e):
        rows = _raw_rows(model, e)
        rows = rows - rows.mean(dim=1, keepdim=True)
        return rows / rows.std(dim=1, keepdim=True)

    return _in_slices(model, rows_of)


@wrong("create_extended_embedding", mistake="not scaled", hint="not scaled")
def extended_unscaled(model):
    return _in_slices(model, lambda e: _raw_rows(model, e))


@wrong("create_extended_embedding", mistake="unit length", hint="standard deviation")
def extended_unit_length(model):
    return torch.nn.functional.normalize(extended_unscaled.implementation(model), dim=1)


@wrong("create_extended_embedding", mistake="the MLP's output alone", hint="embedding itself is missing")
def extended_without_embedding(model):
    def rows_of(e):
        rows = _raw_rows(model, e) - e
        return rows / rows.std(dim=1, keepdim=True)

    return _in_slices(model, rows_of)


@wrong("create_extended_embedding", mistake="rows not normalised", hint="normalised")
def extended_without_norm(model):
    def rows_of(e):
        rows = e + model.blocks[0].mlp(e[None])[0]
        return rows / rows.std(dim=1, keepdim=True)

    return _in_slices(model, rows_of)


@wrong("create_extended_embedding", mistake="columns scaled", hint="column")
def extended_columns_scaled(model):
    rows = extended_unscaled.implementation(model)
    return rows / rows.std(dim=0, keepdim=True)


@wrong("create_extended_embedding", mistake="one scale for all", hint="one number")
def extended_scaled_as_one(model):
    rows = extended_unscaled.implementation(model)
    return rows / rows.std()


@wrong("create_extended_embedding", mistake="all rows at once", hint="slices")
def extended_at_once(model):
    with torch.no_grad():
        rows = _raw_rows(model, model.W_E)
        return rows / rows.std(dim=1, keepdim=True)


# pullback


def _order(transcoder_from, transcoder_to, latent_idx):
    if layer_of(transcoder_from) >= layer_of(transcoder_to):
        raise ValueError("transcoder_from must lie in an earlier block")
    if latent_idx not in range(transcoder_to.cfg.d_sae):
        raise ValueError("no such latent")


@right("pullback")
def pullback_by_einsum(transcoder_from, transcoder_to, latent_idx):
    _order(transcoder_from, transcoder_to, latent_idx)
    with torch.no_grad():
        return torch.einsum("id,d->i", transcoder_from.W_dec, transcoder_to.W_enc.T[latent_idx])


@right("pullback")
def pullback_as_a_gradient(transcoder_from, transcoder_to, latent_idx):
    """The derivative of what the later latent reads by the earlier activations."""
    _order(transcoder_from, transcoder_to, latent_idx)
    acts = torch.zeros(transcoder_from.cfg.d_sae, requires_grad=True)
    read = transcoder_from.decode(acts) @ transcoder_to.W_enc[:, latent_idx]
    return torch.autograd.grad(read, acts)[0]


@wrong("pullback", mistake="later decoder row", hint="encoder column")
def pullback_to_the_decoder(transcoder_from, transcoder_to, latent_idx):
    _order(transcoder_from, transcoder_to, latent_idx)
    return (transcoder_from.W_dec @ transcoder_to.W_dec[latent_idx]).detach()


@wrong("pullback", mistake="earlier encoder columns", hint="what they read")
def pullback_from_the_encoder(transcoder_from, transcoder_to, latent_idx):
    _order(transcoder_from, transcoder_to, latent_idx)
    return (transcoder_from.W_enc.T @ transcoder_to.W_enc[:, latent_idx]).detach()


@wrong("pullback", mistake="cosines", hint="cosines")
def pullback_of_cosines(transcoder_from, transcoder_to, latent_idx):
    _order(transcoder_from, transcoder_to, latent_idx)
    column = transcoder_to.W_enc[:, latent_idx]
    return torch.cosine_similarity(transcoder_from.W_dec, column, dim=1).detach()


@wrong("pullback", mistake="wrong way round", hint="wrong way round")
def pullback_backwards(transcoder_from, transcoder_to, latent_idx):
    _order(transcoder_from, transcoder_to, latent_idx)
    return (transcoder_to.W_dec @ transcoder_from.W_enc[:, latent_idx]).detach()


@wrong("pullback", mistake="whole matrices", hint="*before* you multiply")
def pullback_of_all(transcoder_from, transcoder_to, latent_idx):
    _order(transcoder_from, transcoder_to, latent_idx)
    return (transcoder_from.W_dec @ transcoder_to.W_enc)[:, latent_idx].detach()


@wrong("pullback", mistake="-1 taken for the last latent", hint="-1 was asked for")
def pullback_from_the_end(transcoder_from, transcoder_to, latent_idx):
    latent = latent_idx + transcoder_to.cfg.d_sae if latent_idx < 0 else latent_idx
    return reference.pullback(transcoder_from, transcoder_to, latent)


@wrong("pullback", mistake="order not looked at", hint="block")
def pullback_any_order(transcoder_from, transcoder_to, latent_idx):
    if latent_idx >= transcoder_to.cfg.d_sae:
        raise ValueError("no such latent")
    return (transcoder_from.W_dec @ transcoder_to.W_enc[:, latent_idx]).detach()


# influence


@right("influence")
def influence_by_the_cache(model, transcoder_from, transcoder_to, latent_idx, tokens):
    _demand_rank(tokens)
    _order(transcoder_from, transcoder_to, latent_idx)
    name = transcoder_from.cfg.metadata.hook_name
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=name, stop_at_layer=layer_of(transcoder_from) + 1)
        acts = transcoder_from.encode(cache[name])
        mask = torch.arange(tokens.shape[1]) >= first_position(model)
        return acts * mask[:, None] * pullback_by_einsum.implementation(transcoder_from, transcoder_to, latent_idx)


@right("influence")
def influence_of_written_parts(model, transcoder_from, transcoder_to, latent_idx, tokens):
    """Where a latent is active: what it writes, times what is read of it."""
    _demand_rank(tokens)
    _order(transcoder_from, transcoder_to, latent_idx)
    acts = _acts(model, transcoder_from, tokens)
    acts[:, 0] = 0
    where = acts.nonzero()
    written = acts[tuple(where.T)][:, None] * transcoder_from.W_dec.detach()[where[:, 2]]
    read = written @ transcoder_to.W_enc[:, latent_idx].detach()
    return torch.zeros_like(acts).index_put(tuple(where.T), read)


def _influence(model, transcoder_from, transcoder_to, latent_idx, tokens, *, sink=False, change=lambda x: x, stop=True):
    p = reference.pullback(transcoder_from, transcoder_to, latent_idx)
    acts = _acts(model, transcoder_from, tokens, stop=stop)
    if not sink:
        acts[:, 0] = 0
    return change(acts) * p


@wrong("influence", mistake="the sink counts", hint="attention sink")
def influence_with_sink(model, transcoder_from, transcoder_to, latent_idx, tokens):
    return _influence(model, transcoder_from, transcoder_to, latent_idx, tokens, sink=True)


@wrong("influence", mistake="active or not instead of how active", hint="*how* active")
def influence_of_active(model, transcoder_from, transcoder_to, latent_idx, tokens):
    return _influence(model, transcoder_from, transcoder_to, latent_idx, tokens, change=lambda acts: (acts > 0).float())


@wrong("influence", mistake="absolute values", hint="abs()")
def influence_unsigned(model, transcoder_from, transcoder_to, latent_idx, tokens):
    return _influence(model, transcoder_from, transcoder_to, latent_idx, tokens).abs()


@wrong("influence", mistake="positive part", hint="Negative influences")
def influence_positive(model, transcoder_from, transcoder_to, latent_idx, tokens):
    return _influence(model, transcoder_from, transcoder_to, latent_idx, tokens).relu()


@wrong("influence", mistake="never stopped", hint="stop_at_layer")
def influence_running_on(model, transcoder_from, transcoder_to, latent_idx, tokens):
    return _influence(model, transcoder_from, transcoder_to, latent_idx, tokens, stop=False)


@wrong("influence", mistake="summed over latents", hint="d_sae")
def influence_summed(model, transcoder_from, transcoder_to, latent_idx, tokens):
    return _influence(model, transcoder_from, transcoder_to, latent_idx, tokens).sum(dim=-1)
