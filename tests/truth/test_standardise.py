"""Simulated cells whose series differ in staining and optics, or do not: does standardising help.

A series is held out. Where series differ, ERM on pixels that are standardised by environment reads
its labels better than ERM on the pixels as they are; where nothing differs, it reads them as well.
Statistics are those of controls: series hold other labels, and all their images differ by that too.
"""

from pathlib import Path

import pytest

from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.embeddings.embed import embed
from deconfound.evaluation.measure import prediction_scores
from deconfound.methods import load
from deconfound.runs.config import config_model
from deconfound.training.fit import fit

FOLD = "Metadata_Series=S2"


def held_out_f1(screen: Path, folder: Path, **data: str) -> float:
    """Macro-F1 of ERM in the series held out."""
    config = config_model("erm")(
        method="erm",
        data=DataOptions(fold=FOLD, **data),  # type: ignore[arg-type]
        training=TrainingOptions(
            steps=100, batch_size=64, schedule="cosine", augment="dihedral", validate_every=100,
            checkpoint_every=100, device="cpu", precision="32", threads=1, selection="last",
        ),
        options=load("erm").Options(norm="instance", learning_rate=0.002),
    )  # fmt: skip
    name = "-".join(["erm", *data.values()])
    run = fit(config, screen, folder / name, quiet=True).path
    made = embed(run, screen, folder / f"{name}.h5ad", device="cpu", threads=1, quiet=True)
    scores = {(s.metric, s.part): s.score.value for s in prediction_scores(made)}
    return float(scores["macro_f1", "test"])


@pytest.mark.parametrize("technical", [1.0, 0.0])
def test_standardising_helps_where_series_differ_and_does_no_harm_where_they_do_not(
    technical: float, tmp_path: Path
) -> None:
    config = SimulateConfig(
        cells=1600, size=24, labels=6, plates=1, sections=1, seed=7, technical=technical,
    )  # fmt: skip
    screen = simulate(tmp_path / "screen", config=config, quiet=True).path
    plain = held_out_f1(screen, tmp_path)
    asked = {"standardise_by": "environment", "standardise_with": "controls"}
    gain = held_out_f1(screen, tmp_path, **asked, standardise="quantiles") - plain
    assert gain > (0.1 if technical else -0.05)
