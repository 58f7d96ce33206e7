"""Figure 4 of Makino et al. on the simulated pooled screen: biology kept against wells told apart.

    deconfound simulate --out screen --layout ops --cells 40000 --genes 200 --size 24 --seed 0
    python benchmarks/figure4.py screen recipes/sweeps/figure4_ops_cpu.yaml --out figure4

Trains the entries of a plan file seed after seed, embeds every run, and scores two sets of cells:
all of them, as in the paper, and those of the test part. Relations of genes come from `aggregate`
in the paper's form; the well is read by the paper's probe, 60 % of the cells against the others.
CellProfiler's features (cp_measure) take long, so they are measured of the test cells and of some
others, of which the principal components learn. Killed, the same command goes on.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from deconfound.config import DataOptions, read_yaml
from deconfound.data.folds.problem import pose
from deconfound.data.ingest.cellprofiler import cellprofiler
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.phenotype import TRAIT_NAMES
from deconfound.data.tables.complexes import Complexes, pairs_among, read_complexes
from deconfound.data.tables.table import coded
from deconfound.embeddings.aggregate import AggregateOptions, aggregate
from deconfound.embeddings.correct import correct
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.experiments.plan import make_plan
from deconfound.experiments.running.chain import Chain
from deconfound.experiments.running.messages import embeddings_file
from deconfound.files import atomic
from deconfound.methods.post_hoc.harmony import HarmonyOptions
from deconfound.methods.post_hoc.pca import PcaOptions
from deconfound.metrics.accuracy import accuracy
from deconfound.metrics.collapse import mean_resultant_length
from deconfound.metrics.corum import (
    relation_average_precision,
    relation_curve,
    relation_prevalence,
    relation_recall,
)
from deconfound.metrics.probe import batch_prediction
from deconfound.runtime.seeds import numpy_stream
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions

OTHERS = 2_400
"""Cells outside the test part whose CellProfiler features are measured."""
COMPONENTS = 64
"""Of principal components and of Harmony: the dimensions of every learned block."""
PERMUTATIONS = 20
CORRECTED = ("erm", "vae")
"""Entries whose embedding Harmony corrects as well."""
SHOWN = [
    "average_precision",
    "curve_area",
    "well_macro_f1",
    "well_macro_f1_standardised",
    "mean_resultant_length",
]


def trained(
    file: Path, out: Path, seeds: list[int], only_done: bool
) -> Iterator[tuple[str, int, Path]]:
    """The entry, the seed and the embeddings file of every chain, seed after seed.

    With `only_done` nothing is trained, and runs that are not done are left out.
    """
    given = read_yaml(file)
    for entry in given["methods"].values():
        if entry and "config" in entry:
            entry["config"] = str((file.parent / entry["config"]).resolve())
    corrected = [f"{name}+{how}" for name in CORRECTED for how in ("pca", "harmony")]
    for seed in seeds:
        of_seed = out / f"seed{seed}.yaml"
        harmony = {"components": COMPONENTS, "seed": seed}
        chains = {
            "chains": [word for word in corrected if word.partition("+")[0] in given["methods"]],
            "corrections": {"pca": {"components": COMPONENTS}, "harmony": harmony},
        }
        wanted = given | {"seeds": [seed]} | chains
        atomic.write_text(of_seed, yaml.safe_dump(wanted, sort_keys=False))
        if not only_done:
            compare(of_seed, out / "sweep", CompareOptions(embeddings=True), workers=1)
        plan = make_plan(of_seed)
        for setting in plan.settings:
            own = [chain for chain in plan.chains if chain.entry == setting.entry]
            for chain in (Chain(setting.entry, setting.entry), *own):
                embedded = embeddings_file(out / "sweep", chain.stem(setting.runs[seed]))
                if embedded.is_file():
                    yield ", ".join(filter(None, (chain.entry, chain.correction))), seed, embedded


def measured_features(screen: Screen, out: Path) -> Path:
    """Embeddings file of CellProfiler features of the test cells and of `OTHERS` others."""
    some, features, file = out / "some", out / "features", out / "features.h5ad"
    part = pose(screen, DataOptions(fold="given")).fold.part
    others = numpy_stream(0, "figure 4").permutation(np.flatnonzero(part != "test"))[:OTHERS]
    rows = np.sort(np.concatenate([np.flatnonzero(part == "test"), others]))
    if not some.exists():
        about = {"made_by": "benchmarks/figure4.py", "rows_of": screen.identity}
        with ScreenWriter(some, "some", screen.channels, screen.roles, about) as writer:
            writer.append(screen.read(rows))
            writer.finish(screen.table.iloc[rows].reset_index(drop=True))
    if not features.exists():
        cellprofiler(some, features)
    if not file.exists():
        from deconfound.embeddings.embed import profiles

        profiles(features, file, DataOptions(fold="given"))
    return file


def true_traits(screen: Screen, out: Path) -> Path:
    """Embeddings file of the planted traits of every cell: what the best embedding would know."""
    file = out / "traits.h5ad"
    if not file.exists():
        problem = pose(screen, DataOptions(fold="given"))
        table = screen.table.copy()
        values = table[[f"Truth_{name}" for name in TRAIT_NAMES]].to_numpy(dtype=np.float32)
        table[PART] = problem.fold.part
        table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
        about = {
            "method": "traits", "fold": "given", "seed": 0, "config": {},
            "roles": problem.roles.model_dump(mode="json"),
        }  # fmt: skip
        write_embeddings(file, Embeddings(table, {"representation": values}, about))
    return file


def scores(file: Path, known: Complexes, out: Path) -> dict[str, dict[str, float]]:
    """The scores of an embeddings file by set of cells: "all" and "test"; kept in `out`."""
    kept = out / "scores" / f"{file.stem}.json"
    if kept.is_file():
        found: dict[str, dict[str, float]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    opened = read_embeddings(file)
    blocks = opened.representations
    values = blocks.get("content", blocks["representation"])
    environment = coded(opened.environment()).codes
    found = {}
    for name, parts in (("all", ()), ("test", ("test",))):
        made = out / "genes" / f"{file.stem}-{name}.h5ad"
        made.unlink(missing_ok=True)
        genes = aggregate(file, made, AggregateOptions(parts=parts), quiet=True)
        chosen = np.isin(opened.part, parts) if parts else np.ones(len(values), dtype=bool)
        of_genes = genes.values[~genes.control]
        names = genes.table["Metadata_Gene"].astype(str)[~genes.control].tolist()
        found[name] = relation_scores(of_genes, names, known) | {
            "well_macro_f1": batch_prediction(values[chosen], environment[chosen], 0).value,
            "well_macro_f1_standardised": batch_prediction(
                standardised_columns(values[chosen]), environment[chosen], 0
            ).value,
            "mean_resultant_length": mean_resultant_length(values[chosen]).value,
            "dimensions": values.shape[1],
            "cells": int(chosen.sum()),
        }
    found["test"] |= label_scores(opened)
    atomic.write_text(kept, json.dumps(found))
    return found


def standardised_columns(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, D) with mean 0 and sd 1 in every dimension that varies.

    The paper's probe has an L2 penalty and sees embeddings in their own units, so it reads less of
    a small embedding, such as one of unit length, than of a large one that knows the same.
    """
    sd = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(sd > 0, sd, 1.0), np.float32)


