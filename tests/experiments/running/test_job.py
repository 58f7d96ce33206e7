import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound import measure
from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.experiments.running import job
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import (
    Order,
    Outcome,
    predictions_file,
    result_file,
    run_directory,
)
from deconfound.runs.config import RunConfig
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

MakeConfig = Callable[..., RunConfig]


def order(config: RunConfig, screen: Screen, out: Path, name: str = "run") -> Order:
    text = config.model_dump_json()
    return Order(name, str(screen.path), screen.identity, config.method, text, str(out))


def scores(out: Path, name: str = "run") -> pd.DataFrame:
    return pd.DataFrame(json.loads(result_file(out, name).read_text())["scores"])


def test_a_run_is_that_of_fit_and_its_scores_those_of_measure(
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    outcome = Runner(3).run(order(make_config("erm"), screen, tmp_path))
    assert (outcome.reason, outcome.worker) == ("", 3)
    assert 0 < outcome.training < outcome.ended - outcome.started
    assert outcome.training + outcome.evaluation < outcome.ended - outcome.started
    assert_same_run(run_directory(tmp_path, "run"), finished_runs("erm"))
    embed(finished_runs("erm"), screen.path, tmp_path / "e.h5ad", device="cpu", quiet=True)
    measured = measure([tmp_path / "e.h5ad"], quiet=True)
    measured = measured[measured["representation"] == "prediction"]
    found = scores(tmp_path)
    key = ["metric", "part"]
    both = measured.merge(found, on=key, suffixes=("", "_found"), validate="one_to_one")
    assert len(both) == len(found) == len(measured)
    np.testing.assert_array_equal(both["value"], both["value_found"])
    np.testing.assert_array_equal(both["n"], both["n_found"])
    with np.load(predictions_file(tmp_path, "run")) as rows:
        test = rows["part"] == "test"
        assert rows["correct"][test & rows["seen"]].mean() == pytest.approx(
            found.query("part == 'test' and metric == 'accuracy'")["value"].item()
        )


@pytest.mark.parametrize(("precision", "batch_size"), [("32", 24), ("32", 5), ("bf16", 24)])
def test_validation_rows_are_not_predicted_twice(
    precision: str,
    batch_size: int,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was finished by another process predicts all, and says the same in float32."""
    few = {"precision": precision, "batch_size": batch_size, "selection": "accuracy", "steps": 8}
    config = make_config("erm", training=few)
    part = pose(screen, config.data).fold.part
    predicted: list[int] = []
    real = BatchReader.stream

    def stream(self: BatchReader, batches: Any) -> Any:
        for batch in real(self, batches):
            predicted.extend(batch.row.tolist())
            yield batch

    task = order(config, screen, tmp_path)
    fit(config, screen.path, run_directory(tmp_path, "whole"), quiet=True)
    monkeypatch.setattr(BatchReader, "stream", stream)
    assert Runner().run(task._replace(name="whole")).reason == ""
    scored = np.flatnonzero(np.isin(part, job.SCORED))
    assert predicted == scored.tolist()
    monkeypatch.undo()

    real_predict, again = job._predict, []

    def predict(run: Any, screen: Screen, problem: Any, known: Any) -> Any:
        again.append(known)
        return real_predict(run, screen, problem, known)

    monkeypatch.setattr(job, "_predict", predict)
    assert Runner().run(task).reason == ""
    if precision == "bf16":
        assert again == [None]
    else:
        assert set(again[0].row) == set(np.flatnonzero(part == "val"))
    pd.testing.assert_frame_equal(scores(tmp_path), scores(tmp_path, "whole"))
    right = [np.load(predictions_file(tmp_path, name))["correct"] for name in ("run", "whole")]
    np.testing.assert_array_equal(*right)


def test_an_environment_left_out_is_scored_and_decides_nothing_fitted(
    screen: Screen,
    make_config: MakeConfig,
    make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., np.ndarray],
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    """Its pixels and labels changed, the run is the same to the bit; its score is not."""
    sections = {"environment": ("plate", "section"), "without": "P2/B"}
    config = make_config("erm", data=sections)
    part = pose(screen, config.data).fold.part
    left_out = part == "ood_val"
    assert set(screen.table["plate"][left_out] + screen.table["section"][left_out]) == {"P2B"}
    table, images = make_table(), make_images(make_table())
    images[left_out] = 65535 - images[left_out]
    kept = list(table.loc[left_out, "compound"])
    table.loc[left_out, "compound"] = kept[1:] + kept[:1]
    changed = make_screen(tmp_path / "changed", images, table)
    runs = []
    for name, one in (("a", screen), ("b", changed)):
        assert Runner().run(order(config, one, tmp_path, name)).reason == ""
        runs.append(run_directory(tmp_path, name))
        found = scores(tmp_path, name)
        assert set(found["part"]) >= {"ood_val", "val", "test"}
        assert found.query("part == 'ood_val'")["n"].max() == left_out.sum()
    for file in ("model.safetensors", "metrics.csv", "selection.json", "classes.json"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()


def test_screens_and_folds_are_opened_once(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    posed: list[Any] = []
    for name, calls in (("open_screen", opened), ("pose", posed)):
        real = getattr(job, name)
        monkeypatch.setattr(
            job, name, lambda *w, real=real, calls=calls: (calls.append(w), real(*w))[1]
        )
    runner = Runner()
    for seed in (0, 1):
        config = make_config("erm", seed=seed, training={"steps": 2})
        assert runner.run(order(config, screen, tmp_path, f"run{seed}")).reason == ""
    assert (len(opened), len(posed)) == (1, 1)


def failed(outcome: Outcome) -> str:
    assert "\n" not in outcome.reason
    return outcome.reason


def test_what_cannot_run_says_why_and_the_next_run_runs(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    config = make_config("erm", training={"steps": 2})
    fit(make_config("erm", seed=9, training={"steps": 1}), screen.path, tmp_path / "runs" / "other",
        quiet=True)  # fmt: skip
    assert "holds a run with another configuration" in failed(
        runner.run(order(config, screen, tmp_path, "other"))
    )
    one = make_config("scbd", data={"environment": ("series",), "fold": "series=S1"})
    assert "expected 2 or more" in failed(runner.run(order(one, screen, tmp_path, "one")))
    moved = order(config, screen, tmp_path, "moved")._replace(identity="another")
    assert "changed since the sweep began" in failed(runner.run(moved))
    with monkeypatch.context() as patch:
        patch.setattr(job, "train", lambda *_, **__: 1 / 0)
        fault = failed(runner.run(order(config, screen, tmp_path, "fault")))
    assert "ZeroDivisionError" in fault
    assert "1 / 0" in (tmp_path / "failures" / "fault.txt").read_text()
    assert not result_file(tmp_path, "fault").exists()
    with pytest.raises(UserError):
        open_run(run_directory(tmp_path, "one"))
    assert runner.run(order(config, screen, tmp_path)).reason == ""
