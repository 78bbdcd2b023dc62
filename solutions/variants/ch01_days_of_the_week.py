"""Other ways of writing chapter 01: right ones that must pass, wrong ones that must be caught."""

import contextlib
import itertools
import math
from collections import defaultdict

import numpy as np
import torch
from scipy.cluster import hierarchy

from solutions.ch01_days_of_the_week import calendar_order_score as reference_score
from solutions.ch01_days_of_the_week import decoder_pca as reference_decoder_pca
from solutions.ch01_days_of_the_week import features_active_on as reference_features
from solutions.ch01_days_of_the_week import pca as reference_pca
from utils import layer_of
from utils.checks.variants import right, wrong


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


def _fill(classes, templates):
    return [template.format(word) for word in classes for template in templates]


# last_token_resid


@right("last_token_resid")
def with_a_filtered_cache(model, prompt, hook_name):
    _, cache = model.run_with_cache(prompt, names_filter=hook_name, stop_at_layer=layer_of(hook_name) + 1)
    return cache[hook_name][0, -1]


class _Enough(Exception):
    pass


@right("last_token_resid")
def jumping_out(model, prompt, hook_name):
    kept = []

    def keep(resid, hook):
        kept.append(resid[:, -1].clone())
        raise _Enough

    with contextlib.suppress(_Enough):
        model.run_with_hooks(model.to_tokens(prompt), fwd_hooks=[(hook_name, keep)])
    return kept[0].squeeze(0)


@wrong("last_token_resid", mistake="the first token", hint="attention sink")
def first_token(model, prompt, hook_name):
    return _read(model, model.to_tokens(prompt), hook_name)[0, 0]


@wrong("last_token_resid", mistake="no special token in front", hint="special token")
def without_special_token(model, prompt, hook_name):
    return _read(model, model.to_tokens(prompt, prepend_bos=False), hook_name)[0, -1]


@wrong("last_token_resid", mistake="batch axis left", hint="batch")
def with_batch_axis(model, prompt, hook_name):
    return _read(model, model.to_tokens(prompt), hook_name)[:, -1]


@wrong("last_token_resid", mistake="whole model runs", hint="stop_at_layer")
def never_stopping(model, prompt, hook_name):
    kept = []
    with torch.no_grad():
        model.run_with_hooks(
            model.to_tokens(prompt), fwd_hooks=[(hook_name, lambda x, hook: kept.append(x[0, -1].clone()))]
        )
    return kept[0]


@wrong("last_token_resid", mistake="stopped one block too early", hint="stop_at_layer=L + 1")
def stopped_too_early(model, prompt, hook_name):
    with torch.no_grad():
        return model(model.to_tokens(prompt), stop_at_layer=layer_of(hook_name))[0, -1]


@wrong("last_token_resid", mistake="the stream after the block", hint="after the block")
def one_layer_late(model, prompt, hook_name):
    return _read(model, model.to_tokens(prompt), f"blocks.{layer_of(hook_name)}.hook_resid_post")[0, -1]


@wrong("last_token_resid", mistake="a hook stays on the model", hint="add_hook")
def leaving_a_hook(model, prompt, hook_name):
    kept = []
    model.add_hook(hook_name, lambda x, hook: kept.append(x[0, -1].clone()))
    with torch.no_grad():
        model(model.to_tokens(prompt), stop_at_layer=layer_of(hook_name) + 1)
    return kept[0]


@wrong("last_token_resid", mistake="everything cached", hint="names_filter")
def caching_everything(model, prompt, hook_name):
    with torch.no_grad():
        _, cache = model.run_with_cache(prompt, stop_at_layer=layer_of(hook_name) + 1)
    return cache[hook_name][0, -1]


@wrong("last_token_resid", mistake="mean over tokens", hint="mean over all tokens")
def mean_token(model, prompt, hook_name):
    return _read(model, model.to_tokens(prompt), hook_name)[0].mean(dim=0)


# class_means


@right("class_means")
def by_equal_length(model, classes, templates, hook_name):
    """No padding at all: prompts of the same length share a batch."""
    batches = defaultdict(list)
    for place, prompt in enumerate(_fill(classes, templates)):
        batches[model.to_tokens(prompt).shape[1]].append((place, prompt))
    vectors = {}
    for members in batches.values():
        tokens = torch.cat([model.to_tokens(prompt) for _, prompt in members])
        for (place, _), vector in zip(members, _read(model, tokens, hook_name)[:, -1], strict=True):
            vectors[place] = vector
    return torch.stack([vectors[place] for place in sorted(vectors)]).view(len(classes), len(templates), -1).mean(dim=1)


