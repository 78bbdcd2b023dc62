"""`course dev`: proves for every exercise that its checks accept what is right, reject what is wrong, and say why."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
from collections import ChainMap, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import ModuleType
from typing import Any

import torch
from tabulate import tabulate

from authoring.costs import Cost, costs_of, record
from authoring.stubs import stub_module
from utils.chapters import Chapter, find_chapters
from utils.checks.exercises import Exercise, chapter_exercises
from utils.checks.implementations import Implementation, LocalBackend, solution_file
from utils.checks.rows import Row
from utils.checks.running import run_checks
from utils.checks.variants import Variant, variants_of
from utils.models.loading import load
from utils.paths import VARIANTS

WRONG_AT_LEAST = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapters", nargs="*", help="chapters to prove; all if none is named")
    parser.add_argument("--changed", action="store_true", help="only chapters with files that are not committed yet")
    parser.add_argument("--record", action="store_true", help="write what all chapters' checks cost to tests/COSTS.md")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="chapters at once, each on one core")


def run(options: argparse.Namespace) -> int:
    """Exit status 0 only if every exercise is proved."""
    wanted = find_chapters(options.chapters)
    if options.changed:
        wanted = [chapter for chapter in wanted if is_changed(chapter)]
        print(
            f"Chapters with changes: {', '.join(chapter.number for chapter in wanted) or 'none'}; others are left out."
        )
    chapters = [chapter.number for chapter in wanted]
    jobs = 1 if options.record else min(options.jobs, len(chapters))
    proofs = []
    for proof in prove_all(chapters, jobs):
        print(f"Chapter {proof.chapter}\n{table(proof.chapter, proof.costs)}\n", flush=True)
        proofs.append(proof)
    if options.record:
        record([cost for proof in proofs for cost in proof.costs])
    complaints = [complaint for proof in proofs for complaint in proof.complaints]
    if chapters:
        print("\n".join(complaints) or "Every exercise is proved.")
    return 1 if complaints else 0


@dataclass(frozen=True)
class Proof:
    """What came of proving a chapter's exercises; proved if there are no complaints."""

    chapter: str
    costs: list[Cost]
    complaints: list[str]


def is_changed(chapter: Chapter) -> bool:
    """Whether git knows of a change since the last commit in the chapter's checker, reference or variants."""
    files = [chapter.checker, chapter.solution, VARIANTS / chapter.solution.name]
    done = subprocess.run(["git", "status", "--porcelain", *files], cwd=chapter.root, capture_output=True, text=True)
    return bool(done.returncode or done.stdout)


def prove_all(chapters: Sequence[str], jobs: int) -> Iterator[Proof]:
    """Prove the chapters, `jobs` of them at a time, each in a fork of this process, which has the model loaded."""
    if jobs > 1:
        # A fork inherits no threads, and code that waits for one of its parent's would wait forever. Small checks gain
        # nothing from a second thread anyway.
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if chapters:
        load()  # what checks cost is told without it
    if jobs <= 1:
        yield from map(prove, chapters)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        yield from pool.map(prove, chapters)


def prove(chapter: str) -> Proof:
    """Run the chapter's checks on the reference, stubs, functions that do nothing, and all variants."""
    costs, rows = costs_of(chapter)
    rows += run_checks(chapter, [stubs(chapter), nothing(chapter), *variants(chapter)])
    return Proof(chapter, costs, list(complaints_about(chapter, rows)))


def stubs(chapter: str) -> Implementation:
    """The chapter's bare stubs."""
    path = solution_file(chapter)
    names = [exercise.name for exercise in chapter_exercises(chapter)]
    module = ModuleType(f"stubs_{path.stem}")
    exec(compile(stub_module(path.read_text(encoding="utf-8"), names), f"stubs of {path.name}", "exec"), vars(module))
    return Implementation(LocalBackend(vars(module), "the stub"), "stub")


def nothing(chapter: str) -> Implementation:
    """Functions that do nothing, and classes made of such: cheap and clean, and no check may be content with that."""
    module = importlib.import_module(f"solutions.{solution_file(chapter).stem}")
    namespace = {exercise.name: _idle(getattr(module, exercise.name)) for exercise in chapter_exercises(chapter)}
    return Implementation(LocalBackend(namespace, "nothing"), "nothing")


