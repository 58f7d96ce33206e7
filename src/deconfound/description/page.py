"""A screen's description for people: tables of text, a picture of the occupancy, a page."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup

from deconfound.data.simulation.inject import clean_name
from deconfound.data.tables.table import natural_order
from deconfound.description.description import Description
from deconfound.display.page import page
from deconfound.display.samples import sample_table, samples_html
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.runtime.escaping import csv_text

MISSING = "(missing)"
MOST_LABELS, MOST_ENVIRONMENTS = 80, 60
"""Rows and columns of the picture."""
MOST_COUNTED = 400
"""Cells of a picture whose counts are written into them."""
PAGE_ROWS = 2_000
"""Rows of a table on the page."""
PAGE_ENVIRONMENTS, PAGE_FIELDS = 200, 40_000
"""Columns, and fields at most, of the occupancy on the page."""
OCCUPANCY = "Images per label and environment"


class Grid(NamedTuple):
    """Images per label and environment; of too many, the largest labels and environments."""

    labels: list[str]
    environments: list[str]
    images: npt.NDArray[np.int64]
    """(labels, environments)."""
    left_out: str
    """A sentence on what is not shown; empty if everything is shown."""


class Heat(NamedTuple):
    """The occupancy on the page."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[int, str, str]]]]
    """Label, and for each environment the images, their number in few letters, and their share of
    the most on a scale of logarithms, 0.08 … 0.85."""


class TextTable(NamedTuple):
    """A table ready to be read."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def occupancy_grid(
    description: Description, labels: int = MOST_LABELS, environments: int = MOST_ENVIRONMENTS
) -> Grid:
    """The occupancy as a grid of at most `labels` × `environments`, those with most images."""
    pairs = description.occupancy.fillna({"label": MISSING, "environment": MISSING})
    kept: dict[str, list[str]] = {}
    left_out = []
    for name, most in (("label", labels), ("environment", environments)):
        sizes = pairs.groupby(name, sort=False)["images"].sum()
        chosen = sizes.sort_values(ascending=False, kind="stable").index[:most]
        kept[name] = sorted(
            map(str, chosen), key=lambda text: (text == MISSING, natural_order(text))
        )
        if len(sizes) > most:
            left_out.append(f"the {most} largest of {len(sizes):,} {name}s")
    shown = pairs[pairs["label"].isin(kept["label"])]
    shown = shown[shown["environment"].isin(kept["environment"])]
    grid = np.zeros((len(kept["label"]), len(kept["environment"])), dtype=np.int64)
    rows = pd.Index(kept["label"]).get_indexer(pd.Index(shown["label"]))
    columns = pd.Index(kept["environment"]).get_indexer(pd.Index(shown["environment"]))
    np.add.at(grid, (rows, columns), shown["images"].to_numpy())
    return Grid(kept["label"], kept["environment"], grid, " and ".join(left_out))


def text_tables(description: Description, most: int, width: int) -> list[TextTable]:
    """Contents, levels, occupancy, folds and pixels as tables of at most `most` rows each.

    The occupancy has as many environments as fit into `width` letters, but no fewer than one.
    """
    tables = [_contents(description), _levels(description), _occupancy(description, most, width)]
    return [*tables, _folds(description, most), _statistics(description, most)]


def write_page(description: Description, out: Path) -> None:
    """Write occupancy.csv, statistics.csv, folds.csv, occupancy.png and describe.html into `out`.

    Raises UserError if `out` exists.
    """
    with atomic.atomic_directory(out) as folder:
        for name in ("occupancy", "statistics", "folds"):
            text = csv_text(getattr(description, name))
            (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
        picture = folder / "occupancy.png"
        _draw(occupancy_grid(description), description, picture)
        grid = _page_grid(description)
        text = page(
            "describe.html",
            {},
            plots=False,
            many=False,
            screen=description.screen,
            warnings=description.warnings,
            tables=[
                _contents(description),
                _levels(description),
                TextTable(OCCUPANCY, [], [], _left_out(grid)),
                _folds(description, PAGE_ROWS),
                _statistics(description, PAGE_ROWS),
            ],
            heat=_heat(grid),
            samples=_samples(description),
        )
        (folder / "describe.html").write_text(text, encoding="utf-8")


def _samples(description: Description) -> Markup:
    """Sample images by label × environment; empty for a screen of profiles."""
    screen, roles = description.screen, description.roles
    if screen.holds_profiles or roles.label is None or not roles.environment:
        return Markup("")
    try:
        return samples_html([sample_table(screen, roles)])
    except UserError as error:
        return samples_html([], [str(error)])


def _page_grid(description: Description) -> Grid:
    environments = description.occupancy["environment"].nunique(dropna=False)
    shown = max(1, min(environments, PAGE_ENVIRONMENTS))
    return occupancy_grid(description, PAGE_FIELDS // shown, shown)


def _heat(grid: Grid) -> Heat:
    most = np.log1p(max(1, int(grid.images.max(initial=0))))
    rows = [
        (
            label,
            [
                (count, _short(count), f"{0.08 + 0.77 * np.log1p(count) / most:.2f}")
                for count in row
            ],
        )
        for label, row in zip(grid.labels, grid.images.tolist(), strict=True)
    ]
    return Heat(OCCUPANCY, grid.environments, rows)


def _short(count: int) -> str:
    """At most four letters up to a billion: 950, 1.2k, 34k, 5.6M."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return (
                f"{count / unit:.1f}{name}" if count < 9.95 * unit else f"{count / unit:.0f}{name}"
            )
    return str(count)


