"""Checks of chapter 01. Activations are read by plain torch hooks, one prompt at a time; the geometry is judged by
eigenvalues, invariants and counting."""

import cmath
import copy
import itertools
import math
from functools import cache

import numpy as np
import torch

from tests.by_hand import encode, fresh_seed, last_column, last_rows, mistake_in_all, read, run, stand_in
from utils.checks import expect
from utils.checks.exercises import Exercise

LAST_TOKEN_RESID = Exercise(
    "last_token_resid",
    number="1.1",
    title="One token, one layer",
    difficulty=2,
    importance=4,
    minutes=15,
    hints=(
        """
        You need three things from the bridge: `model.to_tokens(prompt)`, which puts the first special token in front;
        `model.run_with_hooks(tokens, fwd_hooks=[(hook_name, function)])`, which calls `function(activation, hook)` when
        the model gets there; and its argument `stop_at_layer`.
        """,
        """
        `stop_at_layer=n` runs blocks 0 to n - 1 and stops on the doorstep of block n, before its hooks. The number of
        the hook's block is in its name: `hook_name.split('.')[1]`. To see a hook of block 9, the model has to enter
        block 9.
        """,
        """
        Make an empty list `kept`, and a hook function that does `kept.append(resid[0, -1].clone())` and returns nothing
        (a hook that returns something replaces the activation). Run with `stop_at_layer=layer + 1`, under
        `torch.no_grad()`, and return `kept[0]`.
        """,
    ),
)

CLASS_MEANS = Exercise(
    "class_means",
    number="1.2",
    title="Seven means, few passes",
    difficulty=3,
    importance=5,
    minutes=25,
    hints=(
        """
        Fill every class into every template, tokenise the whole list at once, run once with one hook, and average. The
        work is in one question: in which column does each prompt end?
        """,
        """
        With `padding_side="right"` a causal model computes the real tokens exactly as if the padding were not there:
        nobody looks to the right. What remains is to read each row at its own last token, which
        `model.to_tokens(prompt).shape[1] - 1` gives, and not at column -1, which is padding.
        """,
        """
        In the hook: `resid[torch.arange(n_prompts), last]`, shape `[n_prompts, d_model]`. If the prompts were made with
        the class in the outer loop and the template in the inner one, `.unflatten(0, (n_class,
        n_templates)).mean(dim=1)` gives a row per class.
        """,
    ),
)

PCA = Exercise(
    "pca",
    number="1.3",
    title="Principal components",
    difficulty=2,
    importance=5,
    minutes=20,
    hints=(
        """
        Subtract the mean *row* first. Of the singular value decomposition `U, S, Vh = torch.linalg.svd(centred,
        full_matrices=False)`, the rows of `Vh` are the components, and `S ** 2` is proportional to the variance along
        each.
        """,
        """
        A component and its negative are equally good, and which one comes out depends on the library. Look at the entry
        of largest magnitude of each row of `Vh`: if it is negative, flip the row (and with it the coordinates).
        """,
        """
        `largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))`, then `components *
        largest.sign()`. Coordinates: `centred @ components.T`, after the flip. Ratio: `(S ** 2)[:k] / (S ** 2).sum()`,
        the sum over *all* singular values.
        """,
    ),
)

CALENDAR_ORDER_SCORE = Exercise(
    "calendar_order_score",
    number="1.4a",
    title="Is it the calendar?",
    difficulty=3,
    importance=3,
    minutes=20,
    hints=(
        """
        Move the centroid to the origin, take the angle of every point (`torch.atan2(y, x)`), and sort. That gives a
        circular order of the classes. How many of the pairs Monday-Tuesday, ..., Sunday-Monday stand side by side in
        it?
        """,
        """
        If `place[i]` is the position of point i in the sorted order, then points i and j are neighbours exactly when
        `(place[j] - place[i]) % n` is 1 or n - 1. The `%` closes the circle.
        """,
        """
        `order = angles.argsort().tolist()`, `place = {point: position for position, point in enumerate(order)}`, then
        count the i for which i and `(i + 1) % n` are neighbours, and divide by n.
        """,
    ),
)

CALENDAR_ORDER_P_VALUE = Exercise(
    "calendar_order_p_value",
    number="1.4b",
    title="How lucky would that be?",
    difficulty=1,
    importance=4,
    minutes=10,
    hints=(
        """
        n guests can sit in a row in n! ways. How many of these are the same when the table is round? And when, besides,
        you may look at the table from below?
        """,
        """
        Rotations divide by n, reflections by 2: there are n! / (2 n) = (n - 1)! / 2 circular orders, of which one is
        the calendar's.
        """,
        "`2 / math.factorial(n - 1)` if your score is 1, else `1.0`.",
    ),
)

FEATURES_ACTIVE_ON = Exercise(
    "features_active_on",
    number="1.5",
    title="Which latents fire?",
    difficulty=2,
    importance=5,
    minutes=15,
    hints=(
        """
        Where the dictionary reads stands in `sae.cfg.metadata.hook_name`. Read the stream at the *last* token of each
        prompt, encode these vectors (`sae.encode`, `[n_prompts, d_model] -> [n_prompts, d_sae]`), compare with the
        threshold.
        """,
        """
        You already have a batched reader for prompts of different length: what is the class mean of a class with one
        template, if the template is just `"{}"`?
        """,
        """
        `last = mine.class_means(model, prompts, ["{}"], sae.cfg.metadata.hook_name)`, then `(sae.encode(last) >
        threshold).any(dim=0).nonzero().squeeze(1)`.
        """,
    ),
)

DECODER_PCA = Exercise(
    "decoder_pca",
    number="1.6",
    title="The decoder's cloud, frugally",
    difficulty=2,
    importance=3,
    minutes=10,
    hints=(
        "The rows are `sae.W_dec[latents]`; `mine.pca` does the rest.",
        """
        Whatever makes a copy (`.float()`, `.clone()`, `.cpu()`, a subtraction) must come *after* the rows are picked,
        or the whole decoder is copied.
        """,
        "`coords, _, ratio = mine.pca(sae.W_dec[latents].float(), k)`",
    ),
)

CIRCLE_CLUSTER = Exercise(
    "circle_cluster",
    number="1.7",
    title="Which cluster holds the circle?",
    difficulty=4,
    importance=3,
    minutes=35,
    hints=(
        """
        Three steps. Cluster the rows `sae.W_dec[latents]` by direction. For every cluster, reconstruct the classes from
        its latents alone: `class_acts[:, cluster] @ sae.W_dec[cluster]`. Score each with your own `mine.pca` and
        `mine.calendar_order_score`.
        """,
        """
        `scipy.cluster.hierarchy` clusters: `linkage(distances, 'average')` takes the *condensed* distances (the upper
        triangle, row by row: `torch.triu_indices(n, n, offset=1)`), and `fcluster(tree, n_clusters, 'maxclust')` gives
        a label for each row. The distance of two directions is 1 - cosine.
        """,
        """
        Keep `(score, means.var(dim=0).sum().item(), cluster)` for every cluster whose second component has at least 1 %
        of the variance, and return the cluster of the largest pair (score, variance). With no candidate left, raise a
        ValueError.
        """,
    ),
)

SEPARABILITY_INDEX = Exercise(
    "separability_index",
    number="1.8a",
    title="Does the cloud fall apart?",
    difficulty=4,
    importance=2,
    minutes=25,
    hints=(
        """
        Two independent features, plotted against each other, have no mutual information in *some* rotation of the
        plane. A circle has it in every rotation. So: for each angle rotate the points, estimate the mutual information
        of the two coordinates from a histogram, and keep the smallest.
        """,
        """
        With joint shares p(i, j) of the histogram's cells and their row and column sums p(i), p(j), mutual information
        is the sum over full cells of p(i, j) log2(p(i, j) / (p(i) p(j))).
        """,
        """
        `bins = ((points - low) / (high - low) * n_bins).long().clamp(max=n_bins - 1)` with each coordinate's own low
        and high; `torch.bincount(bins[:, 0] * n_bins + bins[:, 1], minlength=n_bins**2)` counts the cells. Angles:
        `math.pi / 2 * step / n_angles`; a quarter turn only swaps the coordinates.
        """,
    ),
)

MIXTURE_INDEX = Exercise(
    "mixture_index",
    number="1.8b",
    title="Or is it a mixture?",
    difficulty=3,
    importance=2,
    minutes=20,
    hints=(
        """
        Project the points on a direction v: a line in the plane is then a single number, and the points near the line
        are those whose projection is near that number.
        """,
        """
        The yardstick moves with the line: it is epsilon times the root mean square of the distances of *all* points
        from that line, not of the centred projection.
        """,
        """
        For one direction: `along = points @ v`, `distances = along[None, :] - along[:, None]` (row i: the line through
        point i), `close = distances.abs() < epsilon * distances.square().mean(dim=1, keepdim=True).sqrt()`, and the
        best row of `close.float().mean(dim=1)`. Take the best of all directions.
        """,
    ),
)

