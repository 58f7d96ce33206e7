"""Tables joined to the rows of a screen's table: no row multiplied, none lost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen, open_screen

PLACES = ["Metadata_Source", "Metadata_Plate", "Metadata_Well"]


def jump(folder: Path) -> dict[str, Path]:
    """Profiles of 2 sources × 2 plates × 4 wells with no label, and JUMP's tables beside them."""
    wells = pd.DataFrame(
        [(s, f"{s}P{p}", f"A0{w}") for s in "ab" for p in "12" for w in range(1, 5)],
        columns=PLACES,
    )
    values = np.random.default_rng(0).normal(size=(len(wells), 3))
    profiles = wells.copy()
    for place, name in enumerate(["Cells_Area", "Nuclei_Area", "Cytoplasm_Area"]):
        profiles[name] = values[:, place]
    compounds = [f"JCP{number}" for number in range(4)]
    plates = wells.drop(columns="Metadata_Well").drop_duplicates()
    short = wells["Metadata_Well"].str.replace("0", "")
    tables = {
        "profiles": profiles.iloc[::-1],
        "wells": wells.assign(Metadata_JCP2022=compounds * 4, Metadata_Well=short),
        "plates": plates.assign(Metadata_Batch=plates["Metadata_Source"] + "b"),
        "compounds": pd.DataFrame({"Metadata_JCP2022": compounds}).assign(
            Metadata_InChIKey=list("KLMN")
        ),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return {name: folder / f"{name}.csv" for name in tables}


def ingested(folder: Path, *words: object) -> Screen:
    files = [folder / "profiles.csv", "--profiles", "--out", folder / "s", "--quiet"]
    cli.main(["ingest", *map(str, files), *map(str, words)])
    return open_screen(folder / "s")


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        ingested(folder, *words)
    assert stop.value.code == 2
    assert not (folder / "s").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("named", ["", "=Metadata_JCP2022"])
@pytest.mark.parametrize("apart", [False, True], ids=["--join A B", "--join A --join B"])
def test_a_jump_profile_table_finds_its_labels(tmp_path: Path, named: str, apart: bool) -> None:
    files = jump(tmp_path)
    joins = [files["wells"], files["plates"], f"{files['compounds']}{named}"]
    words = [word for one in joins for word in ("--join", one)] if apart else ["--join", *joins]
    screen = ingested(tmp_path, *words)
    assert screen.roles.label == "Metadata_JCP2022"
    assert screen.roles.levels == ("Metadata_Source", "Metadata_Batch", "Metadata_Plate")
    table, expected = screen.table, pd.read_csv(files["profiles"], dtype=str)
    for column in PLACES:  # the rows are those of the profiles, in their order
        assert table[column].tolist() == expected[column].tolist()
    number = table["Metadata_Well"].str[-1].astype(int)
    assert table["Metadata_JCP2022"].tolist() == [f"JCP{n - 1}" for n in number]
    assert table["Metadata_InChIKey"].tolist() == ["KLMN"[n - 1] for n in number]
    assert list(screen.provenance["joined"]) == [str(one).partition("=")[0] for one in joins]


def test_a_join_that_multiplies_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = jump(tmp_path)
    wells = pd.read_csv(files["wells"])
    more = pd.concat([wells, wells.iloc[[3]].assign(Metadata_JCP2022="JCP9")])
    more.to_csv(files["wells"], index=False)
    said = refused(tmp_path, capsys, "--join", files["wells"])
    assert f"{files['wells']}: rows 3 and 16 (from 0) both have" in said
    assert "joining would multiply 1 rows" in said
    pd.concat([wells, wells.iloc[[3]]]).to_csv(files["wells"], index=False)  # the same once more
    assert len(ingested(tmp_path, "--join", files["wells"])) == 16


def test_a_join_that_loses_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = jump(tmp_path)
    wells = pd.read_csv(files["wells"])
    wells[wells["Metadata_Well"] != "A2"].to_csv(files["wells"], index=False)
    said = refused(tmp_path, capsys, "--join", files["wells"])
    assert "row 2 (from 0): 'Metadata_Source' and 'Metadata_Plate' and 'Metadata_Well'" in said
    assert "'b/bP2/A02' has no row in" in said
    assert "lose 4 of 16 rows" in said


def test_what_cannot_be_joined_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = jump(tmp_path)
    cases = {
        f"{files['compounds']}": "shares no column with",
        f"{files['wells']}=Metadata_Wel": "no column 'Metadata_Wel'; did you mean",
        f"{tmp_path / 'none.csv'}": "no such table",
        f"{files['wells']}=": "name a column",
    }
    for given, expected in cases.items():
        assert expected in refused(tmp_path, capsys, "--join", given)
    plates = pd.read_csv(files["plates"]).assign(Metadata_Source="c")
    plates.to_csv(files["plates"], index=False)
    said = refused(tmp_path, capsys, "--join", f"{files['plates']}=Metadata_Plate")
    assert "column 'Metadata_Source' is 'c' where row 0 (from 0)" in said
    words = ["ingest", "--images-root", str(tmp_path), "--join", "x.csv", "--out", f"{tmp_path}/s"]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "--join needs a table of images to join to" in capsys.readouterr().err
