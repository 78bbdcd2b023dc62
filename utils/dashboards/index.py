"""Where each latent of a bundled dictionary is most active in the public corpus, by an index shipped with the course.

The index holds places, not text: one file a dictionary, `assets/top_examples/<name>.safetensors`, made by
`python -m recipes.top_examples`. The text stands in `assets/corpus_public.jsonl.xz`, and the activations around a
place come from running the model on a few passages, which takes a second.

A place is a number in the stream of all documents' tokens, one after the other, cut into passages as
`utils.material.public_text` says.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CourseError
from utils.files import sha256, shown, write_atomically
from utils.material.public_text import CORPUS, PASSAGE
from utils.paths import ASSETS, DICTIONARIES

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

INDEX = ASSETS / "top_examples"


@dataclass(frozen=True)
class Index:
    """What was counted over the public corpus, for all latents of one dictionary.

    Attributes:
        places: where each latent is most active, in falling order and at most once a passage; -1 where it is nowhere
        strengths: its activations there
        counts: how many tokens activate it to between two neighbouring edges; what lies beyond counts in the outer
            bins
        edges: of the bins, half an octave each
        document_starts: place of each document's first token, and the end
        n_tokens: how many tokens were looked at; first positions and special tokens are not among them
    """

    places: Int[Tensor, "d_sae k"]
    strengths: Float[Tensor, "d_sae k"]
    counts: Int[Tensor, "d_sae bins"]
    edges: Float[Tensor, bins + 1]
    document_starts: Int[Tensor, documents + 1]
    n_tokens: int

    def passage_of(self, place: int) -> tuple[int, int, int]:
        """The number of the document, the first token of the passage in it, and the place's position in the passage."""
        document = bisect_right(self.document_starts.tolist(), place) - 1
        offset = place - int(self.document_starts[document])
        return document, offset - offset % PASSAGE, offset % PASSAGE


def save_index(index: Index, path: Path, made_from: dict[str, str]) -> None:
    """Write an index; `made_from` is what `fingerprints` gives."""
    from safetensors.torch import save

    tensors = {name: value for name, value in vars(index).items() if name != "n_tokens"}
    write_atomically(path, save(tensors, metadata={"n_tokens": str(index.n_tokens), **made_from}))


def read_index(name: str) -> Index:
    """The index of a bundled dictionary.

    Raises:
        CourseError: the file is missing, damaged, or was made from another corpus or other weights than are here
    """
    from safetensors import SafetensorError, safe_open

    path = INDEX / f"{name}.safetensors"
    command = f"Restore it (git checkout -- {shown(path)}) or make it again (python -m recipes.top_examples {name})."
    if not path.exists():
        raise CourseError(f"{shown(path)} is missing. {command}")
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata()
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        index = Index(**tensors, n_tokens=int(about["n_tokens"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CourseError(f"{shown(path)} is damaged. {command}") from error
    if any(about.get(key) != value for key, value in fingerprints(CORPUS, DICTIONARIES / name).items()):
        raise CourseError(f"{shown(path)} was made from another corpus or other weights than are here. {command}")
    return index


def fingerprints(corpus: Path, dictionary: Path) -> dict[str, str]:
    """What an index depends on: checksums of the corpus and of a dictionary's weights."""
    files = {"corpus": corpus, "weights": dictionary / "sae_weights.safetensors"}
    return {what: sha256(path) for what, path in files.items() if path.exists()}
