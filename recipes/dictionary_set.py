"""The set of dictionaries that the course ships: what each one reads and writes, and how it is trained."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.paths import cache_dir

D_MODEL = 576
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Recipe:
    """One dictionary of the set.

    Attributes:
        name: the course's name for it, such as `transcoder.8`
        kind: `resid`, `z`, `transcoder` or `temporal`
        layer: the block whose stream, heads or MLP it describes
        k: active latents a token, on average over tokens
        tokens: tokens seen in training, repeats included
        start: `random`, or for a transcoder `neurons`: the initial rows come from the MLP's own
        seed: of the initial weights and of the order of tokens
        earlier: the dictionary of a circuit pair that lies before this one: half of the training tokens are
            taken from a model that runs on the earlier one's reconstruction
    """

    name: str
    kind: str
    layer: int
    d_sae: int = 4096
    k: int = 64
    tokens: int = 3_000_000
    learning_rate: float = 3e-3
    start: str = "random"
    seed: int = 0
    earlier: str | None = None

    @property
    def source(self) -> str:
        """The harvested stream that it reads."""
        return {"transcoder": f"mlp_in.{self.layer}", "z": f"z.{self.layer}"}.get(self.kind, f"resid_pre.{self.layer}")

    @property
    def target(self) -> str:
        """The harvested stream that it writes: the one that it reads, but for transcoders."""
        return f"mlp_out.{self.layer}" if self.kind == "transcoder" else self.source

    @property
    def spliced_source(self) -> str:
        """The stream that it reads when the model runs on the reconstruction of `earlier`."""
        return f"{self.source}@{self.earlier}"

    @property
    def is_topk(self) -> bool:
        """Whether every token has the same number of active latents (TopK); else one threshold holds (JumpReLU).

        A few tokens of the early residual streams have ten times the norm of the others. Under one threshold they take
        hundreds of latents each. The input of an MLP is normalised, so that a threshold suits it.
        """
        return self.kind in ("resid", "z")

    @property
    def hook_name(self) -> str:
        """Where TransformerLens's bridge finds the stream that it reads."""
        places = {"transcoder": "mlp.hook_in", "z": "attn.hook_z"}
        return f"blocks.{self.layer}.{places.get(self.kind, 'hook_resid_pre')}"

    @property
    def hook_name_out(self) -> str | None:
        return f"blocks.{self.layer}.hook_mlp_out" if self.kind == "transcoder" else None


_ALL = (
    Recipe("resid_pre.3", "resid", 3, d_sae=8192),
    Recipe("resid_pre.6", "resid", 6, k=32, earlier="resid_pre.3"),
    Recipe("resid_pre.15", "resid", 15),
    Recipe("resid_pre.24", "resid", 24),
    Recipe("z.16", "z", 16),
    Recipe("z.17", "z", 17),
    *(
        Recipe(
            f"transcoder.{n}",
            "transcoder",
            n,
            d_sae=3072,
            k=64 if n < 3 else 96,
            tokens=8_000_000,
            learning_rate=4e-3,
            start="neurons",
        )
        for n in range(9)
    ),
    Recipe("temporal.15", "temporal", 15, d_sae=2048, tokens=2_000_000),
)
# What pilots change; their figures stand in README.md.
VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"start": "random"},
    "wide": {"d_sae": 4096},
    "pilot": {"tokens": 2_000_000},
    "k16": {"k": 16},
    "k24": {"k": 24},
    "k32": {"k": 32},
}
RECIPES = {recipe.name: recipe for recipe in _ALL}
PAIRS = (("resid_pre.3", "resid_pre.6"), ("z.16", "z.17"))


def recipe(name: str) -> Recipe:
    """The recipe of a dictionary, by name; `transcoder.3-wide-seed1` is its variant with another width and seed."""
    known, *changes = name.split("-")
    if known not in RECIPES:
        raise KeyError(f"unknown dictionary {name!r}: the set has {', '.join(RECIPES)}")
    one = replace(RECIPES[known], name=name)
    for change in changes:
        if change not in VARIANTS and not re.fullmatch(r"seed\d+", change):
            raise KeyError(f"unknown variant {change!r} in {name!r}: use seed1, seed2, ... or {', '.join(VARIANTS)}")
        one = replace(one, **VARIANTS.get(change) or {"seed": int(change.removeprefix("seed"))})
    return one


def work_dir(*parts: str) -> Path:
    """A folder of the recipes in the user's cache (`acts`, `train`, `dictionaries`), made when it is missing."""
    folder = cache_dir().joinpath("recipes", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