ROTATE_IN_PLANE = Exercise(
    "rotate_in_plane",
    number="1.9a",
    title="Turn the dial",
    difficulty=3,
    importance=3,
    minutes=15,
    hints=(
        """
        Split each row, seen from `centre`, into a part inside the plane and a part outside. Only the first one turns.
        """,
        """
        `flat = (x - centre) @ plane.T` are the two coordinates in the plane. Turn these two numbers with a 2 x 2
        matrix. What has to be added to `x` is the *difference* between turned and unturned, carried back with `@
        plane`.
        """,
        """
        A row (a, b) becomes (a cos t - b sin t, a sin t + b cos t). With `turn = torch.tensor([[cos, sin], [-sin,
        cos]])` that is `flat @ turn`, and the answer is `x + (flat @ turn - flat) @ plane`.
        """,
    ),
)

PATCH_SUBSPACE = Exercise(
    "patch_subspace",
    number="1.9b",
    title="Exchange a part",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        """
        For orthonormal rows, `x @ components.T` are the coordinates of x in the subspace, and multiplying these by
        `components` again gives the part of x that lies in it.
        """,
        "Take the part out of `x`, put the same part of `target` in. Projection is linear, so the two steps are one.",
        "`x + (target - x) @ components.T @ components`",
    ),
)

NEXT_TOKENS_AFTER_PATCH = Exercise(
    "next_tokens_after_patch",
    number="1.9c",
    title="Ask the model",
    difficulty=3,
    importance=4,
    minutes=20,
    hints=(
        """
        A hook function that returns a tensor replaces the activation with it. It gets all prompts at once: shape `[n,
        seq, d_model]`.
        """,
        """
        Clone the activation, write `replacement` into `[:, position]`, return the clone. `run_with_hooks` without
        `stop_at_layer` gives logits of shape `[n, seq, d_vocab]`.
        """,
        "`logits[:, -1].argmax(dim=-1)`: the last token predicts what comes next, wherever you patched.",
    ),
)


WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def filled(classes, templates):
    """Every class in every template, the templates of a class one after the other."""
    return [template.replace("{}", word) for word in classes for template in templates]


def by_class(rows, classes):
    """The mean of each class's rows, which stand as `filled` puts them."""
    return rows.unflatten(0, (len(classes), -1)).mean(dim=1)


def means_at(model, classes, templates, hook_name):
    return by_class(last_rows(model, filled(classes, templates), hook_name), classes)


# 1.1

NO_SPECIAL = """
    This is the activation of the prompt *without* the first special token. `model.to_tokens(prompt)` puts it in front;
    a tokenizer called directly, or `prepend_bos=False`, does not.
    """
FIRST_TOKEN = """
    This is the activation at the *first* token, the attention sink of chapter 00. The last token is at position -1 of
    the sequence axis: `resid[0, -1]`.
    """
NEXT_POINT = """
    This is the stream after the block, not before it. `hook_resid_pre` of block L is what *enters* it; use the hook
    name as it is given.
    """
AVERAGED = "This is the mean over all tokens. Only the last one is asked for: `resid[0, -1]`."


@LAST_TOKEN_RESID.check(
    "the stream at the last token",
    points=2,
    hint="The activation at the hook has shape `[1, seq, d_model]`; `resid[0, -1]` is the vector of the last token.",
)
def test_last_token(impl, model):
    prompt, hook_name = "The meeting is on Thursday", "blocks.4.hook_resid_pre"
    tokens = model.to_tokens(prompt)
    stream = read(model, tokens, hook_name)[0]
    whole = "That is the whole sequence, or a batch of one. Pick the one vector: `resid[0, -1]`."
    expect.close(
        impl.last_token_resid(model, prompt, hook_name),
        stream[-1],
        name="the stream at ' Thursday'",
        norm="row",
        dims=("d_model",),
        mistakes=lambda: [
            (stream[None], whole),
            (stream, whole),
            (stream[None, -1], whole),
            (stream[0], FIRST_TOKEN),
            (stream.mean(dim=0), AVERAGED),
            (read(model, tokens[:, 1:], hook_name)[0, -1], NO_SPECIAL),
            (last_rows(model, [prompt], "blocks.4.hook_resid_post")[0], NEXT_POINT),
        ],
        why="a run of the model with a torch hook on the module of block 4 sees this",
    )


@LAST_TOKEN_RESID.check(
    "any point of the stream, the first and the last included",
    points=1,
    hint="""
        `hook_resid_pre`, `hook_resid_mid` and `hook_resid_post` of every block must work, block 0 and block 29
        included. Pass the hook name on as it is, and let only `stop_at_layer` depend on the layer's number: a hook of
        block L needs `stop_at_layer=L + 1`.
        """,
)
def test_any_point(impl, model):
    prompt, last = "See you on Monday", model.cfg.n_layers - 1
    for point in ("0.hook_resid_pre", "2.hook_resid_mid", "3.hook_resid_post", f"{last}.hook_resid_post"):
        expect.close(
            impl.last_token_resid(model, prompt, f"blocks.{point}"),
            last_rows(model, [prompt], f"blocks.{point}")[0],
            name=f"the stream at blocks.{point}",
            norm="row",
            why="the hook's own point of the stream is asked for",
        )


@LAST_TOKEN_RESID.check(
    "the model stops where the answer is known",
    points=1,
    hint="""
        Pass `stop_at_layer`: blocks behind the hook, and the unembedding, cannot change what the hook has seen. The
        hook of block 3 needs `stop_at_layer=4`.
        """,
)
def test_stops(impl, model):
    with impl.watch(model) as seen:
        got = impl.last_token_resid(model, "Today is Friday", "blocks.3.hook_resid_pre")
    expect.shape(got, (model.cfg.d_model,), dims=("d_model",), why="one token, one layer: one vector")
    expect.cost(seen, passes=1, why="one prompt, one hook")
    expect.cost(seen, blocks=4, logits=False, why="the activation at block 3 does not depend on later blocks")


@LAST_TOKEN_RESID.check(
    "one activation kept, no hook left behind",
    points=1,
    hint="""
        A hook added with `model.add_hook` stays on the model and fires in every later run; `run_with_hooks` takes its
        hooks off again.
        """,
)
def test_leaves_nothing(impl, model):
    with impl.watch(model) as seen:
        got = impl.last_token_resid(model, "Today is Friday", "blocks.20.hook_resid_pre")
    expect.shape(got, (model.cfg.d_model,), dims=("d_model",), why="one token, one layer: one vector")
    expect.cost(
        seen,
        megabytes=3,
        why="the activation itself takes 0.01 MB; the reference needs 0.4 MB",
        hint="""
            You keep far more than one activation: `run_with_cache` without `names_filter` keeps every one of them. Use
            a hook, or `names_filter=hook_name`.
            """,
    )


# 1.2

DAY_FRAMES = ["Today is {}", "See you on {}", "It happened on a {}", "It rains every {}"]
LONG_WORDS = ["the day after Christmas", "noon"]
LONG_FRAMES = ["{}", "We have not slept since {}", "See you on {} then, as we agreed"]
PADDED_COLUMN = """
    The rows were read at the last *column*, which is padding for every prompt but the longest. Read each row at its own
    last token: `model.to_tokens(prompt).shape[1] - 1` says where that is.
    """
PADDING_SEEN = """
    The prompts were padded on the left, and the model looked at the padding. Pad on the right (`to_tokens(prompts,
    padding_side="right")`) and read each row at its own last token, give an `attention_mask`, or group prompts of equal
    length.
    """
MIXED_UP = """
    The rows are means over the wrong prompts: class and template are mixed up. If the class is the outer loop when the
    prompts are made, the axes are `(n_class, n_templates)` in this order, and the mean is over the second.
    """


