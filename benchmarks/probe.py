"""Linear probes: ours, scikit-learn's default solver as it was used before, and a fit to the end.

python benchmarks/probe.py [--bbbc021 SCREEN]
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.table import coded
from deconfound.files.atomic import write_text
from deconfound.metrics.logistic import logistic_regression
from deconfound.metrics.probe import ITERATIONS
from deconfound.runtime.seeds import numpy_stream

Features = NDArray[np.float64]
Codes = NDArray[np.int64]
DEFAULT_ITERATIONS = {True: 200, False: 100}
"""Iterations that probes of standardised and of raw features were given before."""


def simulated(rows: int, features: int, classes: int, spread: float) -> tuple[Features, Codes]:
    """Classes that overlap, in correlated features whose scales span three orders of magnitude."""
    stream = numpy_stream(0, "probe benchmark")
    code = stream.integers(0, classes, rows)
    latent = spread * stream.normal(size=(classes, features))[code]
    latent += stream.normal(size=(rows, features))
    mixing = stream.normal(size=(features, features)) * np.logspace(0, -3, features)
    return (latent @ mixing).astype(np.float32).astype(np.float64), code


def problems(bbbc021: Path | None) -> Iterator[tuple[str, Features, Codes]]:
    """Names, features (N, D) and classes (N,)."""
    yield "demo, 2,000 x 64, 10 classes", *simulated(3_333, 64, 10, 0.5)
    if bbbc021 is not None:
        screen = open_screen(bbbc021)
        values = screen.read(np.arange(len(screen))).astype(np.float64)
        for column in (screen.roles.label, "Metadata_Week"):
            assert column is not None
            yield f"BBBC021, {column}", values, coded(screen.table[column].astype(str)).codes
    yield "50,000 x 512, 10 classes", *simulated(62_500, 512, 10, 0.1)


def reference(features: Features, code: Codes, start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (D + 1, C) of the minimum by PyTorch's L-BFGS in float64, in whitened coordinates.

    Neither loss, nor gradient, nor solver is ours. It begins at random weights, so that it cannot
    inherit what another fit got wrong.
    """
    _, length, axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    axes = axes[length > 1e-13 * length[0]]
    length = length[: len(axes)]
    scale = 1 / np.sqrt(1 + length**2 / 100)
    mean = torch.from_numpy(features.mean(axis=0))
    turned = torch.from_numpy((features - features.mean(axis=0)) @ (axes.T * scale))
    target, penalty = torch.from_numpy(code), torch.from_numpy(scale**2)[:, None]
    weights = torch.from_numpy(start[: len(axes)].copy()).requires_grad_()
    offset = torch.zeros(start.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights, offset], max_iter=3_000, max_eval=4_000, history_size=50,
        tolerance_grad=1e-8 * len(code), tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        solver.zero_grad()
        logits = turned @ weights + offset
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        loss = loss + 0.5 * (penalty * weights.square()).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    found = torch.from_numpy(axes.T * scale) @ weights.detach()
    return torch.cat([found, (offset.detach() - mean @ found)[None]]).numpy()


def compared(name: str, features: Features, code: Codes, standardise: bool) -> dict[str, Any]:
    """Macro-F1 on 40 % of the rows (20 % of many) and processor seconds, of the three fits."""
    drawn = numpy_stream(1, "probe benchmark").permutation(len(code))
    cut = round((0.8 if len(code) > 10_000 else 0.6) * len(code))
    train, test = drawn[:cut], drawn[cut:]
    if standardise:
        sd = features[train].std(axis=0)
        features = (features - features[train].mean(axis=0)) / np.where(sd > 0, sd, np.inf)
    rows, other = features[train], features[test]
    classes = np.unique(code[train])

    begun = time.process_time()
    ours = logistic_regression(rows, code[train], ITERATIONS)
    spent = {"ours": time.process_time() - begun}
    answers = {"ours": other @ ours.coefficients.T + ours.intercept}

    begun = time.process_time()
    default = LogisticRegression(max_iter=DEFAULT_ITERATIONS[standardise])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default.fit(rows, code[train])
    spent["default"] = time.process_time() - begun
    answers["default"] = other @ default.coef_.T + default.intercept_

    start = 0.01 * numpy_stream(2, "probe benchmark").normal(size=(rows.shape[1], len(classes)))
    begun = time.process_time()
    weights = reference(rows, np.searchsorted(classes, code[train]), start)
    spent["reference"] = time.process_time() - begun
    answers["reference"] = other @ weights[:-1] + weights[-1]

    chosen = {one: classes[logits.argmax(axis=1)] for one, logits in answers.items()}
    scores = {
        one: float(f1_score(code[test], found, average="macro", labels=classes, zero_division=0))
        for one, found in chosen.items()
    }
    return {
        "problem": f"{name}, {'standardised' if standardise else 'raw'}",
        "rows": len(train), "features": rows.shape[1], "classes": len(classes),
        "converged": ours.converged, "iterations": ours.iterations,
        "default_iterations": int(default.n_iter_.max()),
        "macro_f1": scores,
        "other_answers": {
            one: float((chosen[one] != chosen["reference"]).mean()) for one in ("ours", "default")
        },
        "seconds": spent,
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bbbc021", type=Path, help="screen of `ingest source bbbc021`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/probe.json")
    options = parser.parse_args()

    console, found = Console(), []
    for name, features, code in problems(options.bbbc021):
        for standardise in (True, False):
            found.append(compared(name, features, code, standardise))
            console.print(found[-1])
    result = {
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "torch")},
        "threads": torch.get_num_threads(),
        "problems": found,
    }
    table = Table("problem", "ours", "default", "to the end", "ours s", "default s", "ratio")
    for one in found:
        seconds = one["seconds"]
        table.add_row(
            one["problem"],
            *(f"{one['macro_f1'][which]:.4f}" for which in ("ours", "default", "reference")),
            *(f"{seconds[which]:.2f}" for which in ("ours", "default")),
            f"{seconds['ours'] / seconds['default']:.1f}",
        )
    console.print(table)
    write_text(options.out, json.dumps(result, indent=2) + "\n")
    console.print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
