"""Packages of three registries as plain archives: fetched by name, checked, and read without being installed or run."""

import fnmatch
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from utils.errors import CourseError
from utils.files import write_atomically
from utils.paths import cache_dir

Package = dict[str, Any]  # registry, package, version, sha256


def corpus_dir() -> Path:
    """Where the packages and the splits are kept."""
    return cache_dir() / "recipes" / "corpus"


CLIENTS = {
    "debian": lambda package, version: ["apt-get", "download", f"{package}={version}"],
    "npm": lambda package, version: ["npm", "pack", "--silent", f"{package}@{version}"],
    # A wheel is fetched as it is; a source package would have to be run to be built.
    "pypi": lambda package, version: [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        f"{package}=={version}",
    ],
}


def fetch(package: Package) -> Path:
    """The package's file, from the cache or from its registry, with the checksum that the package list records."""
    wanted = f"{package['registry']} package {package['package']} {package['version']}"
    path = corpus_dir() / "packages" / package["sha256"]
    if not path.exists():
        with tempfile.TemporaryDirectory() as empty:
            command = CLIENTS[package["registry"]](package["package"], package["version"])
            try:
                done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise CourseError(f"cannot fetch the {wanted}: `{command[0]}` is not installed here") from error
            files = list(Path(empty).iterdir())
            if done.returncode or len(files) != 1:
                raise CourseError(f"cannot fetch the {wanted}: {' '.join(command)} said:\n{done.stderr.strip()[-800:]}")
            write_atomically(path, files[0].read_bytes())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package["sha256"]:
        path.unlink()
        raise CourseError(f"the {wanted} has checksum {found}, but recipes/sources.toml records {package['sha256']}")
    return path


def members(archive: Path, *patterns: str) -> dict[str, bytes]:
    """The files in a .whl, .tgz or .deb whose names match a pattern, by name; read, not unpacked to disk."""

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    start = archive.open("rb").read(8)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if wanted(name)}
    else:
        packed = archive.read_bytes()
        if start.startswith(b"!<arch>"):
            packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            files = ((member, member.name.removeprefix("./")) for member in tar if member.isfile())
            found = {name: tar.extractfile(member).read() for member, name in files if wanted(name)}  # type: ignore[union-attr]
    return {name: gzip.decompress(data) if name.endswith(".gz") else data for name, data in sorted(found.items())}
