"""The part of a notebook's set-up cell that runs once the course is there.

Locally and on Binder it does nothing. On Colab and Kaggle it installs what is missing around the platform's own torch,
under constraints read from the live environment, and verifies that torch's files stayed as they were.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import chapters
from utils.errors import CourseError
from utils.paths import requirement_pins

# Never installed and never changed: what the platform has matched to its drivers.
PLATFORM_OWN = ("torch", "torchvision", "torchaudio", "pytorch-triton", "triton", "nvidia", "cuda", "cupy")
# Kept as they are even when the other packages have to give way: much stands on them, or the session runs on them.
ALWAYS_KEPT = (
    *PLATFORM_OWN,
    *("numpy", "jax", "jaxlib", "tensorflow", "google-colab", "pip"),
    *("ipykernel", "ipython", "jupyter", "notebook", "pyzmq", "tornado", "traitlets"),
)
# What opens, builds and tests notebooks; inside a notebook that runs elsewhere none of it is used.
NOT_FOR_A_SESSION = {
    "jupyterlab",
    "jupytext",
    "nbclient",
    "nbconvert",
    "nbformat",
    "ipykernel",
    "ipython",
    "playwright",
    "ruff",
    "mypy",
    "pytest-xdist",
}
_NETWORK_TROUBLE = re.compile(
    "NewConnectionError|NameResolutionError|Name or service not known|failure in name resolution|Network is unreachable"
    "|Connection refused|ConnectTimeout|timed out|ProxyError|No route to host|from versions: none"
)
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+_-]*")


def ready(chapter: str) -> None:
    """Make the session ready for a chapter such as "03" and say in one line what was done.

    Raises CourseError that says what to do when something cannot be installed.
    """
    chapters.begin(chapter)
    platform = hosted_platform()
    missing = missing_requirements()
    if platform:
        done = install(missing, platform) if missing else "nothing was missing"
        print(f"Chapter {chapter} is ready on {platform}: {done}.")
    elif missing:
        print(
            f"Chapter {chapter}: this Python lacks {', '.join(missing)}. "
            "Run `make lab` in the course's folder, or `pip install -r requirements.txt`."
        )
    else:
        print(f"Chapter {chapter} is ready.")


def hosted_platform() -> str | None:
    """ "Colab" or "Kaggle" where the notebook runs there, else None."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ or Path("/kaggle/working").is_dir():
        return "Kaggle"
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "Colab"
    try:
        return "Colab" if importlib.util.find_spec("google.colab") else None
    except ModuleNotFoundError:
        return None


def missing_requirements() -> dict[str, str]:
    """The course's requirements that are not installed, name -> pinned version; never what is the platform's own."""
    pins = {name.split("[")[0]: pin for name, pin in requirement_pins().items()}
    wanted = {
        name: pin
        for name, pin in pins.items()
        if normal(name) not in NOT_FOR_A_SESSION and not is_one_of(name, PLATFORM_OWN)
    }
    return {name: pin for name, pin in wanted.items() if not _is_installed(name)}


def install(missing: dict[str, str], platform: str) -> str:
    """Install the missing packages around what is there; returns what was done, for people."""
    if not _is_installed("torch"):
        raise CourseError(
            f"This {platform} session has no torch, which the platform brings itself and the course never installs. "
            "Choose the standard runtime (Colab: Runtime > Change runtime type), then run this cell again."
        )
    names = ", ".join(missing)
    print(f"Installing {names} (a minute or two) ...", flush=True)
    before = Environment.now()
    wanted = [f"{name}=={pin}" for name, pin in missing.items()]
    failed = _pip_install(wanted, before.constraints())
    if failed and not _is_network_trouble(failed):
        print(
            "They do not fit to everything that is installed; trying again with only torch and its like kept fixed.",
            flush=True,
        )
        failed = _pip_install(wanted, before.constraints(ALWAYS_KEPT))
    if failed:
        raise CourseError(_what_to_do(failed, names, platform))
    importlib.invalidate_caches()
    after = Environment.now()
    _verify_platform_untouched(before, after, platform)
    changed = [name for name, version in before.versions.items() if after.versions.get(name) != version]
    gave_way = ""
    if changed:
        gave_way = f", and changed {', '.join(sorted(changed))} (restart the session, then run this cell again)"
    return f"installed {names}{gave_way}; torch {after.versions['torch']} is untouched"


