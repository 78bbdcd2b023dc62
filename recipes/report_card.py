"""The report card of the exported dictionaries: `python -m recipes.report_card` puts its table into recipes/README.md.

Every dictionary is judged beside two controls with its own k on the first 127 tokens of 240 held-out documents, 40 of
each of six genres:

- random: as many unit directions as the dictionary has latents, drawn at random; the k largest products with the
  centred input are the activations.
- PCA: the same with the principal directions of the input and their opposites, 1,152 in all.

A control's decoder is the ridge regression of the target on its activations, and its means and principal directions
come from the same 480 documents of the training split; tokens weigh as in `recipes.train`.

The measures are SAEBench's where they fit a model of this size: variance explained, L0, dead and dense latents and
cross-entropy recovered as in `recipes.metrics`, and k-sparse probing. A task of probing is to tell one label from the
others: the genre of a document by the mean of its activations, or the tense or mood of one of the course's 120 prompts
by the activations at its last token. Four of five folds choose the k latents whose class means differ most and fit a
linear discriminant on them; the fifth judges it. The figure is the mean over tasks of the accuracy, both classes
counted alike, so that 0.5 is chance. Feature absorption is left out: it is measured on the first letters of many
thousand words, with ablations for each, which is not a matter of minutes on a CPU, and nothing in the course spells.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix, vstack
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from recipes.corpus import documents
from recipes.dictionary_set import RECIPES, Recipe, recipe
from recipes.metrics import ce_recovered, codes, fidelity, open_dictionary
from recipes.model import FIRST_TOKEN, load_model, load_tokenizer, run_to
from recipes.report import README, between_marks
from utils.material.tenses import ALL_TEMPORAL_CATEGORIES

BEGIN, END = "<!-- card: made by `python -m recipes.report_card` -->", "<!-- end of card -->"
DOCUMENTS_A_GENRE = 40
DOCUMENTS_TO_FIT = 480
LENGTH = 128
CE_ROWS = 60
BATCH_ROWS = 16
FOLDS = 5
PROBE_SIZES = (1, 2, 5)
RIDGE = 0.01  # of the mean variance of an activation
HEADERS = ("", "VE", "VE typical", "L0", "dead", "dense", "CE recovered", *(f"probing, k = {k}" for k in PROBE_SIZES))


@dataclass
class Texts:
    """Rows of tokens `[rows, length]` with a label and a fold for each, and their streams, `[rows, places, 576]`."""

    tokens: Tensor
    labels: list[str]
    folds: Tensor
    streams: dict[str, Tensor]

    def stream(self, name: str) -> Tensor:
        return self.streams[name]


def beginnings(split: str) -> Iterator[tuple[str, list[int]]]:
    """Genre and first tokens of every document of a split that has enough of them."""
    tokenizer = load_tokenizer()
    for document in documents(split):
        ids = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
        if len(ids) >= LENGTH - 1:
            yield document["genre"], [FIRST_TOKEN, *ids[: LENGTH - 1]]


def with_streams(model: Any, rows: list[list[int]], labels: list[str], folds: Tensor, streams: list[str]) -> Texts:
    tokens = torch.tensor(rows)
    batches = [run_to(model, batch, streams) for batch in tokens.split(BATCH_ROWS)]
    return Texts(
        tokens, labels, folds, {name: torch.cat([batch[name][:, 1:] for batch in batches]) for name in streams}
    )


def texts_to_fit(model: Any, streams: list[str]) -> Texts:
    rows = [row for _, (_, row) in zip(range(DOCUMENTS_TO_FIT), beginnings("train"), strict=False)]
    return with_streams(model, rows, [], torch.empty(0), streams)


def genre_texts(model: Any, streams: list[str]) -> Texts:
    """Held-out documents, equally many of every genre that has enough; genres take turns, so that any part is mixed."""
    by_genre: dict[str, list[list[int]]] = defaultdict(list)
    for genre, row in beginnings("held_out"):
        by_genre[genre].append(row)
    enough = {genre: rows for genre, rows in by_genre.items() if len(rows) >= DOCUMENTS_A_GENRE}
    rows = [rows[n] for n in range(DOCUMENTS_A_GENRE) for rows in enough.values()]
    folds = torch.arange(DOCUMENTS_A_GENRE).repeat_interleave(len(enough)) % FOLDS
    return with_streams(model, rows, list(enough) * DOCUMENTS_A_GENRE, folds, streams)


def tense_texts(model: Any, streams: list[str]) -> Texts:
    """The course's prompts of six tenses and moods with their streams at the last token; a scene is in one fold."""
    tokenizer = load_tokenizer()
    labels = [label for label, told in ALL_TEMPORAL_CATEGORIES.items() for _ in told]
    prompts = [prompt for told in ALL_TEMPORAL_CATEGORIES.values() for prompt in told]
    scenes = torch.cat([torch.arange(len(told)) for told in ALL_TEMPORAL_CATEGORIES.values()])
    runs = []
    for prompt in prompts:
        row = [FIRST_TOKEN, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        runs.append(run_to(model, torch.tensor([row]), streams))
    return Texts(
        torch.empty(0),
        labels,
        scenes % FOLDS,
        {name: torch.cat([run[name][:, -1:] for run in runs]) for name in streams},
    )


class Control:
    """Given directions as a dictionary: what judging asks of SAELens's classes, and a decoder fitted to a sample."""

    def __init__(self, directions: Tensor, mean: Tensor, k: int) -> None:
        self.encoder, self.mean, self.k = directions, mean, k

    def encode(self, x: Tensor) -> Tensor:
        pre = (x - self.mean) @ self.encoder.T
        largest = pre.topk(self.k)
        return torch.zeros_like(pre).scatter_(-1, largest.indices, largest.values.relu())

    def fit_decoder(self, x: Tensor, y: Tensor, weight: Tensor) -> "Control":
        """Ridge regression of `y` on the activations of `x`, raw rows `[tokens, 576]`, weights summing to 1."""
        acts = vstack([csr_matrix(self.encode(part).numpy()) for part in x.split(4096)])
        weighted = acts.multiply(weight[:, None].numpy()).tocsr()
        act_mean, out_mean = torch.from_numpy(weighted.sum(0)).float().reshape(-1), weight @ y
        second = torch.from_numpy((weighted.T @ acts).toarray()).float() - torch.outer(act_mean, act_mean)
        second += RIDGE * second.diagonal().mean() * torch.eye(len(second))
        mixed = torch.from_numpy(weighted.T @ (y - out_mean).numpy()).float()
        self.decoder = torch.linalg.solve(second, mixed)
        self.bias = out_mean - act_mean @ self.decoder
        return self

    def decode(self, acts: Tensor) -> Tensor:
        return acts @ self.decoder + self.bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def controls(one: Recipe, sample: Texts) -> dict[str, Control]:
    x, y = (sample.stream(name).flatten(0, 1).float() for name in (one.source, one.target))
    square = (y - y.mean(0)).square().sum(1)
    weight = 1 / (square + square.median())
    weight /= weight.sum()
    mean = weight @ x
    principal = torch.linalg.eigh((x - mean).T @ ((x - mean) * weight[:, None])).eigenvectors.T
    drawn = F.normalize(torch.randn(one.d_sae, x.shape[1], generator=torch.Generator().manual_seed(0)), dim=1)
    directions = {"random": drawn, "PCA": torch.cat([principal, -principal])}
    return {name: Control(rows, mean, one.k).fit_decoder(x, y, weight) for name, rows in directions.items()}


def probe_accuracy(features: Tensor, positive: Tensor, folds: Tensor, k: int) -> float:
    """How well k of the features `[examples, n]` tell the positive examples, on folds that did not choose them."""
    right = torch.zeros(len(features), dtype=torch.bool)
    for fold in folds.unique():
        a, b = features[(folds != fold) & positive], features[(folds != fold) & ~positive]
        chosen = (a.mean(0) - b.mean(0)).abs().topk(k).indices
        a, b = a[:, chosen], b[:, chosen]
        spread = torch.from_numpy(np.atleast_2d(np.cov(a.T.numpy()) + np.cov(b.T.numpy()))).float()
        spread += (1e-3 * spread.diagonal().mean() + 1e-9) * torch.eye(k)
        weights = torch.linalg.solve(spread, a.mean(0) - b.mean(0))
        cut = weights @ (a.mean(0) + b.mean(0)) / 2
        right = torch.where(folds == fold, (features[:, chosen] @ weights > cut) == positive, right)
    return (right[positive].float().mean().item() + right[~positive].float().mean().item()) / 2


def probing(features: Tensor, texts: Texts) -> dict[int, list[float]]:
    """For every number of latents the accuracy of each task: one label against the others."""
    tasks = [torch.tensor([label == one for label in texts.labels]) for one in dict.fromkeys(texts.labels)]
    return {k: [probe_accuracy(features, positive, texts.folds, k) for positive in tasks] for k in PROBE_SIZES}


def mean_codes(sae: Any, x: Tensor) -> Tensor:
    return torch.cat([codes(sae, rows).mean(1) for rows in x.split(BATCH_ROWS)])


def line(name: str, one: Recipe, sae: Any, model: Any, genres: Texts, tenses: Texts, losses: dict[str, float]) -> list:
    """One line of the table."""
    found, _, _ = fidelity(one, sae, genres)
    recovered = ce_recovered(one, sae, model, genres.tokens[:CE_ROWS], losses)["ce_recovered"]
    of_genre = probing(mean_codes(sae, genres.stream(one.source)), genres)
    of_tense = probing(mean_codes(sae, tenses.stream(one.source)), tenses)
    figures = [found["ve"], found["ve_typical"], found["l0"], 1 - found["alive"], found["dense"], recovered]
    probes = [float(np.mean(of_genre[k] + of_tense[k])) for k in PROBE_SIZES]
    return [name, *(f"{figure:.0f}" if at == 2 else f"{figure:.3f}" for at, figure in enumerate(figures + probes))]


def report_card(names: list[str]) -> str:
    """The table as Markdown."""
    recipes = [recipe(name) for name in names]
    streams = sorted({stream for one in recipes for stream in (one.source, one.target)})
    model = load_model()
    sample, genres, tenses = (texts(model, streams) for texts in (texts_to_fit, genre_texts, tense_texts))
    lines, losses = [], {}
    for one in tqdm(recipes, unit="dictionary"):
        beside = {one.name: open_dictionary(one.name)} | controls(one, sample)
        for name, sae in beside.items():
            width = len(sae.encoder) if isinstance(sae, Control) else one.d_sae
            lines.append(line(name, replace(one, d_sae=width), sae, model, genres, tenses, losses))
    return tabulate(lines, headers=HEADERS, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge exported dictionaries beside random and principal directions.")
    parser.add_argument("names", nargs="*", help="only print the table of these; default: write that of the whole set")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("medium")  # as in `recipes.metrics`
    card = report_card(arguments.names or list(RECIPES))
    print(card)
    if not arguments.names:
        README.write_text(between_marks(README.read_text("utf-8"), BEGIN, END, card), "utf-8")


if __name__ == "__main__":
    main()