def _left_out(grid: Grid) -> str:
    return f"Shown: {grid.left_out}; occupancy.csv of --out has all." if grid.left_out else ""


def _contents(description: Description) -> TextTable:
    screen, roles = description.screen, description.roles
    shape = " × ".join(map(str, screen.image_shape[1:]))
    rows = [[noun, f"{count:,}"] for noun, count in description.counts.items() if count]
    rows += [
        ["channels", ", ".join(screen.channels)],
        ["pixels", f"{shape}, {screen.dtype}"],
        ["label is", roles.label or "–"],
        ["environment is", " / ".join(roles.environment) or "–"],
    ]
    if (clean := clean_name(screen.provenance)) is not None:
        rows.append(["technical effects", f"injected into {clean}"])
    if not np.isnan(description.shared_information):
        rows.append(["information shared by both", f"{description.shared_information:.2f} of 1"])
    return TextTable("Contents", ["", ""], rows)


def _levels(description: Description) -> TextTable:
    rows = []
    for depth, row in enumerate(description.levels.to_dict("records")):
        inside = "–" if depth == 0 else "each name has one parent"
        if row["repeated"]:
            inside = f"{row['repeated']:,} of {row['names']:,} names repeat: parents prefixed"
        folds = "not worked out" if pd.isna(row["folds"]) else str(row["folds"])
        rows.append([row["level"], f"{row['groups']:,}", inside, folds, row["refused"] or "–"])
    columns = ["level", "groups", "nesting", "folds", "why not others"]
    note = "" if rows else "The screen has no levels; --levels names some."
    return TextTable("Levels, outermost first", columns, rows, note)


def _occupancy(description: Description, most: int, width: int) -> TextTable:
    names = description.occupancy[["label", "environment"]].fillna(MISSING).astype("string")
    labels, environments = (int(names[name].str.len().max()) for name in names)
    fitting = (width - labels - 2) // (max(environments, 5) + 2)
    grid = occupancy_grid(description, most, max(1, fitting))
    rows = [
        [label, *(f"{count:,}" if count else "·" for count in counts)]
        for label, counts in zip(grid.labels, grid.images, strict=True)
    ]
    return TextTable(OCCUPANCY, ["label", *grid.environments], rows, _left_out(grid))


