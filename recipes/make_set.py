"""Make the whole set, or go on making it: `python -m recipes.make_set`.

Runs the steps of README.md in order, trainings two at a time. Every step goes on where it was killed, and finished ones
cost little.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from recipes.dictionary_set import RECIPES


def run(*command: str) -> None:
    """One recipe as a process of its own; its progress goes to this terminal."""
    print("$ python -m", *command, flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def run_all(commands: Sequence[tuple[str, ...]], at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda command: run(*command), commands))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the whole set of dictionaries.")
    parser.add_argument("--tokens", type=int, default=1_500_000, help="to harvest for all but the transcoders")
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, one core each")
    arguments = parser.parse_args()
    transcoders = [name for name, one in RECIPES.items() if one.kind == "transcoder"]
    streams = sorted({one.source for name, one in RECIPES.items() if name not in transcoders})
    later = [name for name, one in RECIPES.items() if one.earlier]
    first = [str(RECIPES[name].earlier) for name in later]
    rest = [name for name, one in RECIPES.items() if name not in first and one.kind in ("resid", "z")]
    run("recipes.harvest", "--split", "held_out", "--tokens", "130000")
    run("recipes.rounds", *transcoders, "--processes", str(arguments.processes))
    run("recipes.harvest", "--split", "train", "--tokens", str(arguments.tokens), "--streams", *streams)
    run_all([("recipes.train", name) for name in first], arguments.processes)
    run_all([("recipes.spliced", name) for name in later], arguments.processes)
    run_all([("recipes.temporal",), *(("recipes.train", name) for name in rest)], arguments.processes)
    run("recipes.export")
    run("recipes.metrics")
    run("recipes.export")  # once more: the manifest now has the metrics


if __name__ == "__main__":
    main()