@CLASS_MEANS.check(
    "a row per class: the mean over its templates",
    points=2,
    hint="Row i is the mean over all templates of the stream at the last token, with class i filled in.",
)
def test_means(impl, model):
    classes, hook_name = ["Friday", "Monday", "Sunday"], "blocks.3.hook_resid_pre"
    frames = ["Today is {}", "They left {}"]  # all of one length
    vectors = last_rows(model, filled(classes, frames), hook_name).unflatten(0, (3, 2))
    means = vectors.mean(dim=1)
    expect.close(
        impl.class_means(model, classes, frames, hook_name),
        means,
        name="the class means",
        norm="row",
        dims=("n_class", "d_model"),
        mistakes=[
            (vectors.flatten(0, 1).unflatten(0, (2, 3)).mean(dim=0), MIXED_UP),
            (vectors.sum(dim=1), "This is the sum over the templates, not the mean."),
            (vectors[:, 0], "Only the first template was used: average over all of them."),
            (means[[1, 0, 2]], "The rows must come in the order in which the classes are given, unsorted."),
            (means - means.mean(dim=0), "The mean of all classes was subtracted. `pca` does that later."),
        ],
        why="each prompt was run alone, and the last token's streams averaged over the two templates",
    )


@CLASS_MEANS.check(
    "padding leaves no trace",
    points=3,
    hint="""
        Prompts of different length share a batch here. Compare your means with `last_token_resid`, prompt by prompt:
        which of them differ? Padding must be neither read nor looked at.
        """,
)
def test_padding(impl, model):
    hook_name, prompts = "blocks.3.hook_resid_pre", filled(LONG_WORDS, LONG_FRAMES)
    expect.close(
        impl.class_means(model, LONG_WORDS, LONG_FRAMES, hook_name),
        means_at(model, LONG_WORDS, LONG_FRAMES, hook_name),
        name="the class means",
        norm="row",
        dims=("n_class", "d_model"),
        mistakes=lambda: [
            (by_class(last_column(model, prompts, hook_name, "right"), LONG_WORDS), PADDED_COLUMN),
            (by_class(last_column(model, prompts, hook_name, "left"), LONG_WORDS), PADDING_SEEN),
        ],
        why="each prompt was run alone, without padding: words and templates have different lengths",
    )


@CLASS_MEANS.check(
    "any point of the stream",
    points=1,
    hint="Use the hook name as it is given; only `stop_at_layer` depends on the layer's number.",
)
def test_means_any_point(impl, model):
    for hook_name in ("blocks.0.hook_resid_pre", "blocks.2.hook_resid_mid", "blocks.4.hook_resid_post"):
        expect.close(
            impl.class_means(model, ["noon", "Tuesday"], LONG_FRAMES[:2], hook_name),
            means_at(model, ["noon", "Tuesday"], LONG_FRAMES[:2], hook_name),
            name=f"the means at {hook_name}",
            norm="row",
            dims=("n_class", "d_model"),
            why="the hook's own point of the stream is asked for",
        )


@CLASS_MEANS.check(
    "batched, stopped, cleaned up",
    points=1,
    hint="""
        One pass for each prompt is what this function is there to avoid: give the model a batch of prompts. Stop it
        with `stop_at_layer`, and leave no hook on it.
        """,
)
def test_means_cost(impl, model):
    with impl.watch(model) as seen:
        got = impl.class_means(model, WEEKDAYS[:4], DAY_FRAMES, "blocks.3.hook_resid_pre")
    expect.shape(got, (4, model.cfg.d_model), dims=("n_class", "d_model"), why="a row per class")
    expect.cost(
        seen, passes=8, why="16 prompts: the model reads many at the price of a few when they come in one batch"
    )
    expect.cost(
        seen,
        blocks=4,
        logits=False,
        why="the activation at block 3 does not depend on later blocks",
        hint="Pass `stop_at_layer=layer + 1`, as in the exercise before.",
    )


# 1.3

PARTS = ("coords", "components", "explained_variance_ratio")
NOT_CENTRED = "Centre first: subtract the mean row. Else the first component merely points from the origin to the data."


def far_cloud(n, d, seed):
    """A cloud with well separated variances, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    scales = 2.0 ** -torch.arange(d)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    return torch.randn(n, d, generator=generator) * scales @ turn + 10 * torch.randn(d, generator=generator)


def by_eigenvalues(x, k, centred=True):
    """Components and shares from the covariance matrix, in double precision, signs as the exercise says."""
    x = x.double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T) if centred else x.T @ x)
    components = vectors.T.flip(0)[:k].clone()
    for row in components:
        if row[row.abs().argmax()] < 0:
            row.neg_()
    return components.float(), (values.flip(0) / values.sum())[:k].float()


def other_signs(columns):
    """The matrix with each choice of columns turned round."""
    signs = itertools.product((1.0, -1.0), repeat=columns.shape[1])
    return [columns * torch.tensor(some) for some in signs][1:]


@PCA.check(
    "coordinates of the centred rows",
    points=2,
    hint="`coords` are the centred rows times the components: `centred @ components.T`, in the units of `x`.",
)
def test_pca_coords(impl):
    x = far_cloud(6, 4, seed=0)
    coords, _, _ = expect.unpack(impl.pca(x, 2), PARTS)
    components = by_eigenvalues(x, 2)[0]
    want = (x - x.mean(dim=0)) @ components.T
    scaled = "Right up to a scale: the coordinates keep the units of `x`. `U` alone is not enough; it is `U * S`."
    flipped = "Right up to a sign: coordinates must be flipped together with their component."
    expect.close(
        coords,
        want,
        name="`coords`",
        dims=("n", "k"),
        rtol=1e-3,
        atol=1e-4,
        mistakes=[
            (x @ components.T, NOT_CENTRED),
            (x @ by_eigenvalues(x, 2, centred=False)[0].T, NOT_CENTRED),
            *((part / part.norm(dim=0), scaled) for part in (want, *other_signs(want))),
            *((part, flipped) for part in other_signs(want)),
        ],
        why="the centred rows projected on the eigenvectors of the covariance matrix",
    )


@PCA.check(
    "orthonormal components, most variance first",
    points=2,
    hint="The components are the first k *rows* of `Vh` (columns of V), of length 1 and at right angles to each other.",
)
def test_pca_components(impl):
    x = far_cloud(8, 5, seed=1)
    coords, components, _ = expect.unpack(impl.pca(x, 3), PARTS)
    want = by_eigenvalues(x, 3)[0]
    expect.close(
        components,
        want,
        name="`components`",
        dims=("k", "d"),
        rtol=1e-3,
        atol=1e-3,
        mistakes=[
            (want.T, "The components are rows: shape `(k, d)`. This is transposed."),
            (by_eigenvalues(x, 3, centred=False)[0], NOT_CENTRED),
            *((part.T, SIGNS) for part in other_signs(want.T)),
        ],
        why="these are the eigenvectors of the covariance matrix, largest eigenvalue first",
    )
    components = expect.tensor(components).detach().cpu()
    expect.close(
        components @ components.T,
        torch.eye(3),
        name="`components @ components.T`",
        atol=1e-4,
        why="orthonormal rows: each has length 1, and they are at right angles",
    )
    expect.close(
        (x - x.mean(dim=0)) @ components.T,
        coords,
        name="centred rows times your components",
        rtol=1e-3,
        atol=1e-3,
        why="coordinates and components belong together: the one is computed with the other",
    )


SIGNS = """
    Signs must not be left to chance: in each component the entry of largest *magnitude* is positive. Find it with
    `components.abs().argmax(dim=1)`, and flip the rows where it is negative, together with their coordinates.
    """


@PCA.check("signs that do not depend on the library", points=1, hint=SIGNS)
def test_pca_signs(impl):
    for seed in range(4):
        x = far_cloud(7, 6, seed=10 + seed)
        _, components, _ = expect.unpack(impl.pca(x, 3), PARTS)
        components = expect.shape(
            components, (3, 6), name="`components`", dims=("k", "d"), why="a row for each component"
        )
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True)).flatten()
        expect.that(
            bool((largest > 0).all()),
            expected="a positive entry of largest magnitude in each component",
            returned=components,
            why="a component and its negative span the same line; somebody has to choose",
        )
        coords, mirrored, _ = expect.unpack(impl.pca(-x, 3), PARTS)
        expect.close(
            mirrored,
            components,
            name="the components of -x",
            rtol=1e-3,
            atol=1e-3,
            why="the cloud -x has the same axes, so the same signs must come out",
        )
        expect.close(
            (-x + x.mean(dim=0)) @ mirrored.T,
            coords,
            name="centred rows times your components",
            rtol=1e-3,
            atol=1e-3,
            why="a flipped component needs its coordinates flipped too",
        )


@PCA.check(
    "shares of the total variance",
    points=2,
    hint="""
        The share is `S ** 2` of each component over the sum of *all* `S ** 2`, also of those that are not kept.
        Squares: `S` itself is a standard deviation.
        """,
)
def test_pca_ratio(impl):
    axes = torch.diag(torch.tensor([6.0, 3.0, 2.0, 1.0]))
    x = torch.cat([axes, -axes]) + 5.0  # variances along the axes are as 36 : 9 : 4 : 1
    _, _, ratio = expect.unpack(impl.pca(x, 2), PARTS)
    kept = "These shares add up to 1 although two components are missing: divide by the *total* variance."
    plain = "Variance goes with the *square* of the singular values."
    expect.close(
        ratio,
        torch.tensor([36 / 50, 9 / 50]),
        name="`explained_variance_ratio`",
        dims=("k",),
        mistakes=[
            (torch.tensor([36 / 45, 9 / 45]), kept),
            (torch.tensor([6 / 12, 3 / 12]), plain),
            (torch.tensor([6 / 9, 3 / 9]), plain),
            (by_eigenvalues(x, 2, centred=False)[1], NOT_CENTRED),
        ],
        why="the planted variances are as 36 : 9 : 4 : 1, so the first two hold 36/50 and 9/50 of the total",
    )


@PCA.check(
    "wide and tall data",
    points=1,
    hint="""
        Few rows in many dimensions (seven means of 576 numbers) and many rows in few must both work:
        `torch.linalg.svd(centred, full_matrices=False)` handles either.
        """,
)
def test_pca_shapes(impl):
    for n, d, k in ((7, 576, 6), (200, 3, 2), (5, 5, 1)):
        seed = fresh_seed()
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(3, 1, d) + 2
        coords, components, ratio = expect.unpack(impl.pca(x, k), PARTS)
        expect.shape(coords, (n, k), name="`coords`", dims=("n", "k"), why=f"x has {n} rows")
        expect.shape(components, (k, d), name="`components`", dims=("k", "d"), why=f"x has {d} columns")
        centred = (x - x.mean(dim=0)).double()
        gram = centred @ centred.T if n < d else centred.T @ centred  # the same non-zero eigenvalues
        spectrum = torch.linalg.eigvalsh(gram).flip(0)
        expect.close(
            ratio,
            (spectrum / spectrum.sum())[:k].float(),
            name="`explained_variance_ratio`",
            dims=("k",),
            rtol=1e-3,
            why=f"shares of the eigenvalues of the covariance matrix (x was drawn with seed {seed})",
        )
    expect.close(
        expect.unpack(impl.pca(torch.full((4, 3), 2.0), 2), PARTS)[2],
        torch.zeros(2),
        name="`explained_variance_ratio`",
        why="all rows are equal: there is no variance to share",
        hint="The total variance is 0 here, and 0 / 0 is nan. Divide by the total only where it is above 0.",
    )
    expect.raises(
        lambda: impl.pca(far_cloud(3, 5, seed=2), 4),
        "ValueError",
        why="three rows have at most three components, and k is 4",
        hint="Slicing gives what there is without a word. Compare k with the number of rows and columns.",
    )


# 1.4


def as_complex(coords):
    return [complex(*row) for row in coords.tolist()]


def neighbours_share(coords):
    """The share of calendar neighbours with all other points on one side, going round."""
    points = as_complex(coords)
    n = len(points)
    centre = sum(points) / n
    neighbours = 0
    for i in range(n):
        j = (i + 1) % n
        turn_to_j = cmath.phase((points[j] - centre) / (points[i] - centre)) % (2 * math.pi)
        others = [points[k] for k in range(n) if k not in (i, j)]
        between = sum(cmath.phase((p - centre) / (points[i] - centre)) % (2 * math.pi) < turn_to_j for p in others)
        neighbours += between in (0, n - 2)
    return neighbours / n


def on_circle(order, start=0.3, centre=(0.0, 0.0), direction=1):
    """Coordinates of classes 0..n-1 that stand in `order` around a circle, with slightly different radii."""
    n = len(order)
    coords = torch.zeros(n, 2)
    for place, point in enumerate(order):
        angle = start + direction * 2 * math.pi * place / n
        coords[point] = (1 + 0.1 * (point % 3)) * torch.tensor([math.cos(angle), math.sin(angle)])
    return coords + torch.tensor(centre)


def steps(coords, around_origin=False):
    """How many places each point's successor in the calendar stands further on, in the order of the angles."""
    points = as_complex(coords if around_origin else coords - coords.mean(dim=0))
    order = sorted(range(len(points)), key=lambda i: cmath.phase(points[i]))
    place = [order.index(i) for i in range(len(points))]
    return [place[(i + 1) % len(points)] - place[i] for i in range(len(points))]


