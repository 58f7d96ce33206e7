"""diagnose: does accuracy in distribution trade against accuracy outside it? Will invariance help?

Makino et al., SCBD, section 4.1.2: SCBD can help where ERM shows the trade-off, over its learning
rates and lengths. The held-out labels are read, so this describes a screen and selects nothing.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from pydantic import Field

from deconfound.config import Options
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.experiments.plan import ALL_GROUPS, Plan, make_plan
from deconfound.experiments.select import read_result
from deconfound.experiments.sweep import ExecutorName, sweep
from deconfound.files import atomic
from deconfound.runtime.seeds import numpy_stream

FORMAT_VERSION = 1
RESAMPLES = 2000
FEWEST = 4
"""Settings that a correlation needs."""
ERM, SCBD = "erm", "scbd"
Verdict = Literal["help", "cost", "cannot tell"]
WORDS: dict[Verdict, str] = {
    "help": "invariance is likely to help",
    "cost": "invariance is likely to cost",
    "cannot tell": "the data cannot tell whether invariance helps",
}


class DiagnoseOptions(Options):
    """What is trained for a diagnosis."""

    folds: tuple[str, ...] = ()
    """Folds, or "all groups of COLUMN"; if not given, the screen's own split, or all groups of the
    outermost level."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of ERM."""
    lengths: tuple[int, ...] = (50, 150, 450)
    """Training steps of ERM; SCBD trains for the largest."""
    alphas: tuple[float, ...] = (0.0, 1.0, 4.0, 8.0)
    """Weights of the invariance loss of SCBD; give none to leave the curve out."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of every setting."""
    erm: Path | None = None
    """Configuration of a run of ERM to start from."""
    scbd: Path | None = None
    """The same of SCBD."""
    batch_size: int = Field(256, ge=1)
    """Images in a batch, where the configurations say nothing."""


@dataclass(frozen=True)
class FoldDiagnosis:
    """What one fold, or all of them together, shows."""

    fold: str
    """Name of the fold; "all folds" for their mean."""
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


def diagnose(
    screen: Path,
    out: Path,
    options: DiagnoseOptions | None = None,
    *,
    executor: ExecutorName = "local",
    workers: int | None = None,
    address: str | None = None,
    quiet: bool = False,
) -> list[FoldDiagnosis]:
    """Train ERM over learning rates and lengths and SCBD over alphas; judge every fold.

    Writes below the directory `out`: `sweep/` (the runs; a killed call resumes), `points.csv` (one
    row for each run), `diagnosis.json` and `diagnosis.png`. The last of the diagnoses returned is
    that of all folds. Raises UserError if `out` holds another diagnosis or something else, and for
    every mistake that a sweep refuses.
    """
    options = options or DiagnoseOptions()
    out = Path(out)
    file = out / "diagnose.yaml"
    wanted = yaml.safe_dump(_sweep_file(Path(screen), options), sort_keys=False)
    if out.exists() and any(out.iterdir()):
        if not file.is_file():
            raise UserError(f"{out}: exists and is not a diagnosis; choose another --out")
        if file.read_text(encoding="utf-8") != wanted:
            raise UserError(f"{out}: holds a diagnosis with other options; choose another --out")
    atomic.write_text(file, wanted)
    sweep(file, out / "sweep", executor=executor, workers=workers, address=address, quiet=quiet)
    plan = make_plan(file)
    points = _points(plan, out / "sweep")
    atomic.write_text(out / "points.csv", points.to_csv(index=False))
    found = judge(points)
    _draw(points, found, out / "diagnosis.png")
    about = {
        "format_version": FORMAT_VERSION,
        "screen": open_screen(screen).name,
        "folds": [
            {name: None if value != value else value for name, value in asdict(one).items()}
            for one in found
        ],
        "sentences": sentences(found),
        "curve": _curve(points).to_dict("records"),
    }
    atomic.write_text(out / "diagnosis.json", json.dumps(about, indent=2, allow_nan=False))
    return found


def judge(points: pd.DataFrame) -> list[FoldDiagnosis]:
    """Diagnose every fold of `points`, and last all folds together (Fisher's mean of their r).

    `points` has a row for each run of ERM or SCBD: method, fold, setting, seed, in_distribution and
    held_out (accuracies) and chance.
    """
    erm = points[points["method"] == ERM]
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
    return [*found, _diagnosis("all folds", settings, overall, together)]


def sentences(found: list[FoldDiagnosis]) -> list[str]:
    """The verdict in words, and what each fold adds to it."""
    overall = found[-1]
    said = [f"{WORDS[overall.verdict].capitalize()}: {_evidence(overall)}."]
    if len(found) > 2:
        said += [f"{one.fold}: {WORDS[one.verdict]}; {_evidence(one)}." for one in found[:-1]]
    return said


def _evidence(one: FoldDiagnosis) -> str:
    if not np.isfinite(one.correlation):
        return (
            f"{one.settings} settings of ERM are strong in distribution; a correlation needs "
            f"{FEWEST} of a fold that differ in both accuracies, give more --learning-rates or "
            "--lengths"
        )
    return (
        f"over {one.settings} settings of ERM the accuracies in distribution and on held-out rows "
        f"correlate with r = {one.correlation:.2f} (95 % {one.low:.2f} … {one.high:.2f})"
    )


def _diagnosis(
    fold: str, settings: int, r: float, sample: npt.NDArray[np.float64]
) -> FoldDiagnosis:
    low, high = np.nanpercentile(sample, [2.5, 97.5]) if np.isfinite(r) else (np.nan, np.nan)
    verdict: Verdict = "help" if high < 0 else "cost" if low > 0 else "cannot tell"
    return FoldDiagnosis(fold, settings, r, float(low), float(high), verdict)


