"""Other ways of writing chapter 02: right ones that must pass, wrong ones that must be caught."""

import numpy as np
import pandas as pd
import torch

from solutions.ch02_temporal_categories import activation_audit as reference_audit
from solutions.ch02_temporal_categories import category_means as reference_means
from solutions.ch02_temporal_categories import layer_geometry as reference_geometry
from solutions.ch02_temporal_categories import leave_one_out_accuracy as reference_accuracy
from solutions.ch02_temporal_categories import max_statistic_p_values as reference_p_values
from solutions.ch02_temporal_categories import top_features_vs_baseline as reference_top
from utils import layer_of
from utils.checks.variants import right, wrong
from utils.material.tenses import BASELINE


def _read(model, tokens, hook_name, **options):
    """The whole activation [batch, seq, d_model] at a hook."""
    kept = []
    with torch.no_grad():
        model.run_with_hooks(
            tokens,
            fwd_hooks=[(hook_name, lambda x, hook: kept.append(x.clone()))],
            stop_at_layer=layer_of(hook_name) + 1,
            **options,
        )
    return kept[0]


def _last(model, prompts, hook_name):
    """The activation at each prompt's last token, read one by one."""
    return torch.cat([_read(model, model.to_tokens(prompt), hook_name)[:, -1] for prompt in prompts])


def _refuse_empty(categories):
    for category, prompts in categories.items():
        if len(prompts) == 0:
            raise ValueError(f"no prompts in {category}")


def _hook(sae):
    return sae.cfg.metadata.hook_name


def _means_with(model, sae, categories, resid_of, latents_of):
    """Category means from the activations [n, d_model] of a category's prompts."""
    _refuse_empty(categories)
    rows = {category: _last(model, prompts, _hook(sae)) for category, prompts in categories.items()}
    with torch.no_grad():
        return {c: resid_of(x) for c, x in rows.items()}, {c: latents_of(x) for c, x in rows.items()}


# category_means


@right("category_means")
def prompt_by_prompt(model, sae, categories):
    return _means_with(model, sae, categories, lambda x: x.mean(dim=0), lambda x: sae.encode(x).mean(dim=0))


@right("category_means")
def category_by_category_padded_left(model, sae, categories):
    """A list of strings padded on the left gets its mask from the bridge, so that the last column is the last token."""
    _refuse_empty(categories)
    resid, latents = {}, {}
    for category, prompts in categories.items():
        last = _read(model, list(prompts), _hook(sae), padding_side="left")[:, -1]
        with torch.no_grad():
            resid[category], latents[category] = last.mean(dim=0), sae.encode(last).mean(dim=0)
    return resid, latents


@wrong("category_means", mistake="latents that autograd follows", hint="no_grad")
def with_gradient(model, sae, categories):
    _refuse_empty(categories)
    rows = {category: _last(model, prompts, _hook(sae)) for category, prompts in categories.items()}
    return {c: x.mean(dim=0) for c, x in rows.items()}, {c: sae.encode(x).mean(dim=0) for c, x in rows.items()}


@wrong("category_means", mistake="latents of the mean", hint="latents of the mean activation")
def latents_of_the_mean(model, sae, categories):
    return _means_with(model, sae, categories, lambda x: x.mean(dim=0), lambda x: sae.encode(x.mean(dim=0)))


@wrong("category_means", mistake="reads padding", hint="last *column*")
def means_at_the_last_column(model, sae, categories):
    _refuse_empty(categories)
    prompts = [prompt for told in categories.values() for prompt in told]
    last = _read(model, model.to_tokens(prompts, padding_side="right"), _hook(sae))[:, -1]
    sizes = [len(told) for told in categories.values()]
    resid = dict(zip(categories, [x.mean(dim=0) for x in last.split(sizes)], strict=True))
    return resid, dict(zip(categories, [x.mean(dim=0) for x in sae.encode(last).split(sizes)], strict=True))


