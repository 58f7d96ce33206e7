"""What scores say: paired differences of methods, and whether invariance is likely to help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from deconfound.arrays import ROUNDING, Codes, Doubles, Mask
from deconfound.display.numbers import counted
from deconfound.runtime.seeds import numpy_stream

REPLICATES = 2_000
FEWEST = 4
"""Settings that a correlation needs."""
FEWEST_FOLDS, FEWEST_SEEDS = 3, 2
"""Folds and seeds that an interval of a difference needs; of fewer it is too narrow."""
ALL_FOLDS = "all folds"
Verdict = Literal["help", "cost", "cannot tell"]


@dataclass(frozen=True)
class Difference:
    """By how much a method scores above a baseline, in pairs of the same fold and seed."""

    method: str
    baseline: str
    folds: int
    seeds: int
    mean: float
    """Over all pairs."""
    low: float
    high: float
    """Bootstrap interval of 95 % over folds and seeds; NaN where `FEWEST_FOLDS` or `FEWEST_SEEDS`
    are not reached, as it would then be too narrow."""

    def text(self) -> str:
        """One sentence."""
        over = f"over {counted(self.folds, 'fold')} and {counted(self.seeds, 'seed')}"
        if math.isnan(self.low):
            return (
                f"{self.method} − {self.baseline}: {self.mean:+.3f}, {over}; too few to tell "
                f"apart, which takes {FEWEST_FOLDS} held-out groups and {FEWEST_SEEDS} seeds."
            )
        known = self.low > 0 or self.high < 0
        said = ("above" if self.low > 0 else "below") if known else "not told apart from"
        interval = f"{self.mean:+.3f}, 95 % {self.low:+.3f} … {self.high:+.3f}"
        return f"{self.method} is {said} {self.baseline}: {interval}, {over}."


def paired_differences(
    scores: pd.DataFrame, baseline: str, folds: Sequence[str], metric: str = "macro_f1"
) -> list[Difference]:
    """The difference of every other method from `baseline` on test rows of `folds`.

    `scores` has the columns of a scores file. Each of 2,000 replicates draws folds and seeds with
    replacement, the same for both methods of a pair. A method that shares no pair with the baseline
    is left out.
    """
    kept = (scores["metric"] == metric) & (scores["part"] == "test")
    kept &= (scores["representation"] == "prediction") & scores["fold"].isin(list(folds))
    values = scores[kept].pivot_table(index=["fold", "seed"], columns="method", values="value")
    if baseline not in values.columns:
        return []
    found = []
    for method in (name for name in values.columns if name != baseline):
        pairs = (values[method] - values[baseline]).dropna()
        if pairs.empty:
            continue
        grid = pairs.unstack("seed").to_numpy()
        low, high = _interval_of_pairs(grid, str(method))
        found.append(Difference(str(method), baseline, *grid.shape, float(pairs.mean()), low, high))
    return found


def _interval_of_pairs(grid: Doubles, method: str) -> tuple[float, float]:
    """The 95 % interval of the mean of (folds, seeds); NaN entries are pairs that are missing.

    The bootstrap's, widened around the mean as `_of_few` says.
    """
    if len(grid) < FEWEST_FOLDS or grid.shape[1] < FEWEST_SEEDS:
        return math.nan, math.nan
    stream = numpy_stream(0, "paired differences", method)
    of_folds = stream.multinomial(len(grid), np.full(len(grid), 1 / len(grid)), REPLICATES)
    seeds = grid.shape[1]
    of_seeds = stream.multinomial(seeds, np.full(seeds, 1 / seeds), REPLICATES)
    known = np.isfinite(grid).astype(float)
    total = np.einsum("rf,fs,rs->r", of_folds, np.nan_to_num(grid), of_seeds)
    count = np.einsum("rf,fs,rs->r", of_folds, known, of_seeds)
    means = total[count > 0] / count[count > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    mean = float(np.nanmean(grid))
    wider = _of_few(len(grid))
    return mean + wider * (float(low) - mean), mean + wider * (float(high) - mean)


def _of_few(folds: int) -> float:
    """By how much an interval over few folds is widened, as the bootstrap's is too narrow there.

    The spread of a sample of n is sqrt((n − 1) / n) of what it should be, and Student's t takes the
    place of the normal distribution: 2.7 times for 3 folds, 1.9 for 4, 1.2 for 10.
    """
    return float(math.sqrt(folds / (folds - 1)) * student.ppf(0.975, folds - 1) / norm.ppf(0.975))


def bootstrap(correct: Mask, unit: Codes, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over seeds of the accuracy.

    `correct` (S, N) says for each of S seeds which of N rows are right, `unit` (N,) which rows
    belong together. Each of 2,000 replicates draws S seeds and as many units as there are, both
    with replacement; all seeds of a replicate see the same units. Both ends are in [0, 1]; NaN
    where there are no rows.
    """
    seeds, rows = correct.shape
    if not rows:
        return math.nan, math.nan
    _, code = np.unique(unit, return_inverse=True)
    counts = [np.bincount(code, weights=right) for right in correct]
    of_unit = np.stack([*counts, np.bincount(code)], axis=1)
    kinds, size = np.unique(of_unit, axis=0, return_counts=True)  # equal units are drawn as one
    stream = numpy_stream(seed, "sweep bootstrap")
    drawn = stream.multinomial(size.sum(), size / size.sum(), REPLICATES) @ kinds
    share = stream.multinomial(seeds, np.full(seeds, 1 / seeds), REPLICATES) / seeds
    accuracy = (share * drawn[:, :seeds]).sum(axis=1) / drawn[:, seeds]
    low, high = np.percentile(accuracy, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class FoldDiagnosis:
    """What one fold, or all of them together, shows."""

    fold: str
    """Name of the fold; ALL_FOLDS for their mean."""
    settings: int
    """Settings of ERM that are strong in distribution: at least half way from chance to the
    best."""
    correlation: float
    """Pearson's r of accuracy in distribution and on held-out rows, over those settings, each the
    mean of its seeds; NaN where there are fewer than 4 or one accuracy does not vary."""
    low: float
    high: float
    """Bootstrap interval of 95 %, over settings and their seeds."""
    verdict: Verdict


def judge(points: pd.DataFrame) -> list[FoldDiagnosis]:
    """Diagnose every fold of `points`, and last all folds together (Fisher's mean of their r).

    `points` has a row for each run of ERM or SCBD: method, fold, setting, seed, in_distribution and
    held_out (accuracies) and chance.
    """
    erm = points[points["method"] == "erm"]
    found, replicates = [], []
    for fold, rows in erm.groupby("fold", sort=False):
        strong, r, sample = _correlation(rows, str(fold))
        found.append(_diagnosis(str(fold), strong, r, sample))
        if np.isfinite(r):
            replicates.append((r, sample))
    pooled = [np.arctanh(np.clip(r, -0.999, 0.999)) for r, _ in replicates]
    overall = float(np.tanh(np.mean(pooled))) if pooled else float("nan")
    samples = [np.arctanh(np.clip(sample, -0.999, 0.999)) for _, sample in replicates]
    together = np.tanh(np.mean(samples, axis=0)) if samples else np.array([])
    settings = sum(one.settings for one in found)
    return [*found, _diagnosis(ALL_FOLDS, settings, overall, together)]


def _diagnosis(fold: str, settings: int, r: float, sample: Doubles) -> FoldDiagnosis:
    low, high = np.nanpercentile(sample, [2.5, 97.5]) if np.isfinite(r) else (np.nan, np.nan)
    verdict: Verdict = "help" if high < 0 else "cost" if low > 0 else "cannot tell"
    return FoldDiagnosis(fold, settings, r, float(low), float(high), verdict)


def _correlation(rows: pd.DataFrame, fold: str) -> tuple[int, float, Doubles]:
    """Strong settings, their r, and r of settings and seeds drawn anew, (REPLICATES,)."""
    means = rows.groupby("setting", sort=False)["in_distribution"].mean()
    chance = float(rows["chance"].iloc[0])
    strong = means.index[means >= chance + (means.max() - chance) / 2]
    runs = [rows[rows["setting"] == setting] for setting in strong]
    values = [one[["in_distribution", "held_out"]].to_numpy(dtype=float) for one in runs]
    if len(values) < FEWEST:
        return len(values), float("nan"), np.array([])
    observed = np.array([value.mean(axis=0) for value in values])
    if np.ptp(observed, axis=0).min() <= ROUNDING:
        return len(values), float("nan"), np.array([])
    stream = numpy_stream(0, "diagnose", fold)
    sample = np.full(REPLICATES, np.nan)
    for draw in range(REPLICATES):
        chosen = [values[i] for i in stream.integers(0, len(values), len(values))]
        again = [one[stream.integers(0, len(one), len(one))].mean(axis=0) for one in chosen]
        drawn = np.array(again)
        if np.ptp(drawn, axis=0).min() > ROUNDING:
            sample[draw] = np.corrcoef(drawn.T)[0, 1]
    return len(values), float(np.corrcoef(observed.T)[0, 1]), sample
