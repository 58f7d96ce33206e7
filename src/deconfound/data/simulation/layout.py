"""Layouts of simulated and injected screens: the label of each well, or the guides of a pool.

The pool is after the screen of Funk et al. 2022 as used in Makino et al. (SCBD), section 4.2: every
gene in every well, four guides a gene, non-targeting controls, 34 wells in 6 plates.
"""

from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Floats
from deconfound.data.simulation.phenotype import TRAITS, draw_phenotypes
from deconfound.data.simulation.sharing import partly_shared, sparsely_shared
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

SERIES, PLATE, SECTION = "Metadata_Series", "Metadata_Plate", "Metadata_Section"
PLATE_MAP, WELL, LABEL = "Metadata_PlateMap", "Metadata_Well", "Label"

SITE, OBJECT = "Metadata_Site", "Metadata_ObjectNumber"
CELL = "Truth_Cell"
LEVELS = (SERIES, PLATE, SECTION)
PLACES = (*LEVELS, PLATE_MAP, WELL, SITE, OBJECT)

SITES = 4  # fields of view in a well
ROWS = (*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase))
PLATE_COLUMNS = {96: 12, 384: 24, 1536: 48}

GENE, GUIDE, COMPLEX = "Metadata_Gene", "Metadata_sgRNA", "Truth_Complex"
GUIDE_STRENGTH = "Truth_GuideStrength"
SPLIT = "Metadata_Split"
TRAIN, VAL = 0.83, 0.02  # of the cells; the test is the rest
NONTARGETING = "nontargeting"

IN_COMPLEXES = 0.75  # share of the genes that lie in one
CONTROL_GUIDES = 0.05  # non-targeting guides, as a share of the others
AMPLITUDE = (0.2, 0.8)  # of a complex's or a lone gene's phenotype, fractions of the strength
INERT = 0.5  # share of the lone genes that have nothing but what is their own
OWN = 0.15  # standard deviation of what is a gene's own, fraction of the strength
EFFICACY = (0.7, 1.0)  # of a guide: the fraction of its gene's phenotype that its cells show
ABUNDANCE = 0.4  # standard deviation of the logarithm of a guide's number of cells
GUIDE_LENGTH = 20  # bases