@right("class_means")
def padded_left_with_mask(model, classes, templates, hook_name):
    prompts = _fill(classes, templates)
    tokens = model.to_tokens(prompts, padding_side="left")
    lengths = torch.tensor([model.to_tokens(prompt).shape[1] for prompt in prompts])
    mask = (torch.arange(tokens.shape[1]) >= tokens.shape[1] - lengths[:, None]).long()
    last = _read(model, tokens, hook_name, attention_mask=mask)[:, -1]
    return torch.stack([rows.mean(dim=0) for rows in last.split(len(templates))])


@right("class_means")
def class_by_class(model, classes, templates, hook_name):
    """A batch per class; a list of prompts padded on the left gets its mask from the bridge."""
    rows = [
        _read(model, _fill([word], templates), hook_name, padding_side="left")[:, -1].mean(dim=0) for word in classes
    ]
    return torch.stack(rows)


@wrong("class_means", mistake="reads padding", hint="last *column*")
def reading_the_last_column(model, classes, templates, hook_name):
    last = _read(model, model.to_tokens(_fill(classes, templates), padding_side="right"), hook_name)[:, -1]
    return last.unflatten(0, (len(classes), len(templates))).mean(dim=1)


@wrong("class_means", mistake="looks at padding", hint="padded on the left")
def padded_left_without_mask(model, classes, templates, hook_name):
    last = _read(model, model.to_tokens(_fill(classes, templates), padding_side="left"), hook_name)[:, -1]
    return last.unflatten(0, (len(classes), len(templates))).mean(dim=1)


def _ends(model, prompts):
    return torch.tensor([model.to_tokens(prompt).shape[1] - 1 for prompt in prompts])


def _last_vectors(model, prompts, hook_name):
    resid = _read(model, model.to_tokens(prompts, padding_side="right"), hook_name)
    return resid[torch.arange(len(prompts)), _ends(model, prompts)]


@wrong("class_means", mistake="class and template mixed up", hint="outer loop")
def mixed_up_axes(model, classes, templates, hook_name):
    last = _last_vectors(model, _fill(classes, templates), hook_name)
    return last.unflatten(0, (len(templates), len(classes))).mean(dim=0)


@wrong("class_means", mistake="one pass for each prompt", hint="one pass for each prompt")
def one_by_one(model, classes, templates, hook_name):
    rows = [
        torch.stack([_last_vectors(model, [prompt], hook_name)[0] for prompt in _fill([word], templates)])
        for word in classes
    ]
    return torch.stack(rows).mean(dim=1)


@wrong("class_means", mistake="mean of all classes subtracted", hint="mean of all classes was subtracted")
def centred_already(model, classes, templates, hook_name):
    means = (
        _last_vectors(model, _fill(classes, templates), hook_name)
        .unflatten(0, (len(classes), len(templates)))
        .mean(dim=1)
    )
    return means - means.mean(dim=0)


@wrong("class_means", mistake="classes sorted", hint="order in which the classes are given")
def sorted_classes(model, classes, templates, hook_name):
    last = _last_vectors(model, _fill(sorted(classes), templates), hook_name)
    return last.unflatten(0, (len(classes), len(templates))).mean(dim=1)[[1, 0, 2]]


@wrong("class_means", mistake="whole model runs", hint="stop_at_layer")
def means_never_stopping(model, classes, templates, hook_name):
    prompts, kept = _fill(classes, templates), []
    tokens = model.to_tokens(prompts, padding_side="right")
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(hook_name, lambda x, hook: kept.append(x.clone()))])
    last = kept[0][torch.arange(len(prompts)), _ends(model, prompts)]
    return last.unflatten(0, (len(classes), len(templates))).mean(dim=1)


# pca


def _svd(x, k, centre=True):
    centred = x - x.mean(dim=0) if centre else x
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return centred, singular, (components * largest.sign())[:k]


def _refuse_large(x, k):
    if k > min(x.shape):
        raise ValueError(f"not {k} components")


@right("pca")
def pca_by_eigh(x, k):
    """From the covariance matrix, in double precision."""
    _refuse_large(x, k)
    centred = (x - x.mean(dim=0)).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred)
    components = vectors.flip(1)[:, :k].T
    components = components * torch.stack([row[row.abs().argmax()].sign() for row in components])[:, None]
    shares = (variances.flip(0)[:k] / variances.sum()).nan_to_num(0)
    return (centred @ components.T).float(), components.float(), shares.float()


