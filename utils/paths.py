"""Where things are: the rooms of the course, the user's cache, and the repository's address."""

import os
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
CHAPTER_TEXTS = CHAPTERS / "text"
SOLUTIONS = ROOT / "solutions"
VARIANTS = SOLUTIONS / "variants"
TESTS = ROOT / "tests"
RECIPES = ROOT / "recipes"
ASSETS = ROOT / "assets"
DICTIONARIES = ASSETS / "dictionaries"
RESULTS = ASSETS / "results"
MINE = Path(os.environ.get("COURSE_MINE") or ROOT / "mine")  # set by runs that must leave the student's own alone
PYPROJECT = ROOT / "pyproject.toml"
REQUIREMENTS = ROOT / "requirements.txt"

CACHE_VARIABLE = "SPARSE_CIRCUITS_CACHE"


def cache_dir() -> Path:
    """The folder for what is fetched or converted once a user: $SPARSE_CIRCUITS_CACHE, else ~/.cache/sparse-circuits.

    The folder need not exist yet.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().resolve()
    caches = os.environ.get("XDG_CACHE_HOME")
    # The convention says that a relative XDG_CACHE_HOME is invalid and to be ignored.
    base = Path(caches) if caches and Path(caches).is_absolute() else Path.home() / ".cache"
    return base / "sparse-circuits"


@cache
def repository() -> str:
    """The repository's address, without a slash or `.git` at its end: the one setting, in pyproject.toml."""
    with PYPROJECT.open("rb") as file:
        address: str = tomllib.load(file)["tool"]["course"]["repository"]
    return address.rstrip("/").removesuffix(".git")


def requirement_pins() -> dict[str, str]:
    """Package name -> exact version, as requirements.txt pins them."""
    pins = {}
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        requirement = line.split("#")[0].split(";")[0].strip()
        if "==" in requirement:
            name, _, version = requirement.partition("==")
            pins[name.strip()] = version.strip()
    return pins
