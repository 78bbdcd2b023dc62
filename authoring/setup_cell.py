"""The set-up cell of every notebook: finds the course, or fetches it when the notebook is all there is."""

_TEMPLATE = """\
#@title Set-up: run this cell first. It finds the course, or fetches it and installs only what is missing.
import os, pathlib, subprocess, sys
here = pathlib.Path.cwd()
course = next((p for p in [here, *here.parents] if (p / "utils/setup_cell.py").exists()), here / "{folder}")
if not course.exists():
    clone = ["git", "clone", "--depth=1", os.environ.get("COURSE_REPOSITORY", "{repository}"), str(course)]
    try:
        subprocess.run(clone, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"Could not fetch the course. Is the internet on? On Kaggle: Settings, Internet. Then run "
                           f"this cell again. ({{' '.join(clone)}}: {{getattr(error, 'stderr', error)}})") from None
sys.path.insert(0, str(course))
from utils.setup_cell import ready
ready("{chapter}")
from utils import check, dashboard, failed, hint, progress, solution
"""


def setup_source(chapter: str, repository: str) -> str:
    """The cell's code for chapter "03", with the address it clones from."""
    folder = repository.rstrip("/").rsplit("/", 1)[-1]
    return _TEMPLATE.format(chapter=chapter, repository=repository, folder=folder).rstrip("\n")
