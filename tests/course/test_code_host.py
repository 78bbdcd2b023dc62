"""What the code host and hosted machines run: the same versions, files and commands as everywhere else."""

import json
import re

import pytest
import yaml

import bootstrap
from utils.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def devcontainer() -> dict:
    return json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))


def supported() -> list[str]:
    return [f"{major}.{minor}" for major, minor in bootstrap.SUPPORTED]


def test_every_supported_python_is_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == supported()
    assert workflow["jobs"]["tests"]["steps"][-1]["run"] == ".ci/run"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_commands_that_exist(workflow):
    steps = [
        step for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values() for step in job["steps"]
    ]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands
    for target in re.findall(r"\bmake (\w+)", "\n".join(commands)):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"make {target}"
    for path in re.findall(r"(?:^|\s)(\.ci/\w+)", "\n".join(commands)):
        assert (ROOT / path).exists(), path


def test_the_devcontainer_opens_chapter_00_on_a_supported_python():
    settings = devcontainer()
    assert settings["image"].removeprefix("python:") in supported()
    (opened,) = settings["customizations"]["codespaces"]["openFiles"]
    assert opened.startswith("chapters/00_") and (ROOT / opened).exists()
    target = settings["onCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_binder_has_a_supported_python_and_the_pinned_torch():
    folder = ROOT / ".binder"
    assert (folder / "runtime.txt").read_text().strip().removeprefix("python-") in supported()
    assert "-c ../requirements.lock" in (folder / "requirements.txt").read_text().splitlines()
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match("torch==", line)]
    assert len(pinned) == 1, "postBuild takes the line that begins so"


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_ask_for_the_doctor(form):
    fields = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
    assert any("course doctor" in field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
