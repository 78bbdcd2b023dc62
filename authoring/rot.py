"""`course rot`: does the course still run on the newest releases of what it stands on?

The course is copied to a throw-away folder and set up there without its pins; then each package is imported, the set-up
cell is run, and every chapter's checks judge the reference. The working environment is only read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate

from authoring.setup_cell import setup_source
from utils.chapters import find_chapters
from utils.paths import ROOT, repository, requirement_pins

WORKS = "works"
WIDTH = 90  # of an outcome's column
# Each bounds the other's version, so that an index's newest pair need not be one that an installer would choose.
LENSES = ("sae-lens", "transformer-lens")
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "mine", "build", "assets")
_ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception)\b|ERROR:|course \w+:|Set-up stopped:")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapters", nargs="*", help="chapters to check; all if none is named")


def run(options: argparse.Namespace) -> int:
    """Exit status 0 only if everything works on the newest releases."""
    numbers = [chapter.number for chapter in find_chapters(options.chapters)]
    trials = {
        "The newest releases that agree with each other": set_up,
        f"The same, with {' and '.join(LENSES)} at their newest, whatever they ask for": upgrade_lenses,
    }
    failures = 0
    with tempfile.TemporaryDirectory(prefix="course-rot-") as folder:
        course = Path(folder, "course")
        copy_course(course)
        for title, install in trials.items():
            print(f"{title}: installing (some minutes) ...", flush=True)
            outcome = install(course)
            if outcome != WORKS:
                print(f"They cannot be installed: {outcome}")
                return 1
            print("Trying ...", flush=True)
            packages, chapters = try_packages(course), try_chapters(course, numbers)
            print(f"\n{title}\n\n{report(course, packages, chapters)}\n", flush=True)
            failures += sum(outcome != WORKS for outcome in (*packages.values(), *chapters.values()))
    print(f"{failures} of these do not work." if failures else "Everything works.")
    return 1 if failures else 0


def copy_course(folder: Path) -> None:
    """Copy the course without its environment; the assets, which are large and only read, as a link."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    (folder / "assets").symlink_to(ROOT / "assets")


def set_up(course: Path) -> str:
    """Make the copy's environment the way every environment is made, but from bare names; the outcome."""
    (course / "requirements.txt").write_text("\n".join(requirement_pins()) + "\n", encoding="utf-8")
    (course / "requirements.lock").write_text("", encoding="utf-8")
    return outcome_of(step([sys.executable, "bootstrap.py"], course))


def upgrade_lenses(course: Path) -> str:
    """Install the newest release of each, one after the other, so that none holds the other back; the outcome."""
    kept = course / "kept.txt"
    kept.write_text(f"torch=={versions(course)['torch']}\n", encoding="utf-8")  # another one may bring CUDA
    install = ["-m", "pip", "install", "--upgrade", "--constraint", str(kept)]
    outcomes = [outcome_of(step([python_of(course), *install, package], course)) for package in LENSES]
    return next((outcome for outcome in outcomes if outcome != WORKS), WORKS)


def try_packages(course: Path) -> dict[str, str]:
    """Package -> outcome of its import."""

    def outcome(package: str) -> str:
        return outcome_of(step([python_of(course), "-c", f"import {module_of(package)}"], course))

    return side_by_side(outcome, list(requirement_pins()))


def module_of(package: str) -> str:
    """The module to import, which as a rule bears the package's name."""
    return {"pytest-xdist": "xdist"}.get(package, package.replace("-", "_"))


def try_chapters(course: Path, numbers: Sequence[str]) -> dict[str, str]:
    """Outcomes of the first chapter's set-up cell, and of each chapter's checks on the reference."""
    cell = step([python_of(course), "-c", setup_source(numbers[0], repository())], course / "chapters")
    if not cell.returncode and "is ready" not in cell.stdout:
        cell.returncode = 1  # it says what is missing
    checks = side_by_side(lambda number: outcome_of_checks(course, number), numbers)
    return {"set-up cell": outcome_of(cell)} | {f"chapter {number}": outcome for number, outcome in checks.items()}


def outcome_of_checks(course: Path, number: str) -> str:
    rows_file = course / f"rows{number}.json"
    rows_file.unlink(missing_ok=True)
    done = step([python_of(course), "-m", "course", "check", number, "--json", str(rows_file)], course)
    if not rows_file.exists():
        return outcome_of(done)
    failed = [row for row in json.loads(rows_file.read_text(encoding="utf-8")) if not row["passed"]]
    if not failed:
        return WORKS
    message = " ".join(failed[0]["message"].split())
    return f"{len(failed)} checks fail; the first, {failed[0]['exercise']}, {failed[0]['check']}: {message}"


def step(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of the copy, on one thread, with everything it says in `stdout`."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "COURSE_MINE": str(folder / "mine"),
    }
    return subprocess.run(
        command, cwd=folder, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def outcome_of(done: subprocess.CompletedProcess[str]) -> str:
    """Whether it works, else the first error that it told of."""
    if done.returncode == 0:
        return WORKS
    lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    return next(filter(_ERROR.match, lines), lines[-1])


def side_by_side(outcome: Callable[[str], str], names: Sequence[str]) -> dict[str, str]:
    """Name -> outcome, one at a time on each core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(outcome, names), strict=True))


def report(course: Path, packages: dict[str, str], chapters: dict[str, str]) -> str:
    """Two tables: the packages with their versions, and the chapters."""
    pinned, here, newest = requirement_pins(), versions(course), versions(course, "--outdated")
    rows = [
        [package, pinned[package], newest.get(package, here[package]), here[package], outcome]
        for package, outcome in packages.items()
    ]
    heads = ["package", "pinned", "newest", "tried", "import"]
    parts = [
        tabulate(rows, heads, disable_numparse=True, maxcolwidths=[None] * 4 + [WIDTH]),
        tabulate(chapters.items(), ["", "on these releases"], maxcolwidths=[None, WIDTH]),
    ]
    if "torch" in newest:
        parts.append(f"torch {here['torch']} is the newest that could be had without CUDA, or the newest that agrees.")
    return "\n\n".join(parts)


def versions(course: Path, *which: str) -> dict[str, str]:
    """Package -> version installed in the copy's environment; of the outdated ones, the newest that there is."""
    done = step([python_of(course), "-m", "pip", "list", "--format", "json", *which], course)
    listed = json.loads(done.stdout.strip().splitlines()[-1])
    return {row["name"].lower().replace("_", "-"): row.get("latest_version", row["version"]) for row in listed}


def python_of(course: Path) -> str:
    return str(course / ".venv" / "bin" / "python")
