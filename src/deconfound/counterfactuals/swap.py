"""transfer: counterfactual cells, the content of one cell in the style of another."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconfound import methods
from deconfound.arrays import Bytes, Rows
from deconfound.counterfactuals.cells import (
    about_run,
    diverse,
    names,
    refuse_irreversible,
    short,
    texts,
)
from deconfound.counterfactuals.explained import explained_share
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.table import coded
from deconfound.display.pixels import contrast, rgb
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.methods.contract import Imputer, Method
from deconfound.runs.run import Run, open_run

# The drawn grid, in pixels.
TILE, GAP, LEFT, TOP, DPI = 96, 5, 125, 58, 110
FRAME = "#1a7f5a"
CELLS = 8
"""Number of cells drawn by default."""


@dataclass(frozen=True)
class Swap:
    """Cells, and every content among them decoded in every style."""

    rows: Rows
    """(I,) int64 rows of the screen's table."""
    labels: tuple[str, ...]
    """The label of each cell; empty where it has none."""
    environments: tuple[str, ...]
    """The environment of each cell; empty where it has none."""
    originals: npt.NDArray[Any]
    """(I, C, H, W) in the stored dtype."""
    swapped: npt.NDArray[np.float32]
    """(I, I, C, h, w) in stored units: `swapped[i, j]` is the content of cell i in the style of
    cell j, so the diagonal holds the reconstructions."""


def transfer(
    run: Path,
    screen: Path,
    out: Path,
    *,
    images: int | None = None,
    seed: int = 0,
) -> Swap:
    """Swap content and style between cells of `screen` and write the directory `out`.

    `images` cells (8 if not given) are drawn by `seed` to differ in label and environment: from the
    parts val and id_test of the run's own screen, from all rows of another screen.
    Writes swap.png, originals.npy, swapped.npy and transfer.json, which says what share of the
    pixels' variance the decoder explains beyond each label's mean image.
    Makino et al., SCBD, Figure 2b. Raises UserError if `out` exists, if the method cannot swap or
    if there are fewer than 2 cells.
    """
    out = Path(out)
    atomic.refuse_existing(out)
    images = CELLS if images is None else images
    if images < 2:
        raise UserError(f"--images {images}: a swap needs 2 cells or more")
    opened, source = open_run(run), open_screen(screen)
    if source.holds_profiles:
        raise UserError(f"{screen}: holds profiles; transfer draws cells, give a screen of images")
    method, intensity = opened.load(source)
    if isinstance(method, Imputer):
        raise UserError(
            f"{run}: {opened.config.method} has no content and style to swap; it imputes, add "
            "--to ENVIRONMENT"
        )
    with atomic.atomic_directory(out) as temporary:
        label = names(source, [str(opened.roles.label)])
        environment = names(source, opened.roles.environment)
        part = opened.parts(source)
        candidates = np.concatenate([np.flatnonzero(part == n) for n in ("val", "id_test", "new")])
        rows = diverse(candidates, label, environment, images, seed)
        if len(rows) < 2:
            raise UserError(
                f"{screen}: {len(rows)} cell to swap; expected 2 or more in val or id_test"
            )
        originals = source.read(rows)
        swapped = _swapped(opened, method, intensity, originals)
        codes = coded(label).codes
        share = explained_share(method, intensity, source, candidates, codes, seed)
        swap = Swap(rows, texts(label, rows), texts(environment, rows), originals, swapped)
        np.save(temporary / "originals.npy", originals, allow_pickle=False)
        np.save(temporary / "swapped.npy", swapped, allow_pickle=False)
        _draw(swap, source.channels, temporary / "swap.png")
        about = about_run(opened, source) | {
            "channels": source.channels,
            "cells_seed": seed,
            "rows": rows.tolist(),
            "explained": share,
            "labels": swap.labels,
            "environments": swap.environments,
        }
        (temporary / "transfer.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    return swap


@torch.inference_mode()
def _swapped(
    run: Run, method: Method, intensity: Intensity, originals: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    refuse_irreversible(run)
    embedded = method.embed(intensity(torch.from_numpy(originals)))
    able = [name for name in methods.names() if methods.load(name).swap is not Method.swap]
    if run.config.method in able and "style" not in embedded:
        raise UserError(
            f"{run.path}: the run has no style block to swap; fit it again with --style-block"
        )
    if run.config.method not in able or not {"content", "style"} <= embedded.keys():
        raise UserError(
            f"{run.path}: {run.config.method} has no content and style to swap; "
            f"fit one of {', '.join(able)}"
        )
    content, style = embedded["content"], embedded["style"]
    found = []
    for cell in content:
        decoded = method.swap(cell.expand(len(style), -1), style)
        if decoded is None:
            raise UserError(
                f"{run.path}: the run has no decoder (decoder: none); "
                "fit it again with --decoder after"
            )
        found.append(intensity.inverse(decoded.float()))
    return torch.stack(found).numpy()


def _draw(swap: Swap, channels: tuple[str, ...], file: Path) -> None:
    """Draw content i in row i and style j in column j, after the originals, with one contrast."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    cells = len(swap.rows)
    bounds = contrast(swap.originals, channels)
    originals = rgb(swap.originals, channels, bounds)
    pitch, first = TILE + GAP, TILE + 4 * GAP
    side = first + cells * pitch
    sheet = np.full((side, side, 3), 255, dtype=np.uint8)
    width, height = side + LEFT, side + TOP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((LEFT / width, 0, side / width, side / height))
    for i in range(cells):
        here = first + i * pitch
        _paste(sheet, here, 0, originals[i])
        _paste(sheet, 0, here, originals[i])
        for j, decoded in enumerate(rgb(swap.swapped[i], channels, bounds)):
            _paste(sheet, here, first + j * pitch, decoded)
        frame = Rectangle((here - 2, here - 2), TILE + 3, TILE + 3, fill=False, linewidth=1.5)
        frame.set_edgecolor(FRAME)
        axes.add_patch(frame)
        name = "\n".join(short(of[i], 16) for of in (swap.labels, swap.environments))
        middle = here + TILE / 2
        common: dict[str, Any] = {"fontsize": 7.5, "parse_math": False, "clip_on": False}
        axes.text(-GAP, middle, name, ha="right", va="center", **common)
        axes.text(middle, -GAP, name, ha="center", va="bottom", **common)
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    figure.text((LEFT + side / 2) / width, 0.995, "style of", ha="center", va="top", fontsize=10)
    figure.text(0.005, side / height / 2, "content of", rotation=90, va="center", fontsize=10)
    figure.savefig(file, format="png", metadata={"Software": None})


def _paste(sheet: Bytes, top: int, left: int, shown: Bytes) -> None:
    """Put a picture (H, W, 3) on the sheet, resized to one tile."""
    from PIL import Image

    grows = max(shown.shape[:2]) <= TILE
    method = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    tile = np.asarray(Image.fromarray(shown).resize((TILE, TILE), method))
    sheet[top : top + TILE, left : left + TILE] = tile
