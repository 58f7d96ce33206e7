"""The alpha curve: ID accuracy, OOD accuracy and what of the environment is left, over seeds.

    python benchmarks/trade_off.py SCREEN --recipe recipes/scbd/cmnist_cpu.yaml \
        --erm recipes/erm/cmnist_cpu.yaml --grid listing:0,64,128,192 balanced:0,2,8,16 \
        --seeds 0 1 2 --runs runs/cmnist --out benchmarks/results/cmnist.json --figure curve.png

Fits, embeds and measures every point (what is done already is not done again) and writes one JSON
row for each run, and the picture of Figure 3 of Makino et al. With `--shuffle-environments` the
known environments change places at random first: the control, in which invariance has nothing to
hold on to.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from deconfound.config import validated
from deconfound.data.screens.screen import open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.embeddings.embed import embed
from deconfound.evaluation.measure import measure
from deconfound.runs.config import RunConfig, config_model, read_config
from deconfound.runs.run import open_run
from deconfound.runtime.seeds import numpy_stream
from deconfound.training.fit import fit

SHOWN = ("id", "ood", "environment_from_r", "environment_from_z")


def with_shuffled_environments(screen: Path, out: Path) -> Path:
    """Write the screen at `out` with the rows' known environments permuted; returns `out`."""
    if out.exists():
        return out
    source = open_screen(screen)
    table = source.table.copy()
    columns = list(source.roles.environment)
    known = table[columns].notna().all(axis=1).to_numpy().nonzero()[0]
    order = numpy_stream(0, "shuffled environments").permutation(known)
    table.loc[known, columns] = table.loc[order, columns].to_numpy()
    provenance = {"made_by": "benchmarks/trade_off.py", "of": source.identity}
    name = f"{source.name}, environments shuffled"
    with ScreenWriter(out, name, source.channels, source.roles, provenance) as writer:
        for start in range(0, len(source), 4096):
            writer.append(source.read(np.arange(start, min(start + 4096, len(source)))))
        writer.finish(table)
    return out


def run_point(
    recipe: Path,
    changes: dict[str, Any],
    seed: int,
    fold: str | None,
    screen: Path,
    where: Path,
    selections: list[str],
) -> dict[str, Any]:
    """Fit, embed and measure one point, with the checkpoint of every selection asked for."""
    config = read_config(recipe)
    values = config.model_dump(mode="json")
    values["seed"] = seed
    values["options"] |= changes
    if fold is not None:
        values["data"]["fold"] = fold
    config = validated(config_model(config.method), values, str(recipe))
    assert isinstance(config, RunConfig)
    fit(config, screen, where)
    run = open_run(where)
    found: dict[str, Any] = {
        "method": config.method,
        "seed": seed,
        "fold": config.data.fold,
        "training_seconds": run.provenance()["training_seconds"],
        "device": run.provenance()["device"],
        **changes,
    }
    for selection in selections:
        file = where / f"{selection}.h5ad"
        scores_file = where / f"{selection}-scores.parquet"
        if not file.exists():
            embed(where, screen, file, selection=selection)
        if not scores_file.exists():
            measure([file], scores_file, quiet=True)
        found |= {f"{name}_{selection}": value for name, value in _read(scores_file, found).items()}
    return found


def _read(file: Path, found: dict[str, Any]) -> dict[str, float]:
    scores = pd.read_parquet(file)
    within = "id_test" if (scores["part"] == "id_test").any() else "val"
    score = scores.set_index(["representation", "metric", "part"])["value"].to_dict()
    block = "content" if found["method"] == "scbd" else "representation"
    names = {
        "id": ("prediction", "accuracy", within),
        "id_macro_f1": ("prediction", "macro_f1", within),
        "ood": ("prediction", "accuracy", "test"),
        "ood_macro_f1": ("prediction", "macro_f1", "test"),
        "environment_from_r": ("representation", "probe_environment_accuracy", within),
        "environment_from_z": (block, "probe_environment_accuracy", within),
        "environment_from_z_macro_f1": (block, "probe_environment_macro_f1", within),
        "resultant_length": ("content", "mean_resultant_length", within),
    }
    return {name: float(score[key]) for name, key in names.items() if key in score}