@wrong("category_means", mistake="looks at padding", hint="padded on the left")
def means_padded_left_without_mask(model, sae, categories):
    _refuse_empty(categories)
    prompts = [prompt for told in categories.values() for prompt in told]
    last = _read(model, model.to_tokens(prompts, padding_side="left"), _hook(sae))[:, -1]
    sizes = [len(told) for told in categories.values()]
    resid = dict(zip(categories, [x.mean(dim=0) for x in last.split(sizes)], strict=True))
    return resid, dict(zip(categories, [x.mean(dim=0) for x in sae.encode(last).split(sizes)], strict=True))


@wrong("category_means", mistake="sums", hint="sum over the prompts")
def summed(model, sae, categories):
    return _means_with(model, sae, categories, lambda x: x.sum(dim=0), lambda x: sae.encode(x).sum(dim=0))


@wrong("category_means", mistake="maximum of the latents", hint="largest activation")
def largest_latents(model, sae, categories):
    return _means_with(model, sae, categories, lambda x: x.mean(dim=0), lambda x: sae.encode(x).amax(dim=0))


@wrong("category_means", mistake="mean over all tokens", hint="all tokens")
def means_over_all_tokens(model, sae, categories):
    _refuse_empty(categories)
    resid, latents = {}, {}
    for category, prompts in categories.items():
        rows = [_read(model, model.to_tokens(prompt), _hook(sae))[0] for prompt in prompts]
        resid[category] = torch.stack([x.mean(dim=0) for x in rows]).mean(dim=0)
        latents[category] = torch.stack([sae.encode(x).mean(dim=0) for x in rows]).mean(dim=0)
    return resid, latents


@wrong("category_means", mistake="two passes", hint="No second pass")
def twice(model, sae, categories):
    return reference_means(model, sae, categories)[0], reference_means(model, sae, categories)[1]


@wrong("category_means", mistake="the two results swapped", hint="swapped")
def latents_first(model, sae, categories):
    resid, latents = reference_means(model, sae, categories)
    return latents, resid


@wrong("category_means", mistake="nan for an empty category", hint="nan")
def empty_is_nan(model, sae, categories):
    full = {category: prompts for category, prompts in categories.items() if prompts}
    resid, latents = reference_means(model, sae, full)
    for category in categories.keys() - full.keys():
        resid[category], latents[category] = torch.full((576,), torch.nan), torch.full((sae.cfg.d_sae,), torch.nan)
    return resid, latents


# layer_geometry


def _means_at(model, categories, layer, point="pre"):
    hook_name = f"blocks.{layer}.hook_resid_{point}"
    return torch.stack([_last(model, prompts, hook_name).mean(dim=0) for prompts in categories.values()])


def _without_baseline(categories):
    return {category: prompts for category, prompts in categories.items() if category != BASELINE}


def _components(rows, k, centre=True):
    rows = rows - rows.mean(dim=0) if centre else rows
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    return (left * singular)[:, :k], (singular.square() / singular.square().sum())[:k]


def _refuse_large(k, categories):
    if k > len(_without_baseline(categories)):
        raise ValueError(f"{len(categories)} categories do not have {k} components")


@right("layer_geometry")
def layer_bylayer_of(model, categories, layers, k=2):
    """A pass per layer, and components from the Gram matrix."""
    _refuse_large(k, categories)
    found = {}
    for layer in layers:
        means = _means_at(model, _without_baseline(categories), layer)
        centred = (means - means.mean(dim=0)).double()
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        found[layer] = (vectors * values.sqrt())[:, :k].float(), (values / values.sum())[:k].float()
    return found


