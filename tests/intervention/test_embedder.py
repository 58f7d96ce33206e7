"""An embedder is what verbs embed and predict with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deconfound import embed
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.file import PREDICTED
from deconfound.intervention.embedder import Embedder, in_batches
from deconfound.runs.run import open_run
from deconfound.runtime.device import start_fabric

ROWS = np.array([3, 7, 30, 31, 32, 50], dtype=np.int64)


def test_it_finds_what_embed_writes(
    finished_runs: Callable[[str], Path], screen: Screen, tmp_path: Path
) -> None:
    run = open_run(finished_runs("erm"))
    whole = embed(run.path, screen.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)
    embedder = Embedder.of_run(run, screen, start_fabric("cpu", "32", 1, alone=True))
    codes = embedder.labels(ROWS, 4)
    assert codes is not None
    predicted = whole.table[PREDICTED].astype(str).to_numpy()[ROWS]
    assert np.array(run.labels)[codes].tolist() == predicted.tolist()
    found = [one.representations["representation"] for one in embedder.stream([ROWS])]
    expected = whole.representations["representation"][ROWS]
    np.testing.assert_allclose(found[0].cpu().numpy(), expected, rtol=1e-5, atol=1e-5)
    nothing = embedder.labels(ROWS[:0], 4)
    assert nothing is not None and len(nothing) == 0


def test_a_method_that_predicts_nothing_has_no_labels(
    finished_runs: Callable[[str], Path], screen: Screen
) -> None:
    run = open_run(finished_runs("stargan2"))
    embedder = Embedder.of_run(run, screen, start_fabric("cpu", "32", 1, alone=True))
    assert embedder.labels(ROWS, 4) is None


def test_the_last_batch_is_shorter() -> None:
    assert [len(rows) for rows in in_batches(ROWS, 4)] == [4, 2]
