"""Chapter 01: weekdays as directions, or as a circle."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from torch import Tensor

from utils import layer_of, mine

if TYPE_CHECKING:  # takes ten seconds, and nothing here needs it but the reader
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge


def last_token_resid(model: "SAETransformerBridge", prompt: str, hook_name: str) -> Float[Tensor, " d_model"]:
    """The residual stream at the last token of a prompt.

    The model runs once. No block after the hook's own runs, no other activation is kept, and no hook stays on the
    model.

    Args:
        model: the language model.
        prompt: any text. It is read with the model's first special token in front, as `to_tokens` gives it.
        hook_name: a point of the residual stream, for instance `blocks.9.hook_resid_pre`; also
            `hook_resid_mid` or `hook_resid_post`, at any layer.

    Returns:
        The activation at that hook, in the model's units.
    """
    # BEGIN SOLUTION
    vectors = []

    def keep(resid, hook):
        vectors.append(resid[0, -1].clone())

    tokens = model.to_tokens(prompt)
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(hook_name, keep)], stop_at_layer=layer_of(hook_name) + 1)
    return vectors[0]
    # END SOLUTION


def class_means(
    model: "SAETransformerBridge", classes: Sequence[str], templates: Sequence[str], hook_name: str
) -> Float[Tensor, "n_class d_model"]:
    """The mean residual stream at the last token over all templates, a row per class in the order given.

    Each row is what reading one prompt after the other would give: padding leaves no trace (relative difference below
    1e-4). Prompts run in batches (far fewer passes than prompts), the model stops at the hook's block, and no hook
    stays on it.

    Args:
        model: the language model.
        classes: words such as `"Monday"`; they may be tokens of different number.
        templates: sentences with one `{}` each, where the class goes. The last token is that of the whole prompt.
        hook_name: a point of the residual stream, for instance `blocks.9.hook_resid_pre`; also
            `hook_resid_mid` or `hook_resid_post`, at any layer.

    Returns:
        A row per class, in the model's units.
    """
    # BEGIN SOLUTION
    prompts = [template.replace("{}", word) for word in classes for template in templates]
    # Right padding: real tokens never look to their right, so they cannot see it.
    tokens = model.to_tokens(prompts, padding_side="right")
    # Lengths come from each prompt alone: the padding token may be a token that prompts contain.
    last = torch.tensor([model.to_tokens(prompt).shape[1] - 1 for prompt in prompts], device=tokens.device)
    vectors = []

    def keep(resid, hook):
        vectors.append(resid[torch.arange(len(prompts), device=resid.device), last])

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(hook_name, keep)], stop_at_layer=layer_of(hook_name) + 1)
    return vectors[0].unflatten(0, (len(classes), len(templates))).mean(dim=1)
    # END SOLUTION


def pca(x: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Principal components of the rows of `x`, by singular value decomposition of the centred rows.

    Args:
        x: one row per data point, not centred.
        k: how many components, at most `min(n, d)`.

    Returns:
        `coords`: the centred rows in the components' coordinates, in the units of `x`.
        `components`: orthonormal rows, most variance first; of each, the entry of largest magnitude is positive.
        `explained_variance_ratio`: each component's share of the *total* variance (zeros if all rows are equal).

    Raises:
        ValueError: `k` is larger than `min(n, d)`: there are no more components.
    """
    # BEGIN SOLUTION
    if not 0 < k <= min(x.shape):
        raise ValueError(f"{tuple(x.shape)} rows and columns have {min(x.shape)} components, so k cannot be {k}")
    centred = x - x.mean(dim=0)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    components = components[:k]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * largest.sign()
    coords = centred @ components.T
    variance = singular.square()
    ratio = variance[:k] / variance.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return coords, components, ratio
    # END SOLUTION


def calendar_order_score(coords: Float[Tensor, "n 2"]) -> float:
    """How far points in the plane follow the calendar around their centroid.

    Sort the points by their angle around the centroid of all points: the score is the share of the `n` pairs of
    calendar neighbours that are neighbours in that circular order too.

    Args:
        coords: row `i` is the point of class `i` of `n`, in calendar order; the last is followed by the first.

    Returns:
        A share from 0 to 1. It is 1 for the calendar order, started anywhere and run either way.
    """
    # BEGIN SOLUTION
    n = len(coords)
    across, up = (coords - coords.mean(dim=0)).unbind(dim=1)
    around = torch.atan2(up, across).argsort().tolist()
    place = {point: position for position, point in enumerate(around)}
    steps = [(place[(point + 1) % n] - place[point]) % n for point in range(n)]
    return sum(step in (1, n - 1) for step in steps) / n
    # END SOLUTION


