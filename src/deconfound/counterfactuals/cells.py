"""Which cells a picture shows and `imputation` judges, and what is written beside a picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Rows
from deconfound.data.folds.fold import Part
from deconfound.data.folds.problem import Problem
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import coded, joined
from deconfound.errors import UserError
from deconfound.runs.run import Run
from deconfound.runtime.seeds import numpy_stream

FORMAT_VERSION = 1
"""Format version of transfer.json and imputed.json."""


def names(screen: Screen, columns: Any) -> pd.Series:
    """Values of the joined columns; all missing if the screen lacks one of the columns."""
    if not columns or any(column not in screen.table.columns for column in columns):
        return pd.Series(pd.NA, index=screen.table.index, dtype="string")
    return joined(screen.table, columns)


def texts(values: pd.Series, rows: Rows) -> tuple[str, ...]:
    """The values of rows; empty text where a value is missing."""
    return tuple(values.iloc[rows].fillna("").tolist())


def diverse(
    candidates: Rows, label: pd.Series, environment: pd.Series, images: int, seed: int
) -> Rows:
    """Draw `images` rows that differ in label and environment, by `seed`.

    Each next row has the label, then the pair of both, then the environment drawn least often so
    far. Rows are returned ordered by environment, then label.
    """
    left = numpy_stream(seed, "transfer cells").permutation(candidates)
    labels, environments = coded(label).codes, coded(environment).codes
    pairs = labels * (environments.max(initial=0) + 2) + environments
    drawn: list[int] = []
    for _ in range(min(images, len(left))):
        times = [
            (codes[drawn] == codes[left, None]).sum(axis=1)
            for codes in (labels, pairs, environments)
        ]
        place = int(np.lexsort(times[::-1])[0])
        drawn.append(int(left[place]))
        left = np.delete(left, place)
    rows = np.array(sorted(drawn), dtype=np.int64)
    return rows[np.lexsort((rows, labels[rows], environments[rows]))]


def refuse_irreversible(run: Run) -> None:
    """Raise UserError if images that the run draws cannot be put back into stored units."""
    if run.standardise_by:
        raise UserError(
            f"{run.path}: was fitted with --standardise-by, and what it draws is of no environment "
            "of its own, so none can be put back into stored units; fit it again without"
        )
    if run.transform == "percentile":
        raise UserError(
            f"{run.path}: transform percentile forgets how bright images were, so none can be "
            "put back into stored units; fit it again with --transform none or arcsinh"
        )


def about_run(run: Run, screen: Screen) -> dict[str, Any]:
    """What the JSON file beside a picture says first: the run, and the screen of its cells."""
    return {
        "format_version": FORMAT_VERSION,
        "method": run.config.method,
        "fold": run.fold,
        "seed": run.config.seed,
        "run": run.path.resolve().name,
        "config": run.config.model_dump(mode="json"),
        "screen": screen.name,
    }


def short(name: str, most: int) -> str:
    """A name cut to `most` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


@dataclass(frozen=True)
class Interventions:
    """Cells, with the environment and the style images by which each is imputed."""

    rows: Rows
    """(N,) int64, the cells."""
    style: Rows
    """(N, K) int64, the training rows whose style codes are averaged."""
    environment: Rows
    """(N,) int64, the code of the training environment that each cell is imputed into."""
    rendering: npt.NDArray[np.str_]
    """(N,) the planted environment of the first style image; the true image is rendered in it."""


def interventions(
    screen: Screen,
    problem: Problem,
    part: Part,
    most: int,
    seed: int,
    style_images: int = 1,
) -> Interventions:
    """At most `most` rows of a part, each with a training environment and style images of it.

    Draws are by `seed`: rows, environments and first style images depend neither on the run nor on
    `style_images`. Where there are too few style images they are repeated. A row whose own
    environment is the only one of training is left out.
    """
    code = problem.environment.codes
    train = problem.fold.rows("train")
    train = train[code[train] >= 0]
    stream = numpy_stream(seed, "interventions", part)
    rows = np.sort(stream.permutation(problem.fold.rows(part))[:most])
    environments = np.unique(code[train])
    own = np.isin(environments[None], code[rows, None]) & (environments[None] == code[rows, None])
    weight = stream.random(own.shape)
    weight[own] = -1
    possible = (~own).any(axis=1)
    rows, chosen = rows[possible], environments[weight.argmax(axis=1)][possible]
    members = {one: train[code[train] == one] for one in environments}
    first = np.array([stream.choice(members[one]) for one in chosen], dtype=np.int64)
    planted = joined(screen.table, screen.roles.levels).to_numpy(dtype=str)
    places = list(zip(chosen, planted[first], strict=True))
    alike = {(e, s): members[e][planted[members[e]] == s] for e, s in set(places)}
    again = [stream.choice(alike[place], style_images - 1) for place in places]
    others = np.array(again, dtype=np.int64).reshape(len(first), style_images - 1)
    style = np.column_stack([first, others])
    return Interventions(rows, style, chosen, planted[first])


def into_one(
    screen: Screen, problem: Problem, most: int, seed: int, style_images: int = 1
) -> Interventions:
    """At most `most` rows, all to be imputed into one training environment as planted.

    The environment, the planted one of a training row of it, and the rows are drawn by `seed`; they
    depend neither on the run nor on `style_images`. Rows are of the part id_test, or of train where
    there is none, and of other training environments. Style images are drawn with replacement.
    """
    code = problem.environment.codes
    stream = numpy_stream(seed, "interventions into one")
    train = problem.fold.rows("train")
    train = train[code[train] >= 0]
    target = stream.choice(np.unique(code[train]))
    members = train[code[train] == target]
    planted = joined(screen.table, screen.roles.levels).to_numpy(dtype=str)
    rendering = planted[stream.choice(members)]
    rows = problem.fold.rows(probed_part(problem))
    rows = rows[(code[rows] >= 0) & (code[rows] != target)]
    rows = np.sort(stream.permutation(rows)[:most])
    style = stream.choice(members[planted[members] == rendering], (len(rows), style_images))
    return Interventions(
        rows, style, np.full(len(rows), target), np.full(len(rows), rendering, dtype=planted.dtype)
    )


def probed_part(problem: Problem) -> Part:
    """The part whose cells are asked where they came from: id_test, or train without id_test."""
    return "id_test" if len(problem.fold.rows("id_test")) else "train"
