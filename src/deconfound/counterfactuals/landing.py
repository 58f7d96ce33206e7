"""Where imputed images land among real ones, in the space of the encoder that imputes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deconfound.arrays import Floats, Rows
from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import natural_order
from deconfound.display.umap import coordinates
from deconfound.methods.base import Imputer
from deconfound.metrics.neighbors import nearest
from deconfound.runtime.seeds import numpy_stream

BATCH = 256
MOST = 500
"""Cells of each kind on a map."""
NEIGHBORS = 10
COLOURED = 8
"""Source environments with a colour of their own."""


@dataclass(frozen=True)
class Encoder:
    """What `embed` of an imputer makes of pixels."""

    method: Imputer
    intensity: Intensity
    device: torch.device

    @torch.no_grad()
    def __call__(self, screen: Screen, rows: Rows) -> Floats:
        """The representations (B, D) float32 of rows of a screen."""
        reader = BatchReader.of_images(screen, self.intensity, self.device)
        parts = np.split(rows, np.arange(BATCH, len(rows), BATCH))
        found = [self.method.embed(one.image)["representation"] for one in reader.stream(parts)]
        return torch.cat(found).float().cpu().numpy()


@dataclass(frozen=True)
class Landing:
    """Representations of cells before and after they were imputed, and of the target's own."""

    originals: Floats
    """(N, D)."""
    imputed: Floats
    """(N, D), of the same cells."""
    target: Floats
    """(T, D) of real cells of the target environment."""
    environments: tuple[str, ...]
    """(N,) where the originals are from."""

    def shares(self) -> dict[str, float]:
        """Of how many of the nearest real cells the target is the environment, on average.

        Of the `neighbors` nearest originals and target cells, those of imputed cells; of the
        originals themselves, each without itself; and `chance`, the share of the target among all.
        An imputed cell's own original is among those near it, and counts against it.
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
    encode: Encoder,
    originals: tuple[Screen, Rows, tuple[str, ...]],
    imputed: tuple[Screen, Rows],
    target: tuple[Screen, Rows],
    seed: int,
) -> Landing:
    """Embed at most 500 cells of each kind, drawn by `seed`.

    `originals` (with their environments) and `imputed` are the same cells in the same order.
    """
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
    """Draw the UMAP of all cells: Pernice et al., 2023, Figure 4B, there fitted to real ones."""
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
    """A name without markup of the plotting library, cut where it is long."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.replace("$", r"\$")
