"""One click: a lone notebook on Colab and Kaggle, simulated, and what the set-up cell says when things are wrong."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from authoring.execute import Run, execute
from authoring.fill import fill, read_notebook
from authoring.setup_cell import setup_source
from utils import setup_cell
from utils.chapters import all_chapters
from utils.errors import CourseError
from utils.notebook.check_view import ROWS_MIME
from utils.paths import ROOT
from utils.paths import repository as repository_address

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
MISSING = ("tabulate", "jaxtyping")  # pure Python; the check's table and the stub's type hints need them
ROOMS = ("utils", "tests", "solutions", "chapters", "course.py", "pyproject.toml", "requirements.txt")
QUIET_GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_TERMINAL_PROMPT": "0"}


# The simulation


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """This course as a git repository elsewhere on the machine."""
    root = tmp_path_factory.mktemp("remote") / "course"
    root.mkdir()
    for room in ROOMS:
        source = ROOT / room
        if source.is_dir():
            shutil.copytree(source, root / room, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, root / room)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath="]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "course"]):
        subprocess.run(["git", *command], cwd=root, check=True, env={**os.environ, **QUIET_GIT})
    return root


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """What stands for the package index: wheels of the missing packages, made from the installed files."""
    folder = tmp_path_factory.mktemp("index")
    for name in MISSING:
        installed = importlib.metadata.distribution(name)
        stem = f"{name}-{installed.version}"
        files = {str(entry): entry.read_binary() for entry in installed.files if _belongs_in_a_wheel(entry)}
        record = "".join(f"{path},sha256={_record_hash(content)},{len(content)}\n" for path, content in files.items())
        files[f"{stem}.dist-info/RECORD"] = (record + f"{stem}.dist-info/RECORD,,\n").encode()
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
    return folder


def _belongs_in_a_wheel(entry: importlib.metadata.PackagePath) -> bool:
    made_by_pip = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    return (
        ".." not in entry.parts
        and entry.suffix != ".pyc"
        and not (entry.parts[0].endswith(".dist-info") and entry.name in made_by_pip)
    )


def _record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture
def platform_python(tmp_path) -> Path:
    """A platform's interpreter: torch and nearly everything is there, two packages of the course are not."""
    there = tmp_path / "platform"
    there.mkdir()
    for entry in SITE_PACKAGES.iterdir():
        hidden = (
            entry.name.split("-")[0].lower() in MISSING
            or entry.suffix == ".pth"
            or entry.name.startswith("__editable__")
        )
        if not hidden and "sparse_circuits" not in entry.name:
            (there / entry.name).symlink_to(entry)
    venv.create(tmp_path / "session", with_pip=False, symlinks=True)
    python = tmp_path / "session" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    (own / "platform.pth").write_text(f"{there}\n")
    return python


def torch_files() -> dict[str, tuple]:
    marks = {}
    for entry in importlib.metadata.distribution("torch").files:
        path = Path(entry.locate())
        if path.exists() and path.suffix != ".pyc":
            state = path.stat()
            content = path.read_bytes() if path.name in ("__init__.py", "version.py", "METADATA") else b""
            marks[str(entry)] = (state.st_size, state.st_mtime_ns, hashlib.sha256(content).hexdigest())
    return marks


def lone_notebook() -> dict:
    """Chapter 03 with a right answer, up to and with its first check."""
    (chapter,) = [one for one in all_chapters() if one.number == "03"]
    notebook, missing = fill(read_notebook(chapter), chapter.solution.read_text(encoding="utf-8"))
    assert not missing
    roles = [cell["metadata"].get("course", {}).get("role") for cell in notebook["cells"]]
    return {**notebook, "cells": notebook["cells"][: roles.index("check") + 1]}


