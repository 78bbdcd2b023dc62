"""`load()`: the real default model, and the hub profiles' real loading code against a stand-in for the hub."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import utils
from tests.course.hub_stand_in import hub, write_tiny_gpt2, write_tiny_sae
from utils.errors import CourseError
from utils.models import dictionaries, loading, model_files
from utils.models.dictionaries import Dictionaries
from utils.models.profiles import PROFILES, first_position
from utils.paths import ROOT

PROMPT = "The Eiffel tower is in the city of"


def python(code, **environment):
    """Run code in an interpreter of its own, in the course's folder."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_import_is_cheap():
    done = python(
        "import sys, time; before = time.perf_counter(); import utils; spent = time.perf_counter() - before\n"
        "assert spent < 0.3, spent\n"
        "heavy = {'torch', 'numpy', 'transformers', 'sae_lens', 'plotly', 'IPython'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in utils.__all__:
        assert getattr(utils, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        utils.lod  # noqa: B018


def test_second_load_is_free():
    assert utils.load() is utils.load("smollm2")


def test_default_model_is_ready_to_work_with():
    import torch

    course = utils.load()
    model = course.model
    assert model.cfg.model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.n_heads, model.cfg.d_vocab) == (30, 576, 9, 49152)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    tokens = model.to_tokens(PROMPT)
    assert tokens[0, 0] == course.tokenizer.bos_token_id
    with torch.no_grad():
        logits = model(tokens)[0, -1]
    assert course.tokenizer.decode(logits.argmax()) == " Paris"
    assert not course.profile.sink_in_training


def test_default_weights_are_unprocessed():
    import torch
    from transformers import AutoModelForCausalLM

    model = utils.load().model
    tokens = model.to_tokens(PROMPT)
    plain = AutoModelForCausalLM.from_pretrained(model_files.ensure_model(), dtype=torch.float32)
    with torch.no_grad():
        streams = plain(tokens, output_hidden_states=True).hidden_states
        _, cache = model.run_with_cache(tokens, names_filter="blocks.9.hook_resid_pre")
    torch.testing.assert_close(cache["blocks.9.hook_resid_pre"], streams[9], rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_loads_without_a_network():
    done = python(
        "import socket\n"
        "def refuse(*_): raise OSError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import utils; utils.load()",
        HTTPS_PROXY="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_unknown_profile():
    with pytest.raises(CourseError, match="There are: smollm2, gpt2, gemma2"):
        utils.load("smolm2")


# ---- bundled dictionaries


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A folder of bundled dictionaries with a tiny random one in half precision in it."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "resid_pre.9"
    write_tiny_sae(folder, "blocks.9.hook_resid_pre", width=576)
    weights = folder / "sae_weights.safetensors"
    save_file({name: value.to(torch.float16) for name, value in load_file(weights).items()}, weights)
    sums = {path.name: model_files.sha256(path) for path in folder.iterdir()}
    (tmp_path / "manifest.json").write_text(json.dumps({"dictionaries": {"resid_pre.9": {"sha256": sums}}}))
    monkeypatch.setattr(dictionaries, "DICTIONARIES", tmp_path)
    return tmp_path


def test_bundled_dictionary_is_loaded_once_when_asked_for(bundle):
    import torch

    dictionaries = Dictionaries(PROFILES["smollm2"], "cpu")
    assert list(dictionaries) == ["resid_pre.9"]
    assert dictionaries.loaded() == {}
    sae = dictionaries["resid_pre.9"]
    assert dictionaries["resid_pre.9"] is sae
    assert dictionaries.loaded() == {"resid_pre.9": sae}
    assert sae.W_dec.dtype == torch.float32
    assert not any(weight.requires_grad for weight in sae.parameters())
    model = utils.load().model
    tokens = model.to_tokens(PROMPT)
    with torch.no_grad(), model.saes(saes=[sae], use_error_term=True):
        spliced = model(tokens)
    with torch.no_grad():
        torch.testing.assert_close(spliced, model(tokens), rtol=1e-3, atol=1e-2)


def test_unknown_dictionary_lists_the_known(bundle):
    with pytest.raises(CourseError, match=r"no dictionary 'z\.16'. It has: resid_pre\.9"):
        Dictionaries(PROFILES["smollm2"], "cpu")["z.16"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_damaged_dictionary_says_how_to_restore_it(bundle, damage):
    damage(bundle / "resid_pre.9" / "sae_weights.safetensors")
    with pytest.raises(CourseError, match=r"sae_weights\.safetensors is .*git checkout -- .*resid_pre\.9"):
        Dictionaries(PROFILES["smollm2"], "cpu")["resid_pre.9"]


def test_copy_without_dictionaries(tmp_path, monkeypatch):
    monkeypatch.setattr(dictionaries, "DICTIONARIES", tmp_path / "none")
    assert list(Dictionaries(PROFILES["smollm2"], "cpu")) == []


# ---- hub profiles

LOAD_FROM_HUB = """
import json, torch, utils
from utils.errors import CourseError

course = utils.load("gpt2")
model = course.model
tokens = model.to_tokens("The Eiffel tower is in Paris")
saes = [course.dictionaries["resid_pre.1"], course.dictionaries["transcoder.1"]]
logits, cache = model.run_with_cache(tokens)
with model.saes(saes=saes, use_error_term=True):
    spliced = model(tokens)

def refusal(action):
    try:
        action()
    except CourseError as error:
        return str(error)

print(json.dumps({
    "off_centre": cache["blocks.1.hook_resid_pre"].mean(-1).abs().max().item(),
    "changed": (logits - spliced).abs().max().item(),
    "missing": refusal(lambda: course.dictionaries["resid_pre.2"]),
    "gated": refusal(lambda: utils.load("gemma2")),
}))
"""


@pytest.mark.slow
@pytest.mark.hub
def test_hub_profile_end_to_end(tmp_path):
    """The real loading code, from the first request to a spliced transcoder, on small stand-in files."""
    root = tmp_path / "hub"
    write_tiny_gpt2(root)
    (root / "google" / "gemma-2-2b").mkdir(parents=True)
    (root / "google" / "gemma-2-2b" / "config.json").write_text("{}")
    with hub(root, gated=("google/gemma-2-2b",)) as address:
        hf = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}
        done = python(LOAD_FROM_HUB, **hf, no_proxy="127.0.0.1", HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["off_centre"] < 1e-5, "this profile's writing weights are centred"
    assert found["changed"] < 1e-4
    assert "does not have what profile gpt2 asks for" in found["missing"]
    assert "is gated: accept its licence" in found["gated"]
    # What is in the hub's cache needs the hub no more.
    again = python("import utils; utils.load('gpt2').dictionaries['resid_pre.1']", **hf, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


@pytest.fixture
def empty_hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_args: None)


@pytest.mark.hub
def test_hub_that_does_not_answer(empty_hub_cache):
    with pytest.raises(CourseError, match=r"does not answer.*The default profile needs no hub"):
        utils.load("gpt2")


@pytest.mark.hub
def test_gated_model_without_a_token(empty_hub_cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(CourseError, match="access token"):
        utils.load("gemma2")


def test_too_little_memory(monkeypatch):
    import psutil
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4e9}))
    with pytest.raises(CourseError, match=r"4\.0 GB are free"):
        loading.device_for(PROFILES["gemma2"])


def test_published_names_are_known_to_saelens():
    """The releases that the profiles name exist in SAELens's own list, with every layer."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    for profile in PROFILES.values():
        for place in profile.releases.values():
            if "/" in place.release:  # a repository by its own name
                continue
            ids = {place.sae_id.format(layer=layer) for layer in place.layers}
            assert ids <= set(known[place.release].saes_map)


def test_nothing_is_left_behind_by_a_failed_load(monkeypatch):
    monkeypatch.setattr(loading, "_load", lambda _profile: (_ for _ in ()).throw(CourseError("no")))
    with pytest.raises(CourseError):
        loading.load("gpt2")
    assert "gpt2" not in loading._loaded


def test_the_first_position_that_counts_is_the_profiles():
    def named(name):
        return SimpleNamespace(cfg=SimpleNamespace(model_name=name))

    assert first_position(named(PROFILES["smollm2"].model_id)) == 1
    assert first_position(named("gpt2")) == 0
    with pytest.raises(CourseError, match="belongs to no profile"):
        first_position(named("some-model"))
