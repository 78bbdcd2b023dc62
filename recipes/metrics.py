"""Judge exported dictionaries on the held-out split: `python -m recipes.metrics` prints the table and keeps it for
the manifest.

For every dictionary, over all positions but the first:

- VE: share of the target's variance that is explained; `VE typical` leaves out tokens whose norm is over three
  times the median. At layers 3 and 6 these few tokens (many a " the", with the norm of the sink) carry most of the
  variance, in one direction that any dictionary finds, so that `VE` flatters there.
- L0: active latents a token. Alive: share of latents that are active at least once. Dense: share of latents that are
  active at more than a tenth of the tokens.
- CE rec.: the share of the cross-entropy lost by zero ablation that is kept when the reconstruction runs in the
  model instead; the sink position passes through untouched in both.
- Rule: how well a latent's firing on unseen text is told by a rule read off its top examples. For each of 200
  random latents the 50 strongest positions in one half of the text (at most 2 a row) give three histograms, of the
  token itself, the token before it, and the ten tokens before that; the summed log-ratios to the tokens' ordinary
  frequencies score the positions of the other half. The number is the median area under the ROC curve, firing
  against silent positions (0.5: no better than chance).
- For transcoders, near neurons: the share of latents that read what one neuron of the MLP reads (`recipes.neurons`).

For a pair, the model runs on the earlier dictionary's reconstruction. Agreement is the share of the later
dictionary's activation mass, of both runs together, that lies on latents active in both at that token.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sae_lens import SAE
from torch import Tensor

from recipes.dictionary_set import PAIRS, RECIPES, Recipe, recipe, work_dir
from recipes.export import candidates_dir
from recipes.harvest import read_stream, shard_dir, shards_with
from recipes.model import load_model, replaced, run_to
from recipes.neurons import shares_near_neurons
from utils.paths import DICTIONARIES

CE_ROWS = 32
PAIR_ROWS = 32
RULE_LATENTS = 200
RULE_EXAMPLES = 50
CHUNK = 8


@dataclass
class HeldOut:
    """The harvested rows of 256 tokens of the held-out split: `tokens` `[rows, 256]`, streams `[rows, 255, 576]`."""

    shards: list[int]
    tokens: Tensor

    @classmethod
    def load(cls) -> "HeldOut":
        found = [(n, np.load(shard_dir("held_out", n) / "tokens.npy")) for n in shards_with("held_out")]
        long_rows = [(n, tokens) for n, tokens in found if tokens.shape[1] == 256]
        if not long_rows:
            raise FileNotFoundError("nothing is harvested: run `python -m recipes.harvest --split held_out` first")
        return cls(
            [n for n, _ in long_rows], torch.from_numpy(np.concatenate([t for _, t in long_rows]).astype(np.int64))
        )

    def stream(self, name: str) -> Tensor:
        return torch.cat([read_stream("held_out", n, name) for n in self.shards])


def open_dictionary(name: str) -> SAE[Any]:
    folder = candidates_dir() / name
    sae = SAE.load_from_disk(folder if folder.exists() else DICTIONARIES / name)
    if sae.hook_z_reshaping_mode:
        sae.turn_off_forward_pass_hook_z_reshaping()  # harvested heads are concatenated
    return sae


@torch.no_grad()
def codes(sae: SAE[Any], x: Tensor) -> Tensor:
    """Latents of `[rows, length, 576]`; of a temporal dictionary the novel ones."""
    return sae.encode(x.float())


@torch.no_grad()
def reconstruction(sae: SAE[Any], x: Tensor) -> Tensor:
    return sae(x.float())


def typical_tokens(y: Tensor) -> Tensor:
    """Which tokens of a stream `[..., 576]` are not massive: their norm is below three times the median."""
    norms = y.float().norm(dim=-1)
    return norms < 3 * norms.median()


@torch.no_grad()
def fidelity(one: Recipe, sae: SAE[Any], held_out: HeldOut) -> tuple[dict[str, Any], Tensor, Tensor]:
    """VE, L0 and alive share; and the sampled latents with their activations `[rows, length, RULE_LATENTS]`."""
    x, y = held_out.stream(one.source), held_out.stream(one.target)
    mean = y.float().mean((0, 1))
    typical = typical_tokens(y)
    latents = torch.randperm(one.d_sae, generator=torch.Generator().manual_seed(0))[:RULE_LATENTS]
    fired, active, error, variance, sampled = torch.zeros(one.d_sae), 0.0, [], [], []
    for at in range(0, len(x), CHUNK):
        rows = slice(at, at + CHUNK)
        acts = codes(sae, x[rows])
        rebuilt = reconstruction(sae, x[rows]) if one.kind == "temporal" else sae.decode(acts)
        fired += (acts > 0).flatten(0, 1).sum(0)
        active += (acts > 0).sum().item()
        sampled.append(acts[..., latents].half())
        error.append((y[rows].float() - rebuilt).pow(2).sum(-1))
        variance.append((y[rows].float() - mean).pow(2).sum(-1))
    errors, variances = torch.cat(error), torch.cat(variance)
    found = {
        "ve": 1 - (errors.sum() / variances.sum()).item(),
        "ve_typical": 1 - (errors[typical].sum() / variances[typical].sum()).item(),
        "l0": active / errors.numel(),
        "alive": (fired > 0).float().mean().item(),
        "dense": (fired > 0.1 * errors.numel()).float().mean().item(),
        "tokens": errors.numel(),
    }
    return found, latents, torch.cat(sampled)


@torch.no_grad()
def cross_entropy(model: Any, tokens: Tensor) -> float:
    """Mean over all predictions but the first token's."""
    losses = []
    for batch in tokens.split(CHUNK):
        logits = model(batch, use_cache=False).logits[:, 1:-1].float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), batch[:, 2:].flatten(), reduction="none"))
    return torch.cat(losses).mean().item()


