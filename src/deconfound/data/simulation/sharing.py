"""Which labels the series and plates of a layout share."""

from itertools import combinations

import numpy as np
import numpy.typing as npt

from deconfound.errors import UserError

Labels = npt.NDArray[np.int64]


def partly_shared(
    labels: Labels, groups: int, held: int, stream: np.random.Generator
) -> list[Labels]:
    """The `held` labels of each group, drawn so that all labels are held about equally often."""
    used = np.zeros(len(labels))
    chosen = []
    for _ in range(groups):
        pick = np.lexsort((stream.random(len(labels)), used))[:held]
        used[pick] += 1
        chosen.append(np.sort(labels[pick]))
    return chosen


def sparsely_shared(
    treatments: Labels, series: int, controls: int, overlap: float, stream: np.random.Generator
) -> list[Labels]:
    """The treatments of each series: every one lies in two of them, all pairs about equally often.

    Raises UserError if two series would share more than the fraction `overlap` of the labels of
    either, the `controls` that all hold among them, or if a series would hold no treatment.
    """
    pairs = stream.permutation(list(combinations(range(series), 2)))
    owners = pairs[np.arange(len(treatments)) % len(pairs)]
    drawn = stream.permutation(treatments)
    held = [np.sort(drawn[(owners == one).any(axis=1)]) for one in range(series)]
    largest = max(
        (controls + len(np.intersect1d(held[a], held[b])))
        / (controls + min(len(held[a]), len(held[b])))
        if min(len(held[a]), len(held[b]))
        else 1.0
        for a, b in combinations(range(series), 2)
    )
    if largest > overlap:
        raise UserError(
            f"--label-overlap {overlap:g}: of {controls + len(treatments)} labels in {series} "
            f"series two share {largest:.2f}; raise --series, or --labels to a multiple of "
            f"{len(pairs)} and the control"
        )
    return held
