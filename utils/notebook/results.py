"""Results of demo cells: computed with the student's passed tools, else read from what the course has stored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from utils import chapters, plain
from utils.files import write_atomically
from utils.paths import RESULTS
from utils.student_work import NotYet

RECORD = "COURSE_RECORD"  # set when the maintainer refreshes the stored results
MEASURED_OUT = "COURSE_MEASURED_OUT"  # the file to which an executed chapter writes its measured figures

Value = TypeVar("Value")


def result(name: str, compute: Callable[[], Value]) -> Value:
    """What `compute` returns; where it needs an exercise that has not passed yet, the stored result of that name.

    Args:
        name: unique in its chapter.
        compute: takes nothing, returns tensors, numbers, strings or containers of these.
    """
    stored = RESULTS / chapters.at_work() / f"{name}.safetensors"
    try:
        value = compute()
    except NotYet as missing:
        if not stored.exists():
            raise
        print(f"Shown from the course's stored results: `{missing.name}` has not passed its check yet.")
        return _read(stored)
    if os.environ.get(RECORD):
        _write(stored, value)
    return value


def _read(path: Path) -> Any:
    return plain.loads(path.read_bytes())


def _write(path: Path, value: Any) -> None:
    write_atomically(path, plain.dumps(value))


def measured(name: str, value: Any) -> None:
    """Note a figure that the text quotes, so that an executed chapter can be held against its prose."""
    target = os.environ.get(MEASURED_OUT)
    if target:
        path = Path(target)
        figures = json.loads(path.read_text()) if path.exists() else {}
        write_atomically(path, json.dumps({**figures, name: float(value)}, indent=1, sort_keys=True))
