"""Nearest neighbours in a report: held-out cells and the cells of other environments near them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from deconfound.arrays import Codes, Floats, Rows
from deconfound.data.tables.table import coded, listed
from deconfound.display.page import templates
from deconfound.display.tiles import Sheet, pictures, read_tiles, shared_limits, sheet
from deconfound.errors import UserError
from deconfound.metrics.neighbors import nearest
from deconfound.reports.cells import Cells, shared_split
from deconfound.reports.screens import screen_of
from deconfound.reports.sources import RunSource
from deconfound.runtime.seeds import numpy_stream

NEIGHBOURS = 5
MOST_SHOWN = 8
"""Held-out cells with pictures."""
MOST_CELLS = 1_000
"""Held-out cells whose neighbours are counted."""
MOST_REFERENCE = 50_000
"""Cells among which neighbours are looked for."""
MOST_METHODS = 5
SIDE, SHOWN_SIDE = 64, 56
"""Of a tile's longer side: pixels stored at most, and CSS pixels shown."""


class Tile(NamedTuple):
    """A cell in the picture."""

    place: str
    title: str
    label: str
    right: bool


class Share(NamedTuple):
    """How often a neighbour has the label of its cell."""

    method: str
    right: float
    chance: float
    """Expected if neighbours were drawn at random from the other environments."""


class Drawn(NamedTuple):
    """The cells that are looked at, the same for every method."""

    cells: Rows
    """(Q,) held-out rows."""
    reference: Rows
    """(M,) rows among which neighbours are looked for."""
    label: Codes
    environment: Codes
    """(N,) of every row."""


def nearest_cells(cells: Sequence[Cells], runs: Sequence[RunSource], seed: int) -> Markup:
    """HTML of the five cells of other environments nearest to held-out ones; empty without any.

    By the main block of each method, on the fold and seed that most methods have: the share with
    the cell's own label over at most `MOST_CELLS` cells drawn by `seed`, and pictures for
    `MOST_SHOWN` of them, of each label in turn. Where the images are gone the page says why.
    """
    shared = shared_split([one for one in cells if one.held_out.any()])
    methods = [one for one in shared if _alike(one, shared[0])][:MOST_METHODS]
    if not methods:
        return Markup("")
    drawn = _drawn(methods[0], seed)
    if not len(drawn.cells):
        return Markup("")
    shown = _shown(drawn)
    found: list[Rows] = []
    shares: list[Share] = []
    left: list[str] = []
    for one in methods:
        try:
            near = neighbours_elsewhere(one.block(), drawn)
        except UserError as error:
            left.append(f"{one.name} ({error})")
            continue
        found.append(near[shown])
        shares.append(Share(one.name, *_right(near, drawn)))
    if not found:
        return Markup("")
    rows, made, absent = _pictures(methods, runs, drawn.cells[shown], found)
    kept = {one.name for one in methods}
    apart = [name for name in dict.fromkeys(one.name for one in cells) if name not in kept]
    left += [f"{name} (other folds, or the page is full)" for name in apart]
    return Markup(
        templates()
        .get_template("neighbours.html")
        .render(
            shares=shares,
            rows=rows,
            sheet=made,
            shown=_display(made),
            absent=absent,
            left=listed(left),
            split=methods[0].split,
            cells=len(drawn.cells),
            reference=len(drawn.reference),
            neighbours=NEIGHBOURS,
        )
    )


def neighbours_elsewhere(block: Floats, drawn: Drawn) -> Rows:
    """(Q, 5) rows of other environments nearest to each cell, nearest first.

    `block` is (N, D). −1 where the other environments have fewer rows.
    """
    near = np.full((len(drawn.cells), NEIGHBOURS), -1, np.int64)
    of_reference, of_cell = (drawn.environment[one] for one in (drawn.reference, drawn.cells))
    for environment in np.unique(of_cell):
        others = drawn.reference[of_reference != environment]
        inside = np.flatnonzero(of_cell == environment)
        k = min(NEIGHBOURS, len(others))
        places, _ = nearest(block[others], block[drawn.cells[inside]], k)
        near[inside, :k] = others[places]
    return near


