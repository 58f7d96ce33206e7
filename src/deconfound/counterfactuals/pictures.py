"""The pictures of an imputation: cells before and after, and a map of where they land."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from deconfound.arrays import Floats, Rows
from deconfound.counterfactuals.cells import short
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import natural_order
from deconfound.display.pixels import contrast, rgb
from deconfound.display.umap import coordinates
from deconfound.intervention.embedder import Embedder, in_batches
from deconfound.intervention.intervention import Intervention
from deconfound.metrics.neighbors import nearest
from deconfound.runtime.seeds import numpy_stream

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SIDE, DPI = 1.25, 120
"""Side of a cell in inches, and pixels in an inch."""
BATCH = 256
MOST = 500
"""Cells of each kind on a map."""
NEIGHBORS = 10
COLOURED = 8
"""Source environments drawn in a colour of their own; the others are grey."""
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
    target = short(to, 22)
    titles = ("source", f"style\n{target}", f"imputed\nto {target}", "imputed − source")
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
        name = short(environments[row], 18) or "unknown"
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


@dataclass(frozen=True)
class Landing:
    """Representations of cells before and after imputation, and of the target environment."""

    originals: Floats
    """(N, D)."""
    imputed: Floats
    """(N, D), of the same cells."""
    target: Floats
    """(T, D) of real cells of the target environment."""
    environments: tuple[str, ...]
    """(N,) of the originals."""

    def shares(self) -> dict[str, float]:
        """Mean share of target-environment cells among the k nearest real cells.

        `imputed` is that of imputed cells, `originals` that of the originals (without the cell
        itself), `chance` the share of the target among all real cells, and `neighbors` is k. The
        original of an imputed cell is a real cell near it, and lowers the share.
        """
        real = np.concatenate([self.originals, self.target])
        count = len(self.originals)
        k = min(NEIGHBORS, len(self.target), len(real) - 1)
        after, _ = nearest(real, self.imputed, k)
        before, _ = nearest(real, self.originals, k, exclude=np.arange(count))
        return {
            "imputed": float((after >= count).mean()),
            "originals": float((before >= count).mean()),
            "chance": len(self.target) / len(real),
            "neighbors": k,
        }


def find_landing(
    imputer: Intervention,
    fabric: "Fabric",
    originals: tuple[Screen, Rows, tuple[str, ...]],
    imputed: tuple[Screen, Rows],
    target: tuple[Screen, Rows],
    seed: int,
) -> Landing:
    """Embed at most 500 cells of each kind, drawn by `seed`, with the imputer's own encoder.

    `originals` (with their environments) and `imputed` are the same cells in the same order.
    """

    def encode(screen: Screen, rows: Rows) -> Floats:
        embedder = Embedder(imputer.imputer, imputer.intensity, screen, fabric)
        embedded = embedder.stream(in_batches(rows, BATCH))
        return torch.cat([one.representations["representation"] for one in embedded]).cpu().numpy()

    screen, rows, environments = originals
    kept = np.sort(numpy_stream(seed, "landing cells").permutation(len(rows))[:MOST])
    some = np.sort(numpy_stream(seed, "landing target").permutation(target[1])[:MOST])
    return Landing(
        encode(screen, rows[kept]),
        encode(imputed[0], imputed[1][kept]),
        encode(target[0], some),
        tuple(environments[place] for place in kept),
    )


def draw_landing(landing: Landing, to: str, file: Path, seed: int) -> None:
    """Draw the UMAP of all cells, fitted to all (Pernice et al., 2023, Figure 4B: to real ones)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    count, own = len(landing.originals), len(landing.target)
    both = np.concatenate([landing.originals, landing.target, landing.imputed])
    figure = Figure(figsize=(8.4, 5.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    shares = landing.shares()
    axes.set_title(
        f"{100 * shares['imputed']:.0f} % of the {shares['neighbors']} real cells nearest to an "
        f"imputed one are of the target\n({100 * shares['originals']:.0f} % before, "
        f"{100 * shares['chance']:.0f} % by chance)",
        fontsize=10,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    if len(both) < 4 or np.ptp(both, axis=0).max() == 0:
        axes.text(0.5, 0.5, "too few cells for a map", ha="center", transform=axes.transAxes)
    else:
        points = coordinates(both, seed)
        from_where = np.array(landing.environments)
        found = sorted(set(landing.environments), key=natural_order)
        real: list[tuple[Floats, str, Any, int]] = [
            (points[:count][from_where == name], name or "unknown", colormaps["Set2"](place), 12)
            for place, name in enumerate(found[:COLOURED])
        ]
        if others := found[COLOURED:]:
            inside = points[:count][np.isin(from_where, others)]
            real.append((inside, f"{len(others)} others", "0.75", 12))
        real.append((points[count : count + own], f"{to} (target)", "#d1495b", 22))
        for shown, name, colour, size in real:
            label = _said(f"real, {name}")
            axes.scatter(shown[:, 0], shown[:, 1], s=size, color=colour, label=label)
        imputed = points[count + own :]
        axes.scatter(
            imputed[:, 0], imputed[:, 1], s=26, marker="x", linewidths=0.9, color="black",
            label=_said(f"imputed to {to}"),
        )  # fmt: skip
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.set_xlabel("UMAP 1", fontsize=9)
    axes.set_ylabel("UMAP 2", fontsize=9)
    figure.savefig(file, format="png", metadata={"Software": None})


def _said(name: str) -> str:
    """A name that matplotlib shows as it is."""
    return short(name, 34).replace("$", r"\$")
