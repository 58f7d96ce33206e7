"""Figure 4 of Makino et al. on the simulated pooled screen: biology kept against wells told apart.

    deconfound simulate --out screen --layout ops --cells 40000 --genes 200 --size 24 --seed 0
    python benchmarks/figure4.py screen recipes/sweeps/figure4_ops_cpu.yaml --out figure4

Trains the entries of a plan file seed after seed, embeds every run, and scores two sets of cells:
all of them, as in the paper, and those of the test part. Relations of genes come from `aggregate`
in the paper's form; the well is read by the paper's probe, 60 % of the cells against the others.
CellProfiler's features (cp_measure) take long, so they are measured of the test cells and of some
others, of which the principal components learn. Untrained numbers of the intensities stand beside
them, as they are and after corrections by each well's controls. Killed, the same command goes on.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from figure4_baselines import COMPONENTS, OTHERS, untrained
from figure4_picture import draw
from figure4_scores import scores

from deconfound.config import read_yaml
from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.complexes import read_complexes
from deconfound.experiments.layout import make_plan
from deconfound.experiments.running.chain import Chain
from deconfound.experiments.running.messages import embeddings_file
from deconfound.files import atomic
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions

CORRECTED = ("erm", "vae")
"""Entries whose embedding is corrected as well."""
SHOWN = [
    "average_precision",
    "curve_area",
    "well_macro_f1",
    "well_macro_f1_standardised",
    "mean_resultant_length",
]


def trained(
    file: Path, out: Path, seeds: list[int], hows: list[str], only_done: bool
) -> Iterator[tuple[str, int, Path]]:
    """The entry, the seed and the embeddings file of every chain, seed after seed.

    `hows` are the corrections of the entries of `CORRECTED`. With `only_done` nothing is trained,
    and runs that are not done are left out.
    """
    given = read_yaml(file)
    for entry in given["methods"].values():
        if entry and "config" in entry:
            entry["config"] = str((file.parent / entry["config"]).resolve())
    corrected = [f"{name}+{how}" for name in CORRECTED for how in hows]
    for seed in seeds:
        of_seed = out / f"seed{seed}.yaml"
        harmony = {"components": COMPONENTS, "seed": seed}
        options = {"pca": {"components": COMPONENTS}, "harmony": harmony}
        chains = {
            "chains": [word for word in corrected if word.partition("+")[0] in given["methods"]],
            "corrections": {how: options[how] for how in hows if how in options},
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


def all_rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every entry, seed and set of cells; trained methods seed by seed."""
    screen, out = open_screen(arguments.screen), arguments.out
    known = read_complexes(arguments.screen / "complexes.tsv")
    for folder in ("embeddings", "scores", "genes"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    def rows(entry: str, seed: int, file: Path) -> Iterator[dict[str, Any]]:
        for cells, found in scores(file, known, out).items():
            yield {"entry": entry, "seed": seed, "cells_of": cells} | found

    seeds, hows = arguments.seeds, arguments.corrections
    for entry, seed, file, whole in untrained(screen, out, seeds, hows, arguments.features):
        yield from (row for row in rows(entry, seed, file) if whole or row["cells_of"] != "all")
    for entry, seed, file in trained(arguments.sweep, out, seeds, hows, arguments.done):
        yield from rows(entry, seed, file)


def main() -> None:
    """Run what is missing; print, write and draw the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("screen", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--corrections", nargs="+", default=["pca", "harmony"], help="of ERM and VAE"
    )
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
