"""The error that scores have because they are of some rows, drawn at random."""

from collections.abc import Callable

import numpy as np

from deconfound.arrays import Doubles
from deconfound.metrics.score import Score
from deconfound.runtime.seeds import numpy_stream

DRAWS = 200


def standard_errors(
    score: Callable[[Doubles], list[Score]], of_rows: Doubles, seed: int
) -> list[float]:
    """The standard error of each score that `score` makes of values of rows (N, …).

    It is the standard deviation over 200 samples of N rows, drawn from them with replacement by
    `seed` (Efron 1979, the bootstrap); NaN where a score is undefined.
    """
    stream = numpy_stream(seed, "standard errors")
    drawn = [
        [one.value for one in score(of_rows[stream.integers(len(of_rows), size=len(of_rows))])]
        for _ in range(DRAWS)
    ]
    return [float(one) for one in np.std(np.array(drawn), axis=0, ddof=1)]


def noted(
    score: Score, scored: tuple[int, int], among: tuple[int, int], error: float | None
) -> Score:
    """`score` with a note of the rows scored and of those they were looked for among, each some of
    all that there are, and of the standard error of drawing the rows scored, where it is known."""
    parts = [f"{scored[0]:,} of {scored[1]:,} rows among {among[0]:,} of {among[1]:,}"]
    if error is not None and np.isfinite(error):
        parts.append(f"standard error {error:.2g}")
    return score._replace(note="; ".join(filter(None, (score.note, ", ".join(parts)))))
