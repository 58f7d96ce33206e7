"""Images that keep how their style differs from the mean style of their environment."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deconfound import cli
from deconfound.config import InterventionOptions
from deconfound.correction import correction_of, represent
from deconfound.data.batch import Batch, BatchReader
from deconfound.data.counterfactual import counterfactual
from deconfound.data.screen import Screen
from deconfound.data.simulate import SimulateConfig, simulate
from deconfound.errors import UserError
from deconfound.fit import fit
from deconfound.imputation import imputation, interventions
from deconfound.intervention import begin_intervention, load_intervention
from deconfound.problem import Problem, pose
from deconfound.relative_style import mean_style_of, origins_of
from deconfound.run import Run, RunConfig, open_run
from deconfound.streams import torch_stream
from deconfound.styles import Styles, styles_of
from deconfound.transfer_imputed import impute

MakeConfig = Callable[..., RunConfig]
CPU = torch.device("cpu")


def relative_config(make_config: MakeConfig, source: Path, **given: object) -> RunConfig:
    options = InterventionOptions(intervene=source, bank=4, relative_style="all")
    values = dict(make_config("erm", **given)) | {"intervention": options, "imputer": "restain"}
    return type(make_config("erm"))(**values)


@pytest.fixture(scope="module")
def source(
    restain: str, screen: Screen, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("source") / "run"
    return fit(make_config(restain, seed=5), screen.path, out, quiet=True).path


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
    codes = problem.environment.codes
    return BatchReader(screen, problem.label.codes, codes, scaling, CPU).read(np.arange(96))


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
    assert found.mean is not None
    torch.testing.assert_close(found.mean, mean)
    training = Batch(batch.image[rows], batch.label[rows], batch.environment[rows], rows)
    imputed = found.intervene(training, torch_stream(0, "x"))
    drawn = torch.randint(found.styles, (len(rows),), generator=torch_stream(0, "x"))
    expected = moved(training.image, mean[training.environment], found.bank.flatten(0, 1)[drawn])
    torch.testing.assert_close(imputed.image, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(imputed.environment, drawn // 4)


def test_an_image_without_environment_takes_the_style_over(
    run: Run, screen: Screen, batch: Batch
) -> None:
    found = load_intervention(run.path, screen)
    drawn = torch.arange(len(batch)) % found.styles
    nowhere = mean_style_of(found.mean, torch.full((len(batch),), -1))
    assert nowhere.isnan().all()
    expected = found.impute(batch.image, drawn)
    torch.testing.assert_close(found.impute(batch.image, drawn, nowhere), expected)
    known = found.mean[batch.environment.clamp(min=0)]
    assert not torch.allclose(found.impute(batch.image, drawn, known), expected, atol=1e-2)


def test_an_image_given_more_than_an_imputer_takes_at_once(
    run: Run, screen: Screen, batch: Batch
) -> None:
    found = load_intervention(run.path, screen)
    image, drawn = batch.image.repeat(3, 1, 1, 1), torch.arange(3 * len(batch)) % found.styles
    known = found.mean[batch.environment.clamp(min=0)].repeat(3, 1)
    each = [
        found.impute(image[i : i + 1], drawn[i : i + 1], known[i : i + 1])
        for i in range(len(image))
    ]
    torch.testing.assert_close(found.impute(image, drawn, known), torch.cat(each))


def test_origins_are_of_training_rows_where_there_are_some(
    run: Run, screen: Screen, problem: Problem, batch: Batch, styles: Styles
) -> None:
    origins = origins_of(run, screen, styles, "all", 0)
    part, plate = problem.fold.part, screen.coded(("plate",))
    own = moments(batch.image)
    seen = origins.of(torch.arange(len(screen)))
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
    origins = origins_of(run, marked, styles, "controls", 0)
    for code, name in enumerate(plate.names):
        here = (plate.codes == code) & controls
        rows = here & train if name in run.environments else here
        torch.testing.assert_close(origins.mean[code], own[rows].mean(dim=0))
    config = relative_config(make_config, source)
    options = config.intervention.model_copy(update={"relative_style": "controls"})
    config = config.model_copy(update={"intervention": options})
    made = begin_intervention(config, marked, problem, tmp_path, open_run(source), CPU)
    assert made is not None
    assert made.mean is not None
    of_controls = own[train & controls]
    distance = torch.cdist(made.bank.flatten(0, 1), of_controls).min(dim=1).values
    assert distance.max() < 1e-3
    drawn = interventions(marked, problem, "test", 100, 0, 2, "controls")
    assert controls[drawn.style].all()


def test_an_environment_without_controls_is_refused(
    run: Run, screen: Screen, styles: Styles
) -> None:
    kind = np.where(screen.table["plate"] == "P2", "trt", "negcon")
    marked = replace(screen, table=screen.table.assign(Metadata_Control_Type=kind))
    said = "P2 has no negative control, over which its mean style is taken; use --relative-st"
    with pytest.raises(UserError, match=said):
        origins_of(run, marked, styles, "controls", 0)
    with pytest.raises(UserError, match="no controls, no row has Metadata_Control_Type = negcon"):
        origins_of(run, with_controls(screen, ()), styles, "controls", 0)


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
    source = origins_of(run, screen, styles, "all", run.config.seed).of(some)
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
    styles: Styles,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    images, table = screen.read(np.arange(len(screen))), screen.table
    empty = make_screen(tmp_path / "empty", images, table.assign(plate=None))
    with pytest.raises(UserError, match="plate is empty in every row, and with relative styles"):
        correction_of(run, empty, CPU)
    lacking = replace(screen, table=table.drop(columns="plate"))
    with pytest.raises(UserError, match="lacks the column plate, and with relative styles"):
        origins_of(run, lacking, styles, "all", 0)


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


def test_transfer_moves_a_screen_as_its_environments_do(
    source: Path, screen: Screen, tmp_path: Path
) -> None:
    run = open_run(source)
    to = run.environments[0]
    done = impute(source, screen.path, tmp_path / "out", to=to, relative_style="all", quiet=True)
    imputed = done.screen.read(np.arange(len(screen))).astype(float)
    plate = screen.coded(("plate",))
    means = [imputed[plate.codes == code].mean(axis=(0, 2, 3)) for code in range(len(plate.names))]
    np.testing.assert_allclose(means, np.broadcast_to(means[0], np.shape(means)), rtol=0.05)
    single = impute(source, screen.path, tmp_path / "single", to=to, quiet=True)
    other = single.screen.read(np.arange(len(screen))).astype(float)
    own = screen.read(np.arange(len(screen))).mean(axis=(2, 3))
    kept, lost = (
        np.corrcoef(image.mean(axis=(2, 3))[plate.codes == 0, 0], own[plate.codes == 0, 0])[0, 1]
        for image in (imputed, other)
    )
    assert kept > 0.95
    assert abs(lost) < 0.7


def test_relative_images_are_judged_as_they_are_made(
    restain: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    """The toy and the scaling of pixels are affine, so the error is known in stored units."""
    config = SimulateConfig(
        cells=240, labels=3, series=2, plates=2, sections=1, size=24, variation=0.2, seed=1
    )
    simulated = simulate(tmp_path / "screen", config=config, threads=1, quiet=True)
    data = {"fold": "Metadata_Plate=S1/P1", "label": None, "environment": ()}
    source = fit(make_config(restain, data=data), simulated.path, tmp_path / "run", quiet=True)
    scores = imputation(
        source.path, simulated.path, tmp_path / "scores.parquet", style_images=3,
        relative_style="all", oracle_steps=2, quiet=True,
    )  # fmt: skip
    of_run = scores[(scores.method == restain) & (scores.representation == "image")]
    problem = pose(simulated, source.config.data)
    drawn = interventions(simulated, problem, "test", 2000, 0, 3)
    every = moments(torch.from_numpy(simulated.read(np.arange(240)).astype(float)))
    taken_in = every[drawn.rows].mean(dim=0).expand(len(drawn.rows), -1)
    image = torch.from_numpy(simulated.read(drawn.rows).astype(float))
    imputed = moved(image, taken_in, every[torch.from_numpy(drawn.style)].mean(dim=1))
    true = np.concatenate(
        [
            counterfactual(simulated, [row], place)
            for row, place in zip(drawn.rows, drawn.rendering, strict=True)
        ]
    ).astype(float)
    distance = np.abs(imputed.clamp(0, np.iinfo(simulated.dtype).max).numpy() - true).sum()
    expected = distance / np.abs(image.numpy() - true).sum()
    found = of_run.set_index(["metric", "part"]).value["imputation_error", "test"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_flag_belongs_to_to(
    source: Path, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer", str(source), str(screen.path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--relative-style", "all"])
    assert stopped.value.code == 2
    assert "--relative-style belongs to --to ENVIRONMENT; add it" in capsys.readouterr().err