def side_by_side(some, n):
    return sum(step % n in (1, n - 1) for step in some)


CLOSE_THE_RING = """
    The week has seven pairs of neighbours, not six: Sunday and Monday are one of them, and the first and the last in
    sorted order stand side by side as well. Work modulo n: `(i + 1) % n`.
    """
BOTH_WAYS = """
    Whether the calendar runs clockwise or counter-clockwise must not matter: neighbours are neighbours both ways. The
    difference of the places, modulo n, may be 1 or n - 1.
    """
FROM_CENTROID = (
    "Angles are seen from the centroid of the points, not from the origin: subtract `coords.mean(dim=0)` first."
)
SCORE_MISTAKES = (
    (lambda coords: sum(step % len(coords) == 1 for step in steps(coords)) / len(coords), BOTH_WAYS),
    (lambda coords: sum(abs(step) == 1 for step in steps(coords)) / len(coords), CLOSE_THE_RING),
    (lambda coords: sum(abs(step) == 1 for step in steps(coords)[:-1]) / (len(coords) - 1), CLOSE_THE_RING),
    (lambda coords: side_by_side(steps(coords)[:-1], len(coords)) / len(coords), CLOSE_THE_RING),
    (lambda coords: side_by_side(steps(coords)[:-1], len(coords)) / (len(coords) - 1), CLOSE_THE_RING),
    (lambda coords: side_by_side(steps(coords, around_origin=True), len(coords)) / len(coords), FROM_CENTROID),
)


def same_scores(impl, clouds):
    """Demand the score of each cloud; `clouds` pairs coordinates with what the message says of them."""
    cases = [(coords,) for coords, _ in clouds]
    hint = mistake_in_all(impl.calendar_order_score, cases, neighbours_share, SCORE_MISTAKES)
    for coords, why in clouds:
        got = impl.calendar_order_score(coords)
        expect.close(got, neighbours_share(coords), name="the score", why=why, hint=hint)


@CALENDAR_ORDER_SCORE.check(
    "the calendar order gives 1, turned and mirrored",
    points=2,
    hint="""
        In a regular heptagon in calendar order every day stands beside the next one, wherever Monday is, and whichever
        way round the week runs.
        """,
)
def test_score_one(impl):
    ways = ((0.3, 1), (2.9, 1), (-1.4, 1), (0.3, -1), (3.1, -1))
    same_scores(
        impl,
        [
            (
                on_circle(range(7), start, direction=direction),
                f"the seven points stand in calendar order, {'counter-' * (direction > 0)}clockwise",
            )
            for start, direction in ways
        ],
    )


@CALENDAR_ORDER_SCORE.check("angles around the centroid", points=1, hint=FROM_CENTROID)
def test_score_centroid(impl):
    centres = ((5.0, 0.0), (-3.0, 4.0), (100.0, -100.0))
    moved = "the same heptagon, moved to {}: the order has not changed"
    same_scores(impl, [(on_circle(range(7), centre=centre), moved.format(centre)) for centre in centres])


@CALENDAR_ORDER_SCORE.check(
    "partly in order: a share of n neighbours",
    points=2,
    hint="""
        Count how many of the n calendar neighbours (the last and the first included) are neighbours in the circular
        order, and divide by n.
        """,
)
def test_score_partial(impl):
    orders = {
        (1, 0, 2, 3, 4, 5, 6): "Monday and Tuesday have changed places: 1-2 and 6-0 are torn apart, five pairs remain",
        (0, 2, 4, 6, 1, 3, 5): "every second day: no day stands beside the next one",
        (3, 4, 5, 6, 0, 2, 1): "one pair has changed places; Sunday and Monday stand side by side",
        (0, 1, 2, 3, 6, 5, 4): "Thursday to Sunday run the other way round",
    }
    same_scores(impl, [(on_circle(order), f"around the circle stand {order}: {why}") for order, why in orders.items()])


@CALENDAR_ORDER_SCORE.check(
    "other numbers of classes, irregular clouds",
    points=1,
    hint="""
        n is the number of rows (twelve for months), and clouds are not regular: only the order of the angles counts,
        not distances and not equal steps.
        """,
)
def test_score_clouds(impl):
    generator = torch.Generator().manual_seed(4)
    spread, centre = torch.tensor([3.0, 1.0]), torch.tensor([1.0, -2.0])
    cases = [(on_circle(range(12), start=1.0), "twelve points in calendar order")]
    for n in (5, 8, 12) * 4:
        cloud = torch.randn(n, 2, generator=generator) * spread + centre
        cases.append((cloud, "counted pair by pair: neighbours have no other point between them on one side"))
    for n in (6, 9):
        seed = fresh_seed()
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
        cases.append((on_circle(order), f"around the circle stand {order}, drawn with seed {seed}"))
    same_scores(impl, cases)


