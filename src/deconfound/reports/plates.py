"""Layouts of held-out plates in a report: wells by score, predicted label, leading component."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from sklearn.decomposition import PCA

from deconfound.arrays import Doubles
from deconfound.counterfactuals.cells import short
from deconfound.data.tables.table import listed, natural_order
from deconfound.display.page import templates
from deconfound.errors import UserError
from deconfound.reports.cells import Cells

MOST_PLATES = 4
"""Plates that are shown of each method."""
MOST_METHODS = 6
MOST_WELLS = 8_000
"""Drawn wells of a page; above them fewer plates are shown, but always one."""
FORMATS = ((4, 6), (8, 12), (16, 24), (32, 48))
"""Rows and columns of plates of 24 to 1,536 wells."""
SIDES = ((12, 17), (24, 12), (48, 8))
"""CSS pixels of a well's side on a plate of at most so many columns."""
SHADES = 10
"""Steps of the scale of a share, and of a component."""
SPREAD = 2.0
"""Standard deviations at both ends of the scale of a component."""
WELL = ["plate", "row", "column"]
LETTERS = 24
"""Of a label that a well shows."""
SYMBOLS = "abcdefgh"
"""Of the labels that have a colour of their own."""
PCA_ROWS = 5_000
"""Rows that the leading component is fitted to, evenly over all rows."""


class Well(NamedTuple):
    """A drawn well."""

    x: int
    y: int
    """Column and row, from 0."""
    colour: str
    """Name of a class of the style sheet."""
    title: str
    symbol: str = ""


class Layout(NamedTuple):
    """One map of a plate."""

    title: str
    wells: list[Well]


class Plate(NamedTuple):
    """The maps of one plate."""

    name: str
    fold: str
    labels: Layout | None
    """The commonest label of each well; None where no row has a label."""
    methods: list[tuple[str, list[Layout]]]


class Place(NamedTuple):
    """Where a plate is held out first."""

    fold: str
    wells: int


def plate_layouts(cells: Sequence[Cells]) -> Markup:
    """HTML of the wells of held-out plates; empty where no held-out row has a well.

    Shown for each method: the share right, the label given most often, and the leading principal
    component of the main block. One scale holds for all plates and methods. At most `MOST_PLATES`
    plates, of the seed that most methods have; the page says which. Random splits count only where
    no fold holds groups out.
    """
    placed = [one for one in cells if one.wells is not None and _placed(one).any()]
    if not placed:
        return Markup("")
    placed = [one for one in placed if one.level != "iid"] or placed
    seed = int(pd.Series([one.split.seed for one in placed]).mode().iloc[0])
    of_seed = [one for one in placed if one.split.seed == seed]
    methods = list(dict.fromkeys(one.name for one in of_seed))
    where = _held_out(of_seed)
    names = sorted(where, key=natural_order)
    drawn = 1 + 3 * min(MOST_METHODS, len(methods))
    fitting = MOST_WELLS // (drawn * max(place.wells for place in where.values()))
    kept = names[: max(1, min(MOST_PLATES, fitting))]
    tables = _tables(of_seed, methods[:MOST_METHODS], {name: where[name] for name in kept})
    symbols, more = _symbols(tables)
    rows, columns = _format(of_seed)
    return Markup(
        templates()
        .get_template("plates.html")
        .render(
            plates=[_plate(name, where[name].fold, tables[name], symbols) for name in kept],
            symbols=[(SYMBOLS[number], f"c{number}", name) for name, number in symbols.items()],
            others=more,
            rows=[row_name(row) for row in range(rows)],
            columns=columns,
            side=next(side for most, side in SIDES if columns <= most),
            seed=seed,
            rule=f"{len(kept)} of {len(names):,} held-out plates, the first by name"
            if len(kept) < len(names)
            else "",
            left=listed(methods[MOST_METHODS:]),
            shades=SHADES,
        )
    )


def row_name(row: int) -> str:
    """The letters of a row of wells, from 0: "A" … "Z", "AA" …"""
    return ("A" if row >= 26 else "") + chr(ord("A") + row % 26)


def _placed(cells: Cells) -> pd.Series:
    """(N,) whether a row is held out and in a known well of a known plate."""
    assert cells.wells is not None
    wells = cells.wells
    known = (wells["row"] > 0) & (wells["column"] > 0) & wells["plate"].notna()
    return known & cells.held_out


def _format(cells: list[Cells]) -> tuple[int, int]:
    """Rows and columns of the smallest plate that has all wells."""
    tables = [one.wells for one in cells if one.wells is not None]
    rows = max(int(one["row"].max()) for one in tables)
    columns = max(int(one["column"].max()) for one in tables)
    return next(size for size in FORMATS if size[0] >= rows and size[1] >= columns)


def _held_out(cells: list[Cells]) -> dict[str, Place]:
    """The first fold that holds each plate out, by name, and how many wells it has."""
    found: dict[str, Place] = {}
    for one in sorted(cells, key=lambda one: natural_order(one.split.fold)):
        assert one.wells is not None
        wells = one.wells[_placed(one)].drop_duplicates()
        for plate, count in wells.groupby("plate", observed=True).size().items():
            found.setdefault(str(plate), Place(one.split.fold, int(count)))
    return found


