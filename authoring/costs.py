"""What an exercise's checks cost on this machine: seconds and peak memory of the reference, kept in tests/COSTS.md."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from tabulate import tabulate

from utils.checks.exercises import chapter_exercises
from utils.checks.implementations import reference
from utils.checks.rows import Row
from utils.checks.running import run_checks
from utils.files import write_atomically
from utils.paths import ROOT

TABLE = ROOT / "tests" / "COSTS.md"
SAMPLE_SECONDS = 0.01
HEADERS = ["chapter", "exercise", "", "slowest check, s", "all checks, s", "machinery, s", "peak memory, GB"]


@dataclass(frozen=True)
class Cost:
    """What one exercise's checks cost.

    Attributes:
        seconds: processor seconds of each check.
        fee: processor seconds of the machinery around them all.
        peak_gb: the most memory that the process held meanwhile, in GB.
    """

    chapter: str
    number: str
    name: str
    seconds: tuple[float, ...]
    fee: float
    peak_gb: float

    @property
    def line(self) -> list[str | float]:
        return [self.chapter, self.number, self.name, max(self.seconds), sum(self.seconds), self.fee, self.peak_gb]


def costs_of(chapter: str) -> tuple[list[Cost], list[Row]]:
    """Run the reference through the checks, exercise by exercise: what each costs, and the rows."""
    costs, rows = [], []
    for exercise in chapter_exercises(chapter):
        began = time.process_time()
        with peak_memory() as peak:
            about = run_checks(chapter, [reference(chapter)], {exercise.name})
        seconds = tuple(row.processor_seconds for row in about)
        fee = time.process_time() - began - sum(seconds)
        costs.append(Cost(chapter, exercise.number, exercise.name, seconds, fee, peak[0]))
        rows += about
    return costs, rows


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Inside, the list's one entry grows to the largest resident memory of this process, in GB."""
    process, done = psutil.Process(), threading.Event()
    peak = [process.memory_info().rss / 1e9]

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss / 1e9)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def record(costs: Sequence[Cost], path: Path = TABLE) -> None:
    """Write the table of all chapters."""
    checks = [seconds for cost in costs for seconds in cost.seconds]
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    most = max(cost.peak_gb for cost in costs)
    lines = tabulate(
        [cost.line for cost in costs], headers=HEADERS, tablefmt="github", floatfmt=".2f", disable_numparse=[0, 1]
    )
    text = f"""# What the checks cost

Made by `course dev --record`; do not edit. The reference on the default profile, with model and dictionaries loaded, on
{cores} cores; seconds are the processor's, and "machinery" is what an exercise's checks take together beyond their own
work. {len(checks)} checks: median {median(checks):.2f} s, slowest {max(checks):.2f} s. Memory is the whole process's,
PyTorch and model included: {most:.2f} GB at most.

{lines}
"""
    write_atomically(path, text)