@right("pca")
def pca_from_left_vectors(x, k):
    _refuse_large(x, k)
    centred = x - x.mean(dim=0, keepdim=True)
    left, singular, right_vectors = torch.linalg.svd(centred, full_matrices=False)
    where = right_vectors.abs().max(dim=1).indices
    signs = torch.where(right_vectors[torch.arange(len(where)), where] < 0, -1.0, 1.0)
    total = centred.norm().square()
    ratio = singular.square() / total if total > 0 else torch.zeros_like(singular)
    return (left * singular * signs)[:, :k], (right_vectors * signs[:, None])[:k], ratio[:k]


@wrong("pca", mistake="not centred", hint="centre")
def pca_uncentred(x, k):
    rows, singular, components = _svd(x, k, centre=False)
    return rows @ components.T, components, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="coordinates of the uncentred rows", hint="subtract the mean row")
def pca_coords_uncentred(x, k):
    _, singular, components = _svd(x, k)
    return x @ components.T, components, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="ratio of the kept variance", hint="total")
def pca_ratio_of_kept(x, k):
    centred, singular, components = _svd(x, k)
    return centred @ components.T, components, singular[:k].square() / singular[:k].square().sum()


@wrong("pca", mistake="singular values not squared", hint="square")
def pca_not_squared(x, k):
    centred, singular, components = _svd(x, k)
    return centred @ components.T, components, singular[:k] / singular.sum()


@wrong("pca", mistake="signs left to the library", hint="magnitude")
def pca_any_sign(x, k):
    centred = x - x.mean(dim=0)
    left, singular, components = torch.linalg.svd(centred, full_matrices=False)
    return (left * singular)[:, :k], components[:k], singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="largest entry instead of largest magnitude", hint="magnitude")
def pca_sign_by_first_entry(x, k):
    centred, singular, components = _svd(x, k)
    components = components * components[:, :1].sign()
    return centred @ components.T, components, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="components flipped, coordinates not", hint="flipped")
def pca_coords_not_flipped(x, k):
    centred = x - x.mean(dim=0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    _, _, components = _svd(x, k)
    return (left * singular)[:, :k], components, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="coordinates without scale", hint="units of `x`")
def pca_whitened(x, k):
    centred, singular, components = _svd(x, k)
    return centred @ components.T / singular[:k], components, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="components as columns", hint="transposed")
def pca_transposed(x, k):
    centred, singular, components = _svd(x, k)
    return centred @ components.T, components.T, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="nan where all rows are equal", hint="0 / 0")
def pca_of_equal_rows_is_nan(x, k):
    _refuse_large(x, k)
    centred, singular, components = _svd(x, k)
    return centred @ components.T, components, singular[:k].square() / singular.square().sum()


@wrong("pca", mistake="too large k is cut silently", hint="without a word")
def pca_cut_silently(x, k):
    return reference_pca(x, min(k, *x.shape))


# calendar_order_score


@right("calendar_order_score")
def score_by_pairs(coords):
    """Two points are neighbours if all others lie on one side, going round."""
    points = [complex(*row) for row in (coords - coords.mean(0)).tolist()]
    order = sorted(range(len(points)), key=lambda i: math.atan2(points[i].imag, points[i].real))
    beside = {frozenset(pair) for pair in itertools.pairwise([*order, order[0]])}
    return sum({i, (i + 1) % len(order)} in beside for i in range(len(order))) / len(order)


@right("calendar_order_score")
def score_by_tensors(coords):
    centred = coords - coords.mean(dim=0, keepdim=True)
    place = torch.angle(torch.complex(centred[:, 0], centred[:, 1])).argsort().argsort()
    steps = (place.roll(-1) - place) % len(coords)
    return ((steps == 1) | (steps == len(coords) - 1)).double().mean().item()


def _places(coords, centre=True):
    x, y = (coords - coords.mean(dim=0) if centre else coords).unbind(dim=1)
    return torch.atan2(y, x).argsort().argsort().tolist()


@wrong("calendar_order_score", mistake="ring not closed in the sorted order", hint="modulo n")
def score_open_order(coords):
    place = _places(coords)
    n = len(place)
    return sum(abs(place[(i + 1) % n] - place[i]) == 1 for i in range(n)) / n


@wrong("calendar_order_score", mistake="Sunday and Monday are no pair", hint="Sunday and Monday")
def score_open_calendar(coords):
    place = _places(coords)
    n = len(place)
    return sum((place[i + 1] - place[i]) % n in (1, n - 1) for i in range(n - 1)) / (n - 1)


