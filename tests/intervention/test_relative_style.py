"""Images that keep how their style differs from the mean style of their environment."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from deconfound import cli
from deconfound.config import ImputeInto, InterventionOptions, RelativeTo
from deconfound.counterfactuals.impute import impute
from deconfound.counterfactuals.judge import imputation, interventions
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.errors import UserError
from deconfound.intervention.embedder import correction_of, represent
from deconfound.intervention.intervention import begin_intervention, load_intervention
from deconfound.intervention.styles import (
    Styles,
    mean_style_of,
    source_styles_of,
    style_reference,
    styles_of,
)
from deconfound.runs.config import RunConfig
from deconfound.runs.run import Run, open_run
from deconfound.runtime.seeds import torch_stream
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions
from deconfound.training.fit import fit

MakeConfig = Callable[..., RunConfig]
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def relative_config(
    make_config: MakeConfig,
    source: Path,
    over: RelativeTo = "all",
    into: ImputeInto = "drawn",
    **given: object,
) -> RunConfig:
    options = InterventionOptions(intervene=source, relative_style=over, impute_into=into)
    values = dict(make_config("erm", **given)) | {"intervention": options, "imputer": "restain"}
    return type(make_config("erm"))(**values)


@pytest.fixture(scope="module")
def run(
    source: Path, screen: Screen, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    out = tmp_path_factory.mktemp("relative") / "run"
    return fit(relative_config(make_config, source), screen.path, out, quiet=True)


@pytest.fixture
def problem(screen: Screen, run: Run) -> Problem:
    return pose(screen, run.config.data)


@pytest.fixture
def batch(run: Run, screen: Screen, problem: Problem) -> Batch:
    """All rows; those held out have no environment."""
    scaling = load_intervention(run.path, screen).intensity
    reader = BatchReader(
        screen,
        label=problem.label.codes,
        environment=problem.environment.codes,
        intensity=scaling,
        device=CPU,
    )
    return reader.read(np.arange(96))


@pytest.fixture
def styles(run: Run, screen: Screen) -> Styles:
    found = load_intervention(run.path, screen)
    unknown = np.full(len(screen), -1, dtype=np.int64)
    return styles_of(found.imputer, found.intensity, screen, unknown, None, CPU)


def moments(image: torch.Tensor) -> torch.Tensor:
    sd, mean = torch.std_mean(image, dim=(2, 3))
    return torch.cat([mean, sd], dim=1)


def moved(image: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The affine map of each channel that takes the moments (B, 2 C) of `source` to `target`."""
    (from_mean, from_sd), (to_mean, to_sd) = (
        code[..., None, None].chunk(2, dim=1) for code in (source, target)
    )
    return (image - from_mean) / from_sd * to_sd + to_mean


