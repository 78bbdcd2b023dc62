"""Figures of the course: each has a title, axis labels, hover text and the same thing said in words.

Every function draws at once and returns nothing. Backgrounds are transparent and colours of middle brightness, so that
a figure is readable in a light and in a dark theme. Numbers may be tensors, arrays or lists.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from utils.notebook.html import Markup, element

COLOURS = ("#3b82c4", "#d9730d", "#2e9e5b", "#a06bd6", "#d64550", "#1a9aa0", "#a9782f")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
INK = "#7b8088"  # text, axes: contrast above 4 on white and on JupyterLab's dark background
GRID = "rgba(128, 128, 128, 0.25)"
ONE_WAY = ((0.0, "rgba(59, 130, 196, 0.06)"), (0.5, "#3b82c4"), (1.0, "#d9730d"))
BOTH_WAYS = ((0.0, "#3b82c4"), (0.5, "rgba(128, 128, 128, 0.08)"), (1.0, "#d9730d"))


def lines(
    series: Mapping[str, Any],
    *,
    x: Any,
    title: str,
    xlabel: str,
    ylabel: str,
    alt: str,
    points: Mapping[str, tuple[float, float]] | None = None,
    horizontal: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """A line over `x` for each named series.

    Args:
        series: name -> values, as long as `x`.
        points: name -> (x, y) of single labelled points.
        horizontal: name -> height of labelled reference lines.
        alt: the figure in words, for those who do not see it.
    """
    figure = go.Figure()
    across = _plain(x)
    for number, (name, values) in enumerate(series.items()):
        figure.add_scatter(
            x=across,
            y=_plain(values),
            name=name,
            mode="lines+markers" if len(across) <= 40 else "lines",
            line={"color": _cycle(COLOURS, number), "dash": _cycle(DASHES, number), "width": 2},
            marker={"symbol": _cycle(SYMBOLS, number), "size": 6},
            hovertemplate=f"{name}<br>{xlabel} %{{x}}<br>{ylabel} %{{y:.4g}}<extra></extra>",
        )
    for name, (at, height) in (points or {}).items():
        figure.add_scatter(
            x=[float(at)],
            y=[float(height)],
            mode="markers+text",
            text=[name],
            textposition="top center",
            name=name,
            marker={"color": INK, "symbol": "star", "size": 11},
            textfont={"color": INK},
            showlegend=False,
            hovertemplate=f"{name}<br>{xlabel} %{{x:.4g}}<br>{ylabel} %{{y:.4g}}<extra></extra>",
        )
    _reference_lines(figure, horizontal or {})
    figure.update_xaxes(type="log" if log_x else None)
    figure.update_yaxes(type="log" if log_y else None)
    figure.update_layout(showlegend=len(series) > 1)
    show(_labelled(figure, title, xlabel, ylabel), alt)


def scatter(
    x: Any,
    y: Any,
    *,
    text: Sequence[str],
    title: str,
    xlabel: str,
    ylabel: str,
    alt: str,
    groups: Sequence[str] | None = None,
    diagonal: bool = False,
) -> None:
    """Points with a hover text each.

    Args:
        groups: a group's name for each point; groups differ in colour and symbol.
        diagonal: draw the line on which x and y are the same.
    """
    x, y = _plain(x), _plain(y)
    groups = list(groups) if groups is not None else [ylabel] * len(x)
    figure = go.Figure()
    if diagonal:
        known = [value for value in (*x, *y) if value is not None]
        ends = [min(known), max(known)]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="equal",
            hoverinfo="skip",
            line={"color": INK, "dash": "dot", "width": 1.5},
        )
    for number, group in enumerate(dict.fromkeys(groups)):
        inside = [place for place, name in enumerate(groups) if name == group]
        figure.add_scatter(
            x=[x[place] for place in inside],
            y=[y[place] for place in inside],
            name=group,
            mode="markers",
            text=[text[place] for place in inside],
            marker={"color": _cycle(COLOURS, number), "symbol": _cycle(SYMBOLS, number), "size": 9},
            hovertemplate=f"%{{text}}<br>{xlabel} %{{x:.4g}}<br>{ylabel} %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(showlegend=len(set(groups)) > 1)
    show(_labelled(figure, title, xlabel, ylabel), alt)


def loops(
    panels: Mapping[str, Any],
    *,
    labels: Sequence[str],
    title: str,
    xlabels: Sequence[str],
    ylabels: Sequence[str],
    alt: str,
) -> None:
    """Labelled points joined in the order given, and back to the first: one panel for each named cloud [n, 2]."""
    figure = make_subplots(cols=len(panels), subplot_titles=list(panels) if len(panels) > 1 else None)
    around = [*range(len(labels)), 0]
    for column, cloud in enumerate(panels.values(), start=1):
        across, up = zip(*_plain(cloud), strict=True)
        figure.add_scatter(
            x=[across[i] for i in around],
            y=[up[i] for i in around],
            mode="lines",
            hoverinfo="skip",
            line={"color": INK, "width": 1.5},
            row=1,
            col=column,
        )
        where = f"{xlabels[column - 1]} %{{x:.3g}}<br>{ylabels[column - 1]} %{{y:.3g}}"
        figure.add_scatter(
            x=across,
            y=up,
            mode="markers+text",
            text=list(labels),
            textposition="top center",
            marker={"color": COLOURS[0], "size": 10},
            textfont={"color": INK},
            hovertemplate=f"%{{text}}<br>{where}<extra></extra>",
            row=1,
            col=column,
        )
        margin = 0.2 * (max(across) - min(across))  # room for the labels
        figure.update_xaxes(
            title=xlabels[column - 1], range=[min(across) - margin, max(across) + margin], row=1, col=column
        )
        figure.update_yaxes(
            title=ylabels[column - 1], scaleanchor="x" if column == 1 else f"x{column}", row=1, col=column
        )
    figure.update_layout(showlegend=False, title=title, height=480)
    show(figure, alt)


def clouds(
    panels: Mapping[str, Any],
    *,
    labels: Sequence[str] | None = None,
    title: str,
    xlabel: str,
    ylabel: str,
    alt: str,
    columns: int = 2,
) -> None:
    """Several panels in rows of so many columns, each a named cloud [n, 2]; the same labels in each, if any."""
    starts = range(0, len(panels), columns)
    figure = make_subplots(
        rows=len(starts),
        cols=columns,
        specs=[[{} if start + column < len(panels) else None for column in range(columns)] for start in starts],
        subplot_titles=list(panels),
        vertical_spacing=0.15,
        horizontal_spacing=0.12,
    )
    for number, cloud in enumerate(panels.values()):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        points = _plain(cloud)
        traces = _dots(points) if labels is None else _labelled_points(points, labels)
        for trace in traces:
            trace.hovertemplate = f"{trace.name or ''}<br>{xlabel} %{{x:.3g}}<br>{ylabel} %{{y:.3g}}<extra></extra>"
            figure.add_trace(trace, **place)
        for update, name, values in (
            (figure.update_xaxes, xlabel, [across for across, _ in points]),
            (figure.update_yaxes, ylabel, [up for _, up in points]),
        ):
            margin = (0.05 if labels is None else 0.25) * (max(values) - min(values))  # room for the labels
            update(title=name, range=[min(values) - margin, max(values) + margin], **place)
    figure.update_layout(showlegend=False, title=title, height=80 + 320 * len(starts))
    show(figure, alt)


def _dots(points: list[list[float]]) -> list[go.Scatter]:
    """One trace for many points; where they lie on each other, the heap is darker."""
    across, up = zip(*points, strict=True)
    return [go.Scatter(x=across, y=up, mode="markers", marker={"color": COLOURS[0], "size": 5, "opacity": 0.4})]


def _labelled_points(points: list[list[float]], labels: Sequence[str]) -> list[go.Scatter]:
    """A trace for each point, with its own colour and symbol; its label is below it where another is just above."""
    width, height = (max(values) - min(values) for values in zip(*points, strict=True))
    traces = []
    for number, (label, (across, up)) in enumerate(zip(labels, points, strict=True)):
        is_crowned = any(abs(x - across) < 0.4 * width and 0 < y - up < 0.2 * height for x, y in points)
        trace = go.Scatter(
            x=[across],
            y=[up],
            mode="markers+text",
            text=[label],
            textposition="bottom center" if is_crowned else "top center",
            name=label,
            marker={"color": _cycle(COLOURS, number), "symbol": _cycle(SYMBOLS, number), "size": 11},
            textfont={"color": INK},
        )
        traces.append(trace)
    return traces


def bars(
    series: Mapping[str, Any],
    *,
    x: Sequence[str],
    title: str,
    xlabel: str,
    ylabel: str,
    alt: str,
    horizontal: Mapping[str, float] | None = None,
) -> None:
    """Bars over the named places `x`, side by side where there are several series."""
    figure = go.Figure()
    for number, (name, values) in enumerate(series.items()):
        figure.add_bar(
            x=[str(place) for place in x],
            y=_plain(values),
            name=name,
            marker_color=_cycle(COLOURS, number),
            marker_pattern_shape=_cycle(("", "/", ".", "x"), number),
            hovertemplate=f"{name}<br>%{{x}}<br>{ylabel} %{{y:.4g}}<extra></extra>",
        )
    _reference_lines(figure, horizontal or {})
    figure.update_layout(showlegend=len(series) > 1, barmode="group")
    figure.update_xaxes(type="category")
    show(_labelled(figure, title, xlabel, ylabel), alt)


def heatmap(
    values: Any,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    colorlabel: str,
    alt: str,
    x: Sequence[str] | None = None,
    y: Sequence[str] | None = None,
    text: Any = None,
) -> None:
    """A matrix [rows, columns], the first row on top; NaN stays blank.

    Args:
        x, y: names of the columns and of the rows; their numbers if not given.
        text: what to write into the cells, in the shape of `values`.
    """
    rows = _plain(values)
    x = [str(name) for name in (range(len(rows[0])) if x is None else x)]
    y = [str(name) for name in (range(len(rows)) if y is None else y)]
    known = [value for row in rows for value in row if value is not None]
    largest = max(map(abs, known), default=1.0)
    is_signed = min(known, default=0.0) < 0
    places = {"tickvals": list(range(len(x))), "ticktext": x}, {"tickvals": list(range(len(y))), "ticktext": y}
    figure = go.Figure()
    figure.add_heatmap(
        z=rows,
        customdata=[[f"{xlabel} {column}<br>{ylabel} {row}" for column in x] for row in y],
        text=text,
        texttemplate="%{text}" if text is not None else None,
        textfont={"color": INK},
        colorscale=BOTH_WAYS if is_signed else ONE_WAY,
        zmin=-largest if is_signed else None,
        zmax=largest if is_signed else None,
        colorbar={"title": {"text": colorlabel, "side": "right"}, "outlinewidth": 0},
        xgap=1,
        ygap=1,
        hovertemplate=f"%{{customdata}}<br>{colorlabel} %{{z:.4g}}<extra></extra>",
    )
    # Names may repeat (tokens do), so places are numbers that carry names.
    figure.update_xaxes(**places[0] if len(x) <= 40 else {})
    figure.update_yaxes(**places[1] if len(y) <= 40 else {}, autorange="reversed")
    show(_labelled(figure, title, xlabel, ylabel), alt)


def show(figure: go.Figure, alt: str) -> None:
    """Display a figure in the course's style, followed by its words `alt`, which a screen reader finds.

    Raises:
        ValueError: where the title, an axis label or the words are missing.
    """
    from IPython.display import HTML, display

    _demand_labels(figure, alt)
    title = figure.layout.title.text
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 13},
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        meta={"alt": alt},
        template="none",
        hovermode="closest",
        title={"x": 0.02, "xanchor": "left"},
        legend={"orientation": "h", "y": -0.25},
    )
    if figure.layout.height is None:
        figure.update_layout(height=420)
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=INK, tickcolor=INK, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=INK, tickcolor=INK, automargin=True)
    figure.update_annotations(font_color=INK)
    words = f"{title}. {alt}"
    data = {"application/vnd.plotly.v1+json": figure.to_plotly_json(), "text/plain": f"Figure: {words}"}
    if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # these know only HTML
        drawn = figure.to_html(full_html=False, include_plotlyjs="cdn")
        data["text/html"] = element("figure", Markup(drawn), role="img", aria_label=words)
    display(data, raw=True)
    display(HTML(_in_words(words)))


def _in_words(words: str) -> Markup:
    return element("details", element("summary", "The figure in words"), element("p", words))


def _demand_labels(figure: go.Figure, alt: str) -> None:
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    if not (figure.layout.title.text and alt.strip() and all(axis.title.text for axis in axes)):
        raise ValueError("a figure needs a title, a label on every axis and its content in words (alt)")


def _reference_lines(figure: go.Figure, heights: Mapping[str, float]) -> None:
    for name, height in heights.items():
        figure.add_hline(
            y=float(height),
            line={"color": INK, "dash": "dot", "width": 1.5},
            annotation_text=name,
            annotation_font_color=INK,
        )


def _labelled(figure: go.Figure, title: str, xlabel: str, ylabel: str) -> go.Figure:
    return figure.update_layout(title=title).update_xaxes(title=xlabel).update_yaxes(title=ylabel)


def _plain(values: Any) -> Any:
    """Tensors and arrays as (nested) lists of numbers; what is not finite becomes None, which plotly leaves blank."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    return values if isinstance(values, int | str) or values is None else [_plain(value) for value in values]