@wrong("calendar_order_score", mistake="one direction only", hint="counter-clockwise")
def score_one_way(coords):
    place = _places(coords)
    n = len(place)
    return sum((place[(i + 1) % n] - place[i]) % n == 1 for i in range(n)) / n


@wrong("calendar_order_score", mistake="angles around the origin", hint="centroid")
def score_around_origin(coords):
    place = _places(coords, centre=False)
    n = len(place)
    return sum((place[(i + 1) % n] - place[i]) % n in (1, n - 1) for i in range(n)) / n


@wrong("calendar_order_score", mistake="nearest neighbours instead of angular order", hint="angles")
def score_by_distance(coords):
    apart = torch.cdist(coords, coords).fill_diagonal_(math.inf)
    nearest = apart.topk(2, largest=False).indices.tolist()
    n = len(coords)
    return sum((i + 1) % n in nearest[i] for i in range(n)) / n


@wrong("calendar_order_score", mistake="seven, whatever the number of rows", hint="number of rows")
def score_of_seven(coords):
    place = _places(coords)
    return sum((place[(i + 1) % 7] - place[i]) % 7 in (1, 6) for i in range(7)) / 7 if len(place) >= 7 else 0.0


# calendar_order_p_value


@right("calendar_order_p_value")
def p_by_counting(coords):
    orders = 1
    for seats in range(3, len(coords)):
        orders *= seats
    return 1 / orders if reference_score(coords) > 1 - 1e-9 else 1.0


@wrong("calendar_order_p_value", mistake="reflections counted as different", hint="mirrored")
def p_one_way(coords):
    return 1 / math.factorial(len(coords) - 1) if reference_score(coords) == 1 else 1.0


@wrong("calendar_order_p_value", mistake="orders in a row", hint="rotated")
def p_in_a_row(coords):
    return 1 / math.factorial(len(coords)) if reference_score(coords) == 1 else 1.0


@wrong("calendar_order_p_value", mistake="always seven", hint="circular order")
def p_of_seven(coords):
    return 1 / 360 if reference_score(coords) == 1 else 1.0


@wrong("calendar_order_p_value", mistake="one minus the score", hint="circular orders")
def p_from_score(coords):
    return 1 - reference_score(coords)


@wrong("calendar_order_p_value", mistake="does not look at the points", hint="calendar_order_score")
def p_without_looking(coords):
    return 2 / math.factorial(len(coords) - 1)


@wrong("calendar_order_p_value", mistake="zero below the full order", hint="below 1")
def p_zero_else(coords):
    return 2 / math.factorial(len(coords) - 1) if reference_score(coords) == 1 else 0.0


# features_active_on


@right("features_active_on")
def features_one_sorted_set(model, sae, prompts, threshold=0.0):
    last = _last_vectors(model, list(prompts), sae.cfg.metadata.hook_name)
    rows = sae.encode(last)
    return torch.tensor(sorted({latent for row in rows for latent in (row > threshold).nonzero().flatten().tolist()}))


def _all_acts(model, sae, prompts, **options):
    hook_name = sae.cfg.metadata.hook_name
    return [sae.encode(_read(model, model.to_tokens(prompt, **options), hook_name)[0]) for prompt in prompts]


def _numbers(mask):
    return mask.nonzero().squeeze(1)


@wrong("features_active_on", mistake="all positions, the sink among them", hint="attention sink")
def features_of_all_positions(model, sae, prompts, threshold=0.0):
    return _numbers((torch.cat(_all_acts(model, sae, prompts)) > threshold).any(dim=0))


@wrong("features_active_on", mistake="no special token in front", hint="special token")
def features_without_special(model, sae, prompts, threshold=0.0):
    acts = torch.stack([acts[-1] for acts in _all_acts(model, sae, prompts, prepend_bos=False)])
    return _numbers((acts > threshold).any(dim=0))


@wrong("features_active_on", mistake="active on every prompt", hint="`any`, not `all`")
def features_of_every_prompt(model, sae, prompts, threshold=0.0):
    acts = torch.stack([acts[-1] for acts in _all_acts(model, sae, prompts)])
    return _numbers((acts > threshold).all(dim=0))


@wrong("features_active_on", mistake="mean over prompts", hint="*mean* over prompts")
def features_of_the_mean(model, sae, prompts, threshold=0.0):
    acts = torch.stack([acts[-1] for acts in _all_acts(model, sae, prompts)])
    return _numbers(acts.mean(dim=0) > threshold)