@right("layer_geometry")
def with_a_filtered_cache(model, categories, layers, k=2):
    from utils import mine

    told = _without_baseline(categories)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    means = {layer: [] for layer in layers}
    for prompts in told.values():
        rows = []
        for prompt in prompts:
            with torch.no_grad():
                _, cache = model.run_with_cache(prompt, names_filter=names, stop_at_layer=max(layers) + 1)
            rows.append(torch.stack([cache[name][0, -1] for name in names]))
        for layer, mean in zip(layers, torch.stack(rows).mean(dim=0), strict=True):
            means[layer].append(mean)
    return {layer: mine.pca(torch.stack(rows), k)[::2] for layer, rows in means.items()}


@wrong("layer_geometry", mistake="baseline included", hint="neutral")
def with_baseline(model, categories, layers, k=2):
    _refuse_large(k, categories)
    return {layer: _components(_means_at(model, categories, layer), k) for layer in layers}


@wrong("layer_geometry", mistake="the stream after the block", hint="leaves the block")
def after_the_block(model, categories, layers, k=2):
    _refuse_large(k, categories)
    told = _without_baseline(categories)
    return {layer: _components(_means_at(model, told, layer, "post"), k) for layer in layers}


@wrong("layer_geometry", mistake="not centred", hint="Centre the means")
def uncentred(model, categories, layers, k=2):
    _refuse_large(k, categories)
    told = _without_baseline(categories)
    return {layer: _components(_means_at(model, told, layer), k, centre=False) for layer in layers}


@wrong("layer_geometry", mistake="components of all prompts", hint="all prompts together")
def components_of_prompts(model, categories, layers, k=2):
    _refuse_large(k, categories)
    told = _without_baseline(categories)
    found = {}
    for layer in layers:
        rows = torch.cat([_last(model, prompts, f"blocks.{layer}.hook_resid_pre") for prompts in told.values()])
        coords, ratio = _components(rows, k)
        sizes = [len(prompts) for prompts in told.values()]
        found[layer] = torch.stack([part.mean(dim=0) for part in coords.split(sizes)]), ratio
    return found


@wrong("layer_geometry", mistake="shares of the kept variance", hint="total")
def shares_of_kept(model, categories, layers, k=2):
    found = reference_geometry(model, categories, layers, k)
    return {layer: (coords, ratio / ratio.sum()) for layer, (coords, ratio) in found.items()}


@wrong("layer_geometry", mistake="layers numbered from 0", hint="layers")
def numbered_from_zero(model, categories, layers, k=2):
    return dict(enumerate(reference_geometry(model, categories, layers, k).values()))


@wrong("layer_geometry", mistake="a row per prompt", hint="a row for each category")
def a_row_per_prompt(model, categories, layers, k=2):
    _refuse_large(k, categories)
    prompts = [prompt for told in _without_baseline(categories).values() for prompt in told]
    return {layer: _components(_last(model, prompts, f"blocks.{layer}.hook_resid_pre"), k) for layer in layers}


@wrong("layer_geometry", mistake="k larger than there are is cut", hint="six components")
def fewer_components(model, categories, layers, k=2):
    return reference_geometry(model, categories, layers, min(k, len(_without_baseline(categories))))


# top_features_vs_baseline


def _refuse(latent_means, category, baseline, k):
    for name in (category, baseline):
        if name not in latent_means:
            raise ValueError(f"no category {name}")
    if k > len(latent_means[category]):
        raise ValueError(f"only {len(latent_means[category])} latents")


def _table(latent_means, category, baseline, latents):
    mean, other = latent_means[category][latents], latent_means[baseline][latents]
    return pd.DataFrame({"latent": latents, "difference": mean - other, "mean": mean, "baseline_mean": other})


@right("top_features_vs_baseline")
def sorted_table(latent_means, category, baseline, k):
    _refuse(latent_means, category, baseline, k)
    table = _table(latent_means, category, baseline, torch.arange(len(latent_means[category])))
    return table.sort_values("difference", ascending=False).head(k).reset_index(drop=True)