def _cycle(choices: Sequence[str], number: int) -> str:
    return choices[number % len(choices)]


def grouped_heatmap(
    values: Any,
    *,
    x_groups: Sequence[str],
    y_groups: Sequence[str],
    title: str,
    xlabel: str,
    ylabel: str,
    colorlabel: str,
    alt: str,
    boxes: Sequence[tuple[str, str]] = (),
) -> None:
    """A large matrix [rows, columns], the first row on top, whose rows and columns come in named groups.

    Args:
        x_groups, y_groups: the group of each column and of each row; the members of a group stand side by side.
        boxes: (row group, column group) pairs to frame.
    """
    rows = _plain(values)
    known = [abs(value) for row in rows for value in row if value is not None]
    largest, is_signed = max(known, default=1.0), any(value is not None and value < 0 for row in rows for value in row)
    across, down = _spans(x_groups), _spans(y_groups)
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if value is None else float(f"{value:.3g}") for value in row] for row in rows],
        customdata=[[f"{xlabel} {column}<br>{ylabel} {row}" for column in x_groups] for row in y_groups],
        colorscale=BOTH_WAYS if is_signed else ONE_WAY,
        zmin=-largest if is_signed else 0,
        zmax=largest,
        colorbar={"title": {"text": colorlabel, "side": "right"}, "outlinewidth": 0},
        hovertemplate=f"%{{customdata}}<br>{colorlabel} %{{z:.3g}}<extra></extra>",
    )
    for spans, edge in ((across, "x"), (down, "y")):
        other = "y" if edge == "x" else "x"
        for start, _ in list(spans.values())[1:]:
            line = {f"{edge}0": start, f"{edge}1": start, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
            figure.add_shape(type="line", line={"color": GRID, "width": 1}, layer="below", **line)
    for row, column in boxes:
        (x0, x1), (y0, y1) = across[column], down[row]
        figure.add_shape(type="rect", x0=x0, x1=x1, y0=y0, y1=y1, line={"color": COLOURS[4], "width": 2})
    figure.update_xaxes(tickvals=[sum(span) / 2 for span in across.values()], ticktext=list(across), showgrid=False)
    figure.update_yaxes(tickvals=[sum(span) / 2 for span in down.values()], ticktext=list(down), showgrid=False)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=560)
    show(_labelled(figure, title, xlabel, ylabel), alt)


def _spans(groups: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Group -> where it begins and ends, with cells of width 1 around whole numbers."""
    spans: dict[str, tuple[float, float]] = {}
    for place, name in enumerate(groups):
        spans[name] = (spans[name][0] if name in spans else place - 0.5, place + 0.5)
    return spans


def attention_heads(patterns: Any, tokens: Sequence[str], *, names: Sequence[str], title: str, alt: str) -> None:
    """Attention patterns [head, from, to] as circuitsvis draws them: choose a head, point at a token.

    Its script is written into the output, so that it needs no network (docs/upstream.md, 10).
    """
    from circuitsvis.attention import attention_heads as drawn
    from IPython.display import HTML, display

    rounded = [[[round(value, 4) for value in row] for row in pattern] for pattern in _plain(patterns)]
    view = drawn(attention=rounded, tokens=list(tokens), attention_head_names=list(names))
    words = f"{title}. {alt}"
    style = "margin: 0; padding: 8px; background: #fff; color: #000"
    caption = element("figcaption", element("b", title))
    figure = element("figure", caption, Markup(view.local_src), role="img", aria_label=words, style=style)
    display({"text/html": figure, "text/plain": f"Figure: {words}"}, raw=True)
    display(HTML(_in_words(words)))
