"""Maps in a report: UMAP of each method's embedding, with a picture of the cell at each point."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.data.screens.screen import Screen, holds_screen, open_screen
from deconfound.data.tables.table import natural_order
from deconfound.display.page import data_uri
from deconfound.display.pixels import contrast, rgb
from deconfound.display.umap import coordinates
from deconfound.embeddings.file import PART, PREDICTED
from deconfound.errors import UserError
from deconfound.reports.columns import Pool, base64_of
from deconfound.reports.sources import RunSource, Sample
from deconfound.runtime.seeds import numpy_stream

CONTRAST_IMAGES = 256
THUMBNAIL = 64
THUMBNAILS = 2_000
"""Thumbnails of a page, the same number of every screen; cells beyond have none."""
QUALITY = 82
MANY = 10_000
"""Points of all maps together from which they are drawn by WebGL."""
STEPS = 8_191
"""Steps of the coordinates of a map."""
HELD_OUT = ("test", "new")
ROLES = {
    "label": "Label",
    "environment": "Environment",
    "part": "Part of the fold",
    "predicted": "Predicted label",
}


@dataclass(frozen=True)
class Map:
    """One embedding in two dimensions."""

    title: str
    caption: str
    points: dict[str, Any] | None
    """What the page draws; None where no map could be drawn, with the reason in the caption."""
    left_out: tuple[str, ...] = ()
    """Columns of the table that the map cannot be coloured by."""


class Sprite(NamedTuple):
    """Thumbnails of one screen in one picture."""

    source: str
    """WebP as a data URI: square tiles, row by row."""
    side: int
    columns: int
    place: dict[int, int]
    """Number of the tile of each row."""


def draw_maps(
    samples: list[Sample], runs: list[RunSource], seed: int, pool: Pool
) -> tuple[list[Map], list[Sprite]]:
    """One map for each method, of the fold and seed that most methods have, and the thumbnails.

    The columns that the maps can be coloured by go into `pool`.
    """
    chosen = _one_each(samples)
    opened: dict[Path, tuple[Screen, list[Sample]]] = {}
    absent: dict[str, str] = {}
    for sample in chosen:
        try:
            screen = _screen(sample, runs)
            opened.setdefault(screen.path, (screen, []))[1].append(sample)
        except UserError as error:
            absent[sample.name] = str(error)
    sprites: list[Sprite] = []
    number: dict[str, int] = {}
    for screen, members in opened.values():
        rows = np.unique(np.concatenate([sample.rows for sample in members]))
        number |= {sample.name: len(sprites) for sample in members}
        sprites.append(thumbnails(screen, rows, THUMBNAILS // len(opened), seed))
    maps = [
        _map(sample, sprites, number.get(sample.name), absent.get(sample.name), seed, pool)
        for sample in chosen
    ]
    return maps, sprites


def thumbnails(screen: Screen, rows: npt.NDArray[np.int64], most: int, seed: int) -> Sprite:
    """Small pictures of at most `most` of `rows`, drawn by `seed`, one contrast for all."""
    from PIL import Image

    stream = numpy_stream(seed, "thumbnails")
    kept = np.sort(stream.permutation(rows)[:most])
    bounds = contrast(screen.read(kept[:: max(1, len(kept) // CONTRAST_IMAGES)]),
                              screen.channels)  # fmt: skip
    side = min(THUMBNAIL, max(screen.image_shape[1:]))
    columns = int(np.ceil(np.sqrt(len(kept))))
    sheet = Image.new("RGB", (columns * side, -(-len(kept) // columns) * side))
    for start in range(0, len(kept), CONTRAST_IMAGES):
        chunk = screen.read(kept[start : start + CONTRAST_IMAGES])
        for offset, pixels in enumerate(rgb(chunk, screen.channels, bounds)):
            tile = Image.fromarray(pixels)
            tile.thumbnail((side, side), Image.Resampling.BOX)
            down, across = divmod(start + offset, columns)
            sheet.paste(tile, (across * side, down * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=QUALITY, method=4)
    place = {int(row): tile for tile, row in enumerate(kept)}
    return Sprite(data_uri("image/webp", buffer.getvalue()), side, columns, place)


def _one_each(samples: list[Sample]) -> list[Sample]:
    """One sample of every method: of the fold, then the seed, that most methods have."""
    having: dict[tuple[str, int], set[str]] = {}
    for sample in samples:
        having.setdefault(_split(sample), set()).add(sample.name)
    rank = sorted(having, key=lambda key: (-len(having[key]), natural_order(key[0]), key[1]))
    chosen: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: rank.index(_split(sample))):
        chosen.setdefault(sample.name, sample)
    return [chosen[name] for name in sorted(chosen)]


def _split(sample: Sample) -> tuple[str, int]:
    return str(sample.about["fold"]), int(sample.about["seed"])


def _screen(sample: Sample, runs: list[RunSource]) -> Screen:
    """The screen that a sample is of, its run's own; raises UserError if it cannot be found."""
    about = sample.about
    if "new" in sample.marks["part"].names:
        raise UserError(f"{about['screen']} is not the screen of the run")
    wanted = about.get("run"), about.get("config")
    run = next((one.run for one in runs if (one.path.name, one.config) == wanted), None)
    if run is None:
        raise UserError(f"its run ({about.get('run')}) is not among the paths reported on")
    path = run.screen_path
    if not holds_screen(path):
        raise UserError(f"the screen is no longer at {path}")
    screen = open_screen(path)
    if not run.trained_on(screen):
        raise UserError(f"the screen at {path} has changed since")
    if screen.holds_profiles:
        raise UserError("the screen holds profiles, which have no pictures")
    return screen


