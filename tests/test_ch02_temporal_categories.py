"""Checks of chapter 02. Activations are read with plain torch hooks, one prompt at a time; p-values are held against
all possible shuffles of a few rows, accuracies against a loop that leaves one row out after the other."""

import itertools
from functools import cache

import torch

from utils.checks import expect
from utils.checks.exercises import Exercise

CATEGORY_MEANS = Exercise(
    "category_means",
    number="2.1",
    title="Two means, one pass",
    difficulty=2,
    importance=4,
    minutes=20,
    hints=(
        """
        This is `class_means` of chapter 01 with lists of prompts in place of templates, and one step more: the
        dictionary's latents of every prompt. `sae.cfg.metadata.hook_name` says where to read.
        """,
        """
        Put all prompts into one list, run them once with padding on the right, and read each at its own last token:
        `[n_prompts, d_model]`. `sae.encode` of that gives `[n_prompts, d_sae]`. Average last: the latents of a mean are
        not the mean of the latents.
        """,
        """
        `resid.split([len(prompts) for prompts in categories.values()])` cuts the rows into categories again, and
        likewise for the latents; `.mean(dim=0)` of each piece. Return two dicts with the categories' names as keys.
        """,
    ),
)

LAYER_GEOMETRY = Exercise(
    "layer_geometry",
    number="2.2",
    title="Four depths",
    difficulty=2,
    importance=3,
    minutes=20,
    hints=(
        """
        For every layer: the mean of each category at the last token, then `mine.pca` of chapter 01 on the means. Leave
        the category `neutral` out before anything else.
        """,
        """
        One pass can serve all layers: give `run_with_hooks` one hook for each, and stop behind the deepest. Each hook
        keeps `resid[torch.arange(n_prompts), last]`.
        """,
        """
        `means` is a matrix with one row per *category*, five rows, not a hundred. `coords, _, ratio = mine.pca(means,
        k)`, and the answer is `{layer: (coords, ratio)}`.
        """,
    ),
)

TOP_FEATURES = Exercise(
    "top_features_vs_baseline",
    number="2.3",
    title="Against the baseline",
    difficulty=1,
    importance=3,
    minutes=10,
    hints=(
        "Subtract two vectors of length d_sae, and find the largest entries of the difference.",
        "`tensor.topk(k)` gives values and places, largest first. The places are the latents' numbers.",
        """
        `pd.DataFrame({"latent": ..., "difference": ..., "mean": mean[latent], "baseline_mean":
        baseline_mean[latent]})`, with `.tolist()` on each column.
        """,
    ),
)

AUDIT = Exercise(
    "activation_audit",
    number="2.4",
    title="The number that is always the same",
    difficulty=2,
    importance=4,
    minutes=20,
    hints=(
        """
        For each prompt you want `acts` of shape `[seq, d_sae]`: read the stream at the dictionary's hook, encode it.
        Row 0 is the sink.
        """,
        """
        The maximum over everything, and over `acts[1:]`. For L0, count per position: `(acts > 0).sum(dim=1)` is how
        many latents are active there; the mean of that over positions, and over positions from 1 on.
        """,
        "Running prompt by prompt keeps padding out. Batched, row i may only use its first `length_i` positions.",
    ),
)

P_VALUES = Exercise(
    "max_statistic_p_values",
    number="2.5",
    title="Four thousand chances to be lucky",
    difficulty=4,
    importance=5,
    minutes=35,
    hints=(
        """
        If the category made no difference, its labels could be dealt out anew among the rows, and the differences of
        means would look just as large. Shuffle, compute *all* d differences, and keep only the largest. Do that often:
        these maxima are what the true differences have to beat.
        """,
        """
        Keep the rows of the two categories only. One shuffle is a vector of weights over these rows: 1/n_category where
        a row is dealt to the category, -1/n_baseline elsewhere. All shuffles together are a matrix, and `weights @
        acts` gives every difference of every shuffle at once.
        """,
        """
        `largest = (weights @ acts).amax(dim=1)`, one number per shuffle; `count = (largest[:, None] >=
        true_difference).sum(dim=0)`; p = (1 + count) / (1 + n_permutations). Shuffles from a seed: `torch.rand(n, rows,
        generator=torch.Generator().manual_seed(seed)).argsort(dim=1)`.
        """,
    ),
)

LEAVE_ONE_OUT = Exercise(
    "leave_one_out_accuracy",
    number="2.6",
    title="Without yourself",
    difficulty=3,
    importance=4,
    minutes=20,
    hints=(
        "For every row: compute the mean of each class from all rows but this one, and see which mean is nearest.",
        """
        Only one mean changes when a row is left out: that of its own class. With class sum s and size m, it is `(s -
        row) / (m - 1)`.
        """,
        """
        A loop over the rows with `mean[own] = (total[own] - x[i]) / (size[own] - 1)` is fast enough. Find out how the
        labels are numbered with `labels.unique(return_inverse=True)`, and mind a class of one: m - 1 is 0.
        """,
    ),
)


# How the checks read the model: torch hooks on its modules, whole prompts one at a time.


