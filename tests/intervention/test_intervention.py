"""Training on images that another run imputes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deconfound import cli, methods
from deconfound.config import InterventionOptions
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.intervention import source_run
from deconfound.intervention.intervention import Intervention, begin_intervention, load_intervention
from deconfound.methods.contract import Method
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runs.run import Run, open_run
from deconfound.runtime.seeds import torch_stream
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.verification import check

MakeConfig = Callable[..., RunConfig]
CPU = torch.device("cpu")
WRITTEN = ("metrics.csv", "selection.json", "classes.json", "intervention.json")


def intervened(
    make_config: MakeConfig, source: Path, method: str = "erm", bank: int = 4, **given: Any
) -> RunConfig:
    config = make_config(method, **given)
    options = InterventionOptions(intervene=source, bank=bank)
    values = dict(config) | {"intervention": options, "imputer": "restain"}
    if "sampler" not in given.get("training", {}):
        values["training"] = config.training.model_copy(update={"sampler": None})
    return type(config)(**values)


@pytest.fixture(scope="module")
def run(
    source: Path, screen: Screen, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of ERM on the interventional distribution."""
    out = tmp_path_factory.mktemp("intervened") / "run"
    return fit(intervened(make_config, source), screen.path, out, quiet=True).path


@pytest.fixture
def problem(screen: Screen, make_config: MakeConfig) -> Problem:
    return pose(screen, make_config("erm").data)


@pytest.fixture
def batch(run: Path, screen: Screen, problem: Problem) -> Batch:
    """All training rows."""
    scaling = load_intervention(run, screen).intensity
    reader = BatchReader(
        screen,
        label=problem.label.codes,
        environment=problem.environment.codes,
        intensity=scaling,
        device=CPU,
    )
    return reader.read(problem.fold.rows("train"))


def moments(image: torch.Tensor) -> torch.Tensor:
    """Means, then deviations, of the channels: (B, 2 C)."""
    pixels = image.flatten(2)
    return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)