@wrong("features_active_on", mistake="threshold ignored", hint="`threshold` itself")
def features_above_zero(model, sae, prompts, threshold=0.0):
    return reference_features(model, sae, prompts, 0.0)


@wrong("features_active_on", mistake="pairs of prompt and latent", hint="Sorted, each once")
def features_with_doubles(model, sae, prompts, threshold=0.0):
    acts = torch.stack([acts[-1] for acts in _all_acts(model, sae, prompts)])
    return (acts > threshold).nonzero()[:, 1]


@wrong("features_active_on", mistake="a mask", hint="`mask.nonzero()`")
def features_as_mask(model, sae, prompts, threshold=0.0):
    acts = torch.stack([acts[-1] for acts in _all_acts(model, sae, prompts)])
    return (acts > threshold).any(dim=0)


@wrong("features_active_on", mistake="a pass for each prompt, to the end", hint="one pass")
def features_never_stopping(model, sae, prompts, threshold=0.0):
    found = []
    for prompt in prompts:
        with torch.no_grad():
            _, cache = model.run_with_cache(prompt, names_filter=sae.cfg.metadata.hook_name)
        found.append(sae.encode(cache[sae.cfg.metadata.hook_name][0, -1]))
    return _numbers((torch.stack(found) > threshold).any(dim=0))


# decoder_pca


@right("decoder_pca")
def decoder_pca_by_gram(sae, latents, k):
    rows = sae.W_dec.index_select(0, latents).double()
    rows = rows - rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    return (vectors * values.sqrt())[:, :k].float(), (values / values.sum())[:k].float()


@wrong("decoder_pca", mistake="the whole decoder copied", hint="copies the whole decoder")
def decoder_pca_of_a_copy(sae, latents, k):
    coords, _, ratio = reference_pca(sae.W_dec.clone()[latents], k)
    return coords, ratio


@wrong("decoder_pca", mistake="the first rows instead of those asked for", hint="keep the order")
def decoder_pca_of_the_first(sae, latents, k):
    coords = reference_pca(sae.W_dec[: len(latents)], k)[0]
    return coords, reference_decoder_pca(sae, latents, k)[1]


@wrong("decoder_pca", mistake="rows of the encoder", hint="*decoder* rows")
def decoder_pca_of_the_encoder(sae, latents, k):
    coords, _, _ = reference_pca(sae.W_enc[:, latents].T, k)
    return coords, reference_decoder_pca(sae, latents, k)[1]


@wrong("decoder_pca", mistake="latents sorted", hint="keep the order")
def decoder_pca_sorted(sae, latents, k):
    return reference_decoder_pca(sae, latents.sort().values, k)


@wrong("decoder_pca", mistake="shares of the kept components", hint="*total*")
def decoder_pca_share_of_kept(sae, latents, k):
    coords, ratio = reference_decoder_pca(sae, latents, k)
    return coords, ratio / ratio.sum()


@wrong("decoder_pca", mistake="not centred", hint="centred rows")
def decoder_pca_uncentred(sae, latents, k):
    left, singular, _ = torch.linalg.svd(sae.W_dec[latents], full_matrices=False)
    return (left * singular)[:, :k], (singular**2 / (singular**2).sum())[:k]


@wrong("decoder_pca", mistake="in the decoder's precision", hint="whatever the decoder is stored in")
def decoder_pca_in_its_own_precision(sae, latents, k):
    coords, _, ratio = reference_pca(sae.W_dec[latents], k)
    return coords, ratio


# circle_cluster


@right("circle_cluster")
def cluster_with_scipy_distances(sae, class_acts, latents, n_clusters):
    rows = sae.W_dec[latents].double().numpy()
    if len(rows) < n_clusters:
        raise ValueError("fewer latents than clusters")
    labels = hierarchy.fcluster(hierarchy.linkage(rows, "average", metric="cosine"), n_clusters, "maxclust")
    return _best_cluster(sae, class_acts, latents, labels)


def _best_cluster(sae, class_acts, latents, labels, least=0.01, reconstruct=None, by_variance=True):
    best, winner = None, None
    for label in sorted(set(labels.tolist())):
        cluster = latents[torch.from_numpy(labels == label)].sort().values
        means = (reconstruct or _reconstruction)(sae, class_acts, cluster)
        coords, _, ratio = reference_pca(means, 2)
        key = (reference_score(coords), float(means.var(dim=0).sum()) if by_variance else 0.0)
        if ratio[1] >= least and (best is None or key > best):
            best, winner = key, cluster
    if winner is None:
        raise ValueError("only lines")
    return winner


