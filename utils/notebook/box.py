"""The boxes that cells show: HTML in Jupyter (any theme, screen readers), text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.notebook.html import Markup, element, inline

# Colours come from the Jupyter theme where there is one, and only repeat what the words say.
STYLE = (
    "border:1px solid var(--jp-border-color1,#8888);border-left:6px solid {edge};border-radius:4px;padding:.5em .9em;"
    "max-width:60em;color:var(--jp-content-font-color1,inherit);background:transparent"
)
GREEN, RED, GREY = "#2e9e4f", "#d64545", "#7a869a"


@dataclass(frozen=True)
class Shown:
    """Something to display: HTML in Jupyter, text elsewhere, and what programs want of it, by MIME type."""

    html: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/html": self.html, "text/plain": self.text, **self.data}


def show(shown: Shown) -> None:
    """Display it in a notebook, print its text elsewhere."""
    if shell() is None:
        print(shown.text)
        return
    from IPython.display import display

    display(shown)


def shell() -> Any:
    """IPython's shell, or None in a plain interpreter."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def note(title: str, text: str) -> Shown:
    return Shown(box(title, element("div", inline(text))), f"{title}: {text}")


def code(title: str, source: str) -> Shown:
    return Shown(box(title, element("pre", element("code", source))), source)


def box(title: str, *body: Markup, edge: str = GREY) -> Markup:
    head = element("div", element("strong", title))
    return element("section", head, *body, role="status", aria_label=title, style=STYLE.format(edge=edge))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table; `code` in a cell's text is shown as such, Markup as it is."""
    cell = "text-align:left;padding:.15em .8em .15em 0;vertical-align:top"
    head = element("tr", *(element("th", text, scope="col", style=cell) for text in heads))
    body = (element("tr", *(element("td", _content(text), style=cell) for text in row)) for row in rows)
    style = "border-collapse:collapse;margin:.4em 0"
    return element("table", element("thead", head), element("tbody", *body), style=style)


def _content(text: str) -> Markup:
    return text if isinstance(text, Markup) else inline(text)