def relation_scores(
    values: npt.NDArray[np.float32], names: list[str], known: Complexes
) -> dict[str, float]:
    """Every form of the metric of relations, and average precision with genes permuted."""
    pairs = pairs_among(known, names)
    permuted = [
        relation_average_precision(
            values[numpy_stream(0, "permuted genes", number).permutation(len(values))], pairs
        ).value
        for number in range(PERMUTATIONS)
    ]
    return {
        "average_precision": relation_average_precision(values, pairs).value,
        "curve_area": relation_curve(values, pairs).area().value,
        "recall_5_95": relation_recall(values, pairs, 0.05).value,
        "recall_10_90": relation_recall(values, pairs, 0.10).value,
        "prevalence": relation_prevalence(pairs).value,
        "average_precision_permuted": float(np.mean(permuted)),
    }


def label_scores(opened: Embeddings) -> dict[str, float]:
    """Accuracy of the method's own prediction of the gene, if it has one, on test rows."""
    label = coded(opened.label())
    predicted = coded(opened.table[PREDICTED], label.names).codes
    test = opened.part == "test"
    if (predicted < 0).all():
        return {}
    seen = np.ones(int(test.sum()), dtype=bool)
    return {"gene_accuracy": accuracy(label.codes[test], predicted[test], seen).value}


