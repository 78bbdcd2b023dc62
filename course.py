"""The `course` command: finds the room that does the work and hands over."""

import sys
from importlib import import_module

from utils.errors import CourseError

COMMANDS = {
    "check": ("utils.checks.command", "run a chapter's checks on the reference, a Python file or a notebook"),
    "model": ("utils.models.model_files", "fetch and convert the default model"),
    "doctor": ("utils.models.doctor", "explain this machine: what works, what does not, what to do"),
    "build": ("authoring.build", "build the notebooks from the texts"),
    "fill": ("authoring.fill", "write a chapter's notebook with its exercises taken from a Python file"),
    "execute": ("authoring.execute", "run chapters with the reference filled in"),
    "dev": ("authoring.dev", "prove that every check accepts right and rejects wrong solutions"),
    "bench": ("fast.bench.run", "time the kernels against plain formulations of the same quantities"),
    "restamp": ("authoring.restamp", "change the repository's address everywhere"),
}


def main() -> int:
    """Run `course COMMAND ...`; the exit status is the command's."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        print("usage: course COMMAND ... (course COMMAND --help tells more)\n")
        print("\n".join(f"  {name:8} {purpose}" for name, (_, purpose) in COMMANDS.items()))
        return 0 if arguments in ([], ["--help"], ["-h"]) else 2
    home, _ = COMMANDS[arguments[0]]
    try:
        return import_module(home).main(arguments[1:]) or 0
    except CourseError as error:
        print(f"course {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in (home, home.split(".")[0]):
            raise
        print(f"course {arguments[0]} is not part of this copy of the course.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
