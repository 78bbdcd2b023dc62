"""The `course` command: finds the room that does the work and hands over.

A command is a purpose, said here, and a module of its room with `arguments(parser)` and `run(options) -> int`, the exit
status. Rooms are imported when one of their commands is called.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tomllib
from collections.abc import Sequence

from utils.errors import CourseError
from utils.paths import PYPROJECT, ROOT

# Command -> (module, purpose).
COMMANDS = {
    "check": ("utils.checks.command", "run a chapter's checks on the reference, a Python file or a notebook"),
    "model": ("utils.models.model_files", "fetch and convert the default model"),
    "doctor": ("utils.models.doctor", "explain this machine: what works, what does not, what to do"),
    "build": ("authoring.build", "build the notebooks from the texts"),
    "fill": ("authoring.fill", "write a chapter's notebook with its exercise cells taken from a Python file"),
    "execute": ("authoring.execute", "run chapters from top to bottom with the reference and judge the outcome"),
    "pictures": ("authoring.pictures", "make README's pictures from a real failed check and a real figure"),
    "dev": ("authoring.dev", "prove that every check accepts right and rejects wrong solutions"),
    "bench": ("fast.bench.run", "time the fast forms against plain formulations of the same quantities"),
    "rot": ("authoring.rot", "try the course on the newest releases of what it stands on"),
    "restamp": ("authoring.restamp", "set the repository's address and rebuild the notebooks"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `course COMMAND ...`; the exit status is the command's, 2 where something stands in its way."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(words)
    try:
        return options.run(options)
    except CourseError as error:
        print(f"course {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of the command in `words`; only that command's module is imported."""
    parser = argparse.ArgumentParser(prog="course", description="A course on the circuits inside language models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (home, purpose) in COMMANDS.items():
        if not (ROOT / f"{home.replace('.', '/')}.py").exists():
            continue  # a student's copy has fewer rooms
        command = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if words[:1] == [name]:
            module = importlib.import_module(home)
            module.arguments(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(words)


def version() -> str:
    with PYPROJECT.open("rb") as file:
        return tomllib.load(file)["project"]["version"]


if __name__ == "__main__":
    sys.exit(main())