def all_rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every entry, seed and set of cells; trained methods seed by seed."""
    screen, out = open_screen(arguments.screen), arguments.out
    known = read_complexes(arguments.screen / "complexes.tsv")
    for folder in ("embeddings", "scores", "genes"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    def rows(entry: str, seed: int, file: Path) -> Iterator[dict[str, Any]]:
        for cells, found in scores(file, known, out).items():
            yield {"entry": entry, "seed": seed, "cells_of": cells} | found

    yield from rows("true traits", 0, true_traits(screen, out))
    if arguments.features:
        source = measured_features(screen, out)
        features = source.with_name(f"{source.stem}+pca.h5ad")
        if not features.exists():
            correct("pca", source, features, PcaOptions(components=COMPONENTS))
        measured = {"cellprofiler, pca": features}
        for seed in arguments.seeds:
            harmony = HarmonyOptions(components=COMPONENTS, seed=seed)
            file = features.with_name(f"{features.stem}-{seed}.h5ad")
            if not file.exists():
                correct("harmony", features, file, harmony)
            measured[f"cellprofiler, pca, harmony/{seed}"] = file
        for name, file in measured.items():
            entry, _, seed = name.partition("/")
            yield from (
                row for row in rows(entry, int(seed or 0), file) if row["cells_of"] != "all"
            )
    for entry, seed, file in trained(arguments.sweep, out, arguments.seeds, arguments.done):
        yield from rows(entry, seed, file)


def draw(table: pd.DataFrame, file: Path) -> None:
    """Average precision against well macro-F1: a point an entry, with the sd over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    titles = {"all": "all cells, as in the paper", "test": "cells of the test part"}
    entries = [name for name in dict.fromkeys(table["entry"]) if name != "true traits"]
    colours = dict(zip(entries, plt.colormaps["tab20"](np.arange(20)), strict=False))
    markers = {"scbd": "o", "cell": "s"}
    for axis, (cells, title) in zip(axes, titles.items(), strict=True):
        part = table[table["cells_of"] == cells]
        for entry in entries:
            of_entry = part[part["entry"] == entry]
            if of_entry.empty:
                continue
            x, y = of_entry["well_macro_f1"], of_entry["average_precision"]
            spread = [0.0 if len(of_entry) < 2 else float(one.std()) for one in (x, y)]
            axis.errorbar(
                x.mean(), y.mean(), spread[1], spread[0], capsize=2, label=entry,
                marker=markers.get(entry[:4], "^"), color=colours[entry], linestyle="none",
            )  # fmt: skip
        truth = part[part["entry"] == "true traits"]
        for name, value in (
            ("true traits", truth["average_precision"].mean()),
            ("genes permuted", part["average_precision_permuted"].mean()),
        ):
            axis.axhline(value, color="grey", linestyle=":")
            axis.annotate(name, (0.99, value), color="grey", ha="right", va="bottom", fontsize=8)
        axis.axvline(1 / 34, color="grey", linestyle=":")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xlabel("macro-F1 of the well (lower is better; dotted: chance)")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("average precision of complexes (higher is better)")
    handles = {
        text: handle
        for axis in axes
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), fontsize=8, loc="center left", bbox_to_anchor=(0.91, 0.5)
    )
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    """Run what is missing; print, write and draw the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("screen", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--features", action="store_true", help="CellProfiler features as well")
    parser.add_argument("--done", action="store_true", help="train nothing, score what is trained")
    parser.add_argument("--json", type=Path, help="summary to write")
    parser.add_argument("--picture", type=Path, help="picture to draw")
    arguments = parser.parse_args()
    rows = []
    for row in all_rows(arguments):
        rows.append(row)
        print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()})
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out / "scores.csv", index=False)
    grouped = table.groupby(["cells_of", "entry"], sort=False)
    mean, sd = grouped[SHOWN].mean(), grouped[SHOWN].std()
    shown = {
        name: [f"{a:.3f} ± {b:.3f}" for a, b in zip(mean[name], sd[name], strict=True)]
        for name in SHOWN
    }
    print(pd.DataFrame(shown, index=mean.index).to_string())
    if arguments.json:
        about = {
            "screen": open_screen(arguments.screen).provenance["simulate"],
            "sweep": read_yaml(arguments.sweep),
            "components": COMPONENTS,
            "other_cells_measured": OTHERS,
            "rows": rows,
        }
        atomic.write_text(arguments.json, json.dumps(about, indent=1) + "\n")
    if arguments.picture:
        draw(table, arguments.picture)


if __name__ == "__main__":
    main()
