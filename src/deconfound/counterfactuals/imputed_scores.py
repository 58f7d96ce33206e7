"""Scores of imputed images: their distance from the true ones, and the labels an oracle sees."""

from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.arrays import Images, Rows
from deconfound.counterfactuals.oracle import Oracle
from deconfound.evaluation.scores import ALONE, NamedScore
from deconfound.metrics.imputation import (
    absolute_distance,
    hallucination_rate,
    label_agreement,
    label_probability,
    relative_error,
    squared_distance,
)
from deconfound.metrics.score import Score


class Judged:
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
        self.absolute[places] = absolute_distance(image, true)
        self.squared[places] = squared_distance(image, true)
        self.probability[places] = oracle.probabilities(image)


def imputation_scores(
    judged: dict[str, Judged],
    name: str,
    part: str,
    *,
    label: Rows,
    unit: Rows,
    channels: tuple[str, ...],
    seed: int,
) -> list[NamedScore]:
    """The scores of the imputer `name` against the images left alone and the true ones.

    `label` and `unit` (N,) are the codes of each image's label and well; intervals are over wells.
    """
    one, alone, true = judged[name], judged[ALONE], judged["true"].probability
    probability = one.probability
    over = f"95 % interval over {len(np.unique(unit))} wells"

    def errors(representation: str, chosen: slice) -> list[NamedScore]:
        """The errors of the chosen channels together."""
        error, square = (
            relative_error(own[:, chosen].sum(axis=1), left[:, chosen].sum(axis=1), unit, seed)
            for own, left in ((one.absolute, alone.absolute), (one.squared, alone.squared))
        )
        n = error.score.n
        return [
            NamedScore(representation, metric, part, score)
            for metric, score in (
                ("imputation_error", error.score),
                ("imputation_error_low", Score(error.low, n, over)),
                ("imputation_error_high", Score(error.high, n, over)),
                ("imputation_squared_error", square.score),
            )
        ]

    labels = {
        "imputation_label_probability": label_probability(probability, label),
        "imputation_label_probability_true": label_probability(true, label),
        "imputation_agreement": label_agreement(probability, true),
        "imputation_hallucination": hallucination_rate(probability, true, label),
    }
    scores = errors("image", slice(None))
    scores += [NamedScore("image", metric, part, score) for metric, score in labels.items()]
    for place, channel in enumerate(channels):
        scores += errors(f"channel {channel}", slice(place, place + 1))
    return scores
