"""relations: scores of how near genes of one complex lie to each other in an embedding."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.data.tables.complexes import (
    Complexes,
    Matched,
    matched,
    pairs_among,
    read_complexes,
)
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import listed
from deconfound.embeddings.aggregate import GENE, Aggregate, read_aggregate
from deconfound.errors import InputWarning, UserError
from deconfound.evaluation.scores import NamedScore, score_row, write_scores
from deconfound.metrics import corum


def relations(aggregates: Iterable[Path], out: Path | None, *, complexes: Path) -> pd.DataFrame:
    """Score files of genes against known complexes, one row for each score.

    Returns, and writes to the Parquet file `out`, the columns of a scores file; the note says how
    many genes and pairs were compared, and which members of the complexes match no gene, or only
    one spelt in other case; an InputWarning says the latter too. Controls are left out.

    Raises UserError if `out` exists or is being written, for a file that `aggregate` did not write
    with rows of genes, for a file of complexes that cannot be read, and if no two genes share a
    complex.
    """
    paths = [Path(path) for path in aggregates]
    if not paths:
        raise UserError("nothing to score; give one or more files of `deconfound aggregate`")
    return write_scores(out, lambda: _scored(paths, Path(complexes)))


def _scored(paths: list[Path], source: Path) -> list[dict[str, Any]]:
    known = read_complexes(source)
    rows: list[dict[str, Any]] = []
    for path in paths:
        made = read_aggregate(path)
        about = made.about | {
            "config": made.about["config"] | {"aggregated": made.about["aggregated"]}
        }
        scores = relation_scores(made, known, path, source)
        rows += [score_row(about, str(about["fold"]), row) for row in scores]
    return rows


def relation_scores(
    made: Aggregate, known: Complexes, path: Path, source: Path
) -> list[NamedScore]:
    """The scores of one file of genes.

    Raises UserError if a gene has two rows, and if no two genes share a complex.
    """
    genes = keys(made.table[GENE])[~made.control].tolist()
    if len(set(genes)) < len(genes):
        raise UserError(
            f"{path}: a gene has several rows; aggregate to --level gene without --within"
        )
    members, pairs = matched(known, genes), pairs_among(known, genes)
    told = "; ".join(_unmatched(members))
    if not len(pairs):
        raise UserError(
            f"{source}: no two of the {len(genes)} genes of {path}, such as {genes[0]}, share a "
            f"complex; {told or 'each is alone in its own'}; expected names of genes as in the "
            "column of genes"
        )
    if told:
        warnings.warn(f"{source}: among the genes of {path} {told}", InputWarning, stacklevel=2)
    values = made.values[~made.control]
    curve = corum.relation_curve(values, pairs)
    scores = {
        "corum_curve_area": curve.area(),
        "corum_average_precision": corum.relation_average_precision(values, pairs),
        "corum_prevalence": corum.relation_prevalence(pairs),
        "corum_recall_5_95": corum.relation_recall(values, pairs, 0.05),
        "corum_recall_10_90": corum.relation_recall(values, pairs, 0.10),
    }
    compared = f"{source.name}: {curve.genes} of {len(genes)} genes in {len(pairs)} pairs"
    rows = []
    for metric, score in scores.items():
        note = "; ".join(filter(None, (compared, told, score.note)))
        rows.append(NamedScore(made.representation, metric, made.part, score._replace(note=note)))
    return rows


def _unmatched(members: Matched) -> list[str]:
    """What is to be said of the members that match no gene, or one of other case."""
    told = []
    if members.missing:
        every = len(members.row) + len(members.missing)
        told.append(
            f"{len(members.missing)} of {every} members of complexes match no gene "
            f"({listed(members.missing, 5)})"
        )
    if members.other_case:
        told.append(
            f"{len(members.other_case)} match a gene spelt in other case and are taken for it "
            f"({listed(members.other_case, 5)})"
        )
    return told
