"""Plots of a report as data for plotly.js: training curves, scores of every fold and seed."""

import html
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from deconfound.data.tables.table import natural_order
from deconfound.display.numbers import number
from deconfound.reports.sources import RunSource
from deconfound.reports.tables import level_title, part_title

Json = dict[str, Any]
COLOURS = (
    "#4269d0", "#efb118", "#e8503f", "#3ca951", "#a463f2",
    "#17a2b8", "#ff8ab7", "#9c6b4e", "#6c7a89", "#97bbf5",
    "#b59b00", "#7f1d1d", "#0b7a4b", "#5b2a86", "#0d5c75",
)  # fmt: skip
SHADES = {"train": 0.45, "val": 1.0}
GRID = "#e8e8e8"


class Panel(NamedTuple):
    """One plot: the id of its place in the page, and what plotly.js draws there."""

    place: str
    title: str
    figure: Json


class Curves(NamedTuple):
    """The training curves of one method."""

    method: str
    legend: list[tuple[str, str]]
    """Name and colour of each quantity."""
    panels: list[Panel]


def training_curves(runs: list[RunSource]) -> list[Curves]:
    """Losses and accuracy over the steps of every stage of every run, grouped by method.

    Training is drawn faint, validation strong; a dotted line marks the checkpoint in use.
    """
    found: list[Curves] = []
    for method in sorted({run.name for run in runs}):
        own = [run for run in runs if run.name == method]
        names = list(dict.fromkeys(name for run in own for name in run.history["name"]))
        colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
        panels: list[Panel] = []
        for run in sorted(own, key=lambda run: natural_order(run.title)):
            for stage, history in run.history.groupby("stage", sort=False):
                figure = _curves(history, colours, run.selected_step(str(stage)))
                place = f"curves-{len(found)}-{len(panels)}"
                title = f"{run.config['data']['fold']} · seed {run.config['seed']} · {stage}"
                panels.append(Panel(place, title, figure))
        found.append(Curves(method, list(colours.items()), panels))
    return found


def score_dots(scores: pd.DataFrame) -> list[Panel]:
    """Macro-F1 of every fold and seed as a dot, the mean as a bar; one panel a level and part.

    `scores` comes from `with_levels`.
    """
    rows = scores[
        (scores["representation"] == "prediction")
        & (scores["metric"] == "macro_f1")
        & scores["part"].isin(["test", "id_test", "val"])
    ]
    panels = []
    methods = sorted(rows["method"].unique(), reverse=True)
    for (level, part), inside in rows.groupby(["level", "part"]):
        if part == "val" and len(rows[(rows["level"] == level) & (rows["part"] == "id_test")]):
            continue
        title = f"{level_title(str(level))}: {part_title(str(level), str(part))}"
        panels.append((level == "iid", part != "test", title, _dots(inside, methods)))
    panels.sort(key=lambda panel: panel[:3])
    return [Panel(f"dots-{i}", title, figure) for i, (_, _, title, figure) in enumerate(panels)]


def _curves(history: pd.DataFrame, colours: dict[str, str], selected: float | None) -> Json:
    traces: list[Json] = []
    for (name, part), rows in history.groupby(["name", "part"], sort=False):
        accuracy = name == "accuracy"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if part == "train" or len(rows) > 40 else "lines+markers",
                "x": rows["step"].tolist(),
                "y": [value if math.isfinite(value) else None for value in rows["value"]],
                "yaxis": "y2" if accuracy else "y",
                "name": _plain_text(f"{name} ({part})"),
                "line": {"color": colours[str(name)], "width": 2.0 if part == "val" else 1.2},
                "marker": {"size": 4},
                "opacity": SHADES.get(str(part), 1.0),
                "hovertemplate": "step %{x}: %{y:.4g}",
            }
        )
    split = bool((history["name"] == "accuracy").any())
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}
    layout: Json = {
        "height": 270 if split else 210,
        "margin": {"l": 44, "r": 10, "t": 8, "b": 34},
        "showlegend": False,
        "xaxis": {**axis, "title": {"text": "step", "standoff": 4}, "anchor": "y"},
        "yaxis": {**axis, "title": {"text": "loss"}, "domain": [0.38, 1.0] if split else [0, 1]},
    }
    if selected is not None:
        layout["shapes"] = [
            {
                "type": "line", "x0": selected, "x1": selected, "y0": 0, "y1": 1, "xref": "x",
                "yref": "paper", "line": {"color": "#444", "width": 1, "dash": "dot"},
            }
        ]  # fmt: skip
    if split:
        layout["xaxis"]["anchor"] = "y2"
        layout["yaxis2"] = {
            **axis, "title": {"text": "accuracy"}, "domain": [0.0, 0.28], "range": [0, 1.02],
        }  # fmt: skip
    return {"data": traces, "layout": layout}


def _dots(rows: pd.DataFrame, methods: list[str]) -> Json:
    defined = rows[rows["value"].notna()]
    means = defined.groupby("method")["value"].mean()
    chosen = {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(reversed(methods))}
    dots = _marks(
        defined["method"],
        defined["value"],
        text=[_plain_text(f"{row.fold}, seed {row.seed}") for row in defined.itertuples()],
        marker={"size": 9, "opacity": 0.65, "color": [chosen[one] for one in defined["method"]]},
        hovertemplate="%{text}: %{x:.3f}<extra></extra>",
    )
    line = {"width": 3, "color": [chosen[str(method)] for method in means.index]}
    bars = _marks(
        means.index,
        means,
        text=[number(mean, 3) for mean in means],
        marker={"symbol": "line-ns", "size": 20, "line": line},
        hovertemplate="mean %{text}<extra></extra>",
    )
    layout: Json = {
        "height": 70 + 34 * len(methods),
        "margin": {"l": 10, "r": 14, "t": 6, "b": 36},
        "showlegend": False,
        "xaxis": {
            "range": [-0.02, 1.02], "gridcolor": GRID, "zeroline": False,
            "title": {"text": "macro-F1", "standoff": 4},
        },
        "yaxis": {
            "type": "category", "categoryorder": "array", "automargin": True, "gridcolor": GRID,
            "categoryarray": [_plain_text(method) for method in methods],
        },
    }  # fmt: skip
    return {"data": [dots, bars], "layout": layout}


def _marks(methods: Iterable[object], values: pd.Series, **drawn: Any) -> Json:
    """A mark for each value, at the height of its method."""
    y = [_plain_text(str(method)) for method in methods]
    return {"type": "scatter", "mode": "markers", "x": values.tolist(), "y": y, **drawn}


def _plain_text(text: str) -> str:
    """Text escaped for plotly.js, which reads < and & as markup."""
    return html.escape(text, quote=False)
