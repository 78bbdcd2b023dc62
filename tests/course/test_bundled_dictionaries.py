"""The dictionaries as they are shipped: their size, their checksums; plain SAELens opens them, the model takes them."""

import json

import pytest
import torch

pytest.importorskip("recipes")
pytest.importorskip("sae_lens")

from sae_lens import SAE

from recipes import report
from recipes.dictionary_set import RECIPES
from utils import load
from utils.models.dictionaries import bundled_names, dictionary_faults
from utils.paths import ASSETS, DICTIONARIES


def test_the_whole_set_is_here_and_undamaged():
    assert set(bundled_names()) == set(RECIPES)
    assert [fault for name in bundled_names() for fault in dictionary_faults(name)] == []


def test_sizes():
    files = [path for room in ("dictionaries", "top_examples") for path in (ASSETS / room).rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 45e6
    assert sum(path.stat().st_size for path in files) <= 120e6


@pytest.mark.parametrize("name", RECIPES)
def test_plain_saelens_opens_each(name):
    sae = SAE.load_from_disk(DICTIONARIES / name, device="cpu", dtype="float32")
    assert sae.cfg.metadata.hook_name == RECIPES[name].hook_name
    assert all(weight.isfinite().all() for weight in sae.state_dict().values())
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 0.05  # 8-bit rows


@pytest.mark.parametrize("name", ["resid_pre.6", "z.16", "transcoder.8"])
def test_with_the_error_term_the_logits_stay(name):
    course = load()
    tokens = course.model.to_tokens("The Eiffel tower is in the city of")
    with torch.no_grad():
        plain = course.model(tokens)
        spliced, _ = course.model.run_with_cache_with_saes(
            tokens, saes=[course.dictionaries[name]], use_error_term=True
        )
    assert (plain - spliced).abs().max() < 1e-3


def test_the_table_of_metrics_is_the_manifests():
    manifest = json.loads((DICTIONARIES / "manifest.json").read_text(encoding="utf-8"))
    assert all(entry["metrics"] for entry in manifest["dictionaries"].values())
    readme = report.README.read_text(encoding="utf-8")
    assert readme == report.with_report(readme, manifest), "run `python -m recipes.report`"


@pytest.mark.parametrize("name", ["resid_pre.6", "z.16", "transcoder.8"])
def test_hooks_fire_once_where_a_dictionary_has_been(name):
    model, sae = load().model, load().dictionaries[name]
    tokens = model.to_tokens("The Eiffel tower")
    places = {sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out or sae.cfg.metadata.hook_name}

    def shapes():
        seen = []
        hooks = [(place, lambda x, hook, place=place: seen.append((place, tuple(x.shape)))) for place in sorted(places)]
        with torch.no_grad():
            model.run_with_hooks(tokens, fwd_hooks=hooks)
        return seen

    before = shapes()
    for _ in range(2):
        with torch.no_grad():
            model.run_with_saes(tokens, saes=[sae])
    assert shapes() == before
    assert len(before) == len(places)