def _tables(
    cells: list[Cells], methods: list[str], where: dict[str, Place]
) -> dict[str, dict[str, pd.DataFrame]]:
    """The wells of each plate, by method, as `_wells` gives them."""
    found: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in where}
    for one in cells:
        plates = [name for name, place in where.items() if place.fold == one.split.fold]
        if one.name not in methods or not plates:
            continue
        wells = _wells(one)
        for plate in plates:
            own = wells[wells["plate"] == plate]
            if len(own):
                found[plate][one.name] = own
    return found


def _symbols(tables: dict[str, dict[str, pd.DataFrame]]) -> tuple[dict[str, int], int]:
    """Numbers of the labels with a symbol, those of most wells, and how many others there are."""
    every = [own for plate in tables.values() for own in plate.values()]
    names = pd.concat([own[column] for own in every for column in ("label", "given")]).dropna()
    counts = names.value_counts()
    kept = sorted(map(str, counts.index[: len(SYMBOLS)]), key=natural_order)
    return {name: number for number, name in enumerate(kept)}, max(0, len(counts) - len(SYMBOLS))


def _plate(name: str, fold: str, tables: dict[str, pd.DataFrame], symbols: dict[str, int]) -> Plate:
    truth = _named_wells(next(iter(tables.values())), "label", symbols)
    labels = Layout("label", truth) if truth else None
    return Plate(
        name, fold, labels, [(method, _layouts(own, symbols)) for method, own in tables.items()]
    )


def _wells(cells: Cells) -> pd.DataFrame:
    """One row for each well with held-out rows.

    Columns plate, row, column, images, right (share, NaN without labels or predictions), given (the
    commonest prediction, missing if none), label (the commonest) and component (in standard
    deviations over all rows of the file).
    """
    assert cells.wells is not None
    right = (cells.predicted.astype(object) == cells.label.astype(object)).astype(float)
    right[cells.label.isna() | cells.predicted.isna()] = np.nan
    rows = cells.wells.assign(
        label=cells.label.to_numpy(dtype=object),
        given=cells.predicted.to_numpy(dtype=object),
        right=right.to_numpy(),
        component=_component(cells),
    )[_placed(cells).to_numpy()]
    wells = rows.groupby(WELL, observed=True)
    found = wells.agg(
        images=("component", "size"), right=("right", "mean"), component=("component", "mean")
    )
    for name in ("label", "given"):
        found[name] = _commonest(rows, name).reindex(found.index).astype(object)
    return found.reset_index()


def _commonest(rows: pd.DataFrame, name: str) -> pd.Series:
    """The commonest value of a column in each well that has one, the first by name among equals."""
    names = sorted(rows[name].dropna().unique(), key=natural_order)
    ranked = rows.assign(rank=pd.Categorical(rows[name], names).codes)
    sizes = ranked[ranked["rank"] >= 0].groupby([*WELL, "rank"], observed=True).size()
    counts = sizes.rename("count").reset_index()
    first = counts.sort_values(["count", "rank"], ascending=[False, True]).drop_duplicates(WELL)
    found: pd.Series = first.set_index(WELL)["rank"].map(dict(enumerate(names)))
    return found


def _component(cells: Cells) -> Doubles:
    """(N,) the leading principal component of the main block, in standard deviations.

    Its sign is that under which the weight of largest size is positive. NaN if the block holds NaN.
    """
    try:
        block = cells.block().astype(np.float64)
    except UserError:
        return np.full(len(cells.part), np.nan)
    step = max(1, len(block) // PCA_ROWS)
    fitted = PCA(1, svd_solver="randomized", random_state=0).fit(block[::step])
    weights = fitted.components_[0]
    sign = 1.0 if weights[np.abs(weights).argmax()] >= 0 else -1.0
    values = sign * fitted.transform(block)[:, 0]
    spread = float(values.std())
    return np.asarray(values / spread if spread > 0 else np.zeros(len(values)))


def _layouts(table: pd.DataFrame, symbols: dict[str, int]) -> list[Layout]:
    """The maps of one plate by one method; none of what is nowhere defined."""
    right, component = [], []
    for well in table.to_dict("records"):
        x, y, name = _where(well)
        if not math.isnan(well["right"]):
            title = f"{name}: {well['right']:.0%} of {well['images']:,}"
            right.append(Well(x, y, f"s{round(well['right'] * SHADES)}", title))
        if math.isnan(well["component"]):
            continue
        share = (np.clip(well["component"], -SPREAD, SPREAD) + SPREAD) / (2 * SPREAD)
        title = f"{name}: {well['component']:+.2f} sd"
        component.append(Well(x, y, f"d{round(float(share) * SHADES)}", title))
    layouts = [
        Layout("share right", right),
        Layout("label given most often", _named_wells(table, "given", symbols)),
        Layout("leading component", component),
    ]
    return [layout for layout in layouts if layout.wells]


def _named_wells(table: pd.DataFrame, column: str, symbols: dict[str, int]) -> list[Well]:
    """The wells that have a value in a column of labels, each with its symbol."""
    wells = []
    for well in table.to_dict("records"):
        if pd.isna(well[column]):
            continue
        x, y, name = _where(well)
        number = symbols.get(well[column])
        colour, symbol = ("other", "") if number is None else (f"c{number}", SYMBOLS[number])
        wells.append(Well(x, y, colour, f"{name}: {short(str(well[column]), LETTERS)}", symbol))
    return wells


def _where(well: dict[Hashable, Any]) -> tuple[int, int, str]:
    """Column and row from 0, and the name."""
    x, y = int(well["column"]) - 1, int(well["row"]) - 1
    return x, y, f"{row_name(y)}{x + 1:02d}"
