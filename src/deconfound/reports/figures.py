"""Plots of a report as data for plotly.js: training curves, scores of every fold and seed."""

import html
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deconfound.arrays import Doubles
from deconfound.data.tables.table import natural_order
from deconfound.display.palette import colours as of_groups
from deconfound.reports.sources import RunSource
from deconfound.reports.tables import level_title, part_title

Json = dict[str, Any]
INK, QUIET, LINE = "var(--ink)", "var(--quiet)", "var(--line)"
"""Colours of the page's own dress, light or dark; the page puts them in."""
SHADES = {"train": 0.45, "val": 1.0}


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
        colours = dict(zip(names, of_groups(len(names)), strict=True))
        panels: list[Panel] = []
        for run in sorted(own, key=lambda run: natural_order(run.title)):
            for stage, history in run.history.groupby("stage", sort=False):
                figure = _curves(history, colours, run.selected_step(str(stage)))
                place = f"curves-{len(found)}-{len(panels)}"
                title = f"{run.config['data']['fold']} · seed {run.config['seed']} · {stage}"
                panels.append(Panel(place, title, figure))
        found.append(Curves(method, list(colours.items()), panels))
    return found


def score_slopes(scores: pd.DataFrame, baseline: str) -> list[Panel]:
    """Macro-F1 in pairs: a line for each fold and seed from `baseline` to every method.

    One panel a level and part; `scores` comes from `with_levels`. Where `baseline` was not scored,
    the lines run from method to method.
    """
    rows = scores[
        (scores["representation"] == "prediction")
        & (scores["metric"] == "macro_f1")
        & scores["part"].isin(["test", "id_test", "val"])
        & scores["value"].notna()
    ]
    panels = []
    for (level, part), inside in rows.groupby(["level", "part"]):
        if part == "val" and len(rows[(rows["level"] == level) & (rows["part"] == "id_test")]):
            continue
        title = f"{level_title(str(level))}: {part_title(str(level), str(part))}"
        chance = scores[
            (scores["level"] == level)
            & (scores["part"] == part)
            & (scores["metric"] == "macro_f1_chance")
        ]
        figure = _slopes(inside, baseline, chance["value"].mean())
        panels.append((level == "iid", part != "test", title, figure))
    panels.sort(key=lambda panel: panel[:3])
    return [Panel(f"slopes-{i}", title, figure) for i, (_, _, title, figure) in enumerate(panels)]


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
    axis = {"gridcolor": LINE, "zerolinecolor": LINE, "automargin": True}
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
                "yref": "paper", "line": {"color": INK, "width": 1, "dash": "dot"},
            }
        ]  # fmt: skip
    if split:
        layout["xaxis"]["anchor"] = "y2"
        layout["yaxis2"] = {
            **axis, "title": {"text": "accuracy"}, "domain": [0.0, 0.28], "range": [0, 1.02],
        }  # fmt: skip
    return {"data": traces, "layout": layout}


def _slopes(rows: pd.DataFrame, baseline: str, chance: float) -> Json:
    table = rows.pivot_table(index=["fold", "seed"], columns="method", values="value")
    others = [str(name) for name in table.columns if name != baseline]
    others.sort(key=lambda name: -table[name].mean())
    pairs = [[baseline, name] for name in others] if baseline in table.columns else []
    steps = pairs or [others or [baseline]]
    runs = [(str(fold), int(seed)) for fold, seed in table.index.tolist()]
    folds = sorted({fold for fold, _ in runs}, key=natural_order)
    colour = dict(zip(folds, of_groups(len(folds)), strict=True))
    traces: list[Json] = []
    for place, names in enumerate(steps):
        at = [2.6 * place + step for step in range(len(names))]
        for (fold, seed), values in zip(runs, table[names].to_numpy(), strict=True):
            if np.isfinite(values).any():
                words = [_plain_text(f"{name}: {fold}, seed {seed}") for name in names]
                line = {"color": colour[fold], "width": 1.2}
                traces.append(_line(at, values, words, line, 5, named=place == 0))
                traces[-1] |= {"opacity": 0.75, "name": _plain_text(f"{fold}, seed {seed}")}
        means = table[names].dropna().mean().to_numpy()
        words = [f"mean of {_plain_text(name)}" for name in names]
        traces.append(_line(at, means, words, {"color": INK, "width": 3}, 9, named=False))
        traces[-1]["name"] = "mean"
    columns = sum(len(names) for names in steps)
    ticks = [
        (2.6 * place + step, name) for place, names in enumerate(steps)
        for step, name in enumerate(names)
    ]  # fmt: skip
    low, high = float(rows["value"].min()), float(rows["value"].max())
    pad = max(0.02, 0.1 * (high - low))
    near = math.isfinite(chance) and chance > low - max(0.15, high - low)
    bottom = min(low, chance) - pad if near else low - pad
    layout: Json = {
        "height": 320,
        "margin": {"l": 48, "r": 10, "t": 8, "b": 10},
        "showlegend": False,
        "xaxis": {
            "tickvals": [at for at, _ in ticks],
            "ticktext": [_plain_text(_short(name)) for _, name in ticks],
            "range": [-0.6, ticks[-1][0] + 0.6],
            "showgrid": False, "zeroline": False, "automargin": True,
            "tickangle": 0 if columns <= 4 else -40, "fixedrange": True,
        },
        "yaxis": {
            "title": {"text": "macro-F1"}, "range": [bottom, high + pad],
            "gridcolor": LINE, "zeroline": False, "fixedrange": True,
        },
    }  # fmt: skip
    if near:
        level = {"xref": "paper", "x0": 0, "x1": 1, "y0": chance, "y1": chance}
        layout["shapes"] = [
            {"type": "line", **level, "line": {"color": QUIET, "width": 1, "dash": "dot"}}
        ]
        layout["annotations"] = [
            {
                "xref": "paper", "x": 1, "xanchor": "right", "y": chance, "yanchor": "bottom",
                "text": "chance", "showarrow": False, "font": {"color": QUIET, "size": 10},
            }
        ]  # fmt: skip
    return {"data": traces, "layout": layout}


def _line(
    at: list[float], values: Doubles, words: list[str], line: Json, size: int, *, named: bool
) -> Json:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": at,
        "y": [None if math.isnan(value) else value for value in values.tolist()],
        "text": words,
        "line": line,
        "marker": {"size": size},
        "showlegend": named,
        "hovertemplate": "%{text}: %{y:.3f}<extra></extra>",
    }


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _plain_text(text: str) -> str:
    """Text escaped for plotly.js, which reads < and & as markup."""
    return html.escape(text, quote=False)
