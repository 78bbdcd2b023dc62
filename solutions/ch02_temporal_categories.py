"""Chapter 02: past, present, future, counterfactual, hypothetical: which latents carry them?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from utils import layer_of, mine
from utils.material.tenses import BASELINE

if TYPE_CHECKING:  # takes ten seconds, and nothing here needs it but the reader
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge


def _at_last_tokens(
    model: "SAETransformerBridge", prompts: Sequence[str], hook_names: Sequence[str]
) -> dict[str, Float[Tensor, "n d_model"]]:
    """The activations at several hooks, each at the last token of each prompt, from one pass."""
    # Right padding: real tokens never look to their right, so they cannot see it.
    tokens = model.to_tokens(list(prompts), padding_side="right")
    last = torch.tensor([model.to_tokens(prompt).shape[1] - 1 for prompt in prompts], device=tokens.device)
    rows = torch.arange(len(prompts), device=tokens.device)
    streams = {}

    def keep(name):
        def hook(resid, hook):  # the bridge may call a hook by another of its names, so the one asked for is kept
            streams[name] = resid[rows, last].clone()

        return name, hook

    with torch.no_grad():
        model.run_with_hooks(
            tokens, fwd_hooks=[keep(name) for name in hook_names], stop_at_layer=max(map(layer_of, hook_names)) + 1
        )
    return streams


def _by_category(rows: Tensor, categories: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The mean of each category's rows, which stand one category after the other."""
    blocks = rows.split([len(prompts) for prompts in categories.values()])
    return {category: block.mean(dim=0) for category, block in zip(categories, blocks, strict=True)}


def category_means(
    model: "SAETransformerBridge", sae: "SAE", categories: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Float[Tensor, " d_model"]], dict[str, Float[Tensor, " d_sae"]]]:
    """Mean activation and mean latents of each category, at the last token of its prompts.

    Each prompt runs once, for both; the model stops at the hook's block, and no hook stays on it. Padding leaves no
    trace.

    Args:
        model: the language model.
        sae: a dictionary of its residual stream; `sae.cfg.metadata.hook_name` says at which hook.
        categories: name -> prompts. Prompts, and categories, may differ in length.

    Returns:
        `resid`: category -> mean of the stream at the dictionary's hook.
        `latents`: category -> mean of the latents, which is not the latents of the mean.
        Both without gradient, with the categories in the order given.

    Raises:
        ValueError: a category has no prompts; the message names it.
    """
    # BEGIN SOLUTION
    empty = [category for category, prompts in categories.items() if not prompts]
    if empty:
        raise ValueError(f"a category without prompts has no mean: {', '.join(empty)}")
    hook_name = sae.cfg.metadata.hook_name
    prompts = [prompt for sentences in categories.values() for prompt in sentences]
    resid = _at_last_tokens(model, prompts, [hook_name])[hook_name]
    with torch.no_grad():
        latents = sae.encode(resid)
    return _by_category(resid, categories), _by_category(latents, categories)
    # END SOLUTION


def layer_geometry(
    model: "SAETransformerBridge", categories: Mapping[str, Sequence[str]], layers: Sequence[int], k: int = 2
) -> dict[int, tuple[Float[Tensor, "n_category k"], Float[Tensor, " k"]]]:
    """Principal components of the category means, at several depths.

    Args:
        model: the language model.
        categories: name -> prompts. The category named `neutral` is the baseline: if it is there, it is left out.
        layers: where to look; layer L means `blocks.L.hook_resid_pre`.
        k: how many components.

    Returns:
        layer -> (`coords`, `explained_variance_ratio`) as `pca` of chapter 01 gives them for the means at the
        last token: a row per category, in the order given; shares of the *total* variance of these means.

    Raises:
        ValueError: `k` is larger than the number of categories without the baseline.
    """
    # BEGIN SOLUTION
    categories = {category: prompts for category, prompts in categories.items() if category != BASELINE}
    hook_names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    prompts = [prompt for sentences in categories.values() for prompt in sentences]
    streams = _at_last_tokens(model, prompts, hook_names)
    geometry = {}
    for layer, hook_name in zip(layers, hook_names, strict=True):
        means = torch.stack(list(_by_category(streams[hook_name], categories).values()))
        coords, _, ratio = mine.pca(means, k)
        geometry[layer] = coords, ratio
    return geometry
    # END SOLUTION


def top_features_vs_baseline(
    latent_means: Mapping[str, Float[Tensor, " d_sae"]], category: str, baseline: str, k: int
) -> pd.DataFrame:
    """The k latents whose mean in a category exceeds their mean in the baseline most.

    Args:
        latent_means: category -> mean latents, as `category_means` gives them.
        category: one of its names.
        baseline: another of its names.
        k: how many rows.

    Returns:
        A table with the columns `latent` (whole number), `difference` (mean minus baseline mean, signed), `mean`
        and `baseline_mean`, the largest difference first, rows numbered from 0. Of equal differences any may come
        first.

    Raises:
        ValueError: a name is not among the categories (the message says which), or `k` is larger than the number of
            latents (the message says how many there are).
    """
    # BEGIN SOLUTION
    for name in (category, baseline):
        if name not in latent_means:
            raise ValueError(f"no category is named {name!r}; there are {', '.join(latent_means)}")
    mean, baseline_mean = latent_means[category], latent_means[baseline]
    if not 0 < k <= len(mean):
        raise ValueError(f"the dictionary has {len(mean)} latents, so k cannot be {k}")
    difference, latent = (mean - baseline_mean).topk(k)
    columns = {
        "latent": latent,
        "difference": difference,
        "mean": mean[latent],
        "baseline_mean": baseline_mean[latent],
    }
    return pd.DataFrame({name: values.tolist() for name, values in columns.items()})
    # END SOLUTION