def test_every_image_gets_a_style_of_its_new_environment(
    run: Path, screen: Screen, batch: Batch
) -> None:
    """The toy gives an image the moments of another, so they tell which one it was."""
    found = load_intervention(run, screen)
    imputed = found.intervene(batch, torch_stream(0, "x"))
    environments, styles, _ = found.bank.shape
    distance = torch.cdist(moments(imputed.image), found.bank.flatten(0, 1))
    nearest, style = distance.min(dim=1)
    assert nearest.max() < 1e-3
    assert torch.equal(style // styles, imputed.environment)
    assert set(imputed.environment.tolist()) == set(range(environments))
    assert not torch.equal(imputed.environment, batch.environment)
    assert torch.equal(imputed.label, batch.label)
    assert torch.equal(imputed.row, batch.row)


def test_environments_and_styles_are_drawn_uniformly_and_independently_of_labels(
    run: Path, screen: Screen, batch: Batch
) -> None:
    found = load_intervention(run, screen)
    environments, styles, _ = found.bank.shape
    counts = torch.zeros(environments, styles)
    of_label = torch.zeros(3, environments)
    repeats = 60
    for number in range(repeats):
        imputed = found.intervene(batch, torch_stream(0, "uniform", number))
        drawn = torch.cdist(moments(imputed.image), found.bank.flatten(0, 1)).argmin(dim=1)
        counts.view(-1).index_add_(0, drawn, torch.ones(len(drawn)))
        of_label.index_put_((batch.label, imputed.environment), torch.ones(1), accumulate=True)
    share = counts / counts.sum()
    assert (share * environments * styles - 1).abs().max() < 0.25
    of_label /= of_label.sum(dim=1, keepdim=True)
    assert (of_label * environments - 1).abs().max() < 0.15


def test_every_image_can_be_brought_to_the_mean_style(
    run: Path, screen: Screen, batch: Batch
) -> None:
    found = replace(load_intervention(run, screen), to_mean=True)
    imputed = found.intervene(batch, torch_stream(0, "x"))
    mean = found.bank.mean(dim=(0, 1)).expand(len(batch), -1)
    torch.testing.assert_close(moments(imputed.image), mean, rtol=1e-3, atol=1e-3)
    assert torch.equal(imputed.environment, batch.environment)
    again = found.intervene(batch, torch_stream(1, "y"))
    assert torch.equal(imputed.image, again.image)


def test_held_out_rows_stay_as_they_are(run: Path, screen: Screen, batch: Batch) -> None:
    held = Batch(batch.image, batch.label, batch.environment, batch.row, held_out=7)
    found = load_intervention(run, screen).intervene(held, torch_stream(0, "x"))
    assert torch.equal(found.image[-7:], batch.image[-7:])
    assert torch.equal(found.environment[-7:], batch.environment[-7:])
    assert (found.image[:-7] != batch.image[:-7]).flatten(1).any(dim=1).all()


def test_shares_of_several_processes_are_those_of_one(
    run: Path, screen: Screen, batch: Batch
) -> None:
    found = load_intervention(run, screen)
    whole = found.intervene(batch, torch_stream(0, "x"))
    for rank in range(2):
        own = Batch(batch.image[rank::2], batch.label[rank::2], batch.environment[rank::2],
                    batch.row[rank::2])  # fmt: skip
        share = found.intervene(own, torch_stream(0, "x"), rank, 2)
        assert torch.equal(share.environment, whole.environment[rank::2])
        torch.testing.assert_close(share.image, whole.image[rank::2])


def test_the_bank_holds_styles_of_training_rows_alone(
    run: Path, screen: Screen, problem: Problem, batch: Batch
) -> None:
    found = load_intervention(run, screen)
    assert found.bank.shape == (len(problem.environment.names), 4, 4)
    assert found.bank.dtype == torch.float32
    own = moments(batch.image)
    for code, styles in enumerate(found.bank):
        rows = batch.environment == code
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(styles, own[rows], compute_mode=exact)
        assert distance.min(dim=1).values.max() < 1e-4
        assert len(distance.argmin(dim=1).unique()) == len(styles)


def test_a_small_environment_repeats_its_rows(
    source: Path, screen: Screen, problem: Problem, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = intervened(make_config, source, bank=40)
    made = begin_intervention(config, screen, problem, tmp_path, open_run(source), CPU)
    assert made is not None
    train = problem.environment.codes[problem.fold.rows("train")]
    for code, styles in enumerate(made.bank):
        rows = int((train == code).sum())
        assert rows < 40
        assert len(styles.unique(dim=0)) == rows


def test_a_style_of_several_images_is_the_mean_of_their_codes(
    source: Path, screen: Screen, problem: Problem, make_config: MakeConfig, tmp_path: Path
) -> None:
    def bank(styles: int, images: int) -> torch.Tensor:
        options = InterventionOptions(intervene=source, bank=styles, style_images=images)
        config = make_config("erm").model_copy(update={"intervention": options})
        made = begin_intervention(config, screen, problem, tmp_path, open_run(source), CPU)
        assert made is not None
        return made.bank

    torch.testing.assert_close(bank(2, 3), bank(6, 1).unflatten(1, (2, 3)).mean(dim=2))


def test_no_gradient_reaches_the_imputer(run: Path, screen: Screen, batch: Batch) -> None:
    found = load_intervention(run, screen)
    assert not found.imputer.training
    imputed = found.intervene(batch, torch_stream(0, "x"))
    assert not imputed.image.requires_grad
    assert not any(parameter.requires_grad for parameter in found.imputer.parameters())


def test_training_and_validation_see_imputed_images_alone(
    source: Path,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation sees the same images every time, training others in every step."""
    seen: dict[bool, list[Batch]] = {True: [], False: []}
    plain = Method.outputs

    def watched(self: Method, batch: Batch, stage: str) -> Any:
        seen[self.training].append(batch)
        return plain(self, batch, stage)

    monkeypatch.setattr(methods.load("erm"), "outputs", watched)
    config = intervened(make_config, source, training={"augment": "dihedral"})
    out = fit(config, screen.path, tmp_path / "run", quiet=True).path
    bank = load_intervention(out, screen).bank.flatten(0, 1)
    for batches in seen.values():
        assert len(batches) >= 3
        for batch in batches:
            assert torch.cdist(moments(batch.image), bank).min(dim=1).values.max() < 1e-3
    each = len(seen[False]) // 3
    for before, after in zip(seen[False], seen[False][each:], strict=False):
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.environment, after.environment)
    environments = [batch.environment.tolist() for batch in seen[True]]
    assert environments[0] != environments[1]


def test_labels_are_drawn_uniformly_unless_the_user_says_otherwise(
    source: Path, make_config: MakeConfig
) -> None:
    assert intervened(make_config, source).training.sampler == "label_uniform"
    assert intervened(make_config, source, "coral").training.sampler == "label_uniform"
    given = intervened(make_config, source, training={"sampler": "plain"})
    assert given.training.sampler == "plain"
    assert make_config("erm").training.sampler == "plain"


def test_uniform_labels_reach_the_batches(
    source: Path, problem: Problem, make_config: MakeConfig
) -> None:
    """Of labels with 40, 20 and 4 rows each fills a third."""
    from deconfound.training.batches import sampler_of

    train = problem.fold.rows("train")
    label = problem.label.codes.copy()
    label[train] = np.repeat([0, 1, 2], [len(train) - 24, 20, 4])
    skewed = Problem(**(vars(problem) | {"label": problem.label._replace(codes=label)}))
    config = intervened(make_config, source)
    stage = methods.load("erm")(config.options, task(problem)).stages(6)[0]
    sampler = sampler_of(config, skewed, "train", stage)
    drawn = np.concatenate([sampler.rows(step) for step in range(100)])
    assert set(drawn) <= set(train)
    np.testing.assert_allclose(np.bincount(label[drawn]) / len(drawn), 1 / 3, atol=0.04)


def task(problem: Problem) -> Any:
    from deconfound.methods.contract import Task

    return Task(2, 24, len(problem.label.names), len(problem.environment.names))


def test_the_run_is_whole_without_its_source(
    source: Path, run: Path, screen: Screen, problem: Problem
) -> None:
    """Pixel scaling and weights are the source's; everything is covered by the checksums."""
    opened, theirs = open_run(run), open_run(source)
    assert opened.config.title == "erm+restain"
    method, intensity = theirs.load(screen)
    own = load_intervention(run, screen)
    for name, value in method.state_dict().items():
        assert torch.equal(own.imputer.state_dict()[name], value), name
    assert torch.equal(opened.load(screen)[1].offset, intensity.offset)
    assert torch.equal(own.intensity.scale, intensity.scale)
    about = json.loads((run / "intervention.json").read_text())
    assert about["method"] == "restain"
    assert tuple(about["environments"]) == problem.environment.names
    assert (
        about["model_sha256"]
        == json.loads((source / "checksums.json").read_text())["model.safetensors"]
    )
    sums = json.loads((run / "checksums.json").read_text())
    assert {"intervention.json", "intervention.safetensors"} <= sums.keys()
    assert "whole" in check(run)


@pytest.mark.parametrize("file", ["intervention.safetensors", "intervention.json"])
def test_a_changed_copy_is_refused(run: Path, screen: Screen, file: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(UserError, match="changed since the run ended"):
        load_intervention(copy, screen)
    with pytest.raises(UserError, match=file):
        check(copy)


def test_a_configuration_survives_its_file(
    source: Path, run: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = intervened(make_config, source)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    for file in (tmp_path / "config.yaml", run / "config.yaml"):
        assert read_config(file).model_dump() == config.model_dump()
    plain = dump_config(make_config("erm"))
    assert "interven" not in plain
    assert "imputer" not in plain


def test_a_fit_opens_its_source_once(
    source: Path,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []

    def opening(path: Path) -> Run:
        opened.append(path)
        return open_run(path)

    monkeypatch.setattr(source_run, "open_run", opening)
    config = intervened(make_config, source, training={"steps": 1})
    fit(config, screen.path, tmp_path / "run", quiet=True)
    assert opened == [source]


def test_a_run_resumed_without_its_source_ends_with_the_same_bits(
    source: Path,
    run: Path,
    screen: Screen,
    make_config: MakeConfig,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(Exception):
        pass

    def kill(self: Training, *_: Any) -> None:
        if self.position.done == 3:
            raise Killed

    moved = tmp_path / "elsewhere"
    config = intervened(make_config, source)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_stop_if_asked", kill)
        with pytest.raises(Killed):
            fit(config, screen.path, tmp_path / "run", quiet=True)
    assert "not finished" in check(tmp_path / "run")
    source.rename(moved)
    try:
        fit(config, screen.path, tmp_path / "run", quiet=True)
    finally:
        moved.rename(source)
    assert_same_run(tmp_path / "run", run)
    assert (tmp_path / "run" / "intervention.json").read_bytes() == (
        run / "intervention.json"
    ).read_bytes()


def test_nothing_held_out_is_read(
    run: Path,
    screen: Screen,
    restain: str,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    """Both runs made again where held-out pixels and labels are noise write the same."""
    part = pose(screen, make_config("erm").data).fold.part
    stream = np.random.default_rng(7)
    images, table = screen.read(np.arange(len(screen))), screen.table.copy()
    hidden = np.isin(part, ["test", "id_test", "unused"])
    images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
    table.loc[part == "test", "compound"] = stream.choice(["c0", "new"], (part == "test").sum())
    mutated = make_screen(tmp_path / "mutated", images, table)
    fit(make_config(restain, seed=5), mutated.path, tmp_path / "source" / "run", quiet=True)
    config = intervened(make_config, tmp_path / "source" / "run")
    again = fit(config, mutated.path, tmp_path / "run", quiet=True).path
    for file in [*WRITTEN, *(file.name for file in run.glob("*.safetensors"))]:
        assert (again / file).read_bytes() == (run / file).read_bytes(), file
    plain = fit(make_config("erm"), screen.path, tmp_path / "plain", quiet=True).path
    assert (plain / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fold": "plate=S2/P1"}, "its --fold is plate=S1/P1, here plate=S2/P1"),
        ({"val_fraction": 0.3}, "its --val-fraction is 0.2, here 0.3"),
        ({"split_seed": 4}, "its --split-seed is 0, here 4"),
        ({"id_test_fraction": 0.2}, "its --id-test-fraction is 0.1, here 0.2"),
        ({"environment": ("series", "plate")}, "its --environment is plate, here series plate"),
        ({"label": "section"}, "its --label is compound, here section"),
        ({"transform": "arcsinh"}, "its --transform is none, here arcsinh"),
        ({"scaling": "unit"}, "its --scaling is standardise, here unit"),
    ],
)
def test_other_data_options_are_refused(
    source: Path,
    screen: Screen,
    make_config: MakeConfig,
    given: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    config = intervened(make_config, source, data=given)
    with pytest.raises(UserError, match=message):
        fit(config, screen.path, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_same_data_said_in_other_words_are_taken(
    source: Path, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    said = {"label": "compound", "environment": ("plate",), "transform": "none"}
    fit(intervened(make_config, source, data=said), screen.path, tmp_path / "run", quiet=True)


def test_runs_that_cannot_intervene_are_refused(
    run: Path,
    source: Path,
    screen: Screen,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(path: Path, message: str, on: Screen = screen) -> None:
        with pytest.raises(UserError, match=message):
            fit(intervened(make_config, path), on.path, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    refused(finished_runs("erm"), r"erm cannot impute images; fit one of .*restain")
    refused(run, r"erm\+restain cannot impute images")
    refused(tmp_path / "nothing", "not a run")
    images = screen.read(np.arange(len(screen)))[::-1]
    other = make_screen(tmp_path / "other", np.ascontiguousarray(images), screen.table)
    refused(source, "was trained on another screen", other)
    seeing = type(open_run(source).config.options)
    monkeypatch.setattr(seeing, "sees_held_out", property(lambda self: self.optimizer == "adamw"))
    monkeypatch.setattr(methods.load("erm").Options, "sees_held_out", False)
    refused(source, "restain-da saw images of test rows")


def test_flags_reach_the_run(
    source: Path, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "erm", str(screen.path), "--out", str(tmp_path / "run"), "--quiet"]
    words += ["--intervene", str(source), "--bank", "3", "--correction-draws", "2"]
    words += [
        "--fold",
        "plate=S1/P1",
        "--val-fraction",
        "0.2",
        "--steps",
        "2",
        "--batch-size",
        "16",
    ]
    words += ["--device", "cpu", "--precision", "32", "--threads", "1"]
    cli.main(words)
    run = open_run(tmp_path / "run")
    assert run.config.intervention == InterventionOptions(
        intervene=source, bank=3, correction_draws=2
    )
    assert run.config.imputer == "restain"
    assert run.config.training.sampler == "label_uniform"
    cli.main(words)
    again = [*words[:4], str(tmp_path / "again"), *words[5:]]
    cli.main([*again, "--config", str(tmp_path / "run" / "config.yaml")])
    assert read_config(tmp_path / "again" / "config.yaml").model_dump() == run.config.model_dump()
    with pytest.raises(SystemExit):
        cli.main([*again, "--bank", "0"])
    assert "--bank" in capsys.readouterr().err


def test_every_method_can_be_intervened_on(
    source: Path, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    for name in ("irm", "mixstyle"):
        out = tmp_path / name
        done = fit(intervened(make_config, source, name), screen.path, out, quiet=True)
        assert done.config.title == f"{name}+restain"


def test_an_intervention_knows_its_styles(run: Path, screen: Screen) -> None:
    found = load_intervention(run, screen)
    assert isinstance(found, Intervention)
    assert len(found.targets) == found.bank.shape[0] * 4
    assert torch.equal(found.targets[5], found.bank[1, 1])
