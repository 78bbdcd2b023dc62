"""The notebooks as a student sees them: JupyterLab in a real, headless Chromium. Run by `make browser`.

Screenshots go to build/screenshots. Skipped where Chromium is not installed.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import pytest

from authoring.pictures import QUIET
from utils.paths import CHAPTERS, ROOT
from utils.source import extract

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = ROOT / "build" / "screenshots"
# JupyterLab shows a traceback as a warning is shown: as what went to stderr.
ERRORS = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
SETTINGS = {
    # Every cell in the page, so that it can be found without scrolling.
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the course: links to its rooms, the notebooks themselves copied, because running saves them."""
    folder = tmp_path_factory.mktemp("course")
    for room in ("utils", "tests", "solutions", "fast", "assets", "pyproject.toml", "requirements.txt"):
        if (ROOT / room).exists():
            (folder / room).symlink_to(ROOT / room)
    (folder / "chapters").mkdir()
    shutil.copy(CHAPTERS / "03_sparse_tensor.ipynb", folder / "chapters")
    return folder


@pytest.fixture(scope="module")
def lab(folder, tmp_path_factory):
    """The address of a running JupyterLab."""
    home = tmp_path_factory.mktemp("home")
    for name, text in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "COURSE_MINE": str(home / "mine"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
    }
    log = (home / "lab.log").open("w")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={folder}",
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def wait_for_server(address, server):
    for _ in range(120):
        assert server.poll() is None, "JupyterLab did not start"
        try:
            urllib.request.urlopen(address)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {address}")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(300_000)
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "last.png")  # what was there when a test failed
    page.close()


def open_notebook(page, lab, name):
    page.goto(f"{lab}/tree/chapters/{name}?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def wait_until_run(page):
    """Until no cell waits or runs (its prompt is a star) or one has failed, after which the others never run. A folded
    cell has no such prompt."""
    page.wait_for_function(
        f"""() => document.querySelector("{ERRORS}")
        || [...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")]
            .every(prompt => /\\[\\d+\\]/.test(prompt.textContent))"""
    )
    assert page.locator(ERRORS).all_inner_texts() == []


def screenshots(page, elements, name):
    """Each element on the screen, in the light and the dark theme."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for theme in ("Dark", "Light"):
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        page.locator(".lm-Menu-itemLabel", has_text="Theme").first.click()
        page.locator(".lm-Menu-itemLabel", has_text=f"JupyterLab {theme}").first.click()
        for number in range(elements.count()):
            elements.nth(number).scroll_into_view_if_needed()
            page.wait_for_timeout(700)  # the theme and the figures settle
            page.screenshot(path=SCREENSHOTS / f"{name}_{number}_{theme.lower()}.png")


def test_a_red_check_turns_green(page, lab):
    open_notebook(page, lab, "03_sparse_tensor.ipynb")
    run_all(page)
    report = page.locator("section[role=status]", has_text="SparseTensor").first
    report.wait_for()
    assert "not yet" in report.inner_text()
    wait_until_run(page)
    screenshots(page, report, "03_red")

    stub = page.locator(".jp-CodeCell .cm-content", has_text="class SparseTensor").first
    stub.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(extract((ROOT / "solutions" / "ch03_sparse_tensor.py").read_text(), "SparseTensor").code)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    passed = page.locator("section[role=status]", has_text="SparseTensor: passed").first
    passed.wait_for()
    screenshots(page, passed, "03_green")


def test_figures_of_chapter_01_render(page, lab, folder):
    reference = ROOT / "solutions" / "ch01_days_of_the_week.py"
    filled = folder / "chapters" / "01_filled.ipynb"
    command = [sys.executable, "-m", "course", "fill", "01", "--with", str(reference), "-o", str(filled)]
    subprocess.run(command, check=True, cwd=ROOT)
    open_notebook(page, lab, "01_filled.ipynb")
    run_all(page)
    wait_until_run(page)
    figures = page.locator(".js-plotly-plot .main-svg:first-child")
    assert figures.count() >= 3
    for number in range(figures.count()):
        box = figures.nth(number).bounding_box()
        assert box and box["height"] > 100, f"figure {number} is not drawn"
    screenshots(page, figures, "01_figure")
