"""Tables of CellProfiler features, and AnnData, as screens of profiles."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from deconfound import cli
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.readers import anndata_table, feature_files
from deconfound.data.readers.feature_files import open_features
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError

BBBC021 = Path(__file__).parents[3].parent / "shared" / "data" / "bbbc021"
FEATURES = [
    "Cells_AreaShape_Area",
    "Cells_Neighbors_NumberOfNeighbors_10",
    "Cytoplasm_Texture_Gabor_CorrActin_3",
    "Nuclei_Intensity_MeanIntensity_DAPI",
]
NO_FEATURES = [
    "ImageNumber",
    "Cells_AreaShape_Center_X",
    "Cells_AreaShape_BoundingBoxMaximum_Y",
    "Cells_Location_CenterMassIntensity_X_CorrTub",
    "Cells_Neighbors_FirstClosestObjectNumber_10",
    "Cells_Number_Object_Number",
    "Cytoplasm_Parent_Nuclei",
    "Nuclei_ObjectNumber",
    "Image_Intensity_MeanIntensity_DAPI",
]


def profiles(rows: int = 8) -> pd.DataFrame:
    stream = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "Image_Metadata_Plate": [f"0{row % 2}" for row in range(rows)],
            "Metadata_Well": ["A01"] * rows,
            "Metadata_Perturbation": [f"gene{row % 3}" for row in range(rows)],
        }
    )
    for name in [*FEATURES, *NO_FEATURES]:
        table[name] = stream.normal(size=rows).astype(np.float32)
    return table


def save(table: pd.DataFrame, folder: Path, kind: str) -> Path:
    file = folder / f"profiles{kind}"
    if kind == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if kind == ".tsv" else ",")
    return file


def made(file: Path, *, features: Sequence[str] = ()) -> Screen:
    return ingest_profiles(file, file.parent / "screen", features=features, quiet=True)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_features_are_found_by_their_names(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_files, "CHUNK_VALUES", 24)
    table = profiles()
    screen = made(save(table, tmp_path, kind))
    assert screen.channels == tuple(FEATURES)
    np.testing.assert_array_equal(screen.read(range(8)), table[FEATURES].to_numpy())
    wanted = ["Metadata_Plate", "Metadata_Well", "Metadata_Perturbation", *NO_FEATURES]
    assert list(screen.table.columns) == wanted
    assert screen.table["Metadata_Plate"].tolist() == ["00", "01"] * 4
    assert screen.roles == Roles(
        label="Metadata_Perturbation",
        environment=("Metadata_Plate",),
        levels=("Metadata_Plate",),
        well="Metadata_Well",
    )
    screen.check()


def test_constant_and_not_finite_features_are_dropped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = profiles().astype(dict.fromkeys(FEATURES, float))
    table["Cells_A"] = 0.1
    table["Cells_B"] = np.where(np.arange(8) == 5, np.nan, 1.0)
    table["Cells_C"] = np.where(np.arange(8) == 2, -np.inf, 1.0)
    table["Cells_D"] = 1e300 * np.arange(8)
    file = save(table, tmp_path, ".csv")
    cli.main(["ingest", str(file), "--profiles", "--out", str(tmp_path / "s"), "--quiet"])
    screen = open_screen(tmp_path / "s")
    assert screen.channels == tuple(FEATURES)
    lost = {"constant": ["Cells_A"], "not_finite": ["Cells_B", "Cells_C", "Cells_D"]}
    assert screen.provenance["dropped"] == lost
    said = capsys.readouterr().out
    assert "dropped 1 features, constant: Cells_A" in said
    assert "dropped 3 features, not finite: Cells_B, Cells_C, Cells_D" in said
    assert "8 profiles in" in said


def test_the_index_of_a_data_frame_is_a_column(tmp_path: Path) -> None:
    table = profiles().set_index("Metadata_Well")
    table.to_parquet(tmp_path / "named.parquet")
    assert made(tmp_path / "named.parquet").roles.well == "Metadata_Well"
    table.reset_index().iloc[::-1].to_parquet(tmp_path / "numbered.parquet")
    screen = ingest_profiles(tmp_path / "numbered.parquet", tmp_path / "t", quiet=True)
    assert not [name for name in screen.table if "index" in name]
    assert screen.read([0])[0, 0] == table[FEATURES[0]].iloc[-1]


def test_features_can_be_named(tmp_path: Path) -> None:
    table = profiles()
    table["emb_0"], table["emb_1"] = np.arange(8), np.arange(8) * 0.5
    screen = made(save(table, tmp_path, ".parquet"), features=["emb_*", FEATURES[3]])
    assert screen.channels == ("emb_0", "emb_1", FEATURES[3])
    np.testing.assert_array_equal(screen.read([3])[0, :2], [3, 1.5])
    assert FEATURES[0] in screen.table.columns


@pytest.mark.parametrize("sparse", [False, True])
def test_anndata(tmp_path: Path, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anndata_table, "CHUNK_VALUES", 15)
    table = profiles()
    names = [*FEATURES, "Cells_Location_Center_X"]
    values = table[[*FEATURES, NO_FEATURES[3]]].to_numpy()
    obs = table.iloc[:, :3].set_index(pd.Index([f"cell{row}" for row in range(8)]))
    data = anndata.AnnData(
        scipy.sparse.csr_matrix(values) if sparse else values, obs, pd.DataFrame(index=names)
    )
    data.write_h5ad(tmp_path / "p.h5ad")
    screen = made(tmp_path / "p.h5ad")
    assert screen.channels == tuple(FEATURES)
    np.testing.assert_array_equal(screen.read(range(8)), values[:, :4])
    assert screen.table["Metadata_ObsName"].tolist() == [f"cell{row}" for row in range(8)]
    assert screen.table["Metadata_Perturbation"].tolist() == obs["Metadata_Perturbation"].tolist()


def refused(file: Path, said: str, features: Sequence[str] = ()) -> None:
    with pytest.raises(UserError, match=said) as error:
        made(file, features=features)
    assert "\n" not in str(error.value)
    assert not (file.parent / "screen").exists()


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    table = profiles()
    refused(tmp_path / "none.csv", "no such table")
    refused(tmp_path / "table.xlsx", "not a table of profiles")
    refused(save(table.iloc[:, :3], tmp_path, ".parquet"), "no feature columns")
    file = save(table, tmp_path, ".parquet")
    refused(file, "did you mean 'Cells_AreaShape_Area'", ["Cells_AreaShape_Are"])
    refused(file, "holds .*string|large_string", ["Metadata_Well"])
    table.loc[3, "Metadata_Perturbation"] = None
    refused(save(table, tmp_path, ".csv"), "'Metadata_Perturbation' is empty in rows 3")
    wrong = profiles().astype({FEATURES[1]: object})
    wrong.loc[6, FEATURES[1]] = "many"
    refused(save(wrong, tmp_path, ".csv"), rf"row 6 .*'{FEATURES[1]}': 'many' is no number")
    refused(save(profiles(1), tmp_path, ".csv"), "4 are constant .* none is left")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path / "broken.parquet", "cannot be read as a table")
    (tmp_path / "broken.h5ad").write_bytes(b"nothing")
    refused(tmp_path / "broken.h5ad", "cannot be read as a table")


def test_a_row_longer_than_the_header_is_refused(tmp_path: Path) -> None:
    file = save(profiles(), tmp_path, ".csv")
    lines = file.read_text().splitlines()
    lines[4] += ",1"
    file.write_text("\n".join(lines))
    refused(file, "cannot be read")


def test_text_that_is_not_utf_8_is_refused_however_late_it_comes(tmp_path: Path) -> None:
    table = pd.concat([*[profiles()] * 2000, profiles().assign(Metadata_Perturbation="5 µM")])
    file = tmp_path / "latin.csv"
    table.to_csv(file, index=False, encoding="latin-1")
    refused(file, "cannot be read as a table .*; save it as UTF-8")


@pytest.mark.parametrize(("ending", "times"), [(".parquet", 200), (".h5ad", 50)])
def test_damage_anywhere_in_a_table_is_one_line_or_none(
    tmp_path: Path, ending: str, times: int
) -> None:
    table = profiles()
    if ending == ".parquet":
        saved = save(table, tmp_path, ending)
    else:
        saved = tmp_path / "whole.h5ad"
        obs = table.drop(columns=FEATURES).set_index(table.index.astype(str))
        var = pd.DataFrame(index=FEATURES)
        anndata.AnnData(table[FEATURES].to_numpy(), obs, var).write_h5ad(saved)
    whole = saved.read_bytes()
    file = tmp_path / f"damaged{ending}"
    random = np.random.default_rng(0)
    told = 0
    for _ in range(times):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(len(whole), size=4)] = random.integers(256, size=4)
        file.write_bytes(damaged.tobytes())
        try:
            opened = open_features(file)
            names = opened.features or [n for n in FEATURES if n in opened.columns]
            opened.metadata([name for name in opened.columns if name not in names])
            list(opened.chunks(names))
        except UserError as error:
            told += 1
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
    assert told


def test_an_option_of_images_is_refused(tmp_path: Path) -> None:
    file = save(profiles(), tmp_path, ".csv")
    config = IngestConfig(size=32, label="Metadata_Well")
    with pytest.raises(UserError, match="--size means nothing for profiles"):
        ingest_profiles(file, tmp_path / "s", config=config, quiet=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected one of --images-root, --profiles, --array"),
        (["--profiles", "--images-root", "."], "expected one of"),
        (["--profiles"], "name the table first"),
        (["--images-root", ".", "--feature-columns", "a"], "belongs to --profiles"),
        (["--images-root", ".", "--array-key", "a"], "belong to --array"),
    ],
)
def test_the_command_line_wants_one_kind(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["ingest", *words, "--out", str(tmp_path / "s")])
    assert said in capsys.readouterr().err


def test_the_wells_of_bbbc021(tmp_path: Path) -> None:
    source = BBBC021 / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"
    if not source.is_file():
        pytest.skip("BBBC021 is not in ../shared/data")
    (tmp_path / "wells.csv").write_bytes(gzip.decompress(source.read_bytes()))
    config = IngestConfig(label="Metadata_Well")
    screen = ingest_profiles(tmp_path / "wells.csv", tmp_path / "s", config=config, quiet=True)
    assert len(screen) == 632
    assert screen.roles.environment == ("Metadata_Plate",)
    dropped = screen.provenance["dropped"]
    assert len(screen.channels) + sum(map(len, dropped.values())) == 516 - 54
    kept_out = [name for name in screen.table if not name.startswith("Metadata_")]
    assert len(kept_out) == 54
    words = ("_Location_", "_Parent_", "_Center_", "ObjectNumber", "Object_Number")
    assert all(any(word in name for word in words) for name in kept_out)
    assert not any(word in name for name in screen.channels for word in words)
