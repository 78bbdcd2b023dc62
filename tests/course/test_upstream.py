"""The code of docs/upstream.md still holds; where it does not, the need for a work-around has ended."""

import re
from typing import Any

import pytest

from utils.paths import ROOT, requirement_pins

INTRODUCTION, *ENTRIES = re.split(r"^## (?=\d+\. )", (ROOT / "docs" / "upstream.md").read_text("utf-8"), flags=re.M)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


def line(entry: str, label: str) -> str:
    """What an entry says under a label such as "Remove", on its first line."""
    return re.search(rf"^- {label}: (.+)$", entry, flags=re.M)[1]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The names that the code of every entry uses."""
    namespace: dict[str, Any] = {}
    for block in code_blocks(INTRODUCTION):
        exec(block, namespace)
    return namespace


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.splitlines()[0])
def test_the_need_for_a_work_around_is_still_there(made, entry):
    mended = None
    try:
        exec(*code_blocks(entry), dict(made))
    except AssertionError as error:
        mended = error
    if mended is not None:
        where = f"docs/upstream.md, entry {entry.split('.')[0]}"
        pytest.fail(f"{line(entry, 'Library')}: mended now. Remove {line(entry, 'Remove')} ({where}). {mended}")


def test_every_entry_has_its_parts_and_the_pinned_version():
    assert [entry.split(".")[0] for entry in ENTRIES] == [str(number + 1) for number in range(len(ENTRIES))]
    pinned = requirement_pins().values()
    for entry in ENTRIES:
        assert all(line(entry, label) for label in ("Upstream", "Here", "Remove"))
        versions = re.findall(r" (\d+\.[\d.]*\d)", line(entry, "Library"))
        assert versions and set(versions) <= set(pinned), "look again whether the new version still needs this"
        (code,) = code_blocks(entry)
        assert "assert" in code
