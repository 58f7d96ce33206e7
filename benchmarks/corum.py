"""Known relations in a published embedding of genes, and in the same with its genes permuted.

python benchmarks/corum.py --embedding gene_embedding_64d.parquet --complexes FILE FILE
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from deconfound.data.tables.complexes import pairs_among, read_complexes
from deconfound.embeddings.group_means import standardised
from deconfound.files.atomic import write_text
from deconfound.metrics.corum import (
    PAPER_PERCENTILES,
    relation_average_precision,
    relation_curve,
    relation_prevalence,
    relation_recall,
)
from deconfound.runtime.seeds import numpy_stream

CONTROL = "nontargeting"
PERMUTATIONS = 20

Doubles = NDArray[np.float64]
Pairs = NDArray[np.int64]


def read_embedding(path: Path) -> tuple[list[str], Doubles]:
    """Genes, and their standardised embedding (G, D), without the control.

    A Parquet file whose index names the genes and whose features are the columns with numbers for
    names.
    """
    frame = pd.read_parquet(path)
    features = [name for name in frame.columns if str(name).isdecimal()]
    control = np.asarray(frame.index == CONTROL)
    values = standardised(frame[features].to_numpy(dtype=np.float64), control)
    return frame.index[~control].astype(str).tolist(), values[~control]


def scores(values: Doubles, pairs: Pairs) -> dict[str, float]:
    """Every form of the metric, by name."""
    by_code, by_paper = (
        relation_curve(values, pairs),
        relation_curve(values, pairs, PAPER_PERCENTILES),
    )
    return {
        "corum_curve_area": by_code.area().value,
        "corum_curve_area_to_100": by_paper.area().value,
        "precision_at_99": float(by_code.precision[-1]),
        "recall_at_99": float(by_code.recall[-1]),
        "recall_at_80": float(by_code.recall[0]),
        "corum_average_precision": relation_average_precision(values, pairs).value,
        "corum_recall_5_95": relation_recall(values, pairs, 0.05).value,
        "corum_recall_10_90": relation_recall(values, pairs, 0.10).value,
    }


def compared(genes: list[str], values: Doubles, file: Path) -> dict[str, Any]:
    """The scores of one file of complexes, and their mean and sd with genes permuted."""
    complexes = read_complexes(file)
    pairs = pairs_among(complexes, genes)
    permuted = [
        scores(values[numpy_stream(0, "permuted genes", number).permutation(len(values))], pairs)
        for number in range(PERMUTATIONS)
    ]
    shuffled = pd.DataFrame(permuted)
    return {
        "complexes": len(complexes),
        "genes_in_a_pair": len(np.unique(pairs)),
        "pairs": len(pairs),
        "corum_prevalence": relation_prevalence(pairs).value,
        "scores": scores(values, pairs),
        "permuted_mean": shuffled.mean().to_dict(),
        "permuted_sd": shuffled.std().to_dict(),
    }


def main() -> None:
    """Score, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedding", type=Path, required=True)
    parser.add_argument("--complexes", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("corum_funk22.json"))
    asked = parser.parse_args()
    genes, values = read_embedding(asked.embedding)
    found = {file.name: compared(genes, values, file) for file in asked.complexes}
    about = {
        "embedding": asked.embedding.name,
        "genes": len(genes),
        "dimensions": values.shape[1],
        "permutations": PERMUTATIONS,
        "complexes": found,
    }
    write_text(asked.out, json.dumps(about, indent=2) + "\n")
    for name, one in found.items():
        table = Table("score", "value", "genes permuted", title=name)
        for metric, value in one["scores"].items():
            chance = f"{one['permuted_mean'][metric]:.4f} ± {one['permuted_sd'][metric]:.4f}"
            table.add_row(metric, f"{value:.4f}", chance)
        Console().print(table)


if __name__ == "__main__":
    main()
