"""The environment's maker: idempotent, interruptible, one at a time, and plain about what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections import namedtuple

import pytest

import bootstrap
from tests.course.index_stand_in import index_stand_in
from utils.paths import ROOT, requirement_pins

Version = namedtuple("Version", "major minor micro")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own; `project.steps` are the commands that would have been run in it."""
    for name in ("requirements.txt", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text(f"# {name}\ntorch==2.13.0\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / ".venv.lock")
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / ".venv" / "course-stamp.json")
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(bootstrap, "CONSTRAINTS", tmp_path / "requirements.lock")
    monkeypatch.setattr(bootstrap, "INPUTS", (bootstrap.REQUIREMENTS, bootstrap.CONSTRAINTS))
    steps = []
    monkeypatch.setattr(bootstrap, "run", lambda command, **_: steps.append(" ".join(map(str, command))))
    return namedtuple("Project", "folder steps")(tmp_path, steps)


def test_second_run_does_nothing(project):
    assert bootstrap.main() == 0
    assert any("--requirement" in step for step in project.steps)
    assert any("--editable" in step for step in project.steps)
    project.steps.clear()
    assert bootstrap.main() == 0
    assert project.steps == []


def test_changed_requirements_update_in_place(project):
    bootstrap.main()
    (project.folder / ".venv" / "installed").touch()
    (project.folder / "requirements.txt").write_text("torch==2.13.1\n")
    project.steps.clear()
    assert bootstrap.main() == 0
    assert any("--requirement" in step for step in project.steps)
    assert (project.folder / ".venv" / "installed").exists()


def test_interrupted_run_starts_afresh(project, monkeypatch, capsys):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "pip", interrupt)
        assert bootstrap.main() == 130
    assert "again" in capsys.readouterr().err
    (project.folder / ".venv" / "half-installed").touch()
    assert bootstrap.main() == 0
    assert not (project.folder / ".venv" / "half-installed").exists()
    assert json.loads(bootstrap.STAMP.read_text()) == bootstrap.wanted_stamp()


def test_moved_folder_is_made_anew(project):
    bootstrap.main()
    bootstrap.STAMP.write_text(json.dumps({**bootstrap.wanted_stamp(), "root": "/elsewhere"}))
    (project.folder / ".venv" / "with-old-paths").touch()
    bootstrap.main()
    assert not (project.folder / ".venv" / "with-old-paths").exists()


def test_second_process_waits_and_says_so(project, capfd):
    holder = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(bootstrap.LOCK)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    started = time.monotonic()
    assert bootstrap.main() == 0
    holder.wait()
    assert time.monotonic() - started > 0.4
    assert "waiting" in capfd.readouterr().out


HOLD_LOCK = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(0.5)
"""


def test_pip_without_ensurepip(project, monkeypatch):
    # Debian without python3-venv: the system's pip is all there is.
    monkeypatch.setattr(bootstrap, "can_run", lambda code: "ensurepip" not in code)
    bootstrap.main()
    assert any(f"-m pip --python {bootstrap.VENV_PYTHON} install" in step for step in project.steps)


def test_neither_pip_nor_ensurepip(project, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "can_run", lambda _code: False)
    assert bootstrap.main() == 1
    assert "python3-pip" in capsys.readouterr().err


def test_wrong_python(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", Version(3, 9, 2))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/usr/bin/x" if name == "python3.12" else None)
    assert bootstrap.main() == 1
    said = capsys.readouterr().err
    assert "3.9.2" in said
    assert "make lab PYTHON=python3.12" in said
    assert not project.steps


def test_no_disk(project, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _path: namedtuple("U", "free")(1.2e9))
    assert bootstrap.main() == 1
    assert "1.2 GB are free" in capsys.readouterr().err


# Which torch


@pytest.fixture
def laptop(project, monkeypatch):
    """A Linux machine without a GPU, where pip knows no torch but the package index's; `refused` names what fails."""
    machine = namedtuple("Laptop", "folder steps refused")(*project, {"--no-index"})

    def run(command, **_):
        step = " ".join(map(str, command))
        project.steps.append(step)
        if any(sign in step for sign in machine.refused):
            raise bootstrap.SetUpError("refused")

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(bootstrap, "NVIDIA_DRIVER", project.folder / "no-driver")
    monkeypatch.setenv("PATH", str(project.folder))
    return machine


def torch_steps(project) -> list[str]:
    """What was run before the requirements, as words that tell the steps apart."""
    signs = ("--no-index", "--only-binary uv", "--torch-backend cpu", "--requirement")
    steps = [sign for step in project.steps for sign in signs if sign in step]
    return steps[: steps.index("--requirement")]


