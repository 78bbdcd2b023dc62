"""What came of a check, as data. Text, HTML and JSON are made from it where it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# The parts of a failure in the order in which they are read, and the word before each; "" where it speaks for itself.
LABELS = {
    "note": "",
    "called": "Called",
    "returned": "Returned",
    "raised": "Raised",
    "stopped": "Stopped",
    "line": "In",
    "expected": "Expected",
    "why": "Why",
}


@dataclass(frozen=True)
class Failure:
    """Why a check failed; a part that does not apply is empty.

    Attributes:
        note: a sentence, where nothing was called: the stub is still there, a name is missing, ...
        called: the call, as the student could type it.
        returned: what the call gave, in words.
        raised: type and text of the exception that the student's code raised.
        stopped: why the code was stopped.
        line: the line of the student's code that raised it.
        expected: what was demanded.
        why: the reason for the demand.
        hint: names the likely mistake.
        printed: the last lines that were printed meanwhile.
    """

    note: str = ""
    called: str = ""
    returned: str = ""
    raised: str = ""
    stopped: str = ""
    line: str = ""
    expected: str = ""
    why: str = ""
    hint: str = ""
    printed: str = ""

    @property
    def parts(self) -> list[tuple[str, str]]:
        """(label, text) of each part that applies, without the hint."""
        return [(label, getattr(self, name)) for name, label in LABELS.items() if getattr(self, name)]

    @property
    def message(self) -> str:
        """The parts as lines such as `Called: pca(x)`, without the hint."""
        return "\n".join(f"{label}: {text}" if label else text for label, text in self.parts)


@dataclass(frozen=True)
class Replay:
    """The call at which a check failed, live: to be tried again.

    Attributes:
        args: its arguments.
        kwargs: its named arguments.
        expected: the value that was demanded, or words where it was no value.
    """

    args: tuple
    kwargs: dict[str, Any]
    expected: Any


@dataclass(frozen=True)
class Row:
    """The outcome of one check on one implementation.

    Attributes:
        implementation: its label.
        exercise: the exercise's name.
        check: the check's title.
        points: those won.
        max_points: those to be won.
        seconds: how long it took by the clock.
        processor_seconds: what it took of this process.
        failure: why it failed; None when it passed.
        replay: the call at which it failed, in this process.
    """

    implementation: str
    exercise: str
    check: str
    points: int
    max_points: int
    seconds: float
    processor_seconds: float = 0.0
    failure: Failure | None = None
    replay: Replay | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        return self.failure is None

    @property
    def message(self) -> str:
        return self.failure.message if self.failure else ""

    @property
    def hint(self) -> str:
        return self.failure.hint if self.failure else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "exercise": self.exercise,
            "check": self.check,
            "points": self.points,
            "max_points": self.max_points,
            "passed": self.passed,
            "seconds": self.seconds,
            "message": self.message,
            "hint": self.hint,
            "failure": asdict(self.failure) if self.failure else None,
        }


def failures(rows: Sequence[Row]) -> list[Row]:
    """The failed rows, each exercise's message once: an unwritten stub fails every check for one reason."""
    distinct: dict[tuple[str, str], Row] = {}
    for row in rows:
        if not row.passed:
            distinct.setdefault((row.exercise, row.message), row)
    return list(distinct.values())
