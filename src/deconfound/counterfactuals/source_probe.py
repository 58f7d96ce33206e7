"""Which environment imputed images came from, as a probe reads it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.arrays import Codes, Rows
from deconfound.counterfactuals.cells import Interventions, probed_part
from deconfound.counterfactuals.shown import RUN
from deconfound.data.folds.groups import well_units
from deconfound.data.folds.problem import Problem
from deconfound.data.screens.screen import Screen
from deconfound.evaluation.scores import BASELINES, EXACT, NamedScore
from deconfound.metrics.source import image_features, source_reading
from deconfound.runtime.progress import Progress


def source_scores(
    screen: Screen,
    problem: Problem,
    drawn: Interventions,
    shown: Iterator[tuple[Rows, dict[str, npt.NDArray[Any]]]],
    seed: int,
    progress: Progress,
) -> dict[str, list[NamedScore]]:
    """How well the sources of `drawn` are read from the images `shown` of them, by imputer.

    Sources are the environments and, where these are finer, the groups of the outermost planted
    level. `drawn` comes from `into_one`, `shown` from `shown_images` of it.
    """
    features: dict[str, list[Any]] = {name: [] for name in (RUN, *BASELINES, EXACT)}
    order = [np.empty(0, dtype=np.int64)]
    for places, images in shown:
        order.append(places)
        for name, image in images.items():
            features[name].append(image_features(image))
        progress.update(len(places))
    rows = drawn.rows[np.concatenate(order)]
    unit = well_units(screen.table.iloc[rows], screen.roles)
    part = probed_part(problem)
    found: dict[str, list[NamedScore]] = {name: [] for name in features}
    for kind, columns, source in _sources(screen, problem, rows):
        target = "".join(np.unique(drawn.rendering))
        about = f"{' / '.join(columns)} read of cells imputed into {target}" if target else ""
        for name, batches in features.items():
            of_images = np.concatenate(batches) if batches else np.empty((0, 1))
            reading = source_reading(of_images, source, unit, seed)
            for end, score in zip(("", "_chance"), reading, strict=True):
                noted = score._replace(note="; ".join(filter(None, (about, score.note))))
                metric = f"imputation_source_{kind}{end}"
                found[name].append(NamedScore("image", metric, part, noted))
    return found


def _sources(
    screen: Screen, problem: Problem, rows: Rows
) -> Iterator[tuple[str, Sequence[str], Codes]]:
    """Kinds of source, each with its columns and the codes (N,) of rows.

    The outermost level is none of its own where it divides the training rows as the environment.
    """
    environment = problem.environment.codes
    yield "environment", problem.roles.environment, environment[rows]
    outermost = screen.roles.levels[:1]
    level = screen.coded(outermost).codes
    train = problem.fold.rows("train")
    both = np.column_stack([environment[train], level[train]])
    counts = [len(np.unique(one, axis=0)) for one in (both, both[:, 0], both[:, 1])]
    if len(set(counts)) > 1:
        yield "level", outermost, level[rows]
