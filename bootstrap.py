"""Make the course's environment: .venv beside this file, with what requirements.txt names, at the locked versions.

Runs before anything is installed, so it uses the standard library only and needs no more than Python and pip.
Running it again costs nothing; it may be interrupted at any moment, and two of them may be started at once.
Where there is no NVIDIA GPU, torch is the CPU build, which is small; what the build with CUDA costs is said first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOCK = ROOT / ".venv.lock"
STAMP = VENV / "course-stamp.json"  # written last: without it, the environment counts as unfinished
PIP_LOG = VENV / "install.log"
REQUIREMENTS = ROOT / "requirements.txt"
CONSTRAINTS = ROOT / "requirements.lock"
INPUTS = (REQUIREMENTS, CONSTRAINTS, ROOT / "pyproject.toml", Path(__file__).resolve())

SUPPORTED = ((3, 11), (3, 12), (3, 13))
NEEDED_GB = 3.0  # 2.2, and room for what is being unpacked
CUDA_FETCHED_GB = 3.0
CUDA_NEEDED_GB = 6.2
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

# JupyterLab asks the network for news and extensions unless told not to; the course works with the network off.
LAB_CONFIG = """\
c = get_config()  # noqa
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.news_url = None
c.LabApp.extension_manager = "readonly"
c.ServerApp.allow_root = True  # matters in containers, where there is often no other user
"""
LAB_PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}

# What pip's log says -> what that means to the person at the keyboard.
SYMPTOMS = (
    (
        ("No space left on device", "Disk quota exceeded"),
        "The disk is full. Free some space (the environment takes about {needed:.0f} GB, twice that with torch's "
        "CUDA build; if it is the temporary folder that is small, set TMPDIR to a larger one).",
    ),
    (
        (
            "NewConnectionError",
            "NameResolutionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ProxyError",
            "Network is unreachable",
            "Temporary failure in name resolution",
            "Connection broken",
            "Connection aborted",
        ),
        "The package index cannot be reached. Check the network connection (and, behind a proxy, pip's settings: "
        "`pip config list`). What was already downloaded is kept.",
    ),
    (
        ("No matching distribution found", "ResolutionImpossible", "THESE PACKAGES DO NOT MATCH THE HASHES"),
        "The package index answers, but does not have the pinned versions for this machine. If pip is set up to "
        "use a mirror (`pip config list`), it may be out of date.",
    ),
    (("Permission denied",), "A folder cannot be written. Check who owns {root} and the temporary folder."),
)


class SetUpError(Exception):
    """What stands in the way, and what to do about it."""


def main() -> int:
    """Make or update the environment; the exit status."""
    try:
        with one_at_a_time():
            if not is_ready():
                make_environment()
    except SetUpError as error:
        print(f"\nSet-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on; downloads are kept.", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def one_at_a_time():
    """Hold the lock of this folder; while somebody else has it, say so and wait."""
    try:
        import fcntl
    except ImportError:
        raise SetUpError("the course runs on Linux and macOS; on Windows, use it inside WSL.") from None
    try:
        file = LOCK.open("w")
    except OSError as error:
        raise SetUpError(f"{ROOT} cannot be written ({error.strerror}). Put the course where you may write.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up is at work in this folder; waiting for it to finish ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        # A pip that outlives this process keeps the lock until it has ended too.
        os.set_inheritable(file.fileno(), True)
        yield


def is_ready() -> bool:
    """Whether the environment is finished, made here, and from these very inputs."""
    return VENV_PYTHON.exists() and read_stamp() == wanted_stamp()


def wanted_stamp() -> dict[str, str]:
    digest = hashlib.sha256()
    for path in INPUTS:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return {"root": str(ROOT), "inputs": digest.hexdigest()}


def read_stamp() -> dict[str, str]:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def make_environment() -> None:
    started = time.monotonic()
    if can_be_updated():
        print("requirements changed: bringing .venv up to date", flush=True)
        STAMP.unlink()
    else:
        check_python()
        check_disk(NEEDED_GB)
        print(f"Making the environment in {VENV} (some minutes, once)", flush=True)
        start_afresh()
    install_torch()
    # With setuptools, so that nothing has to be fetched to build the course itself.
    pip("--requirement", REQUIREMENTS, "--constraint", CONSTRAINTS, "setuptools")
    pip("--no-deps", "--no-build-isolation", "--editable", ROOT)
    configure_jupyter()
    STAMP.write_text(json.dumps(wanted_stamp()))
    print(f"Environment ready after {time.monotonic() - started:.0f} s.", flush=True)


def can_be_updated() -> bool:
    """Whether .venv was finished here once, and its interpreter still runs."""
    if read_stamp().get("root") != str(ROOT):
        return False
    return subprocess.run([VENV_PYTHON, "-c", ""], capture_output=True).returncode == 0


def check_python() -> None:
    if sys.version_info[:2] in SUPPORTED:
        return
    supported = [name for name in (f"python{a}.{b}" for a, b in reversed(SUPPORTED)) if shutil.which(name)]
    advice = (
        f"This machine has {supported[0]}: say `make lab PYTHON={supported[0]}`."
        if supported
        else "Install one of these versions and say, for example, `make lab PYTHON=python3.12`."
    )
    version = ".".join(map(str, sys.version_info[:3]))
    raise SetUpError(f"the course needs Python 3.11, 3.12 or 3.13, and {sys.executable} is {version}. {advice}")


def check_disk(needed: float) -> None:
    """Stop where the disk has fewer than `needed` GB."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise SetUpError(
            f"{free:.1f} GB are free on the disk of {ROOT}, and the environment takes about {needed:.0f} GB. "
            "Free some space, or move the course to a larger disk."
        )


