"""The picture of an imputation: source, style image, imputed image and their difference."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.display.pixels import contrast, rgb

SIDE, DPI = 1.25, 120
"""Side of a cell in inches, and pixels in an inch."""
TIGHT = {"wspace": 0.04, "hspace": 0.04}


def draw_imputed(
    source: npt.NDArray[Any],
    style: npt.NDArray[Any],
    imputed: npt.NDArray[Any],
    file: Path,
    *,
    channels: tuple[str, ...],
    environments: tuple[str, ...],
    to: str,
) -> None:
    """Draw a row for each cell; images are (B, C, H, W) in stored units, with one contrast.

    The last column shows imputed − source, as a share of each channel's contrast range, in the mean
    over channels.
    """
    from matplotlib.figure import Figure

    bounds = contrast(np.concatenate([source, style]), channels)
    shown = [rgb(pixels, channels, bounds) for pixels in (source, style, imputed)]
    span = np.maximum(bounds[:, 1] - bounds[:, 0], 1e-12)[:, None, None]
    difference = ((imputed.astype(np.float64) - source) / span).mean(axis=1)
    most = max(float(np.abs(difference).max()), 1e-6)
    cells = len(source)
    left, right, top, bottom = 1.45, 0.85, 0.5, 0.08  # margins in inches
    width, height = 4 * SIDE + left + right, cells * SIDE + top + bottom
    figure = Figure(figsize=(width, height), dpi=DPI)
    inside = {"left": left / width, "right": 1 - right / width}
    inside |= {"top": 1 - top / height, "bottom": bottom / height}
    grid = figure.subplots(cells, 4, squeeze=False, gridspec_kw=inside | TIGHT)
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
        name = _short(environments[row], 18) or "unknown"
        common: dict[str, Any] = {"ha": "right", "va": "center", "parse_math": False}
        axes[0].set_ylabel(name, rotation=0, fontsize=8, **common)
    for one, title in zip(grid[0], titles, strict=True):
        one.set_title(title, fontsize=9, parse_math=False)
    if drawn is not None:
        tall = inside["top"] - inside["bottom"]
        beside = figure.add_axes(
            (inside["right"] + 0.1 / width, inside["bottom"], 0.12 / width, tall)
        )
        bar = figure.colorbar(drawn, cax=beside)
        bar.set_label("share of the contrast range, mean of channels", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.savefig(file, format="png", metadata={"Software": None})


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
