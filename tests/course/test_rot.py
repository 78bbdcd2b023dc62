"""`course rot`: what it makes of outcomes. The newest releases themselves are tried by the command, weekly."""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from authoring import rot
from utils.checks.rows import Failure, Row
from utils.paths import ROOT, requirement_pins

# Stands for the copy's `course check NN --json FILE`.
CHECK = """
import pathlib, sys
chapter, rows = sys.argv[2], pathlib.Path(sys.argv[4])
answers = {"00": PASSED, "01": FAILED}
if chapter not in answers:
    from collections import no_such_thing
rows.write_text(answers[chapter])
sys.exit(chapter != "00")
"""


@pytest.fixture
def course(tmp_path) -> Path:
    """A copy whose environment is this one, and whose chapters pass (00), fail (01) and cannot be checked (02)."""
    folder = tmp_path / "course"
    rot.copy_course(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    passed = Row("the reference", "norms", "are right", 1, 1, 0.1)
    failed = Row("the reference", "norms", "of zeros", 0, 1, 0.1, failure=Failure(called="norms(x)", returned="nan"))
    answers = {"PASSED": [passed], "FAILED": [passed, failed]}
    code = CHECK
    for name, rows in answers.items():
        code = code.replace(name, repr(json.dumps([row.as_json() for row in rows])))
    (folder / "course.py").write_text(code)
    return folder


def test_the_copy_has_the_course_but_not_its_environment(tmp_path):
    rot.copy_course(tmp_path / "copy")
    assert (tmp_path / "copy" / "utils" / "setup_cell.py").exists()
    assert (tmp_path / "copy" / "assets").resolve() == ROOT / "assets"
    assert not list((tmp_path / "copy").glob(".*")) and not (tmp_path / "copy" / "mine").exists()


def test_every_package_is_imported_by_its_own_name():
    modules = [rot.module_of(package) for package in requirement_pins()]
    assert "torch" in modules
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_the_environment_is_made_from_bare_names(course):
    (course / "bootstrap.py").write_text("")
    assert rot.set_up(course) == rot.WORKS
    assert (course / "requirements.txt").read_text().split() == list(requirement_pins())
    assert (course / "requirements.lock").read_text() == ""


def test_a_set_up_that_stops_says_why(course):
    stops = "print('Collecting x')\nraise SystemExit('Set-up stopped: the disk is full.\\nFree some.')"
    (course / "bootstrap.py").write_text(stops)
    assert rot.set_up(course) == "Set-up stopped: the disk is full."


def test_imports_are_tried_in_the_copy(course, monkeypatch):
    (course / "tabulate.py").write_text("raise ImportError('cannot import name X')")
    monkeypatch.setattr(rot, "requirement_pins", lambda: {"packaging": "1", "tabulate": "1", "no-such-package": "1"})
    assert rot.try_packages(course) == {
        "packaging": rot.WORKS,
        "tabulate": "ImportError: cannot import name X",
        "no-such-package": "ModuleNotFoundError: No module named 'no_such_package'",
    }


def test_chapters_are_tried_in_the_copy(course):
    outcomes = rot.try_chapters(course, ["00", "01", "02"])
    assert outcomes["set-up cell"] == outcomes["chapter 00"] == rot.WORKS
    assert outcomes["chapter 01"] == "1 checks fail; the first, norms, of zeros: Called: norms(x) Returned: nan"
    assert outcomes["chapter 02"].startswith("ImportError: cannot import name 'no_such_thing'")


def test_a_set_up_cell_that_lacks_something_does_not_work(course):
    with (course / "requirements.txt").open("a") as file:
        file.write("no-such-package==1\n")
    assert "lacks no-such-package" in rot.try_chapters(course, ["00"])["set-up cell"]


@pytest.fixture
def trial(monkeypatch):
    """Nothing is installed or tried: both trials have these outcomes."""
    outcomes = {"set_up": rot.WORKS, "upgrade_lenses": rot.WORKS, "package": rot.WORKS, "chapter": rot.WORKS}
    monkeypatch.setattr(rot, "copy_course", lambda _folder: None)
    monkeypatch.setattr(rot, "requirement_pins", lambda: {"torch": "2.13.0"})
    monkeypatch.setattr(rot, "versions", lambda _course, *which: {"torch": "2.15.0" if which else "2.14.1"})
    for step in ("set_up", "upgrade_lenses"):
        monkeypatch.setattr(rot, step, lambda _course, step=step: outcomes[step])
    monkeypatch.setattr(rot, "try_packages", lambda _course: {"torch": outcomes["package"]})
    monkeypatch.setattr(rot, "try_chapters", lambda _course, _numbers: {"chapter 00": outcomes["chapter"]})
    return outcomes


def test_all_well(trial, capsys):
    assert rot.run(argparse.Namespace(chapters=[])) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"torch +2\.13\.0 +2\.15\.0 +2\.14\.1 +works", said)) == 2
    assert "torch 2.14.1 is the newest that could be had without CUDA" in said
    assert said.endswith("Everything works.\n")


@pytest.mark.parametrize("which", ["package", "chapter"])
def test_what_does_not_work_is_shown(trial, capsys, which):
    trial[which] = "ImportError: no such thing"
    assert rot.run(argparse.Namespace(chapters=[])) == 1
    said = capsys.readouterr().out
    assert said.count("ImportError: no such thing") == 2 and "2 of these do not work" in said


@pytest.mark.parametrize("which", ["set_up", "upgrade_lenses"])
def test_what_cannot_be_installed_is_said(trial, capsys, which):
    trial[which] = "ERROR: ResolutionImpossible"
    assert rot.run(argparse.Namespace(chapters=[])) == 1
    assert capsys.readouterr().out.endswith("They cannot be installed: ERROR: ResolutionImpossible\n")