def _idle(made: Any) -> Any:
    """Something with the names of `made`, of which everything gives None; class methods give an instance."""
    if isinstance(made, property):
        return property(lambda self: None)
    if isinstance(made, classmethod):
        return classmethod(lambda cls, *args, **kwargs: cls())
    if isinstance(made, type):
        names = {name: _idle(member) for name, member in vars(made).items() if not name.startswith("_")}
        return type(made.__name__, (), names)
    return lambda *args, **kwargs: None


def chapter_variants(chapter: str) -> list[Variant]:
    return variants_of(importlib.import_module(f"solutions.variants.{solution_file(chapter).stem}"))


def variants(chapter: str) -> list[Implementation]:
    """One implementation for each variant: the reference with one exercise replaced."""
    base: dict[str, Any] = vars(importlib.import_module(f"solutions.{solution_file(chapter).stem}"))
    return [
        Implementation(LocalBackend(ChainMap({v.exercise: v.implementation}, base), v.label), v.label, only=v.exercise)
        for v in chapter_variants(chapter)
    ]


def complaints_about(chapter: str, rows: Sequence[Row]) -> Iterator[str]:
    """What is not proved, a line each."""
    by_implementation = defaultdict(list)
    for row in rows:
        by_implementation[row.exercise, row.implementation].append(row)
    for exercise in chapter_exercises(chapter):
        about = [variant for variant in chapter_variants(chapter) if variant.exercise == exercise.name]
        yield from _too_few(exercise, about)
        for row in by_implementation[exercise.name, "reference"]:
            if not row.passed:
                yield f"{exercise.name}: the reference fails {row.check!r}: {row.message}"
        for row in by_implementation[exercise.name, "stub"]:
            if row.passed:
                yield f"{exercise.name}: the bare stub passes {row.check!r}"
        for row in by_implementation[exercise.name, "nothing"]:
            if row.passed:
                yield f"{exercise.name}: doing nothing passes {row.check!r}"
        for variant in about:
            yield from _judge(variant, by_implementation[exercise.name, variant.label])


def _too_few(exercise: Exercise, about: Sequence[Variant]) -> Iterator[str]:
    wrong = sum(variant.mistake is not None for variant in about)
    if not exercise.checks:
        yield f"{exercise.name}: has no checks"
    if wrong == len(about):
        yield f"{exercise.name}: has no differently written right solution"
    if wrong < WRONG_AT_LEAST:
        yield f"{exercise.name}: has {wrong} wrong solutions, at least {WRONG_AT_LEAST} are needed"


def _judge(variant: Variant, rows: Sequence[Row]) -> Iterator[str]:
    failed = [row for row in rows if not row.passed]
    if variant.mistake is None:
        for row in failed:
            yield f"{variant.exercise}: the right solution {variant.label} fails {row.check!r}: {row.message}"
    elif not failed:
        yield f"{variant.exercise}: nothing catches {variant.label} ({variant.mistake})"
    elif not any(variant.hint.lower() in f"{row.message}\n{row.hint}".lower() for row in failed):
        said = "; ".join(f"{row.check}: {row.hint}" for row in failed)
        yield f"{variant.exercise}: {variant.label} fails, but nothing says {variant.hint!r}. Said: {said}"


def table(chapter: str, costs: Sequence[Cost]) -> str:
    """Per exercise: checks, points, what the checks cost on the reference, and how many solutions were tried."""
    lines = []
    for exercise, cost in zip(chapter_exercises(chapter), costs, strict=True):
        about = [variant for variant in chapter_variants(chapter) if variant.exercise == exercise.name]
        wrong = sum(variant.mistake is not None for variant in about)
        counts = [len(exercise.checks), exercise.points, len(about) - wrong, wrong]
        lines.append([exercise.number, exercise.name, *counts, max(cost.seconds, default=0), cost.fee, cost.peak_gb])
    return tabulate(
        lines,
        headers=["", "exercise", "checks", "points", "right", "wrong", "slowest, s", "fee, s", "peak, GB"],
        floatfmt=".2f",
        disable_numparse=[0],
    )