ORDERS = """
    Chance may put the n points into any circular order. Rotated and mirrored orders are the same order, so of the n!
    ways to write one down, 2n mean the same: there are (n - 1)! / 2, and one of them is the calendar's.
    """


@CALENDAR_ORDER_P_VALUE.check("one in the number of circular orders", points=2, hint=ORDERS)
def test_p_value(impl):
    for n in (7, 12, 5, 4):
        want = 2 / math.factorial(n - 1)
        got = impl.calendar_order_p_value(on_circle(range(n), start=0.9))
        expect.close(
            got,
            want,
            name="the p-value",
            rtol=1e-6,
            atol=0,
            why=f"{n} points in calendar order: one of (n - 1)! / 2 = {math.factorial(n - 1) // 2} circular orders",
        )
    in_order = sum(neighbours_share(on_circle(order)) == 1 for order in itertools.permutations(range(5)))
    expect.close(
        impl.calendar_order_p_value(on_circle(range(5))),
        in_order / 120,
        name="the p-value",
        rtol=1e-6,
        atol=0,
        why=f"of the 120 ways to seat 5 points, {in_order} are in calendar order: counted",
    )


@CALENDAR_ORDER_P_VALUE.check(
    "no claim without the full order",
    points=1,
    hint="""
        If the score is below 1, the p-value is 1: this test makes a claim about the whole calendar or none at all. And
        it looks at the points: call your `calendar_order_score`.
        """,
)
def test_p_value_else(impl):
    for order in ((1, 0, 2, 3, 4, 5, 6), (0, 2, 4, 6, 1, 3, 5)):
        expect.close(
            impl.calendar_order_p_value(on_circle(order)),
            1.0,
            name="the p-value",
            why=f"around the circle stand {order}: not the calendar, so the score is below 1",
        )


@CALENDAR_ORDER_P_VALUE.check(
    "three points prove nothing",
    points=1,
    hint="The formula 2 / (n - 1)! takes care of it: three points have only one circular order, so p is 1.",
)
def test_p_value_three(impl):
    expect.close(
        impl.calendar_order_p_value(on_circle(range(3))),
        1.0,
        name="the p-value",
        why="three points are in calendar order whatever you do",
    )


# 1.5

LAST_ONLY = """
    These latents are not active on a last token. Count the last token of each prompt only: every prompt begins with the
    same first token, the attention sink, and a maximum that includes it is the same number for every prompt.
    """
PROMPTS = ("Today is Monday", "The meeting is on Sunday", "I like")


def last_acts(sae, model):
    """Activations [n_prompts, d_sae] of a dictionary on the last token of each prompt, read one by one."""
    return encode(sae, last_rows(model, PROMPTS, sae.cfg.metadata.hook_name))


def numbers(mask):
    return mask.nonzero().flatten()


def same_latents(got, want, mistakes):
    """Demand the latents of a mask [d_sae], sorted; `mistakes` are other masks with their hints."""
    got = expect.tensor(got, why="latents' numbers, as `nonzero` gives them")
    expect.that(
        got.ndim == 1 and got.dtype == torch.int64,
        expected="latents' numbers: whole numbers (int64) of shape (n,)",
        returned=got,
        why="a mask, or a pair of axes, is not yet a list of latents",
        hint="`mask.nonzero()` of a vector has shape (n, 1); `.squeeze(1)` makes it a list of numbers.",
    )
    as_set, want = got.unique(), numbers(want)
    missing, extra = (sorted(set(a.tolist()) - set(b.tolist())) for a, b in ((want, as_set), (as_set, want)))
    expect.that(
        not missing and not extra,
        expected=f"{len(want)} latents",
        returned=f"{len(as_set)} latents; missing: {missing[:5] or 'none'}, too many: {extra[:5] or 'none'}",
        why="each prompt, read alone and encoded at its last token, has these latents above the threshold",
        hint=expect.mistake_in(as_set, want, [(numbers(wrong), hint) for wrong, hint in mistakes], expect.is_same),
    )
    expect.equal(
        got,
        want,
        name="the latents, sorted, each once",
        why="two prompts may share a latent, and a set has no doubles",
        hint="Sorted, each once: reduce over the prompts with `.any(dim=0)` first, then take `nonzero()`.",
    )


@FEATURES_ACTIVE_ON.check(
    "the latents of the last tokens",
    points=2,
    hint="""
        `(sae.encode(last) > threshold).any(dim=0)`, where `last` is the stream at each prompt's last token, as a run of
        its own would give it.
        """
    + LAST_ONLY,
)
def test_features_active(impl, model, dictionaries):
    sae, place = dictionaries["resid_pre.6"], "blocks.6.hook_resid_pre"
    acts = last_acts(sae, model)
    tokens = [model.to_tokens(prompt) for prompt in PROMPTS]
    everywhere = torch.cat([encode(sae, read(model, row, place)[0]) for row in tokens])
    without = torch.cat([encode(sae, read(model, row[:, 1:], place)[:, -1]) for row in tokens])
    every = "These are the latents of *every* prompt. One prompt is enough: `any`, not `all`."
    same_latents(
        impl.features_active_on(model, sae, list(PROMPTS), 0.0),
        (acts > 0).any(dim=0),
        mistakes=[
            ((everywhere > 0).any(dim=0), LAST_ONLY),
            ((without > 0).any(dim=0), NO_SPECIAL),
            ((acts > 0).all(dim=0), every),
        ],
    )


