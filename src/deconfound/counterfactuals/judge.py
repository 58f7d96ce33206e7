"""imputation: scores of a run's imputed images, where the true images can be rendered.

Imputing is that of Pernice et al., IST, 2023, eq. 1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Images, Rows
from deconfound.config import RelativeTo
from deconfound.counterfactuals.cells import (
    Interventions,
    interventions,
    into_one,
    refuse_irreversible,
)
from deconfound.counterfactuals.oracle import Oracle, oracle_of
from deconfound.counterfactuals.shown import RUN, StoredImputer, shown_images
from deconfound.counterfactuals.source_probe import source_scores
from deconfound.data.folds.fold import Part
from deconfound.data.folds.groups import well_units
from deconfound.data.folds.problem import pose
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.errors import UserError
from deconfound.evaluation.scores import ALONE, BASELINES, COLUMNS, EXACT, NamedScore, score_row
from deconfound.files import atomic, seal
from deconfound.intervention.source_run import refuse_unable
from deconfound.intervention.styles import (
    of_sets_in,
    refuse_absolute,
    source_styles_of,
    styles_anywhere,
)
from deconfound.methods.contract import Imputer
from deconfound.metrics import imputation as metrics
from deconfound.metrics.score import Score
from deconfound.runs.run import Run, open_run
from deconfound.runtime.device import start_fabric
from deconfound.runtime.progress import Progress

PARTS: tuple[Part, ...] = ("id_test", "test")


class _Judged:
    """Distances and probabilities of the images of one imputer, filled batch by batch."""

    def __init__(self, rows: int, channels: int, labels: int) -> None:
        self.absolute = np.zeros((rows, channels))
        """Summed absolute distance from the true image, in stored units."""
        self.squared = np.zeros((rows, channels))
        """Summed squared distance."""
        self.probability = np.zeros((rows, labels), dtype=np.float32)
        """Of every label, by the oracle."""

    def put(self, places: Rows, image: npt.NDArray[Any], true: Images, oracle: Oracle) -> None:
        """Compare images with the true ones of the same rows."""
        self.absolute[places] = metrics.absolute_distance(image, true)
        self.squared[places] = metrics.squared_distance(image, true)
        self.probability[places] = oracle.probabilities(image)


def imputation(
    run: Path,
    screen: Path,
    out: Path,
    *,
    images: int = 2_000,
    style_images: int = 1,
    relative_style: RelativeTo | None = None,
    oracle_steps: int = 400,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Score the images that `run` imputes for held-out cells of the screen it saw.

    At most `images` cells of each of the parts id_test and test are drawn by `seed`. Each is
    imputed into one training environment other than its own, drawn uniformly. Its style is the mean
    of the style codes of `style_images` training images of that environment, drawn uniformly; all
    of them come from the planted environment of the first. With `relative_style` only the baseline
    uses the style images: the run's images keep how their style differs from the mean style of
    their environment, taken over all of its images or its negative controls. Styles of sets are
    always relative, to those of controls if there are any; more style images than one then make up
    the style that images are brought to. The true image is the
    same cell rendered in the planted environment. Both are compared in stored units, the imputed
    one clipped to the range of the stored type. The oracle of `oracle_of`, trained for
    `oracle_steps` steps and kept beside `out`, says which label an image shows.

    Where images come from is read by `source_reading` from at most `images` cells that are all
    imputed into one environment (`into_one`), once for each imputer and once for the true images,
    which are the method `EXACT`.

    Returns, and writes to the Parquet file `out`, the columns of `measure`; the representation is
    "image" for all channels together and "channel NAME" for one. The scores of `BASELINES`, the
    images left alone and `matched_moments`, stand beside the run's; they depend only on the fold,
    `seed` and `style_images`, and carry `seed`. Raises UserError if `out` exists, if the run cannot
    impute as asked, if the screen was neither simulated nor injected, has other channels or is not
    the run's, if there is no cell to judge, or if pixels cannot be put back into stored units.
    """
    with atomic.claimed(Path(out)):
        opened, source = open_run(run), open_screen(screen)
        fabric = start_fabric(device, "32", threads)
        method, intensity = _loaded(opened, source)
        method.to(fabric.device)
        intensity.to(fabric.device)
        source_styles, of_environment = None, relative_style is not None or style_images == 1
        relative_style = relative_style or of_sets_in(opened, source)
        if relative_style is not None:
            refuse_absolute(opened.config.method, str(opened.path))
            styles = styles_anywhere(opened, source, method, intensity)
            source_styles = source_styles_of(opened, source, styles, relative_style, seed)
        problem = pose(source, opened.config.data)
        drawn_of = {
            part: interventions(source, problem, part, images, seed, style_images) for part in PARTS
        }
        planned = {part: drawn for part, drawn in drawn_of.items() if len(drawn.rows)}
        if not planned:
            raise UserError(
                f"{opened.path}: fold {problem.fold.name} holds no cell out; fit it on a fold "
                "with test or id_test rows"
            )
        folder = Path(out).absolute().parent
        oracle = oracle_of(
            source, problem, folder, steps=oracle_steps, seed=seed, threads=threads, quiet=quiet
        )
        records = []
        asked = {"style_images": style_images, "relative_style": relative_style}
        imputer = StoredImputer(
            method, intensity, opened.environments, source_styles, of_environment
        )
        one_target = into_one(source, problem, images, seed, style_images)
        total = sum(len(drawn.rows) for drawn in (*planned.values(), one_target))
        with Progress("impute", total, "images", quiet=quiet) as progress:
            for part, drawn in planned.items():
                judged = _judged(source, imputer, drawn, oracle, progress, threads)
                unit = well_units(source.table.iloc[drawn.rows], source.roles)
                codes = {"label": problem.label.codes[drawn.rows], "unit": unit}
                for name in (RUN, *BASELINES):
                    scores = _imputation_scores(judged, name, part, source.channels, seed, **codes)
                    records += _records(opened, name, scores, seed, asked)
            shown = shown_images(source, imputer, one_target, threads)
            read = source_scores(source, problem, one_target, shown, seed, progress)
            for name, scores in read.items():
                records += _records(opened, name, scores, seed, asked)
        table = pd.DataFrame(records, columns=COLUMNS)
        seal.write_frame(Path(out), table)
    return table


