"""Profiles whose environments differ by a gain and an offset alone: ARM-BN sees through them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.embeddings.embed import embed
from deconfound.evaluation.measure import prediction_scores
from deconfound.methods import load
from deconfound.runs.config import config_model
from deconfound.training.fit import fit

PLATES, CELLS, LABELS, FEATURES = 6, 120, 4, 8


@pytest.fixture(scope="module")
def profiles(
    make_screen: Callable[..., Screen], tmp_path_factory: pytest.TempPathFactory
) -> Screen:
    """Labels are centres, plates a gain and an offset of each feature; plate P0 has its own."""
    stream = np.random.default_rng(0)
    label = np.tile(np.arange(LABELS), PLATES * CELLS // LABELS)
    plate = np.repeat(np.arange(PLATES), CELLS)
    values = stream.normal(size=(LABELS, FEATURES))[label] * 1.2
    values += stream.normal(size=values.shape)
    values *= np.exp(stream.normal(size=(PLATES, FEATURES)) * 0.7)[plate]
    values += 4 * stream.normal(size=(PLATES, FEATURES))[plate]
    table = pd.DataFrame({"plate": [f"P{p}" for p in plate], "drug": [f"d{one}" for one in label]})
    table["Metadata_Control_Type"] = np.where(label == 0, "negcon", "treatment")
    roles = Roles(label="drug", environment=("plate",), levels=("plate",))
    path = tmp_path_factory.mktemp("profiles") / "s"
    return make_screen(path, values.astype(np.float32), table, roles)


def held_out_f1(name: str, screen: Screen, folder: Path) -> float:
    """Macro-F1 in the plate held out."""
    config = config_model(name)(
        method=name,
        data=DataOptions(fold="plate=P0"),
        training=TrainingOptions(
            steps=60, batch_size=128, validate_every=60, checkpoint_every=60, device="cpu",
            precision="32", threads=1, selection="last",
        ),
        options=load(name).Options(),
    )  # fmt: skip
    run = fit(config, screen.path, folder / name, quiet=True).path
    made = embed(run, screen.path, folder / f"{name}.h5ad", device="cpu", threads=1, quiet=True)
    scores = {(s.metric, s.part): s.score.value for s in prediction_scores(made)}
    return float(scores["macro_f1", "test"])


def test_a_gain_and_an_offset_of_each_environment_are_removed(
    profiles: Screen, tmp_path: Path
) -> None:
    found = {name: held_out_f1(name, profiles, tmp_path) for name in ("erm", "armbn", "csarmbn")}
    assert found["armbn"] > 0.8
    assert found["csarmbn"] > 0.7  # its statistics are those of 30 controls
    assert found["erm"] < 0.6