def _correlation(rows: pd.DataFrame, fold: str) -> tuple[int, float, npt.NDArray[np.float64]]:
    """Strong settings, their r, and r of settings and seeds drawn anew, (RESAMPLES,)."""
    means = rows.groupby("setting", sort=False)["in_distribution"].mean()
    chance = float(rows["chance"].iloc[0])
    strong = means.index[means >= chance + (means.max() - chance) / 2]
    runs = [rows[rows["setting"] == setting] for setting in strong]
    values = [one[["in_distribution", "held_out"]].to_numpy(dtype=float) for one in runs]
    if len(values) < FEWEST:
        return len(values), float("nan"), np.array([])
    observed = np.array([value.mean(axis=0) for value in values])
    if np.ptp(observed, axis=0).min() == 0:
        return len(values), float("nan"), np.array([])
    stream = numpy_stream(0, "diagnose", fold)
    sample = np.full(RESAMPLES, np.nan)
    for draw in range(RESAMPLES):
        chosen = [values[i] for i in stream.integers(0, len(values), len(values))]
        again = [one[stream.integers(0, len(one), len(one))].mean(axis=0) for one in chosen]
        drawn = np.array(again)
        if np.ptp(drawn, axis=0).min() > 0:
            sample[draw] = np.corrcoef(drawn.T)[0, 1]
    return len(values), float(np.corrcoef(observed.T)[0, 1]), sample


def _sweep_file(screen: Path, options: DiagnoseOptions) -> dict[str, Any]:
    """The sweep that a diagnosis needs, as a sweep file says it."""
    opened = open_screen(screen)
    folds = list(options.folds)
    if not folds and opened.roles.split is not None:
        folds = ["given"]
    elif not folds and opened.roles.levels:
        folds = [ALL_GROUPS + opened.roles.levels[0]]
    elif not folds:
        raise UserError(f"{screen}: has no levels and no split; name what to hold out with --folds")
    entries: dict[str, Any] = {
        ERM: _entry(
            options.erm,
            options,
            {"learning_rate": list(options.learning_rates), "steps": list(options.lengths)},
        )
    }
    if options.alphas:
        entries[SCBD] = _entry(options.scbd, options, {"alpha": list(options.alphas)})
        entries[SCBD]["training"] |= {"steps": max(options.lengths)}
        entries[SCBD]["options"] = {"decoder": "none"}
    return {
        "screens": [str(Path(screen).resolve())],
        "folds": folds,
        "seeds": list(options.seeds),
        "methods": entries,
    }


def _entry(config: Path | None, options: DiagnoseOptions, grid: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"grid": grid, "training": {}}
    if config is None:
        entry["training"] = {"batch_size": options.batch_size}
    else:
        entry["config"] = str(config.resolve())
    return entry


def _points(plan: Plan, out: Path) -> pd.DataFrame:
    """One row for each finished run."""
    rows = []
    for setting in plan.settings:
        for seed, name in setting.runs.items():
            result = read_result(out, plan.jobs[name])
            if result is None:
                continue
            rows.append(
                {
                    "method": setting.entry,
                    "fold": setting.fold,
                    "setting": json.dumps(setting.values),
                    **setting.values,
                    "seed": seed,
                    "in_distribution": result.value("val", "accuracy"),
                    "held_out": result.value("test", "accuracy"),
                    "chance": result.value("val", "accuracy_chance"),
                }
            )
    return pd.DataFrame(rows)


def _curve(points: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds of both accuracies of SCBD, for each fold and alpha."""
    scbd = points[points["method"] == SCBD]
    if scbd.empty:
        return scbd
    grouped = scbd.groupby(["fold", "alpha"], sort=False)[["in_distribution", "held_out"]]
    mean, sd = grouped.mean().add_suffix("_mean"), grouped.std().add_suffix("_sd")
    return mean.join(sd.fillna(0.0)).reset_index()


def _draw(points: pd.DataFrame, found: list[FoldDiagnosis], file: Path) -> None:
    """Above: ERM, in distribution against held out; below: SCBD over alpha. A column a fold."""
    from matplotlib.figure import Figure

    folds = found[:-1]
    curve = _curve(points)
    height = 1 if curve.empty else 2
    figure = Figure(figsize=(3.4 * len(folds) + 0.6, 3.1 * height), layout="constrained")
    axes = figure.subplots(height, len(folds), squeeze=False)
    for column, one in enumerate(folds):
        erm = points[(points["method"] == ERM) & (points["fold"] == one.fold)]
        means = erm.groupby("setting", sort=False)[["in_distribution", "held_out"]].mean()
        above = axes[0, column]
        above.scatter(erm["in_distribution"], erm["held_out"], s=10, color="#bbbbbb")
        above.scatter(means["in_distribution"], means["held_out"], s=28, color="#4269d0")
        r = f"r = {one.correlation:.2f}" if np.isfinite(one.correlation) else "too few settings"
        above.set_title(f"{one.fold}\n{r}", fontsize=9)
        above.set_xlabel("ERM, in distribution")
        above.set_ylabel("ERM, held out")
        if curve.empty:
            continue
        below, own = axes[1, column], curve[curve["fold"] == one.fold]
        places = np.arange(len(own))
        for name, colour in (("in_distribution", "#6c7a89"), ("held_out", "#e8503f")):
            below.errorbar(
                places, own[f"{name}_mean"], own[f"{name}_sd"],
                color=colour, marker="o", capsize=2, label=name.replace("_", " "),
            )  # fmt: skip
        below.set_xticks(places, [f"{alpha:g}" for alpha in own["alpha"]])
        below.set_xlabel("SCBD, alpha")
        below.set_ylabel("accuracy")
        below.legend(fontsize=8)
    with atomic.atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