def draw(rows: pd.DataFrame, file: Path, selection: str) -> None:
    """ID accuracy, OOD accuracy and environment probes over alpha, one column for each form."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scbd = rows[rows["method"] == "scbd"]
    forms = list(dict.fromkeys(scbd["invariance"]))
    figure, axes = plt.subplots(1, len(forms), figsize=(4.5 * len(forms), 3.6), sharey=True)
    labels = {
        "id": "label, in distribution",
        "ood": "label, unseen environment",
        "environment_from_r": "environment from r",
        "environment_from_z": "environment from z_c",
    }
    erm = rows[rows["method"] == "erm"]
    for axis, form in zip(np.atleast_1d(axes), forms, strict=True):
        part = scbd[scbd["invariance"] == form]
        for name, text in labels.items():
            grouped = part.groupby("alpha")[f"{name}_{selection}"]
            mean, spread = grouped.mean(), grouped.std().fillna(0)
            line = axis.errorbar(range(len(mean)), mean, spread, marker="o", capsize=3, label=text)
            if name == "ood" and len(erm):
                value = erm[f"ood_{selection}"].mean()
                axis.axhline(value, color=line[0].get_color(), linestyle=":", label="ERM, unseen")
        axis.set_xticks(range(len(mean)), [f"{alpha:g}" for alpha in mean.index])
        axis.set_xlabel("alpha")
        axis.set_title(f"invariance: {form}")
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("accuracy")
    np.atleast_1d(axes)[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(file, dpi=130, bbox_inches="tight")


def main() -> None:
    """Run every point, print the table, write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--erm", type=Path)
    parser.add_argument("--grid", nargs="+", required=True, help="FORM:ALPHA,ALPHA …")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folds", nargs="*", default=[None])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--selections", nargs="+", default=["loss"])
    parser.add_argument("--shuffle-environments", action="store_true")
    arguments = parser.parse_args()
    if arguments.shuffle_environments:
        arguments.screen = with_shuffled_environments(
            arguments.screen, arguments.runs / "shuffled-screen"
        )
    points: list[tuple[str, Path, dict[str, Any]]] = []
    if arguments.erm:
        points.append(("erm", arguments.erm, {}))
    for entry in arguments.grid:
        form, _, alphas = entry.partition(":")
        for alpha in alphas.split(","):
            change = {"invariance": form, "alpha": float(alpha)}
            points.append((f"scbd-{form}-{alpha}", arguments.recipe, change))
    rows = []
    for seed in arguments.seeds:
        for fold in arguments.folds:
            without_invariance: dict[str, Any] | None = None
            for name, recipe, changes in points:
                if without_invariance and changes.get("alpha") == 0:
                    rows.append(without_invariance | changes)  # every form is the same at alpha 0
                    continue
                place = f"{name}-{(fold or 'recipe').replace('/', '_')}-{seed}"
                rows.append(
                    run_point(
                        recipe,
                        changes,
                        seed,
                        fold,
                        arguments.screen,
                        arguments.runs / place,
                        arguments.selections,
                    )
                )
                if changes.get("alpha") == 0:
                    without_invariance = rows[-1]
                text = json.dumps(rows, indent=1) + "\n"
                arguments.out.write_text(text, encoding="utf-8")
    table = pd.DataFrame(rows)
    for column in ("invariance", "alpha"):
        if column not in table:
            table[column] = np.nan
    shown = Table("method", "invariance", "alpha", "runs", *SHOWN)
    for key, group in table.groupby(["method", "invariance", "alpha"], dropna=False, sort=False):
        cells = []
        for name in SHOWN:
            values = group[f"{name}_{arguments.selections[0]}"]
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
        shown.add_row(*map(str, key), str(len(group)), *cells)
    Console(width=140).print(shown)
    if arguments.figure:
        draw(table, arguments.figure, arguments.selections[0])


if __name__ == "__main__":
    main()
