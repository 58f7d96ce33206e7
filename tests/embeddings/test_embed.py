import importlib
import json
from collections.abc import Callable
from pathlib import Path
from threading import Semaphore
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.embeddings import stream
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.errors import UserError
from deconfound.methods.scbd import Scbd
from deconfound.runs.config import RunConfig
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

embed_module = importlib.import_module("deconfound.embeddings.embed")
Runs = Callable[[str], Path]


def embedded(run: Path, screen: Screen, out: Path, **named: Any) -> Embeddings:
    return embed(run, screen.path, out, device="cpu", threads=1, quiet=True, **named)


@pytest.fixture(scope="module")
def whole(finished_runs: Runs, screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the tiny screen by SCBD, made at once."""
    out = tmp_path_factory.mktemp("whole") / "e.h5ad"
    embedded(finished_runs("scbd"), screen, out)
    return out


def test_embeddings_are_an_anndata_file_as_the_field_keeps_them(
    whole: Path, screen: Screen, finished_runs: Runs
) -> None:
    data = anndata.read_h5ad(whole)
    assert data.n_obs == len(screen)
    assert list(data.var_names[:2]) == ["content_00", "content_01"]
    np.testing.assert_array_equal(data.X, data.obsm["X_content"])
    sizes = {name: values.shape[1] for name, values in data.obsm.items()}
    assert sizes == {"X_content": 16, "X_style": 16, "X_representation": 256}
    assert all(np.asarray(values).dtype == np.float32 for values in data.obsm.values())
    for column in screen.table.columns:
        assert data.obs[column].astype(str).tolist() == screen.table[column].tolist()
    assert isinstance(data.obs["compound"].dtype, pd.CategoricalDtype)
    run = open_run(finished_runs("scbd"))
    part = pose(screen, run.config.data).fold.part
    assert data.obs[PART].tolist() == part.tolist()
    assert set(data.obs[PREDICTED].dropna()) <= {"c0", "c1", "c2"}
    about = json.loads(data.uns["deconfound"]["json"])
    assert about["method"] == "scbd"
    assert about["fold"] == "plate=S1/P1"
    assert about["seed"] == 0
    assert about["screen"] == "tiny"
    assert about["selection"] == "loss"
    assert about["roles"]["levels"] == ["series", "plate", "section"]
    assert about["config"]["options"]["alpha"] == run.config.model_dump()["options"]["alpha"]
    assert {"commit", "packages"} <= set(about["software"])
    assert about["training"]["device"] == "cpu, 1 threads"
    assert not {"training_seconds", "finished"} & about["training"].keys()


def test_blocks_have_unit_norm(whole: Path) -> None:
    for name in ("content", "style"):
        norms = np.linalg.norm(read_embeddings(whole).representations[name], axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_reading_back_gives_what_was_written(whole: Path, tmp_path: Path) -> None:
    first = read_embeddings(whole)
    write_embeddings(tmp_path / "again.h5ad", first)
    again = read_embeddings(tmp_path / "again.h5ad")
    assert first.about == again.about
    assert first.label().tolist() == again.label().tolist()
    assert first.environment().tolist() == again.environment().tolist()
    for name, values in first.representations.items():
        np.testing.assert_array_equal(values, again.representations[name])


def test_a_killed_call_resumes_without_repeating_a_chunk(
    whole: Path,
    finished_runs: Runs,
    screen: Screen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embed_module, "CHUNK", 20)
    monkeypatch.setattr(stream, "BATCH", 8)
    method_embed, seen = Scbd.embed, []
    keep_chunk, kept = embed_module._keep_chunk, Semaphore(0)

    def keeping(*words: Any) -> None:  # in a thread of its own, when it gets its turn
        keep_chunk(*words)
        kept.release()

    def counting(method: Scbd, image: Any) -> Any:
        seen.append(len(image))
        if len(seen) == 8:  # the second batch of the third chunk
            assert [kept.acquire(timeout=60) for _ in range(2)] == [True, True]
            raise KeyboardInterrupt
        return method_embed(method, image)

    monkeypatch.setattr(embed_module, "_keep_chunk", keeping)
    monkeypatch.setattr(Scbd, "embed", counting)
    out = tmp_path / "e.h5ad"
    with pytest.raises(KeyboardInterrupt):
        embedded(finished_runs("scbd"), screen, out)
    assert not out.exists()
    done = sum(seen[:6])
    assert done == 40
    seen.clear()
    seen.extend([0] * 100)
    found = embedded(finished_runs("scbd"), screen, out)
    assert sum(seen) == len(screen) - done
    expected = read_embeddings(whole)
    for name, values in expected.representations.items():
        np.testing.assert_allclose(found.representations[name], values, rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert [file.name for file in tmp_path.iterdir()] == ["e.h5ad"]

    monkeypatch.undo()
    monkeypatch.setattr(embed_module, "CHUNK", 20)
    monkeypatch.setattr(stream, "BATCH", 8)
    uninterrupted = embedded(finished_runs("scbd"), screen, tmp_path / "u.h5ad")
    for name, values in uninterrupted.representations.items():
        np.testing.assert_array_equal(found.representations[name], values)


def test_chunks_of_another_run_are_not_used(
    finished_runs: Runs, screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.h5ad"
    with monkeypatch.context() as patch:
        patch.setattr(stream.EmbeddingStream, "assembled", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embedded(finished_runs("scbd"), screen, out)
    found = embedded(finished_runs("erm"), screen, out)
    assert set(found.representations) == {"representation"}


@pytest.mark.parametrize("selection", ["loss", "accuracy", "last"])
def test_another_checkpoint_can_be_chosen(
    selection: str, finished_runs: Runs, screen: Screen, tmp_path: Path
) -> None:
    run = open_run(finished_runs("scbd"))
    found = embedded(run.path, screen, tmp_path / "e.h5ad", selection=selection)
    assert found.about["selection"] == selection
    method, intensity = run.load(screen, selection)
    import torch

    with torch.inference_mode():
        pixels = torch.from_numpy(screen.read(np.arange(len(screen))))
        expected = method.embed(intensity(pixels))["content"].numpy()
    np.testing.assert_allclose(found.representations["content"], expected, rtol=1e-4, atol=1e-5)


def test_the_prediction_is_the_label_with_the_largest_logit(
    finished_runs: Runs, screen: Screen, whole: Path
) -> None:
    import torch

    run = open_run(finished_runs("scbd"))
    method, _ = run.load(screen)
    found = read_embeddings(whole)
    with torch.inference_mode():
        values = torch.from_numpy(found.representations["representation"])
        answer = method.predict({"representation": values})
    assert answer is not None
    expected = [run.labels[code] for code in answer.argmax(dim=1)]
    assert found.table[PREDICTED].tolist() == expected


@pytest.mark.parametrize(
    ("channels", "dtype", "said"),
    [
        (1, np.uint16, r"channels a; the run .* was trained on a, b"),
        # Pixels of 8 bits would be scaled as if they were of 16, and all look black.
        (2, np.uint8, r"pixels are uint8; the run .* was trained on uint16"),
    ],
)
def test_other_channels_and_types_of_pixels_are_refused(
    channels: int,
    dtype: type[np.integer[Any]],
    said: str,
    finished_runs: Runs,
    make_screen: Callable[..., Screen],
    make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., npt.NDArray[np.uint16]],
    tmp_path: Path,
) -> None:
    table = make_table(1)
    images = make_images(table)[:, :channels].astype(dtype)
    other = make_screen(tmp_path / "other", images, table)
    with pytest.raises(UserError, match=said):
        embedded(finished_runs("scbd"), other, tmp_path / "e.h5ad")
    assert not (tmp_path / "e.h5ad").exists()


def test_an_unfinished_run_is_refused(finished_runs: Runs, screen: Screen, tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text((finished_runs("erm") / "config.yaml").read_text())
    with pytest.raises(UserError, match="not finished; `deconfound fit` it again"):
        embedded(unfinished, screen, tmp_path / "e.h5ad")


def test_damaged_weights_are_named(finished_runs: Runs, screen: Screen, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_runs("erm"), run)
    model = run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"model\.safetensors: changed since the run ended"):
        embedded(run, screen, tmp_path / "e.h5ad")


def test_an_anndata_file_of_another_program_is_refused(tmp_path: Path) -> None:
    anndata.AnnData(obs=pd.DataFrame(index=["a"])).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(UserError, match="was not written by `deconfound embed`"):
        read_embeddings(tmp_path / "other.h5ad")


def test_percentiles_of_plates_go_with_the_run(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Plates of two series share names; the held-out one takes the limits of all training rows."""
    data = {"transform": "percentile", "percentile_by": "plate", "fold": "plate=S1/P1"}
    run = fit(make_config("erm", data=data), screen.path, tmp_path / "run", quiet=True)
    assert run.groups == ("S1/P2", "S2/P1", "S2/P2")
    found = embedded(run.path, screen, tmp_path / "e.h5ad")
    method, intensity = run.load(screen)
    rows = np.arange(0, len(screen), 7)
    plates = screen.table["series"] + "/" + screen.table["plate"]
    group = [run.groups.index(plate) if plate in run.groups else -1 for plate in plates[rows]]
    assert -1 in group
    with torch.no_grad():
        image = intensity(torch.from_numpy(screen.read(rows)), torch.tensor(group))
        expected = method.embed(image)["representation"].numpy()
    np.testing.assert_allclose(found.representations["representation"][rows], expected, atol=1e-5)
