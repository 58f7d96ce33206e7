"""Rows of Figure 4 that nothing is trained for: the planted truth, untrained numbers, features."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from intensities import write_intensities, write_values

from deconfound.config import DataOptions
from deconfound.data.folds.controls import control_rows
from deconfound.data.folds.problem import pose
from deconfound.data.ingest.cellprofiler import cellprofiler
from deconfound.data.screens.screen import Screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.simulate import simulated_cells
from deconfound.embeddings.correct import correct
from deconfound.methods.contract.post_hoc import PostHocOptions
from deconfound.methods.post_hoc.harmony import HarmonyOptions
from deconfound.methods.post_hoc.pca import PcaOptions
from deconfound.methods.post_hoc.standardise import StandardiseOptions
from deconfound.methods.post_hoc.tvn import TvnOptions
from deconfound.runtime.seeds import numpy_stream

OTHERS = 2_400
"""Cells outside the test part whose CellProfiler features are measured, controls first."""
COMPONENTS = 64
"""Of principal components and of Harmony: the dimensions of every learned block."""
BY_WELL: dict[str, PostHocOptions] = {
    "standardise": StandardiseOptions(),
    "tvn": TvnOptions(),
}
"""Corrections by the controls of each well."""


def untrained(
    screen: Screen, out: Path, seeds: list[int], hows: list[str], features: bool
) -> Iterator[tuple[str, int, Path, bool]]:
    """The entry, the seed, the embeddings file, and whether it holds all cells, of each row.

    `features` of CellProfiler are corrected by Harmony as well where it is one of `hows`.
    """
    yield "true traits", 0, true_traits(screen, out), True
    numbers = out / "intensities.h5ad"
    if not numbers.exists():
        write_intensities(screen, numbers)
    yield "intensities", 0, numbers, True
    for how, options in BY_WELL.items():
        yield f"intensities, {how}", 0, corrected(how, numbers, options), True
    if not features:
        return
    source = measured_features(screen, out)
    components = corrected("pca", source, PcaOptions(components=COMPONENTS))
    yield "cellprofiler, pca", 0, components, False
    for how, options in BY_WELL.items():
        by_well = corrected(how, source, options)
        reduced = corrected("pca", by_well, PcaOptions(components=COMPONENTS))
        yield f"cellprofiler, {how}, pca", 0, reduced, False
    for seed in seeds if "harmony" in hows else ():
        harmony = HarmonyOptions(components=COMPONENTS, seed=seed)
        file = corrected("harmony", components, harmony, f"-{seed}")
        yield "cellprofiler, pca, harmony", seed, file, False


def corrected(how: str, source: Path, options: PostHocOptions, ending: str = "") -> Path:
    """The embeddings file of a post hoc correction of `source`, made if it is not there."""
    file = source.with_name(f"{source.stem}+{how}{ending}.h5ad")
    if not file.exists():
        correct(how, source, file, options)
    return file


def measured_features(screen: Screen, out: Path) -> Path:
    """Embeddings file of CellProfiler features of the test cells and of `OTHERS` others.

    All controls are among them, as a well holds too few for its statistics otherwise.
    """
    some, features, file = out / "some", out / "features", out / "features.h5ad"
    part = pose(screen, DataOptions(fold="given")).fold.part
    control = control_rows(screen.table, screen.roles.label, None, str(screen.path))
    others = numpy_stream(0, "figure 4").permutation(np.flatnonzero(part != "test"))
    others = others[np.argsort(~control[others], kind="stable")][:OTHERS]
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
        names = simulated_cells(screen).config.trait_names()
        values = screen.table[[f"Truth_{name}" for name in names]].to_numpy(dtype=np.float32)
        write_values(screen, file, "traits", values, "given")
    return file
