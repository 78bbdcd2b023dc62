"""The door: what README, CONTRIBUTING and their neighbours promise is there, and what is built is fresh."""

import re
import tomllib

import pytest
import yaml

import course
from authoring import readme
from utils.errors import CourseError
from utils.paths import PYPROJECT, ROOT, repository

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WORKED_AT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # it tells of what is gone, too
MADE_LATER = {"mine/"}


def code_in(text):
    """Code spans and fenced blocks: in prose, "make sense" and "the course says" are no commands."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [" ".join(piece.split()) for piece in spans] + [line for block in fenced for line in block.splitlines()]


def commands_in(text, program):
    return {word for piece in code_in(text) for word in re.findall(rf"^{program} ([a-z]+)\b", piece)}


def targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def links_in(text):
    """Targets of Markdown links and of pictures that are on this machine."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    return [target for target in found if "://" not in target]


def anchors_in(text):
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths_in(text):
    """Code spans that name a file or a folder of the course; NN and * stand for any."""
    spans = [piece for piece in code_in(text) if re.fullmatch(r"[\w.*-]+/[\w./*-]*", piece)]
    return [re.sub(r"NN_name|NN", "*", span) for span in spans if span not in MADE_LATER]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    assert commands_in(text, "make") <= targets()
    assert commands_in(text, "course") <= set(course.COMMANDS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in links_in(path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = ROOT / name if name else path
        assert target.exists(), f"{path.name} links to {name}, which does not exist"
        assert not anchor or anchor in anchors_in(target.read_text(encoding="utf-8")), f"{name} has no heading {anchor}"


@pytest.mark.parametrize("path", WORKED_AT, ids=lambda path: path.name)
def test_files_and_rooms_that_are_named_exist(path):
    for name in paths_in(path.read_text(encoding="utf-8")):
        assert any(ROOT.glob(name)), f"{path.name} speaks of {name}, which does not exist"


def test_a_wrong_promise_is_seen():
    text = "Do `make tea`, `course nowhere 01` and make sense of `tests/none.py`.\n\n```\nmake soup\n```\n[x](no.md#a)"
    assert commands_in(text, "make") == {"tea", "soup"}
    assert commands_in(text, "course") == {"nowhere"}
    assert paths_in(text) == ["tests/none.py"]
    assert links_in(text) == ["no.md#a"]


def test_the_map_of_chapters_is_fresh():
    assert not readme.is_stale(), "README.md is stale: run `make build`"


def test_the_map_is_put_between_its_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"above\n{readme.BEGIN}\nof yesterday\n{readme.END}\nbelow\n", encoding="utf-8")
    assert readme.is_stale(path)
    readme.build(path)
    built = path.read_text(encoding="utf-8")
    assert not readme.is_stale(path)
    assert built.startswith("above\n") and built.endswith("\nbelow\n") and "of yesterday" not in built
    assert "[SparseTensor](chapters/03_sparse_tensor.ipynb)" in built
    with pytest.raises(CourseError, match="lacks the mark"):
        readme.with_map("no marks", [])


def test_version_licence_and_address_are_the_same_everywhere():
    with PYPROJECT.open("rb") as file:
        project = tomllib.load(file)["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["abstract"] == project["description"]
    assert project["license"] in citation["license"]
    assert citation["repository-code"] == repository()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", changelog, flags=re.M)
    assert sections[0] == "Unreleased" and sections[1].startswith(project["version"])