@FEATURES_ACTIVE_ON.check(
    "a threshold",
    points=1,
    hint="""
        Compare every activation with `threshold` itself, before you ask which prompt it came from: the question is
        whether the *largest* activation over prompts is above it, not the mean.
        """,
)
def test_features_threshold(impl, model, dictionaries):
    sae = dictionaries["resid_pre.6"]
    acts = last_acts(sae, model)
    positive = acts[acts > 0].sort().values
    threshold = float(positive[len(positive) // 2 :][:2].mean())  # between two activations, on none
    averaged = "These latents' *mean* over prompts is above the threshold. One prompt above it is enough."
    same_latents(
        impl.features_active_on(model, sae, list(PROMPTS), threshold),
        (acts > threshold).any(dim=0),
        mistakes=[(acts.mean(dim=0) > threshold, averaged)],
    )


@FEATURES_ACTIVE_ON.check(
    "no more of the model than needed",
    points=1,
    hint="""
        Read all prompts in one pass, and stop the model at the dictionary's layer (`stop_at_layer`). `class_means` with
        the single template `"{}"` does both.
        """,
)
def test_features_cost(impl, model, dictionaries):
    sae = dictionaries["resid_pre.6"]
    with impl.watch(model) as seen:
        got = impl.features_active_on(model, sae, list(PROMPTS), 0.0)
    expect.that(
        isinstance(got, torch.Tensor) and got.numel() > 0,
        expected="latents",
        returned=got,
        why="a cheap pass must still find the latents",
    )
    expect.cost(seen, passes=len(PROMPTS) - 1, why="prompts of different length can share a pass")
    expect.cost(seen, blocks=7, logits=False, why="the stream that enters block 6 is all that the dictionary reads")


# 1.6


@DECODER_PCA.check(
    "coordinates and shares",
    points=2,
    hint="`mine.pca` of the rows `sae.W_dec[latents]`, in the order of `latents`, not normalised.",
)
def test_decoder_pca(impl, dictionaries):
    sae = dictionaries["resid_pre.6"]
    latents = torch.tensor([40, 7, 300, 12, 2000, 77])
    coords, ratio = expect.unpack(impl.decoder_pca(sae, latents, 3), ("coords", "explained_variance_ratio"))
    expect.shape(coords, (6, 3), name="coords", dims=("n", "k"), why="a row per latent, a column per component")
    expect.shape(ratio, (3,), name="explained_variance_ratio", dims=("k",), why="a share per component")
    rows = sae.W_dec[latents].double()
    centred = rows - rows.mean(dim=0)
    shares = torch.linalg.eigvalsh(centred @ centred.T).flip(0)
    expect.close(
        ratio,
        (shares / shares.sum())[:3].float(),
        rtol=1e-3,
        name="explained_variance_ratio",
        why="the eigenvalues of the rows' Gram matrix, over the sum of all of them",
        hint="Of the centred rows, and each component's share of the *total* variance: `mine.pca` returns it third.",
    )
    vectors = torch.linalg.eigh(centred @ centred.T).eigenvectors.flip(1)[:, :3]
    plane = (vectors * shares[:3]) @ vectors.T  # coords @ coords.T, whatever the signs
    expect.close(
        (coords @ coords.T).double(),
        plane,
        rtol=1e-3,
        atol=1e-4,
        name="coords @ coords.T",
        why="the first three components of the rows, in the order of `latents`, fix all inner products",
        hint="""
            Row i of `coords` belongs to `latents[i]`: keep the order, and project the *decoder* rows `W_dec[latents]`
            with their own lengths.
            """,
    )

    doubled = copy.deepcopy(stand_in("blocks.6.hook_resid_pre")).double()
    for result in expect.unpack(impl.decoder_pca(doubled, latents[:4] % 48, 2), ("coords", "explained_variance_ratio")):
        expect.dtype(
            result,
            torch.float32,
            why="this decoder is stored in double precision, and both results are promised in single precision",
            hint="`sae.W_dec[latents].float()`: single precision whatever the decoder is stored in.",
        )


@DECODER_PCA.check(
    "no copy of the decoder",
    points=2,
    hint="""
        Pick the rows first: `sae.W_dec[latents]`, and only then `.float()`, `.clone()` or anything else that makes a
        copy. `sae.W_dec.float()[latents]` copies the whole decoder before it throws nearly all of it away.
        """,
)
def test_decoder_pca_memory(impl, dictionaries):
    sae = dictionaries["resid_pre.3"]
    latents = torch.arange(0, sae.cfg.d_sae, sae.cfg.d_sae // 16)
    with impl.watch() as seen:
        coords, _ = expect.unpack(impl.decoder_pca(sae, latents, 2), ("coords", "explained_variance_ratio"))
    expect.shape(coords, (len(latents), 2), name="coords", dims=("n", "k"), why="a row per latent")
    whole, rows = sae.W_dec.numel() * 4e-6, len(latents) * sae.cfg.d_in * 4e-6
    expect.cost(
        seen,
        megabytes=whole / 4,
        why=f"""
            the {len(latents)} rows take {rows:.2f} MB, the whole decoder {whole:.1f} MB; of a large dictionary that one
            copy is what does not fit on the graphics card
            """,
    )


# 1.7


def around(day, axis):
    """A step around a circle in the plane of two axes that begin at `axis`: [16]."""
    angle = 2 * math.pi * day / 7
    return torch.eye(16)[axis] * math.cos(angle) + torch.eye(16)[axis + 1] * math.sin(angle)


@cache
def planted(second_circle=False):
    """A dictionary of 40 latents with three planted groups, and seven classes' activations.

    Latents 0-6: neighbouring directions whose reconstruction is a circle in calendar order. 10-15: the same activations
    on directions that give a scrambled order. 20-27: strong, on one line, numbered so that the line runs in order.
    30-36, if asked for: another circle along other axes, three times as large.
    """
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=40, k=4)).eval().requires_grad_(False)
    decoder = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    acts = torch.zeros(7, 40)
    axis = torch.eye(16)
    for i in range(7):
        size = 0.1 if i % 2 else 1.0  # lengths differ, directions do not
        decoder[i] = size * (1.5 * axis[0] + around(i, 1))
        acts[i, i] = 1 / size
        if i < 6:
            decoder[10 + i] = -1.5 * axis[0] + around(3 * i, 3)
            acts[i, 10 + i] = 1.5
        if second_circle:
            decoder[30 + i] = -1.5 * axis[7] + around(i, 8)
            acts[i, 30 + i] = 3
    decoder[20:28] = axis[5] + 0.05 * axis[6:14]
    acts[:, 20:28] = torch.linspace(0, 9, 7)[:, None].square()
    sae.W_dec.copy_(decoder)
    return sae, acts


OPPOSITE = """
    Two groups with opposite directions, 0-6 and 10-15, were put together. Opposite is not alike: use the cosine with
    its sign, not its magnitude.
    """
PLACES = "These are places in `latents`, not latents: return `latents[places]`."
GROUPS = torch.tensor([*range(7), *range(10, 16), *range(20, 28)])
CLUSTER_MISTAKES = (
    (
        torch.arange(20, 28),
        """
        Latents 20-27 lie on a line: their reconstruction has no second dimension, and the angles of points on a line
        mean nothing. Pass over clusters whose second component has less than 1 % of the variance.
        """,
    ),
    (
        torch.arange(10, 16),
        """
        This cluster's reconstruction runs in a scrambled order. Score the reconstruction of the *classes*,
        `class_acts[:, cluster] @ sae.W_dec[cluster]`, not the decoder rows themselves.
        """,
    ),
    (
        torch.tensor([0, 2, 4, 6]),
        """
        Long and short rows of the same direction were torn apart. Normalise the rows first: cosine, not Euclidean
        distance.
        """,
    ),
    (GROUPS, "These are all the candidates: return one cluster."),
)


@CIRCLE_CLUSTER.check(
    "the planted circle",
    points=3,
    hint="""
        Cluster by the *cosine* of decoder rows (1 - cosine as the distance, average linkage), reconstruct with one
        cluster at a time, score that reconstruction.
        """,
)
def test_circle_cluster(impl):
    sae, acts = planted()
    shuffled = GROUPS[torch.randperm(len(GROUPS), generator=torch.Generator().manual_seed(1))]
    got = expect.tensor(impl.circle_cluster(sae, acts, shuffled, 3), why="the latents' numbers, as a tensor")
    as_set, circle, scrambled = set(got.flatten().tolist()), set(range(7)), set(range(10, 16))
    opposite = as_set & circle and as_set & scrambled and as_set <= circle | scrambled
    expect.equal(
        got.flatten().sort().values,
        torch.arange(7),
        name="the cluster",
        why="three groups were planted: a circle in calendar order (0-6), a scrambled one (10-15) and a line (20-27)",
        mistakes=[*CLUSTER_MISTAKES, ((shuffled < 7).nonzero().flatten(), PLACES)],
        hint=OPPOSITE if opposite else None,
    )
    expect.equal(got, torch.arange(7), name="the cluster", why="the numbers are sorted")


@CIRCLE_CLUSTER.check(
    "of two circles, the one that varies more",
    points=1,
    hint="""
        Compare pairs: first the score, then the variance of the reconstruction between the classes,
        `means.var(dim=0).sum()`. Neither the number of latents nor the first cluster found decides.
        """,
)
def test_circle_cluster_tie(impl):
    latents = torch.tensor([*range(7), *range(30, 37)])
    got = impl.circle_cluster(*planted(second_circle=True), latents, 2)
    why = "both keep the order, and this one is three times as large"
    expect.equal(got, torch.arange(30, 37), name="the cluster", why=why)


@CIRCLE_CLUSTER.check(
    "errors that say what is wrong",
    points=1,
    hint="""
        Raise a ValueError when there are fewer latents than clusters, and when no cluster's reconstruction is more than
        a line.
        """,
)
def test_circle_cluster_errors(impl):
    sae, acts = planted()
    expect.raises(
        lambda: impl.circle_cluster(sae, acts, torch.tensor([1, 2]), 3), "ValueError", why="two latents, three clusters"
    )
    expect.raises(
        lambda: impl.circle_cluster(sae, acts, torch.arange(20, 28), 1),
        "ValueError",
        why="these eight latents reconstruct points on a line, and a line has no circular order",
    )


# 1.8


def clouds():
    """Clouds of 2,000 points: name -> points."""
    generator = torch.Generator().manual_seed(5)
    angle = torch.rand(2000, generator=generator) * 2 * math.pi
    noise = torch.randn(2000, 2, generator=generator)
    square = torch.rand(2000, 2, generator=generator) - 0.5
    lines = noise * torch.tensor([1.0, 0.02])
    lines[1000:] = lines[1000:].flip(1)
    return {
        "circle": torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * noise,
        "gaussian": noise,
        "square": square,
        "two lines": lines,
    }


def turned(points, degrees):
    phase = torch.view_as_complex(points.double().contiguous()) * cmath.exp(1j * math.radians(degrees))
    return torch.view_as_real(phase).float()


def entropy_in_bits(counts):
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def information(points, n_bins):
    """Mutual information of the coordinates' histogram in bits: H(x) + H(y) - H(x, y)."""
    joint, _, _ = np.histogram2d(*points.double().numpy().T, bins=n_bins)
    return entropy_in_bits(joint.sum(0)) + entropy_in_bits(joint.sum(1)) - entropy_in_bits(joint)


def least_information(points, n_angles=45, n_bins=8):
    return min(information(turned(points, 90 * step / n_angles), n_bins) for step in range(n_angles))


@SEPARABILITY_INDEX.check(
    "bits of a histogram",
    points=2,
    hint="""
        With one angle there is nothing to minimise: the mutual information of the coordinates as they are, sum p(i, j)
        log2(p(i, j) / (p(i) p(j))). In bits: log2. Bins run from each coordinate's minimum to its maximum.
        """,
)
def test_information_in_bits(impl):
    for name, points in clouds().items():
        for n_bins in (4, 10):
            want = information(points, n_bins)
            expect.close(
                impl.separability_index(points, 1, n_bins),
                want,
                rtol=0.02,
                atol=0.004,
                name=f"the index of the {name} with 1 angle and {n_bins} bins",
                why="H(x) + H(y) - H(x, y), counted with numpy's histogram",
            )


@SEPARABILITY_INDEX.check(
    "the smallest over rotations",
    points=2,
    hint="""
        Rotate the points by every angle and keep the *minimum*: a square that stands on its corner has two dependent
        coordinates, and is separable all the same, because some rotation makes them independent.
        """,
)
def test_separability(impl):
    for name in ("circle", "square", "two lines"):
        points = clouds()[name]
        for degrees in (0, 30):
            want = least_information(turned(points, degrees))
            expect.close(
                impl.separability_index(turned(points, degrees)),
                want,
                rtol=0.1,
                atol=0.02,
                name=f"the index of the {name}, turned by {degrees} degrees",
                why="the least mutual information over 45 rotations, counted with numpy's histogram",
            )


@cache
def closest_line(name, epsilon=0.1):
    """The mixture index of a cloud, by walking over 90 directions and 400 offsets."""
    best = 0.0
    for step in range(90):
        along = turned(sparse_clouds()[name], 2 * step)[:, 0].numpy()
        away = along[:, None] - np.linspace(along.min(), along.max(), 400)[None, :]
        close = np.abs(away) < epsilon * np.sqrt((away**2).mean(axis=0))
        best = max(best, float(close.mean(axis=0).max()))
    return best


@cache
def sparse_clouds():
    """The same clouds with 400 points, and one whose best line lies off the origin."""
    generator = torch.Generator().manual_seed(2)
    aside = torch.randn(400, 2, generator=generator)
    aside[:160, 0] = 3 + 0.2 * torch.randn(160, generator=generator)
    return {name: points[::5] for name, points in clouds().items()} | {"aside": aside}


@MIXTURE_INDEX.check(
    "known clouds",
    points=2,
    hint="""
        The *largest* share over all directions and offsets. `epsilon` is a share of the root mean square distance, so
        that the size of the cloud does not matter.
        """,
)
def test_mixture(impl):
    for name, scale in (("circle", 1.0), ("gaussian", 10.0), ("two lines", 1.0), ("two lines", 30.0)):
        expect.close(
            impl.mixture_index(turned(sparse_clouds()[name], 20) * scale),
            closest_line(name),
            rtol=0.08,
            atol=0.02,
            name=f"the index of the {name}, {scale:g} times as large",
            why="the best of 90 directions and 400 offsets",
        )


@MIXTURE_INDEX.check(
    "a line that does not pass through the origin",
    points=1,
    hint="""
        The line may lie anywhere: c is part of the search, and it is part of the yardstick too. The root mean square is
        that of v·f + c, the distance from *that* line.
        """,
)
def test_mixture_offset(impl):
    for shift in (0.0, 50.0):
        expect.close(
            impl.mixture_index(sparse_clouds()["aside"] + shift),
            closest_line("aside"),
            rtol=0.05,
            atol=0.02,
            name=f"the index of a cloud with two fifths on the line x = {3 + shift:g}",
            why="moving the cloud moves the best line with it, and changes no distance",
        )


# 1.9


def orthonormal(k, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator))[0].T.contiguous()


