"""The house: imports run one way, from later rooms to earlier ones. Read from the code; nothing of it is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import utils
from utils.paths import ROOT

GROUND = {
    f"utils.{name}"
    for name in ("chapters", "errors", "files", "hooks", "paths", "plain", "setup_cell", "source", "student_work")
}
FACE = {f"utils.{name}" for name in utils.__all__}
LESSON = FACE | {"utils.material"}
CHECKERS = LESSON | {"utils.checks", "tests.by_hand"}
# Files (the first pattern that fits) -> what of the course they may import: modules, or rooms with all that is in them.
# The face itself looks names up without importing, and the tests of the machinery may touch everything.
ALLOWED = {
    "utils/*.py": GROUND,
    "utils/models/*.py": GROUND | {"utils.models"},
    "utils/material/*.py": GROUND | {"utils.models", "utils.material"},
    "utils/checks/*.py": GROUND | {"utils.models", "utils.material", "utils.checks"},
    "utils/notebook/*.py": GROUND | {"utils.models", "utils.material", "utils.checks", "utils.notebook"},
    "utils/dashboards/*.py": GROUND
    | {"utils.models", "utils.material", "utils.checks", "utils.notebook", "utils.dashboards"},
    "solutions/*.py": LESSON,
    "solutions/variants/*.py": LESSON | {"utils.checks.variants", "solutions", "fast"},
    "tests/*.py": CHECKERS,
    "fast/**/*.py": {"utils", "fast"},
    "authoring/*.py": {"utils", "fast", "authoring"},
    "grading/**/*.py": {"utils", "authoring", "grading"},
    "recipes/*.py": {"utils", "fast", "recipes"},
}
ROOMS = {"utils", "solutions", "tests", "fast", "authoring", "grading", "recipes"}
FILES = [
    (path, allowed)
    for pattern, allowed in ALLOWED.items()
    for path in sorted(ROOT.glob(pattern))
    if path != ROOT / "utils" / "__init__.py"
]


def imports(source: str) -> Iterator[str]:
    """Full names of the course's modules, or of names in them, that the code imports, at the top or in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ROOMS)


def is_allowed(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(("path", "allowed"), FILES, ids=[shown(path) for path, _ in FILES])
def test_imports_run_one_way(path, allowed):
    for name in imports(path.read_text(encoding="utf-8")):
        assert is_allowed(name, allowed), f"{shown(path)} imports {name}, which stands above it or behind a face"


def test_every_module_of_the_rooms_is_looked_at():
    seen = {path for path, _ in FILES} | {ROOT / "utils" / "__init__.py"}
    everywhere = {path for room in ROOMS - {"tests"} for path in (ROOT / room).rglob("*.py")}
    assert everywhere <= seen


def test_a_wrong_arrow_is_seen():
    code = "def f():\n    from utils.notebook import plots\nimport utils.dashboards.page\nfrom utils import load"
    wrong = {name for name in imports(code) if not is_allowed(name, LESSON)}
    assert wrong == {"utils.notebook.plots", "utils.dashboards.page"}


def test_no_module_bears_the_name_of_a_public_object():
    """`import utils.check` would put the module in the place of the function `utils.check`."""
    modules = {path.stem for path in (ROOT / "utils").glob("*.py")} | {path.name for path in (ROOT / "utils").iterdir()}
    assert not modules & set(utils.__all__)
