"""`course pictures`: makes README's pictures from the real thing, a failed check and a figure of chapter 01."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from authoring.chapter_text import read_text
from authoring.dev import variants
from utils import plain
from utils.chapters import find_chapter
from utils.checks.exercises import find_exercise
from utils.checks.running import run_checks
from utils.errors import CourseError
from utils.material.days import DAYS
from utils.notebook import plots
from utils.notebook.check_view import check_view
from utils.paths import RESULTS, ROOT

PICTURES = ROOT / "docs" / "pictures"
CHAPTER = "01"
MISTAKE = "pca_ratio_of_kept"  # a wrong solution whose failed check fits into a small picture
FIGURE = "day_pca"  # the stored result that the figure shows
THEMES = {"light": ("#ffffff", "#1f2328"), "dark": ("#0d1117", "#e6edf3")}  # of the page: background, text
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = [  # no sandbox where root runs it, no news from the net
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FLAGS = [
    "--headless",
    *QUIET,
    "--hide-scrollbars",
    "--force-device-scale-factor=1.25",
    "--virtual-time-budget=10000",  # milliseconds of the page's own clock, for the figure's script
]


@dataclass(frozen=True)
class Picture:
    """`body` makes the HTML; `width` and `height` are in CSS pixels."""

    name: str
    body: Callable[[], str]
    width: int
    height: int


def red_check() -> str:
    """The box that a student sees whose PCA divides by the variance of the kept components."""
    exercise = find_exercise("pca")
    (wrong,) = (variant for variant in variants(CHAPTER) if variant._label == MISTAKE)
    return check_view(exercise, run_checks(CHAPTER, [wrong], [exercise.name]), kept="").html


def days_circle() -> str:
    """The chapter's own cell draws, from the result that the course has stored."""
    shell = InteractiveShell.instance()
    shell.push({"DAYS": DAYS, "plots": plots, "result": _stored, "measured": lambda name, value: None})
    with capture_output() as captured:
        shell.run_cell(figure_cell()).raise_error()
    (drawn,) = (data for output in captured.outputs for mime, data in output.data.items() if "plotly" in mime)
    return go.Figure(drawn).to_html(full_html=False, include_plotlyjs=True, config={"staticPlot": True})


def figure_cell() -> str:
    """The source of the code cell that draws the figure."""
    chapter = find_chapter(CHAPTER)
    cells = read_text(chapter.text, chapter.shown(chapter.text)).cells
    (source,) = (cell.source for cell in cells if cell.kind == "code" and f'result("{FIGURE}"' in cell.source)
    return source


def _stored(name: str, compute: object) -> object:
    return plain.loads((RESULTS / CHAPTER / f"{name}.safetensors").read_bytes())


ALL = (Picture("red_check", red_check, 820, 328), Picture("days_circle", days_circle, 820, 496))


def page(body: str, theme: str) -> str:
    """A page that shows nothing but `body`, in the colours of the theme."""
    background, text = THEMES[theme]
    style = (
        f"body {{ margin: 8px; background: {background}; color: {text}; font: 14px system-ui, sans-serif; "
        f"--jp-content-font-color1: {text} }}"
    )
    return f'<!doctype html><html><head><meta charset="utf-8"><style>{style}</style></head><body>{body}</body></html>'


def photograph(html: str, picture: Picture, target: Path) -> None:
    """Render a page in headless Chromium and write the PNG `target`.

    Raises:
        CourseError: Chromium is not installed, or made no picture.
    """
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        raise CourseError("no Chromium here: install it (Debian: `apt-get install chromium`), then run this again")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "page.html"
        source.write_text(html, encoding="utf-8")
        size = f"--window-size={picture.width},{picture.height}"
        command = [chromium, *FLAGS, f"--user-data-dir={scratch}/profile", size, f"--screenshot={target}"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        done = subprocess.run([*command, source.as_uri()], capture_output=True, text=True, timeout=120)
    if not target.exists():
        raise CourseError(f"{chromium} made no picture: {done.stderr.strip()[-500:]}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    """Make every picture in every theme."""
    for picture in ALL:
        body = picture.body()
        for theme in THEMES:
            target = PICTURES / f"{picture.name}_{theme}.png"
            photograph(page(body, theme), picture, target)
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB", flush=True)
    return 0