def rotated(x, plane, centre, angle):
    """By the exponential of the rotation's generator, in double precision."""
    first, second = plane.double()
    generator = torch.outer(second, first) - torch.outer(first, second)
    turn = torch.linalg.matrix_exp(angle * generator)
    return ((x - centre).double() @ turn.T).float() + centre


OUTSIDE_LOST = """
    What lies outside the plane is gone. The answer is `x` plus a *change* inside the plane: turned minus unturned
    coordinates, carried back with `@ plane`.
    """
WRONG_WAY = """
    This turns the other way. A positive angle turns from the first row of `plane` towards the second: a quarter turn
    takes `plane[0]` to `plane[1]`, not to `-plane[1]`.
    """
NOT_ABOUT_CENTRE = """
    The rotation must be about `centre`: subtract it before you take coordinates. If x is the centre itself, nothing
    moves.
    """
DEGREES = "The angle is in radians: math.pi / 2 is a quarter turn. No conversion is needed."
ADDED_TWICE = """
    The turned part was added without taking the unturned part out first: what is added to `x` is the difference `(flat
    @ turn - flat) @ plane`.
    """


def turning_mistakes(x, plane, centre, angle):
    inside = (x - centre) @ plane.T @ plane
    right = rotated(x, plane, centre, angle)
    zero = torch.zeros_like(centre)
    return [
        (right - (x - centre - inside) - centre, OUTSIDE_LOST),
        (right - (x - centre - inside), OUTSIDE_LOST),
        (rotated(x, plane, centre, -angle), WRONG_WAY),
        (rotated(x, plane, zero, angle), NOT_ABOUT_CENTRE),
        (right - centre, "The rows are still seen from `centre`: add it again."),
        (rotated(x, plane, centre, math.radians(angle)), DEGREES),
        (right + inside, ADDED_TWICE),
    ]


@ROTATE_IN_PLANE.check(
    "a quarter turn, by hand",
    points=1,
    hint="With plane = the first two axes and centre = 0, a quarter turn takes (1, 0, 5) to (0, 1, 5).",
)
def test_quarter_turn(impl):
    x = torch.tensor([[1.0, 0.0, 5.0], [0.0, 2.0, -1.0]])
    plane, centre = torch.eye(3)[:2], torch.zeros(3)
    expect.close(
        impl.rotate_in_plane(x, plane, centre, math.pi / 2),
        torch.tensor([[0.0, 1.0, 5.0], [-2.0, 0.0, -1.0]]),
        name="the turned rows",
        norm="row",
        dims=("n", "d"),
        mistakes=turning_mistakes(x, plane, centre, math.pi / 2),
        why="the first axis turns into the second, the second into minus the first, the third does not move",
    )


@ROTATE_IN_PLANE.check(
    "any plane, any centre, any angle",
    points=2,
    hint="""
        Coordinates in the plane are `(x - centre) @ plane.T`. Turn these two numbers, and carry the change back with `@
        plane`.
        """,
)
def test_any_rotation(impl):
    for angle in (2 * math.pi / 7, -1.0, 3.0):
        seed = fresh_seed()
        generator = torch.Generator().manual_seed(seed)
        x, centre = torch.randn(4, 6, generator=generator), 2 * torch.randn(6, generator=generator)
        plane = orthonormal(2, 6, seed)
        expect.close(
            impl.rotate_in_plane(x, plane, centre, angle),
            rotated(x, plane, centre, angle),
            name="the turned rows",
            norm="row",
            dims=("n", "d"),
            mistakes=turning_mistakes(x, plane, centre, angle),
            why=f"the matrix exponential of the rotation's generator gives this (drawn with seed {seed})",
        )


@ROTATE_IN_PLANE.check(
    "what a rotation keeps",
    points=1,
    hint="""
        A rotation keeps the distance from `centre` and everything at right angles to the plane; a full turn changes
        nothing at all.
        """,
)
def test_rotation_keeps(impl):
    generator = torch.Generator().manual_seed(6)
    x, centre, plane = torch.randn(3, 5, generator=generator), torch.randn(5, generator=generator), orthonormal(2, 5, 9)
    got = impl.rotate_in_plane(x, plane, centre, 0.8)
    mistakes, turned = turning_mistakes(x, plane, centre, 0.8), rotated(x, plane, centre, 0.8)
    hint = expect.mistake_in(got, turned, mistakes, lambda one, other: expect.agree(one, other, norm="row"))
    got = expect.shape(got, x.shape, dims=("n", "d"), why="rows stay rows", hint=hint).detach()
    expect.close(
        got - got @ plane.T @ plane,
        x - x @ plane.T @ plane,
        name="the part outside the plane",
        hint=hint,
        rtol=1e-3,
        atol=1e-4,
        why="only what lies in the plane turns",
    )
    expect.close(
        (got - centre).norm(dim=1),
        (x - centre).norm(dim=1),
        name="the distance from the centre",
        hint=hint,
        rtol=1e-3,
        why="rotations keep lengths",
    )
    expect.close(
        impl.rotate_in_plane(x, plane, centre, 2 * math.pi),
        x,
        name="the rows after a full turn",
        norm="row",
        why="a full turn brings everything back",
        mistakes=turning_mistakes(x, plane, centre, 2 * math.pi),
    )