def test_training_images_move_as_their_environment_does(
    run: Run, screen: Screen, problem: Problem, batch: Batch
) -> None:
    found = load_intervention(run.path, screen)
    train = problem.fold.rows("train")
    of_image, code = moments(batch.image), torch.from_numpy(problem.environment.codes)
    rows = torch.from_numpy(train)
    each = [rows[code[rows] == e] for e in range(len(problem.environment.names))]
    mean = torch.stack([of_image[members].mean(dim=0) for members in each])
    torch.testing.assert_close(found.bank, mean[:, None])
    training = Batch(batch.image[rows], batch.label[rows], batch.environment[rows], rows)
    imputed = found.intervene(training, torch_stream(0, "x"))
    drawn = torch.randint(len(found.targets), (len(rows),), generator=torch_stream(0, "x"))
    expected = moved(training.image, mean[training.environment], mean[drawn])
    torch.testing.assert_close(imputed.image, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(imputed.environment, drawn)


def test_environments_meet_in_the_mean_style_and_cells_stay_different(
    source: Path,
    screen: Screen,
    make_config: MakeConfig,
    problem: Problem,
    batch: Batch,
    tmp_path: Path,
) -> None:
    """Trained so, a run brings whatever it embeds to the same style."""
    config = relative_config(make_config, source, into="mean")
    run = fit(config, screen.path, tmp_path / "run", quiet=True)
    correction = correction_of(run, screen, CPU)
    assert correction is not None
    assert correction.source_styles is not None
    assert correction.intervention.to_mean
    assert not correction.styles(batch.row).any()
    origin = correction.source_styles.of(batch.row)
    mean = correction.intervention.bank.mean(dim=(0, 1)).expand_as(origin)
    expected = moved(batch.image, origin, mean)
    train = torch.from_numpy(problem.fold.rows("train"))
    for plate in origin.unique(dim=0):
        of_plate = moments(expected)[train[(origin[train] == plate).all(dim=1)]]
        torch.testing.assert_close(of_plate.mean(dim=0), mean[0], **CLOSE)
        assert of_plate.std(dim=0).min() > 1e-2
    method = run.load(screen)[0]
    found, _ = represent(method, batch, correction)
    wanted = method.embed(expected.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found["representation"], wanted["representation"], **CLOSE)


def test_several_draws_of_the_mean_style_are_refused(source: Path) -> None:
    given = {"intervene": source, "impute_into": "mean"}
    assert InterventionOptions(**given, correction_draws=0).correction_draws == 0
    with pytest.raises(ValidationError, match="imputed in one way only; give 1 or 0"):
        InterventionOptions(**given, correction_draws=2)


def test_an_image_without_environment_takes_the_style_over(
    run: Run, screen: Screen, batch: Batch
) -> None:
    found = load_intervention(run.path, screen)
    drawn = torch.arange(len(batch)) % len(found.targets)
    nowhere = mean_style_of(found.bank[:, 0], torch.full((len(batch),), -1))
    assert nowhere.isnan().all()
    expected = found.impute(batch.image, drawn)
    torch.testing.assert_close(found.impute(batch.image, drawn, nowhere), expected)
    known = found.bank[batch.environment.clamp(min=0), 0]
    assert not torch.allclose(found.impute(batch.image, drawn, known), expected, atol=1e-2)


def test_an_image_given_more_than_an_imputer_takes_at_once(
    run: Run, screen: Screen, batch: Batch
) -> None:
    found = load_intervention(run.path, screen)
    image, drawn = batch.image.repeat(3, 1, 1, 1), torch.arange(3 * len(batch)) % len(found.targets)
    known = found.bank[batch.environment.clamp(min=0), 0].repeat(3, 1)
    each = [
        found.impute(image[i : i + 1], drawn[i : i + 1], known[i : i + 1])
        for i in range(len(image))
    ]
    torch.testing.assert_close(found.impute(image, drawn, known), torch.cat(each))


def test_origins_are_of_training_rows_where_there_are_some(
    run: Run, screen: Screen, problem: Problem, batch: Batch, styles: Styles
) -> None:
    source_styles = source_styles_of(run, screen, styles, "all", 0)
    part, plate = problem.fold.part, screen.coded(("plate",))
    own = moments(batch.image)
    seen = source_styles.of(torch.arange(len(screen)))
    for code, name in enumerate(plate.names):
        here = plate.codes == code
        known = name in run.environments
        assert known == (part[here] == "train").any()
        rows = here & (part == "train") if known else here
        expected = own[rows].mean(dim=0).expand(here.sum(), -1)
        torch.testing.assert_close(seen[torch.from_numpy(here)], expected)


def with_controls(screen: Screen, labels: tuple[str, ...]) -> Screen:
    kind = np.where(screen.table["compound"].isin(labels), "negcon", "trt")
    return replace(screen, table=screen.table.assign(Metadata_Control_Type=kind))


def test_with_controls_every_mean_style_is_theirs(
    source: Path,
    run: Run,
    screen: Screen,
    problem: Problem,
    batch: Batch,
    styles: Styles,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    marked = with_controls(screen, ("c1",))
    own, plate = moments(batch.image), screen.coded(("plate",))
    controls, train = (screen.table["compound"] == "c1").to_numpy(), problem.fold.part == "train"
    source_styles = source_styles_of(run, marked, styles, "controls", 0)
    for code, name in enumerate(plate.names):
        here = (plate.codes == code) & controls
        rows = here & train if name in run.environments else here
        torch.testing.assert_close(source_styles.mean[code], own[rows].mean(dim=0))
    config = relative_config(make_config, source, "controls")
    made = begin_intervention(config, marked, problem, tmp_path, open_run(source), CPU)
    assert made is not None
    for style, name in zip(made.bank, run.environments, strict=True):
        rows = train & controls & (plate.codes == plate.names.index(name))
        torch.testing.assert_close(style, own[rows].mean(dim=0, keepdim=True))
    named = run.config.data.model_copy(update={"controls": ("c1",)})
    of_named = replace(run, config=run.config.model_copy(update={"data": named}))
    assert torch.equal(
        source_styles_of(of_named, screen, styles, "controls", 0).mean, source_styles.mean
    )


def test_an_environment_without_controls_is_refused_before_training(
    screen: Screen,
    run: Run,
    styles: Styles,
    restain: str,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    held_out = pose(screen, make_config("erm").data).fold.part == "test"
    kind = np.where((screen.table["plate"] == "P2") & ~held_out, "trt", "negcon")
    images, table = screen.read(np.arange(len(screen))), screen.table
    marked = make_screen(tmp_path / "marked", images, table.assign(Metadata_Control_Type=kind))
    other = fit(make_config(restain), marked.path, tmp_path / "source" / "run", quiet=True).path
    said = "P2 has no negative control to take its mean style over; mark one, or choose"
    with pytest.raises(UserError, match=said):
        config = relative_config(make_config, other, "controls")
        fit(config, marked.path, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    said = "no controls, no row has Metadata_Control_Type = negcon; mark them, or choose"
    with pytest.raises(UserError, match=said):
        source_styles_of(run, with_controls(screen, ()), styles, "controls", 0)
    unlabelled = replace(screen, table=table.drop(columns="compound"))
    with pytest.raises(UserError, match="no column Metadata_Control_Type and none of labels"):
        style_reference(unlabelled, run.roles, "controls", (), (), None)


def test_on_another_screen_every_environment_is_compared_with_itself(
    run: Run,
    screen: Screen,
    batch: Batch,
    styles: Styles,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    images = screen.read(np.arange(len(screen)))
    table = screen.table.drop(columns="compound").assign(compound="new")
    table["Metadata_Control_Type"] = np.where(np.arange(96) % 2, "negcon", "trt")
    other = make_screen(tmp_path / "other", images, table)
    own, plate = moments(batch.image), screen.coded(("plate",))
    for over, counts in (("all", np.ones(96, bool)), ("controls", np.arange(96) % 2 == 1)):
        source_styles = source_styles_of(run, other, styles, over, 0)
        for code in range(len(plate.names)):
            expected = own[(plate.codes == code) & counts].mean(dim=0)
            torch.testing.assert_close(source_styles.mean[code], expected)


def test_a_planted_shift_of_an_unseen_environment_is_undone_and_cells_stay_different(
    run: Run, screen: Screen, problem: Problem, batch: Batch
) -> None:
    """All images of the held-out plate three times as bright, with an offset: nothing changes."""
    found = load_intervention(run.path, screen)
    test = torch.from_numpy(problem.fold.rows("test"))
    image, drawn = batch.image[test], torch.zeros(len(test), dtype=torch.int64)
    of_plate = moments(image).mean(dim=0).expand(len(test), -1)
    bright = 3 * image + 2
    of_bright = moments(bright).mean(dim=0).expand(len(test), -1)
    plain = found.impute(image, drawn, of_plate)
    torch.testing.assert_close(found.impute(bright, drawn, of_bright), plain, rtol=1e-4, atol=1e-4)
    assert moments(plain).std(dim=0).min() > 1e-2
    assert moments(found.impute(image, drawn)).std(dim=0).max() < 1e-4


def test_embedding_corrects_by_the_environment_of_each_row(
    run: Run, screen: Screen, batch: Batch, styles: Styles
) -> None:
    correction = correction_of(run, screen, CPU)
    assert correction is not None
    method, _ = run.load(screen)
    method.requires_grad_(False)
    some = torch.arange(3, 50, 7)
    part = replace(batch, image=batch.image[some], row=some)
    found, _ = represent(method, part, correction)
    source = source_styles_of(run, screen, styles, "all", run.config.seed).of(some)
    bank = correction.intervention.bank.flatten(0, 1)[correction.styles(some)[:, 0]]
    expected = method.embed(moved(batch.image[some], source, bank))["representation"]
    torch.testing.assert_close(found["representation"], expected, rtol=1e-4, atol=1e-4)


def test_nothing_held_out_reaches_the_run(
    run: Run,
    restain: str,
    screen: Screen,
    problem: Problem,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    stream = np.random.default_rng(7)
    images = screen.read(np.arange(len(screen)))
    hidden = np.isin(problem.fold.part, ["test", "id_test", "unused"])
    images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
    mutated = make_screen(tmp_path / "mutated", images, screen.table)
    fit(make_config(restain, seed=5), mutated.path, tmp_path / "source" / "run", quiet=True)
    config = relative_config(make_config, tmp_path / "source" / "run")
    again = fit(config, mutated.path, tmp_path / "run", quiet=True).path
    for file in ("metrics.csv", *(file.name for file in run.path.glob("*.safetensors"))):
        assert (again / file).read_bytes() == (run.path / file).read_bytes(), file


def test_a_screen_that_names_no_environments_is_refused(
    run: Run,
    screen: Screen,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    images, table = screen.read(np.arange(len(screen))), screen.table.copy()
    table.loc[[3, 5], "plate"] = None
    empty = make_screen(tmp_path / "empty", images, table)
    said = "plate is empty in 2 rows, first in row 3; fill it in, as an image is compared"
    with pytest.raises(UserError, match=said):
        correction_of(run, empty, CPU)
    lacking = replace(screen, table=table.drop(columns="plate"))
    with pytest.raises(UserError, match="lacks the column plate; add it, as an image is compared"):
        style_reference(lacking, run.roles, "all", (), (), None)


def test_methods_without_means_and_deviations_are_refused(
    restain: str,
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    other = finished_runs("stargan2")
    said = r"--relative-style needs styles made of means and deviations, which stargan2's are not; "
    said += f"leave it out, or use ist, {restain}"
    with pytest.raises(UserError, match=said):
        fit(relative_config(make_config, other), screen.path, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=said):
        impute(other, screen.path, tmp_path / "out", to="S1/P2", relative_style="all", quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("over", ["all", "controls"])
def test_transfer_moves_a_screen_as_its_environments_do(
    over: RelativeTo,
    restain: str,
    screen: Screen,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    """Images of the target stay, but for the rounding; the others go where its mean is."""
    images = screen.read(np.arange(len(screen)))
    table = with_controls(screen, ("c2",)).table
    marked = make_screen(tmp_path / "marked", images, table)
    config = make_config(restain, data={"fold": "series=S1", "environment": ("series", "plate")})
    run = fit(config, marked.path, tmp_path / "run", quiet=True)
    to = run.environments[0]
    out = tmp_path / "out"
    done = impute(run.path, marked.path, out, to=to, relative_style=over, quiet=True)
    imputed = done.screen.read(np.arange(len(screen)))
    place = marked.coded(("series", "plate"))
    train = pose(marked, run.config.data).fold.part == "train"
    of = moments(torch.from_numpy(images.astype(float)))
    counts = np.ones(96, bool) if over == "all" else (table["compound"] == "c2").to_numpy()
    expected = np.empty(images.shape)
    target = counts & train & (place.codes == place.names.index(to))
    for code, name in enumerate(place.names):
        here = place.codes == code
        stand_for = here & counts & (train if name in run.environments else True)
        means = (of[rows].mean(dim=0, keepdim=True) for rows in (stand_for, target))
        expected[here] = moved(torch.from_numpy(images[here].astype(float)), *means).numpy()
    assert np.abs(imputed - expected.clip(0, 65535)).max() <= 1
    already = place.codes == place.names.index(to)
    assert np.abs(imputed[already].astype(int) - images[already]).max() <= 1


@pytest.mark.parametrize("over", ["all", "controls"])
def test_relative_images_are_judged_as_they_are_made(
    over: RelativeTo, restain: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    """The toy and the scaling of pixels are affine, so the error is known in stored units."""
    config = SimulateConfig(
        cells=240, labels=3, series=2, plates=2, sections=1, size=24, variation=0.2, seed=1
    )
    simulated = simulate(tmp_path / "screen", config=config, threads=1, quiet=True)
    data = {"fold": "Metadata_Plate=S1/P1", "label": None, "environment": ()}
    source = fit(make_config(restain, data=data), simulated.path, tmp_path / "run", quiet=True)
    scores = imputation(
        source.path, simulated.path, tmp_path / "scores.parquet", relative_style=over,
        oracle_steps=2, quiet=True,
    )  # fmt: skip
    of_run = scores[(scores.method == restain) & (scores.representation == "image")]
    asked = {"style_images": 1, "relative_style": over}
    assert json.loads(of_run.config.iloc[0])["imputation"] == asked
    problem = pose(simulated, source.config.data)
    drawn = interventions(simulated, problem, "test", 2000, 0)
    every = moments(torch.from_numpy(simulated.read(np.arange(240)).astype(float)))
    control = (simulated.table["Metadata_Control_Type"] == "negcon").to_numpy(dtype=bool)
    counts = control if over == "controls" else np.ones(240, dtype=bool)
    train = problem.fold.part == "train"
    codes = problem.environment.codes
    target = torch.stack(
        [every[counts & train & (codes == one)].mean(dim=0) for one in drawn.environment]
    )
    own = every[counts & (problem.fold.part == "test")].mean(dim=0).expand_as(target)
    image = torch.from_numpy(simulated.read(drawn.rows).astype(float))
    imputed = moved(image, own, target).clamp(0, np.iinfo(simulated.dtype).max).numpy()
    true = np.concatenate(
        [
            counterfactual(simulated, [row], place)
            for row, place in zip(drawn.rows, drawn.rendering, strict=True)
        ]
    ).astype(float)
    expected = np.abs(imputed - true).sum() / np.abs(image.numpy() - true).sum()
    found = of_run.set_index(["metric", "part"]).value["imputation_error", "test"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_comparison_without_controls_is_refused_before_it_trains(
    screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no row has compound = nontargeting; mark them, or choose"):
        given, options = {"relative_style": "controls"}, CompareOptions(methods=("erm+ist",))
        compare(screen.path, tmp_path / "out", options, quiet=True, **given)
    assert list(tmp_path.iterdir()) == []


def test_the_flag_belongs_to_to(
    source: Path, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer", str(source), str(screen.path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--relative-style", "all"])
    assert stopped.value.code == 2
    assert "--relative-style belongs to --to ENVIRONMENT; add it" in capsys.readouterr().err
