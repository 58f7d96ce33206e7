"""Features of CellProfiler: measured, resumed, and their principal components as a baseline."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.embeddings.correct import correct
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.methods.post_hoc.pca import PcaOptions

module = importlib.import_module("deconfound.data.ingest.cellprofiler")


def stand_in(monkeypatch: pytest.MonkeyPatch, stops_at: int | None = None) -> list[int]:
    """In place of cp_measure: area, mean of every channel, a constant, NaN; images a call."""
    calls: list[int] = []

    def featurizer(channels: list[str], slow: bool) -> Any:
        del slow

        def measured(images: Any, objects: Any) -> Any:
            if stops_at is not None and len(calls) == stops_at:
                raise KeyboardInterrupt
            calls.append(len(images))
            area = objects.sum(axis=(1, 2, 3))
            means = (images * objects).sum(axis=(2, 3)) / area[:, None]
            some = np.full((len(images), 2), [1.0, np.nan])
            names = ["Cell_Area", *(f"Cell_Mean_{name}" for name in channels), "Cell_1", "Cell_NaN"]
            return np.column_stack([area, means, some]), names

        return measured

    monkeypatch.setattr(module, "_featurizer", featurizer)
    monkeypatch.setattr(module.metadata, "version", lambda _: "0")
    monkeypatch.setattr(module, "CHUNK", 40)
    return calls


def test_images_become_profiles_and_these_a_baseline(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    cli.main(["cellprofiler", str(screen.path), "--out", str(tmp_path / "p"), "--quiet"])
    made = open_screen(tmp_path / "p")
    assert made.channels == ("Cell_Mean_a", "Cell_Mean_b")  # the area is constant here
    assert made.roles == screen.roles
    means = screen.read(np.arange(96)).mean(axis=(2, 3)) / 65535
    np.testing.assert_allclose(made.read(np.arange(96)), means, rtol=1e-5)
    assert made.provenance["dropped"]["not_finite"] == ["Cell_NaN"]
    file = tmp_path / "profiles.h5ad"
    cli.main(["profiles", str(made.path), "--out", str(file), "--fold", "plate=S1/P1"])
    opened = read_embeddings(file)
    assert set(opened.part) == {"train", "val", "id_test", "test"}
    np.testing.assert_allclose(opened.representations["representation"], means, rtol=1e-5)
    done = correct("pca", file, tmp_path / "pca.h5ad", PcaOptions(components=1), knn=5)
    assert done.about["method"] == "profiles+pca+knn"
    assert measure([tmp_path / "pca.h5ad"], quiet=True)["method"].eq("profiles+pca+knn").all()
    with pytest.raises(UserError, match="holds images; measure their features with"):
        module_profiles().profiles(screen.path, tmp_path / "no.h5ad")
    with pytest.raises(UserError, match="holds profiles already"):
        module.cellprofiler(made.path, tmp_path / "no")


def module_profiles() -> Any:
    return importlib.import_module("deconfound.embeddings.embed")


def test_a_stopped_measurement_goes_on(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, stops_at=2)
    with pytest.raises(KeyboardInterrupt):
        module.cellprofiler(screen.path, tmp_path / "p", quiet=True)
    assert not (tmp_path / "p").exists()
    calls = stand_in(monkeypatch)
    module.cellprofiler(screen.path, tmp_path / "p", quiet=True)
    assert calls == [16]
    whole = module.cellprofiler(screen.path, tmp_path / "whole", quiet=True)
    found = open_screen(tmp_path / "p").read(np.arange(96))
    np.testing.assert_array_equal(found, whole.read(np.arange(96)))
    assert sorted(one.name for one in tmp_path.iterdir() if "lock" not in one.name) == [
        "p",
        "whole",
    ]


def test_the_object_is_what_the_mask_marks_in_the_middle(
    screen: Screen, make_screen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    images = screen.read(np.arange(96)).copy()
    images[:, 1] = 0
    images[:, 1, 10:14, 10:16] = 2
    images[:, 1, :5] = 1  # a neighbour
    images[0, 1, 10:14, 10:16] = 0
    masked = make_screen(tmp_path / "masked", images, screen.table, screen.roles)
    made = module.cellprofiler(masked.path, tmp_path / "p", mask="b", quiet=True)
    assert made.channels == ("Cell_Area", "Cell_Mean_a")
    area = made.read(np.arange(96))[:, 0]
    np.testing.assert_array_equal(area, [5 * 24, *[24] * 95])
    images[7, 1] = 0
    empty = make_screen(tmp_path / "empty", images, screen.table, screen.roles)
    with pytest.raises(UserError, match="row 7: channel 'b' marks no pixel"):
        module.cellprofiler(empty.path, tmp_path / "no", mask="b", quiet=True)
    with pytest.raises(UserError, match="there is no channel 'm'; it has a, b"):
        module.cellprofiler(empty.path, tmp_path / "no", mask="m", quiet=True)


def test_cp_measure_measures_what_is_there() -> None:
    pytest.importorskip("cp_measure", reason="needs the extra [cellprofiler]")
    images = np.random.default_rng(0).random((2, 2, 24, 24)).astype(np.float32)
    objects = np.zeros((2, 1, 24, 24), dtype=np.int32)
    objects[:, :, 4:14, 6:18] = 1
    values, names = module._featurizer(["DNA", "ER"], False)(images, objects)
    column = dict(zip(names, np.asarray(values).T, strict=True))
    np.testing.assert_array_equal(column["Cell_Area"], [120, 120])
    mean = images[:, 1, 4:14, 6:18].mean(axis=(1, 2))
    np.testing.assert_allclose(column["Cell_Intensity_MeanIntensity__ER"], mean, rtol=1e-5)


def test_without_cp_measure_the_extra_is_named(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cp_measure.featurizer", None)
    with pytest.raises(UserError, match=r"pip install 'deconfound\[cellprofiler\]'"):
        module.cellprofiler(screen.path, tmp_path / "p")
