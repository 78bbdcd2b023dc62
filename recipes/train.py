"""Train dictionaries on harvested activations: `python -m recipes.train resid_pre.15` (or several names, or `all`).

Residual and attention dictionaries are TopK. Transcoders are BatchTopK with a running threshold: one threshold for all
latents is steered so that `k` latents a token are active on average, and becomes SAELens's JumpReLU threshold. Decoder
rows have unit norm. The error of a token counts in proportion to 1 / (its squared norm + the median squared norm), as
the model normalises its stream before it reads it, and a few tokens have ten times the norm of the others. Latents that
have not fired for a while are revived by a rising bias.

State goes to `<cache>/recipes/train/<name>.pt` every few minutes; a run that was killed goes on from there.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from recipes import sparse
from recipes.dictionary_set import RECIPES, Recipe, recipe, work_dir
from recipes.harvest import ROUNDS, read_stream, round_shards, shards_with
from recipes.neurons import fitted_neurons

BATCH = 1024
SHARDS_AT_ONCE = 4
DEAD_AFTER_TOKENS = 60_000
REVIVAL_STEP = 0.01  # of the threshold, a step
CHECKPOINT_SECONDS = 180


@dataclass
class Dictionary:
    """Weights during training, in units in which the centred input and output have an RMS of 1.

    Attributes:
        encoder: `[d_sae, d_in]`; row i reads latent i
        decoder: `[d_sae, d_out]`; unit rows
        threshold: above which a latent is active; for TopK, about where its smallest activations lie
        k: latents active at every token, or None where the threshold decides
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor
    input_mean: Tensor
    output_mean: Tensor
    input_scale: float
    output_scale: float
    threshold: float
    k: int | None = None

    def pre_activations(self, x: Tensor) -> Tensor:
        """bfloat16 `[batch, d_sae]` of raw inputs `[batch, d_in]`."""
        scaled = ((x.float() - self.input_mean) / self.input_scale).bfloat16()
        return F.linear(scaled, self.encoder.bfloat16(), self.encoder_bias.bfloat16())

    def active(self, pre: Tensor) -> sparse.Active:
        return sparse.above(pre, self.threshold) if self.k is None else sparse.top(pre, self.k)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The reconstruction of raw inputs `[..., d_in]`, in raw units."""
        found = self.active(self.pre_activations(x.reshape(-1, x.shape[-1])))
        scaled = sparse.decode(found, self.decoder) + self.decoder_bias
        return (scaled * self.output_scale + self.output_mean).reshape(*x.shape[:-1], -1)


@dataclass
class Batches:
    """Shuffled pairs (input, target) of a recipe, bfloat16 `[batch, 576]` each, from all harvested shards, over and
    over.

    Tokens are mixed within groups of shards, whose order changes in every round.
    """

    recipe: Recipe
    split: str = "train"
    batch: int = BATCH
    skip: int = 0
    shards: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = self.shards or shards_with(self.split, self.recipe.source, self.recipe.target)
        if not numbers:
            raise FileNotFoundError(f"no shard has {self.recipe.source}: run `python -m recipes.harvest` first")
        if self.recipe.earlier and not shards_with(self.split, self.recipe.spliced_source):
            raise FileNotFoundError(f"no shard has {self.recipe.spliced_source}: run `python -m recipes.spliced` first")
        rng, to_skip = np.random.default_rng(self.recipe.seed), self.skip
        while True:
            order = rng.permutation(numbers)
            for start in range(0, len(order), SHARDS_AT_ONCE):
                group = [int(number) for number in order[start : start + SHARDS_AT_ONCE]]
                x, y = None, None
                sizes = [read_stream(self.split, n, self.recipe.source).flatten(0, 1).shape[0] for n in group]
                shuffled = rng.permutation(sum(sizes))
                spliced = rng.random(len(shuffled)) < 0.5 if self.recipe.earlier else None
                for at in range(0, len(shuffled) - self.batch + 1, self.batch):
                    if to_skip:
                        to_skip -= 1
                        continue
                    if x is None:
                        x, y = self._load(group, spliced)
                    rows = torch.from_numpy(shuffled[at : at + self.batch])
                    yield x[rows], y[rows]

    def _load(self, group: list[int], spliced: np.ndarray | None) -> tuple[Tensor, Tensor]:
        def stream(name: str) -> Tensor:
            return torch.cat([read_stream(self.split, number, name).flatten(0, 1) for number in group])

        x = stream(self.recipe.source)
        y = stream(self.recipe.target) if self.recipe.target != self.recipe.source else x
        if spliced is not None:
            # A later dictionary of a pair learns its latents in the model that runs on a reconstruction, too.
            done = set(shards_with(self.split, self.recipe.spliced_source))
            seen = [self.recipe.spliced_source if n in done else self.recipe.source for n in group]
            other = torch.cat(
                [read_stream(self.split, n, name).flatten(0, 1) for n, name in zip(group, seen, strict=True)]
            )
            x = torch.where(torch.from_numpy(spliced)[:, None], other, x)
        return x, y


def initial_dictionary(one: Recipe, x: Tensor, y: Tensor) -> Dictionary:
    """Random decoder rows, the encoder their transpose, or the neurons of the MLP as far as there are latents for them;
    means and scales from a sample of raw rows `[n, 576]`."""
    generator = torch.Generator().manual_seed(one.seed)
    decoder = F.normalize(torch.randn(one.d_sae, y.shape[1], generator=generator), dim=1)
    encoder = decoder.clone() if one.target == one.source else torch.randn(one.d_sae, x.shape[1], generator=generator)
    encoder = F.normalize(encoder, dim=1)
    input_mean, output_mean = x.float().mean(0), y.float().mean(0)
    input_scale, output_scale = _typical_rms(x.float() - input_mean), _typical_rms(y.float() - output_mean)
    if one.start == "neurons":
        reads, writes = fitted_neurons(one.layer, x.float(), input_scale, output_scale)
        encoder *= reads.norm(dim=1).median()  # what remains random should fire about as often
        encoder[: len(reads)], decoder[: len(writes)] = reads, writes
    built = Dictionary(
        encoder=encoder,
        decoder=decoder,
        encoder_bias=torch.zeros(one.d_sae),
        decoder_bias=torch.zeros(y.shape[1]),
        input_mean=input_mean,
        output_mean=output_mean,
        input_scale=input_scale,
        output_scale=output_scale,
        threshold=0.0,
        k=one.k if one.is_topk else None,
    )
    pre = built.pre_activations(x[:256]).float().flatten()
    built.threshold = pre.kthvalue(len(pre) - 256 * one.k).values.item()
    return built


def _typical_rms(centred: Tensor) -> float:
    """The median over tokens of the root mean square of their entries."""
    return centred.pow(2).mean(1).median().sqrt().item()


class Training:
    """A dictionary, its optimizer and its progress."""

    def __init__(self, one: Recipe, dictionary: Dictionary) -> None:
        self.recipe, self.dictionary = one, dictionary
        self.parameters = [dictionary.encoder, dictionary.decoder, dictionary.encoder_bias, dictionary.decoder_bias]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.optimizer = torch.optim.Adam(self.parameters, lr=one.learning_rate, fused=True)
        self.steps, self.n_steps = 0, one.tokens // BATCH
        self.silent_tokens = torch.zeros(one.d_sae, dtype=torch.long)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """One step on raw inputs and targets `[batch, 576]`; the weighted share of unexplained variance and the L0."""
        d = self.dictionary
        source = (x.float() - d.input_mean) / d.input_scale
        target = (y.float() - d.output_mean) / d.output_scale
        pre = F.linear(source.bfloat16(), d.encoder.bfloat16(), d.encoder_bias.bfloat16())
        found = d.active(pre)
        error = sparse.decode(found, d.decoder) + d.decoder_bias - target
        square = target.pow(2).sum(1, keepdim=True)
        weight = 1 / (square + square.median())
        grad_out = error * (weight / weight.sum())
        grad_values = sparse.value_gradients(found, d.decoder, grad_out)
        by_latent = sparse.ByLatent(found, self.recipe.d_sae)
        d.decoder.grad = by_latent.sum_tokens(found.values, grad_out)
        d.encoder.grad = by_latent.sum_tokens(grad_values, source)
        d.encoder_bias.grad = torch.zeros_like(d.encoder_bias).index_add_(0, found.columns, grad_values)
        d.decoder_bias.grad = grad_out.sum(0)
        # A decoder row stays on the unit sphere: the part of its gradient along itself would only be undone.
        d.decoder.grad -= (d.decoder.grad * d.decoder).sum(1, keepdim=True) * d.decoder
        self._set_learning_rate()
        self.optimizer.step()
        d.decoder.copy_(F.normalize(d.decoder, dim=1))
        l0 = len(found.values) / len(x)
        self._steer_threshold(l0, found.values)
        self._revive(by_latent.counts, len(x))
        self.steps += 1
        return ((error.pow(2) * weight).sum() / (target.pow(2) * weight).sum()).item(), l0

    def _set_learning_rate(self) -> None:
        """Up over the first 3 % of steps, flat, and down to zero over the last 60 %."""
        done = self.steps / self.n_steps
        factor = min(1.0, done / 0.03 + 1e-2, (1 - done) / 0.6)
        self.optimizer.param_groups[0]["lr"] = self.recipe.learning_rate * factor

    def _steer_threshold(self, l0: float, values: Tensor) -> None:
        d = self.dictionary
        if d.k is not None:
            d.threshold = 0.9 * d.threshold + 0.1 * torch.quantile(values[:100_000], 0.1).item()
            return
        # Steered slowly towards the end, so that the last value holds for the average of many batches.
        speed = 0.03 if self.steps < 0.8 * self.n_steps else 0.005
        ratio = np.clip(np.log(max(l0, 1) / self.recipe.k), -1, 1)
        d.threshold = max(1e-3, d.threshold * float(np.exp(speed * ratio)))

    def _revive(self, counts: Tensor, n_tokens: int) -> None:
        self.silent_tokens = torch.where(counts > 0, 0, self.silent_tokens + n_tokens)
        if self.steps < 0.9 * self.n_steps:
            silent = self.silent_tokens > DEAD_AFTER_TOKENS
            self.dictionary.encoder_bias[silent] += REVIVAL_STEP * self.dictionary.threshold

    def save(self, path: Path) -> None:
        state = {
            "dictionary": {key: _plain(value) for key, value in vars(self.dictionary).items()},
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "silent_tokens": self.silent_tokens,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(path)

    @classmethod
    def load(cls, one: Recipe, path: Path) -> "Training":
        state = torch.load(path)
        training = cls(one, Dictionary(**state["dictionary"]))
        if state["optimizer"] is not None:
            training.optimizer.load_state_dict(state["optimizer"])
        training.steps, training.silent_tokens = state["steps"], state["silent_tokens"]
        return training


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def state_path(name: str) -> Path:
    return work_dir("train") / f"{name}.pt"


def load_dictionary(name: str) -> Dictionary:
    """The newest state of a dictionary in training, or of a finished one."""
    return Dictionary(**torch.load(state_path(name))["dictionary"])


def steps_done(name: str) -> int:
    path = state_path(name)
    return torch.load(path)["steps"] if path.exists() else 0


def round_end(one: Recipe, number: int) -> int:
    """The step at which training in rounds leaves this round's text for the next."""
    return one.tokens // BATCH * (number + 1) // ROUNDS


