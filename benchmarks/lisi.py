"""LISI of two columns: one neighbour graph and ours, against harmonypy in the same process.

python benchmarks/lisi.py [--rows 20000] [--no-harmonypy] [--umap]
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pandas as pd
from joblib import cpu_count
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from deconfound.files.atomic import write_text
from deconfound.metrics.mixing import lisi
from deconfound.metrics.neighbors import NeighborGraph, neighbor_graph
from deconfound.runtime.seeds import numpy_stream

Result = TypeVar("Result")

FEATURES, LABELS, ENVIRONMENTS = 64, 20, 10


def embedding_with_batches(rows: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Label clusters (20), each shifted by its environment (10), with unequal spread per feature.

    Returns the embedding (rows, 64) and the codes (rows, 2) of label and environment.
    """
    stream = numpy_stream(0, "lisi benchmark")
    label = stream.integers(0, LABELS, rows)
    environment = stream.integers(0, ENVIRONMENTS, rows)
    spread = np.linspace(2.0, 0.2, FEATURES)
    embedding = spread * (
        0.7 * stream.normal(size=(LABELS, FEATURES))[label]
        + 0.5 * stream.normal(size=(ENVIRONMENTS, FEATURES))[environment]
        + stream.normal(size=(rows, FEATURES))
    )
    return embedding.astype(np.float32), np.stack([label, environment], axis=1)


@dataclass(frozen=True)
class Cost:
    """Wall time, and processor time of all threads: the one that other work does not stretch."""

    wall_s: float
    processor_s: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall_s + other.wall_s, self.processor_s + other.processor_s)


def cost(work: Callable[[], Result]) -> tuple[Cost, Result]:
    """What one call costs, and what it returns."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return Cost(time.perf_counter() - wall, time.process_time() - processor), result


def time_ours(
    embedding: NDArray[np.float32], codes: NDArray[np.int64], repeats: int
) -> tuple[Cost, Cost, NDArray[np.float64], NeighborGraph]:
    """Cost of graph and LISI in the repeat of median wall time, the libraries being loaded."""
    lisi(neighbor_graph(embedding[:500]), codes[:500])
    costs = []
    for _ in range(repeats):
        graph_cost, graph = cost(partial(neighbor_graph, embedding))
        lisi_cost, values = cost(partial(lisi, graph, codes))
        costs.append((graph_cost, lisi_cost))
    costs.sort(key=lambda pair: (pair[0] + pair[1]).wall_s)
    graph_cost, lisi_cost = costs[len(costs) // 2]
    return graph_cost, lisi_cost, values, graph


def time_harmonypy(
    embedding: NDArray[np.float32], codes: NDArray[np.int64]
) -> tuple[Cost, NDArray[np.float64]]:
    """Cost of one call on both columns, and its LISI (rows, 2)."""
    import harmonypy

    table = pd.DataFrame(codes, columns=["label", "environment"])
    return cost(partial(harmonypy.compute_lisi, embedding, table, list(table), 30))


def time_umap(embedding: NDArray[np.float32], graph: NeighborGraph) -> tuple[Cost, Cost]:
    """A UMAP with its own neighbour search, and one handed ours (the row itself comes first).

    Both after a small one that compiles umap-learn's code, its approximate search included.
    """
    from umap import UMAP

    rows = len(embedding)
    indices = np.column_stack([np.arange(rows), graph.indices[:, :14]])
    distances = np.column_stack([np.zeros(rows), graph.distances[:, :14]])
    known = (indices.astype(np.int32), distances.astype(np.float32))
    warnings.filterwarnings("ignore", module="umap")
    UMAP(n_epochs=5, random_state=0, force_approximation_algorithm=True).fit(embedding[:2000])
    alone, _ = cost(partial(UMAP(n_neighbors=15, random_state=0).fit, embedding))
    handed, _ = cost(
        partial(UMAP(n_neighbors=15, random_state=0, precomputed_knn=known).fit, embedding)
    )
    return alone, handed


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3, help="of ours; harmonypy runs once")
    parser.add_argument("--harmonypy", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--umap", action="store_true", help="also time UMAP with our graph")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/lisi.json")
    options = parser.parse_args()

    embedding, codes = embedding_with_batches(options.rows)
    graph_cost, lisi_cost, values, graph = time_ours(embedding, codes, options.repeats)
    ours = graph_cost + lisi_cost
    costs = {"neighbour graph": graph_cost, "LISI of both columns": lisi_cost, "ours": ours}
    result: dict[str, Any] = {
        "rows": options.rows,
        "features": FEATURES,
        "columns": 2,
        "neighbours": graph.k,
        "cores": cpu_count(),
        "search_threads": min(faiss.omp_get_max_threads(), cpu_count()),
        "versions": {name: version(name) for name in ("numpy", "faiss-cpu")},
        "mean_lisi": {"label": values[:, 0].mean(), "environment": values[:, 1].mean()},
    }
    console = Console()
    if options.harmonypy and find_spec("harmonypy") is None:
        result["harmonypy"] = "not installed"
        console.print("harmonypy is not installed: nothing to compare with")
    elif options.harmonypy:
        costs["harmonypy"], theirs = time_harmonypy(embedding, codes)
        difference = np.abs(theirs - values)
        result["versions"]["harmonypy"] = version("harmonypy")
        result["largest_difference"] = float(difference.max())
        result["rows_differing_by_1e-6"] = int((difference > 1e-6).any(axis=1).sum())
        result["harmonypy_over_ours"] = {
            "wall": costs["harmonypy"].wall_s / ours.wall_s,
            "processor": costs["harmonypy"].processor_s / ours.processor_s,
        }
    if options.umap:
        costs["UMAP, own neighbours"], costs["UMAP, our graph"] = time_umap(embedding, graph)
        result["versions"]["umap-learn"] = version("umap-learn")
    result["costs"] = {name: asdict(spent) for name, spent in costs.items()}

    table = Table(title=f"LISI, {options.rows:,} x {FEATURES}, two columns")
    for column in ("", "wall s", "processor s"):
        table.add_column(column, justify="right" if column else "left")
    for name, spent in costs.items():
        table.add_row(name, f"{spent.wall_s:.2f}", f"{spent.processor_s:.2f}")
    for key, ratio in result.get("harmonypy_over_ours", {}).items():
        console.print(f"harmonypy / ours, {key} time: {ratio:.1f}")
    console.print(table)
    write_text(options.out, json.dumps(result, indent=2) + "\n")
    console.print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