def ce_recovered(one: Recipe, sae: SAE[Any], model: Any, tokens: Tensor, cache: dict[str, float]) -> dict[str, float]:
    """Cross-entropy with the reconstruction in place of its target, against clean and zero-ablated runs."""
    if "clean" not in cache:
        cache["clean"] = cross_entropy(model, tokens)
    if one.target not in cache:
        with replaced(model, one.target, torch.zeros_like):
            cache[one.target] = cross_entropy(model, tokens)
    if one.kind == "transcoder":
        inputs: list[Tensor] = []
        block = model.model.layers[one.layer].mlp
        handle = block.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        try:
            with replaced(model, one.target, lambda _out: reconstruction(sae, inputs.pop()[:, 1:])):
                spliced = cross_entropy(model, tokens)
        finally:
            handle.remove()
    else:
        with replaced(model, one.target, lambda x: reconstruction(sae, x)):
            spliced = cross_entropy(model, tokens)
    clean, ablated = cache["clean"], cache[one.target]
    return {
        "ce": spliced,
        "ce_clean": clean,
        "ce_zero": ablated,
        "ce_recovered": (ablated - spliced) / (ablated - clean),
    }


def rule_scores(tokens: Tensor, acts: Tensor) -> list[float]:
    """AUROC of the top-example rule for every latent of `acts` `[rows, length, n]`, `tokens` `[rows, length + 1]`."""
    vocabulary = 49_152
    half, length = len(tokens) // 2, acts.shape[1]
    padded = F.pad(tokens, (10, 0), value=0)
    # views[j][r, t]: the token j places before position t + 1 of the row
    views = [padded[:, 11 - j : 11 - j + length] for j in range(11)]
    frequency = torch.bincount(tokens[:half].flatten(), minlength=vocabulary).float() + 0.5
    frequency /= frequency.sum()
    scores = []
    for column in range(acts.shape[2]):
        values = acts[..., column].float()
        first = values[:half].clone()
        top = first.topk(2, dim=1)
        strongest = top.values.flatten().topk(min(RULE_EXAMPLES, top.values.numel()))
        keep = strongest.indices[strongest.values > 0]
        firing = values[half:] > 0
        if len(keep) < 5 or firing.sum() < 5:
            continue
        rows, places = keep // 2, top.indices.flatten()[keep]
        score = torch.zeros(len(tokens) - half, length)
        for group in (views[:1], views[1:2], views[2:]):
            seen = torch.stack([view[rows, places] for view in group])
            counts = torch.bincount(seen.flatten(), minlength=vocabulary).float()
            share = (counts + 2 * frequency) / (counts.sum() + 2)
            ratio = (share / frequency).log()
            score += torch.stack([ratio[view[half:]] for view in group]).mean(0)
        scores.append(auroc(score[firing], score[~firing]))
    return scores


