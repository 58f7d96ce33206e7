"""Images are brought to training environments before a run embeds them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deconfound import embed
from deconfound.config import InterventionOptions
from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.screens.screen import Screen
from deconfound.embeddings import stream
from deconfound.embeddings.file import PREDICTED, read_embeddings
from deconfound.embeddings.stream import EmbeddingStream
from deconfound.evaluation.measure import measure
from deconfound.experiments.running import job
from deconfound.intervention.embedder import Correction, correction_of, represent
from deconfound.intervention.intervention import load_intervention
from deconfound.runs.config import RunConfig
from deconfound.runs.run import Run, open_run
from deconfound.training.fit import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(
    source: Path,
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], Run]:
    """ERM trained on the interventional distribution, with so many draws at test time."""
    folder = tmp_path_factory.mktemp("runs")

    def run(draws: int) -> Run:
        if not (folder / str(draws)).exists():
            options = InterventionOptions(intervene=source, bank=5, correction_draws=draws)
            values = dict(make_config("erm", seed=3)) | {"intervention": options}
            config = type(make_config("erm"))(**values)
            fit(config, screen.path, folder / str(draws), quiet=True)
        return open_run(folder / str(draws))

    return run


def parts(run: Run, screen: Screen) -> tuple[Any, Batch, Correction | None]:
    method, intensity = run.load(screen)
    reader = BatchReader(screen, intensity=intensity, device=CPU)
    return method, reader.read(np.arange(len(screen))), correction_of(run, screen, CPU)


def test_two_draws_are_the_mean_of_two_single_draws(
    runs: Callable[[int], Run], screen: Screen
) -> None:
    method, batch, correction = parts(runs(2), screen)
    assert correction is not None
    method.requires_grad_(False)
    found, predicted = represent(method, batch, correction)
    bank = load_intervention(runs(2).path, screen).bank.flatten(0, 1)
    each, chances = [], []
    for style in correction.styles(batch.row).T:
        sd, mean = torch.std_mean(batch.image, dim=(2, 3), keepdim=True)
        new_mean, new_sd = bank[style][..., None, None].chunk(2, dim=1)
        embedded = method.embed((batch.image - mean) / sd * new_sd + new_mean)
        each.append(embedded["representation"])
        chances.append(method.predict(embedded).softmax(dim=1))
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    torch.testing.assert_close(found["representation"], (each[0] + each[1]) / 2)
    assert predicted is not None
    assert torch.equal(predicted, (chances[0] + chances[1]).argmax(dim=1))


def test_styles_depend_on_the_seed_and_the_row_alone(
    runs: Callable[[int], Run], screen: Screen
) -> None:
    of_run = correction_of(runs(2), screen, CPU)
    assert of_run is not None
    found, rows = of_run.intervention, torch.arange(4000)
    many = Correction(found, 3, 0).styles(rows)
    assert torch.equal(Correction(found, 1, 0).styles(rows), many[:, :1])
    order = torch.randperm(4000)
    assert torch.equal(Correction(found, 3, 0).styles(rows[order]), many[order])
    assert not torch.equal(Correction(found, 3, 1).styles(rows), many)
    share = torch.bincount(many.flatten(), minlength=len(found.targets)) / many.numel()
    assert (share * len(found.targets) - 1).abs().max() < 0.2
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.05


def test_no_draw_embeds_the_image_as_it_is(runs: Callable[[int], Run], screen: Screen) -> None:
    method, batch, correction = parts(runs(0), screen)
    assert correction is None
    with torch.no_grad():
        found, _ = represent(method, batch, correction)
        assert torch.equal(found["representation"], method.embed(batch.image)["representation"])


def embedded(run: Run, screen: Screen, out: Path) -> np.ndarray:
    found = embed(run.path, screen.path, out, device="cpu", threads=1, quiet=True)
    return found.representations["representation"]


def test_embed_corrects_whatever_the_batches(
    runs: Callable[[int], Run], screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch, correction = parts(runs(1), screen)
    with torch.no_grad():
        expected, predicted = represent(method, batch, correction)
    whole = embedded(runs(1), screen, tmp_path / "whole.h5ad")
    np.testing.assert_allclose(whole, expected["representation"], rtol=1e-4, atol=1e-5)
    about = read_embeddings(tmp_path / "whole.h5ad")
    assert about.about["method"] == "erm+restain"
    assert about.about["config"]["intervention"]["correction_draws"] == 1
    assert predicted is not None
    labels = np.array(runs(1).labels)[predicted]
    assert about.table[PREDICTED].astype(str).tolist() == labels.tolist()
    monkeypatch.setattr(stream, "BATCH", 7)
    monkeypatch.setattr(importlib.import_module("deconfound.embeddings.embed"), "CHUNK", 40)
    small = embedded(runs(1), screen, tmp_path / "small.h5ad")
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5)
    plain = embedded(runs(0), screen, tmp_path / "plain.h5ad")
    assert not np.allclose(plain, whole, atol=1e-2)


def test_finished_chunks_of_other_draws_are_not_taken(
    runs: Callable[[int], Run], screen: Screen
) -> None:
    """The weights are the same, the embeddings are not."""
    streams = [
        EmbeddingStream(runs(draws).path, screen.path, device="cpu", threads=1)
        for draws in (0, 1, 2)
    ]
    assert len({tuple(stream.identity()) for stream in streams}) == 3
    models = {(runs(draws).path / "model.safetensors").read_bytes() for draws in (0, 1, 2)}
    assert len(models) == 1


def test_a_sweep_predicts_what_embed_predicts(
    runs: Callable[[int], Run], screen: Screen, tmp_path: Path
) -> None:
    run = runs(2)
    problem = pose(screen, run.config.data)
    rows, codes = job._predict(run, screen, problem, None)
    found = embed(run.path, screen.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)
    predicted = found.table[PREDICTED].astype(str).to_numpy()[rows]
    assert predicted.tolist() == np.array(problem.all_labels.names)[codes].tolist()
    scores = measure([tmp_path / "e.h5ad"], quiet=True)
    assert set(scores["method"]) == {"erm+restain"}
