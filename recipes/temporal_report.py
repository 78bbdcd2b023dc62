"""What a temporal dictionary's two parts know, on text not seen: `python -m recipes.temporal_report temporal.15`.

Prints three tables for the exported dictionaries that are named. Everywhere the first position and massive tokens (norm
over three times the median) are left out, and codes are centred: their mean over the sample is subtracted.

- Whole: variance explained, summed over dimensions, each around its own mean; the share of the centred stream's energy
  that the predicted part holds; novel codes a token.
- Slow and fast: the mean cosine of two codes 1, 8, 32 and 64 tokens apart in one row; and how often the nearest
  centroid, by cosine, of one code is that of its own passage (64 passages, centroids from the first half of each) or of
  its own token (the 50 most frequent, centroids from other rows; classes counted alike).
- Event boundaries: passages of different public documents are put one after the other, 5 in a row. How well 1 - the
  cosine of the mean codes of the 8 tokens before and the 8 from a place on tells places within 3 tokens of a joint from
  the others, as the area under the ROC curve.

The same is said of three representations beside: the stream itself, its exponential moving average, and the latents of
the plain dictionary `resid_pre.15`.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from recipes.corpus import documents
from recipes.metrics import HeldOut, auroc, codes, open_dictionary, typical_tokens
from recipes.model import FIRST_TOKEN, load_model, load_tokenizer, run_to

STREAM, PLAIN = "resid_pre.15", "resid_pre.15"
LAGS = (1, 8, 32, 64)
PASSAGES = 64
FREQUENT_TOKENS = 50
AVERAGE_DECAY = 0.9
JOINED_ROWS, PASSAGES_A_ROW, PASSAGE_LENGTH = 24, 5, 50
WINDOW, NEAR = 8, 3

Codes = Callable[[Tensor], Tensor]  # `[rows, length, 576]` to `[rows, length, n]`


def in_rows(function: Codes, x: Tensor) -> Tensor:
    return torch.cat([function(rows.float()) for rows in x.split(8)])


def moving_average(x: Tensor) -> Tensor:
    """The exponential average of each row's past and present, which starts at the row's first place."""
    averages = [x[:, 0]]
    for at in range(1, x.shape[1]):
        averages.append(AVERAGE_DECAY * averages[-1] + (1 - AVERAGE_DECAY) * x[:, at])
    return torch.stack(averages, dim=1)


def representations(names: list[str]) -> dict[str, Codes]:
    """What is compared: the stream, its average, the plain dictionary, and both parts of each temporal one."""
    plain = open_dictionary(PLAIN)
    found: dict[str, Codes] = {
        "stream": lambda x: x,
        "moving average": moving_average,
        PLAIN: lambda x: codes(plain, x),
    }
    for name in names:
        sae = open_dictionary(name)
        found[f"{name} predicted"] = lambda x, sae=sae: sae.encode_with_predictions(x)[1]
        found[f"{name} novel"] = lambda x, sae=sae: sae.encode_with_predictions(x)[0]
    return found


def whole(name: str, x: Tensor, typical: Tensor) -> list[float]:
    """Variance explained, share of energy predicted, and novel codes a token; `x` is `[rows, length, 576]`."""
    sae = open_dictionary(name)
    rebuilt = in_rows(sae, x)[typical]
    predicted = in_rows(lambda rows: sae.encode_with_predictions(rows)[1] @ sae.W_dec, x)[typical]
    novel = in_rows(lambda rows: (sae.encode_with_predictions(rows)[0] != 0).sum(-1, keepdim=True).float(), x)[typical]
    kept = x[typical].float()
    centred = sae.process_sae_in(kept)
    return [
        1 - ((rebuilt - kept).square().sum() / (kept - kept.mean(0)).square().sum()).item(),
        (predicted.square().sum() / centred.square().sum()).item(),
        novel.mean().item(),
    ]


def lag_similarity(z: Tensor, typical: Tensor, lag: int) -> float:
    """Mean cosine of centred codes `[rows, length, n]` that are `lag` places apart, both typical."""
    unit = F.normalize(z, dim=-1)
    both = typical[:, lag:] & typical[:, :-lag]
    return (unit[:, lag:] * unit[:, :-lag]).sum(-1)[both].mean().item()


def nearest_centroid_accuracy(known: Tensor, known_class: Tensor, asked: Tensor, asked_class: Tensor) -> float:
    """How often the centroid of its own class is the nearest, by cosine, to a code; the mean over classes."""
    classes = known_class.unique()
    centroids = F.normalize(torch.stack([known[known_class == one].mean(0) for one in classes]), dim=1)
    nearest = classes[(asked @ centroids.T).argmax(1)]
    return torch.stack([(nearest[asked_class == one] == one).float().mean() for one in classes]).nanmean().item()


def passage_accuracy(z: Tensor, typical: Tensor) -> float:
    z, typical = z[:PASSAGES], typical[:PASSAGES]
    passage = torch.arange(len(z))[:, None].expand(typical.shape)
    first = (torch.arange(z.shape[1]) < z.shape[1] // 2) & typical
    later = ~first & typical
    return nearest_centroid_accuracy(z[first], passage[first], z[later], passage[later])


def token_accuracy(z: Tensor, typical: Tensor, tokens: Tensor) -> float:
    frequent = torch.bincount(tokens[typical]).topk(FREQUENT_TOKENS).indices
    kept = typical & torch.isin(tokens, frequent)
    even = (torch.arange(len(z)) % 2 == 0)[:, None] & kept
    odd = ~even & kept
    return nearest_centroid_accuracy(z[even], tokens[even], z[odd], tokens[odd])


def joined_passages() -> tuple[Tensor, Tensor]:
    """Rows of tokens `[rows, 1 + length]`, each the beginnings of different public documents, and which of the places
    after the first token begin one, `[rows, length]`; the first passage of a row begins nothing."""
    tokenizer = load_tokenizer()
    passages: list[list[int]] = []
    for document in documents("public"):
        ids = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
        if len(ids) >= PASSAGE_LENGTH:
            passages.append(ids[:PASSAGE_LENGTH])
        if len(passages) == JOINED_ROWS * PASSAGES_A_ROW:
            break
    tokens = torch.tensor(passages).reshape(JOINED_ROWS, -1)
    begins = torch.zeros(tokens.shape, dtype=torch.bool)
    begins[:, PASSAGE_LENGTH::PASSAGE_LENGTH] = True
    return F.pad(tokens, (1, 0), value=FIRST_TOKEN), begins


def change(z: Tensor) -> Tensor:
    """1 - the cosine of the mean code of the window before each place with that of the window from it on; NaN where a
    window would leave the row. `[rows, length]` of `[rows, length, n]`."""
    means = z.unfold(1, WINDOW, 1).mean(-1)
    scores = torch.full(z.shape[:2], torch.nan)
    scores[:, WINDOW : z.shape[1] - WINDOW + 1] = 1 - F.cosine_similarity(means[:, :-WINDOW], means[:, WINDOW:], dim=-1)
    return scores


def boundary_auroc(z: Tensor, begins: Tensor) -> float:
    near = F.max_pool1d(begins[:, None].float(), 2 * NEAR + 1, stride=1, padding=NEAR)[:, 0] > 0
    scores = change(z)
    counted = ~scores.isnan()
    return auroc(scores[near & counted], scores[~near & counted])


@torch.no_grad()
def temporal_report(names: list[str]) -> str:
    """The three tables as Markdown."""
    held_out = HeldOut.load()
    tokens, x = held_out.tokens[:, 1:], held_out.stream(STREAM)
    typical = typical_tokens(x)
    joined, begins = joined_passages()
    joined_x = run_to(load_model(), joined, [STREAM])[STREAM][:, 1:]
    table = []
    for name, function in representations(names).items():
        z = in_rows(function, x)
        mean = z[typical].mean(0)
        z -= mean
        lags = [lag_similarity(z, typical, lag) for lag in LAGS]
        of = [passage_accuracy(z, typical), token_accuracy(z, typical, tokens)]
        table.append([name, *lags, *of, boundary_auroc(in_rows(function, joined_x) - mean, begins)])
    parts = tabulate(
        table,
        headers=("", *(f"lag {lag}" for lag in LAGS), "passage", "token", "boundaries"),
        tablefmt="github",
        floatfmt=".2f",
    )
    wholes = tabulate(
        [[name, *whole(name, x, typical)] for name in names],
        headers=("", "VE", "predicted", "novel codes"),
        tablefmt="github",
        floatfmt=("", ".3f", ".3f", ".0f"),
    )
    return f"{wholes}\n\n{parts}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the parts of temporal dictionaries know.")
    parser.add_argument("names", nargs="*", default=["temporal.15"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(temporal_report(arguments.names))


if __name__ == "__main__":
    main()