def activation_audit(model: "SAETransformerBridge", sae: "SAE", prompts: Sequence[str]) -> pd.DataFrame:
    """What a dictionary's activations look like with and without the attention-sink position, prompt by prompt.

    Args:
        model: the language model.
        sae: a dictionary that reads the model at `sae.cfg.metadata.hook_name`.
        prompts: any texts of at least one token. The first special token comes in front: position 0, the sink.

    Returns:
        A table with a row per prompt, in the order given, and the columns
        `max_with_sink`, `max_without_sink`: the largest activation of any latent at any position of the prompt;
        `l0_with_sink`, `l0_without_sink`: latents active (above 0) at a position, mean over the positions.
        Positions without the sink are 1, 2, ...; padding counts nowhere, and a row does not depend on other prompts.
    """
    # BEGIN SOLUTION
    hook_name = sae.cfg.metadata.hook_name
    rows = []
    for prompt in prompts:  # one by one: no padding to keep out, and no [batch, seq, d_sae] in memory
        tokens = model.to_tokens(prompt)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=hook_name, stop_at_layer=layer_of(hook_name) + 1)
            acts = sae.encode(cache[hook_name])[0]
        largest, active = acts.amax(dim=1), (acts > 0).sum(dim=1).float()
        rows.append(
            {
                "max_with_sink": largest.max().item(),
                "max_without_sink": largest[1:].max().item(),
                "l0_with_sink": active.mean().item(),
                "l0_without_sink": active[1:].mean().item(),
            }
        )
    return pd.DataFrame(rows)
    # END SOLUTION


def max_statistic_p_values(
    acts: Float[Tensor, "n d"], labels: Int[Tensor, " n"], category: int, baseline: int, n_permutations: int, seed: int
) -> Float[Tensor, " d"]:
    """For each latent, a permutation p-value of "larger in the category than in the baseline", adjusted for d latents.

    The single-step max-T procedure of Westfall and Young (1993): if no latent differs, the chance that any p-value is
    at most 0.05 is at most 0.05, however the latents are correlated. A thousand shuffles of four thousand latents take
    less than 400 MB.

    Args:
        acts: a row per prompt, a column per latent.
        labels: the category of each row. Rows of other categories than the two take no part.
        category: one of the labels.
        baseline: another of the labels.
        n_permutations: how often the labels of the rows that take part are shuffled, whole rows at a time.
        seed: of the shuffling. The same seed gives the same p-values; the global generator is left alone.

    Returns:
        p = (1 + count) / (1 + n_permutations), where a latent's statistic is its mean over the category's rows minus
        its mean over the baseline's, and count is the number of shuffles whose *largest statistic among all latents*
        is at least as large as the latent's true statistic. A shuffle that gives back the true groups counts.

    Raises:
        ValueError: `category` and `baseline` are the same, or one of them has no rows.
    """
    # BEGIN SOLUTION
    in_category, in_baseline = labels == category, labels == baseline
    if category == baseline or not in_category.any() or not in_baseline.any():
        raise ValueError(f"categories {category} and {baseline} must be two, and each must have rows")
    takes_part = in_category | in_baseline
    x = acts[takes_part].double()
    is_category = in_category[takes_part].double()
    generator = torch.Generator().manual_seed(seed)
    shuffles = torch.rand(n_permutations, len(x), generator=generator).argsort(dim=1).to(x.device)
    # A row of weights turns the activations into differences of means; the true labels come first.
    groups = torch.cat([is_category[None], is_category[shuffles]])
    weights = groups / is_category.sum() - (1 - groups) / (1 - is_category).sum()
    statistics = weights @ x
    largest = statistics[1:].amax(dim=1)
    # A shuffle that gives back the true groups must count, so the comparison leaves room for rounding.
    room = 1e-9 * x.abs().amax()
    count = (largest[:, None] >= statistics[0] - room).sum(dim=0)
    return ((1 + count) / (1 + n_permutations)).float()
    # END SOLUTION


def leave_one_out_accuracy(x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> float:
    """The share of rows that are nearest to their own class's mean, when that mean is taken without the row itself.

    For each row in turn: the means of all classes over the *other* rows, and the class whose mean is nearest to the
    row (Euclidean). A row that is alone in its class has no mean to be nearest to and counts as wrong.

    Args:
        x: a row per prompt.
        labels: the class of each row; any whole numbers, in any order.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: there are fewer than two classes.
    """
    # BEGIN SOLUTION
    classes, own = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"nearest class of {len(classes)}: leave-one-out accuracy needs at least two classes")
    x = x.double() - x.double().mean(dim=0)
    member = torch.nn.functional.one_hot(own).double()
    size = member.sum(dim=0)
    distance = torch.cdist(x, member.T @ x / size[:, None], compute_mode="donot_use_mm_for_euclid_dist")
    # Without the row, its class's mean lies further away, by n / (n - 1): it had been pulled towards the row.
    rows = torch.arange(len(x), device=x.device)
    distance[rows, own] *= (size / (size - 1))[own]  # alone in its class: n / 0 is infinitely far
    distance = distance.nan_to_num(nan=torch.inf)  # ... and so is 0 times that
    return (distance.argmin(dim=1) == own).double().mean().item()
    # END SOLUTION
