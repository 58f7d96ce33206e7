"""Plate layouts of simulated and injected screens: which label lies in which well."""

from string import ascii_uppercase

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

SERIES, PLATE, SECTION = "Metadata_Series", "Metadata_Plate", "Metadata_Section"
PLATE_MAP, WELL, LABEL = "Metadata_PlateMap", "Metadata_Well", "Label"

SITE, OBJECT = "Metadata_Site", "Metadata_ObjectNumber"
CELL = "Truth_Cell"

SITES = 4  # fields of view in a well
ROWS = (*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase))
PLATE_COLUMNS = {96: 12, 384: 24, 1536: 48}


def grid_layout(
    labels: int,
    series: int,
    plates: int,
    sections: int,
    wells: int,
    seed: int,
    *,
    control: bool = True,
) -> pd.DataFrame:
    """Sections in plates in series, conditions only partly shared (after GRID in Pernice et al.).

    Every series holds the control and about 60 % of the treatments, every plate about 75 % of its
    series'; each label has `wells` wells in each section of its plates, and lies in at least two
    series. One row per well: series, plate, section and well names, and the label's number
    (0 is the control). Without `control` all labels are treatments, at least two of them in every
    series. Raises UserError if a plate would need more than 1,536 wells.
    """
    stream = numpy_stream(seed, "layout")
    controls, treatments = np.split(np.arange(labels), [int(control)])
    held = max(-(-2 * len(treatments) // series), round(0.6 * len(treatments)))
    held = held if control else max(held, 2)
    rows = []
    for s, of_series in enumerate(_partly_shared(treatments, series, held, stream)):
        kept = max(-(-len(of_series) // plates), round(0.75 * len(of_series)))
        for p, of_plate in enumerate(_partly_shared(of_series, plates, kept, stream)):
            present = np.concatenate([controls, of_plate])
            names = well_names(sections * wells * len(present))
            for a in range(sections):
                for label in stream.permutation(np.repeat(present, wells)):
                    rows.append((f"S{s + 1}", f"P{p + 1}", f"A{a + 1}", names.pop(0), int(label)))
    return pd.DataFrame(rows, columns=[SERIES, PLATE, SECTION, WELL, LABEL])


def lincs_layout(
    labels: int, series: int, maps: int, replicates: int, wells: int, seed: int
) -> pd.DataFrame:
    """Plate maps with exclusive treatments and shared controls (after LINCS-SC in Pernice et al.).

    The first series holds one plate of every map; the maps are dealt among the other series, each
    in `replicates` plates. Each label of a map has `wells` wells on its plates. One row per well:
    series, plate, plate map and well names, and the label's number (0 is the control). Raises
    UserError if there are fewer treatments than maps, fewer maps than partial series, or more than
    1,536 wells on a plate.
    """
    if maps > labels - 1:
        raise UserError(f"{maps} plate maps for {labels - 1} treatments; lower --maps")
    if maps < series - 1:
        raise UserError(f"{maps} plate maps for {series - 1} partial series; raise --maps")
    stream = numpy_stream(seed, "layout")
    treatments = np.array_split(stream.permutation(np.arange(1, labels)), maps)
    plates = [(0, m, 0) for m in range(maps)]
    for s, of_series in enumerate(np.array_split(stream.permutation(maps), series - 1), start=1):
        plates += [(s, int(m), r) for m in sorted(of_series) for r in range(replicates)]
    rows = []
    for s, m, r in plates:
        present = np.repeat(np.concatenate([[0], treatments[m]]), wells)
        plate = f"M{m + 1}R{r + 1}"
        for well, label in zip(well_names(len(present)), stream.permutation(present), strict=True):
            rows.append((f"S{s + 1}", plate, f"M{m + 1}", well, int(label)))
    return pd.DataFrame(rows, columns=[SERIES, PLATE, PLATE_MAP, WELL, LABEL])


def add_places(table: pd.DataFrame) -> None:
    """Insert after the well each cell's field of view and its number in that field.

    The cells of a well are dealt to its `SITES` in turn.
    """
    well = [c for c in (SERIES, PLATE, SECTION, WELL) if c in table]
    within = table.groupby(well, sort=False).cumcount().to_numpy()
    behind = list(table).index(WELL) + 1
    table.insert(behind, SITE, (within % SITES + 1).astype(str))
    table.insert(behind + 1, OBJECT, (within // SITES + 1).astype(str))


def _partly_shared(
    labels: npt.NDArray[np.int64], groups: int, held: int, stream: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """The `held` labels of each group, drawn so that all labels are held about equally often."""
    used = np.zeros(len(labels))
    chosen = []
    for _ in range(groups):
        pick = np.lexsort((stream.random(len(labels)), used))[:held]
        used[pick] += 1
        chosen.append(np.sort(labels[pick]))
    return chosen


def well_names(count: int) -> list[str]:
    """The first wells, row by row, of the smallest plate that has `count`: "A01", "A02" …"""
    for size, columns in PLATE_COLUMNS.items():
        if count <= size:
            return [f"{ROWS[i // columns]}{i % columns + 1:02d}" for i in range(count)]
    raise UserError(f"{count} wells on a plate, the largest has 1536; lower --wells or --labels")
