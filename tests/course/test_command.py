"""The one command-line tree: every command has its purpose, its arguments and one way to fail."""

import importlib

import pytest

import course
from utils.errors import CourseError


@pytest.mark.parametrize("name", course.COMMANDS)
def test_every_command_has_help_with_its_purpose(name, capsys):
    with pytest.raises(SystemExit) as end:
        course.main([name, "--help"])
    assert end.value.code == 0
    assert course.COMMANDS[name][1][1:] in " ".join(capsys.readouterr().out.split())


def test_the_list_names_every_command_and_imports_no_room(capsys, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(SystemExit) as end:
        course.main(["--help"])
    assert end.value.code == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in course.COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        course.main(["--version"])
    assert capsys.readouterr().out == f"course {course.version()}\n"


@pytest.mark.parametrize(
    ("trouble", "status", "said"),
    [(CourseError("no disk"), 2, "course doctor: no disk"), (KeyboardInterrupt(), 130, "Interrupted")],
)
def test_trouble_becomes_a_message_and_a_status(trouble, status, said, capsys, monkeypatch):
    def stopped(options):
        raise trouble

    monkeypatch.setattr("utils.models.doctor.run", stopped)
    assert course.main(["doctor"]) == status
    assert said in capsys.readouterr().err


def test_a_command_whose_room_is_left_out_is_unknown(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(course, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as end:
        course.main(["dev"])
    assert end.value.code == 2
    assert "invalid choice: 'dev'" in capsys.readouterr().err