REPLACED_ALL = "Everything was exchanged, not only the part inside the subspace: outside it, `x` stays as it is."
NOT_TAKEN_OUT = """
    The part of `target` was added, but the part of `x` was never taken out: inside the subspace the two are now on top
    of each other.
    """
WRONG_PART = """
    The wrong part was exchanged: inside the subspace the answer has the coordinates of `target`, outside those of `x`.
    """


def patching_mistakes(x, target, components):
    project = components.T @ components
    right = x @ (torch.eye(x.shape[1]) - project) + target @ project
    return right, [
        (target, REPLACED_ALL),
        (x + target @ project, NOT_TAKEN_OUT),
        (x @ project + target - target @ project, WRONG_PART),
        (target @ project, "What lies outside the subspace is gone: it must stay as it is in `x`."),
    ]


@PATCH_SUBSPACE.check(
    "along one axis, by hand",
    points=1,
    hint="With components = the first axis, (1, 2, 3) patched from (10, 20, 30) is (10, 2, 3).",
)
def test_patch_axis(impl):
    x, target = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    expect.close(
        impl.patch_subspace(x, target, torch.eye(3)[:1]),
        torch.tensor([[10.0, 2.0, 3.0]]),
        name="the patched row",
        norm="row",
        dims=("n", "d"),
        mistakes=patching_mistakes(x, target, torch.eye(3)[:1])[1],
        why="only the first coordinate is exchanged",
    )


@PATCH_SUBSPACE.check(
    "any subspace",
    points=2,
    hint="Take the projection of the difference: `(target - x) @ components.T @ components`.",
)
def test_patch_any(impl):
    for k in (1, 2, 4, 6):
        seed = fresh_seed()
        generator = torch.Generator().manual_seed(seed)
        x, target = torch.randn(5, 6, generator=generator), torch.randn(5, 6, generator=generator)
        components = orthonormal(k, 6, seed)
        right, mistakes = patching_mistakes(x, target, components)
        expect.close(
            impl.patch_subspace(x, target, components),
            right,
            name="the patched rows",
            norm="row",
            dims=("n", "d"),
            mistakes=mistakes,
            why=f"{k} of 6 dimensions are exchanged, the rest is that of x (drawn with seed {seed})",
        )


@PATCH_SUBSPACE.check(
    "patching twice changes nothing more",
    points=1,
    hint="""
        After the first patch, x already has the coordinates of `target` in the subspace. If a second one moves it, the
        old part was not taken out.
        """,
)
def test_patch_twice(impl):
    generator = torch.Generator().manual_seed(8)
    x, target = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator)
    components = orthonormal(2, 6, 3)
    once = impl.patch_subspace(x, target, components)
    once = expect.shape(once, x.shape, dims=("n", "d"), why="rows stay rows").detach()
    expect.close(
        impl.patch_subspace(once, target, components),
        once,
        name="the rows patched twice",
        norm="row",
        why="the coordinates in the subspace are those of `target` already",
        mistakes=[(once + target @ components.T @ components, NOT_TAKEN_OUT)],
    )
    expect.close(
        impl.patch_subspace(x, x, components),
        x,
        name="x patched with itself",
        norm="row",
        why="there is nothing to exchange",
        mistakes=[(x + x @ components.T @ components, NOT_TAKEN_OUT)],
    )


ASKED = ("Monday, Tuesday. Thursday, Friday. Sunday,", "Monday, Tuesday. Thursday, Friday. Tuesday,")
DONORS = ("Monday, Tuesday. Thursday, Friday. June,", "Monday, Tuesday. Thursday, Friday. two,")
LAST_PREDICTS = """
    The answer is read at the wrong place: the prediction of what comes next stands at the *last* token, `logits[:,
    -1]`, wherever the patch was.
    """
UNCHANGED = (
    "The answer has not changed at all. Does your hook *return* the patched tensor? And is it the right position?"
)


def entering(model, prompts, hook_name):
    """The stream at the last token but one of each prompt; all are of one length."""
    return read(model, model.to_tokens(list(prompts)), hook_name)[:, -2]


def next_tokens(model, prompts, changes=None):
    """What the model continues each prompt with, and what it predicts at the last token but one."""
    with torch.no_grad():
        logits = run(model, model.to_tokens(list(prompts)), changes=changes)
    return logits[:, -1].argmax(dim=-1), logits[:, -2].argmax(dim=-1)


def same_words(model, got, want, why, mistakes=()):
    """Demand token ids; the message says them as words too."""
    hint = expect.mistake_in(got, want, mistakes, expect.is_same)
    got = expect.shape(
        got, want.shape, name="the next tokens", dims=("n",), why="a token id for each prompt", hint=hint
    )
    whole = not got.is_floating_point()
    shown = f"{got.tolist()}, that is {[model.to_string(token) for token in got]}" if whole else got
    expect.that(
        whole and expect.is_same(got, want),
        returned=shown,
        why=why,
        hint=hint,
        expected=f"{want.tolist()}, that is {[model.to_string(token) for token in want]}",
    )


@NEXT_TOKENS_AFTER_PATCH.check(
    "replaced by itself: nothing changes",
    points=1,
    hint="""
        With the activation that is there anyway, the model must answer as it always does: the most probable token after
        the last one. Read `logits[:, -1]`.
        """,
)
def test_patch_with_itself(impl, model):
    own, (want, before) = entering(model, ASKED, "blocks.9.hook_resid_pre"), next_tokens(model, ASKED)
    got = impl.next_tokens_after_patch(model, model.to_tokens(list(ASKED)), "blocks.9.hook_resid_pre", -2, own)
    same_words(
        model,
        got,
        want,
        mistakes=[(before, LAST_PREDICTS)],
        why="the replacement is what the model computes there itself",
    )


@NEXT_TOKENS_AFTER_PATCH.check(
    "another day at the entrance: another answer",
    points=2,
    hint="""
        Write `replacement` into position `position` of every prompt, at the hook that is named, and return the changed
        tensor from the hook function: a hook that returns nothing changes nothing.
        """,
)
def test_patch_embedding(impl, model):
    swapped = ASKED[::-1]  # the prompts differ in the day only
    day = entering(model, swapped, "blocks.0.hook_resid_pre")
    got = impl.next_tokens_after_patch(model, model.to_tokens(list(ASKED)), "blocks.0.hook_resid_pre", -2, day)
    same_words(
        model,
        got,
        next_tokens(model, swapped)[0],
        mistakes=[(next_tokens(model, ASKED)[0], UNCHANGED)],
        why="the day's embedding was exchanged before block 0, so the model reads the other prompt",
    )


@NEXT_TOKENS_AFTER_PATCH.check(
    "in the middle of the model, one position only",
    points=2,
    hint="""
        Only the named position changes, at the named hook; all other tokens keep their stream. Positions count as in
        Python: in a prompt of 11 tokens, 9 and -2 are the same.
        """,
)
def test_patch_middle(impl, model):
    tokens, place = model.to_tokens(list(ASKED)), "blocks.6.hook_resid_pre"
    replacement = entering(model, DONORS, place)

    def overwrite(stream):
        return torch.cat([stream[:, :-2], replacement[:, None], stream[:, -1:]], dim=1)

    got = impl.next_tokens_after_patch(model, tokens, place, tokens.shape[1] - 2, replacement)
    same_words(
        model,
        got,
        next_tokens(model, ASKED, {place: overwrite})[0],
        why="a torch hook on block 6 overwrote this one position",
    )


@NEXT_TOKENS_AFTER_PATCH.check(
    "no hook left behind",
    points=1,
    hint="`run_with_hooks` takes its hooks off again; a hook added with `add_hook` stays and patches what runs next.",
)
def test_patch_leaves_nothing(impl, model):
    tokens = model.to_tokens(list(ASKED))
    with impl.watch(model) as seen:
        impl.next_tokens_after_patch(model, tokens, "blocks.2.hook_resid_pre", -2, torch.zeros(2, model.cfg.d_model))
    expect.cost(
        seen,
        passes=1,
        why="the prompts have the same length, so they make one batch",
        hint="Run all prompts in one batch: `tokens` already is one.",
    )
