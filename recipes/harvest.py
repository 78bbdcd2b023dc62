"""Stream the model's activations to disk, all hook points in one forward pass: `python -m recipes.harvest`.

A shard is a folder of `tokens.npy` (uint16, `[rows, length]`, the first special token first) and one raw bfloat16
file per stream with the activations of every position but the first, `[rows, length - 1, 576]`. Shards are finished
one by one and renamed into place, so that a run that was killed goes on with the first missing shard. Rows are
pieces of documents, three quarters of the tokens in rows of 256 and the rest in rows of 64, in an order shuffled
within blocks of 3 M tokens.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recipes.corpus import corpus_dir, documents
from recipes.dictionary_set import D_MODEL, RECIPES, work_dir
from recipes.model import FIRST_TOKEN, depth, load_model, load_tokenizer, run_to

ROW_LENGTHS = (256, 64)
SHARE_OF_LONG_ROWS = 0.75
SHARD_TOKENS = 32_768
BLOCK_TOKENS = 3_000_000  # rows are shuffled within blocks; documents stand in hash order: a block is a fair sample
ROUNDS = 8  # parts of a million tokens, so that the activations of one fit on a disk (`recipes.rounds`)
BATCH_TOKENS = 4_096
STREAMS = sorted({stream for one in RECIPES.values() for stream in (one.source, one.target)}, key=depth)


def token_rows(split: str) -> list[dict[int, np.ndarray]]:
    """All rows of a split, block by block, by their length, `[rows, length]` each, in a fixed shuffled order; cached
    on disk."""
    folder = work_dir("tokens")
    first = folder / f"{split}.0.{ROW_LENGTHS[0]}.npy"
    if not first.exists():
        blocks = [_shuffled_rows(documents, block) for block, documents in enumerate(_token_blocks(split))]
        # which corpus these rows, and all that is made from them, come from
        shutil.copy(corpus_dir() / "manifest.json", folder / "corpus_manifest.json")
        for block, length in reversed([(block, length) for block in range(len(blocks)) for length in ROW_LENGTHS]):
            partial = folder / f"{split}.partial.npy"
            np.save(partial, blocks[block][length])
            partial.rename(folder / f"{split}.{block}.{length}.npy")
    n_blocks = len(list(folder.glob(f"{split}.*.{ROW_LENGTHS[0]}.npy")))
    return [
        {length: np.load(folder / f"{split}.{block}.{length}.npy", mmap_mode="r") for length in ROW_LENGTHS}
        for block in range(n_blocks)
    ]


def _token_blocks(split: str) -> Iterator[list[np.ndarray]]:
    """The tokenised documents of a split in blocks of `BLOCK_TOKENS` or a few less."""
    block: list[np.ndarray] = []
    size = 0
    for ids in _tokenised(split):
        if size + len(ids) > BLOCK_TOKENS:
            yield block
            block, size = [], 0
        block.append(ids)
        size += len(ids)
    yield block


def _shuffled_rows(documents: list[np.ndarray], seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows: dict[int, list[np.ndarray]] = {length: [] for length in ROW_LENGTHS}
    for ids in documents:
        length = ROW_LENGTHS[0] if rng.random() < SHARE_OF_LONG_ROWS else ROW_LENGTHS[1]
        while len(ids):
            if len(ids) < length - 1:
                length = ROW_LENGTHS[1]  # what is left of a document is cut into short rows
            if len(ids) < length - 1:
                break
            rows[length].append(np.concatenate([[FIRST_TOKEN], ids[: length - 1]]).astype(np.uint16))
            ids = ids[length - 1 :]
    return {length: np.stack(rows[length])[rng.permutation(len(rows[length]))] for length in ROW_LENGTHS}


def _tokenised(split: str) -> Iterator[np.ndarray]:
    tokenizer = load_tokenizer()
    for document in tqdm(documents(split), desc=f"tokens of {split}", unit="document"):
        yield np.array(tokenizer(document["text"], add_special_tokens=False)["input_ids"])


def shard_rows(split: str) -> list[np.ndarray]:
    """The rows of every shard in order, each `[rows, length]`; long and short rows take turns in proportion to
    their number."""
    shards = []
    for block, by_length in enumerate(token_rows(split)):
        for length, rows in by_length.items():
            per_shard = SHARD_TOKENS // length
            count = len(rows) // per_shard
            shards += [(block + (i + 0.5) / count, rows[i * per_shard : (i + 1) * per_shard]) for i in range(count)]
    return [rows for _, rows in sorted(shards, key=lambda shard: shard[0])]


def round_shards(number: int) -> list[int]:
    """Numbers of the training shards of one of the `ROUNDS` parts of the text."""
    return np.array_split(np.arange(len(shard_rows("train"))), ROUNDS)[number].tolist()


def shard_dir(split: str, number: int) -> Path:
    return work_dir("acts", split) / f"{number:04d}"


def stream_path(split: str, number: int, stream: str) -> Path:
    return shard_dir(split, number) / f"{stream}.bf16"


def read_stream(split: str, number: int, stream: str) -> Tensor:
    """A stream of one shard, bfloat16 `[rows, length - 1, 576]`."""
    rows = len(np.load(shard_dir(split, number) / "tokens.npy", mmap_mode="r"))
    return torch.from_file(
        str(stream_path(split, number, stream)),
        size=stream_path(split, number, stream).stat().st_size // 2,
        dtype=torch.bfloat16,
    ).reshape(rows, -1, D_MODEL)


def write_stream(path: Path, x: Tensor) -> None:
    partial = path.with_suffix(".partial")
    x.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tofile(partial)
    partial.rename(path)


def activations(model, tokens: Tensor, streams: list[str]) -> dict[str, Tensor]:
    """The streams of a shard without its sink position, in batches of a few thousand tokens."""
    batches = [run_to(model, batch, streams) for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))]
    return {stream: torch.cat([batch[stream][:, 1:] for batch in batches]) for stream in streams}


def harvest(split: str, numbers: Sequence[int], streams: list[str]) -> None:
    """Write these shards of a split, with the streams that they lack."""
    shards = shard_rows(split)
    model = load_model(torch.bfloat16)
    for number in tqdm(numbers, desc=f"activations of {split}", unit="shard"):
        folder = shard_dir(split, number)
        missing = [stream for stream in streams if not stream_path(split, number, stream).exists()]
        if not missing:
            continue
        folder.mkdir(exist_ok=True)
        np.save(folder / "tokens.npy", shards[number])
        for stream, x in activations(model, torch.from_numpy(shards[number].astype(np.int64)), missing).items():
            write_stream(stream_path(split, number, stream), x)


def shards_with(split: str, *streams: str) -> list[int]:
    """Numbers of the shards that hold all these streams."""
    numbers = sorted(int(folder.name) for folder in work_dir("acts", split).iterdir() if folder.is_dir())
    return [n for n in numbers if all(stream_path(split, n, stream).exists() for stream in streams)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream the model's activations to disk.")
    parser.add_argument("--split", default="train")
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--round", type=int, help=f"0 to {ROUNDS - 1}: this part of the training text instead")
    parser.add_argument("--streams", nargs="*", help="default: all that the set reads or writes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--remove", action="store_true", help="delete the split's activations instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.remove:
        shutil.rmtree(work_dir("acts", arguments.split))
    else:
        n_shards = min(len(shard_rows(arguments.split)), max(1, arguments.tokens // SHARD_TOKENS))
        numbers = range(n_shards) if arguments.round is None else round_shards(arguments.round)
        harvest(arguments.split, numbers, arguments.streams or STREAMS)


if __name__ == "__main__":
    main()