def _loaded(run: Run, screen: Screen) -> tuple[Imputer, Intensity]:
    """The run's method; raises UserError if it cannot impute this screen."""
    refuse_unable(run.config.method, run.config.method, str(run.path))
    counterfactual(screen, [], "none")
    method, intensity = run.load(screen)
    assert isinstance(method, Imputer)
    refuse_irreversible(run)
    if not run.trained_on(screen):
        raise UserError(
            f"{screen.path}: not the screen that {run.path} was fitted on, so which of its cells "
            "were held out is unknown; give that one"
        )
    return method, intensity


def _judged(
    screen: Screen,
    imputer: StoredImputer,
    drawn: Interventions,
    oracle: Oracle,
    progress: Progress,
    threads: int | None,
) -> dict[str, _Judged]:
    """Impute every row with the run and the baselines, and judge them and the true images."""
    size = len(drawn.rows), len(screen.channels), oracle.head.out_features
    judged = {name: _Judged(*size) for name in (RUN, *BASELINES, EXACT)}
    for places, shown in shown_images(screen, imputer, drawn, threads):
        for name, image in shown.items():
            judged[name].put(places, image, shown[EXACT], oracle)
        progress.update(len(places))
    return judged


def _imputation_scores(
    judged: dict[str, _Judged],
    name: str,
    part: str,
    channels: tuple[str, ...],
    seed: int,
    *,
    label: Rows,
    unit: Rows,
) -> list[NamedScore]:
    """The scores of the imputer `name` against the images left alone and the true ones.

    `label` and `unit` (N,) are the codes of each image's label and well; intervals are over wells.
    """
    one, alone, true = judged[name], judged[ALONE], judged[EXACT].probability
    probability = one.probability
    over = f"95 % interval over {len(np.unique(unit))} wells"

    def errors(representation: str, chosen: slice) -> list[NamedScore]:
        """The errors of the chosen channels together."""
        error, square = (
            metrics.relative_error(
                own[:, chosen].sum(axis=1), left[:, chosen].sum(axis=1), unit, seed
            )
            for own, left in ((one.absolute, alone.absolute), (one.squared, alone.squared))
        )
        n = error.score.n
        found = {
            "imputation_error": error.score,
            "imputation_error_low": Score(error.low, n, over),
            "imputation_error_high": Score(error.high, n, over),
            "imputation_squared_error": square.score,
        }
        return [NamedScore(representation, metric, part, score) for metric, score in found.items()]

    labels = {
        "imputation_label_probability": metrics.label_probability(probability, label),
        "imputation_label_probability_true": metrics.label_probability(true, label),
        "imputation_agreement": metrics.label_agreement(probability, true),
        "imputation_hallucination": metrics.hallucination_rate(probability, true, label),
    }
    scores = errors("image", slice(None))
    scores += [NamedScore("image", metric, part, score) for metric, score in labels.items()]
    for place, channel in enumerate(channels):
        scores += errors(f"channel {channel}", slice(place, place + 1))
    return scores


def _records(
    run: Run, name: str, scores: list[NamedScore], seed: int, asked: dict[str, Any]
) -> list[dict[str, Any]]:
    """Lines of a scores file; the configuration also says how the run was `asked` to impute.

    A baseline has no configuration.
    """
    config = run.config
    about = {
        "method": config.title,
        "seed": config.seed,
        "saw_held_out": bool(config.held_out_notes),
        "config": config.model_dump(mode="json") | {"imputation": asked},
    }
    if name == RUN:
        return [score_row(about, run.fold, one) for one in scores]
    baseline = about | {"method": name, "seed": seed, "saw_held_out": False}
    return [score_row(baseline, run.fold, one) | {"config": None} for one in scores]