def auroc(positive: Tensor, negative: Tensor) -> float:
    """The chance that a positive scores above a negative, ties counted half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive)
    below_or_equal = torch.searchsorted(ordered, positive, right=True)
    return ((below + below_or_equal).float().mean() / (2 * len(ordered))).item()


@torch.no_grad()
def agreement(earlier: str, later: str, model: Any, held_out: HeldOut) -> dict[str, float]:
    """How the later dictionary's latents change when the model runs on the earlier one's reconstruction."""
    tokens, first, second = held_out.tokens[:PAIR_ROWS], open_dictionary(earlier), open_dictionary(later)
    shared = total = overlap = union = 0.0
    counts = {"true": 0, "spliced": 0, "one_only": 0}
    for batch in tokens.split(CHUNK):
        stream = recipe(later).source
        true = codes(second, run_to(model, batch, [stream])[stream][:, 1:])
        with replaced(model, recipe(earlier).source, lambda x: reconstruction(first, x)):
            spliced = codes(second, run_to(model, batch, [stream])[stream][:, 1:])
        both = (true > 0) & (spliced > 0)
        shared += (true[both].sum() + spliced[both].sum()).item()
        total += (true.sum() + spliced.sum()).item()
        overlap += torch.minimum(true, spliced).sum().item()
        union += torch.maximum(true, spliced).sum().item()
        counts["true"] += (true > 0).sum().item()
        counts["spliced"] += (spliced > 0).sum().item()
        counts["one_only"] += ((true > 0) ^ (spliced > 0)).sum().item()
    n_tokens = tokens.shape[0] * (tokens.shape[1] - 1)
    per_token = {f"latents_{key}_per_token": value / n_tokens for key, value in counts.items()}
    return {"agreement": shared / total, "overlap": overlap / union, **per_token}


def _keep(update: Callable[[dict[str, Any]], None]) -> None:
    """Change the stored metrics, which another process may have changed meanwhile."""
    path = work_dir() / "metrics.json"
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    update(stored)
    path.write_text(json.dumps(stored, indent=1), encoding="utf-8")


def judge(names: list[str]) -> None:
    """Print the metrics of these dictionaries and of the pairs among them; kept in `<cache>/recipes/metrics.json`."""
    held_out, model = HeldOut.load(), load_model()
    cache: dict[str, float] = {}
    print(
        f"{'':24} {'VE':>6} {'typical':>8} {'L0':>6} {'alive':>6} {'CE':>6} {'zero':>6} {'CE rec.':>8} {'rule':>6}"
        f" {'dense':>6} {'row':>6} {'neuron':>6}"
    )
    for name in names:
        one, sae = recipe(name), open_dictionary(name)
        found, _latents, sampled = fidelity(one, sae, held_out)
        found |= ce_recovered(one, sae, model, held_out.tokens[:CE_ROWS], cache)
        if one.kind == "transcoder":
            found |= shares_near_neurons(one.layer, sae.W_enc.T)
        scores = rule_scores(held_out.tokens, sampled)
        found |= {"rule_auroc": float(np.median(scores)) if scores else None, "rule_latents": len(scores)}
        _keep(lambda stored, name=name, found=found: stored.update({name: found}))
        print(
            f"{name:24} {found['ve']:6.3f} {found['ve_typical']:8.3f} {found['l0']:6.1f} {found['alive']:6.3f}"
            f" {found['ce']:6.3f} {found['ce_zero']:6.3f} {found['ce_recovered']:8.4f} {found['rule_auroc'] or 0:6.3f}"
            f" {found['dense']:6.3f} {found.get('one_row', 0):6.3f} {found.get('one_neuron', 0):6.3f}",
            flush=True,
        )
    for earlier, later in PAIRS:
        if earlier in names and later in names:
            pair = agreement(earlier, later, model, held_out)
            label = f"{earlier} -> {later}"
            _keep(lambda stored, label=label, pair=pair: stored.setdefault("pairs", {}).update({label: pair}))
            print(f"{label}: " + ", ".join(f"{key} {value:.3f}" for key, value in pair.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge exported dictionaries on the held-out split.")
    parser.add_argument("names", nargs="*", help="default: all that are exported")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # bfloat16 products where the processor has them; moves cross-entropies by about 0.001
    torch.set_float32_matmul_precision("medium")
    here = (candidates_dir(), DICTIONARIES)
    judge(arguments.names or [name for name in RECIPES if any((folder / name).exists() for folder in here)])


if __name__ == "__main__":
    main()