def _alike(one: Cells, first: Cells) -> bool:
    """Whether two methods hold out the same rows of the same screen, by the same columns."""
    same = one.about["screen"] == first.about["screen"]
    return (
        same
        and one.about["roles"] == first.about["roles"]
        and np.array_equal(one.held_out, first.held_out)
    )


def _drawn(cells: Cells, seed: int) -> Drawn:
    label, environment = coded(cells.label).codes, coded(cells.environment).codes
    known = (label >= 0) & (environment >= 0) & (cells.part != "unused")
    stream = numpy_stream(seed, "neighbours across environments")
    held_out = stream.permutation(np.flatnonzero(known & cells.held_out))[:MOST_CELLS]
    reference = np.sort(stream.permutation(np.flatnonzero(known))[:MOST_REFERENCE])
    if len(np.unique(environment[reference])) < 2:
        held_out = held_out[:0]
    return Drawn(held_out, reference, label, environment)


def _shown(drawn: Drawn) -> Rows:
    """Places of the cells with pictures: of each label in turn, by label."""
    label = pd.Series(drawn.label[drawn.cells])
    turn = label.groupby(label).cumcount().to_numpy()
    chosen = np.argsort(turn, kind="stable")[:MOST_SHOWN]
    return np.asarray(chosen[np.argsort(label.to_numpy()[chosen], kind="stable")])


def _right(near: Rows, drawn: Drawn) -> tuple[float, float]:
    """The share of neighbours with the cell's label, and that of cells of other environments."""
    own = drawn.label[drawn.cells]
    right = float((drawn.label[near] == own[:, None])[near >= 0].mean())
    shape = (int(drawn.environment.max()) + 1, int(drawn.label.max()) + 1)
    counts = np.zeros(shape)
    np.add.at(counts, (drawn.environment[drawn.reference], drawn.label[drawn.reference]), 1)
    others = counts.sum(axis=0)[None] - counts
    environment = drawn.environment[drawn.cells]
    return right, float((others[environment, own] / others.sum(axis=1)[environment]).mean())


def _pictures(
    methods: list[Cells], runs: Sequence[RunSource], shown: Rows, found: list[Rows]
) -> tuple[list[tuple[Tile, list[list[Tile]]]], Sheet | None, str]:
    """The held-out cells, each with its neighbours by method, or why there are no pictures."""
    screen, absent = None, ""
    for one in methods:
        try:
            screen = screen_of(one.about, len(one.part), runs)
            break
        except UserError as error:
            absent = absent or str(error)
    if screen is None:
        return [], None, absent
    cells = methods[0]
    every = np.unique(np.concatenate([shown, *(near.ravel() for near in found)]))
    every = every[every >= 0]
    tiles = read_tiles(screen, every, SIDE)
    names = screen.channels
    made = sheet(pictures(tiles, names, shared_limits(tiles, names)))
    place = {int(row): made.place(tile) for tile, row in enumerate(every)}

    def tile(row: int, of: int) -> Tile:
        label, environment = str(cells.label.iloc[row]), str(cells.environment.iloc[row])
        title = f"{label}, {environment}, row {row}"
        return Tile(place[row], title, label, label == str(cells.label.iloc[of]))

    rows = [
        (
            tile(int(row), int(row)),
            [[tile(int(one), int(row)) for one in near[n] if one >= 0] for near in found],
        )
        for n, row in enumerate(shown)
    ]
    return rows, made, ""


def _display(made: Sheet | None) -> tuple[int, int]:
    """Width and height of a tile in CSS pixels."""
    if made is None:
        return 0, 0
    scale = SHOWN_SIDE / max(made.width, made.height)
    return round(made.width * scale), round(made.height * scale)