def _reconstruction(sae, class_acts, cluster):
    return class_acts[:, cluster] @ sae.W_dec[cluster]


def _labels(rows, n_clusters, metric="cosine"):
    if len(rows) < n_clusters:
        raise ValueError("fewer latents than clusters")
    return hierarchy.fcluster(hierarchy.linkage(rows.numpy(), "average", metric=metric), n_clusters, "maxclust")


@wrong("circle_cluster", mistake="Euclidean distance", hint="cosine, not Euclidean")
def cluster_by_distance(sae, class_acts, latents, n_clusters):
    return _best_cluster(sae, class_acts, latents, _labels(sae.W_dec[latents], n_clusters, "euclidean"))


@wrong("circle_cluster", mistake="magnitude of the cosine", hint="not its magnitude")
def cluster_by_magnitude(sae, class_acts, latents, n_clusters):
    rows = torch.nn.functional.normalize(sae.W_dec[latents], dim=1)
    if len(rows) < n_clusters:
        raise ValueError("fewer latents than clusters")
    apart = (1 - (rows @ rows.T).abs()).clamp_min(0)[*torch.triu_indices(len(rows), len(rows), 1)]
    labels = hierarchy.fcluster(hierarchy.linkage(apart.numpy(), "average"), n_clusters, "maxclust")
    return _best_cluster(sae, class_acts, latents, labels)


@wrong("circle_cluster", mistake="lines count", hint="on a line")
def cluster_that_may_be_a_line(sae, class_acts, latents, n_clusters):
    return _best_cluster(sae, class_acts, latents, _labels(sae.W_dec[latents], n_clusters), least=-1.0)


@wrong("circle_cluster", mistake="the largest cluster", hint="more than a line")
def largest_cluster(sae, class_acts, latents, n_clusters):
    labels = _labels(sae.W_dec[latents], n_clusters)
    largest = max(set(labels.tolist()), key=labels.tolist().count)
    return latents[torch.from_numpy(labels == largest)].sort().values


@wrong("circle_cluster", mistake="places instead of latents", hint="places in `latents`")
def cluster_of_places(sae, class_acts, latents, n_clusters):
    best = _best_cluster(sae, class_acts, latents, _labels(sae.W_dec[latents], n_clusters))
    return torch.isin(latents, best).nonzero().flatten()


@wrong("circle_cluster", mistake="the first of equal scores", hint="variance of the reconstruction")
def cluster_first_found(sae, class_acts, latents, n_clusters):
    labels = _labels(sae.W_dec[latents], n_clusters)
    return _best_cluster(sae, class_acts, latents, labels, by_variance=False)


@wrong("circle_cluster", mistake="everything reconstructed at once", hint="return one cluster")
def cluster_of_one(sae, class_acts, latents, n_clusters):
    _best_cluster(sae, class_acts, latents, _labels(sae.W_dec[latents], n_clusters))
    return latents.sort().values


@wrong("circle_cluster", mistake="most variance, whatever the order", hint="scrambled order")
def cluster_of_most_variance(sae, class_acts, latents, n_clusters):
    def spread(cluster):
        means = _reconstruction(sae, class_acts, cluster)
        return float(means.var(dim=0).sum()) if reference_pca(means, 2)[2][1] > 0.01 else -1.0

    labels = torch.from_numpy(_labels(sae.W_dec[latents], n_clusters))
    return max((latents[labels == label].sort().values for label in labels.unique()), key=spread)


# separability_index


def _information(points, n_bins, log=np.log2):
    joint, _, _ = np.histogram2d(*points.double().numpy().T, bins=n_bins)
    joint = joint / joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    full = joint > 0
    return float((joint[full] * log(joint[full] / expected[full])).sum())


def _turned(points, step, n_angles, whole=math.pi / 2):
    angle = whole * step / n_angles
    return points @ torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


@right("separability_index")
def separability_with_numpy(points, n_angles=45, n_bins=8):
    return min(_information(_turned(points, step, n_angles), n_bins) for step in range(n_angles))


@wrong("separability_index", mistake="nats", hint="log2")
def separability_in_nats(points, n_angles=45, n_bins=8):
    return min(_information(_turned(points, step, n_angles), n_bins, np.log) for step in range(n_angles))


@wrong("separability_index", mistake="maximum over rotations", hint="*minimum*")
def separability_maximum(points, n_angles=45, n_bins=8):
    return max(_information(_turned(points, step, n_angles), n_bins) for step in range(n_angles))


@wrong("separability_index", mistake="no rotation", hint="Rotate the points")
def separability_as_it_stands(points, n_angles=45, n_bins=8):
    return _information(points, n_bins)


