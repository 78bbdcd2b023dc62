"""How a latent's dashboard looks: HTML without scripts, for any theme and for screen readers; text elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.dashboards.facts import Example, Firing, Latent, Ranked
from utils.notebook.box import Shown, show
from utils.notebook.html import BREAK, Markup, element, join

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


def show_latent(latent: Latent) -> None:
    """Display the dashboard in a notebook, print it elsewhere."""
    show(Shown(as_html(latent), as_text(latent)))


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
    "minus their mean over the vocabulary. W_U is the embedding matrix where, as in SmolLM2, the two are tied; "
    "rows of early layers are rewritten by later blocks before they meet it."
)
READ = (
    "De-embedding: the product of the encoder column with the MLP's normalised input, if the stream were the token's "
    "embedding alone, without what earlier blocks add to it."
)


# ---- HTML


def as_html(latent: Latent) -> Markup:
    title = _title(latent)
    columns = [_ranked_html("Promotes", latent.promoted), _ranked_html("Suppresses", latent.suppressed)]
    if latent.read:
        columns += [_ranked_html("Reads", latent.read), _ranked_html("Reads least", latent.ignored)]
    columns.append(_table("Nearest latents", ("latent", "cosine"), [(str(n), f"{c:.2f}") for n, c in latent.nearest]))
    notes = [LENS, *([READ] if latent.read else []), "Nearest: cosine of decoder rows."]
    parts = [
        element("div", title, style="font-size:1.15em;font-weight:bold"),
        element("div", latent.about, style=NOTE),
        element("div", _firing_words(latent.firing)),
        *([_examples_html(latent.examples)] if latent.examples else []),
        *([_histogram(latent.firing)] if latent.firing and latent.firing.n_active else []),
        element("div", *columns, style="display:flex;flex-wrap:wrap;gap:.2em 2.2em"),
        *(element("div", note, style=NOTE) for note in notes),
        *([_neuronpedia_frame(title, latent.neuronpedia)] if latent.neuronpedia else []),
    ]
    return element("section", *parts, aria_label=title, style=STYLE)


def _neuronpedia_frame(title: str, address: str) -> Markup:
    style = f"width:100%;height:480px;border:1px solid {LINE};margin-top:.6em"
    return element("iframe", src=address, title=f"{title} on Neuronpedia", loading="lazy", style=style)


def _examples_html(examples: Sequence[Example]) -> Markup:
    top = max(max(example.activations) for example in examples)
    legend = (
        f"The deeper the orange, the more active ({top:.3g} is the most); the strongest token is bold in a box. "
        "Numbers show when the pointer rests on a token."
    )
    rows = (_example_html(example, top) for example in examples)
    return join(
        [
            element("div", "Top examples", style=HEAD),
            element("div", legend, style=NOTE),
            element("ol", *rows, style="margin:.2em 0;padding-left:1.8em"),
        ]
    )


def _example_html(example: Example, top: float) -> Markup:
    strongest = example.activations[example.strongest]
    head = f"{strongest:.3g} on {_quoted(example.tokens[example.strongest])}, {example.document}"
    tokens = (
        _token_html(token, value, value / top, at == example.strongest)
        for at, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True))
    )
    return element(
        "li",
        element("span", head, style="font-size:.85em;white-space:pre-wrap"),
        BREAK,
        element("span", "… ", *tokens, " …", style="white-space:pre-wrap;line-height:1.6"),
        style="margin:.35em 0",
    )


def _token_html(token: str, value: float, share: float, is_strongest: bool) -> str:
    shown = _visible(token)
    if value <= 0:
        return shown
    style = f"background:rgba({TINT},{FAINTEST + (FULLEST - FAINTEST) * min(share, 1):.2f});color:inherit"
    if not is_strongest:
        return element("span", shown, title=f"{value:.3g}", style=style)
    box = "outline:2px solid currentColor;border-radius:2px;padding:0 .2em;margin:0 .15em"
    said = element("span", f" (strongest: {value:.3g}) ", style=UNSEEN)
    return join([element("strong", shown, title=f"{value:.3g}", style=f"{style};{box}"), said])


def _histogram(firing: Firing) -> Markup:
    """Bars over activations on a logarithmic axis, an inline drawing."""
    used = [at for at, count in enumerate(firing.counts) if count]
    bins = range(used[0], used[-1] + 1)
    most, width, left, height = max(firing.counts), 30, 56, 100
    right, bottom = left + width * max(len(bins), 5), 10 + height  # a single bar leaves room for the axis's title
    bars = []
    for place, at in enumerate(bins):
        tall = max(height * firing.counts[at] / most, 1 if firing.counts[at] else 0)
        x, y = left + width * place + 1, f"{bottom - tall:.1f}"
        title = element("title", _bin_words(firing, at))
        bars.append(element("rect", title, x=x, y=y, width=width - 2, height=f"{tall:.1f}", fill=f"rgb({TINT})"))
    ticks = [
        _label(f"{firing.edges[at]:.3g}", left + width * place, bottom + 14)
        for place, at in enumerate(bins)
        if place % 2 == 0
    ]
    peak = max(bins, key=lambda at: firing.counts[at])
    words = f"Histogram of the activations of the active tokens. Most lie in one bin: {_bin_words(firing, peak)}."
    middle, centre = (left + right) / 2, bottom - height / 2
    axes = [
        element("path", d=f"M{left} 10V{bottom}H{right}", fill="none", stroke="currentColor"),
        _label(f"{most:,}", left - 6, 18, "end"),
        _label("0", left - 6, bottom, "end"),
        _label("activation (logarithmic)", middle, bottom + 30),
        _label("tokens", 14, centre, transform=f"rotate(-90 14 {centre})"),
    ]
    drawing = element(
        "svg",
        *(axes + bars + ticks),
        role="img",
        aria_label=words,
        viewBox=f"0 0 {right + 30} {bottom + 38}",
        width=right + 30,
        style="max-width:100%;height:auto;font-size:11px",
        fill="currentColor",
    )
    return join([element("div", "Activations of the active tokens", style=HEAD), drawing])


def _label(text: str, x: float, y: float, anchor: str = "middle", **more: str) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, **more)


def _bin_words(firing: Firing, at: int) -> str:
    return f"{firing.counts[at]:,} tokens between {firing.edges[at]:.3g} and {firing.edges[at + 1]:.3g}"


def _ranked_html(title: str, ranked: Ranked) -> Markup:
    return _table(title, ("token", "value"), [(_quoted(token), f"{value:+.2f}") for token, value in ranked])


def _table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> Markup:
    styles = [f"text-align:{side};padding:.05em .5em .05em 0;white-space:pre" for side in ("left", "right")]

    def row(cells: tuple[str, str], kind: str, **attributes: str) -> Markup:
        return element(
            "tr",
            *(element(kind, cell, **attributes, style=style) for cell, style in zip(cells, styles, strict=True)),
            style="background:transparent",
        )

    caption = "text-align:left;color:inherit;font-weight:bold;padding:0;white-space:nowrap"
    return element(
        "table",
        element("caption", title, style=caption),
        element("thead", row(heads, "th", scope="col")),
        element("tbody", *(row(cells, "td") for cells in rows)),
        style="border-collapse:collapse;margin:.6em 0;align-self:flex-start",
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