def _map(
    sample: Sample,
    sprites: list[Sprite],
    sheet: int | None,
    absent: str | None,
    seed: int,
    pool: Pool,
) -> Map:
    title = f"{sample.name}: {sample.representation}"
    fold, run_seed = _split(sample)
    caption = f"{fold}, seed {run_seed}; {len(sample.rows):,} of {sample.total:,} images"
    if absent is not None:
        caption += f"; no cell pictures, for {absent}"
    try:
        xy = coordinates(sample.values, seed)
    except UserError as error:
        return Map(title, f"{caption}; not drawn: {error}", None)
    chosen = pool.choose(_columns(sample))
    held = np.isin(sample.marks["part"].codes, _codes(sample, HELD_OUT))
    points: dict[str, Any] = {
        "title": title,
        "count": len(xy),
        "x": base64_of(_quantised(xy[:, 0])),
        "y": base64_of(_quantised(xy[:, 1])),
        "steps": STEPS,
        "aspect": float(np.ptp(xy[:, 0]) / max(float(np.ptp(xy[:, 1])), 1e-9)),
        "row": pool.hold(np.diff(sample.rows, prepend=0).astype(np.uint32)),
        "held": pool.hold(held.astype(np.uint8)),
        "columns": chosen.places,
        "screen": str(sample.about["screen"]),
        "sheet": sheet,
        "tile": None if sheet is None else pool.hold(_tiles(sample, sprites[sheet])),
    }
    return Map(title, caption, points, tuple(chosen.left_out))


def _columns(sample: Sample) -> Iterator[tuple[str, pd.Series]]:
    """What a map is coloured by: the columns with a role, then all others."""
    for key, title in ROLES.items():
        names = np.array([*sample.marks[key].names, ""], dtype=object)
        yield title, pd.Series(names[sample.marks[key].codes])
    for column in sample.table.columns:
        if column not in (PART, PREDICTED):
            yield str(column).removeprefix("Metadata_"), sample.table[column]


def _codes(sample: Sample, names: tuple[str, ...]) -> list[int]:
    return [code for code, name in enumerate(sample.marks["part"].names) if name in names]


def _quantised(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Values in `STEPS` steps of their range: a map of 528 pixels is right to 1/30 of one."""
    span = max(float(np.ptp(values)), 1e-9)
    return np.asarray(((values - values.min()) / span * STEPS).round(), dtype=np.uint16)


def _tiles(sample: Sample, sprite: Sprite) -> npt.NDArray[np.uint16]:
    """The number of the tile of each row, from 1; 0 where it has none."""
    return np.array([sprite.place.get(int(row), -1) + 1 for row in sample.rows], dtype=np.uint16)
