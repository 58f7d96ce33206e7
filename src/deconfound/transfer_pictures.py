"""The picture of an imputation: what went in, whose style it got, what came out, the difference."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound import picture

SIDE, DPI = 1.25, 120
"""Inches of a cell, and pixels of an inch."""


def draw_imputed(
    source: npt.NDArray[Any],
    style: npt.NDArray[Any],
    imputed: npt.NDArray[Any],
    channels: tuple[str, ...],
    environments: tuple[str, ...],
    to: str,
    file: Path,
) -> None:
    """Draw a row for each cell of (B, C, H, W) in stored units, one contrast for all.

    The difference is imputed − source, in the mean over channels of each one's contrast range.
    """
    from matplotlib.figure import Figure

    bounds = picture.contrast(np.concatenate([source, style]), channels)
    shown = [picture.rgb(pixels, channels, bounds) for pixels in (source, style, imputed)]
    span = np.maximum(bounds[:, 1] - bounds[:, 0], 1e-12)[:, None, None]
    difference = ((imputed.astype(np.float64) - source) / span).mean(axis=1)
    most = max(float(np.abs(difference).max()), 1e-6)
    cells = len(source)
    figure = Figure(figsize=(4 * SIDE + 2.3, cells * SIDE + 0.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(cells, 4, squeeze=False)
    titles = ("source", f"style\n{_short(to)}", f"imputed\nto {_short(to)}", "imputed − source")
    drawn = None
    for row, axes in enumerate(grid):
        for one, pixels in zip(axes[:3], shown, strict=True):
            one.imshow(pixels[row], interpolation="nearest")
        drawn = axes[3].imshow(
            difference[row], cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest"
        )
        for one in axes:
            one.set_xticks([])
            one.set_yticks([])
        axes[0].set_ylabel(
            _short(environments[row]) or "unknown", rotation=0, ha="right", va="center", fontsize=8,
            parse_math=False,
        )  # fmt: skip
    for one, title in zip(grid[0], titles, strict=True):
        one.set_title(title, fontsize=9, parse_math=False)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(grid[:, 3]), fraction=0.08, shrink=0.9)
        bar.set_label("share of the contrast range, mean of channels", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.savefig(file, format="png", metadata={"Software": None})


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
