"""Run the model on earlier dictionaries' reconstructions: `python -m recipes.spliced resid_pre.6`.

Adds to the harvested shards the stream of the later dictionary of a pair as it is when the earlier one's reconstruction
runs in the model. The earlier dictionary must be trained. Goes on where it was killed.
"""

import argparse

import numpy as np
import torch
from tqdm import tqdm

from recipes.dictionary_set import RECIPES, recipe
from recipes.harvest import activations, shard_dir, shards_with, stream_path, write_stream
from recipes.model import load_model, replaced
from recipes.train import load_dictionary

LATER = [name for name, one in RECIPES.items() if one.earlier]


def harvest_spliced(later: str, split: str = "train") -> None:
    """Write the spliced stream of a later dictionary for every shard that has its true one."""
    one = recipe(later)
    if one.earlier is None:
        raise ValueError(f"{later} learns from no earlier dictionary: {', '.join(LATER)} does")
    model, reconstruct = load_model(torch.bfloat16), load_dictionary(one.earlier)
    with replaced(model, recipe(one.earlier).source, reconstruct):
        for number in tqdm(shards_with(split, one.source), desc=f"{one.spliced_source} of {split}", unit="shard"):
            path = stream_path(split, number, one.spliced_source)
            if not path.exists():
                tokens = torch.from_numpy(np.load(shard_dir(split, number) / "tokens.npy").astype(np.int64))
                write_stream(path, activations(model, tokens, [one.source])[one.source])


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the model on earlier dictionaries' reconstructions.")
    parser.add_argument("names", nargs="+", help=f"some of {', '.join(LATER)}")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        harvest_spliced(name)


if __name__ == "__main__":
    main()
