"""`course doctor`: every kind of trouble is recognised and comes with what to do about it."""

import importlib.metadata
import sys
from collections import namedtuple

import pytest

import course
from utils.errors import CourseError
from utils.models import doctor, model_files
from utils.models.doctor import Finding
from utils.models.profiles import PROFILES


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what takes seconds: importing torch, asking the hub, hashing the model."""
    monkeypatch.setattr(doctor, "torch_import", lambda: Finding("torch", "ok", "can be imported"))
    monkeypatch.setattr(doctor, "hub_trouble", lambda: "switched off")
    monkeypatch.setattr(model_files, "faults", lambda _folder, thorough=False: [])


@pytest.fixture
def no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "cache"))


def installed(monkeypatch, **versions):
    real = importlib.metadata.version

    def version(name):
        found = versions.get(name.replace("-", "_"), "real")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name) if found == "real" else found

    monkeypatch.setattr(importlib.metadata, "version", version)


def states(findings, topic):
    return {finding.state for finding in findings if finding.topic == topic}


def test_healthy_machine(quick, capsys):
    assert course.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for topic in ("python", "torch", "cores", "memory", "disk", "cache", "smollm2", "assets", "gpt2", "gemma2"):
        assert f" {topic} " in said
    assert "The course can run here" in said


def test_trouble_sets_the_exit_status(quick, monkeypatch, capsys):
    installed(monkeypatch, transformers=None)
    assert course.main(["doctor"]) == 1
    assert "transformers is not installed" in capsys.readouterr().out


def test_hub_that_does_not_answer_is_no_trouble_for_the_default_profile(quick):
    findings = doctor.hub_profiles()
    assert {finding.state for finding in findings} <= {"ok", "note"}


def test_other_version_is_a_note(monkeypatch):
    installed(monkeypatch, plotly="6.0.0")
    assert states(doctor.packages(), "plotly") == {"note"}


def test_build_of_torch_does_not_matter(monkeypatch):
    installed(monkeypatch, torch="2.13.0+cu130")
    assert states(doctor.packages(), "torch") == {"ok"}


def test_platforms_newer_torch_is_a_note_and_an_old_one_trouble(monkeypatch):
    installed(monkeypatch, torch="2.14.1")
    assert states(doctor.packages(), "torch") == {"note"}
    installed(monkeypatch, torch="1.8.0")
    (finding,) = [finding for finding in doctor.packages() if finding.topic == "torch"]
    assert finding.state == "TROUBLE"
    assert "leaves torch alone" in finding.advice


def test_torch_that_does_not_start(monkeypatch):
    monkeypatch.setattr(
        doctor.subprocess,
        "run",
        lambda *_args, **_kwargs: namedtuple("Done", "returncode stdout stderr")(1, "", "x\nImportError: libgomp"),
    )
    finding = doctor.torch_import()
    assert finding.state == "TROUBLE"
    assert "libgomp" in finding.text


def test_wrong_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert doctor.python_version().state == "TROUBLE"


def test_little_memory(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("M", "available total")(0.5e9, 8e9))
    finding = doctor.memory(PROFILES["smollm2"])
    assert finding.state == "TROUBLE"
    assert "close other notebooks" in finding.advice


def test_no_disk_matters_only_while_there_is_no_model(no_model, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: namedtuple("U", "free")(1e8))
    assert doctor.disk().state == "TROUBLE"
    monkeypatch.setattr(model_files, "faults", lambda _folder: [])
    assert doctor.disk().state == "ok"


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor.cache()
    assert finding.state == "TROUBLE"
    assert "export SPARSE_CIRCUITS_CACHE" in finding.advice


def test_model_not_fetched_or_damaged(no_model):
    finding = doctor.default_model(thorough=True)
    assert (finding.state, finding.advice) == ("TROUBLE", "run `course model`")
    model_files.model_dir().mkdir(parents=True)
    assert "damaged" in doctor.default_model(thorough=True).text


def test_verify_environment_says_yes_and_loads_nothing_heavy(quick, capsys):
    doctor.verify_environment()
    assert "memory" in capsys.readouterr().out


def test_verify_environment_does_not_mind_a_model_still_to_be_fetched(no_model, capsys):
    doctor.verify_environment()
    assert "not been fetched yet" in capsys.readouterr().out


def test_verify_environment_stops_with_what_to_do(quick, monkeypatch):
    installed(monkeypatch, torch=None)
    with pytest.raises(CourseError, match="torch is not installed: run `make lab`"):
        doctor.verify_environment()


def test_verify_environment_for_hub_profiles(quick, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_args: None)
    with pytest.raises(CourseError, match=r"cannot be fetched.*the default profile needs no hub"):
        doctor.verify_environment("gpt2")
    monkeypatch.setattr(doctor, "hub_trouble", lambda: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(CourseError, match="gated and there is no token"):
        doctor.verify_environment("gemma2")
    with pytest.raises(CourseError, match="There are: smollm2"):
        doctor.verify_environment("gpt3")
