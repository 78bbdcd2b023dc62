"""Train dictionaries on more text than the disk holds activations of: `python -m recipes.rounds transcoder.0 ...`.

The text is taken in rounds of a million tokens: their activations are harvested, every dictionary takes its steps on
them, and they are removed before the next round. The states in `<cache>/recipes/train` say how far each dictionary is,
so that the same command goes on where it was killed.
"""

import argparse

from recipes.dictionary_set import recipe
from recipes.harvest import ROUNDS, round_shards, stream_path
from recipes.make_set import run, run_all
from recipes.train import round_end, steps_done


def train_in_rounds(names: list[str], processes: int) -> None:
    """Train these dictionaries to their ends, `processes` at once with one thread each."""
    streams = sorted({stream for name in names for stream in (recipe(name).source, recipe(name).target)})
    for number in range(ROUNDS):
        unfinished = [name for name in names if steps_done(name) < round_end(recipe(name), number)]
        if unfinished:
            run("recipes.harvest", "--round", str(number), "--streams", *streams, "--threads", str(processes))
            run_all([("recipes.train", name, "--round", str(number)) for name in unfinished], processes)
        for shard in round_shards(number):
            for stream in streams:
                stream_path("train", shard, stream).unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train dictionaries round by round on streamed activations.")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, one core each")
    arguments = parser.parse_args()
    train_in_rounds(arguments.names, arguments.processes)


if __name__ == "__main__":
    main()
