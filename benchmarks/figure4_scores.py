"""Scores of Figure 4: relations of genes kept, and the well told apart, of one embeddings file."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deconfound.data.tables.complexes import Complexes, pairs_among
from deconfound.data.tables.table import coded
from deconfound.embeddings.aggregate import AggregateOptions, aggregate
from deconfound.embeddings.file import PREDICTED, Embeddings, read_embeddings
from deconfound.files import atomic
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

PERMUTATIONS = 20


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
