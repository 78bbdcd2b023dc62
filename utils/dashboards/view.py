"""How a latent's dashboard looks: HTML without scripts, for any theme and for screen readers; text elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.dashboards.facts import Example, Firing, Latent, Ranked

# A middle orange under the theme's own ink: at these opacities text keeps a contrast above 5 on white and on black.
TINT = "217,115,13"
FAINTEST, FULLEST = 0.10, 0.50
LINE = "var(--jp-border-color1,#8888)"
STYLE = (
    f"border:1px solid {LINE};border-radius:4px;padding:.5em .9em;max-width:68em;"
    "color:var(--jp-content-font-color1,inherit);background:transparent"
)
UNSEEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"
HEAD = "margin:.9em 0 .2em;font-weight:bold"
NOTE = "margin:.2em 0;font-size:.9em"


@dataclass(frozen=True)
class View:
    """A dashboard to display."""

    html: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


def show(latent: Latent) -> None:
    """Display the dashboard in a notebook, print it elsewhere."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(as_text(latent))
    else:
        display(View(as_html(latent), as_text(latent)))


# ---- words that both forms share


def _title(latent: Latent) -> str:
    return f"{latent.dictionary}, latent {latent.number}"


def _firing_words(firing: Firing | None) -> str:
    if firing is None:
        return (
            "Its activations are not indexed: only the default profile's dictionaries come with an index of examples."
        )
    looked = f"{firing.n_tokens:,} tokens of the public corpus"
    if firing.n_active == 0:
        return f"It never fired on the {looked}: a dead latent, as far as this text can tell."
    return f"Active on {firing.n_active:,} of {looked}: density {_percent(firing.density)}."


def _percent(share: float) -> str:
    """At least two digits, however small."""
    places = max(1, 1 - math.floor(math.log10(100 * share))) if share else 1
    return f"{100 * share:.{places}f}%"


def _visible(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "⇥")


def _quoted(token: str) -> str:
    return f"“{_visible(token)}”"


LENS = (
    "Logit lens: the logits of a final stream that points along the decoder row, through the final norm and W_U, "
    "less their mean over the vocabulary. W_U is the embedding matrix where, as in SmolLM2, the two are tied; "
    "rows of early layers are rewritten by later blocks before they meet it."
)
READ = (
    "De-embedding: the product of the encoder column with the MLP's normalised input, if the stream were the token's "
    "embedding alone, without what earlier blocks add to it."
)


# ---- HTML


def as_html(latent: Latent) -> str:
    title = html.escape(_title(latent), quote=True)
    parts = [
        f'<div style="font-size:1.15em;font-weight:bold">{title}</div>',
        f'<div style="{NOTE}">{html.escape(latent.about)}</div><div>{html.escape(_firing_words(latent.firing))}</div>',
    ]
    if latent.examples:
        parts.append(_examples_html(latent.examples))
    if latent.firing and latent.firing.n_active:
        parts.append(_histogram(latent.firing))
    columns = [_ranked_html("Promotes", latent.promoted), _ranked_html("Suppresses", latent.suppressed)]
    if latent.read:
        columns += [_ranked_html("Reads", latent.read), _ranked_html("Reads least", latent.ignored)]
    columns.append(_table("Nearest latents", ("latent", "cosine"), [(str(n), f"{c:.2f}") for n, c in latent.nearest]))
    parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:.2em 2.2em">{"".join(columns)}</div>')
    notes = [LENS, *([READ] if latent.read else []), "Nearest: cosine of decoder rows."]
    parts += [f'<div style="{NOTE}">{html.escape(note)}</div>' for note in notes]
    if latent.neuronpedia:
        parts.append(
            f'<iframe src="{html.escape(latent.neuronpedia, quote=True)}" title="{title} on Neuronpedia" '
            f'loading="lazy" style="width:100%;height:480px;border:1px solid {LINE};margin-top:.6em"></iframe>'
        )
    return f'<section aria-label="{title}" style="{STYLE}">{"".join(parts)}</section>'


def _examples_html(examples: Sequence[Example]) -> str:
    top = max(max(example.activations) for example in examples)
    legend = (
        f"The deeper the orange, the more active ({top:.3g} is the most); the strongest token is bold in a box. "
        "Numbers show when the pointer rests on a token."
    )
    rows = "".join(_example_html(example, top) for example in examples)
    return (
        f'<div style="{HEAD}">Top examples</div><div style="{NOTE}">{legend}</div>'
        f'<ol style="margin:.2em 0;padding-left:1.8em">{rows}</ol>'
    )


def _example_html(example: Example, top: float) -> str:
    strongest = example.activations[example.strongest]
    head = f"{strongest:.3g} on {_quoted(example.tokens[example.strongest])}, {example.document}"
    tokens = (
        _token_html(token, value, value / top, at == example.strongest)
        for at, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True))
    )
    return (
        f'<li style="margin:.35em 0"><span style="font-size:.85em;white-space:pre-wrap">{html.escape(head)}</span><br>'
        f'<span style="white-space:pre-wrap;line-height:1.6">… {"".join(tokens)} …</span></li>'
    )


