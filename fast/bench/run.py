"""`course bench`: every fast form against the plain formulation of the same quantity, on the same inputs, in one run.

Fast form and plain formulation take turns, and the figures are medians. Memory is measured in runs of its own: the most
tensor memory alive at once beyond what was there before, the answer included. Training or browsing in the background
slows both sides; the ratios stand.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tabulate import tabulate

from fast.bench import cases as case_modules
from fast.bench.case import Answer, Case, Problem
from utils.checks.watch import watch
from utils.errors import CourseError
from utils.models.loading import load

if TYPE_CHECKING:
    from utils.models.loading import Loaded

AGREEMENT = 1e-4
ROUNDS = 3
LONG_ROUND = 20.0  # seconds, after which one round has to do


@dataclass(frozen=True)
class Measurement:
    """A case at one size. Times in seconds, memory in bytes.

    Attributes:
        difference: largest difference between the answers over the largest entry of the plain one
        share: of the time that the bound's matrix products take at this machine's speed, in the fast form's
    """

    case: str
    size: int
    fast_seconds: float
    plain_seconds: float
    fast_bytes: int
    plain_bytes: int
    difference: float
    share: float | None
    note: str

    @property
    def faster(self) -> float:
        return self.plain_seconds / self.fast_seconds

    @property
    def less_memory(self) -> float:
        return self.plain_bytes / max(self.fast_bytes, 1)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", help="words of the cases to run; all if none is given")
    parser.add_argument("--quick", action="store_true", help="the smallest size of each case, once")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures to a file too")


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if a fast form and its plain formulation disagree; missed goals are only reported."""
    cases = [case for case in all_cases() if all(word in case.name for word in options.cases)]
    if not cases:
        known = "; ".join(case.name for case in all_cases())
        raise CourseError(f"no case has {' '.join(options.cases)!r} in its name: {known}")
    loaded = load()
    measured = [
        (case, [measure(loaded, case, size, 1 if options.quick else ROUNDS) for size in sizes(case, options.quick)])
        for case in cases
    ]
    print("\n" + table(measured))
    print("\n" + "\n".join(verdicts(measured, options.quick)))
    if options.json:
        options.json.write_text(json.dumps(as_json(measured), indent=1) + "\n", encoding="utf-8")
    return 1 if any(m.difference > AGREEMENT for _, ms in measured for m in ms) else 0


def all_cases() -> list[Case]:
    """The cases of every module in `fast.bench.cases`."""
    home = case_modules
    modules = [
        importlib.import_module(f"{home.__name__}.{found.name}") for found in pkgutil.iter_modules(home.__path__)
    ]
    return [case for module in modules for case in module.CASES]


def sizes(case: Case, quick: bool) -> tuple[int, ...]:
    return case.sizes[:1] if quick else case.sizes


# ---- measuring


def measure(loaded: Loaded, case: Case, size: int, rounds: int) -> Measurement:
    """Memory and agreement first, which also warms both sides up; then time, in turns."""
    _say(f"{case.name}, {size} {case.size_name}: memory")
    problem = case.make(loaded, size)
    fast, fast_bytes = _answer_and_peak(problem.fast)
    plain, plain_bytes = _answer_and_peak(problem.plain)
    difference = relative_difference(fast, plain)
    del fast, plain
    _say(f"{case.name}, {size} {case.size_name}: time")
    fast_seconds, plain_seconds, flops_a_second = _take_turns(problem, rounds)
    share = problem.flops and problem.flops / flops_a_second / fast_seconds
    return Measurement(
        case.name, size, fast_seconds, plain_seconds, fast_bytes, plain_bytes, difference, share, problem.note
    )


def _answer_and_peak(compute: Callable[[], Answer]) -> tuple[Answer, int]:
    with watch() as seen:
        answer = compute()
    return answer, seen.peak_bytes


