"""The picture of Figure 4: average precision against macro-F1 of the well."""

from pathlib import Path

import numpy as np
import pandas as pd


def draw(table: pd.DataFrame, file: Path) -> None:
    """Average precision against well macro-F1: a point an entry, with the sd over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    titles = {"all": "all cells, as in the paper", "test": "cells of the test part"}
    entries = [name for name in dict.fromkeys(table["entry"]) if name != "true traits"]
    colours = dict(
        zip(entries, plt.colormaps["turbo"](np.linspace(0, 1, len(entries))), strict=False)
    )
    markers = {"scbd": "o", "cell": "s"}
    for axis, (cells, title) in zip(axes, titles.items(), strict=True):
        part = table[table["cells_of"] == cells]
        for entry in entries:
            of_entry = part[part["entry"] == entry]
            if of_entry.empty:
                continue
            x, y = of_entry["well_macro_f1"], of_entry["average_precision"]
            spread = [0.0 if len(of_entry) < 2 else float(one.std()) for one in (x, y)]
            axis.errorbar(
                x.mean(), y.mean(), spread[1], spread[0], capsize=2, label=entry,
                marker=markers.get(entry[:4], "^"), color=colours[entry], linestyle="none",
            )  # fmt: skip
        truth = part[part["entry"] == "true traits"]
        for name, value in (
            ("true traits", truth["average_precision"].mean()),
            ("genes permuted", part["average_precision_permuted"].mean()),
        ):
            axis.axhline(value, color="grey", linestyle=":")
            axis.annotate(name, (0.99, value), color="grey", ha="right", va="bottom", fontsize=8)
        axis.axvline(1 / 34, color="grey", linestyle=":")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xlabel("macro-F1 of the well (lower is better; dotted: chance)")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("average precision of complexes (higher is better)")
    handles = {
        text: handle
        for axis in axes
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), fontsize=8, loc="center left", bbox_to_anchor=(0.91, 0.5)
    )
    figure.savefig(file, dpi=110, bbox_inches="tight")