def outputs(run: Run, role: str) -> list[dict]:
    (cell,) = [cell for cell in run.notebook["cells"] if cell["metadata"].get("course", {}).get("role") == role]
    return cell["outputs"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="the platforms' installer, pip, is not in this environment"
)
@pytest.mark.parametrize("platform", ["Colab", "Kaggle"])
def test_a_lone_notebook_runs_to_its_first_passing_check(platform, platform_python, repository, wheels, tmp_path):
    before = torch_files()
    alone = tmp_path / "content"
    alone.mkdir()
    (alone / "03_sparse_tensor.ipynb").write_text(json.dumps(lone_notebook()))
    settings = {
        **QUIET_GIT,
        "COURSE_REPOSITORY": str(repository),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONPATH": "",
    }
    if platform == "Colab":
        fake = next((tmp_path / "session" / "lib").glob("python*")) / "site-packages" / "google" / "colab"
        fake.mkdir(parents=True)
        (fake / "__init__.py").write_text("")
    else:
        settings["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
    run = execute(json.loads((alone / "03_sparse_tensor.ipynb").read_text()), alone, settings, str(platform_python))
    said = "".join(output.get("text", "") for output in outputs(run, "setup"))
    errors = [
        output["evalue"]
        for cell in run.notebook["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    assert errors == [] and not run.stopped
    assert f"Chapter 03 is ready on {platform}: installed jaxtyping, tabulate; torch" in said
    rows = [
        row for output in outputs(run, "check") for row in output.get("data", {}).get(ROWS_MIME, {}).get("rows", [])
    ]
    assert rows and all(row["passed"] for row in rows)
    own = [path.name for path in (tmp_path / "session").glob("lib/*/site-packages/*.dist-info")]
    assert sorted(name.split("-")[0] for name in own) == sorted(MISSING), "installed what was missing, and nothing else"
    assert torch_files() == before
    assert sorted(path.name for path in alone.iterdir()) == ["03_sparse_tensor.ipynb", Path(repository_address()).name]


# What the set-up cell says


def run_cell(folder: Path, **settings: str) -> subprocess.CompletedProcess:
    cell = setup_source("03", "https://github.com/someone/some-course")
    environment = {**os.environ, **QUIET_GIT, **settings}
    return subprocess.run(
        [sys.executable, "-c", cell], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_inside_the_course_the_cell_does_nothing_and_says_so():
    done = run_cell(ROOT / "chapters", COURSE_REPOSITORY="/nowhere")
    assert done.stdout == "Chapter 03 is ready.\n", done.stderr


def test_a_course_that_cannot_be_fetched_is_explained(tmp_path):
    done = run_cell(tmp_path, COURSE_REPOSITORY=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    last = done.stderr.strip().splitlines()
    assert any(
        "RuntimeError: Could not fetch the course." in line and "On Kaggle: Settings, Internet" in line for line in last
    )
    assert "nowhere' does not exist" in done.stderr


def test_missing_git_is_named(tmp_path):
    done = run_cell(tmp_path, PATH=str(tmp_path), COURSE_REPOSITORY="/nowhere")
    assert "Could not fetch the course" in done.stderr and "'git'" in done.stderr


@pytest.fixture
def elsewhere(monkeypatch):
    """No platform, whatever runs the tests."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup_cell.importlib.util, "find_spec", lambda name: None)


def test_platforms_are_recognised(elsewhere, monkeypatch):
    assert setup_cell.hosted_platform() is None
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert setup_cell.hosted_platform() == "Colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert setup_cell.hosted_platform() == "Kaggle"


def test_a_local_python_that_lacks_packages_is_told_what_to_run(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(setup_cell, "missing_requirements", lambda: {"plotly": "7.1.0"})
    setup_cell.ready("03")
    assert "lacks plotly. Run `make lab`" in capsys.readouterr().out


def test_torch_and_its_like_are_never_wanted(monkeypatch):
    pins = {
        "torch": "2.13.0",
        "Torchvision": "1",
        "nvidia-cublas-cu12": "1",
        "triton": "3",
        "jupyterlab": "4",
        "sae-lens[x]": "6",
    }
    monkeypatch.setattr(setup_cell, "requirement_pins", lambda: pins)
    monkeypatch.setattr(setup_cell, "_is_installed", lambda name: False)
    assert setup_cell.missing_requirements() == {"sae-lens": "6"}


LIVE = setup_cell.Environment(
    {"torch": "2.9.0+cu126", "numpy": "2.0.2", "pandas": "2.2.2", "odd": "not a version"}, {"torch/a.so": (1, 2)}
)


def after(**versions: str) -> setup_cell.Environment:
    return setup_cell.Environment({**LIVE.versions, **versions}, dict(LIVE.files))


@pytest.fixture
def pip(monkeypatch):
    """Scripted pip: its answers ("" is success), its constraints, and what is installed before and after."""
    script = SimpleNamespace(answers=[""], constraints=[], environments=[LIVE, after(tabulate="0.10.0")])

    def install(wanted: list[str], constraints: str) -> str:
        script.constraints.append(constraints)
        return script.answers[len(script.constraints) - 1]

    monkeypatch.setattr(setup_cell, "_pip_install", install)
    monkeypatch.setattr(setup_cell.Environment, "now", lambda: script.environments.pop(0))
    return script


def test_everything_installed_is_kept_at_its_live_version(pip):
    assert setup_cell.install({"tabulate": "0.10.0"}, "Colab") == "installed tabulate; torch 2.9.0+cu126 is untouched"
    assert pip.constraints == ["numpy==2.0.2\npandas==2.2.2\ntorch==2.9.0+cu126\n"]


def test_when_that_cannot_be_solved_only_the_platform_is_kept_and_the_change_is_told(pip, capsys):
    pip.answers = ["ERROR: ResolutionImpossible", ""]
    pip.environments = [LIVE, after(tabulate="0.10.0", pandas="3.1.1")]
    said = setup_cell.install({"tabulate": "0.10.0"}, "Colab")
    assert pip.constraints[1] == "numpy==2.0.2\ntorch==2.9.0+cu126\n"
    assert "changed pandas (restart the session" in said
    assert "trying again with only torch and its like kept fixed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("platform", "answers", "says"),
    [
        (
            "Kaggle",
            ["Retrying after NewConnectionError"],
            "there is no internet here. Kaggle: Settings > Internet > on",
        ),
        ("Colab", ["Temporary failure in name resolution"], "there is no internet here. Check the connection"),
        ("Colab", ["No version of x (from versions: none)"], "there is no internet here"),
        ("Colab", ["(from versions: none), wants a different python version"] * 2, "without changing torch"),
        (
            "Colab",
            ["conflict", "still a conflict"],
            "without changing torch, so nothing was changed.*\nstill a conflict",
        ),
    ],
)
def test_failures_say_what_to_do(pip, platform, answers, says):
    pip.answers = answers
    with pytest.raises(CourseError, match=says):
        setup_cell.install({"tabulate": "0.10.0"}, platform)


@pytest.mark.parametrize(
    "touched",
    [
        after(torch="2.13.0"),
        after(triton="3.0"),
        setup_cell.Environment(dict(LIVE.versions), {"torch/a.so": (1, 3)}),
        setup_cell.Environment(dict(LIVE.versions), {}),
    ],
)
def test_a_touched_torch_is_an_error(pip, touched):
    pip.environments = [LIVE, touched]
    with pytest.raises(CourseError, match=r"which must never happen\. Start a fresh session"):
        setup_cell.install({"tabulate": "0.10.0"}, "Colab")


def test_a_session_without_torch_is_refused(monkeypatch):
    monkeypatch.setattr(setup_cell, "_is_installed", lambda name: False)
    with pytest.raises(CourseError, match="has no torch, which the platform brings itself"):
        setup_cell.install({"tabulate": "0.10.0"}, "Kaggle")


def test_the_live_environment_is_read(monkeypatch):
    live = setup_cell.Environment.now()
    assert live.versions["torch"] == importlib.metadata.version("torch")
    assert len(live.files) > 100
    assert f"torch=={live.versions['torch']}\n" in live.constraints(setup_cell.PLATFORM_OWN)
