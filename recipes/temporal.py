"""Train the temporal dictionary: `python -m recipes.temporal`.

SAELens's `TemporalSAE` (after arXiv 2511.01836) only runs such dictionaries. Its `encode_with_predictions` is
differentiable, so training needs no second formulation: predicted codes come from attention over the codes of
earlier tokens, novel codes are the TopK of what is left, and the loss is the error of the sum of both, weighted by
token as in `recipes.train`. Batches are whole rows of tokens in their order. State goes to
`<cache>/recipes/train/temporal.15.pt`; a run that was killed goes on from there.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from torch import Tensor
from tqdm import tqdm

from recipes.dictionary_set import D_MODEL, Recipe, recipe
from recipes.harvest import read_stream, shards_with
from recipes.train import CHECKPOINT_SECONDS, state_path

N_HEADS = 4
BOTTLENECK = 32
BATCH_TOKENS = 2_048
ALIVE_WINDOW = 60_000
REVIVE_EVERY = 25


def new_temporal(one: Recipe, mean: Tensor, scale: float) -> TemporalSAE:
    """Random weights: unit decoder rows and the encoder their transpose; `scale` is the typical RMS of centred
    activations."""
    torch.manual_seed(one.seed)
    config = TemporalSAEConfig(
        d_in=D_MODEL,
        d_sae=one.d_sae,
        n_heads=N_HEADS,
        bottleneck_factor=BOTTLENECK,
        kval_topk=one.k,
        tied_weights=False,
        apply_b_dec_to_input=True,
        normalize_activations="constant_scalar_rescale",
        activation_normalization_factor=1 / scale,
    )
    sae = TemporalSAE(config)
    with torch.no_grad():
        sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
        sae.W_enc.copy_(sae.W_dec.T / sae.lam)  # SAELens multiplies by `lam` again as it encodes
        sae.b_dec.copy_(mean / scale)
        for layer in sae.attn_layers:
            layer.v_ctx.weight.copy_(torch.eye(one.d_sae) * 0.5 + 0.1 * layer.v_ctx.weight)
            layer.c_proj.weight.copy_(torch.eye(one.d_sae) * 0.5 + 0.1 * layer.c_proj.weight)
    return sae


def rows_of_tokens(one: Recipe, skip: int = 0) -> Iterator[Tensor]:
    """Batches `[rows, length - 1, 576]` of the stream, shard by shard in a new order every round, rows shuffled."""
    rng = np.random.default_rng(one.seed)
    numbers = shards_with("train", one.source)
    while True:
        for number in rng.permutation(numbers):
            x = read_stream("train", int(number), one.source)
            per_batch = max(1, BATCH_TOKENS // x.shape[1])
            for rows in np.array_split(rng.permutation(len(x)), max(1, len(x) // per_batch)):
                if skip:
                    skip -= 1
                    continue
                yield x[torch.from_numpy(rows)].float()


class TemporalTraining:
    def __init__(self, one: Recipe, sae: TemporalSAE) -> None:
        self.recipe, self.sae = one, sae
        # Encoder entries are larger than the decoder's by 1 / lam, and so must be their steps; attention wants smaller.
        groups = [
            {"params": list(sae.attn_layers.parameters()), "size": 0.3},
            {"params": [sae.W_dec, sae.b_dec], "size": 1.0},
            {"params": [sae.W_enc], "size": 1 / sae.lam},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=one.learning_rate, fused=True)
        self.tokens, self.steps = 0, 0
        self.silent_tokens = torch.zeros(one.d_sae, dtype=torch.long)

    def step(self, x: Tensor) -> float:
        """One step on `[rows, length, 576]`; the weighted share of unexplained variance."""
        sae, shrink = self.sae, self.sae.cfg.activation_normalization_factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            novel, predicted = sae.encode_with_predictions(x)
            rebuilt = (novel + predicted) @ sae.W_dec
        target = x * shrink - sae.b_dec.detach()
        error = rebuilt.float() + (sae.b_dec - sae.b_dec.detach()) - target
        square = target.pow(2).sum(-1, keepdim=True)
        weight = 1 / (square + square.median())
        loss = (error.pow(2) * weight).sum() / (target.pow(2) * weight).sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.attn_layers.parameters(), 1.0)
        done = self.tokens / self.recipe.tokens
        for group in self.optimizer.param_groups:
            group["lr"] = group["size"] * self.recipe.learning_rate * min(1.0, done / 0.03 + 1e-2, (1 - done) / 0.6)
        self.optimizer.step()
        with torch.no_grad():
            n_tokens = x.shape[0] * x.shape[1]
            sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
            fired = (novel > 0).flatten(0, 1).any(0)
            self.silent_tokens = torch.where(fired, 0, self.silent_tokens + n_tokens)
            if self.steps % REVIVE_EVERY == 0 and done < 0.8:
                self._revive(error.flatten(0, 1))
        self.tokens += n_tokens
        self.steps += 1
        return loss.item()

    def _revive(self, error: Tensor) -> None:
        """Point latents that have been silent at the errors of badly reconstructed tokens, and forget their
        momentum."""
        silent = (self.silent_tokens > ALIVE_WINDOW).nonzero().squeeze(1)[: len(error) // 4]
        if len(silent) == 0:
            return
        worst = -error[error.norm(dim=1).topk(len(silent)).indices]
        directions = F.normalize(worst, dim=1)
        self.sae.W_dec[silent] = directions
        self.sae.W_enc[:, silent] = directions.T / self.sae.lam
        for parameter, rows in ((self.sae.W_dec, silent), (self.sae.W_enc, (slice(None), silent))):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment][rows] = 0
        self.silent_tokens[silent] = 0

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "weights": self.sae.state_dict(),
                "scale": 1 / self.sae.cfg.activation_normalization_factor,
                "optimizer": self.optimizer.state_dict(),
                "tokens": self.tokens,
                "steps": self.steps,
                "silent_tokens": self.silent_tokens,
            },
            partial,
        )
        partial.rename(path)

    @classmethod
    def load(cls, one: Recipe, path: Path) -> "TemporalTraining":
        state = torch.load(path)
        training = cls(one, new_temporal(one, torch.zeros(D_MODEL), state["scale"]))
        training.sae.load_state_dict(state["weights"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.tokens, training.steps = state["tokens"], state["steps"]
        training.silent_tokens = state["silent_tokens"]
        return training


def train_temporal(one: Recipe) -> TemporalTraining:
    path = state_path(one.name)
    if path.exists():
        training = TemporalTraining.load(one, path)
    else:
        x = read_stream("train", shards_with("train", one.source)[0], one.source).flatten(0, 1).float()
        mean = x.mean(0)
        training = TemporalTraining(one, new_temporal(one, mean, (x - mean).pow(2).mean(1).median().sqrt().item()))
    progress = tqdm(total=one.tokens, initial=training.tokens, desc=one.name, unit="token", mininterval=10)
    saved, smooth = time.monotonic(), 0.0
    for x in rows_of_tokens(one, skip=training.steps):
        if training.tokens >= one.tokens:
            break
        loss = training.step(x)
        smooth = 0.98 * smooth + 0.02 * loss if smooth else loss
        silent = (training.silent_tokens > ALIVE_WINDOW).sum().item()
        progress.set_postfix(unexplained=f"{smooth:.4f}", silent=silent, refresh=False)
        progress.update(x.shape[0] * x.shape[1])
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            training.save(path)
            saved = time.monotonic()
    training.save(path)
    progress.close()
    return training


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the temporal dictionary.")
    parser.add_argument("names", nargs="*", default=["temporal.15"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        train_temporal(recipe(name))


if __name__ == "__main__":
    main()
