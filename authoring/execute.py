"""Runs chapters from top to bottom, solved or as a student who skips everything, and judges what came out."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from traitlets import Unicode

from authoring.build import build
from authoring.chapter_text import figures, read_text
from authoring.fill import fill, read_notebook
from utils.chapters import Chapter, find_chapters
from utils.errors import CourseError
from utils.notebook.check_view import ROWS_MIME
from utils.paths import cache_dir, repository

CELL_SECONDS = 1200
_PROGRESS_BAR = re.compile(r"\d+%\||\d+(\.\d+)?(it|s|B|kB|MB)/(s|it)\b|\[\d\d:\d\d[<,]")


@dataclass(frozen=True)
class Run:
    """A chapter as it was executed: the notebook with outputs, what was measured, and what it cost."""

    notebook: Any
    measured: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    stopped: str = ""  # why the run ended early, if it did


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapters", nargs="*", help="for instance 03; all when none is named")
    parser.add_argument("--student", action="store_true", help="leave the stubs in place and hide the reference")
    parser.add_argument("--record", action="store_true", help="store the demos' results in assets/results")
    parser.add_argument("--out", type=Path, help="folder for the executed notebooks")


def run(options: argparse.Namespace) -> int:
    """Exit status 0 if all is well."""
    if options.student and options.record:
        raise CourseError("--record stores what the reference computes; it does not go with --student")
    out = options.out or cache_dir() / "executed" / ("student" if options.student else "solved")
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for chapter in find_chapters(options.chapters):
        print(f"{chapter.name} ...", flush=True)
        done = execute_chapter(chapter, student=options.student, record=options.record)
        (out / chapter.notebook.name).write_text(nbformat.writes(done.notebook), encoding="utf-8")
        complaints = list(problems(chapter, done, student=options.student))
        failed |= bool(complaints)
        verdict = f"{len(complaints)} problems" if complaints else "no problem"
        print(f"{chapter.name}: {verdict}, {done.seconds:.0f} s, {done.peak_bytes / 1e6:.0f} MB at most")
        for problem in complaints:
            print(f"  {problem}")
    print(f"executed notebooks: {out}")
    return 1 if failed else 0


def execute_chapter(chapter: Chapter, *, student: bool = False, record: bool = False) -> Run:
    """Run the chapter in a fresh kernel: for a `student` the built notebook as it is, else the one that its text gives,
    filled with the reference and with the cells that measure the prose's figures at their places.

    What passes is kept in a scratch folder: the maintainer's own `mine/` is neither read nor written.
    """
    notebook = read_notebook(chapter) if student else build(chapter, repository(), measuring=True)
    if not student and chapter.solution.exists():
        notebook, missing = fill(notebook, chapter.solution.read_text(encoding="utf-8"))
        if missing:
            raise CourseError(f"{chapter.shown(chapter.solution)} does not define {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as scratch:
        measured = Path(scratch) / "measured.json"
        settings = {"COURSE_MINE": str(Path(scratch) / "mine"), "COURSE_MEASURED_OUT": str(measured)}
        settings |= {"COURSE_NO_REFERENCE": "1"} if student else {}
        settings |= {"COURSE_RECORD": "1"} if record else {}
        run = execute(notebook, chapter.notebook.parent, settings)
        values = json.loads(measured.read_text()) if measured.exists() else {}
    return Run(run.notebook, values, run.seconds, run.peak_bytes, run.stopped)


def execute(notebook: dict[str, Any], folder: Path, settings: dict[str, str], python: str = sys.executable) -> Run:
    """Run a notebook with an interpreter (this one) in `folder`, with `settings` added to the environment.

    Errors in cells stay in the notebook as outputs and the run goes on; a dead kernel or a time limit ends it.
    """
    node = nbformat.reads(json.dumps(notebook), as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=_Interpreter(python=python))
    peak = 0

    def note_memory(**_: Any) -> None:
        nonlocal peak
        peak = max(peak, _peak_bytes(getattr(manager.provisioner, "pid", 0)))

    client = NotebookClient(
        node,
        km=manager,
        timeout=CELL_SECONDS,
        allow_errors=True,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_executed=note_memory,
    )
    began, stopped = time.perf_counter(), ""
    try:
        client.execute(env={**os.environ, **settings})
    except CellTimeoutError:
        stopped = f"a cell took more than {CELL_SECONDS} s"
    except DeadKernelError:
        stopped = "the kernel died; too little memory?"
    return Run(node, {}, time.perf_counter() - began, peak, stopped)


class _Interpreter(KernelSpecManager):
    """Knows one kernel, an interpreter's own, whatever kernels the user has installed."""

    python = Unicode()

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far; where the system does not say, what it holds now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        try:
            return psutil.Process(pid).memory_info().rss
        except psutil.Error:
            return 0
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(peak[1]) * 1024 if peak else 0


# The verdict


def problems(chapter: Chapter, run: Run, *, student: bool = False) -> Iterator[str]:
    """What is wrong with an executed chapter, a sentence each; nothing when it is as it should be."""
    if run.stopped:
        yield run.stopped
    expected = []
    if chapter.text.exists():
        expected = read_text(chapter.text, chapter.shown(chapter.text)).course.get("expected_warnings", [])
    for cell in run.notebook["cells"]:
        if cell["cell_type"] == "code":
            yield from (f"cell {cell['id']}: {problem}" for problem in _cell_problems(cell, expected, student))
    if not student:
        yield from _contradictions(run)


def _cell_problems(cell: Any, expected: list[dict[str, str]], student: bool) -> Iterator[str]:
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            yield f"{output['ename']}: {output['evalue']}"
    stderr = "".join(output["text"] for output in cell["outputs"] if output.get("name") == "stderr")
    if unexplained := unexplained_warning(stderr, expected):
        yield f"unexplained on stderr: {unexplained}"
    about = cell["metadata"].get("course", {})
    if about.get("role") == "check":
        yield from _check_problems(cell, about["exercise"], student)


def unexplained_warning(stderr: str, expected: list[dict[str, str]]) -> str:
    """The beginning of what a cell wrote to stderr beside progress bars and the text's expected warnings.

    An expected warning is `says`, a part of one of its lines, and `why` it does not matter.
    """
    blocks = re.split(r"\n(?=\S)", stderr.replace("\r", "\n"))  # a warning's source line is indented below it
    known = [entry["says"] for entry in expected]
    left = [
        one
        for one in blocks
        if one.strip() and not _PROGRESS_BAR.search(one) and not any(says in one for says in known)
    ]
    return "\n".join(left)[:500]


def _check_problems(cell: Any, exercise: str, student: bool) -> Iterator[str]:
    reports = [output["data"][ROWS_MIME]["rows"] for output in cell["outputs"] if ROWS_MIME in output.get("data", {})]
    rows = [row for report in reports for row in report]
    if not rows:
        yield f"check({exercise}) reported nothing"
    for row in rows:
        if student and row["passed"]:
            yield f"the stub of {exercise} passes the check {row['check']!r}"
        if not student and not row["passed"]:
            yield f"the reference of {exercise} fails the check {row['check']!r}: {row['message']}"


def _contradictions(run: Run) -> Iterator[str]:
    for cell in run.notebook["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        for figure in figures("".join(cell["source"]), cell["id"]):
            if figure.name not in run.measured:
                yield f"cell {cell['id']}: `{figure.name}` was never measured"
            elif not figure.agrees_with(run.measured[figure.name]):
                value = run.measured[figure.name]
                yield f"cell {cell['id']}: the text says {figure.printed} for `{figure.name}`, the run {value:.6g}"