@right("top_features_vs_baseline")
def with_plain_python(latent_means, category, baseline, k):
    _refuse(latent_means, category, baseline, k)
    mean, other = latent_means[category].tolist(), latent_means[baseline].tolist()
    order = sorted(range(len(mean)), key=lambda i: other[i] - mean[i])[:k]
    rows = [(i, mean[i] - other[i], mean[i], other[i]) for i in order]
    return pd.DataFrame(rows, columns=["latent", "difference", "mean", "baseline_mean"])


def _by(latent_means, category, baseline, k, key):
    _refuse(latent_means, category, baseline, k)
    return _table(latent_means, category, baseline, key.topk(k).indices)


@wrong("top_features_vs_baseline", mistake="magnitude of the difference", hint="signed")
def by_magnitude(latent_means, category, baseline, k):
    return _by(latent_means, category, baseline, k, (latent_means[category] - latent_means[baseline]).abs())


@wrong("top_features_vs_baseline", mistake="sorted by the mean", hint="Sorted by the mean")
def by_mean(latent_means, category, baseline, k):
    return _by(latent_means, category, baseline, k, latent_means[category])


@wrong("top_features_vs_baseline", mistake="rows numbered instead of latents", hint="counts the rows")
def numbers_of_rows(latent_means, category, baseline, k):
    table = reference_top(latent_means, category, baseline, k)
    return table.assign(latent=range(k))


@wrong("top_features_vs_baseline", mistake="means not those of the row's latent", hint="same row")
def means_of_the_first(latent_means, category, baseline, k):
    table = reference_top(latent_means, category, baseline, k)
    return table.assign(mean=latent_means[category][:k].tolist(), baseline_mean=latent_means[baseline][:k].tolist())


@wrong("top_features_vs_baseline", mistake="always against neutral", hint="`past` is the baseline here")
def always_neutral(latent_means, category, baseline, k):
    _refuse(latent_means, category, baseline, k)
    latents = (latent_means[category] - latent_means["neutral"]).topk(k).indices
    return _table(latent_means, category, baseline, latents)


@wrong("top_features_vs_baseline", mistake="too large k is cut silently", hint="without a word")
def cut_silently(latent_means, category, baseline, k):
    n_latents = len(next(iter(latent_means.values())))
    return reference_top(latent_means, category, baseline, min(k, n_latents))


@wrong("top_features_vs_baseline", mistake="smallest first", hint="largest")
def smallest_first(latent_means, category, baseline, k):
    return reference_top(latent_means, category, baseline, k)[::-1].reset_index(drop=True)


@wrong("top_features_vs_baseline", mistake="rows keep their old numbers", hint="reset_index")
def old_row_numbers(latent_means, category, baseline, k):
    _refuse(latent_means, category, baseline, k)
    table = _table(latent_means, category, baseline, torch.arange(len(latent_means[category])))
    return table.sort_values("difference", ascending=False).head(k)


@wrong("top_features_vs_baseline", mistake="KeyError for an unknown name", hint="ValueError")
def key_error(latent_means, category, baseline, k):
    latent_means[category], latent_means[baseline]
    return reference_top(latent_means, category, baseline, k)


# activation_audit


def _audit(model, sae, prompts, measure):
    """A row for each prompt: what `measure` makes of its latents [seq, d_sae]."""
    rows = [measure(sae.encode(_read(model, model.to_tokens(prompt), _hook(sae)))[0]) for prompt in prompts]
    return pd.DataFrame(rows, columns=["max_with_sink", "max_without_sink", "l0_with_sink", "l0_without_sink"])


@right("activation_audit")
def with_numpy(model, sae, prompts):
    def measure(acts):
        acts = acts.numpy()
        active = np.count_nonzero(acts > 0, axis=1)
        return acts.max(), acts[1:].max(), active.mean(), active[1:].mean()

    return _audit(model, sae, prompts, measure)


