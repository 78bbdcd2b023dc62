"""Make the index behind the dashboards: `python -m recipes.top_examples` (or the names of some dictionaries).

One pass of the model over the public split serves all dictionaries. For each latent the index keeps its strongest
passages, a histogram of its activations, and through it how often it fires; see `utils.dashboards.index` for the format
and for how text becomes passages. First positions (the attention sink) and special tokens are left out. The model
runs in bfloat16, as in `recipes.harvest`; what a dashboard shows is computed again in float32.

State goes to `<cache>/recipes/top_examples/` every few minutes; a run that was killed and is started again with the
same arguments goes on from there. Measured: about 2 ms a token and core for the whole set.
"""

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from recipes.corpus import corpus_dir, documents
from recipes.dictionary_set import RECIPES, recipe, work_dir
from recipes.export import candidates_dir
from recipes.model import FIRST_TOKEN, load_model, load_tokenizer, run_to
from utils.dashboards.index import INDEX, Index, fingerprints, save_index
from utils.material.public_text import passages
from utils.paths import DICTIONARIES

EXAMPLES = 8
BINS = 20  # of half an octave: a factor of 1024 from the first edge to the last
BATCH_TOKENS = 4_096
CHECKPOINT_SECONDS = 180


@dataclass
class Passages:
    """The public split, cut up.

    Attributes:
        tokens: the passages without their first special token, shortest first, so that a batch needs little padding
        places: of each passage's first token in the stream of all tokens
        document_starts: as in `Index`
    """

    tokens: list[Sequence[int]]
    places: list[int]
    document_starts: list[int]

    @classmethod
    def of(cls, texts_ids: Sequence[Sequence[int]]) -> "Passages":
        """The passages of tokenised documents."""
        document_starts, found = [0], []
        for ids in texts_ids:
            at = document_starts[-1]
            for passage in passages(ids):
                found.append((passage, at))
                at += len(passage)
            document_starts.append(at)
        found.sort(key=lambda pair: len(pair[0]))
        return cls([passage for passage, _ in found], [place for _, place in found], document_starts)

    def batches(self) -> list[slice]:
        """Slices of passages that hold about `BATCH_TOKENS` tokens each."""
        cuts, held = [0], 0
        for number, passage in enumerate(self.tokens):
            if held + len(passage) > BATCH_TOKENS and held:
                cuts.append(number)
                held = 0
            held += len(passage)
        return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(self.tokens)], strict=True)]


