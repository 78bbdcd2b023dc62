"""Write the shipped dictionaries' metrics from their manifest into recipes/README.md: `python -m recipes.report`."""

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from utils.paths import DICTIONARIES

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- metrics: made by `python -m recipes.report` -->", "<!-- end of metrics -->"
HEADERS = ("", "width", "training tokens", "VE", "VE typical", "L0", "alive", "CE recovered", "rule")
ALIVE_GOAL = {"alive": 0.97}
GOALS = {
    "resid": {"ve": 0.90, "ce_recovered": 0.97} | ALIVE_GOAL,
    "z": {"ve": 0.85} | ALIVE_GOAL,
    "transcoder": {"ve": 0.75, "ce_recovered": 0.90} | ALIVE_GOAL,
}
AGREEMENT_GOAL = 0.85


def report(manifest: dict[str, Any]) -> str:
    """The metrics as Markdown; a figure that misses its goal has the goal in brackets behind it."""
    lines = [_line(name, entry) for name, entry in manifest["dictionaries"].items()]
    pairs = [
        f"{pair}: {found['agreement']:.3f} of the activation mass stays on the same latents (goal {AGREEMENT_GOAL}); "
        f"of {found['latents_true_per_token']:.1f} and {found['latents_spliced_per_token']:.1f} latents a token, "
        f"{found['latents_one_only_per_token']:.1f} are active in one of the two runs only."
        for pair, found in manifest["pairs"].items()
    ]
    table = tabulate(lines, headers=HEADERS, tablefmt="github", disable_numparse=True)
    return "\n\n".join([table, "Agreement:", "\n".join(f"- {pair}" for pair in pairs)])


def _line(name: str, entry: dict[str, Any]) -> list[str]:
    found, goals = entry["metrics"], GOALS.get(name.split("_")[0].split(".")[0], {})

    def shown(key: str) -> str:
        missed = key in goals and found[key] < goals[key]
        return f"{found[key]:.3f}" + (f" [{goals[key]:.2f}]" if missed else "")

    return [
        name,
        str(entry["d_sae"]),
        f"{entry['training_tokens'] / 1e6:.1f} M",
        shown("ve"),
        shown("ve_typical"),
        f"{found['l0']:.0f}",
        shown("alive"),
        shown("ce_recovered"),
        f"{found['rule_auroc']:.2f}",
    ]


def with_report(readme: str, manifest: dict[str, Any]) -> str:
    """The README's text with the report between its two marks replaced."""
    return between_marks(readme, BEGIN, END, report(manifest))


def between_marks(text: str, begin: str, end: str, content: str) -> str:
    """The text with what stands between two marks replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main() -> None:
    manifest = json.loads((DICTIONARIES / "manifest.json").read_text(encoding="utf-8"))
    README.write_text(with_report(README.read_text(encoding="utf-8"), manifest), encoding="utf-8")


if __name__ == "__main__":
    main()