@wrong("separability_index", mistake="correlation instead of information", hint="p(i, j)")
def separability_by_correlation(points, n_angles=45, n_bins=8):
    return min(abs(float(torch.corrcoef(_turned(points, step, n_angles).T)[0, 1])) for step in range(n_angles))


@wrong("separability_index", mistake="bins ten wide whatever is asked", hint="Bins run from")
def separability_fixed_bins(points, n_angles=45, n_bins=8):
    return min(_information(_turned(points, step, n_angles), 10) for step in range(n_angles))


# mixture_index


def _mixture(points, epsilon=0.1, n_angles=90, offsets=True, relative=True, centred=False, pick=max):
    best = []
    for step in range(n_angles):
        along = _turned(points, step, n_angles, math.pi)[:, 0]
        away = along[:, None] - (along if offsets else torch.zeros(1))[None, :]
        measured = away - away.mean(dim=0) if centred else away
        size = measured.square().mean(dim=0).sqrt() if relative else torch.ones(away.shape[1])
        best += (away.abs() < epsilon * size).float().mean(dim=0).tolist()
    return pick(best)


@right("mixture_index")
def mixture_by_sorting(points, epsilon=0.1, n_angles=120):
    best = 0.0
    for step in range(n_angles):
        along = _turned(points, step, n_angles, math.pi)[:, 0].sort().values
        size = epsilon * ((along.mean() - along).square() + along.var(correction=0)).sqrt()
        inside = torch.searchsorted(along, along + size) - torch.searchsorted(along, along - size, right=True)
        best = max(best, inside.max().item() / len(along))
    return best


@wrong("mixture_index", mistake="lines through the origin only", hint="The line may lie anywhere")
def mixture_through_the_origin(points, epsilon=0.1, n_angles=90):
    return _mixture(points, epsilon, n_angles, offsets=False)


@wrong("mixture_index", mistake="epsilon not relative", hint="size of the cloud does not matter")
def mixture_absolute(points, epsilon=0.1, n_angles=30):
    return _mixture(points, epsilon, n_angles, relative=False)


@wrong("mixture_index", mistake="smallest instead of largest", hint="*largest*")
def mixture_smallest(points, epsilon=0.1, n_angles=30):
    return _mixture(points, epsilon, n_angles, pick=min)


@wrong("mixture_index", mistake="two directions only", hint="all directions")
def mixture_along_the_axes(points, epsilon=0.1, n_angles=90):
    return _mixture(points, epsilon, 2)


@wrong("mixture_index", mistake="yardstick of the centred projection", hint="distance from *that* line")
def mixture_centred_yardstick(points, epsilon=0.1, n_angles=30):
    return _mixture(points, epsilon, n_angles, centred=True)


# rotate_in_plane


@right("rotate_in_plane")
def rotate_by_matrix(x, plane, centre, angle):
    first, second = plane
    swap = torch.outer(first, second) - torch.outer(second, first)
    keep = torch.eye(x.shape[1]) + (math.cos(angle) - 1) * plane.T @ plane
    return (x - centre) @ (keep + math.sin(angle) * swap) + centre


@right("rotate_in_plane")
def rotate_as_complex(x, plane, centre, angle):
    flat = (x - centre) @ plane.T
    turned = torch.view_as_real(torch.view_as_complex(flat.contiguous()) * complex(math.cos(angle), math.sin(angle)))
    return x - flat @ plane + turned @ plane


def _turn(angle):
    return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


@wrong("rotate_in_plane", mistake="the part outside the plane is lost", hint="outside the plane")
def rotate_losing_the_rest(x, plane, centre, angle):
    return (x - centre) @ plane.T @ _turn(angle) @ plane + centre


@wrong("rotate_in_plane", mistake="turns the other way", hint="other way")
def rotate_backwards(x, plane, centre, angle):
    flat = (x - centre) @ plane.T
    return x + (flat @ _turn(-angle) - flat) @ plane


@wrong("rotate_in_plane", mistake="about the origin", hint="about `centre`")
def rotate_about_origin(x, plane, centre, angle):
    flat = x @ plane.T
    return x + (flat @ _turn(angle) - flat) @ plane


@wrong("rotate_in_plane", mistake="takes degrees", hint="radians")
def rotate_in_degrees(x, plane, centre, angle):
    flat = (x - centre) @ plane.T
    return x + (flat @ _turn(math.radians(angle)) - flat) @ plane


