"""Files of complexes: sets of genes whose products act together, in the forms that they come in."""

import csv
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deconfound.data.tables.compressed import open_text, readable, refuse_unfit_packing
from deconfound.errors import UserError

Complexes = list[frozenset[str]]
SUBUNITS = {"subunits_gene_name": "organism", "subunits(Gene name)": "Organism"}
"""Columns of genes, ";" between them, and of organisms in newer and older downloads of CORUM."""
NO_GENE = frozenset({"", "-", "N/A", "None"})
"""What CORUM writes where a subunit has no gene."""
FORMS = (
    "a line `name<TAB>GENE GENE …` or `name<TAB>about<TAB>GENE<TAB>GENE …` (GMT) for each complex, "
    f"CORUM's download with its column {' or '.join(map(repr, SUBUNITS))}, or pairs "
    "`entity1,entity2`"
)
ENTITIES = ["entity1", "entity2"]


def read_complexes(path: Path) -> Complexes:
    """The complexes in a file, packed or not; the file's form is found from its content.

    From CORUM's download only complexes of the organism Human are taken; in a list of pairs each
    pair is a complex. Raises UserError if the file is missing, cannot be read or has none of the
    forms; a line of another form is named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of complexes; give {FORMS}")
    with readable(path):
        refuse_unfit_packing(path)
        with open_text(path) as stream:
            lines = [line.rstrip("\r\n") for line in stream]
    where = str(path)
    header = next((line for line in lines if line.strip()), "")
    if subunits := [column for column in header.split("\t") if column in SUBUNITS]:
        found = _download(lines, subunits[0], where)
    elif "\t" in header:
        found = _named(lines, where)
    elif header.count(",") == 1:
        found = _pairs(lines, where)
    else:
        raise UserError(f"{where}: not a file of complexes; expected {FORMS}")
    if not any(len(genes) > 1 for genes in found):
        raise UserError(f"{where}: holds no complex of two genes or more; expected {FORMS}")
    return found


def pairs_among(complexes: Iterable[frozenset[str]], genes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(P, 2) int64 positions i < j in `genes` of the pairs that share a complex, each pair once."""
    row = {gene: number for number, gene in enumerate(genes)}
    found: set[tuple[int, int]] = set()
    for members in complexes:
        found.update(combinations(sorted(row[gene] for gene in members if gene in row), 2))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def _download(lines: Sequence[str], genes_in: str, where: str) -> Complexes:
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    organism = SUBUNITS[genes_in]
    if organism not in (reader.fieldnames or ()):
        raise UserError(
            f"{where}: has the column {genes_in!r} and no column {organism!r}; expected CORUM's "
            "download as it is, of which the human complexes are read"
        )
    found = []
    for row in reader:
        if row[organism] == "Human":
            subunits = row[genes_in]
            if subunits is None:
                raise UserError(
                    f"{where}: line {reader.line_num} ends before {genes_in!r}; download it again"
                )
            found.append(frozenset(gene.strip() for gene in subunits.split(";")) - NO_GENE)
    return found


def _named(lines: Sequence[str], where: str) -> Complexes:
    found = []
    width = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        width = width or min(len(cells), 3)
        if min(len(cells), 3) != width:
            raise UserError(
                f"{where}: line {number} has {len(cells)} columns; expected "
                f"{'2' if width == 2 else '3 or more'}, as the first has; give {FORMS}"
            )
        genes = cells[1].split() if width == 2 else [gene.strip() for gene in cells[2:]]
        found.append(frozenset(genes) - {""})
    return found


def _pairs(lines: Sequence[str], where: str) -> Complexes:
    found = []
    for number, cells in enumerate(csv.reader(lines), start=1):
        if not cells or (number == 1 and cells == ENTITIES):
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise UserError(f"{where}: line {number} holds no pair; expected `entity1,entity2`")
        found.append(frozenset(cell.strip() for cell in cells))
    return found
