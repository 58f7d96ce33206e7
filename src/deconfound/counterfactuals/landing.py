"""Where imputed images lie among real ones, in the representation of the imputer's encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from deconfound.arrays import Floats, Rows
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import natural_order
from deconfound.display.umap import coordinates
from deconfound.intervention.embedder import Embedder, in_batches
from deconfound.intervention.intervention import Intervention
from deconfound.metrics.neighbors import nearest
from deconfound.runtime.seeds import numpy_stream

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCH = 256
MOST = 500
"""Cells of each kind on a map."""
NEIGHBORS = 10
COLOURED = 8
"""Source environments drawn in a colour of their own; the others are grey."""


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
        for place, name in enumerate(found[:COLOURED]):
            inside = points[:count][from_where == name]
            colour = colormaps["Set2"](place)
            said = _said(f"real, {name or 'unknown'}")
            axes.scatter(inside[:, 0], inside[:, 1], s=12, color=colour, label=said)
        if len(found) > COLOURED:
            inside = points[:count][np.isin(from_where, found[COLOURED:])]
            label = f"real, {len(found) - COLOURED} others"
            axes.scatter(inside[:, 0], inside[:, 1], s=12, color="0.75", label=label)
        target, imputed = points[count : count + own], points[count + own :]
        axes.scatter(
            target[:, 0], target[:, 1], s=22, color="#d1495b", label=_said(f"real, {to} (target)")
        )
        axes.scatter(
            imputed[:, 0], imputed[:, 1], s=26, marker="x", linewidths=0.9, color="black",
            label=_said(f"imputed to {to}"),
        )  # fmt: skip
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.set_xlabel("UMAP 1", fontsize=9)
    axes.set_ylabel("UMAP 2", fontsize=9)
    figure.savefig(file, format="png", metadata={"Software": None})


def _said(name: str, most: int = 34) -> str:
    """A name that matplotlib shows as it is, cut to `most` characters."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.replace("$", r"\$")
