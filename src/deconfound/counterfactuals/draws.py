"""Which cells `imputation` judges, their target environments and their style images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deconfound.arrays import Rows
from deconfound.data.folds.fold import Part
from deconfound.data.folds.problem import Problem
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import joined
from deconfound.runtime.seeds import numpy_stream


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