@right("activation_audit")
def in_one_batch(model, sae, prompts):
    lengths = torch.tensor([model.to_tokens(prompt).shape[1] for prompt in prompts])
    acts = sae.encode(_read(model, model.to_tokens(list(prompts), padding_side="right"), _hook(sae)))
    position = torch.arange(acts.shape[1])
    largest, active, table = acts.amax(dim=2), (acts > 0).sum(dim=2).double(), {}
    for name, first in (("with_sink", 0), ("without_sink", 1)):
        counts = (position >= first) & (position < lengths[:, None])
        table[f"max_{name}"] = largest.masked_fill(~counts, -torch.inf).amax(dim=1)
        table[f"l0_{name}"] = (active * counts).sum(dim=1) / counts.sum(dim=1)
    return pd.DataFrame({name: values.tolist() for name, values in table.items()})


def _l0(acts):
    return (acts > 0).sum(dim=1).float().mean().item()


@wrong("activation_audit", mistake="sink stays in the maximum", hint="sink still counts")
def sink_kept(model, sae, prompts):
    return _audit(model, sae, prompts, lambda a: (a.max().item(), a.max().item(), _l0(a), _l0(a[1:])))


@wrong("activation_audit", mistake="latents active anywhere", hint="anywhere")
def active_anywhere(model, sae, prompts):
    def measure(a):
        return a.max().item(), a[1:].max().item(), (a > 0).any(0).sum().item(), (a[1:] > 0).any(0).sum().item()

    return _audit(model, sae, prompts, measure)


@wrong("activation_audit", mistake="sum over positions", hint="sum over positions")
def l0_summed(model, sae, prompts):
    def measure(a):
        return a.max().item(), a[1:].max().item(), (a > 0).sum().item(), (a[1:] > 0).sum().item()

    return _audit(model, sae, prompts, measure)


@wrong("activation_audit", mistake="divided by all positions", hint="one fewer")
def divided_by_all(model, sae, prompts):
    def measure(a):
        return a.max().item(), a[1:].max().item(), _l0(a), (a[1:] > 0).sum().item() / len(a)

    return _audit(model, sae, prompts, measure)


@wrong("activation_audit", mistake="padding counted", hint="padding")
def padding_counted(model, sae, prompts):
    acts = sae.encode(_read(model, model.to_tokens(list(prompts), padding_side="right"), _hook(sae)))
    rows = [(a.max().item(), a[1:].max().item(), _l0(a), _l0(a[1:])) for a in acts]
    return pd.DataFrame(rows, columns=["max_with_sink", "max_without_sink", "l0_with_sink", "l0_without_sink"])


@wrong("activation_audit", mistake="no special token", hint="special token")
def without_special_token(model, sae, prompts):
    rows = []
    for prompt in prompts:
        a = sae.encode(_read(model, model.to_tokens(prompt, prepend_bos=False), _hook(sae)))[0]
        inner = a[1:] if len(a) > 1 else a
        rows.append((a.max().item(), inner.max().item(), _l0(a), _l0(inner)))
    return pd.DataFrame(rows, columns=["max_with_sink", "max_without_sink", "l0_with_sink", "l0_without_sink"])


@wrong("activation_audit", mistake="share instead of number", hint="number")
def share_of_latents(model, sae, prompts):
    table = reference_audit(model, sae, prompts)
    return table.assign(
        l0_with_sink=table["l0_with_sink"] / sae.cfg.d_sae, l0_without_sink=table["l0_without_sink"] / sae.cfg.d_sae
    )


@wrong("activation_audit", mistake="last token dropped instead of the sink", hint="sink still counts")
def last_dropped(model, sae, prompts):
    return _audit(model, sae, prompts, lambda a: (a.max().item(), a[:-1].max().item(), _l0(a), _l0(a[:-1])))


# max_statistic_p_values


def _two(acts, labels, category, baseline):
    """The rows of the two categories, and which of them are of the first."""
    if category == baseline or not (labels == category).any() or not (labels == baseline).any():
        raise ValueError("two categories with rows are needed")
    keep = (labels == category) | (labels == baseline)
    return acts[keep].double(), (labels == category)[keep]