def _token_html(token: str, value: float, share: float, is_strongest: bool) -> str:
    shown = html.escape(_visible(token))
    if value <= 0:
        return shown
    style = f"background:rgba({TINT},{FAINTEST + (FULLEST - FAINTEST) * min(share, 1):.2f});color:inherit"
    if is_strongest:
        said = f'<span style="{UNSEEN}"> (strongest: {value:.3g}) </span>'
        box = "outline:2px solid currentColor;border-radius:2px;padding:0 .2em;margin:0 .15em"
        return f'<strong title="{value:.3g}" style="{style};{box}">{shown}</strong>{said}'
    return f'<span title="{value:.3g}" style="{style}">{shown}</span>'


def _histogram(firing: Firing) -> str:
    """Bars over activations on a logarithmic axis, an inline drawing."""
    used = [at for at, count in enumerate(firing.counts) if count]
    bins = range(used[0], used[-1] + 1)
    most, width, left, height = max(firing.counts), 30, 56, 100
    right, bottom = left + width * max(len(bins), 5), 10 + height  # a single bar leaves room for the axis's title
    bars, ticks = [], []
    for place, at in enumerate(bins):
        count, x = firing.counts[at], left + width * place
        tall = max(height * count / most, 1 if count else 0)
        bars.append(
            f'<rect x="{x + 1}" y="{bottom - tall:.1f}" width="{width - 2}" height="{tall:.1f}" '
            f'fill="rgb({TINT})"><title>{_bin_words(firing, at)}</title></rect>'
        )
        if place % 2 == 0:
            ticks.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{firing.edges[at]:.3g}</text>')
    peak = max(bins, key=lambda at: firing.counts[at])
    words = f"Histogram of the activations of the active tokens. Most lie in one bin: {_bin_words(firing, peak)}."
    middle, centre = (left + right) / 2, bottom - height / 2
    axes = (
        f'<path d="M{left} 10V{bottom}H{right}" fill="none" stroke="currentColor"/>'
        f'<text x="{left - 6}" y="18" text-anchor="end">{most:,}</text>'
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{middle}" y="{bottom + 30}" text-anchor="middle">activation (logarithmic)</text>'
        f'<text x="14" y="{centre}" text-anchor="middle" transform="rotate(-90 14 {centre})">tokens</text>'
    )
    return (
        f'<div style="{HEAD}">Activations of the active tokens</div>'
        f'<svg role="img" aria-label="{html.escape(words, quote=True)}" viewBox="0 0 {right + 30} {bottom + 38}" '
        f'width="{right + 30}" style="max-width:100%;height:auto;font-size:11px" fill="currentColor">'
        f"{axes}{''.join(bars + ticks)}</svg>"
    )


def _bin_words(firing: Firing, at: int) -> str:
    return f"{firing.counts[at]:,} tokens between {firing.edges[at]:.3g} and {firing.edges[at + 1]:.3g}"


def _ranked_html(title: str, ranked: Ranked) -> str:
    return _table(title, ("token", "value"), [(_quoted(token), f"{value:+.2f}") for token, value in ranked])


def _table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    left, right = (f"text-align:{side};padding:.05em .5em .05em 0;white-space:pre" for side in ("left", "right"))
    body = "".join(
        f'<tr style="background:transparent"><td style="{left}">{html.escape(name)}</td>'
        f'<td style="{right}">{value}</td></tr>'
        for name, value in rows
    )
    return (
        f'<table style="border-collapse:collapse;margin:.6em 0;align-self:flex-start"><caption style="text-align:left;'
        f'color:inherit;font-weight:bold;padding:0;white-space:nowrap">{title}</caption>'
        f"<thead><tr>"
        f'<th scope="col" style="{left}">{heads[0]}</th>'
        f'<th scope="col" style="{right}">{heads[1]}</th></tr></thead><tbody>{body}</tbody></table>'
    )


# ---- text


def as_text(latent: Latent) -> str:
    lines = [_title(latent), latent.about, _firing_words(latent.firing)]
    if latent.examples:
        lines += ["", "Top examples («strongest token»):", *(_example_text(example) for example in latent.examples)]
    if latent.firing and latent.firing.n_active:
        used = [at for at, count in enumerate(latent.firing.counts) if count]
        lines += ["", "Activations of the active tokens:", *(f"  {_bin_words(latent.firing, at)}" for at in used)]
    lines += ["", *_ranked_text("Promotes", latent.promoted), *_ranked_text("Suppresses", latent.suppressed)]
    if latent.read:
        lines += [*_ranked_text("Reads", latent.read), *_ranked_text("Reads least", latent.ignored)]
    lines += ["Nearest latents (cosine): " + ", ".join(f"{number} ({cosine:.2f})" for number, cosine in latent.nearest)]
    lines += ["", LENS, *([READ] if latent.read else []), *([latent.neuronpedia] if latent.neuronpedia else [])]
    return "\n".join(lines)


def _example_text(example: Example) -> str:
    marked = [_visible(token) for token in example.tokens]
    marked[example.strongest] = f"«{marked[example.strongest]}»"
    return f"  {example.activations[example.strongest]:.3g}  …{''.join(marked)}…  ({example.document})"


def _ranked_text(title: str, ranked: Ranked) -> list[str]:
    return [f"{title}: " + ", ".join(f"{_quoted(token)} {value:+.2f}" for token, value in ranked)]
