"""Sample images of a screen: a table of labels × environments."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from deconfound.arrays import Codes, Rows
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Coded, Roles
from deconfound.display.page import templates
from deconfound.display.pixels import channel_colours, is_photograph
from deconfound.display.tiles import (
    Sheet,
    pictures,
    read_tiles,
    shared_limits,
    sheet,
    tile_size,
)
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

MOST_LABELS, MOST_ENVIRONMENTS = 8, 8
MOST_HELD_OUT = 4
"""Held-out environments among those shown, where there are more of both kinds."""
PER_PAIR = 2
"""Images of a label in an environment."""
MOST_CHANNELS = 5
"""Channels that can be seen alone."""
SIDE, SHEET_PIXELS = 128, 5_000_000
"""Of a tile's longer side, and of all sheets of a screen: pixels at most."""
MOST_BYTES, QUALITIES = 1_000_000, (80, 50, 20, 5)
"""Of all sheets of a screen; the first quality of WebP under which they hold no more is taken, or
the last."""
SHOWN_WIDTH, SHOWN_SIDES = 900, (56, 128)
"""CSS pixels of the table, and of a tile's longer side."""


class View(NamedTuple):
    """One way to see the tiles: a channel or all of them, and limits."""

    limits: int
    channel: int
    source: str


class Pair(NamedTuple):
    """The images of a label in an environment."""

    tiles: list[tuple[str, str]]
    """Place on the sheet and a title, of each image."""
    images: int
    """How many the screen has."""


class SampleTable(NamedTuple):
    """The sample of one screen."""

    screen: str
    label: str
    environment: str
    rule: str
    environments: list[tuple[str, bool]]
    """Name, and whether it is held out in a fold of the page while others never are."""
    rows: list[tuple[str, list[Pair]]]
    channels: list[str]
    """What can be chosen: all channels first."""
    colours: list[tuple[str, str]]
    """Name and colour of each channel where all are seen."""
    views: list[View]
    photographs: bool
    sheet: Sheet
    shown: tuple[int, int]
    """Width and height of a tile in CSS pixels."""


def samples_html(
    tables: Sequence[SampleTable], absent: Sequence[str] = (), left: int = 0
) -> Markup:
    """The tables as HTML, with why some are `absent` and how many more are `left` out."""
    template = templates().get_template("samples.html")
    return Markup(template.render(tables=tables, absent=dict.fromkeys(absent), left=left))


def sample_table(
    screen: Screen, roles: Roles, held_out: Collection[str] = (), seed: int = 0
) -> SampleTable:
    """Sample images of a screen of images by label × environment, some of them `held_out`.

    At most `MOST_LABELS` × `MOST_ENVIRONMENTS` pairs with `PER_PAIR` images each, drawn by `seed`;
    `rule` says what is left out. Raises UserError if no image shown has a label and an environment.
    """
    label, environment = screen.coded([str(roles.label)]), screen.coded(roles.environment)
    held_out = set(held_out) & set(environment.names)
    if held_out >= set(environment.names):
        held_out = set()
    labels = _most(label, MOST_LABELS)
    environments = _spread(environment, MOST_ENVIRONMENTS, held_out)
    if not len(labels) or not len(environments):
        raise UserError(f"{screen.name}: no image has a label and an environment")
    drawn = _drawn(label.codes, environment.codes, labels, environments, seed)
    if drawn.empty:
        raise UserError(f"{screen.name}: the labels and environments with most images share none")
    counts = pd.Series(0, index=pd.MultiIndex.from_arrays([label.codes, environment.codes]))
    images = counts.groupby(level=[0, 1]).size()
    shown = drawn["row"].to_numpy(dtype=np.int64)
    made, views, channels = _views(screen, shown)
    places = {int(row): made.place(tile) for tile, row in enumerate(shown)}
    members = drawn.groupby(["label", "environment"])["row"].apply(list).to_dict()
    rows = []
    for of_label in labels:
        pairs = [
            Pair(
                [(places[row], f"row {row}") for row in members.get((of_label, of_env), [])],
                int(images.get((of_label, of_env), 0)),
            )
            for of_env in environments
        ]
        rows.append((label.names[of_label], pairs))
    height, width = tile_size(screen, SIDE)
    scale = _display(len(environments)) / max(height, width)
    scale = min(scale, max(1.0, SHOWN_SIDES[0] / max(height, width)))
    return SampleTable(
        screen.name,
        str(roles.label),
        " / ".join(roles.environment),
        _rule(label, environment, bool(held_out)),
        [(environment.names[code], environment.names[code] in held_out) for code in environments],
        rows,
        channels,
        _legend(screen) if len(channels) > 1 else [],
        views,
        is_photograph(screen.channels),
        made,
        (round(width * scale), round(height * scale)),
    )