@wrong("rotate_in_plane", mistake="unturned part not taken out", hint="taking the unturned part out")
def rotate_adding(x, plane, centre, angle):
    return x + (x - centre) @ plane.T @ _turn(angle) @ plane


@wrong("rotate_in_plane", mistake="centre not added again", hint="add it again")
def rotate_left_centred(x, plane, centre, angle):
    flat = (x - centre) @ plane.T
    return x - centre + (flat @ _turn(angle) - flat) @ plane


# patch_subspace


@right("patch_subspace")
def patch_by_parts(x, target, components):
    project = components.T @ components
    return x - x @ project + target @ project


@right("patch_subspace")
def patch_by_loop(x, target, components):
    out = x.clone()
    for component in components:
        out = out + torch.outer((target - x) @ component, component)
    return out


@wrong("patch_subspace", mistake="old part not taken out", hint="never taken out")
def patch_adding(x, target, components):
    return x + target @ components.T @ components


@wrong("patch_subspace", mistake="everything exchanged", hint="everything was exchanged")
def patch_everything(x, target, components):
    return target.clone()


@wrong("patch_subspace", mistake="the complement exchanged", hint="wrong part")
def patch_complement(x, target, components):
    return target + (x - target) @ components.T @ components


@wrong("patch_subspace", mistake="only the subspace is left", hint="outside the subspace is gone")
def patch_only_inside(x, target, components):
    return target @ components.T @ components


@wrong("patch_subspace", mistake="first coordinates instead of components", hint="projection of the difference")
def patch_first_coordinates(x, target, components):
    out = x.clone()
    out[:, : len(components)] = target[:, : len(components)]
    return out


# next_tokens_after_patch


def _patched_logits(model, tokens, hook_name, edit):
    def replace(resid, hook):
        resid = resid.clone()
        edit(resid)
        return resid

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, replace)])


@right("next_tokens_after_patch")
def patch_with_mask(model, tokens, hook_name, position, replacement):
    here = torch.zeros(tokens.shape[1], 1, dtype=torch.bool)
    here[position] = True

    def replace(resid, hook):
        return torch.where(here, replacement[:, None], resid)

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, replace)])
    return logits[:, -1].softmax(dim=-1).max(dim=-1).indices


@right("next_tokens_after_patch")
def patch_with_hooks_context(model, tokens, hook_name, position, replacement):
    def replace(resid, hook):
        resid = resid.clone()
        resid[:, position, :] = replacement
        return resid

    with torch.no_grad(), model.hooks(fwd_hooks=[(hook_name, replace)]):
        return model(tokens)[:, -1].topk(1).indices[:, 0]


@wrong("next_tokens_after_patch", mistake="reads the prediction at the patched position", hint="*last* token")
def reading_at_the_patch(model, tokens, hook_name, position, replacement):
    def edit(resid):
        resid[:, position] = replacement

    return _patched_logits(model, tokens, hook_name, edit)[:, position].argmax(dim=-1)


@wrong("next_tokens_after_patch", mistake="the hook returns nothing", hint="return")
def patching_a_copy(model, tokens, hook_name, position, replacement):
    def replace(resid, hook):
        resid = resid.clone()
        resid[:, position] = replacement

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, replace)])[:, -1].argmax(dim=-1)


@wrong("next_tokens_after_patch", mistake="patches every position", hint="only the named position")
def patching_everywhere(model, tokens, hook_name, position, replacement):
    def edit(resid):
        resid[:] = replacement[:, None]

    return _patched_logits(model, tokens, hook_name, edit)[:, -1].argmax(dim=-1)


@wrong("next_tokens_after_patch", mistake="patches the last token", hint="position")
def patching_the_last(model, tokens, hook_name, position, replacement):
    def edit(resid):
        resid[:, -1] = replacement

    return _patched_logits(model, tokens, hook_name, edit)[:, -1].argmax(dim=-1)


@wrong("next_tokens_after_patch", mistake="adds instead of replacing", hint="replacement")
def patching_by_adding(model, tokens, hook_name, position, replacement):
    def edit(resid):
        resid[:, position] += replacement

    return _patched_logits(model, tokens, hook_name, edit)[:, -1].argmax(dim=-1)


@wrong("next_tokens_after_patch", mistake="a hook stays on the model", hint="add_hook")
def patching_for_ever(model, tokens, hook_name, position, replacement):
    def replace(resid, hook):
        resid = resid.clone()
        resid[:, position] = replacement
        return resid

    model.add_hook(hook_name, replace)
    with torch.no_grad():
        return model(tokens)[:, -1].argmax(dim=-1)
