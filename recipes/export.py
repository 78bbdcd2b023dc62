"""Write trained dictionaries in SAELens's on-disk format, and the manifest: `python -m recipes.export`.

`SAE.load_from_disk` opens each folder (`cfg.json`, `sae_weights.safetensors`) without anything of this course. Weights
are kept in half precision, decoders in 8-bit floats (e4m3), which costs less than 0.001 of variance explained; 8-bit
encoders would change which latents are active. SAELens turns all into float32 as it reads them.
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recipes.dictionary_set import D_MODEL, MODEL_NAME, RECIPES, Recipe, recipe, work_dir
from recipes.temporal import TemporalTraining
from recipes.train import BATCH, Dictionary, load_dictionary, state_path
from utils.paths import DICTIONARIES

MANIFEST = "manifest.json"
MOST_BYTES_A_FILE = 45_000_000


def folded(d: Dictionary) -> dict[str, Tensor]:
    """The weights of an ordinary dictionary for raw inputs and outputs, with SAELens's names.

    Latents are in units of the output, decoder rows have norm 1.
    """
    encoder = d.encoder.detach() * (d.output_scale / d.input_scale)
    bias = d.encoder_bias.detach() * d.output_scale - encoder @ d.input_mean
    weights = {
        "W_enc": encoder.T.contiguous(),
        "b_enc": bias,
        "W_dec": d.decoder.detach().clone(),
        "b_dec": d.decoder_bias.detach() * d.output_scale + d.output_mean,
    }
    if d.k is None:
        weights["threshold"] = torch.full_like(bias, d.threshold * d.output_scale)
    return weights


def sae_config(one: Recipe, **extra: Any) -> dict[str, Any]:
    """What SAELens's `cfg.json` says about a dictionary."""
    metadata = {
        "model_name": MODEL_NAME,
        "model_class_name": "TransformerBridge",
        "hook_name": one.hook_name,
        "prepend_bos": True,
        "context_size": 256,
        "exclude_special_tokens": True,
        "sae_lens_version": version("sae-lens"),
        "sae_lens_training_version": version("sae-lens"),
    }
    config = {
        "d_in": D_MODEL,
        "d_sae": one.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        # as published z dictionaries do: they read and write `[..., heads, d_head]`, which is what hooks at hook_z see
        "reshape_activations": "hook_z" if one.kind == "z" else "none",
        "architecture": "topk" if one.is_topk else "jumprelu_transcoder",
        "metadata": metadata,
    }
    if one.is_topk:
        config["k"] = one.k
    if one.kind == "transcoder":
        config["d_out"] = D_MODEL
        metadata["hook_name_out"] = one.hook_name_out
    return config | extra


def stored_dtype(name: str, weight: Tensor) -> torch.dtype:
    if weight.dim() == 1:
        return torch.float32
    # What only mixes or writes codes bears 8 bits. An encoder decides which latents are active, and does not.
    return torch.float8_e4m3fn if name.endswith(("W_dec", "v_ctx.weight", "c_proj.weight")) else torch.float16


def write_dictionary(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """One dictionary as a folder that `SAE.load_from_disk` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: w.to(stored_dtype(name, w)).contiguous() for name, w in weights.items()}
    partial = folder / "sae_weights.partial"
    save_file(stored, partial)
    if partial.stat().st_size > MOST_BYTES_A_FILE:
        raise ValueError(f"{folder.name} takes {partial.stat().st_size} bytes: more than {MOST_BYTES_A_FILE}")
    partial.rename(folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def config_and_weights(one: Recipe) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What SAELens's two files say about a trained dictionary."""
    if one.kind != "temporal":
        return sae_config(one), folded(load_dictionary(one.name))
    sae = TemporalTraining.load(one, state_path(one.name)).sae
    extra = {key: value for key, value in sae.cfg.to_dict().items() if key not in ("metadata", "device", "dtype")}
    return sae_config(one, **extra), {name: weight.detach() for name, weight in sae.state_dict().items()}


def export(name: str, into: Path) -> Path:
    """Write one trained dictionary under `into/<name>`."""
    write_dictionary(into / name, *config_and_weights(recipe(name)))
    return into / name


def candidates_dir() -> Path:
    """Where exported dictionaries wait until they are judged good enough for `assets/`."""
    return work_dir("dictionaries")


def trained_tokens(one: Recipe) -> int:
    """Tokens seen so far, repeats included."""
    state = torch.load(state_path(one.name))
    return state["tokens"] if one.kind == "temporal" else state["steps"] * BATCH


def write_manifest(into: Path) -> None:
    """Checksums, metrics, seeds, tokens and versions of all dictionaries in a folder."""
    metrics_path, corpus_path = work_dir() / "metrics.json", work_dir("tokens") / "corpus_manifest.json"
    metrics = json.loads(metrics_path.read_text("utf-8")) if metrics_path.exists() else {}
    entries = {}
    for name, one in RECIPES.items():
        weights = into / name / "sae_weights.safetensors"
        if not weights.exists():
            continue
        files = [weights, into / name / "cfg.json"]
        entries[name] = {
            "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
            "bytes": sum(path.stat().st_size for path in files),
            "hook_name": one.hook_name,
            "hook_name_out": one.hook_name_out,
            "d_sae": one.d_sae,
            "k": one.k,
            "training_tokens": trained_tokens(one),
            "seed": one.seed,
            "earlier": one.earlier,
            "metrics": metrics.get(name, {}),
        }
    manifest = {
        "model": MODEL_NAME,
        "versions": {package: version(package) for package in ("sae-lens", "torch", "transformers")},
        "corpus": json.loads(corpus_path.read_text("utf-8"))["splits"] if corpus_path.exists() else None,
        "pairs": metrics.get("pairs", {}),
        "dictionaries": entries,
    }
    (into / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write trained dictionaries in SAELens's format.")
    parser.add_argument("names", nargs="*", help="default: all that are trained")
    parser.add_argument("--ship", action="store_true", help="into assets/dictionaries instead of the cache")
    arguments = parser.parse_args()
    into = DICTIONARIES if arguments.ship else candidates_dir()
    for name in arguments.names or [name for name in RECIPES if state_path(name).exists()]:
        print(export(name, into))
    write_manifest(into)


if __name__ == "__main__":
    main()
