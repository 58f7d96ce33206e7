import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.config import TrainingOptions
from deconfound.data.folds.problem import pose
from deconfound.data.loading.sampler import LabelBalancedSampler, PlainSampler
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.experiments.layout import make_plan
from deconfound.runs.config import RunConfig, config_model, dump_config, read_config
from deconfound.training.fit import fit
from deconfound.training.positives import plain_share, sampler_for, shares

MakeConfig = Callable[..., RunConfig]
ROLES = Roles(label="compound", environment=("plate",), levels=("plate",))


@pytest.fixture(scope="module")
def many(make_screen: Callable[..., Screen], tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """720 profiles of 120 labels, six of each, on three plates."""
    row = np.arange(720)
    table = pd.DataFrame(
        {"compound": [f"c{one}" for one in row % 120], "plate": [f"P{one}" for one in row // 240]}
    )
    profiles = np.random.default_rng(0).standard_normal((720, 8)).astype(np.float32)
    return make_screen(tmp_path_factory.mktemp("many") / "screen", profiles, table, ROLES)


def config_of(sampler: str | None = None, classes: int = 256, **given: Any) -> RunConfig:
    training = {
        "steps": 2, "batch_size": 32, "sampler": sampler, "classes_per_batch": classes,
        "device": "cpu", "threads": 1, "precision": "32",
    }  # fmt: skip
    return config_model("scbd")(
        method="scbd",
        data=given.get("data", {"fold": "plate=P2", "val_fraction": 0.2}),
        training=TrainingOptions(**training),
    )


def test_the_share_is_that_of_all_batches_counted() -> None:
    label = np.array([0, 0, 0, 1, 1, 2, 3])
    having = [
        sum(sum(label[list(batch)] == label[one]) > 1 for one in batch)
        for batch in itertools.combinations(range(7), 3)
    ]
    exact = sum(having) / (3 * len(having))
    assert plain_share(np.bincount(label), 3, 7) == pytest.approx(exact, rel=1e-12)
    assert plain_share(np.bincount(label), 7, 7) == pytest.approx(5 / 7)
    assert plain_share(np.bincount(label), 1, 7) == pytest.approx(0, abs=1e-12)
    assert np.isnan(plain_share(np.zeros(3, dtype=np.int64), 3, 7))


@pytest.mark.parametrize(("labels", "share"), [(5050, 0.05), (1139, 0.20)])
def test_in_a_plain_batch_of_256_few_images_have_another_of_their_label(
    labels: int, share: float
) -> None:
    assert plain_share(np.full(labels, 100), 256, 100 * labels) == pytest.approx(share, abs=0.005)


def test_shares_are_counted_in_batches() -> None:
    label = np.arange(600) % 60
    environment = np.where(np.arange(600) < 590, np.arange(600), -1)
    rows = np.arange(600)
    plain = shares(PlainSampler(rows, 30, 0), label, environment)
    assert plain[0] == pytest.approx(plain_share(np.full(60, 10), 30, 600), abs=0.05)
    assert plain[1] == 0
    balanced = shares(LabelBalancedSampler(rows, label, 32, 4, 0), label)
    assert balanced == [1.0]
    assert np.isnan(shares(PlainSampler(rows, 30, 0), np.full(600, -1))[0])


def test_batches_are_balanced_where_few_would_have_a_positive(many: Screen, tmp_path: Path) -> None:
    said: list[str] = []
    run = fit(config_of(), many.path, tmp_path / "run", quiet=True, say=said.append)
    training = run.config.training
    assert (training.sampler, training.classes_per_batch) == ("label_balanced", 4)
    problem = pose(many, run.config.data)
    of_label = np.bincount(problem.label.codes[problem.fold.rows("train")])
    share = plain_share(of_label, 32, len(problem.fold.rows("train")))
    assert share < 0.5
    assert said == [
        "scbd: 100% of the images of a label_balanced batch of 32 have another of their label, "
        f"100% another of their environment; of a plain one {share:.0%} would have one of their "
        "label"
    ]
    fit(config_of(), many.path, tmp_path / "run", quiet=True)  # the same run, finished


def test_what_is_asked_for_wins(many: Screen, tmp_path: Path) -> None:
    run = fit(config_of("plain"), many.path, tmp_path / "run", quiet=True)
    assert run.config.training.sampler == "plain"
    # A run begun with plain batches, as by an earlier release, goes on with them.
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = fit(config_of(), many.path, tmp_path / "run", quiet=True)
    assert again.config.training.sampler == "plain"
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_with_many_positives_a_run_is_that_of_plain_batches(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    ours = fit(make_config("scbd"), screen.path, tmp_path / "ours", quiet=True)
    config = make_config("scbd", training={"sampler": "plain"})
    plain = fit(config, screen.path, tmp_path / "plain", quiet=True)
    for name in ("config.yaml", "model.safetensors", "metrics.csv"):
        assert (ours.path / name).read_bytes() == (plain.path / name).read_bytes()
    assert dump_config(read_config(ours.path / "config.yaml")) == dump_config(plain.config)


@pytest.mark.parametrize(("classes", "kept"), [(256, 32), (64, 64), (200, 128), (16, 16)])
def test_a_balanced_batch_holds_several_images_of_a_label(classes: int, kept: int) -> None:
    config = config_of(classes=classes)
    training = config.training.model_copy(update={"batch_size": 256})
    config = config.model_copy(update={"training": training})
    found = sampler_for(config, np.full(5050, 20), 5050 * 20).training
    assert (found.sampler, found.classes_per_batch) == ("label_balanced", kept)
    enough = sampler_for(config, np.full(10, 20), 200).training
    assert (enough.sampler, enough.classes_per_batch) == ("plain", classes)


def test_a_plan_decides_before_it_names_its_runs(many: Screen, tmp_path: Path) -> None:
    def samplers(training: str) -> tuple[set[str | None], set[str]]:
        file = tmp_path / "plan.yaml"
        file.write_text(
            f"screens: [{many.path}]\nfolds: [plate=P2]\ndata: {{val_fraction: 0.2}}\n"
            f"training: {{{training}}}\nmethods: {{scbd: , erm: }}\n"
        )
        jobs = make_plan(file).jobs
        scbd = {name for name, job in jobs.items() if job.config.method == "scbd"}
        return {jobs[name].config.training.sampler for name in scbd}, scbd

    assert samplers("batch_size: 32")[0] == {"label_balanced"}
    undecided, plain = samplers("batch_size: 240"), samplers("batch_size: 240, sampler: plain")
    assert undecided == plain == ({"plain"}, undecided[1])