def start_afresh() -> None:
    """An empty environment with pip in it, whatever was there before."""
    try:
        if VENV.exists():
            shutil.rmtree(VENV)
        venv.EnvBuilder(symlinks=True, prompt="sparse-circuits").create(VENV)
    except OSError as error:
        raise SetUpError(f"{VENV} cannot be made: {error}. Check who owns it and whether the disk is full.") from None
    if can_run("import ensurepip; ensurepip.version()"):
        run([VENV_PYTHON, "-m", "ensurepip", "--default-pip"], quiet=True)
    elif can_run("import pip"):
        # Debian keeps ensurepip in a package of its own (python3-venv); the system's pip can put one in as well.
        run([sys.executable, "-m", "pip", "--python", VENV_PYTHON, "install", "--quiet", "pip"], log=True)
    else:
        raise SetUpError("this Python has neither ensurepip nor pip. On Debian: apt-get install python3-pip")


def can_run(code: str) -> bool:
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def install_torch() -> None:
    """Install torch before the rest, in the build that suits this machine, or say what the build with CUDA costs.

    On Linux the package index has torch with CUDA only; the CPU build is on an index of PyTorch's own.
    """
    torch = torch_requirement()
    if is_at_hand(torch) or sys.platform != "linux":
        return
    if has_nvidia_gpu():
        reason = "This machine has an NVIDIA GPU, so torch comes with CUDA."
    else:
        print("No NVIDIA GPU here: fetching the CPU build of torch (about 200 MB).", flush=True)
        if fetch_cpu_build(torch):
            return
        reason = "The CPU build cannot be had from here, so torch comes from the package index, as a rule with CUDA."
    print(
        f"{reason}\nThat fetches about {CUDA_FETCHED_GB} GB and takes {CUDA_NEEDED_GB} GB of disk, "
        "all packages together; Ctrl-C stops it.",
        flush=True,
    )
    check_disk(CUDA_NEEDED_GB)


def torch_requirement() -> str:
    """The line of requirements.txt that is about torch."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return next(line.strip() for line in lines if line.partition("==")[0].strip() == "torch")


def is_at_hand(torch: str) -> bool:
    """Whether torch is installed, or can be from where pip is set up to look besides an index (find-links)."""
    return succeeds([VENV_PYTHON, "-m", "pip", "install", "--no-index", "--no-deps", torch], quiet=True)


def has_nvidia_gpu() -> bool:
    if NVIDIA_DRIVER.exists():
        return True
    try:
        return subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def fetch_cpu_build(torch: str) -> bool:
    """Install torch's CPU build by uv, which knows PyTorch's own index; whether that worked."""
    with tempfile.TemporaryDirectory(dir=VENV) as folder:
        uv = Path(folder, "bin", "uv")
        get_uv = ["install", "--quiet", "--only-binary", "uv", "--target", folder, "--constraint", CONSTRAINTS, "uv"]
        get_torch = ["install", "--python", VENV_PYTHON, "--no-deps", "--torch-backend", "cpu", torch]
        return succeeds([VENV_PYTHON, "-m", "pip", *get_uv]) and succeeds([uv, "pip", *get_torch])


def succeeds(command: list[str | Path], *, quiet: bool = False) -> bool:
    """Run a step that may fail; whether it did not."""
    try:
        run(command, quiet=quiet)
    except SetUpError:
        return False
    return True


def pip(*arguments: str | Path) -> None:
    """`pip install` with the arguments, inside the environment."""
    run([VENV_PYTHON, "-m", "pip", "install", *arguments], log=True)


def run(command: list[str | Path], *, quiet: bool = False, log: bool = False) -> None:
    """Run a step.

    Args:
        command: The program and its arguments.
        quiet: Keep the step's output to ourselves unless it fails.
        log: The step is a pip: have it write a log that can be read for the cause.

    Raises:
        SetUpError: It failed; says what its log says in terms of what to do.
    """
    environment = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONHOME", None)
    if log:
        PIP_LOG.unlink(missing_ok=True)
        environment["PIP_LOG"] = str(PIP_LOG)
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        close_fds=False,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if done.returncode == 0:
        return
    said = done.stdout or ""
    if log and PIP_LOG.exists():
        said += PIP_LOG.read_text(errors="replace")
    raise SetUpError(explain(said, command))


def explain(said: str, command: list[str | Path]) -> str:
    """What a failed step's output means, and what to do."""
    for signs, meaning in SYMPTOMS:
        if any(sign in said for sign in signs):
            return meaning.format(needed=NEEDED_GB, root=ROOT) + " Then run the same command again."
    last_lines = "\n".join(said.strip().splitlines()[-15:])
    return (
        f"this step failed:\n  {' '.join(map(str, command))}\n{last_lines}\n"
        f"The whole log is {PIP_LOG}. Run the same command again; if it fails again, that log says why."
    )


def configure_jupyter() -> None:
    """Settings that only this environment's JupyterLab sees."""
    folder = VENV / "etc" / "jupyter"
    (folder / "labconfig").mkdir(parents=True, exist_ok=True)
    (folder / "jupyter_lab_config.py").write_text(LAB_CONFIG)
    (folder / "labconfig" / "page_config.json").write_text(json.dumps(LAB_PAGE_CONFIG))


if __name__ == "__main__":
    sys.exit(main())
