"""Checks of chapter 02. Activations are read by plain torch hooks, one prompt at a time; p-values are held against all
possible shuffles of a few rows, accuracies against a loop that leaves one row out after the other."""

import copy
import itertools

import torch

from tests.by_hand import encode, fresh_seed, last_column, last_rows, mistake_in_all, read
from tests.by_hand import stand_in as stand_in_at
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


def stand_in(place, seed=0):
    """A small random ReLU dictionary: enough to see whether latents are computed right."""
    return stand_in_at(place, kind="standard", centred=True, seed=seed)


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
    columns = {name: table[name].tolist() for name in names}
    for name, values in columns.items():
        expect.that(
            all(isinstance(value, int | float) for value in values),
            expected=f"numbers in the column `{name}`",
            returned=values,
            why="later cells compute with them",
        )
    return columns


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
SUMMED = "This is the sum over the prompts, not the mean."
SWAPPED = "The two are swapped: first the stream, then the latents."


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
    place = "blocks.3.hook_resid_pre"
    sae = copy.deepcopy(stand_in(place)).requires_grad_()
    resid, latents = two_dicts(impl.category_means(model, sae, TALES), TALES)
    for name, prompts in TALES.items():
        rows = last_rows(model, prompts, place)
        acts = encode(sae, rows).detach()
        every = torch.stack([read(model, model.to_tokens(prompt), place)[0].mean(dim=0) for prompt in prompts])
        expect.close(
            resid[name],
            rows.mean(dim=0),
            name=f"`resid[{name!r}]`",
            norm="row",
            why="each prompt was run alone, and its last token's stream averaged over the category",
            mistakes=[
                (acts.mean(dim=0), SWAPPED),
                (every.mean(dim=0), ALL_POSITIONS),
                (rows.sum(dim=0), SUMMED),
                (rows[0], "Only the first prompt was used."),
            ],
        )
        expect.close(
            latents[name],
            acts.mean(dim=0),
            name=f"`latents[{name!r}]`",
            norm="row",
            why="each prompt's activation was encoded by itself, and the latents averaged over the category",
            mistakes=[
                (encode(sae, rows.mean(dim=0)), OF_THE_MEAN),
                (acts.sum(dim=0), SUMMED),
                (acts.amax(dim=0), "This is the largest activation of the category's prompts, not the mean."),
                (
                    (acts > 0).float().mean(dim=0),
                    "This is the share of prompts on which a latent is active. Its mean activation is asked for.",
                ),
            ],
        )
        for mean in (resid[name], latents[name]):
            expect.that(
                not getattr(mean, "requires_grad", False),
                expected="means without gradient",
                returned="a tensor that autograd follows",
                why="this dictionary's weights want gradients, and both means are promised without",
                hint="Encode under `torch.no_grad()` too: else each mean keeps all that it was computed from.",
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
    place = "blocks.2.hook_resid_pre"
    sae, prompts = stand_in(place, seed=1), [prompt for told in UNEVEN.values() for prompt in told]
    resid, latents = two_dicts(impl.category_means(model, sae, UNEVEN), UNEVEN)
    slices = {"soon": slice(0, 2), "ever": slice(2, 5)}
    for name, told in UNEVEN.items():
        rows, why = last_rows(model, told, place), "each prompt was run alone, without padding"
        mistakes = [
            (read_at.mean(dim=0), hint)
            for side, hint in (("right", PADDED_COLUMN), ("left", PADDING_SEEN))
            for read_at in (
                last_column(model, prompts, place, side)[slices[name]],
                last_column(model, told, place, side),
            )
        ]
        expect.close(resid[name], rows.mean(dim=0), name=f"`resid[{name!r}]`", norm="row", why=why, mistakes=mistakes)
        want = encode(sae, rows).mean(dim=0)
        expect.close(latents[name], want, name=f"`latents[{name!r}]`", norm="row", why=why)


@CATEGORY_MEANS.check(
    "read where the dictionary reads",
    points=1,
    hint="`sae.cfg.metadata.hook_name` is the hook. It may be at any layer, and `hook_resid_post` as well.",
)
def test_own_hook(impl, model):
    for place in ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"):
        resid, _ = two_dicts(impl.category_means(model, stand_in(place, seed=2), TALES), TALES)
        expect.close(
            resid["now"],
            last_rows(model, TALES["now"], place).mean(dim=0),
            name="`resid['now']`",
            norm="row",
            why=f"this dictionary reads at {place}",
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
    expect.cost(
        seen, tokens=int(1.2 * most), why="each prompt once: the stream and its latents come from the same pass"
    )
    expect.cost(
        seen,
        blocks=3,
        logits=False,
        why="the activation that enters block 2 does not depend on later blocks",
        hint=expect.STOP_EARLY,
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
NEUTRAL = ["A letter is always sent.", "Water is wet."]
AFTER_BLOCK = "This is the stream that leaves the block. Layer L means `blocks.L.hook_resid_pre`, what enters it."
POOLED = """
    The components are those of all prompts together. Take the means of the categories first: a row for each category,
    five rows.
    """


def by_category(rows):
    """The means of the rows of all prompts of FIVE."""
    return torch.stack([part.mean(dim=0) for part in rows.split([len(told) for told in FIVE.values()])])


def prompts_of_five():
    return [prompt for told in FIVE.values() for prompt in told]


def means_of(model, layer):
    return by_category(last_rows(model, prompts_of_five(), f"blocks.{layer}.hook_resid_pre"))


def components_of(rows, k, centre=True):
    """Coordinates and shares from the Gram matrix, in double precision; the sign of a coordinate is arbitrary."""
    rows = rows.double()
    rows = rows - rows.mean(dim=0) if centre else rows
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    return (vectors * values.sqrt())[:, :k].float(), (values / values.sum())[:k].float()


def geometry_of(result, layers):
    """The result as layer -> (coords, ratio), after demanding a dict of tuples."""
    expect.that(
        isinstance(result, dict) and set(result) == set(layers),
        expected=f"a dict with the layers {', '.join(map(str, layers))} as keys",
        returned=f"a dict with the keys {', '.join(map(str, result))}" if isinstance(result, dict) else result,
        why="one picture for each layer, found by the layer's number",
    )
    return {layer: expect.unpack(result[layer], ("coords", "explained_variance_ratio")) for layer in layers}


def same_coords(got, want, layer, *, why, mistakes=list, atol=0.0):
    """Demand coordinates up to the sign of each column. `mistakes` makes known wrong ones, with their hints."""

    def turned(coords):
        if tuple(getattr(got, "shape", ())) != tuple(coords.shape):
            return coords
        along = (torch.as_tensor(got).detach().cpu() * coords).sum(dim=0)
        return coords * torch.where(along < 0, -1.0, 1.0)

    expect.close(
        got,
        turned(want),
        name=f"up to the sign of a column, `coords` at layer {layer}",
        norm="largest",
        dims=("n_category", "k"),
        atol=atol,
        why=why,
        mistakes=lambda: [(turned(wrong), hint) for wrong, hint in mistakes()],
    )


def geometry_mistakes(model, layer):
    place, prompts = f"blocks.{layer}.hook_resid_pre", prompts_of_five()
    pooled = components_of(last_rows(model, prompts, place), 2)[0]
    after = by_category(last_rows(model, prompts, f"blocks.{layer}.hook_resid_post"))
    padded = {side: by_category(last_column(model, prompts, place, side)) for side in ("right", "left")}
    return [
        (components_of(after, 2)[0], AFTER_BLOCK),
        (components_of(means_of(model, layer), 2, centre=False)[0], UNCENTRED),
        (pooled, POOLED),
        (by_category(pooled), POOLED),
        (components_of(padded["right"], 2)[0], PADDED_COLUMN),
        (components_of(padded["left"], 2)[0], PADDING_SEEN),
    ]


def same_shares(got, want, layer):
    expect.close(
        got,
        want,
        name=f"`explained_variance_ratio` at layer {layer}",
        dims=("k",),
        rtol=1e-3,
        atol=1e-4,
        why="eigenvalues of the same matrix, as shares of their sum",
        mistakes=[
            (
                want / want.sum(),
                "The shares are those of the *total* variance of the means, not of the kept components alone.",
            )
        ],
    )


@LAYER_GEOMETRY.check(
    "components of the category means at each layer",
    points=3,
    hint="At each layer: the mean of every category at the last token of its prompts, then PCA of these five rows.",
)
def test_geometry(impl, model):
    geometry = geometry_of(impl.layer_geometry(model, FIVE, [1, 4]), [1, 4])
    for layer, (coords, ratio) in geometry.items():
        want, shares = components_of(means_of(model, layer), 2)
        same_coords(
            coords,
            want,
            layer,
            why="eigenvectors of the Gram matrix of the centred category means",
            mistakes=lambda layer=layer: geometry_mistakes(model, layer),
        )
        same_shares(ratio, shares, layer)


@LAYER_GEOMETRY.check(
    "the baseline is left out",
    points=1,
    hint="The category `neutral` takes no part: drop it first, wherever it stands. The rest is as without it.",
)
def test_geometry_without_baseline(impl, model):
    told = {"past": FIVE["past"], "neutral": NEUTRAL, **FIVE}
    coords, ratio = geometry_of(impl.layer_geometry(model, told, [2], 2), [2])[2]
    means = means_of(model, 2)
    want, shares = components_of(means, 2)

    def baseline_kept():
        neutral = last_rows(model, NEUTRAL, "blocks.2.hook_resid_pre").mean(dim=0)
        return [(components_of(torch.cat([means[:1], neutral[None], means[1:]]), 2)[0], BASELINE_KEPT)]

    same_coords(
        coords,
        want,
        2,
        why="`neutral` was among the categories; the picture is of the five others",
        mistakes=baseline_kept,
    )
    same_shares(ratio, shares, 2)


@LAYER_GEOMETRY.check(
    "any layers in any order, any number of components",
    points=1,
    hint="""
        Look at layer 0, at layers that are given unsorted, and at k = 3. Each layer's picture stands under its own
        number.
        """,
)
def test_geometry_orders(impl, model):
    geometry = geometry_of(impl.layer_geometry(model, FIVE, [3, 0], k=3), [3, 0])
    for layer, (coords, _) in geometry.items():
        want = components_of(means_of(model, layer), 3)[0]
        # At layer 0 all last tokens are ".": nothing differs, and every coordinate is 0.
        same_coords(coords, want, layer, atol=1e-4, why="the components of the means at that very layer")


@LAYER_GEOMETRY.check(
    "no more components than there are",
    points=1,
    hint="Five means cannot have six components. `pca` of chapter 01 raises a ValueError for it: let it through.",
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
    "neutral": torch.tensor([0.0, 5.25, 4.0, 0.5, 1.375, 0.0]),
}
TABLE = ("latent", "difference", "mean", "baseline_mean")
SIGNED = """
    Latents that are *weaker* in the category turned up: the difference is signed. Sort by mean minus baseline mean, not
    by its magnitude.
    """
BY_MEAN = "Sorted by the mean. A latent that is strong everywhere is no news: sort by the difference."
UNSORTED = "These are the first latents, in the order of their numbers. Sort by the difference."
ROWS_NUMBERED = "The column `latent` counts the rows. It must hold the latents' own numbers, as `topk` gives them."
SMALLEST = "These are the k largest differences, but the smallest of them stands first."
OTHER_BASELINE = "The difference is to `neutral`, whatever baseline is asked for: use the argument `baseline`."


def table_of(means, category, baseline, latents):
    """The columns [k, 4] of some latents in the order given."""
    mean, other = means[category][latents], means[baseline][latents]
    return torch.stack([latents.float(), mean - other, mean, other], dim=1)


def top_mistakes(means, category, baseline, k):
    mean, difference = means[category], means[category] - means[baseline]
    latents = difference.topk(k).indices
    right = table_of(means, category, baseline, latents)
    wrong = [
        (difference.abs().topk(k).indices, SIGNED),
        (mean.topk(k).indices, BY_MEAN),
        (torch.arange(k), UNSORTED),
        (latents.flip(0), SMALLEST),
        ((mean - means["neutral"]).topk(k).indices, OTHER_BASELINE),
    ]
    yield torch.cat([torch.arange(k)[:, None], right[:, 1:]], dim=1), ROWS_NUMBERED
    yield from ((table_of(means, category, baseline, some), hint) for some, hint in wrong)


def same_table(impl, means, category, baseline, k, why):
    table = impl.top_features_vs_baseline(means, category, baseline, k)
    columns = columns_of(table, TABLE, k)
    expect.that(
        all(isinstance(latent, int) for latent in columns["latent"]),
        expected="latents as whole numbers",
        returned=columns["latent"],
        why="a latent's number is an index",
    )
    got = torch.tensor([columns[name] for name in TABLE]).T
    want = table_of(means, category, baseline, (means[category] - means[baseline]).topk(k).indices)
    hint = None
    if not expect.agree(got, want):
        hint = expect.mistake_in(got, want, top_mistakes(means, category, baseline, k), expect.agree)
    for number, name in enumerate(TABLE):  # only the difference is computed, and may be rounded otherwise
        column, atol = f"the column `{name}`", 1e-6 if name == "difference" else 0
        expect.close(got[:, number], want[:, number], name=column, why=why, hint=hint, rtol=0, atol=atol)
    expect.that(
        list(table.index) == list(range(k)),
        expected=f"rows numbered from 0 to {k - 1}",
        returned=f"rows numbered {list(table.index)}",
        why="`table.loc[0]` must be the first row",
        hint="Sorting keeps the old numbers of the rows: `reset_index(drop=True)` gives them new ones.",
    )


@TOP_FEATURES.check(
    "the largest differences first",
    points=2,
    hint="Subtract the baseline's mean from the category's, and sort by that, the largest first.",
)
def test_top_features(impl):
    same_table(impl, MEANS, "past", "neutral", 4, "past minus neutral is [0.5, 0.75, -4, 2, -0.375, 0.25]")


@TOP_FEATURES.check(
    "every row says where its difference comes from",
    points=1,
    hint="`mean` and `baseline_mean` belong to the latent of the same row: index both with the latents' numbers.",
)
def test_top_features_columns(impl):
    why = "present minus past is [2.5, -6, 0, -2, 3, -0.25]; `past` is the baseline here, not `neutral`"
    same_table(impl, MEANS, "present", "past", 6, why)
    seed = fresh_seed()
    drawn = torch.rand(3, 20 + seed % 20, generator=torch.Generator().manual_seed(seed))
    means = dict(zip(MEANS, drawn, strict=True))
    same_table(impl, means, "present", "past", 9, f"the three means were drawn with seed {seed}")


@TOP_FEATURES.check(
    "what is not there is refused",
    points=1,
    hint="Raise a ValueError that names the category that is missing, or says how many latents there are.",
)
def test_top_features_errors(impl):
    expect.raises(
        lambda: impl.top_features_vs_baseline(MEANS, "future", "neutral", 2),
        "ValueError",
        mentions=("future",),
        why="there is no category `future` among the three",
    )
    expect.raises(
        lambda: impl.top_features_vs_baseline(MEANS, "past", "timeless", 2),
        "ValueError",
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


def latents_of(model, sae, special=True):
    """The latents [seq, d_sae] of each prompt, with the first special token or without."""
    tokens = [model.to_tokens(prompt)[:, 0 if special else 1 :] for prompt in PROMPTS]
    return [encode(sae, read(model, some, sae.cfg.metadata.hook_name)[0]) for some in tokens]


def per_prompt(measure, latents):
    return torch.stack([measure(acts).float() for acts in latents])


def audited(impl, model, sae, prompts=PROMPTS):
    return columns_of(impl.activation_audit(model, sae, list(prompts)), AUDIT_COLUMNS, len(prompts))


@AUDIT.check(
    "maxima with and without the sink",
    points=2,
    hint="With the sink: over all positions. Without: over positions 1, 2, ... of `acts`, shape `[seq, d_sae]`.",
)
def test_audit_maxima(impl, model):
    sae = stand_in("blocks.4.hook_resid_pre", seed=3)
    columns, latents = audited(impl, model, sae), latents_of(model, sae)
    with_sink = per_prompt(lambda acts: acts.max(), latents)
    expect.close(
        torch.tensor(columns["max_with_sink"]),
        with_sink,
        name="`max_with_sink`",
        rtol=1e-3,
        why="the largest entry of the latents at all positions, the sink's included",
        mistakes=[(per_prompt(lambda acts: acts.max(), latents_of(model, sae, special=False)), NO_SPECIAL)],
    )
    expect.close(
        torch.tensor(columns["max_without_sink"]),
        per_prompt(lambda acts: acts[1:].max(), latents),
        name="`max_without_sink`",
        rtol=1e-3,
        why="the largest entry of the latents at positions 1, 2, ...",
        mistakes=[(with_sink, "The sink still counts. Position 0 must go before the maximum is taken: `acts[1:]`.")],
    )


NO_SPECIAL = """
    The first special token must be in front, as `to_tokens` puts it there, and its position must count in this column.
    """
ANYWHERE = "These are the latents active *anywhere* in the prompt. L0 is a number per position; average it."
OVER_ALL = "Divided by all positions, the sink's included. Without the sink there is one fewer."
SINK_IN_L0 = "The sink still counts in L0. Position 0 must go before the mean is taken."


def l0(active):
    """Latents active at a position, mean over the positions."""
    return active.sum(dim=1).float().mean()


def l0_mistakes(active):
    return [
        (per_prompt(lambda on: on.any(dim=0).sum(), active), ANYWHERE),
        (per_prompt(lambda on: on.sum(), active), "This is the sum over positions: it grows with the prompt."),
        (per_prompt(lambda on: on.float().mean(), active), "This is the share of latents. L0 is their number."),
    ]


@AUDIT.check(
    "L0 is a mean over positions",
    points=2,
    hint="Count the active latents at each position, then average over the positions that take part.",
)
def test_audit_l0(impl, model):
    sae = stand_in("blocks.4.hook_resid_pre", seed=3)
    columns, active = audited(impl, model, sae), [acts > 0 for acts in latents_of(model, sae)]
    without_sink = [on[1:] for on in active]
    sink_mistakes = [
        (per_prompt(lambda on: on[1:].sum() / len(on), active), OVER_ALL),
        (per_prompt(l0, active), SINK_IN_L0),
    ]
    for name, part, more in (("l0_with_sink", active, []), ("l0_without_sink", without_sink, sink_mistakes)):
        expect.close(
            torch.tensor(columns[name]),
            per_prompt(l0, part),
            name=f"`{name}`",
            rtol=1e-3,
            why="active latents were counted position by position",
            mistakes=l0_mistakes(part) + more,
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


def planted(n_category, n_baseline, d, seed, signal=()):
    """Rows of two classes (labels 4 and 1, mixed), and columns of which some are larger in class 4."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(n_category + n_baseline, d, generator=generator)
    labels = torch.tensor([4] * n_category + [1] * n_baseline)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    for column, gain in signal:
        acts[:, column] += gain * (labels == 4)
    return acts, labels


def every_shuffle(acts, labels, category, baseline):
    """The true differences [d] and those under every way of dealing out the labels [n_ways, d]."""
    rows = ((labels == category) | (labels == baseline)).nonzero().flatten().tolist()
    x = acts[rows].double()
    size = int((labels == category).sum())
    ways = []
    for chosen in itertools.combinations(range(len(rows)), size):
        inside = torch.zeros(len(rows), dtype=torch.bool)
        inside[list(chosen)] = True
        ways.append(x[inside].mean(dim=0) - x[~inside].mean(dim=0))
    true = x[labels[rows] == category].mean(dim=0) - x[labels[rows] == baseline].mean(dim=0)
    return true, torch.stack(ways)


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


def by_chance(p, n):
    """How far a p-value from n shuffles may be from that of all shuffles."""
    return 5 * (p * (1 - p) / n).sqrt() + 2 / n


def same_p_values(got, acts, labels, category, baseline, n, why, mistakes=lambda true, ways: ()):
    """Demand p-values that differ from those of all shuffles by no more than chance allows."""
    true, ways = every_shuffle(acts, labels, category, baseline)
    want = torch.stack([share_at_least(ways.amax(dim=1), t) for t in true])

    def same(one, other):
        return bool(((one - other).abs() <= by_chance(other, n)).all())

    got = expect.shape(got, (acts.shape[1],), name="the p-values", dims=("d",), why="one for each latent")
    got = got.detach().cpu().double()
    right = same(got, want)
    expect.that(
        right,
        expected=f"about {expect.describe(want.float())} (largest deviation by chance: {by_chance(want, n).max():.2g})",
        returned=got.float(),
        why=f"all {len(ways)} ways of dealing the labels to these rows were counted; {why}",
        hint=None if right else expect.mistake_in(got, want, mistakes(true, ways), same),
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
    signal = [(1, 2.4), (4, 1.6), (0, 1.0), (2, -1.4)]
    acts, labels = planted(3, 5, 6, seed=6, signal=signal)
    got = impl.max_statistic_p_values(acts, labels, 4, 1, 3000, 0)
    why = "three rows are of the category, five of the baseline"
    same_p_values(got, acts, labels, 4, 1, 3000, why, mistakes=known_mistakes)
    seed = fresh_seed()
    acts, labels = planted(6, 3, 6, seed, signal)
    got = impl.max_statistic_p_values(acts, labels, 4, 1, 3000, seed)
    same_p_values(got, acts, labels, 4, 1, 3000, f"the rows were drawn with seed {seed}")


@P_VALUES.check(
    "(1 + count) / (1 + n)",
    points=2,
    hint="""
        The true labels are one of the arrangements that could have come out, so they count too: p = (1 + count) / (1 +
        n). A p-value of 0 claims more than n shuffles can show.
        """,
)
def test_p_formula(impl):
    acts, labels = planted(13, 10, 5, seed=1, signal=[(3, 50.0)])
    acts[:, 0] = 0
    got = impl.max_statistic_p_values(acts, labels, 4, 1, 19, 0)
    got = expect.shape(got, (5,), dims=("d",), why="one for each latent").double()
    expect.that(
        bool((got > 0).all()),
        expected="no p-value of 0",
        returned=got.float(),
        why="19 shuffles cannot show that something is rarer than 1 in 20",
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
    same_p_values(got, acts, labels, 4, 1, 400, why="one of them is the truth")


@P_VALUES.check(
    "other categories take no part",
    points=1,
    hint="""
        Pick the rows of the two categories before you shuffle. Labels of other rows must not be dealt to them, and
        their activations must not enter a mean.
        """,
)
def test_p_other_rows(impl):
    acts, labels = planted(4, 3, 4, seed=3, signal=[(2, 2.0)])
    others = torch.randn(9, 4, generator=torch.Generator().manual_seed(5)) * 30
    mixed = torch.cat([others[:5], acts, others[5:]])
    names = torch.cat([torch.tensor([0, 2, 3, 0, 2]), labels, torch.tensor([3, 0, 5, 2])])
    got = impl.max_statistic_p_values(mixed, names, 4, 1, 2000, 0)
    same_p_values(got, mixed, names, 4, 1, 2000, why="the rows of categories 0, 2, 3 and 5 are neither 4 nor 1")
    flipped = impl.max_statistic_p_values(mixed, names, 1, 4, 2000, 0)
    same_p_values(flipped, mixed, names, 1, 4, 2000, why="here 1 is the category and 4 the baseline")


@P_VALUES.check(
    "whole rows are shuffled",
    points=1,
    hint="""
        One shuffle deals out the labels once, for all latents together. Latents shuffled independently of each other
        lose their correlation, and the correction becomes as harsh as Bonferroni's.
        """,
)
def test_p_correlated(impl):
    acts, labels = planted(5, 4, 1, seed=4, signal=[(0, 1.2)])
    copies = acts.expand(-1, 50).clone()
    got = impl.max_statistic_p_values(copies, labels, 4, 1, 2000, 0)
    why = "fifty copies of one latent give one chance to be lucky, not fifty"
    same_p_values(got, copies, labels, 4, 1, 2000, why)


@P_VALUES.check(
    "the seed decides",
    points=1,
    hint="Make a generator from the seed, `torch.Generator().manual_seed(seed)`, and draw every shuffle from it.",
)
def test_p_seed(impl):
    acts, labels = planted(9, 7, 20, seed=5, signal=[(7, 0.7)])
    with impl.watch() as seen:
        first = impl.max_statistic_p_values(acts, labels, 4, 1, 200, 3)
    first = expect.shape(first, (20,), dims=("d",), why="one for each latent")
    expect.that(
        not seen.random,
        expected="torch's global generator left alone",
        returned="random numbers drawn from it, or a seed given to it",
        why="what else draws from the global generator would come out differently after your function",
        hint="""
            A generator of your own: `torch.Generator().manual_seed(seed)`, handed to every function that draws.
            `torch.manual_seed` and draws without `generator=` touch the global one.
            """,
    )
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
    acts, labels = planted(24, 16, 4096, seed=6, signal=[(100, 12.0)])
    with impl.watch() as seen:
        got = impl.max_statistic_p_values(acts, labels, 4, 1, 1000, 0)
    got = expect.shape(got, (4096,), dims=("d",), why="one for each latent")
    expect.that(
        int(got.argmin()) == 100 and got[100].item() < 0.01,
        expected="the planted latent 100 to have the smallest p-value, below 0.01",
        returned=f"latent {int(got.argmin())} with p = {got.min():.3g}",
        why="its mean is larger by twelve times the spread of the rows",
    )
    expect.cost(seen, megabytes=400, why="the differences of all shuffles take 33 MB")


@P_VALUES.check(
    "two categories, each with rows",
    points=1,
    hint="Raise a ValueError where there is nothing to compare: a category without rows, or one compared with itself.",
)
def test_p_errors(impl):
    acts, labels = planted(3, 2, 4, seed=7)
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


def leads(x, labels):
    """By how much each row is nearer to its own class's mean than to any other, means taken afresh without the row."""
    x, leads = x.double(), []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        distance = {
            c: (x[i] - x[others & (labels == c)].mean(dim=0)).norm().item() for c in labels[others].unique().tolist()
        }
        own = distance.pop(labels[i].item(), torch.inf)  # alone in its class
        leads.append(min(distance.values()) - own)
    return torch.tensor(leads)


def by_leaving_out(x, labels):
    return (leads(x, labels) > 0).double().mean().item()


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


def fresh_clouds(sizes, d, spread, near_zero=-1):
    """Clouds of a fresh seed in which rounding decides nothing, and the seed. Class `near_zero` lies there."""
    while True:
        seed = fresh_seed()
        x, labels = clouds(sizes, d, spread, seed)
        x[labels == near_zero] /= 100
        if leads(x, labels).abs().min() > 1e-3:
            return x, labels, seed


ACCURACY_MISTAKES = (
    (keeping_it_in, LEAK),
    (
        left_out_of_all,
        """
        The row was taken out of the sum, but not out of the size: the mean of the others is `(sum - row) / (size - 1)`.
        """,
    ),
    (by_nearest_neighbour, "This is the nearest *row*'s class. Asked for is the class with the nearest *mean*."),
    (by_cosine, "This is the class with the highest cosine. Asked for is the smallest Euclidean distance."),
    (
        lambda x, labels: 100 * by_leaving_out(x, labels),
        "A share between 0 and 1 is asked for, not a percentage.",
    ),
    (
        lambda x, labels: len(x) * by_leaving_out(x, labels),
        "This is the number of rows that were right. Their share is asked for.",
    ),
    (lambda x, labels: 1 - by_leaving_out(x, labels), "This is the share of rows that were wrong."),
)


def same_accuracy(impl, x, labels, why, hint=None):
    expect.close(
        impl.leave_one_out_accuracy(x, labels),
        by_leaving_out(x, labels),
        name="the accuracy",
        atol=1e-6,
        why=why,
        hint=hint,
    )


@LEAVE_ONE_OUT.check(
    "nearest mean without the row itself",
    points=3,
    hint="For each row, the means of the other rows, class by class; the nearest of them should be its own class's.",
)
def test_loo(impl):
    cases = [clouds((6, 6, 6), 3, 0.9, 0), clouds((9, 4, 6), 6, 0.6, 1), clouds((10, 10), 4, 0.35, 2)]
    hint = mistake_in_all(impl.leave_one_out_accuracy, cases, by_leaving_out, ACCURACY_MISTAKES)
    for x, labels in cases:
        why = f"a loop left each of {len(x)} rows out in turn and took the means afresh"
        same_accuracy(impl, x, labels, why, hint)
    x, labels, seed = fresh_clouds((7, 12, 5), 5, 0.6)
    same_accuracy(impl, x, labels, f"a loop left each row out in turn; the rows were drawn with seed {seed}")


@LEAVE_ONE_OUT.check(
    "noise gives no better than chance",
    points=1,
    hint="""
        Nothing tells these classes apart. A row is nearer to its own class's mean only while it is part of that mean:
        leave it out, of the sum and of the size.
        """,
)
def test_loo_noise(impl):
    x, labels = clouds((10, 10), 300, 0.0, seed=4)
    same_accuracy(impl, x, labels, "these rows are pure noise in 300 dimensions")


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
    same_accuracy(impl, x, torch.tensor([40, -3, 7])[labels], "the same rows as classes 0, 1, 2 would be")


@LEAVE_ONE_OUT.check(
    "alone in a class",
    points=1,
    hint="""
        Without its only row a class has no mean: 0 / 0 is nan, and nan must win no comparison; nor is the mean of
        nothing the origin. The row counts as wrong.
        """,
)
def test_loo_alone(impl):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [9.0, 9.0], [5.0, 5.0], [5.0, 6.0]])
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    same_accuracy(impl, x, labels, "row 3 is the only one of class 1; the other five are near their own class")
    x, labels = torch.tensor([[2.0], [0.0], [0.5]]), torch.tensor([5, 3, 3])
    same_accuracy(impl, x, labels, "row 0 is alone; rows 1 and 2 are nearest to each other")
    x, labels, seed = fresh_clouds((5, 1, 6), 4, 0.5, near_zero=1)
    same_accuracy(impl, x, labels, f"the only row of class 1 lies near 0 (drawn with seed {seed})")


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