def test_without_a_gpu_torch_is_the_cpu_build(laptop, capsys):
    assert bootstrap.main() == 0
    assert torch_steps(laptop) == ["--no-index", "--only-binary uv", "--torch-backend cpu"]
    assert any(step.endswith("--torch-backend cpu torch==2.13.0") for step in laptop.steps)
    assert "CUDA" not in capsys.readouterr().out


def test_torch_on_disk_or_already_there_is_taken(laptop, capsys):
    laptop.refused.clear()
    assert bootstrap.main() == 0
    assert torch_steps(laptop) == ["--no-index"]
    assert "build" not in capsys.readouterr().out


def test_the_index_of_other_systems_has_the_cpu_build(laptop, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert bootstrap.main() == 0
    assert torch_steps(laptop) == ["--no-index"]
    assert "build" not in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["--only-binary uv", "--torch-backend cpu"])
def test_without_the_cpu_build_the_other_one_is_announced(laptop, capsys, missing):
    laptop.refused.add(missing)
    assert bootstrap.main() == 0
    assert torch_steps(laptop)[-1] == missing
    assert re.search(r"cannot be had from here.*\n.*GB and takes .* GB of disk", capsys.readouterr().out)


def give_driver(folder):
    (folder / "no-driver").write_text("NVRM version")


def give_tool(folder):
    (folder / "nvidia-smi").write_text("#!/bin/sh\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize("give", [give_driver, give_tool])
def test_with_a_gpu_the_cost_is_told_first(laptop, capsys, give):
    give(laptop.folder)
    assert bootstrap.main() == 0
    assert torch_steps(laptop) == ["--no-index"]
    assert re.search(r"NVIDIA GPU.*CUDA.*\n.*GB and takes .* GB of disk", capsys.readouterr().out)


def test_a_tool_without_a_gpu_is_no_gpu(laptop):
    give_tool(laptop.folder)
    (laptop.folder / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert bootstrap.main() == 0
    assert "--torch-backend cpu" in torch_steps(laptop)


def test_a_disk_too_small_for_cuda_stops_before_it_is_fetched(laptop, monkeypatch, capsys):
    give_driver(laptop.folder)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _path: namedtuple("U", "free")(4.0e9))
    assert bootstrap.main() == 1
    assert "4.0 GB are free" in capsys.readouterr().err
    assert not any("--requirement" in step for step in laptop.steps)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, for the stand-in's certificates")
def test_uv_takes_torch_from_the_index_of_cpu_builds(project, tmp_path, monkeypatch, capfd):
    """The real uv against a stand-in for PyTorch's index, which serves a wheel of nothing."""
    monkeypatch.undo()
    wheels, certificates, tools = (tmp_path / name for name in ("wheels", "certificates", "tools"))
    for folder in (wheels, certificates, tools):
        folder.mkdir()
    pinned = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("uv=="))
    get_uv = f"download --quiet --no-deps --only-binary uv --retries 0 --dest {tools} {pinned}"
    if subprocess.run([sys.executable, "-m", "pip", *get_uv.split()], capture_output=True).returncode:
        pytest.skip("needs uv from the package index")
    empty_wheel(wheels, "torch", "2.13.0+cpu")
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    bootstrap.start_afresh()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tools), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with index_stand_in(wheels, certificates) as settings:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert bootstrap.fetch_cpu_build("torch==2.13.0"), capfd.readouterr().err
        assert not bootstrap.fetch_cpu_build("torch==2.13.1"), "the stand-in has no such version"
    version = "from importlib.metadata import version; print(version('torch'))"
    done = subprocess.run([bootstrap.VENV_PYTHON, "-c", version], capture_output=True, text=True)
    assert done.stdout == "2.13.0+cpu\n"
    assert sorted(path.name for path in bootstrap.VENV.iterdir() if path.name.startswith("tmp")) == []


def empty_wheel(folder, name: str, version: str) -> None:
    """A wheel for any machine, with nothing in it."""
    info = f"{name}-{version}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "".join(f"{info}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, content in files.items():
            wheel.writestr(f"{info}/{file}", content)


# What went wrong


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "Free some space"),
        ("NewConnectionError(': Failed to establish a new connection')\nNo matching distribution found", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "pinned versions"),
        ("something never seen before", "something never seen before"),
    ],
)
def test_failures_are_explained(log, advice):
    assert advice in bootstrap.explain(log, ["pip", "install"])


def test_failing_step_is_explained_from_its_log(project, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(bootstrap.SetUpError, match="The disk is full"):
        bootstrap.run([sys.executable, "-c", "print('No space left on device'); exit(1)"], quiet=True)


def test_lock_holds_the_pins():
    locked = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    )
    locked = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    for name, version in requirement_pins().items():
        assert locked[name.lower().replace("_", "-")] == version, name
    assert not [name for name in locked if re.match("nvidia|cuda|triton", name)], "the lock must hold without a GPU"
    assert not [version for version in locked.values() if "+" in version], "the lock must hold for any build of torch"
