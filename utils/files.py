"""What several rooms do with files: write them whole or not at all, name them for people, take their checksum."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from utils.paths import ROOT


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content so that a reader, or a crash, never sees half of it; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def shown(path: Path) -> str:
    """A path as a message names it: from the course's folder where it lies inside, else whole."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def sha256(path: Path) -> str:
    """The file's checksum as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
