"""The environment's maker: idempotent, interruptible, one at a time, and plain about what is wrong."""

import json
import re
import subprocess
import sys
import time
from collections import namedtuple

import pytest

import bootstrap
from utils.paths import ROOT, requirement_pins

Version = namedtuple("Version", "major minor micro")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own; `project.steps` are the commands that would have been run in it."""
    for name in ("requirements.txt", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / ".venv.lock")
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / ".venv" / "course-stamp.json")
    monkeypatch.setattr(bootstrap, "INPUTS", tuple(tmp_path / n for n in ("requirements.txt", "requirements.lock")))
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
    (project.folder / "requirements.txt").write_text("tqdm==4.70.1\n")
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
