"""Files of complexes: sets of genes whose products act together, in the forms that they come in."""

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deconfound.data.tables.compressed import readable, refuse_unfit_packing
from deconfound.data.tables.records import Record, tabbed, with_commas
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
_WEIGHTED = re.compile(r"([^,]*[A-Za-z][^,]*?)\s*,\s*\d*\.?\d+([eE][+-]?\d+)?")
"""A member and its weight: GENE,1.0."""
_NO_NAME = re.compile(r'.*[,;"].*|\d*\.\d+')
"""What is no name of a gene."""


class Matched(NamedTuple):
    """Which members of a file of complexes are genes of a table."""

    row: dict[str, int]
    """Position among the genes of every member that is one."""
    other_case: tuple[str, ...]
    """Members found only where the case of letters is ignored, in the file's order."""
    missing: tuple[str, ...]
    """Members that match no gene, in the file's order."""


def read_complexes(path: Path) -> Complexes:
    """The complexes in a file, packed or not; the file's form is found from its content.

    Cells may stand in quotes. Weights of members (GENE,1.0) are left out. From CORUM's download
    only complexes of the organism Human are taken; in a list of pairs each pair is a complex.
    Raises UserError if the file is missing, cannot be read or has none of the forms; a line of
    another form is named, with the member that cannot be told apart.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of complexes; give {FORMS}")
    where = str(path)
    with readable(path):
        refuse_unfit_packing(path)
        records = tabbed(path)
    header = records[0].cells if records else []
    if subunits := [column for column in header if column in SUBUNITS]:
        found = _download(records, subunits[0], where)
    elif len(header) > 1:
        found = _named(records, where)
    else:
        with readable(path):
            records = with_commas(path)
        if not records or len(records[0].cells) != 2:
            raise UserError(f"{where}: not a file of complexes; expected {FORMS}")
        found = _pairs(records, where)
    if not any(len(genes) > 1 for genes in found):
        raise UserError(f"{where}: holds no complex of two genes or more; expected {FORMS}")
    return found


def matched(complexes: Iterable[frozenset[str]], genes: Sequence[str]) -> Matched:
    """Members of `complexes` among `genes`: of the same spelling, or else of the only gene that
    differs by the case of letters alone, as PSMD1 and Psmd1."""
    row = {gene: number for number, gene in enumerate(genes)}
    folded: dict[str, set[int]] = {}
    for gene, number in row.items():
        folded.setdefault(gene.casefold(), set()).add(number)
    members = dict.fromkeys(gene for genes_of in complexes for gene in sorted(genes_of))
    found = {}
    other_case, missing = [], []
    for member in members:
        alike = folded.get(member.casefold(), set())
        if member in row:
            found[member] = row[member]
        elif len(alike) == 1:
            found[member] = next(iter(alike))
            other_case.append(member)
        else:
            missing.append(member)
    return Matched(found, tuple(other_case), tuple(missing))


def pairs_among(complexes: Iterable[frozenset[str]], genes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(P, 2) int64 positions i < j in `genes` of the pairs that share a complex, each pair once.

    Members are found as `matched` does.
    """
    complexes = list(complexes)
    row = matched(complexes, genes).row
    found: set[tuple[int, int]] = set()
    for members in complexes:
        found.update(combinations(sorted({row[gene] for gene in members if gene in row}), 2))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def _download(records: Sequence[Record], genes_in: str, where: str) -> Complexes:
    header = records[0].cells
    if SUBUNITS[genes_in] not in header:
        raise UserError(
            f"{where}: has the column {genes_in!r} and no column {SUBUNITS[genes_in]!r}; expected "
            "CORUM's download as it is, of which the human complexes are read"
        )
    place, organism = header.index(genes_in), header.index(SUBUNITS[genes_in])
    human = []
    for line, cells in records[1:]:
        if len(cells) <= max(place, organism):
            raise UserError(f"{where}: line {line} ends before {genes_in!r}; download it again")
        if any(cell.strip() for cell in cells[len(header) :]):
            raise UserError(
                f"{where}: line {line} has {len(cells)} cells, its header {len(header)}; a cell "
                "that holds a tab must stand in quotes, download it again"
            )
        if cells[organism].strip() == "Human":
            human.append(Record(line, [cells[place]]))
    between = ";" if any(";" in subunits for _, (subunits,) in human) else ","
    found = []
    for line, (subunits,) in human:
        genes = [gene.strip() for gene in subunits.split(between)]
        found.append(frozenset(_checked(gene, line, where) for gene in genes) - NO_GENE)
    return found


def _named(records: Sequence[Record], where: str) -> Complexes:
    width = min(len(records[0].cells), 3)
    lists = all(len([cell for cell in cells[2:] if cell.strip()]) <= 1 for _, cells in records)
    found = []
    for line, cells in records:
        if min(len(cells), 3) != width:
            raise UserError(
                f"{where}: line {line} has {len(cells)} columns; expected "
                f"{'2' if width == 2 else '3 or more'}, as the first has; give {FORMS}"
            )
        members = cells[width - 1 :]
        if lists:
            members = [member for cell in members for member in _listed(cell)]
        genes = (_unweighted(member.strip()) for member in members)
        found.append(frozenset(_checked(gene, line, where) for gene in genes) - {""})
    return found


def _listed(cell: str) -> list[str]:
    """The members in one cell: GENE GENE, "GENE, GENE", GENE;GENE or GENE,1.0 GENE,1.0."""
    words = [word.strip(",") for word in re.split(r"[\s;]+", cell)]
    if any(_WEIGHTED.fullmatch(word) for word in words):
        return words
    return [member for word in words for member in word.split(",")]


def _unweighted(member: str) -> str:
    weighted = _WEIGHTED.fullmatch(member)
    return weighted[1] if weighted else member


def _checked(gene: str, line: int, where: str) -> str:
    """`gene`; raises UserError if it holds what no name of a gene does."""
    if _NO_NAME.fullmatch(gene):
        raise UserError(
            f"{where}: line {line}: {gene!r} is no name of one gene; expected members without "
            f"commas, semicolons and quotes, correct the line or give {FORMS}"
        )
    return gene


def _pairs(records: Sequence[Record], where: str) -> Complexes:
    found = []
    for number, (line, cells) in enumerate(records):
        if number == 0 and cells == ENTITIES:
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise UserError(f"{where}: line {line} holds no pair; expected `entity1,entity2`")
        found.append(frozenset(_checked(cell.strip(), line, where) for cell in cells))
    return found