def calendar_order_p_value(coords: Float[Tensor, "n 2"]) -> float:
    """How probable so good an order is by chance, if the score is 1; else 1.

    Chance means that every circular order of the `n` points is as probable as any other. Orders that differ by a
    rotation or a reflection are the same, so there are `(n - 1)! / 2`, and one of them is the calendar's.

    Args:
        coords: as for `calendar_order_score`; at least three rows.

    Returns:
        The p-value, from 0 to 1.
    """
    # BEGIN SOLUTION
    return 2 / math.factorial(len(coords) - 1) if calendar_order_score(coords) == 1 else 1.0
    # END SOLUTION


def features_active_on(
    model: "SAETransformerBridge", sae: "SAE", prompts: Sequence[str], threshold: float = 0.0
) -> Int[Tensor, " n"]:
    """The latents that are active on the last token of at least one prompt.

    There are fewer passes of the model than prompts, each stops at the dictionary's block, and no hook stays on the
    model.

    Args:
        model: the language model.
        sae: a dictionary on its residual stream; where it reads stands in `sae.cfg.metadata.hook_name`.
        prompts: any texts, of different length.
        threshold: an activation must be larger than this, in the dictionary's units.

    Returns:
        The latents' numbers, sorted, each once (int64).
    """
    # BEGIN SOLUTION
    # With one template that is the class itself, a class mean is a prompt's own last-token activation.
    last = mine.class_means(model, prompts, ["{}"], sae.cfg.metadata.hook_name)
    return (sae.encode(last) > threshold).any(dim=0).nonzero().squeeze(1)
    # END SOLUTION


def decoder_pca(sae: "SAE", latents: Int[Tensor, " n"], k: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, " k"]]:
    """Principal components of some latents' decoder rows.

    Extra memory grows with `n`, not with `d_sae`.

    Args:
        sae: any dictionary; its decoder `W_dec` is `[d_sae, d_model]` and may be larger than free memory, and of
            any precision.
        latents: which rows, in which order.
        k: how many components, at most `min(n, d_model)`.

    Returns:
        `coords`: the rows' coordinates, centred, in the order of `latents`.
        `explained_variance_ratio`: each component's share of the total variance.
        Both in single precision, whatever the decoder is stored in.
    """
    # BEGIN SOLUTION
    rows = sae.W_dec[latents].float()
    coords, _, ratio = mine.pca(rows, k)
    return coords, ratio
    # END SOLUTION


def circle_cluster(
    sae: "SAE", class_acts: Float[Tensor, "n_class d_sae"], latents: Int[Tensor, " n"], n_clusters: int
) -> Int[Tensor, " m"]:
    """The cluster of latents whose reconstruction of the classes best keeps the calendar's circle.

    The decoder rows of `latents` are clustered by cosine similarity, with average linkage, into `n_clusters`. Each
    cluster alone reconstructs the classes: activations times decoder rows, summed over the cluster. The reconstruction
    is projected on its first two principal components and scored by `calendar_order_score`. After Engels et al.,
    2024 (arXiv 2405.14860), who cluster the whole dictionary.

    Args:
        sae: the dictionary.
        class_acts: mean activation of every latent on every class, classes in calendar order.
        latents: the candidates, in any order.
        n_clusters: how many clusters to make of them.

    Returns:
        The latents of the best cluster, sorted. Of equal scores, the one whose reconstruction varies more between the
        classes. A reconstruction that lies on a line or in a point (its second component has less than 1 % of the
        variance) is no circle, whatever its score.

    Raises:
        ValueError: there are fewer latents than clusters, or no cluster reconstructs more than a line.
    """
    # BEGIN SOLUTION
    if len(latents) < n_clusters:
        raise ValueError(f"{len(latents)} latents cannot be put into {n_clusters} clusters")
    directions = torch.nn.functional.normalize(sae.W_dec[latents].float(), dim=1)
    distances = (1 - directions @ directions.T)[*torch.triu_indices(len(latents), len(latents), offset=1)]
    labels = hierarchy.fcluster(hierarchy.linkage(distances.numpy(), "average"), n_clusters, "maxclust")
    labels = torch.from_numpy(labels)

    candidates = []
    for label in labels.unique():
        cluster = latents[labels == label].sort().values
        means = class_acts[:, cluster] @ sae.W_dec[cluster]
        coords, _, ratio = mine.pca(means, 2)
        if ratio[1] >= 0.01:
            candidates.append((mine.calendar_order_score(coords), means.var(dim=0).sum().item(), cluster))
    if not candidates:
        raise ValueError(f"none of {n_clusters} clusters of {len(latents)} latents reconstructs more than a line")
    return max(candidates, key=lambda entry: entry[:2])[2]
    # END SOLUTION


