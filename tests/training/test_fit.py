import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from deconfound import methods
from deconfound.config import AUGMENTATIONS
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.methods.contract import Loss, Method
from deconfound.runs.config import RunConfig, dump_config
from deconfound.runs.record import read_history
from deconfound.runs.run import open_run
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.training.step import Stepper

AssertSameRun = Callable[[Path, Path], None]
MakeConfig = Callable[..., RunConfig]


class Killed(BaseException):
    """Stands for a process that ends here; nothing may handle it."""


def killed_at(call: int, function: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """`function`, which dies at its `call`-th call, before or after its work."""
    calls = 0

    def dying(*words: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = function(*words, **named)
        if calls == call:
            raise Killed
        return result

    return dying


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize(
    ("owner", "place", "call", "after"),
    [
        (Stepper, "step", 1, False),
        (Stepper, "step", 4, True),
        (Training, "_validate", 2, True),
        (Training, "_save_resume", 2, False),
        (Stepper, "renew_optimizers", 2, False),
        (Stepper, "renew_optimizers", 2, True),
        (Training, "_save_resume", 5, True),
        (Training, "_finish", 1, False),
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    name: str,
    owner: type,
    place: str,
    call: int,
    after: bool,
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: AssertSameRun,
) -> None:
    """Before a step, after one, in the middle of a checkpoint, between two stages, at the end."""
    out = tmp_path / "run"
    config = make_config(name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, killed_at(call, getattr(owner, place), after))
        try:
            fit(config, screen.path, out, quiet=True)
        except Killed:
            with pytest.raises(UserError, match="not finished"):
                open_run(out)
        else:
            pytest.skip(f"{name} has one stage: {place} is called less than {call} times")
    torch.rand(7)
    fit(config, screen.path, out, quiet=True)
    assert_same_run(out, finished_runs(name))


def test_a_run_killed_many_times_ends_as_an_uninterrupted_one(
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: AssertSameRun,
) -> None:
    out = tmp_path / "run"
    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "step", killed_at(3, Stepper.step, True))
            try:
                fit(make_config("scbd"), screen.path, out, quiet=True)
            except Killed:
                continue
        break
    assert_same_run(out, finished_runs("scbd"))


def test_a_killed_run_with_every_augmentation_ends_as_an_uninterrupted_one(
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: AssertSameRun,
) -> None:
    config = make_config("erm", training={"augment": " ".join(AUGMENTATIONS)})
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", killed_at(4, Stepper.step, True))
        with pytest.raises(Killed):
            fit(config, screen.path, tmp_path / "killed", quiet=True)
    fit(config, screen.path, tmp_path / "killed", quiet=True)
    fit(config, screen.path, tmp_path / "whole", quiet=True)
    fit(make_config("erm"), screen.path, tmp_path / "plain", quiet=True)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    losses = [read_history(tmp_path / name / "metrics.csv") for name in ("plain", "whole")]
    assert not losses[0].equals(losses[1])


def test_a_process_killed_while_it_writes_a_checkpoint_resumes(
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    assert_same_run: AssertSameRun,
) -> None:
    """SIGKILL when the second checkpoint is written and not yet renamed."""
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(dump_config(make_config("scbd")))
    program = """
import os, signal, sys
import torch
from deconfound.training.fit import fit
from deconfound.runs.config import read_config
from pathlib import Path
save, calls = torch.save, []
def dying(state, file):
    save(state, file)
    calls.append(file)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = dying
fit(read_config(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), quiet=True)
"""
    words = [sys.executable, "-c", program, str(config), str(screen.path), str(out)]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -9
    assert not (out / "model.safetensors").exists()
    left = [file for file in out.iterdir() if file.name.endswith(".partial")]
    assert left
    fit(make_config("scbd"), screen.path, out, quiet=True)
    assert_same_run(out, finished_runs("scbd"))


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_checkpoint_is_one_line(
    damage: str,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", killed_at(4, Stepper.step, False))
        with pytest.raises(Killed):
            fit(make_config("erm"), screen.path, out, quiet=True)
    state = (out / "resume.pt").read_bytes()
    (out / "resume.pt").write_bytes(
        {"empty": b"", "cut": state[: len(state) // 2], "text": b"not a checkpoint"}[damage]
    )
    with pytest.raises(UserError, match=r"resume\.pt: damaged"):
        fit(make_config("erm"), screen.path, out, quiet=True)


def test_a_finished_run_returns_at_once(
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = finished_runs("erm")
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    monkeypatch.setattr(Training, "__init__", killed_at(1, Training.__init__, False))
    assert fit(make_config("erm"), screen.path, out, quiet=True).path == out
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_a_run_of_another_configuration_is_refused(
    screen: Screen, make_config: MakeConfig, finished_runs: Callable[[str], Path]
) -> None:
    out = finished_runs("erm")
    for other in (
        make_config("erm", seed=5),
        make_config("scbd"),
        make_config("erm", options={"learning_rate": 0.5}),
        make_config("erm", data={"fold": "iid"}),
    ):
        with pytest.raises(UserError, match="another configuration; choose another --out"):
            fit(other, screen.path, out, quiet=True)


def test_a_run_of_another_screen_is_refused(
    screen: Screen,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    images = screen.read(np.arange(len(screen)))
    other = make_screen(tmp_path / "other", images[::-1], screen.table)
    with pytest.raises(UserError, match="was trained on another screen"):
        fit(make_config("erm"), other.path, finished_runs("erm"), quiet=True)


def test_a_folder_that_is_no_run_is_refused_and_an_empty_one_taken(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run"):
        fit(make_config("erm"), screen.path, tmp_path / "mine", quiet=True)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    fit(make_config("erm", training={"steps": 1}), screen.path, tmp_path / "empty", quiet=True)


def test_a_run_killed_while_it_describes_itself_starts_again(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("erm", training={"steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_text", killed_at(2, atomic.write_text, True))
        with pytest.raises(Killed):
            fit(config, screen.path, tmp_path / "run", quiet=True)
    fit(config, screen.path, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("when", [0, 3])
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(
    when: int,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    erm = methods.load("erm")
    losses, calls = erm._losses, []  # type: ignore[attr-defined]

    def diverging(method: Method, batch: Any, outputs: dict[str, Tensor]) -> dict[str, Loss]:
        calls.append(1)
        found: dict[str, Loss] = losses(method, batch, outputs)
        if method.training and len(calls) > when:
            return {name: Loss(loss.value * torch.nan) for name, loss in found.items()}
        return found

    monkeypatch.setattr(erm, "_losses", diverging)
    with pytest.raises(UserError, match="cross_entropy became nan by step 6; lower --learning"):
        fit(make_config("erm"), screen.path, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_validation_loss_of_nan_replaces_no_checkpoint(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best validation so far stays the best when a later one is not a number."""
    erm = methods.load("erm")
    losses, calls = erm._losses, []  # type: ignore[attr-defined]

    def once_nan(method: Method, batch: Any, outputs: dict[str, Tensor]) -> dict[str, Loss]:
        found: dict[str, Loss] = losses(method, batch, outputs)
        if method.training:
            return found
        calls.append(1)
        value = [1.0, torch.nan, 2.0][len(calls) - 1]
        return {name: Loss(torch.tensor(value)) for name in found}

    monkeypatch.setattr(erm, "_losses", once_nan)
    fit(make_config("erm"), screen.path, tmp_path / "run", quiet=True)
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["best"]["classifier"]["loss"]["step"] == 2


@pytest.mark.parametrize(
    ("name", "options", "stage"),
    [("irm", {"anneal_steps": 0}, "penalised"), ("coral", {}, "classifier")],
)
def test_a_penalty_is_recorded_in_validation_and_selects_nothing(
    name: str, options: dict[str, Any], stage: str, screen: Screen, make_config: MakeConfig,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = make_config(name, options={"penalty_weight": 1e4, **options})
    run = fit(config, screen.path, tmp_path / name, quiet=True)
    history = read_history(run.path / "metrics.csv")
    scores = history[history["part"] == "val"].pivot(index="step", columns="name", values="value")
    assert (scores[f"{name}_penalty"] != 0).any()
    assert scores["loss"].equals(scores["cross_entropy"].rename("loss"))
    best = json.loads((run.path / "selection.json").read_text())["best"][stage]["loss"]
    assert best["step"] == scores["cross_entropy"].idxmin()


def test_all_selections_are_recorded_with_their_scores(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    for wanted in ("loss", "accuracy", "last"):
        config = make_config("erm", training={"selection": wanted})
        run = fit(config, screen.path, tmp_path / wanted, quiet=True)
        selection = json.loads((run.path / "selection.json").read_text())
        assert selection["used"] == {"classifier": wanted}
        best = selection["best"]["classifier"]
        assert set(best) == {"loss", "accuracy", "last"}
        history = read_history(run.path / "metrics.csv")
        validated = history[history["part"] == "val"].pivot(
            index="step", columns="name", values="value"
        )
        assert best["last"]["step"] == 6
        assert best["loss"]["step"] == validated["loss"].idxmin()
        assert best["accuracy"]["step"] == validated["accuracy"].idxmax()
        for one in best.values():
            for name in ("loss", "accuracy", "cross_entropy"):
                assert one[name] == validated[name][int(one["step"])]
        chosen = (run.path / f"classifier-{wanted}.safetensors").read_bytes()
        assert (run.path / "model.safetensors").read_bytes() == chosen


def test_the_history_holds_every_tenth_step_and_every_validation(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("erm", training={"steps": 21, "validate_every": 8, "batch_size": 4})
    history = read_history(
        fit(config, screen.path, tmp_path / "run", quiet=True).path / "metrics.csv"
    )
    assert history.columns.tolist() == ["stage", "step", "part", "name", "value"]
    train = history[history["part"] == "train"]
    assert train["step"].tolist() == [10, 20, 21]
    assert set(train["name"]) == {"cross_entropy"}
    val = history[history["part"] == "val"]
    assert sorted(set(val["step"])) == [8, 16, 21]
    assert set(val["name"]) == {"cross_entropy", "loss", "accuracy"}


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0095), ("constant", 1.0)])
def test_the_learning_rate_follows_its_schedule(
    schedule: str,
    last: float,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a cosine over the steps of a stage: full at first, near 0 at the end."""
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recording(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    training = {"steps": 16, "schedule": schedule, "batch_size": 8}
    config = make_config("erm", training=training, options={"learning_rate": 0.5})
    fit(config, screen.path, tmp_path / "run", quiet=True)
    relative = np.array(rates) / 0.5
    assert len(relative) == 16
    assert relative[0] == 1
    assert relative[-1] == pytest.approx(last, rel=0.02)
    if schedule == "cosine":
        np.testing.assert_allclose(relative, (1 + np.cos(np.pi * np.arange(16) / 16)) / 2)


def test_bfloat16_trains_to_float32_weights(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("scbd", training={"precision": "bf16", "steps": 2})
    run = fit(config, screen.path, tmp_path / "run", quiet=True)
    assert run.provenance()["precision"] == "bf16-mixed"
    method, _ = run.load(screen)
    assert {value.dtype for value in method.parameters()} == {torch.float32}
    history = read_history(run.path / "metrics.csv")
    assert np.isfinite(history["value"]).all()


def test_the_encoder_runs_channels_last(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    embed = methods.load("erm").embed

    def watched(method: Method, image: Tensor) -> dict[str, Tensor]:
        weight = next(p for p in method.parameters() if p.ndim == 4)
        for tensor in (image, weight):
            seen.append(tensor.is_contiguous(memory_format=torch.channels_last))
        return embed(method, image)

    monkeypatch.setattr(methods.load("erm"), "embed", watched)
    fit(make_config("erm", training={"steps": 1}), screen.path, tmp_path / "run", quiet=True)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("sampler", ["label_balanced", "environment_balanced"])
def test_every_sampler_and_augmentation_trains(
    sampler: str, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    training = {"sampler": sampler, "augment": "dihedral", "steps": 2, "classes_per_batch": 2}
    run = fit(make_config("scbd", training=training), screen.path, tmp_path / "run", quiet=True)
    assert (run.path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"label": "section", "fold": "section=S1/P1/A"}, None),
        ({"label": "well", "fold": "iid", "val_fraction": 0.99}, "no rows for train|expected 2"),
        ({"environment": ("plat",)}, "did you mean 'plate'"),
        ({"label": "series", "fold": "series=S1"}, "training has 1 label; expected 2"),
    ],
)
def test_a_problem_that_cannot_be_posed_is_one_line(
    data: dict[str, Any],
    said: str | None,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    config = make_config("erm", data=data, training={"steps": 1})
    if said is None:
        fit(config, screen.path, tmp_path / "run", quiet=True)
        return
    with pytest.raises(UserError, match=said):
        fit(config, screen.path, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_classes_are_those_of_training_rows_alone(
    screen: Screen, make_config: MakeConfig, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    table = screen.table.copy()
    held_out = (table["series"] == "S1") & (table["plate"] == "P1")
    table.loc[held_out & (table["compound"] == "c0"), "compound"] = "only held out"
    other = make_screen(tmp_path / "s", screen.read(np.arange(len(screen))), table)
    run = fit(make_config("erm", training={"steps": 1}), other.path, tmp_path / "run", quiet=True)
    assert run.labels == ("c0", "c1", "c2")
    assert run.environments == ("P1", "P2")
    fold = json.loads((run.path / "fold.json").read_text())
    assert fold["counts"]["test"] == held_out.sum() == 24
    assert pd.Series(fold["counts"]).sum() == len(table)


def test_images_that_are_not_square_are_refused(
    make_screen: Callable[..., Screen], make_config: MakeConfig, screen: Screen, tmp_path: Path
) -> None:
    images = screen.read(np.arange(len(screen)))[:, :, :, :20]
    oblong = make_screen(tmp_path / "s", images.copy(), screen.table)
    with pytest.raises(UserError, match="24 × 20 px; expected square"):
        fit(make_config("erm"), oblong.path, tmp_path / "run", quiet=True)


def test_provenance_says_what_decides_the_numbers(finished_runs: Callable[[str], Path]) -> None:
    found = open_run(finished_runs("erm")).provenance()
    assert {"python", "packages", "commit", "git_clean", "device", "precision"} <= set(found)
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["processes"] == 1
    assert found["device"] == "cpu, 1 threads"


def test_channels_that_do_not_vary_are_a_warning(
    make_screen: Callable[..., Screen], make_config: MakeConfig, tmp_path: Path
) -> None:
    table = pd.DataFrame({"gene": [*"abcd"] * 50, "plate": [*"pq"] * 100})
    images = np.random.default_rng(0).integers(0, 255, (200, 2, 24, 24)).astype(np.float32)
    images[:, 1] = 0.1
    screen = make_screen(tmp_path / "s", images, table, Roles(label="gene", environment=("plate",)))
    said: list[str] = []
    fit(make_config("erm", data={"fold": "iid"}), screen.path, tmp_path / "r", quiet=True,
        warn=said.append)  # fmt: skip
    assert said == [
        f"warning: {tmp_path / 'r'}: 1 of 2 channels do not vary over the training rows beyond "
        "rounding, and are 0 in every row"
    ]


def test_parts_with_far_fewer_rows_than_asked_for_are_a_warning(
    make_screen: Callable[..., Screen], make_config: MakeConfig, tmp_path: Path
) -> None:
    """As in a pooled screen of few cells, where a gene has two of them in a well."""
    gene = [f"g{row % 50}" for row in range(500)]
    well = [f"w{row // 100}" for row in range(500)]
    gene[:40], well[:40] = [*"ab"] * 20, ["w0"] * 40
    table = pd.DataFrame({"gene": gene, "well": well, "plate": [*"pq"] * 250})
    images = np.random.default_rng(0).integers(0, 255, (500, 1, 24, 24)).astype(np.uint8)
    roles = Roles(label="gene", environment=("well",))
    screen = make_screen(tmp_path / "s", images, table, roles)
    said: list[str] = []
    config = make_config("erm", data={"fold": "iid", "val_fraction": 0.1})
    fit(config, screen.path, tmp_path / "thin", quiet=True, warn=said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: fold iid: of 500 rows val and test have 4 (10% asked) and ")
    fewer = make_config("erm", data={"fold": "iid", "environment": ["plate"]})
    fit(fewer, screen.path, tmp_path / "more", quiet=True, warn=said.append)
    assert len(said) == 1