def grid_layout(
    labels: int,
    series: int,
    plates: int,
    sections: int,
    wells: int,
    seed: int,
    *,
    control: bool = True,
    overlap: float | None = None,
) -> pd.DataFrame:
    """Sections in plates in series, conditions only partly shared (after GRID in Pernice et al.).

    Every series holds the control and about 60 % of the treatments, every plate about 75 % of its
    series'; each label has `wells` wells in each section of its plates, and lies in at least two
    series. One row per well: series, plate, section and well names, and the label's number
    (0 is the control). Without `control` all labels are treatments, at least two of them in every
    series. With `overlap` each treatment lies in two series alone, as in `sparsely_shared`. Raises
    UserError if a plate would need more than 1,536 wells, and as `sparsely_shared` does.
    """
    stream = numpy_stream(seed, "layout")
    controls, treatments = np.split(np.arange(labels), [int(control)])
    held = max(-(-2 * len(treatments) // series), round(0.6 * len(treatments)))
    held = held if control else max(held, 2)
    rows = []
    if overlap is None:
        shares = partly_shared(treatments, series, held, stream)
    else:
        shares = sparsely_shared(treatments, series, len(controls), overlap, stream)
    for s, of_series in enumerate(shares):
        kept = max(-(-len(of_series) // plates), round(0.75 * len(of_series)))
        for p, of_plate in enumerate(partly_shared(of_series, plates, kept, stream)):
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
    well = [c for c in (*LEVELS, WELL) if c in table]
    within = table.groupby(well, sort=False).cumcount().to_numpy()
    behind = list(table).index(WELL) + 1
    table.insert(behind, SITE, (within % SITES + 1).astype(str))
    table.insert(behind + 1, OBJECT, (within // SITES + 1).astype(str))


def well_names(count: int) -> list[str]:
    """The first wells, row by row, of the smallest plate that has `count`: "A01", "A02" …"""
    for size, columns in PLATE_COLUMNS.items():
        if count <= size:
            return [f"{ROWS[i // columns]}{i % columns + 1:02d}" for i in range(count)]
    raise UserError(f"{count} wells on a plate, the largest has 1536; lower --wells or --labels")


@dataclass(frozen=True)
class Library:
    """The guides of a screen and what they do; gene 0 is the non-targeting control."""

    genes: tuple[str, ...]
    complexes: dict[str, tuple[str, ...]]
    """The genes of each complex; no gene lies in two."""
    shift: Floats
    """(genes, traits) logits; of the control 0."""
    gene_of: npt.NDArray[np.int64]
    """(guides,) the gene of each guide."""
    sequences: tuple[str, ...]
    efficacy: Floats
    """(guides,) fraction of its gene's shift that each guide brings about."""


def draw_library(genes: int, complexes: int, guides: int, strength: float, seed: int) -> Library:
    """A library of `genes` genes in `complexes` complexes of unequal size, `guides` each.

    The genes of a complex share its phenotype, each with a little of its own; a lone gene has a
    phenotype or next to none. Non-targeting guides are a twentieth of all. Raises UserError if the
    complexes would have fewer than two genes each.
    """
    stream = numpy_stream(seed, "library")
    names = (NONTARGETING, *numbered("GENE", genes))
    grouped = round(IN_COMPLEXES * genes) if complexes else 0
    if grouped < 2 * complexes:
        raise UserError(
            f"{complexes} complexes of at least 2 of {grouped} genes; lower --complexes or raise "
            "--genes"
        )
    owner = np.full(genes, -1)
    owner[stream.permutation(genes)[:grouped]] = _sizes_dealt(grouped, complexes, stream)
    lone = int((owner < 0).sum())
    directions = draw_phenotypes(1 + complexes + lone, 1.0, seed)[1:]
    amplitude = stream.uniform(*AMPLITUDE, len(directions))
    amplitude[complexes:] *= stream.random(lone) >= INERT
    source = owner.copy()
    source[owner < 0] = complexes + np.arange(lone)
    shift = (amplitude[:, None] * directions)[source]
    shift += OWN * stream.standard_normal((genes, len(TRAITS)))
    shift = strength * np.vstack([np.zeros(len(TRAITS)), shift])
    controls = max(guides, round(CONTROL_GUIDES * genes * guides))
    gene_of = np.repeat(np.arange(genes + 1), [controls, *[guides] * genes])
    return Library(
        genes=names,
        complexes={
            name: tuple(names[1 + g] for g in np.flatnonzero(owner == c))
            for c, name in enumerate(numbered("complex-", complexes))
        },
        shift=shift.astype(np.float32),
        gene_of=gene_of,
        sequences=_sequences(len(gene_of), stream),
        efficacy=stream.uniform(*EFFICACY, len(gene_of)).astype(np.float32),
    )


def pooled_cells(
    library: Library, cells: int, wells: int, plates: int, seed: int
) -> tuple[pd.DataFrame, Floats]:
    """The cells of a pooled screen, well after well, and the shift (N, traits) of each in logits.

    Every guide has a cell, most have many, some several times as many as others. The cells of each
    gene are dealt to all wells, the wells to the plates. Columns: plate, well, gene, guide, split,
    `Truth_Complex` (missing where the gene lies in none) and `Truth_GuideStrength`. Raises
    UserError for fewer cells than guides, and for fewer wells than plates.
    """
    guides = len(library.gene_of)
    if cells < guides:
        raise UserError(f"{cells} cells for {guides} guides; raise --cells or lower --genes")
    if wells < plates:
        raise UserError(f"{wells} wells in {plates} plates; raise --wells or lower --plates")
    stream = numpy_stream(seed, "pool")
    abundance = np.exp(ABUNDANCE * stream.standard_normal(guides))
    extra = stream.multinomial(cells - guides, abundance / abundance.sum())
    guide = np.repeat(np.arange(guides), 1 + extra)
    guide = guide[np.lexsort((stream.random(cells), library.gene_of[guide]))]
    well = stream.permutation(wells)[np.arange(cells) % wells]
    order = np.lexsort((stream.random(cells), well))
    guide, well = guide[order], well[order]
    sizes = [len(some) for some in np.array_split(np.arange(wells), plates)]
    plate = np.repeat(np.array(numbered("P", plates), dtype=object), sizes)
    name = np.array([one for size in sizes for one in well_names(size)], dtype=object)
    gene = library.gene_of[guide]
    member_of = {g: name for name, members in library.complexes.items() for g in members}
    table = pd.DataFrame(
        {
            PLATE: plate[well],
            WELL: name[well],
            GENE: np.array(library.genes, dtype=object)[gene],
            GUIDE: np.array(library.sequences, dtype=object)[guide],
            SPLIT: random_split(cells, numpy_stream(seed, "pool", "split")),
            COMPLEX: np.array([member_of.get(name) for name in library.genes], dtype=object)[gene],
            GUIDE_STRENGTH: library.efficacy[guide],
        }
    )
    return table, library.efficacy[guide, None] * library.shift[gene]


def random_split(cells: int, stream: np.random.Generator) -> npt.NDArray[np.object_]:
    """(cells,) train, val or test, at random: the split of a pooled screen in Makino et al."""
    ends = np.round(np.array([TRAIN, TRAIN + VAL]) * cells)
    names = np.array(["train", "val", "test"], dtype=object)
    return names[np.searchsorted(ends, stream.permutation(cells), side="right")]


def complex_lines(complexes: dict[str, tuple[str, ...]]) -> str:
    """A complex file: one line each, `name<TAB>GENE GENE …`."""
    return "".join(f"{name}\t{' '.join(genes)}\n" for name, genes in complexes.items())


def _sizes_dealt(genes: int, complexes: int, stream: np.random.Generator) -> npt.NDArray[np.int64]:
    """The complex of each of `genes` genes: two in every complex, the others unevenly."""
    if not complexes:
        return np.empty(0, dtype=np.int64)
    weight = stream.exponential(size=complexes)
    sizes = 2 + stream.multinomial(genes - 2 * complexes, weight / weight.sum())
    return np.repeat(np.arange(complexes), sizes)


def _sequences(count: int, stream: np.random.Generator) -> tuple[str, ...]:
    """`count` different guides of random bases."""
    bases = np.array(list("ACGT"))
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(bases[stream.integers(0, 4, GUIDE_LENGTH)])] = None
    return tuple(found)


def numbered(stem: str, count: int) -> list[str]:
    """`stem` with the numbers from 1 to `count`, all of one width."""
    width = len(str(count))
    return [f"{stem}{number:0{width}d}" for number in range(1, count + 1)]
