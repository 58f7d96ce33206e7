"""What other programs look for in an embeddings file, and the way back into a screen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.numbers import numbered
from deconfound.embeddings.embed import embed, embed_shards
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    as_anndata,
    read_embeddings,
    write_embeddings,
)

Runs = Callable[[str], Path]
ROLES = {"label": "compound", "environment": ["plate"], "levels": ["plate"], "well": None}


def made(table: pd.DataFrame | None = None, **about: Any) -> Embeddings:
    """Six rows with content and style; `table` is of as many rows."""
    stream = np.random.default_rng(0)
    if table is None:
        table = pd.DataFrame({"compound": list("ababab"), "plate": list("pppqqq")})
    blocks = {name: stream.normal(size=(6, 3)).astype(np.float32) for name in ("style", "content")}
    known = {"method": "scbd", "screen": "s", "screen_identity": "1f", "roles": ROLES, "labels": []}
    return Embeddings(table.assign(**{PART: "train", PREDICTED: pd.NA}), blocks, known | about)


def written(folder: Path, embeddings: Embeddings, name: str = "e.h5ad") -> anndata.AnnData:
    write_embeddings(folder / name, embeddings)
    return anndata.read_h5ad(folder / name)


def test_x_is_the_content_and_is_on_the_disk_once(tmp_path: Path) -> None:
    embeddings = made()
    data = written(tmp_path, embeddings)
    np.testing.assert_array_equal(data.X, embeddings.representations["content"])
    assert list(data.var_names) == ["content_0", "content_1", "content_2"]
    assert list(data.obsm) == ["X_content", "X_style"]
    import h5py

    with h5py.File(tmp_path / "e.h5ad") as file:
        assert file["X"] == file["obsm/X_content"]
    alone = Embeddings(embeddings.table, {"style": np.eye(6, dtype=np.float32)}, embeddings.about)
    assert written(tmp_path, alone, "style.h5ad").var_names[0] == "style_0"


def test_what_changes_x_in_place_leaves_the_block(tmp_path: Path) -> None:
    embeddings = made()
    for data in (as_anndata(embeddings), written(tmp_path, embeddings)):
        before = data.obsm["X_content"].copy()
        data.X += 1
        np.testing.assert_array_equal(data.obsm["X_content"], before)


def test_names_of_rows_are_of_the_screen_and_differ_between_screens() -> None:
    first, again = as_anndata(made()), as_anndata(made(method="erm"))
    other = as_anndata(made(screen_identity="2f"))
    assert first.obs_names.equals(again.obs_names)
    both = anndata.concat([first, other])
    assert both.obs_names.is_unique
    assert both.shape == (12, 3)
    earlier = made()
    del earlier.about["screen_identity"]  # of an earlier build
    changed = made(earlier.table.drop(columns=[PART, PREDICTED]).assign(plate=list("pppqqr")))
    del changed.about["screen_identity"]
    assert not set(as_anndata(earlier).obs_names) & set(as_anndata(changed).obs_names)


def test_names_that_a_screen_has_stay(tmp_path: Path) -> None:
    table = made().table.drop(columns=[PART, PREDICTED]).assign(Metadata_ObsName=list("uvwxyz"))
    data = written(tmp_path, made(table))
    assert list(data.obs_names) == list("uvwxyz")
    assert "Metadata_ObsName" not in data.obs
    found = read_embeddings(tmp_path / "e.h5ad")  # and no warning that the file was changed
    assert found.table["Metadata_ObsName"].tolist() == list("uvwxyz")
    assert written(tmp_path, found, "again.h5ad").obs.equals(data.obs)


def test_sites_numbers_and_doses_are_numbers() -> None:
    text = {
        "Metadata_Site": ["1", "2", "10"], "Metadata_ObjectNumber": ["3", "2", "1.0"],
        "Metadata_Dose_uM": ["0.1", None, "10"], "ImageNumber": ["7", "8", "9"],
        "Metadata_Plate": ["1", "2", "3"], "Metadata_Concentration": ["1", "10 uM", "0"],
        "Metadata_Field": ["01", "1", "2"], "Metadata_Well": ["A01", "A02", "B01"],
    }  # fmt: skip
    found = numbered(pd.DataFrame(text))
    assert {name: str(found[name].dtype) for name in text} == {
        "Metadata_Site": "int64", "Metadata_ObjectNumber": "int64", "Metadata_Dose_uM": "float64",
        "ImageNumber": "int64", "Metadata_Plate": "object", "Metadata_Concentration": "object",
        "Metadata_Field": "object", "Metadata_Well": "object",
    }  # fmt: skip
    assert found["Metadata_ObjectNumber"].tolist() == [3, 2, 1]
    kept = numbered(pd.DataFrame(text), but=["Metadata_Site"])
    assert kept["Metadata_Site"].tolist() == ["1", "2", "10"]


def test_places_of_cells_are_spatial(tmp_path: Path) -> None:
    table = made().table.drop(columns=[PART, PREDICTED])
    places = {"Nuclei_Location_Center_X": list("123456"), "Nuclei_Location_Center_Y": ["0.5"] * 6}
    data = written(tmp_path, made(table.assign(**places)))
    assert data.obsm["spatial"].tolist() == [[x, 0.5] for x in range(1, 7)]
    assert list(read_embeddings(tmp_path / "e.h5ad").representations) == ["content", "style"]
    places["Nuclei_Location_Center_X"][2] = ""
    assert "spatial" not in written(tmp_path, made(table.assign(**places)), "b.h5ad").obsm


def test_the_stamp_says_what_a_row_is(tmp_path: Path) -> None:
    cells = {"Metadata_Plate": ["1"] * 6, "Metadata_Well": ["A1"] * 3 + ["A2"] * 3}
    kinds = {"Metadata_Control_Type": ["negcon"] * 3 + ["treatment"] * 3}
    labels = {"compound": list("aaabbb"), "plate": ["1"] * 6}
    data = written(tmp_path, made(pd.DataFrame(cells | labels | kinds)))
    stamp = data.uns["mantispy"]
    assert (stamp["schema_version"], stamp["resolution"]) == ("2.0", "object")
    assert stamp["perturbation"] == {
        "column": "compound", "control_column": "Metadata_Control_Type"
    }  # fmt: skip
    assert data.obs["Metadata_ObjectNumber"].tolist() == [1, 2, 3, 1, 2, 3]
    assert data.obs["Metadata_ImageID"].nunique() == 2
    assert data.obs["Metadata_Control"].tolist() == [True] * 3 + [False] * 3
    assert set(data.var["feature_kind"]) == {"embedding"}
    table = read_embeddings(tmp_path / "e.h5ad").table
    assert list(table.columns) == [*cells, *labels, *kinds, PART, PREDICTED]

    series = {"Metadata_Series": list("xxxyyy"), "Metadata_Well": ["A1", "A2", "A3"] * 2}
    wells = written(tmp_path, made(pd.DataFrame(cells | labels | series)), "wells.h5ad")
    assert wells.uns["mantispy"]["resolution"] == "well"
    grouped = ["Metadata_Series", "Metadata_Plate", "plate", "Metadata_Well"]
    assert wells.uns["mantispy"]["grouped_by"].tolist() == grouped

    repeated = {"Metadata_ImageID": ["i"] * 6, "Metadata_ObjectNumber": [1] * 6}
    one = written(tmp_path, made(pd.DataFrame(labels | repeated)), "repeated.h5ad")
    assert "mantispy" not in one.uns
    assert list(one.obs.columns) == [*labels, *repeated, PART, PREDICTED]


def test_two_equal_runs_write_the_same_bytes(
    finished_runs: Runs, screen: Screen, tmp_path: Path
) -> None:
    options = {"device": "cpu", "threads": 1, "quiet": True}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        embed(finished_runs("scbd"), screen.path, tmp_path / folder / "e.h5ad", **options)
        embed_shards(finished_runs("scbd"), screen.path, tmp_path / folder / "shards", **options)
    for file in ("e.h5ad", "shards/part-00000.parquet", "shards/_embeddings.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("form", ["file", "directory", "earlier"])
def test_embeddings_go_back_through_ingest(
    form: str, finished_runs: Runs, screen: Screen, tmp_path: Path
) -> None:
    """Without an option that names a column: the file brings the roles of its columns."""
    embeddings, options = tmp_path / "e.h5ad", {"device": "cpu", "threads": 1, "quiet": True}
    embed(finished_runs("scbd"), screen.path, embeddings, **options)
    source = embeddings
    if form == "directory":
        source = tmp_path / "shards"
        embed_shards(finished_runs("scbd"), screen.path, source, **options)
    if form == "earlier":  # X was empty
        source = tmp_path / "earlier.h5ad"
        data = anndata.read_h5ad(embeddings)
        added = json.loads(data.uns["deconfound"].pop("added"))
        obs = data.obs.drop(columns=added).reset_index(drop=True).rename(index=str)
        own = {"deconfound": data.uns["deconfound"]}
        anndata.AnnData(obs=obs, obsm=dict(data.obsm), uns=own).write_h5ad(source)
    cli.main(["ingest", str(source), "--profiles", "--out", str(tmp_path / "s"), "--quiet"])
    back, expected = open_screen(tmp_path / "s"), read_embeddings(embeddings)
    assert back.channels == tuple(f"content_{place:02d}" for place in range(16))
    values = back.read(np.arange(len(back)))
    np.testing.assert_array_equal(values, expected.representations["content"])
    for column in expected.table.columns:
        assert back.table[column].equals(expected.table[column].astype(back.table[column].dtype))
    roles = ("label", "environment", "levels", "well")
    assert all(getattr(back.roles, one) == getattr(screen.roles, one) for one in roles)
    cli.main(["embed", str(tmp_path / "s"), "--out", str(tmp_path / "again.h5ad")])
    first, again = anndata.read_h5ad(embeddings), anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.X, first.X)
    if form == "file":
        assert again.obs_names.equals(first.obs_names)
        assert list(again.obs.columns) == list(first.obs.columns)


def test_a_damaged_directory_is_named(
    finished_runs: Runs, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "shards"
    options = {"device": "cpu", "threads": 1, "quiet": True}
    embed_shards(finished_runs("scbd"), screen.path, source, **options)
    part = source / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    words = ["ingest", str(source), "--profiles", "--out", str(tmp_path / "s"), "--quiet"]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"{part}: missing, or not the file that _embeddings.json names" in said
    assert not (tmp_path / "s").exists()
