"""Pictures of a finished run for the tracker that followed it."""

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.intervention.embedder import Embedder
from deconfound.runs.run import Run
from deconfound.runtime.device import processes, start_fabric
from deconfound.training.tracking.tracker import Tracker

BATCH = 512
MOST_NAMED = 24
"""Labels whose names a matrix shows."""


def show_pictures(run: Run, screen: Path, tracker: Tracker) -> None:
    """Show the confusion of validation rows, and swapped cells, where the run has them.

    Nothing is drawn of a run that was finished before.
    """
    if not tracker.begun or processes().rank:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "confusion.png"
        if _draw_confusion(run, screen, file):
            tracker.picture("confusion", file)
        with contextlib.suppress(UserError):  # a method without blocks to swap, or a decoder
            transfer(run.path, screen, Path(folder) / "swap")
            tracker.picture("swap", Path(folder) / "swap" / "swap.png")


def _draw_confusion(run: Run, screen: Path, file: Path) -> bool:
    """Draw the confusion matrix of validation rows, if the method predicts labels."""
    import matplotlib.pyplot as plt
    from sklearn.metrics import ConfusionMatrixDisplay

    opened = open_screen(screen)
    problem = pose(opened, run.config.data)
    rows = problem.fold.rows("val")
    truth = problem.label.codes[rows]
    training = run.config.training
    fabric = start_fabric(training.device, "32", training.threads)
    predicted = Embedder.of_run(run, opened, fabric).labels(rows[truth >= 0], BATCH)
    if predicted is None or not len(predicted):
        return False
    few = len(run.labels) <= MOST_NAMED
    side = max(4.0, 0.45 * len(run.labels)) if few else 8.0
    figure, axes = plt.subplots(figsize=(side + 2, side + 1.5), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        truth[truth >= 0], predicted, labels=np.arange(len(run.labels)), normalize="true",
        display_labels=run.labels if few else None, include_values=few, values_format=".2f",
        xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 1}, ax=axes,
    )  # fmt: skip
    if not few:
        axes.set(xticks=[], yticks=[])
    axes.set_title("Validation rows: share of each label")
    figure.savefig(file)
    plt.close(figure)
    return True