def _folds(description: Description, most: int) -> TextTable:
    folds = description.folds
    names = ("kept", "test", "unused", "training_environments", "untested", "untrained")
    rows = [
        [row["fold"], *(f"{row[name]:,}" for name in names), row["untrained_labels"]]
        if row["possible"]
        else [row["fold"], *"––––––", row["reason"]]
        for row in folds.head(most).to_dict("records")
    ]
    columns = [
        "fold", "kept", "test", "unused", "training envs", "labels not tested",
        "labels not trained", "these, or why not",
    ]  # fmt: skip
    return TextTable("Folds, images in each", columns, rows, _cut(len(folds), most, "folds.csv"))


def _statistics(description: Description, most: int) -> TextTable:
    statistics = description.statistics
    shown = pd.concat([_all_alike(statistics), statistics.head(most)])
    rows = [
        [
            MISSING if pd.isna(row["environment"]) else row["environment"],
            row["channel"],
            f"{row['images']:,}",
            f"{row['mean']:.4g}",
            f"{row['sd']:.4g}",
            "–" if np.isnan(row["saturated"]) else f"{row['saturated']:.2%}",
            f"{row['black']:,}",
            f"{row['constant']:,}",
        ]
        for row in shown.to_dict("records")
    ]
    columns = ["environment", "channel", "images", "mean", "sd", "saturated", "black", "constant"]
    total = description.counts["images"]
    note = f"From {description.images_read:,} of {total:,} images"
    note += "." if description.images_read == total else ", evenly over the environments."
    note += ' In "all" every environment counts the same.'
    cut = _cut(len(statistics), most, "statistics.csv")
    return TextTable("Pixels, in stored units", columns, rows, f"{note} {cut}".strip())


def _all_alike(statistics: pd.DataFrame) -> pd.DataFrame:
    """One row for each channel; every environment has the same weight."""
    squares = statistics.assign(square=statistics["sd"] ** 2 + statistics["mean"] ** 2)
    how = dict.fromkeys(("images", "black", "constant"), "sum")
    how |= dict.fromkeys(("mean", "square", "saturated"), "mean")
    alike = squares.groupby("channel", sort=False).agg(how).reset_index()
    spread = (alike["square"] - alike["mean"] ** 2).clip(lower=0) ** 0.5
    return alike.assign(environment="all", sd=spread)


def _cut(count: int, most: int, file: str) -> str:
    return f"Shown: {most:,} of {count:,} rows; {file} of --out has all." if count > most else ""


def _draw(grid: Grid, description: Description, file: Path) -> None:
    """Images per label (rows) and environment (columns), empty cells white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows, columns = grid.images.shape
    figure = Figure(figsize=(3.2 + 0.32 * max(columns, 6), 1.9 + 0.22 * max(rows, 5)), dpi=110)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    most = max(2, int(grid.images.max(initial=0)))
    shown = np.ma.masked_equal(grid.images, 0)
    drawn = axes.pcolormesh(
        shown, cmap="viridis_r", norm=LogNorm(1, most), edgecolors="#dfe3e7", linewidth=0.5
    )
    axes.invert_yaxis()
    names = [_plain(name) for name in grid.environments]
    axes.set_xticks(np.arange(columns) + 0.5, names, rotation=90)
    axes.set_yticks(np.arange(rows) + 0.5, [_plain(name) for name in grid.labels])
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlabel(_plain(" / ".join(description.roles.environment), 60))
    axes.set_ylabel(_plain(description.roles.label or "", 60))
    for row, column in np.argwhere(grid.images) if grid.images.size <= MOST_COUNTED else ():
        count = int(grid.images[row, column])
        colour = "white" if np.log(count) > 0.55 * np.log(most) else "black"
        text = f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"
        place = (column + 0.5, row + 0.5)
        axes.text(*place, text, ha="center", va="center", fontsize=5.5, color=colour)
    title = f"{OCCUPANCY}\n{grid.left_out}" if grid.left_out else OCCUPANCY
    axes.set_title(title, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, label="images", shrink=min(0.8, 16 / rows), format="%d")
    bar.minorticks_off()
    figure.savefig(file, format="png")


def _plain(name: str, most: int = 28) -> str:
    """`name` shortened and escaped so that matplotlib draws it as text, not as mathematics."""
    text = "".join(letter if letter.isprintable() else "�" for letter in name)
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")
