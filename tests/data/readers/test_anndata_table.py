"""Parts of AnnData as profiles: X, layers and blocks, dense and sparse; DeepProfiler's folders."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from deconfound.data.readers.feature_files import open_features
from deconfound.data.readers.features import Part
from deconfound.errors import UserError


def saved(folder: Path) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    obs = pd.DataFrame({"Metadata_Plate": list("aabbb")}, index=[*"01234"])
    data = anndata.AnnData(obs=obs, var=pd.DataFrame(index=["f0", "f1", "f2"]))
    data.layers["raw"] = scipy.sparse.csr_matrix(values)
    data.layers["dense"] = values + 1
    data.obsm["X_pca"] = values[:, :2]
    data.obsm["sparse"] = scipy.sparse.csr_matrix(values)
    data.obsm["frame"] = pd.DataFrame(values, columns=["u", "v", "w"], index=obs.index)
    data.write_h5ad(folder / "e.h5ad")
    return folder / "e.h5ad", values


@pytest.mark.parametrize(
    ("part", "names", "more"),
    [
        (Part(layer="raw"), ["f0", "f1", "f2"], 0),
        (Part(layer="dense"), ["f0", "f1", "f2"], 1),
        (Part(obsm="X_pca"), ["X_pca_0", "X_pca_1"], 0),
        (Part(obsm="sparse"), ["sparse_0", "sparse_1", "sparse_2"], 0),
        (Part(obsm="frame"), ["frame_u", "frame_v", "frame_w"], 0),
    ],
)
def test_parts_of_anndata(part: Part, names: list[str], more: int, tmp_path: Path) -> None:
    file, values = saved(tmp_path)
    opened = open_features(file, part)
    assert opened.features == names
    found = np.concatenate(list(opened.chunks(names)))
    np.testing.assert_array_equal(found, values[:, : len(names)] + more)
    assert opened.metadata(["Metadata_Plate"])["Metadata_Plate"].tolist() == list("aabbb")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    file, _ = saved(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    cases = {
        r"e\.h5ad: no --layer 'row'; it has ": (file, Part(layer="row")),
        r"e\.h5ad: no --obsm 'pca'; it has ": (file, Part(obsm="pca")),
        r"--layer and --obsm are both given": (file, Part("raw", "X_pca")),
        r"X holds no features.* a --layer \(.*raw.*\) or an --obsm \(.*X_pca": (file, None),
        r"t\.csv: --layer and --obsm belong to \.h5ad": (tmp_path / "t.csv", Part(layer="raw")),
        r"empty: a directory without plate folders": (tmp_path / "empty", None),
        r"e\.npy: not a table of profiles; give .* or a directory": (tmp_path / "e.npy", None),
    }  # fmt: skip
    for said, (path, part) in cases.items():
        with pytest.raises(UserError, match=said) as error:
            open_features(path, part)
        assert "\n" not in str(error.value)


def deepprofiler(folder: Path, name: str, values: object) -> Path:
    file = folder / "deep" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, features=np.asarray(values))
    return folder / "deep"


def test_deepprofilers_files_of_a_site(tmp_path: Path) -> None:
    deepprofiler(tmp_path, "P1/B02_3.npz", np.ones((2, 4), np.float32))
    deepprofiler(tmp_path, "P1/B03_1.npz", np.ones((0, 4), np.float32))  # a site without a cell
    opened = open_features(deepprofiler(tmp_path, "P1/A01_2.npz", np.zeros((1, 4), np.float32)))
    assert opened.features == ["DP_0", "DP_1", "DP_2", "DP_3"]
    table = opened.metadata(opened.columns)
    assert table.to_numpy().tolist() == [
        ["P1", "A01", "2", 1], ["P1", "B02", "3", 1], ["P1", "B02", "3", 2]
    ]  # fmt: skip
    assert np.concatenate(list(opened.chunks(["DP_3", "DP_0"]))).tolist() == [
        [0, 0],
        [1, 1],
        [1, 1],
    ]


def test_what_is_none_of_deepprofilers_is_named(tmp_path: Path) -> None:
    cases = {
        "one.npz": (np.ones((2, 2)), r"one\.npz: expected PLATE/WELL/SITE\.npz"),
        "P/W/1.npz": (np.ones(3), r"1\.npz: no array 'features' of cells × features"),
        "P/W/2.npz": (np.array([{}], object), r"2\.npz: array 'features' cannot be read"),
    }
    for name, (values, said) in cases.items():
        folder = deepprofiler(tmp_path / name.replace("/", "-"), name, values)
        with pytest.raises(UserError, match=said):
            open_features(folder)
    deepprofiler(tmp_path, "P/W/1.npz", np.ones((2, 2)))
    with pytest.raises(UserError, match=r"2\.npz: 3 features, but 2 in files before it"):
        open_features(deepprofiler(tmp_path, "P/W/2.npz", np.ones((2, 3))))