@cache
def stream_at(model, prompt, layer, point="pre"):
    """The residual stream [seq, d_model] of one prompt as it enters block `layer`, or as it leaves it."""
    seen = []
    module = model.blocks[layer]
    if point == "pre":
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(
            lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    with handle, torch.no_grad():
        model(model.to_tokens(prompt), stop_at_layer=layer + 1)
    return seen[0][0].clone()


@cache
def stand_in(hook_name, d_sae=48, seed=0, threshold=0.4):
    """A small random dictionary at a hook: enough to see whether latents are computed right."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    sae = StandardSAE(StandardSAEConfig(d_in=576, d_sae=d_sae, metadata=SAEMetadata(hook_name=hook_name)))
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(old.shape, generator=generator) for name, old in sae.state_dict().items()}
    weights["W_enc"] /= 24
    weights["b_enc"] = torch.full((d_sae,), -threshold)
    weights["b_dec"] /= 10
    sae.load_state_dict(weights)
    return sae.eval().requires_grad_(False)


def encoded(sae, stream):
    """The latents of a stand-in, by their definition."""
    return ((stream - sae.b_dec) @ sae.W_enc + sae.b_enc).clamp_min(0)


def is_near(got, want, tolerance=1e-4):
    """Whether two tensors agree relative to the norm of the wanted one."""
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return False
    return bool((got.detach() - want).norm() <= tolerance * want.norm())


def near(got, want, *, name, why, mistakes=(), hint=None):
    """Demand `want` to 1e-4 of its norm; `mistakes` pairs known wrong answers with their hints."""
    got = expect.shape(got, want.shape, name=name, why=why, hint=hint).detach().cpu()
    if is_near(got, want):
        return
    hint = next((said for wrong, said in mistakes if is_near(got, wrong)), hint)
    raise expect.CheckFailed(
        expected=f"{name} = {expect.describe(want)}", returned=expect.describe(got), why=why, hint=hint
    )


def columns_of(table, names, rows):
    """The columns of a table as lists, after demanding that they and the number of rows are right."""
    expect.that(
        type(table).__name__ == "DataFrame",
        expected=f"a pandas DataFrame with the columns {', '.join(names)}",
        returned=table,
        why="the signature promises a table",
    )
    expect.that(
        set(table.columns) == set(names),
        expected=f"the columns {', '.join(names)}",
        returned=f"the columns {', '.join(map(str, table.columns))}",
        why="later cells ask for the columns by name",
    )
    expect.that(
        len(table) == rows, expected=f"{rows} rows", returned=f"{len(table)} rows", why="a row for each one asked for"
    )
    return {name: table[name].tolist() for name in names}


# 2.1

TALES = {
    "then": ["Long ago a letter was sent.", "By then a horse was fed.", "Once a bridge was built."],
    "now": ["Even now a letter is sent.", "For now a horse is fed."],
}
UNEVEN = {
    "soon": ["Soon a letter will be sent to the mayor of the town.", "It will rain."],
    "ever": ["Water boils.", "A horse eats grass and sleeps, as a rule.", "Snow is white in winter"],
}
OF_THE_MEAN = """
    These are the latents of the mean activation. Asked for is the mean of the latents: encode every prompt first, then
    average. A ReLU stands between the two, so they differ.
    """
PADDED_COLUMN = """
    The rows were read at the last *column*, which is padding for every prompt but the longest. Read each row at its own
    last token: `model.to_tokens(prompt).shape[1] - 1` says where that is.
    """
PADDING_SEEN = """
    The prompts were padded on the left, and the model looked at the padding. Pad on the right (`to_tokens(prompts,
    padding_side="right")`) and read each row at its own last token.
    """
ALL_POSITIONS = "This is a mean over all tokens of the prompts. Only the last token of each is asked for."
SWAPPED = "The two are swapped: first the stream, then the latents."


def last_rows(model, prompts, layer, point="pre"):
    return torch.stack([stream_at(model, prompt, layer, point)[-1] for prompt in prompts])


@cache
def read_batch(model, prompts, layer, side):
    """What somebody finds in the last column of a padded batch."""
    tokens = model.to_tokens(list(prompts), padding_side=side)
    seen = []
    handle = model.blocks[layer].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
    )
    with handle, torch.no_grad():
        model(tokens, attention_mask=torch.ones_like(tokens), stop_at_layer=layer + 1)
    return seen[0][:, -1].clone()


def two_dicts(result, categories):
    resid, latents = expect.unpack(result, ("resid", "latents"))
    for name, means in (("resid", resid), ("latents", latents)):
        expect.that(
            isinstance(means, dict) and list(means) == list(categories),
            expected=f"`{name}` as a dict with the keys {', '.join(categories)}, in this order",
            returned=f"the keys {', '.join(map(str, means))}" if isinstance(means, dict) else means,
            why="a mean for each category, by its name",
        )
    return resid, latents


@CATEGORY_MEANS.check(
    "means of the stream and means of the latents",
    points=3,
    hint="Encode each prompt's activation at the last token, then average activations and latents over the category.",
)
def test_category_means(impl, model):
    sae = stand_in("blocks.3.hook_resid_pre")
    resid, latents = two_dicts(impl.category_means(model, sae, TALES), TALES)
    for name, prompts in TALES.items():
        rows = last_rows(model, prompts, 3)
        every = torch.stack([stream_at(model, prompt, 3).mean(dim=0) for prompt in prompts]).mean(dim=0)
        want, acts = rows.mean(dim=0), encoded(sae, rows)
        near(
            resid[name],
            want,
            name=f"`resid[{name!r}]`",
            why="each prompt was run alone, and its last token's stream averaged over the category",
            hint=SWAPPED if is_near(latents[name], want) else None,
            mistakes=[
                (every, ALL_POSITIONS),
                (rows.sum(dim=0), "This is the sum over the prompts, not the mean."),
                (rows[0], "Only the first prompt was used."),
            ],
        )
        near(
            latents[name],
            acts.mean(dim=0),
            name=f"`latents[{name!r}]`",
            why="each prompt's activation was encoded by itself, and the latents averaged over the category",
            mistakes=[
                (encoded(sae, want), OF_THE_MEAN),
                (acts.sum(dim=0), "This is the sum over the prompts, not the mean."),
                (encoded(sae, every), OF_THE_MEAN),
                (acts.amax(dim=0), "This is the largest activation of the category's prompts, not the mean."),
                (
                    (acts > 0).float().mean(dim=0),
                    "This is the share of prompts on which a latent is active. Its mean activation is asked for.",
                ),
            ],
        )


@CATEGORY_MEANS.check(
    "padding leaves no trace",
    points=2,
    hint="""
        Prompts of different length share a batch here, and categories differ in size. Padding must be neither read nor
        looked at.
        """,
)
def test_uneven_categories(impl, model):
    sae = stand_in("blocks.2.hook_resid_pre", seed=1)
    resid, latents = two_dicts(impl.category_means(model, sae, UNEVEN), UNEVEN)
    prompts = tuple(prompt for told in UNEVEN.values() for prompt in told)
    read = {side: read_batch(model, prompts, 2, side) for side in ("right", "left")}
    places = {"soon": slice(0, 2), "ever": slice(2, 5)}
    for name, told in UNEVEN.items():
        rows = last_rows(model, told, 2)
        mistakes = [
            (read["right"][places[name]].mean(dim=0), PADDED_COLUMN),
            (read["left"][places[name]].mean(dim=0), PADDING_SEEN),
            (read_batch(model, tuple(told), 2, "right").mean(dim=0), PADDED_COLUMN),
            (read_batch(model, tuple(told), 2, "left").mean(dim=0), PADDING_SEEN),
        ]
        why = "each prompt was run alone, without padding"
        near(resid[name], rows.mean(dim=0), name=f"`resid[{name!r}]`", why=why, mistakes=mistakes)
        near(latents[name], encoded(sae, rows).mean(dim=0), name=f"`latents[{name!r}]`", why=why)


@CATEGORY_MEANS.check(
    "read where the dictionary reads",
    points=1,
    hint="`sae.cfg.metadata.hook_name` is the hook. It may be at any layer, and `hook_resid_post` as well.",
)
def test_own_hook(impl, model):
    for hook_name, layer, point in (("blocks.1.hook_resid_pre", 1, "pre"), ("blocks.2.hook_resid_post", 2, "post")):
        sae = stand_in(hook_name, seed=2)
        resid, _ = two_dicts(impl.category_means(model, sae, TALES), TALES)
        near(
            resid["now"],
            last_rows(model, TALES["now"], layer, point).mean(dim=0),
            name="`resid['now']`",
            why=f"this dictionary reads at {hook_name}",
        )


@CATEGORY_MEANS.check(
    "the model runs once, and stops",
    points=1,
    hint="""
        One batch of prompts gives the stream; `sae.encode` of what you have read gives the latents. No second pass is
        needed for them, and nothing behind the dictionary's hook: `stop_at_layer=layer + 1`.
        """,
)
def test_category_means_cost(impl, model):
    sae = stand_in("blocks.2.hook_resid_pre", seed=1)
    with impl.watch(model) as seen:
        two_dicts(impl.category_means(model, sae, TALES), TALES)
    prompts = [prompt for told in TALES.values() for prompt in told]
    most = len(prompts) * max(model.to_tokens(prompt).shape[1] for prompt in prompts)
    expect.that(
        0 < seen.tokens <= 1.2 * most,
        expected=f"each prompt run once: at most {most} token positions, padding included",
        returned=f"{seen.tokens} positions in {seen.passes} passes",
        why="the stream and its latents come from the same pass",
    )
    expect.that(
        seen.blocks <= 3 and not seen.unembedded,
        expected="at most blocks 0 to 2, and no logits",
        returned=f"{seen.blocks} blocks ran, {'logits too' if seen.unembedded else 'no logits'}",
        why="the activation that enters block 2 does not depend on later blocks",
    )
    expect.that(
        seen.hooks_left == 0,
        expected="no hook on the model afterwards",
        returned=f"{seen.hooks_left} hooks",
        why="whoever uses the model next would run your hook too",
        hint="`run_with_hooks` takes its hooks off again; `add_hook` does not.",
    )


@CATEGORY_MEANS.check(
    "a category without prompts is refused",
    points=1,
    hint="""
        A mean over no prompts is a row of nan that surfaces ten cells later. Say it at once: raise a ValueError with
        the category's name.
        """,
)
def test_empty_category(impl, model):
    sae = stand_in("blocks.1.hook_resid_pre", seed=2)
    expect.raises(
        lambda: impl.category_means(model, sae, {"now": TALES["now"], "never": []}),
        "ValueError",
        mentions=("never",),
        why="`never` has no prompts, so it has no mean",
    )


# 2.2

FIVE = {
    "past": ["Long ago a letter was sent.", "By then a horse had been fed."],
    "present": ["Right now a letter is being sent.", "A horse is being fed."],
    "future": ["Soon a letter will be sent.", "Some day a horse will be fed.", "It will rain."],
    "counterfactual": ["Otherwise it would have rained.", "If only a horse had been fed."],
    "hypothetical": ["Suppose it were to rain.", "If so a letter would be sent."],
}
BASELINE_KEPT = """
    Six means went into the PCA: the baseline `neutral` among them. Leave it out first; else one component is spent on
    telling it from the rest.
    """
UNCENTRED = "Centre the means before the decomposition, as `pca` of chapter 01 does."


@cache
def means_of(model, layer, names=tuple(FIVE), point="pre"):
    return torch.stack([last_rows(model, told, layer, point).mean(dim=0) for told in map(_told, names)])


def _told(name):
    return ["A letter is always sent.", "Water is wet."] if name == "neutral" else FIVE[name]


def components_of(rows, k, centre=True):
    """Coordinates and shares from the Gram matrix, in double precision; the sign of a coordinate is arbitrary."""
    rows = rows.double()
    rows = rows - rows.mean(dim=0) if centre else rows
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    return (vectors * values.sqrt())[:, :k].float(), (values / values.sum())[:k].float()


def same_up_to_sign(got, want, tolerance=1e-3):
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return False
    signs = (got * want).sum(dim=0).sign()
    return bool((got * signs - want).abs().max() <= tolerance * want.abs().max())


def geometry_of(result, layers, n, k):
    """The result as layer -> (coords, ratio), after demanding keys and shapes."""
    expect.that(
        isinstance(result, dict) and set(result) == set(layers),
        expected=f"a dict with the layers {', '.join(map(str, layers))} as keys",
        returned=f"a dict with the keys {', '.join(map(str, result))}" if isinstance(result, dict) else result,
        why="one picture for each layer, found by the layer's number",
    )
    found = {}
    for layer in layers:
        coords, ratio = expect.unpack(result[layer], ("coords", "explained_variance_ratio"))
        hint = BASELINE_KEPT if getattr(coords, "shape", [0])[0] == n + 1 else None
        coords = expect.shape(
            coords, (n, k), name="`coords`", dims=("n_category", "k"), why="a row for each category", hint=hint
        )
        ratio = expect.shape(ratio, (k,), name="`explained_variance_ratio`", why="a share for each component")
        found[layer] = coords.detach().cpu(), ratio.detach().cpu()
    return found


def geometry_mistake(model, layer, coords, ratio):
    """The hint for a known wrong answer."""
    if same_up_to_sign(coords, components_of(means_of(model, layer, point="post"), 2)[0]):
        return "This is the stream that leaves the block. Layer L means `blocks.L.hook_resid_pre`, what enters it."
    if same_up_to_sign(coords, components_of(means_of(model, layer), 2, centre=False)[0]):
        return UNCENTRED
    every = torch.cat([last_rows(model, told, layer) for told in FIVE.values()])
    if is_near(ratio, components_of(every, 2)[1], 1e-3):
        return "The components are those of all prompts together. Take the means of the categories first: five rows."
    prompts = tuple(prompt for told in FIVE.values() for prompt in told)
    places = torch.tensor([len(told) for told in FIVE.values()])
    for side, hint in (("right", PADDED_COLUMN), ("left", PADDING_SEEN)):
        rows = read_batch(model, prompts, layer, side).split(places.tolist())
        if same_up_to_sign(coords, components_of(torch.stack([row.mean(dim=0) for row in rows]), 2)[0]):
            return hint
    return None


@LAYER_GEOMETRY.check(
    "components of the category means at each layer",
    points=3,
    hint="At each layer: the mean of every category at the last token of its prompts, then PCA of these five rows.",
)
def test_geometry(impl, model):
    found = geometry_of(impl.layer_geometry(model, FIVE, [1, 4]), [1, 4], 5, 2)
    for layer, (coords, ratio) in found.items():
        want, shares = components_of(means_of(model, layer), 2)
        right = same_up_to_sign(coords, want)
        expect.that(
            right,
            expected=f"at layer {layer}, up to the sign of a column, `coords` = {expect.describe(want)}",
            returned=coords,
            why="eigenvectors of the Gram matrix of the centred category means",
            hint=None if right else geometry_mistake(model, layer, coords, ratio),
        )
        kept = "The shares are those of the *total* variance of the means, not of the kept components alone."
        expect.close(
            ratio,
            shares,
            name=f"`explained_variance_ratio` at layer {layer}",
            rtol=1e-3,
            atol=1e-4,
            why="eigenvalues of the same matrix, as shares of their sum",
            hint=kept if torch.allclose(ratio, shares / shares.sum(), atol=1e-3) else None,
        )


@LAYER_GEOMETRY.check("the baseline is left out", points=1, hint=BASELINE_KEPT)
def test_geometry_without_baseline(impl, model):
    told = {"past": FIVE["past"], "neutral": _told("neutral"), **FIVE}
    coords, ratio = geometry_of(impl.layer_geometry(model, told, [2], 2), [2], 5, 2)[2]
    want, shares = components_of(means_of(model, 2), 2)
    expect.that(
        same_up_to_sign(coords, want),
        expected=f"up to signs, `coords` = {expect.describe(want)}",
        returned=coords,
        why="`neutral` was among the categories; the picture is of the five others",
    )
    expect.close(ratio, shares, name="the shares", rtol=1e-3, atol=1e-4, why="shares of the variance of five means")


@LAYER_GEOMETRY.check(
    "any layers in any order, any number of components",
    points=1,
    hint="""
        Look at layer 0, at layers that are given unsorted, and at k = 3. Each layer's picture stands under its own
        number.
        """,
)
def test_geometry_orders(impl, model):
    found = geometry_of(impl.layer_geometry(model, FIVE, [3, 0], k=3), [3, 0], 5, 3)
    for layer, (coords, _) in found.items():
        want = components_of(means_of(model, layer), 3)[0]
        # At layer 0 all last tokens are alike but for "." itself: nothing differs, and every coordinate is 0.
        scale = max(want.abs().max().item(), 1e-3)
        expect.that(
            bool(((coords.abs() - want.abs()).abs() <= 1e-3 * scale + 1e-4).all()),
            expected=f"at layer {layer}, up to signs, `coords` = {expect.describe(want)}",
            returned=coords,
            why="the components of the means at that very layer",
        )


@LAYER_GEOMETRY.check(
    "no more components than there are",
    points=1,
    hint="Five means can not have six components. `pca` of chapter 01 raises a ValueError for it: let it through.",
)
def test_geometry_too_many(impl, model):
    expect.raises(
        lambda: impl.layer_geometry(model, FIVE, [1], k=6),
        "ValueError",
        why="five points have at most five components, and k = 6 were asked for",
    )


# 2.3

MEANS = {
    "past": torch.tensor([0.5, 6.0, 0.0, 2.5, 1.0, 0.25]),
    "present": torch.tensor([3.0, 0.0, 0.0, 0.5, 4.0, 0.0]),
    "neutral": torch.tensor([0.0, 5.5, 4.0, 0.5, 1.5, 0.0]),
}
TABLE = ("latent", "difference", "mean", "baseline_mean")
SIGNED = """
    Latents that are *weaker* in the category turned up: the difference is signed. Sort by mean minus baseline mean, not
    by its magnitude.
    """


@TOP_FEATURES.check(
    "the largest differences first",
    points=2,
    hint="Subtract the baseline's mean from the category's, and sort by that, the largest first.",
)
def test_top_features(impl):
    columns = columns_of(impl.top_features_vs_baseline(MEANS, "past", "neutral", 4), TABLE, 4)
    hint = None
    if columns["latent"][0] == 2:
        hint = SIGNED
    elif columns["latent"][0] == 1:
        hint = "Sorted by the mean. A latent that is strong everywhere is no news: sort by the difference."
    elif columns["latent"] == sorted(columns["latent"]):
        hint = "These are in the order of the numbers, or the numbers are those of the rows. Sort by the difference."
    expect.that(
        columns["latent"] in ([3, 0, 1, 5], [3, 1, 0, 5]),
        expected="the column `latent` = [3, 0, 1, 5] (or [3, 1, 0, 5]: the second and third differ by nothing)",
        returned=columns["latent"],
        why="past minus neutral is [0.5, 0.5, -4, 2, -0.5, 0.25]",
        hint=hint,
    )
    expect.close(
        torch.tensor(columns["difference"]),
        torch.tensor([2.0, 0.5, 0.5, 0.25]),
        name="the column `difference`",
        why="mean minus baseline mean, largest first",
    )


@TOP_FEATURES.check(
    "every row says where its difference comes from",
    points=1,
    hint="`mean` and `baseline_mean` belong to the latent of the same row: index both with the latents' numbers.",
)
def test_top_features_columns(impl):
    columns = columns_of(impl.top_features_vs_baseline(MEANS, "present", "past", 6), TABLE, 6)
    rows = list(zip(columns["latent"], columns["mean"], columns["baseline_mean"], columns["difference"], strict=True))
    for latent, mean, baseline_mean, difference in rows:
        want = MEANS["present"][int(latent)].item(), MEANS["past"][int(latent)].item()
        expect.that(
            (mean, baseline_mean) == want and abs(difference - want[0] + want[1]) < 1e-6,
            expected=f"for latent {latent}: mean {want[0]}, baseline_mean {want[1]}, difference {want[0] - want[1]}",
            returned=f"mean {mean}, baseline_mean {baseline_mean}, difference {difference}",
            why="these are the entries of the two vectors that were given",
        )
    whole = all(isinstance(latent, int) for latent in columns["latent"])
    expect.that(
        whole and columns["latent"] == [4, 0, 2, 5, 3, 1],
        expected="the latents 4, 0, 2, 5, 3, 1, as whole numbers",
        returned=columns["latent"],
        why="present minus past is [2.5, -6, 0, -2, 3, -0.25]; `past` is the baseline here, not `neutral`",
    )


@TOP_FEATURES.check(
    "what is not there is refused",
    points=1,
    hint="Raise a ValueError that names the category that is missing, or says how many latents there are.",
)
def test_top_features_errors(impl):
    expect.raises(
        lambda: impl.top_features_vs_baseline(MEANS, "future", "neutral", 2),
        ("ValueError", "KeyError"),
        mentions=("future",),
        why="there is no category `future` among the three",
    )
    expect.raises(
        lambda: impl.top_features_vs_baseline(MEANS, "past", "timeless", 2),
        ("ValueError", "KeyError"),
        mentions=("timeless",),
        why="there is no category `timeless` to be the baseline",
    )
    expect.raises(
        lambda: impl.top_features_vs_baseline(MEANS, "past", "neutral", 7),
        "ValueError",
        mentions=("6",),
        why="the dictionary has 6 latents, and 7 were asked for",
        hint="`head(k)` and slices give what there is without a word. Compare k with the number of latents.",
    )


# 2.4

AUDIT_COLUMNS = ("max_with_sink", "max_without_sink", "l0_with_sink", "l0_without_sink")
PROMPTS = ("Soon it will rain.", "The horse was fed by the farmer before the bell rang", "Now")


@cache
def audit_of(model, sae, layer):
    acts = [encoded(sae, stream_at(model, prompt, layer)) for prompt in PROMPTS]
    return [[a.max(), a[1:].max(), (a > 0).sum(1).float().mean(), (a[1:] > 0).sum(1).float().mean()] for a in acts]


def audited(impl, model, sae, prompts=PROMPTS):
    return columns_of(impl.activation_audit(model, sae, list(prompts)), AUDIT_COLUMNS, len(prompts))


@AUDIT.check(
    "maxima with and without the sink",
    points=2,
    hint="With the sink: over all positions. Without: over positions 1, 2, ... of `acts`, shape `[seq, d_sae]`.",
)
def test_audit_maxima(impl, model):
    sae = stand_in("blocks.4.hook_resid_pre", seed=3)
    columns = audited(impl, model, sae)
    for number, (with_sink, without, *_) in enumerate(audit_of(model, sae, 4)):
        row = {name: values[number] for name, values in columns.items()}
        expect.close(
            row["max_with_sink"],
            with_sink.item(),
            name=f"`max_with_sink` of {PROMPTS[number]!r}",
            rtol=1e-3,
            why="the largest entry of the latents at all positions, the sink's included",
            hint="""
                The first special token must be in front, as `to_tokens` puts it there, and its position must count in
                this column.
                """,
        )
        kept = "The sink still counts. Position 0 must go before the maximum is taken: `acts[1:]`."
        dropped = "A real token was dropped along with the sink. Only position 0 goes: `acts[1:]`."
        expect.close(
            row["max_without_sink"],
            without.item(),
            name=f"`max_without_sink` of {PROMPTS[number]!r}",
            rtol=1e-3,
            why="the largest entry of the latents at positions 1, 2, ...",
            hint=kept if row["max_without_sink"] > without.item() else dropped,
        )


@AUDIT.check(
    "L0 is a mean over positions",
    points=2,
    hint="Count the active latents at each position, then average over the positions that take part.",
)
def test_audit_l0(impl, model):
    sae = stand_in("blocks.4.hook_resid_pre", seed=3)
    columns = audited(impl, model, sae)
    acts = [encoded(sae, stream_at(model, prompt, 4)) for prompt in PROMPTS]
    for number, (*_, with_sink, without) in enumerate(audit_of(model, sae, 4)):
        on = acts[number] > 0
        mistakes = {
            "These are the latents active *anywhere* in the prompt. L0 is a number per position; average it.": on.any(
                0
            ),
            "This is the sum over positions: it grows with the prompt. Take the mean.": on,
            "This is the share of latents that are active. L0 is their number.": on.float().mean(dim=1) / len(on),
        }
        for name, want, part in (("l0_with_sink", with_sink, on), ("l0_without_sink", without, on[1:])):
            got = columns[name][number]
            hint = next((said for said, wrong in mistakes.items() if abs(got - float(wrong.sum())) < 1e-3), None)
            if name == "l0_without_sink":
                if abs(got - float(on[1:].any(0).sum())) < 1e-3:
                    hint = next(iter(mistakes))
                elif abs(got - float(part.sum() / len(on))) < 1e-3:
                    hint = "Divided by all positions, the sink's included. Without the sink there is one fewer."
                elif abs(got - with_sink.item()) < 1e-3:
                    hint = "The sink still counts in L0. Position 0 must go before the mean is taken."
            expect.close(
                got,
                want.item(),
                name=f"`{name}` of {PROMPTS[number]!r}",
                rtol=1e-3,
                why="active latents were counted position by position",
                hint=hint,
            )


@AUDIT.check(
    "a prompt's row does not depend on its neighbours",
    points=1,
    hint="""
        Run alone and run among longer prompts, a prompt must give the same row: padding positions take no part, in no
        maximum and in no mean.
        """,
)
def test_audit_padding(impl, model):
    sae = stand_in("blocks.4.hook_resid_pre", seed=3)
    together = audited(impl, model, sae)
    for number in (0, 2):
        alone = audited(impl, model, sae, PROMPTS[number : number + 1])
        for name in AUDIT_COLUMNS:
            expect.close(
                together[name][number],
                alone[name][0],
                name=f"`{name}` of {PROMPTS[number]!r} among longer prompts",
                rtol=1e-3,
                why="this is what the same prompt gives alone",
            )


@AUDIT.check(
    "the real dictionary shows the bug",
    points=1,
    hint="Read at `sae.cfg.metadata.hook_name`, and encode with `sae.encode`.",
)
def test_audit_real(impl, model, dictionaries):
    prompts = ["Soon a letter will be sent to the mayor.", "Back then a horse was fed"]
    columns = audited(impl, model, dictionaries["resid_pre.15"], prompts)
    first, second = columns["max_with_sink"]
    expect.that(
        abs(first - second) < 1e-3 * first and first > 1000,
        expected="the same number, far above 1000, in both rows of `max_with_sink`",
        returned=columns["max_with_sink"],
        why="the sink's activation is the same whatever comes after it, and huge",
    )
    expect.that(
        all(0 < value < 0.1 * first for value in columns["max_without_sink"])
        and columns["max_without_sink"][0] != columns["max_without_sink"][1],
        expected=f"two different numbers, less than a tenth of {first:.0f}, in `max_without_sink`",
        returned=columns["max_without_sink"],
        why="without the sink the maximum is about the prompt",
    )


# 2.5


def planted(n_each, d, seed, signal=()):
    """Rows of two classes (labels 4 and 1, in turn), and columns of which some are larger in class 4."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.rand(2 * n_each, d, generator=generator)
    labels = torch.tensor([4, 1]).repeat(n_each)
    for column, gain in signal:
        acts[:, column] += gain * (labels == 4)
    return acts, labels


def every_shuffle(acts, labels, category, baseline):
    """The true differences [d] and those under every way of dealing out the labels [n_ways, d]."""
    rows = ((labels == category) | (labels == baseline)).nonzero().flatten().tolist()
    x = acts[rows].double()
    size = int((labels == category).sum())
    found = []
    for chosen in itertools.combinations(range(len(rows)), size):
        inside = torch.zeros(len(rows), dtype=torch.bool)
        inside[list(chosen)] = True
        found.append(x[inside].mean(dim=0) - x[~inside].mean(dim=0))
    true = x[labels[rows] == category].mean(dim=0) - x[labels[rows] == baseline].mean(dim=0)
    return true, torch.stack(found)


def share_at_least(null, true):
    return (null >= true - 1e-9).double().mean(dim=0)


def known_mistakes(true, ways):
    """Plausible wrong p-values, if all shuffles are made, with their hints."""
    alone = torch.stack([share_at_least(ways[:, j], true[j]) for j in range(len(true))])
    return [
        (
            alone,
            """
            Every latent is compared with its *own* shuffled differences. With thousands of latents some will be lucky:
            compare each with the largest difference among all latents of the shuffle.
            """,
        ),
        (
            torch.stack([share_at_least(ways.abs().amax(dim=1), t.abs()) for t in true]),
            """
            The test is one-sided: larger in the category. No absolute values, neither for the latent nor for the
            largest statistic.
            """,
        ),
        (
            torch.stack([share_at_least(ways.abs().amax(dim=1), t) for t in true]),
            """
            The test is one-sided: larger in the category. No absolute values, neither for the latent nor for the
            largest statistic.
            """,
        ),
        (
            (alone * len(true)).clamp_max(1),
            "This is Bonferroni: the unadjusted p-value times the number of latents. The max statistic is asked for.",
        ),
        (
            torch.stack([share_at_least(-ways.amax(dim=1), -t) for t in true]),
            """
            The comparison is the wrong way round: count the shuffles whose largest statistic is *at least* the
            latent's.
            """,
        ),
        (
            torch.stack([share_at_least(ways.amin(dim=1), t) for t in true]),
            "The *smallest* statistic of each shuffle was kept. Compare with the largest.",
        ),
        (
            torch.stack([share_at_least((-ways).amax(dim=1), -t) for t in true]),
            "The sign is turned round: the statistic is the category's mean minus the baseline's.",
        ),
    ]


def p_values_near(got, acts, labels, category, baseline, n, why, mistakes=known_mistakes):
    """Demand p-values that differ from those of all shuffles by no more than chance allows."""
    true, ways = every_shuffle(acts, labels, category, baseline)
    want = torch.stack([share_at_least(ways.amax(dim=1), t) for t in true])
    room = 5 * (want * (1 - want) / n).sqrt() + 2 / n
    got = expect.shape(got, (acts.shape[1],), name="the p-values", dims=("d",), why="one for each latent")
    got = got.detach().cpu().double()
    if bool(((got - want).abs() <= room).all()):
        return
    hint = None
    for wrong, said in mistakes(true, ways):
        if bool(((got - wrong).abs() <= 5 * (wrong * (1 - wrong) / n).sqrt() + 2 / n).all()):
            hint = said
            break
    raise expect.CheckFailed(
        expected=f"about {expect.describe(want.float())} (largest deviation by chance: {room.max():.2g})",
        returned=expect.describe(got.float()),
        why=why,
        hint=hint,
    )


@P_VALUES.check(
    "compared with the largest of all latents",
    points=3,
    hint="""
        For each shuffle of the labels: all d differences of means, and of these the largest. A latent's p-value counts
        the shuffles whose largest is at least its own true difference.
        """,
)
def test_p_exact(impl):
    acts, labels = planted(4, 6, seed=0, signal=[(1, 0.7), (4, 0.3), (2, -0.4)])
    got = impl.max_statistic_p_values(acts, labels, 4, 1, 3000, 0)
    p_values_near(got, acts, labels, 4, 1, 3000, why="all 70 ways of dealing 4 labels to 8 rows were counted")


@P_VALUES.check(
    "(1 + count) / (1 + n)",
    points=2,
    hint="""
        The true labels are one of the arrangements that could have come out, so they count too: p = (1 + count) / (1 +
        n). A p-value of 0 claims more than n shuffles can show.
        """,
)
def test_p_formula(impl):
    acts, labels = planted(12, 5, seed=1, signal=[(3, 50.0)])
    acts[:, 0] = 0
    got = impl.max_statistic_p_values(acts, labels, 4, 1, 19, 0)
    got = expect.shape(got, (5,), dims=("d",), why="one for each latent").double()
    expect.that(
        bool((got > 0).all()),
        expected="no p-value of 0",
        returned=got.float(),
        why="19 shuffles can not show that something is rarer than 1 in 20",
    )
    expect.close(
        got[3].item(),
        1 / 20,
        name="p of a latent that no shuffle reaches, n = 19",
        why="count is 0, so p = (1 + 0) / (1 + 19)",
    )
    expect.close(
        got[0].item(),
        1.0,
        name="p of a latent that is 0 everywhere, n = 19",
        why="its difference is 0, and the largest of five latents is at least 0 in every shuffle: (1 + 19) / (1 + 19)",
    )
    whole = got * 20
    expect.that(
        bool(((whole - whole.round()).abs() < 1e-3).all()),
        expected="multiples of 1/20",
        returned=got.float(),
        why="count is a whole number",
    )


@P_VALUES.check(
    "a shuffle that equals the truth counts",
    points=1,
    hint="""
        Count shuffles whose largest statistic is *at least* the latent's (`>=`). With `>` a shuffle that gives the very
        same groups would not count against the latent.
        """,
)
def test_p_ties(impl):
    acts, labels = torch.tensor([[2.0, 1.0], [1.0, 0.0]]), torch.tensor([4, 1])
    got = impl.max_statistic_p_values(acts, labels, 4, 1, 400, 0)
    p_values_near(
        got, acts, labels, 4, 1, 400, why="two rows can be dealt out in two ways, and one of them is the truth"
    )


@P_VALUES.check(
    "other categories take no part",
    points=1,
    hint="""
        Pick the rows of the two categories before you shuffle. Labels of other rows must not be dealt to them, and
        their activations must not enter a mean.
        """,
)
def test_p_other_rows(impl):
    acts, labels = planted(4, 4, seed=3, signal=[(2, 0.6)])
    others = torch.rand(9, 4, generator=torch.Generator().manual_seed(5)) * 30
    mixed = torch.cat([others[:5], acts, others[5:]])
    names = torch.cat([torch.tensor([0, 2, 3, 0, 2]), labels, torch.tensor([3, 0, 5, 2])])
    got = impl.max_statistic_p_values(mixed, names, 4, 1, 2000, 0)
    p_values_near(got, mixed, names, 4, 1, 2000, why="the rows of categories 0, 2, 3 and 5 are neither 4 nor 1")
    flipped = impl.max_statistic_p_values(mixed, names, 1, 4, 2000, 0)
    p_values_near(flipped, mixed, names, 1, 4, 2000, why="here 1 is the category and 4 the baseline")


@P_VALUES.check(
    "whole rows are shuffled",
    points=1,
    hint="""
        One shuffle deals out the labels once, for all latents together. Latents shuffled independently of each other
        lose their correlation, and the correction becomes as harsh as Bonferroni's.
        """,
)
def test_p_correlated(impl):
    acts, labels = planted(4, 1, seed=4, signal=[(0, 0.35)])
    copies = acts.expand(-1, 50).clone()
    got = impl.max_statistic_p_values(copies, labels, 4, 1, 2000, 0)
    p_values_near(
        got,
        copies,
        labels,
        4,
        1,
        2000,
        why="fifty copies of one latent give one chance to be lucky, not fifty",
        mistakes=lambda true, ways: [],
    )


@P_VALUES.check(
    "the seed decides",
    points=1,
    hint="Make a generator from the seed, `torch.Generator().manual_seed(seed)`, and draw every shuffle from it.",
)
def test_p_seed(impl):
    acts, labels = planted(8, 20, seed=5, signal=[(7, 0.2)])
    first = impl.max_statistic_p_values(acts, labels, 4, 1, 200, 3)
    first = expect.shape(first, (20,), dims=("d",), why="one for each latent")
    torch.rand(7)
    again = impl.max_statistic_p_values(acts, labels, 4, 1, 200, 3)
    expect.close(again, first, name="the second run with seed 3", why="the same seed must give the same p-values")
    other = impl.max_statistic_p_values(acts, labels, 4, 1, 200, 4)
    expect.that(
        not torch.equal(torch.as_tensor(other), first),
        expected="other p-values with seed 4 than with seed 3",
        returned="the same twenty numbers",
        why="another seed means other shuffles",
    )


@P_VALUES.check(
    "a thousand shuffles of four thousand latents",
    points=1,
    hint="""
        A loop over latents is hopeless, and a tensor `[n_permutations, n, d]` is 0.7 GB. One matrix of weights
        `[n_permutations, n]` times `acts` gives all differences at once.
        """,
)
def test_p_cost(impl):
    acts, labels = planted(20, 4096, seed=6, signal=[(100, 3.0)])
    with impl.watch() as seen:
        got = impl.max_statistic_p_values(acts, labels, 4, 1, 1000, 0)
    got = expect.shape(got, (4096,), dims=("d",), why="one for each latent")
    expect.that(
        int(got.argmin()) == 100 and got[100].item() < 0.01,
        expected="the planted latent 100 to have the smallest p-value, below 0.01",
        returned=f"latent {int(got.argmin())} with p = {got.min():.3g}",
        why="its mean is larger by three times the range of the others",
    )
    expect.that(
        seen.peak_bytes < 400e6,
        expected="less than 400 MB of tensors alive at once",
        returned=f"{seen.peak_bytes / 1e6:.0f} MB",
        why="the differences of all shuffles take 33 MB",
    )


@P_VALUES.check(
    "two categories, each with rows",
    points=1,
    hint="Raise a ValueError where there is nothing to compare: a category without rows, or one compared with itself.",
)
def test_p_errors(impl):
    acts, labels = planted(3, 4, seed=7)
    expect.raises(
        lambda: impl.max_statistic_p_values(acts, labels, 9, 1, 10, 0),
        "ValueError",
        why="no row has the label 9: the mean of no rows is nan, and nan is never at least anything",
    )
    expect.raises(
        lambda: impl.max_statistic_p_values(acts, labels, 4, 4, 10, 0),
        "ValueError",
        why="category 4 was compared with itself",
    )


# 2.6

LEAK = """
    The row itself is in its class's mean, and pulls it towards itself. Leave it out: `(sum - row) / (size - 1)`. In
    many dimensions this leak alone gives nearly 100 % on pure noise.
    """


def by_leaving_out(x, labels):
    """One row after the other, means taken afresh each time."""
    x = x.double()
    right = []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        distance = {
            c: (x[i] - x[others & (labels == c)].mean(dim=0)).norm().item() for c in labels[others].unique().tolist()
        }
        right.append(min(distance, key=distance.get) == labels[i].item())
    return sum(right) / len(right)


def keeping_it_in(x, labels):
    means = torch.stack([x[labels == c].mean(dim=0) for c in labels.unique()])
    return (labels.unique()[torch.cdist(x, means).argmin(dim=1)] == labels).double().mean().item()


def by_nearest_neighbour(x, labels):
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    return (labels[distance.argmin(dim=1)] == labels).double().mean().item()


def by_cosine(x, labels):
    right = []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        classes = labels[others].unique()
        means = torch.stack([x[others & (labels == c)].mean(dim=0) for c in classes])
        right.append(classes[torch.cosine_similarity(means, x[i][None]).argmax()] == labels[i])
    return torch.stack(right).double().mean().item()


def left_out_of_all(x, labels):
    """Each class's mean with its own sum, but divided by the full size."""
    right = []
    for i in range(len(x)):
        means = torch.stack(
            [(x[labels == c].sum(0) - x[i] * (labels[i] == c)) / (labels == c).sum() for c in labels.unique()]
        )
        right.append(labels.unique()[(means - x[i]).norm(dim=1).argmin()] == labels[i])
    return torch.stack(right).double().mean().item()


def clouds(sizes, d, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
    centres = 3 + spread * torch.randn(len(sizes), d, generator=generator)
    x = centres[labels] + torch.randn(len(labels), d, generator=generator)
    order = torch.randperm(len(labels), generator=generator)
    return x[order], labels[order]


def accuracy_is(impl, x, labels, why, diagnose=True):
    got = impl.leave_one_out_accuracy(x, labels)
    known = [
        (keeping_it_in, LEAK),
        (
            left_out_of_all,
            """
            The row was taken out of the sum, but not out of the size: the mean of the others is `(sum - row) / (size -
            1)`.
            """,
        ),
        (by_nearest_neighbour, "This is the nearest *row*'s class. Asked for is the class with the nearest *mean*."),
        (by_cosine, "This is the class with the highest cosine. Asked for is the smallest Euclidean distance."),
    ]
    want = by_leaving_out(x, labels)
    hint = None
    if diagnose and isinstance(got, float):
        hint = next((said for wrong, said in known if abs(wrong(x, labels) - got) < 1e-6), None)
        if abs(100 * want - got) < 1e-3:
            hint = "A share between 0 and 1 is asked for, not a percentage."
        elif abs(len(x) * want - got) < 1e-3:
            hint = "This is the number of rows that were right. Their share is asked for."
        elif abs(1 - want - got) < 1e-6:
            hint = "This is the share of rows that were wrong."
    expect.close(got, want, name="the accuracy", atol=1e-6, why=why, hint=hint)


@LEAVE_ONE_OUT.check(
    "nearest mean without the row itself",
    points=3,
    hint="For each row, the means of the other rows, class by class; the nearest of them should be its own class's.",
)
def test_loo(impl):
    for sizes, d, spread, seed in (((6, 6, 6), 3, 0.9, 0), ((9, 4, 6), 6, 0.6, 1), ((10, 10), 4, 0.35, 2)):
        x, labels = clouds(sizes, d, spread, seed)
        accuracy_is(impl, x, labels, why=f"a loop left each of {len(x)} rows out in turn and took the means afresh")


@LEAVE_ONE_OUT.check("noise gives no better than chance", points=1, hint=LEAK)
def test_loo_noise(impl):
    x, labels = clouds((10, 10), 300, 0.0, seed=4)
    accuracy_is(impl, x, labels, why="these rows are pure noise in 300 dimensions; nothing tells the classes apart")


@LEAVE_ONE_OUT.check(
    "labels are names, not places",
    points=1,
    hint="""
        Labels may be any whole numbers in any order: do not use them as indices. `labels.unique(return_inverse=True)`
        numbers the classes.
        """,
)
def test_loo_labels(impl):
    x, labels = clouds((5, 7, 6), 3, 1.0, seed=5)
    accuracy_is(
        impl, x, torch.tensor([40, -3, 7])[labels], why="the same rows as classes 0, 1, 2 would be", diagnose=False
    )


@LEAVE_ONE_OUT.check(
    "alone in a class",
    points=1,
    hint="""
        Without its only row a class has no mean: 0 / 0 is nan, and nan must win no comparison. The row counts as wrong.
        """,
)
def test_loo_alone(impl):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [9.0, 9.0], [5.0, 5.0], [5.0, 6.0]])
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    why = "row 3 is the only one of class 1; the other five are near their own class"
    accuracy_is(impl, x, labels, why, diagnose=False)
    on_top = torch.tensor([[2.0], [0.0], [0.5]]), torch.tensor([5, 3, 3])
    accuracy_is(impl, *on_top, why="row 0 is alone; rows 1 and 2 are nearest to each other", diagnose=False)


@LEAVE_ONE_OUT.check(
    "one class is no question",
    points=1,
    hint="With a single class every answer is right. Raise a ValueError that says so.",
)
def test_loo_one_class(impl):
    expect.raises(
        lambda: impl.leave_one_out_accuracy(torch.rand(4, 2), torch.zeros(4, dtype=torch.long)),
        "ValueError",
        why="all four rows have the label 0",
    )
