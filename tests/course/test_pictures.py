"""README's pictures: made from the real thing, small, and what they show is what the course shows today."""

import re
import shutil
import struct

import pytest

from authoring import pictures
from utils.errors import CourseError


def size_of(png):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_every_picture_is_there_in_every_theme_and_all_are_small():
    files = {f"{picture.name}_{theme}.png" for picture in pictures.ALL for theme in pictures.THEMES}
    assert {path.name for path in pictures.PICTURES.iterdir()} == files
    assert sum((pictures.PICTURES / name).stat().st_size for name in files) < 400_000


def test_the_check_fails_and_says_why():
    box = pictures.red_check()
    assert "pca: not yet" in box
    assert "Hint:" in box and "These shares add up to 1" in box


def test_the_figure_is_what_the_chapter_draws():
    drawn = pictures.days_circle()
    assert "joined in calendar order" in drawn and "Wednesday" in drawn
    assert not re.search("<script[^>]* src=", drawn), "the page must bring its script, not fetch it"


@pytest.mark.skipif(not any(map(shutil.which, pictures.CHROMIUM)), reason="Chromium is not installed")
def test_a_page_becomes_a_picture_of_the_size_asked_for(tmp_path):
    picture = pictures.Picture("small", lambda: "<p>Hello</p>", 200, 100)
    images = {}
    for theme in pictures.THEMES:
        pictures.photograph(pictures.page(picture.body(), theme), picture, tmp_path / f"{theme}.png")
        images[theme] = tmp_path / f"{theme}.png"
    assert {size_of(path) for path in images.values()} == {(250, 125)}
    assert images["light"].read_bytes() != images["dark"].read_bytes()


def test_without_chromium_the_command_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    with pytest.raises(CourseError, match="install it"):
        pictures.photograph("", pictures.ALL[0], tmp_path / "none.png")