def relative_difference(fast: Answer, plain: Answer) -> float:
    """The largest over the answer's tensors; infinite where shapes differ."""
    pairs = zip(_tensors(fast), _tensors(plain), strict=True)
    return max(
        float((k - d).abs().max() / d.abs().max().clamp_min(1e-30)) if k.shape == d.shape else float("inf")
        for k, d in pairs
    )


def _tensors(answer: Answer) -> tuple[torch.Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _take_turns(problem: Problem, rounds: int) -> tuple[float, float, float]:
    """Median times of fast and plain, and the best speed of matrix products seen between them."""
    fast, plain, speeds = [], [], []
    for _ in range(rounds):
        fast.append(_seconds(problem.fast))
        speeds.append(matrix_product_speed())
        plain.append(_seconds(problem.plain))
        if fast[0] + plain[0] > LONG_ROUND:
            break
    return statistics.median(fast), statistics.median(plain), max(speeds)


def _seconds(compute: Callable[[], Any]) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def matrix_product_speed(n: int = 1024, times: int = 10) -> float:
    """Floating-point operations a second of a large matrix product, at its best, with the threads torch has."""
    a, b = torch.rand(n, n), torch.rand(n, n)
    return 2 * n**3 / min(_seconds(lambda: a @ b) for _ in range(times))


# ---- showing


def table(measured: list[tuple[Case, list[Measurement]]]) -> str:
    heads = ("quantity", "size", "fast", "plain", "faster", "fast", "plain", "less", "share", "difference")
    units = ("", "", "s", "s", "times", "MB", "MB", "times", "of bound", "relative")
    rows = [
        (
            case.name if position == 0 else "",
            f"{m.size} {case.size_name}",
            f"{m.fast_seconds:.2f}",
            f"{m.plain_seconds:.2f}",
            f"{m.faster:.1f}",
            f"{m.fast_bytes / 1e6:.0f}",
            f"{m.plain_bytes / 1e6:.0f}",
            f"{m.less_memory:.1f}",
            "" if m.share is None else f"{m.share:.2f}",
            f"{m.difference:.0e}",
        )
        for case, ms in measured
        for position, m in enumerate(ms)
    ]
    titles = [f"{head}\n{unit}" for head, unit in zip(heads, units, strict=True)]
    return tabulate(rows, titles, colalign=("left", "left", *["right"] * 8), disable_numparse=True)


def verdicts(measured: list[tuple[Case, list[Measurement]]], quick: bool) -> Iterator[str]:
    """Disagreements, what a reader has to know of the plain side, and each goal with what was reached."""
    for case, ms in measured:
        for m in ms:
            where = f"{case.name}, {m.size} {case.size_name}"
            if m.difference > AGREEMENT:
                yield f"{where}: fast and plain formulation DISAGREE, by {m.difference:.1e} of the largest entry"
            if m.note:
                yield f"{where}: {m.note}"
    if quick:
        yield "Goals are those of the largest sizes: run without --quick."
        return
    for case, ms in measured:
        for wanted, got, words in (
            (case.goal.speed, ms[-1].faster, "times as fast"),
            (case.goal.memory, ms[-1].less_memory, "times less memory"),
            (case.goal.share, ms[-1].share, "of the bound"),
        ):
            if wanted is not None and got is not None:
                verdict = "reached" if got >= wanted else f"MISSED: {got / wanted:.0%} of it"
                yield f"{case.name}, {ms[-1].size} {case.size_name}: {got:.3g} {words}, goal {wanted:g}: {verdict}"


def as_json(measured: list[tuple[Case, list[Measurement]]]) -> dict[str, Any]:
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "matrix_product_gflops": round(matrix_product_speed() / 1e9, 1),
        },
        "agreement_wanted": AGREEMENT,
        "measured": [
            {**asdict(m), "faster": m.faster, "less_memory": m.less_memory, "goal": asdict(case.goal)}
            for case, ms in measured
            for m in ms
        ],
    }


def _say(text: str) -> None:
    print(f"  {text} ...", file=sys.stderr, flush=True)
