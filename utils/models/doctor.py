"""`course doctor`: looks the machine over, and says for every trouble what to do about it.

Loads neither torch nor the model itself, so that it works where they do not.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from utils.errors import CourseError
from utils.models import model_files
from utils.models.dictionaries import bundled_names, dictionary_faults
from utils.models.hub import hub_trouble
from utils.models.profiles import PROFILES, Profile
from utils.paths import CACHE_VARIABLE, cache_dir, requirement_pins

SUPPORTED_PYTHON = ((3, 11), (3, 12), (3, 13))
# What the rest of the course cannot do without, and so is worth a line each when all is well, too.
SHOWN_PACKAGES = ("torch", "transformers", "transformer-lens", "sae-lens", "jupyterlab")
REINSTALL = "run `make lab` (or `pip install -r requirements.txt -c requirements.lock`)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "ok", "note" (worth knowing) or "TROUBLE" (the default profile cannot run)
        advice: what to do, if there is something to be done
    """

    topic: str
    state: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.topic:<11} {self.text}"
        return f"{line}\n{'':<21}-> {self.advice}" if self.advice else line


def arguments(parser: argparse.ArgumentParser) -> None:
    """`course doctor` takes none."""


def run(options: argparse.Namespace) -> int:
    """Explain this machine and what to do about it; exit status 1 if the default profile cannot run."""
    troubles = 0
    for finding in examine():
        print(finding, flush=True)
        troubles += finding.state == "TROUBLE"
    print()
    verdict = f"{troubles} to be dealt with before the course can run" if troubles else "The course can run here"
    print(f"{verdict}.")
    return 1 if troubles else 0


def examine() -> Iterable[Finding]:
    """Everything that `course doctor` looks at, the quick things first."""
    yield python_version()
    yield from packages()
    yield torch_import()
    yield cores()
    yield memory(PROFILES["smollm2"])
    yield disk()
    yield cache()
    yield default_model(thorough=True)
    yield dictionaries()
    yield from hub_profiles()


def verify_environment(profile: str = "smollm2") -> None:
    """Look over, in about a second and before anything heavy loads, what the profile needs; print a line for each.

    Raises:
        CourseError: something stands in the way; the message says what, and what to do
    """
    if profile not in PROFILES:
        raise CourseError(f"There is no profile {profile!r}. There are: {', '.join(PROFILES)}.")
    wanted = PROFILES[profile]
    findings = [python_version(), *packages(), memory(wanted)]
    if wanted.on_hub:
        findings.append(hub_profile(wanted, hub_trouble()))
    else:
        model = default_model(thorough=False)
        # What is missing or damaged is fetched or made when it is loaded; that is no reason to stop here.
        findings += [disk(), cache(), replace(model, state=model.state.replace("TROUBLE", "note"), advice="")]
    for finding in findings:
        print(finding)
    troubles = [finding for finding in findings if finding.state == "TROUBLE"]
    if troubles:
        raise CourseError("\n".join(f"{trouble.text}: {trouble.advice}" for trouble in troubles))


def python_version() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] in SUPPORTED_PYTHON:
        return Finding("python", "ok", f"{version} ({sys.executable})")
    return Finding(
        "python",
        "TROUBLE",
        f"{version}, and the course needs 3.11, 3.12 or 3.13",
        "make lab PYTHON=python3.12 (or 3.11, 3.13)",
    )


def packages() -> list[Finding]:
    """The installed versions against requirements.txt."""
    findings = []
    for name, pinned in requirement_pins().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "TROUBLE", f"{name} is not installed", REINSTALL))
            continue
        # A build says where it is from behind a plus sign, as in 2.13.0+cpu.
        if installed.split("+")[0] == pinned:
            if name in SHOWN_PACKAGES:
                findings.append(Finding(name, "ok", installed))
        elif name == "torch" and (refusals := who_refuses_torch(installed)):
            findings.append(
                Finding(
                    name,
                    "TROUBLE",
                    f"torch {installed} is too old or too new for {', '.join(refusals)}",
                    f"{REINSTALL}; on Colab or Kaggle, where the course leaves torch alone, choose a newer runtime",
                )
            )
        else:
            findings.append(
                Finding(name, "note", f"{name} {installed}, tested with {pinned}", f"if something fails, {REINSTALL}")
            )
    return findings


def who_refuses_torch(version: str) -> list[str]:
    """Which installed packages of the course's say that they do not go with this version of torch."""
    from packaging.requirements import Requirement

    refusing = []
    for name in ("transformers", "transformer-lens", "sae-lens"):
        try:
            requirements = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": "torch"})
            if requirement.name != "torch" or not applies:
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                refusing.append(f"{name} (torch{requirement.specifier})")
                break
    return refusing