def train(one: Recipe, path: Path | None = None, part: int | None = None) -> Training:
    """Train a dictionary, or go on with a training that was interrupted; of a training in rounds only one `part`."""
    path = path or state_path(one.name)
    shards = [] if part is None else round_shards(part)
    if path.exists():
        training = Training.load(one, path)
    else:
        training = Training(one, initial_dictionary(one, *next(iter(Batches(one, batch=16_384, shards=shards)))))
    first, last = (0, training.n_steps) if part is None else (round_end(one, part - 1), round_end(one, part))
    progress = tqdm(total=training.n_steps * BATCH, initial=training.steps * BATCH, desc=one.name, mininterval=10)
    saved = time.monotonic()
    loss = l0 = 0.0
    for x, y in Batches(one, skip=training.steps - first, shards=shards):
        if training.steps >= last:
            break
        now_loss, now_l0 = training.step(x, y)
        loss, l0 = (0.98 * loss + 0.02 * now_loss, 0.98 * l0 + 0.02 * now_l0) if loss else (now_loss, now_l0)
        silent = (training.silent_tokens > DEAD_AFTER_TOKENS).sum().item()
        progress.set_postfix(unexplained=f"{loss:.4f}", l0=f"{l0:.1f}", silent=silent, refresh=False)
        progress.update(len(x))
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            training.save(path)
            saved = time.monotonic()
    training.save(path)
    progress.close()
    return training


def main() -> None:
    parser = argparse.ArgumentParser(description="Train dictionaries on harvested activations.")
    parser.add_argument("names", nargs="+", help=f"`all`, or some of {', '.join(RECIPES)}")
    parser.add_argument("--round", type=int, help="the part of a training in rounds (`recipes.rounds`)")
    parser.add_argument("--threads", type=int, default=1, help="on shared cores, processes beat threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = list(RECIPES) if arguments.names == ["all"] else arguments.names
    for one in [recipe(name) for name in names]:
        train(one, part=arguments.round)


if __name__ == "__main__":
    main()