@dataclass(frozen=True)
class Environment:
    """What is installed: the version of every package; (size, modification time) of the platform's own files."""

    versions: dict[str, str]
    files: dict[str, tuple[int, int]]

    @classmethod
    def now(cls) -> Environment:
        versions: dict[str, str] = {}
        files: dict[str, tuple[int, int]] = {}
        for distribution in _distributions():
            name = normal(distribution.metadata["Name"])
            if name in versions:
                continue  # the first on the path is the one that imports
            versions[name] = distribution.version
            if is_one_of(name, PLATFORM_OWN):
                files.update(_file_marks(distribution))
        return cls(versions, files)

    def constraints(self, only: Iterable[str] | None = None) -> str:
        """A pip constraints file that keeps these versions; `only` limits it to these packages and their families."""
        kept = {name: version for name, version in self.versions.items() if only is None or is_one_of(name, only)}
        return "".join(f"{name}=={version}\n" for name, version in sorted(kept.items()) if _VERSION.fullmatch(version))


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_one_of(name: str, families: Iterable[str]) -> bool:
    """Whether the package is one of these or belongs to its family: `nvidia-cublas-cu12` to `nvidia`."""
    return any(re.fullmatch(rf"{family}(-.*)?", normal(name)) for family in families)


def _distributions() -> Iterator[importlib.metadata.Distribution]:
    for distribution in importlib.metadata.distributions():
        # A half-removed package leaves a folder without metadata behind.
        if distribution.metadata is not None and distribution.metadata["Name"] and distribution.version:
            yield distribution


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _file_marks(distribution: importlib.metadata.Distribution) -> dict[str, tuple[int, int]]:
    marks = {}
    for entry in distribution.files or ():
        path = Path(str(entry.locate()))
        if path.suffix == ".pyc":  # written by Python itself, at any import
            continue
        try:
            state = path.stat()
        except OSError:
            continue
        marks[str(path)] = (state.st_size, state.st_mtime_ns)
    return marks


def _pip_install(wanted: list[str], constraints: str) -> str:
    """Run pip; returns what it said when it failed, else an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text(constraints, encoding="utf-8")
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--root-user-action=ignore", "-c", str(file)]
        command = [sys.executable, "-m", "pip", "install", *options, *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr or f"pip ended with status {done.returncode}") if done.returncode else ""


def _is_network_trouble(said: str) -> bool:
    # pip finds "no versions" of a package where the index is out of reach, and where all want another Python.
    return bool(_NETWORK_TROUBLE.search(said)) and "different python version" not in said


def _what_to_do(failed: str, names: str, platform: str) -> str:
    if _is_network_trouble(failed):
        where = (
            "Kaggle: Settings > Internet > on (it needs a verified phone number)"
            if platform == "Kaggle"
            else "Check the connection"
        )
        return f"{names} could not be fetched: there is no internet here. {where}, then run this cell again."
    tail = "\n".join(failed.strip().splitlines()[-12:])
    return (
        f"pip could not install {names} without changing torch, so nothing was changed. "
        f"Please report this with what pip said:\n{tail}"
    )


def _verify_platform_untouched(before: Environment, after: Environment, platform: str) -> None:
    own = {name: version for name, version in before.versions.items() if is_one_of(name, PLATFORM_OWN)}
    moved = [name for name, version in own.items() if after.versions.get(name) != version]
    added = [name for name in after.versions if is_one_of(name, PLATFORM_OWN) and name not in before.versions]
    files = [path for path, mark in before.files.items() if after.files.get(path) != mark]
    if moved or added or files:
        what = ", ".join([*moved, *added]) or f"{len(files)} files, for instance {files[0]}"
        reset = "Runtime > Disconnect and delete runtime" if platform == "Colab" else "Run > Factory reset"
        raise CourseError(
            f"Installing changed what belongs to {platform} ({what}), which must never happen. "
            f"Start a fresh session ({reset}) and report this, please."
        )