def torch_import() -> Finding:
    """Whether torch not only is installed but also starts, tried in a process of its own."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU, none needed')"
    try:
        tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return Finding(
            "torch", "TROUBLE", "importing torch takes over three minutes", "is the machine or its disk overloaded?"
        )
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["it was killed"])[-1]
        return Finding("torch", "TROUBLE", f"torch cannot be imported: {reason}", f"make clean, then {REINSTALL}")
    return Finding("torch", "ok", f"can be imported; {tried.stdout.strip()}")


def cores() -> Finding:
    # What this process may use, which in a container is less than what the machine has.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", "ok" if usable > 1 else "note", f"{usable} to use; the times in the chapters are for 2")


def memory(profile: Profile) -> Finding:
    import psutil

    now = psutil.virtual_memory()
    free, total = now.available / 1e9, now.total / 1e9
    text = f"{free:.1f} GB free of {total:.1f} GB; profile {profile.name} wants {profile.memory_gb:.0f} GB"
    if free >= profile.memory_gb or (profile.wants_gpu and shutil.which("nvidia-smi")):
        return Finding("memory", "ok", text)
    return Finding("memory", "TROUBLE", text, "close other notebooks and programs; restart kernels that hold a model")


def disk() -> Finding:
    folder = _existing(cache_dir())
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free where the cache is"
    if free >= model_files.NEEDED_BYTES or not model_files.faults(model_files.model_dir()):
        return Finding("disk", "ok", text)
    needed = f"{model_files.NEEDED_BYTES / 1e9:.0f} GB needed"
    return Finding(
        "disk", "TROUBLE", f"{text}, {needed}", f"free some, or export {CACHE_VARIABLE}=/another/disk/folder"
    )


def cache() -> Finding:
    folder = cache_dir()
    chosen = f"from {CACHE_VARIABLE}" if os.environ.get(CACHE_VARIABLE) else f"{CACHE_VARIABLE} is not set"
    parent = _existing(folder)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return Finding("cache", "ok", f"{folder} ({chosen})")
    if not model_files.faults(model_files.model_dir()):
        return Finding("cache", "note", f"{folder} ({chosen}) can be read but not written; that is enough for now")
    advice = f"make it writable, or export {CACHE_VARIABLE}=/another/folder"
    return Finding("cache", "TROUBLE", f"{folder} ({chosen}) cannot be written", advice)


def default_model(*, thorough: bool) -> Finding:
    folder = model_files.model_dir()
    faults = model_files.faults(folder, thorough=thorough)
    if not faults:
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        checked = "every checksum right" if thorough else "complete"
        return Finding("smollm2", "ok", f"converted model in the cache, {size:.0f} MB, {checked}")
    if not folder.exists():
        return Finding("smollm2", "TROUBLE", "the model has not been fetched yet (93 MB)", "run `course model`")
    return Finding(
        "smollm2", "TROUBLE", f"the converted model is damaged: {faults[0]}", "run `course model` to mend it"
    )


def dictionaries() -> Finding:
    try:
        names = bundled_names()
        faults = [fault for name in names for fault in dictionary_faults(name)]
    except CourseError as error:
        return Finding("assets", "TROUBLE", str(error))
    if faults:
        return Finding("assets", "TROUBLE", faults[0], "git checkout -- assets/dictionaries")
    if not names:
        return Finding("assets", "note", "no dictionaries are bundled with this copy of the course")
    return Finding("assets", "ok", f"{len(names)} bundled dictionaries, every checksum right")


def hub_profiles() -> list[Finding]:
    """What would happen with the profiles from the hub; never a trouble, since the course does not need them."""
    trouble = hub_trouble()
    findings = [hub_profile(profile, trouble) for profile in PROFILES.values() if profile.on_hub]
    return [replace(finding, state=finding.state.replace("TROUBLE", "note")) for finding in findings]


def hub_profile(profile: Profile, trouble: str | None) -> Finding:
    """Whether a hub profile can be loaded, given what `hub_trouble` said."""
    from huggingface_hub import get_token, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(profile.model_id, "config.json"), str):
        return Finding(profile.name, "ok", f"{profile.model_id} is in the hub's cache; needs {profile.needs}")
    if trouble:
        return Finding(
            profile.name,
            "TROUBLE",
            f"{profile.model_id} cannot be fetched: the hub does not answer ({trouble})",
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE; the default profile needs no hub",
        )
    if profile.gated and not get_token():
        return Finding(
            profile.name,
            "TROUBLE",
            f"{profile.model_id} is gated and there is no token",
            "accept its licence on the hub, then `hf auth login` or set HF_TOKEN; the default profile needs neither",
        )
    return Finding(profile.name, "ok", f"the hub answers; needs {profile.needs}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