class Tally:
    """What is kept of one dictionary's activations while they stream by."""

    def __init__(self, d_sae: int, examples: int = EXAMPLES) -> None:
        self.places = torch.full((d_sae, examples), -1, dtype=torch.int32)
        self.strengths = torch.zeros(d_sae, examples)
        self.counts = torch.zeros(d_sae, BINS, dtype=torch.int32)
        self.first_bin: int | None = None

    def add(self, acts: Tensor, places: Tensor) -> None:
        """Take in activations `[passages, positions, d_sae]`, zero where they do not count.

        Args:
            places: of the passages' first positions, `[passages]`
        """
        self._count(acts)
        best = acts.amax(1)
        passage, latent = (best > self.strengths[:, -1]).nonzero().T
        position = acts[passage, :, latent].argmax(1)
        # Candidates join the latents' lists by way of a dense table of this batch, which is small.
        place = torch.full(best.shape, -1, dtype=torch.int32)
        place[passage, latent] = (places[passage] + position).to(torch.int32)
        best = torch.where(place >= 0, best, 0.0)
        strengths, order = torch.cat([self.strengths, best.T], dim=1).sort(dim=1, descending=True, stable=True)
        kept = order[:, : self.strengths.shape[1]]
        self.places = torch.cat([self.places, place.T], dim=1).gather(1, kept)
        self.strengths = strengths[:, : self.strengths.shape[1]].contiguous()

    def _count(self, acts: Tensor) -> None:
        # numpy scans integers faster than floats, and the bits of a positive float are a positive integer.
        flat = torch.from_numpy(np.flatnonzero(acts.contiguous().view(torch.int32).numpy() > 0))
        values, latents = acts.reshape(-1)[flat], flat % acts.shape[-1]
        if len(values) == 0:
            return
        half_octaves = (2 * values.log2()).floor().long()
        if self.first_bin is None:
            # All but the weakest hundredth of what is seen first lies above the first edge.
            self.first_bin = int(half_octaves.kthvalue(max(1, len(values) // 100)).values)
        bins = (half_octaves - self.first_bin).clamp(0, BINS - 1)
        self.counts += torch.bincount(latents * BINS + bins, minlength=self.counts.numel()).view_as(self.counts)

    def edges(self) -> Tensor:
        """The bins' edges, `[BINS + 1]`."""
        return 2.0 ** ((torch.arange(BINS + 1) + (self.first_bin or 0)) / 2)

    def index(self, document_starts: Sequence[int], n_tokens: int) -> Index:
        starts = torch.tensor(document_starts, dtype=torch.int32)
        return Index(self.places, self.strengths, self.counts, self.edges(), starts, n_tokens)


@torch.inference_mode()
def survey(
    model: Any, dictionaries: dict[str, SAE[Any]], cut: Passages, special: Sequence[int], state: Path | None = None
) -> tuple[dict[str, Tally], int]:
    """Run the model once over all passages; the tallies by dictionary name, and how many tokens they count.

    Args:
        special: ids of tokens that do not count
        state: file from which an earlier run is resumed, and to which this one is saved now and then
    """
    tallies = {name: Tally(sae.cfg.d_sae) for name, sae in dictionaries.items()}
    done, n_tokens = 0, 0
    if state and state.exists():
        tallies, done, n_tokens = torch.load(state, weights_only=False)  # our own file, in our own cache
    batches, saved = cut.batches(), time.monotonic()
    streams = sorted({recipe(name).source for name in dictionaries})
    total = sum(map(len, cut.tokens))
    progress = tqdm(total=total, desc="public split", unit="token", unit_scale=True, mininterval=5)
    progress.update(sum(map(len, cut.tokens[: batches[done].start])) if done < len(batches) else total)
    for number, batch in enumerate(batches[done:], start=done + 1):
        tokens, counted = padded(cut.tokens[batch], special)
        seen = run_to(model, tokens, streams)
        places = torch.tensor(cut.places[batch])
        for name, sae in dictionaries.items():
            acts = sae.encode(seen[recipe(name).source][:, 1:].float())
            tallies[name].add(acts * counted[..., None], places)
        n_tokens += int(counted.sum())
        progress.update(sum(map(len, cut.tokens[batch])))
        if state and time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save_state(state, (tallies, number, n_tokens))
            saved = time.monotonic()
    progress.close()
    if state:
        _save_state(state, (tallies, len(batches), n_tokens))
    return tallies, n_tokens


def padded(rows: Sequence[Sequence[int]], special: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Passages of one batch after the first special token, `[rows, length + 1]`, and which of the rest count."""
    length = max(map(len, rows))
    tokens = torch.tensor([[FIRST_TOKEN, *row, *[FIRST_TOKEN] * (length - len(row))] for row in rows])
    # The padding is a special token itself; it comes after all that counts, where a causal model cannot see it.
    return tokens, ~torch.isin(tokens[:, 1:], torch.tensor(list(special)))


def _save_state(path: Path, state: object) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _folder(name: str) -> Path:
    """Where a trained dictionary is: exported, else shipped."""
    exported = candidates_dir() / name
    return exported if exported.exists() else DICTIONARIES / name


def _open(name: str) -> SAE[Any]:
    sae = SAE.load_from_disk(_folder(name), device="cpu", dtype="float32")
    sae.turn_off_forward_pass_hook_z_reshaping()  # `run_to` has the heads concatenated already
    return sae.requires_grad_(False)


def tokenised(n_tokens: int | None) -> list[list[int]]:
    """The public documents' tokens, in the corpus's order, up to the document that completes `n_tokens`."""
    tokenizer, texts, found, total = load_tokenizer(), [document["text"] for document in documents("public")], [], 0
    for start in tqdm(range(0, len(texts), 64), desc="tokens of public"):
        for ids in tokenizer(texts[start : start + 64], add_special_tokens=False)["input_ids"]:
            if n_tokens is not None and total >= n_tokens:
                return found
            found.append(ids)
            total += len(ids)
    return found


def build(names: Sequence[str], n_tokens: int | None = None) -> None:
    """Write the indices of these dictionaries, `assets/top_examples/<name>.safetensors`."""
    corpus = corpus_dir() / "public.jsonl.xz"
    made_from = {name: fingerprints(corpus, _folder(name)) for name in names}
    key = hashlib.sha256(repr((sorted(made_from.items()), n_tokens)).encode()).hexdigest()[:16]
    state = work_dir("top_examples") / f"{key}.pt"
    cut = Passages.of(tokenised(n_tokens))
    # Products in bfloat16 with sums in float32: twice as fast, and no loss next to a model that runs in bfloat16.
    torch.set_float32_matmul_precision("medium")
    model, special = load_model(torch.bfloat16), load_tokenizer().all_special_ids
    tallies, counted = survey(model, {name: _open(name) for name in names}, cut, special, state)
    for name, tally in tallies.items():
        path = INDEX / f"{name}.safetensors"
        save_index(tally.index(cut.document_starts, counted), path, made_from[name])
        silent = int((tally.counts.sum(1) == 0).sum())
        print(f"{name:14} {path.stat().st_size:9} bytes, {silent} of {len(tally.counts)} latents never fired")
    state.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the index of top examples.")
    parser.add_argument("names", nargs="*", help="default: all that are exported or shipped")
    parser.add_argument("--tokens", type=int, help="look at so many tokens of the public split only (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [recipe(name).name for name in arguments.names] or [name for name in RECIPES if _folder(name).exists()]
    build(names, arguments.tokens)


if __name__ == "__main__":
    main()