def _difference(x, inside):
    return x[inside].mean(dim=0) - x[~inside].mean(dim=0)


def _shuffled(x, inside, n_permutations, seed):
    """The true differences, and those of every shuffle [n_permutations, d], one after the other."""
    generator = torch.Generator().manual_seed(seed)
    shuffles = [inside[torch.randperm(len(inside), generator=generator)] for _ in range(n_permutations)]
    return _difference(x, inside), torch.stack([_difference(x, shuffle) for shuffle in shuffles])


def _p(count, n_permutations):
    return ((1 + count) / (1 + n_permutations)).float()


@right("max_statistic_p_values")
def one_shuffle_at_a_time(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    generator = torch.Generator().manual_seed(seed)
    true = _difference(x, inside)
    count = torch.zeros(len(true))
    for _ in range(n_permutations):
        largest = _difference(x, inside[torch.randperm(len(inside), generator=generator)]).max()
        count += largest >= true - 1e-9
    return _p(count, n_permutations)


@right("max_statistic_p_values")
def by_searching_sorted_maxima(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    rng = np.random.default_rng(seed)
    dealt = rng.permuted(np.tile(inside.numpy(), (n_permutations, 1)), axis=1)
    dealt = torch.from_numpy(dealt).double()
    sums = dealt @ x
    size, total = inside.sum(), x.sum(dim=0)
    maxima = (sums / size - (total - sums) / (len(x) - size)).amax(dim=1).sort().values
    below = torch.searchsorted(maxima, _difference(x, inside) - 1e-9)
    return _p(n_permutations - below, n_permutations)


@wrong("max_statistic_p_values", mistake="each latent against itself", hint="*own* shuffled differences")
def unadjusted(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    true, shuffled = _shuffled(x, inside, n_permutations, seed)
    return _p((shuffled >= true - 1e-9).sum(dim=0), n_permutations)


@wrong("max_statistic_p_values", mistake="count / n", hint="(1 + count)")
def zero_possible(acts, labels, category, baseline, n_permutations, seed):
    p = reference_p_values(acts, labels, category, baseline, n_permutations, seed)
    return (p * (1 + n_permutations) - 1) / n_permutations


@wrong("max_statistic_p_values", mistake="greater instead of at least", hint="at least")
def strictly_greater(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    true, shuffled = _shuffled(x, inside, n_permutations, seed)
    return _p((shuffled.amax(dim=1)[:, None] > true + 1e-9).sum(dim=0), n_permutations)


@wrong("max_statistic_p_values", mistake="latents shuffled independently", hint="independently")
def columns_shuffled(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    generator = torch.Generator().manual_seed(seed)
    true, count = _difference(x, inside), torch.zeros(x.shape[1])
    for _ in range(n_permutations):
        places = torch.rand(x.shape, generator=generator).argsort(dim=0)
        count += _difference(x.gather(0, places), inside).max() >= true - 1e-9
    return _p(count, n_permutations)


@wrong("max_statistic_p_values", mistake="two-sided", hint="one-sided")
def two_sided(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    true, shuffled = _shuffled(x, inside, n_permutations, seed)
    return _p((shuffled.abs().amax(dim=1)[:, None] >= true.abs() - 1e-9).sum(dim=0), n_permutations)


@wrong("max_statistic_p_values", mistake="all rows shuffled", hint="other rows")
def all_rows(acts, labels, category, baseline, n_permutations, seed):
    _two(acts, labels, category, baseline)
    generator = torch.Generator().manual_seed(seed)
    x = acts.double()

    def difference(given):
        return x[given == category].mean(dim=0) - x[given == baseline].mean(dim=0)

    true = difference(labels)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(n_permutations)]
    largest = torch.stack([difference(labels[order]).max() for order in orders])
    return _p((largest[:, None] >= true - 1e-9).sum(dim=0), n_permutations)


@wrong("max_statistic_p_values", mistake="category against all others", hint="must not enter a mean")
def against_all_others(acts, labels, category, baseline, n_permutations, seed):
    _two(acts, labels, category, baseline)
    return reference_p_values(acts, (labels != category).long(), 0, 1, n_permutations, seed)


@wrong("max_statistic_p_values", mistake="not seeded", hint="seed")
def unseeded(acts, labels, category, baseline, n_permutations, seed):
    fresh = int(torch.randint(1 << 30, ()))
    return reference_p_values(acts, labels, category, baseline, n_permutations, fresh)


@wrong("max_statistic_p_values", mistake="global generator seeded", hint="global")
def seeding_globally(acts, labels, category, baseline, n_permutations, seed):
    torch.manual_seed(seed)
    x, inside = _two(acts, labels, category, baseline)
    shuffles = torch.rand(n_permutations, len(x)).argsort(dim=1)
    dealt = inside[shuffles].double()
    largest = (dealt @ x / inside.sum() - (1 - dealt) @ x / (~inside).sum()).amax(dim=1)
    return _p((largest[:, None] >= _difference(x, inside) - 1e-9).sum(dim=0), n_permutations)


@wrong("max_statistic_p_values", mistake="groups taken for equally large", hint="shuffle")
def halves(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    generator = torch.Generator().manual_seed(seed)
    true, count = _difference(x, inside), torch.zeros(x.shape[1])
    for _ in range(n_permutations):
        order = torch.randperm(len(x), generator=generator)
        first, second = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
        count += (first.mean(dim=0) - second.mean(dim=0)).max() >= true - 1e-9
    return _p(count, n_permutations)


@wrong("max_statistic_p_values", mistake="Bonferroni", hint="Bonferroni")
def bonferroni(acts, labels, category, baseline, n_permutations, seed):
    p = unadjusted.implementation(acts, labels, category, baseline, n_permutations, seed)
    return (p * acts.shape[1]).clamp_max(1)


@wrong("max_statistic_p_values", mistake="huge tensor", hint="MB")
def everything_at_once(acts, labels, category, baseline, n_permutations, seed):
    x, inside = _two(acts, labels, category, baseline)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(n_permutations, len(x), generator=generator).argsort(dim=1)
    sign = torch.where(inside, 1 / inside.sum(), -1 / (~inside).sum()).double()
    largest = (x[orders] * sign[:, None]).sum(dim=1).amax(dim=1)
    return _p((largest[:, None] >= _difference(x, inside) - 1e-9).sum(dim=0), n_permutations)


@wrong("max_statistic_p_values", mistake="category without rows accepted", hint="ValueError")
def nothing_refused(acts, labels, category, baseline, n_permutations, seed):
    if category == baseline or not (labels == category).any():
        return torch.full((acts.shape[1],), 1 / (1 + n_permutations))
    return reference_p_values(acts, labels, category, baseline, n_permutations, seed)


# leave_one_out_accuracy


def _refuse_one_class(labels):
    if len(set(labels.tolist())) < 2:
        raise ValueError("at least two classes are needed")


def _each_row(x, labels, nearest):
    """The share of rows whose class `nearest(row, others, labels of the others)` finds."""
    _refuse_one_class(labels)
    right_ones = 0
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        right_ones += nearest(x[i], x[others], labels[others]) == labels[i].item()
    return float(right_ones) / len(x)


def _nearest_mean(row, others, labels):
    classes = sorted(set(labels.tolist()))
    means = torch.stack([others[labels == c].mean(dim=0) for c in classes])
    return classes[int((means - row).norm(dim=1).argmin())]


@right("leave_one_out_accuracy")
def in_a_loop(x, labels):
    return _each_row(x, labels, _nearest_mean)


@right("leave_one_out_accuracy")
def all_folds_at_once(x, labels):
    _refuse_one_class(labels)
    classes, own = np.unique(labels.numpy(), return_inverse=True)
    x = x.double().numpy()
    member = np.eye(len(classes))[own]
    size = member.sum(axis=0) - member
    sums = (member.T @ x)[None] - member[:, :, None] * x[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.linalg.norm(sums / size[:, :, None] - x[:, None], axis=2)
    return float((np.where(size == 0, np.inf, distance).argmin(axis=1) == own).mean())


@wrong("leave_one_out_accuracy", mistake="the row stays in its mean", hint="pulls it towards itself")
def leaking(x, labels):
    _refuse_one_class(labels)
    classes = labels.unique()
    means = torch.stack([x[labels == c].mean(dim=0) for c in classes])
    return (classes[torch.cdist(x, means).argmin(dim=1)] == labels).double().mean().item()


@wrong("leave_one_out_accuracy", mistake="nearest neighbour", hint="nearest *row*")
def nearest_row(x, labels):
    return _each_row(x, labels, lambda row, others, known: known[(others - row).norm(dim=1).argmin()].item())


@wrong("leave_one_out_accuracy", mistake="cosine", hint="cosine")
def by_cosine(x, labels):
    def nearest(row, others, known):
        classes = known.unique()
        means = torch.stack([others[known == c].mean(dim=0) for c in classes])
        return classes[torch.cosine_similarity(means, row[None]).argmax()].item()

    return _each_row(x, labels, nearest)


@wrong("leave_one_out_accuracy", mistake="size not reduced", hint="not out of the size")
def size_kept(x, labels):
    _refuse_one_class(labels)
    _, own, size = labels.unique(return_inverse=True, return_counts=True)
    member = torch.nn.functional.one_hot(own).to(x.dtype)
    sums = (member.T @ x)[None] - member[:, :, None] * x[:, None]
    nearest = (sums / size[:, None] - x[:, None]).norm(dim=2).argmin(dim=1)
    return (nearest == own).double().mean().item()


@wrong("leave_one_out_accuracy", mistake="labels used as places", hint="not use them as indices")
def labels_as_places(x, labels):
    _refuse_one_class(labels)

    def nearest(row, others, known):
        means = torch.stack([others[known == c].mean(dim=0) for c in range(int(known.max()) + 1)])
        return int((means - row).norm(dim=1).nan_to_num(torch.inf).argmin())

    return _each_row(x, labels, nearest)


@wrong("leave_one_out_accuracy", mistake="nan wins", hint="nan")
def nan_wins(x, labels):
    _refuse_one_class(labels)
    _, own, size = labels.unique(return_inverse=True, return_counts=True)
    member = torch.nn.functional.one_hot(own).to(x.dtype)
    sums = (member.T @ x)[None] - member[:, :, None] * x[:, None]
    distance = (sums / (size - member)[:, :, None] - x[:, None]).norm(dim=2)
    return (distance.argmin(dim=1) == own).double().mean().item()  # argmin takes nan for the smallest


@wrong("leave_one_out_accuracy", mistake="mean of nothing is the origin", hint="origin")
def empty_mean_is_zero(x, labels):
    _refuse_one_class(labels)
    _, own, size = labels.unique(return_inverse=True, return_counts=True)
    member = torch.nn.functional.one_hot(own).double()
    sums = (member.T @ x.double())[None] - member[:, :, None] * x.double()[:, None]
    distance = (sums / (size - member).clamp_min(1)[:, :, None] - x[:, None]).norm(dim=2)
    return (distance.argmin(dim=1) == own).double().mean().item()


@wrong("leave_one_out_accuracy", mistake="percentage", hint="percentage")
def in_percent(x, labels):
    return 100 * reference_accuracy(x, labels)


@wrong("leave_one_out_accuracy", mistake="one class is fine", hint="single class")
def one_class_is_fine(x, labels):
    return 1.0 if len(labels.unique()) == 1 else reference_accuracy(x, labels)