def separability_index(points: Float[Tensor, "n 2"], n_angles: int = 45, n_bins: int = 8) -> float:
    """How little a cloud of points falls apart into two independent coordinates, in bits.

    The mutual information of the two coordinates, minimised over rotations of the plane: 0 for two independent
    features along any pair of axes, large for a circle. After Engels et al., 2024 (arXiv 2405.14860).

    Args:
        points: one row per data point.
        n_angles: how many rotations are tried, evenly from 0 up to (not including) a quarter turn.
        n_bins: mutual information is that of a histogram with this many bins of equal width per coordinate, from the
            coordinate's smallest value to its largest.

    Returns:
        Bits, from 0 up.
    """
    # BEGIN SOLUTION
    return min(
        _mutual_information(points @ _rotation(math.pi / 2 * step / n_angles).to(points), n_bins)
        for step in range(n_angles)
    )
    # END SOLUTION


def _rotation(angle: float) -> Float[Tensor, "2 2"]:
    return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _mutual_information(points: Float[Tensor, "n 2"], n_bins: int) -> float:
    """Of a histogram of the two coordinates, in bits."""
    low, high = points.min(dim=0).values, points.max(dim=0).values
    bins = ((points - low) / (high - low) * n_bins).long().clamp(max=n_bins - 1)
    joint = torch.bincount(bins[:, 0] * n_bins + bins[:, 1], minlength=n_bins**2).reshape(n_bins, n_bins) / len(points)
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    full = joint > 0
    return (joint[full] * (joint[full] / independent[full]).log2()).sum().item()


def mixture_index(points: Float[Tensor, "n 2"], epsilon: float = 0.1, n_angles: int = 90) -> float:
    """The largest share of points that lie close to one line: high where a cloud is a mixture, low where it is a whole.

    For a unit vector v and an offset c, a point f is close if |v·f + c| is less than `epsilon` times the root mean
    square of v·f + c over all points. The index is the largest share of close points over v and c. After Engels et
    al., 2024 (arXiv 2405.14860).

    Args:
        points: one row per data point.
        epsilon: how close is close.
        n_angles: how many directions v are tried, evenly from 0 up to (not including) half a turn. For each, the
            offsets tried are those of the lines through a data point.

    Returns:
        A share from 0 to 1.
    """
    # BEGIN SOLUTION
    best = 0.0
    for step in range(n_angles):
        along = points @ _rotation(math.pi * step / n_angles)[:, 0].to(points)
        distances = along[None, :] - along[:, None]  # row i: the line through point i
        close = distances.abs() < epsilon * distances.square().mean(dim=1, keepdim=True).sqrt()
        best = max(best, close.float().mean(dim=1).max().item())
    return best
    # END SOLUTION


def rotate_in_plane(
    x: Float[Tensor, "n d"], plane: Float[Tensor, "2 d"], centre: Float[Tensor, " d"], angle: float
) -> Float[Tensor, "n d"]:
    """Turn the rows of `x` about `centre` inside a plane; what lies outside the plane stays.

    Args:
        x: points, one per row.
        plane: two orthonormal rows. A positive angle turns from the first towards the second.
        centre: the point that does not move.
        angle: in radians.

    Returns:
        The turned points, a row per row of `x`.
    """
    # BEGIN SOLUTION
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).to(x)
    flat = (x - centre) @ plane.T
    return x + (flat @ turn - flat) @ plane
    # END SOLUTION


def patch_subspace(
    x: Float[Tensor, "n d"], target: Float[Tensor, "n d"], components: Float[Tensor, "k d"]
) -> Float[Tensor, "n d"]:
    """Give the rows of `x` the coordinates of `target` inside a subspace; outside, `x` stays as it is.

    The idea of exchanging activations in a subspace is that of distributed alignment search (Geiger et al., 2024,
    arXiv 2303.02536).

    Args:
        x: points, one per row.
        target: what each of them gets its coordinates from.
        components: orthonormal rows that span the subspace.

    Returns:
        The changed points, a row per row of `x`.
    """
    # BEGIN SOLUTION
    return x + (target - x) @ components.T @ components
    # END SOLUTION


def next_tokens_after_patch(
    model: "SAETransformerBridge",
    tokens: Int[Tensor, "n seq"],
    hook_name: str,
    position: int,
    replacement: Float[Tensor, "n d_model"],
) -> Int[Tensor, " n"]:
    """The most probable next token of each prompt when the residual stream at one position is replaced.

    The model runs once, on all prompts together, and no hook stays on it.

    Args:
        model: the language model.
        tokens: prompts of equal length, first special token included.
        hook_name: where in the model, for instance `blocks.9.hook_resid_pre`.
        position: which token; negative numbers count from the end.
        replacement: the new activation at that position, a row per prompt. All other positions stay as they are.

    Returns:
        The id of the token with the largest logit after the *last* token, for each prompt.
    """

    # BEGIN SOLUTION
    def replace(resid, hook):
        patched = resid.clone()
        patched[:, position] = replacement
        return patched

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, replace)])
    return logits[:, -1].argmax(dim=-1)
    # END SOLUTION
