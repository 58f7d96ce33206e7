"""Means of cells by guide and of guides by gene, summed chunk by chunk, and standardised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csc_array

from deconfound.arrays import ROUNDING, Codes, Doubles, Mask
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import joined
from deconfound.errors import UserError


class GroupMeans:
    """Means of rows by group; rows may be added in chunks of any size and in any order."""

    def __init__(self, groups: int, dimensions: int) -> None:
        self._total = np.zeros((groups, dimensions))
        self.rows: Codes = np.zeros(groups, dtype=np.int64)
        """(G,) rows of each group."""

    def add(self, values: npt.NDArray[np.floating[Any]], group: Codes) -> None:
        """Add rows (B, D) of groups (B,); rows of group −1 are left out."""
        known = group >= 0
        values, group = values[known], group[known]
        shape = len(self.rows), len(group)
        member = csc_array((np.ones(len(group)), group, np.arange(len(group) + 1)), shape=shape)
        self._total += member @ values.astype(np.float64)
        self.rows += np.bincount(group, minlength=len(self.rows))

    def means(self) -> Doubles:
        """(G, D) float64; NaN for a group without rows."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._total / self.rows[:, None])


@dataclass(frozen=True)
class Groups:
    """Guides and genes of cells."""

    guide: Codes
    """(N,) guide of each cell; −1 for a cell with neither guide nor gene."""
    gene: Codes
    """(guides,) gene of each guide."""
    guides: pd.DataFrame
    """One row for each guide: its gene, its name and the columns kept apart."""
    genes: pd.DataFrame
    """One row for each gene: its name and the columns kept apart."""


def group_cells(
    table: pd.DataFrame, gene: str, guide: str | None, within: tuple[str, ...], where: str
) -> Groups:
    """The guides and genes of the rows of `table`, kept apart by the columns `within`.

    Without a column of guides a gene is its own guide. Raises UserError for a guide without a
    gene, a gene without a guide, a guide of two genes, a missing value of `within`, or if no row
    has a gene.
    """
    genes = keys(table[gene])
    guides = genes if guide is None else keys(table[guide])
    for found, name, lacking in ((guides, "gene", genes), (genes, "guide", guides)):
        half = np.flatnonzero((found.notna() & lacking.isna()).to_numpy())
        if len(half):
            raise UserError(
                f"{where}: row {half[0]}: {'guide' if name == 'gene' else 'gene'} "
                f"{found.iloc[half[0]]!r} has no {name} ({len(half)} such rows); complete "
                f"{(gene if name == 'gene' else guide)!r}, or empty both to leave such rows out"
            )
    known = genes.notna().to_numpy()
    if not known.any():
        raise UserError(f"{where}: no row has a value of {gene!r}; name the genes with --gene")
    cells = pd.DataFrame({"gene": genes, "guide": guides})
    for column in within:
        cells[column] = keys(table[column])
        empty = np.flatnonzero((cells[column].isna() & known).to_numpy())
        if len(empty):
            raise UserError(
                f"{where}: row {empty[0]} has no {column!r}, which means are taken within"
            )
    cells = cells[known]
    pairs = cells[["gene", "guide"]].drop_duplicates()
    twice = pairs[pairs.duplicated("guide", keep=False)].sort_values(["guide", "gene"])
    if len(twice):
        first, second = twice["gene"].iloc[:2]
        raise UserError(
            f"{where}: guide {twice['guide'].iloc[0]!r} is of gene {first!r} and of {second!r}; "
            "expected one gene a guide"
        )
    of_cells = np.full(len(table), -1, dtype=np.int64)
    of_cells[known], guide_rows = _numbered(cells)
    of_guides, gene_rows = _numbered(guide_rows.drop(columns="guide"))
    return Groups(of_cells, of_guides, guide_rows, gene_rows)


def outer_levels(
    table: pd.DataFrame, within: Sequence[str], levels: Sequence[str]
) -> tuple[str, ...]:
    """The levels around those of `within` in which their values repeat, outermost first.

    Plate P1 of series S1 and plate P1 of series S2 are two plates: within the plate, the series is
    kept apart. A column of `within` that is no level has none.
    """
    inner = max((place for place, level in enumerate(levels) if level in within), default=0)
    around = [one for one in levels[:inner] if one not in within and one in table.columns]
    if not around:
        return ()
    group = joined(table, within)
    return tuple(one for one in around if (keys(table[one]).groupby(group).nunique() > 1).any())


def refuse_half_controls(groups: Groups, control: Mask, where: str) -> None:
    """Raise UserError naming the first gene of which some rows are controls and others are not.

    `control` (N,) says which of the rows that `groups` was made of are controls.
    """
    gene = np.where(groups.guide >= 0, groups.gene[groups.guide], -1)
    known = gene >= 0
    rows = np.bincount(gene[known], minlength=len(groups.genes))
    controls = np.bincount(gene[known & control], minlength=len(groups.genes))
    half = np.flatnonzero((controls > 0) & (controls < rows))
    if len(half):
        one = int(half[0])
        first = int(np.flatnonzero((gene == one) & control)[0])
        raise UserError(
            f"{where}: gene {groups.genes['gene'].iloc[one]!r} is a control in {controls[one]:,} "
            f"of its {rows[one]:,} rows (row {first} first); expected all or none, correct them "
            "or name the controls with --control COLUMN=VALUE"
        )


def _numbered(keys: pd.DataFrame) -> tuple[Codes, pd.DataFrame]:
    """The number of each row's combination of values, and the combinations in that order."""
    columns = list(keys.columns)
    codes = np.asarray(keys.groupby(columns, sort=True).ngroup(), dtype=np.int64)
    return codes, keys.drop_duplicates().sort_values(columns).reset_index(drop=True)


def standardised(values: Doubles, control: Mask) -> Doubles:
    """Subtract the mean of the controls from rows (G, D), then standardise every dimension.

    Makino et al., SCBD, A.3, and the authors' code: mean and sd (ddof 1) are over all rows, with
    the controls, so that the first subtraction changes only the last digits. A dimension that does
    not vary by more than rounding, a millionth of its mean, is 0.
    """
    moved = values - values[control].mean(axis=0)
    sd = moved.std(axis=0, ddof=1)
    varies = sd > ROUNDING * np.abs(values.mean(axis=0))
    return np.asarray((moved - moved.mean(axis=0)) / np.where(varies, sd, np.inf))