def _most(values: Coded, most: int) -> list[int]:
    """Codes of the names with most images, at most `most`, ascending."""
    counts = np.bincount(values.codes[values.codes >= 0], minlength=len(values.names))
    order = np.argsort(-counts, kind="stable")[:most]
    return sorted(int(code) for code in order if counts[code])


def _spread(values: Coded, most: int, first: set[str]) -> list[int]:
    """Codes of at most `most` names, evenly over those of `first` and over the others; ascending.

    Codes are in natural order of the names, so nested environments of every parent are among them.
    """
    used = [int(code) for code in np.unique(values.codes[values.codes >= 0])]
    ahead = [code for code in used if values.names[code] in first]
    others = [code for code in used if values.names[code] not in first]
    room = max(min(MOST_HELD_OUT, len(ahead)), most - len(others))
    ahead = _evenly(ahead, room)
    return sorted(ahead + _evenly(others, most - len(ahead)))


def _evenly(codes: list[int], most: int) -> list[int]:
    if len(codes) <= most:
        return codes
    return [codes[place * len(codes) // most] for place in range(most)]


def _drawn(
    label: Codes, environment: Codes, labels: list[int], environments: list[int], seed: int
) -> pd.DataFrame:
    """The columns row, label and environment of at most `PER_PAIR` images of each pair."""
    order = numpy_stream(seed, "sample images").permutation(len(label))
    inside = np.isin(label[order], labels) & np.isin(environment[order], environments)
    order = order[inside]
    frame = pd.DataFrame({"row": order, "label": label[order], "environment": environment[order]})
    turn = frame.groupby(["label", "environment"]).cumcount()
    kept: pd.DataFrame = frame[turn < PER_PAIR]
    return kept.sort_values(["label", "environment", "row"], ignore_index=True)


def _views(screen: Screen, rows: Rows) -> tuple[Sheet, list[View], list[str]]:
    """A sheet for its measures, the sheets of every view, and the names of the channels."""
    names = list(screen.channels)
    alone = [] if len(names) == 1 or is_photograph(names) else names[:MOST_CHANNELS]
    chosen: list[list[int]] = [list(range(len(names))), *([place] for place in range(len(alone)))]
    budget = SHEET_PIXELS / (2 * len(chosen) * len(rows))
    tiles = read_tiles(screen, rows, min(SIDE, int(budget**0.5)))
    limits = shared_limits(tiles, names)
    drawn = {
        (number, channel): pictures(tiles[:, places], [names[place] for place in places], bounds)
        for channel, places in enumerate(chosen)
        for number, bounds in enumerate((limits[places], None))
    }
    for quality in QUALITIES:
        made = {view: sheet(shown, quality) for view, shown in drawn.items()}
        if sum(len(one.source) for one in made.values()) <= MOST_BYTES:
            break
    views = [View(*view, one.source) for view, one in made.items()]
    return made[0, 0], views, ["all channels", *alone]


def _display(environments: int) -> int:
    """CSS pixels of a tile's longer side."""
    low, high = SHOWN_SIDES
    return max(low, min(high, SHOWN_WIDTH // (PER_PAIR * environments)))


def _legend(screen: Screen) -> list[tuple[str, str]]:
    colours = (channel_colours(screen.channels) * 255).round().astype(int)
    return [
        (name, "#{:02x}{:02x}{:02x}".format(*colour))
        for name, colour in zip(screen.channels, colours, strict=True)
    ]


def _rule(label: Coded, environment: Coded, held_out: bool) -> str:
    """What is said of the labels and environments that are left out; empty if none is."""
    said = []
    if len(label.names) > MOST_LABELS:
        said.append(f"the {MOST_LABELS} of {len(label.names):,} labels with most images are shown")
    if len(environment.names) > MOST_ENVIRONMENTS:
        kept = f", {MOST_HELD_OUT} of them held out where there are so many" if held_out else ""
        said.append(
            f"of {len(environment.names):,} environments {MOST_ENVIRONMENTS} are shown, spread "
            f"evenly over the list{kept}"
        )
    text = "; ".join(said)
    return text[:1].upper() + text[1:]
