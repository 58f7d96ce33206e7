"""One thing written in two ways has one key, in every reader, fold, join, control and count."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconfound.data.folds.controls import control_codes, control_rows
from deconfound.data.folds.fold import make_fold
from deconfound.data.folds.groups import groups, physical_well, well_units
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.image_table import joined_by_image
from deconfound.data.tables.keys import key, keys, row_and_column, row_order, unified
from deconfound.data.tables.table import Roles, coded, joined, read_table
from deconfound.description.describe import describe
from deconfound.embeddings.group_means import group_cells
from deconfound.errors import InputWarning, UserError

ROLES = Roles(
    label="Metadata_Perturbation",
    environment=("Metadata_Plate",),
    levels=("Metadata_Plate", "Metadata_Section"),
    well="Metadata_Well",
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("DMSO ", "DMSO"),
        ("\ufeff DMSO\u00a0", "DMSO"),
        ("1.0", "1"),
        ("1.", "1"),
        ("-0.0", "0"),
        ("+2.00", "2"),
        ("1.50", "1.50"),
        ("007", "007"),
        ("00.0", "00.0"),
        ("1.0.0", "1.0.0"),
        ("Negcon", "Negcon"),
        ("A1", "A1"),
        ("  ", ""),
    ],
)
def test_a_key_leaves_out_blanks_and_empty_decimals_alone(value: str, expected: str) -> None:
    assert key(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A1", "A01"),
        ("a01", "A01"),
        ("A001", "A01"),
        ("A-1", "A01"),
        ("h12", "H12"),
        ("P24", "P24"),
        ("AA01", "AA01"),
        ("af48", "AF48"),
        ("AG01", "AG01"),
        ("A49", "A49"),
        ("A00", "A00"),
        ("field 3", "field 3"),
    ],
)
def test_a_well_is_a_row_and_a_column(value: str, expected: str) -> None:
    assert key(value, well=True) == expected


@given(st.text(max_size=8), st.booleans())
def test_a_key_is_its_own_key(value: str, well: bool) -> None:
    assert key(key(value, well=well), well=well) == key(value, well=well)


@pytest.mark.parametrize(
    ("well", "expected"),
    [
        ("A01", (1, 1)),
        ("b3", (2, 3)),
        ("AF48", (32, 48)),
        ("P1", (16, 1)),
        ("A49", None),
        ("x", None),
    ],
)
def test_a_well_has_a_row_and_a_column(well: str, expected: tuple[int, int] | None) -> None:
    assert row_and_column(well) == expected


def test_wells_are_known_by_the_name_of_their_column() -> None:
    for name in ("Metadata_Well", "Image_Metadata_Well", "well", "Metadata_WellID", "well_name"):
        assert keys(pd.Series(["b2"], name=name)).tolist() == ["B02"], name
    for name in ("Metadata_Wellness", "Metadata_Row", None):
        assert keys(pd.Series(["b2"], name=name)).tolist() == ["b2"], name


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, 2, 1]),
        pd.Series([1.0, 2.0, 1.0]),
        pd.Series(["1", "2.0", "1 "]),
        pd.Series(["1.0", "2", "1"], dtype="category"),
        pd.Series([1, 2, 1], dtype="Int64"),
        pd.Series([1.0, 2.0, 1.0], dtype="category"),
    ],
)
def test_one_number_has_one_key_in_every_type(values: pd.Series) -> None:
    assert keys(values).tolist() == ["1", "2", "1"]
    assert coded(values).names == ("1", "2")
    assert coded(values, ("2", "1")).codes.tolist() == [1, 0, 1]


def test_what_is_missing_has_no_key() -> None:
    values = pd.Series(["a", None, " ", float("nan"), "NA", "None"])
    assert keys(values).isna().tolist() == [False, True, True, True, False, False]


def test_what_is_written_in_two_ways_is_said_once_and_made_one() -> None:
    table = pd.DataFrame(
        {
            "drug": ["DMSO", "DMSO ", "taxol", "Taxol"],
            "plate": ["1", "1.0", "2", "2.0"],
            "place": ["A1", "A01", None, "B02"],
            "barcode": ["007", "7", "07", "8"],
        }
    )
    made, notes = unified(table, table.columns, wells=["place"])
    assert made["drug"].tolist() == ["DMSO", "DMSO", "taxol", "Taxol"]
    assert made["plate"].tolist() == ["1", "1", "2", "2"]
    assert made["place"].dropna().tolist() == ["A01", "A01", "B02"]
    assert made["barcode"].tolist() == table["barcode"].tolist()
    assert notes == (
        "column 'drug' writes 1 of its values in several ways, such as 'DMSO' and 'DMSO '; taken "
        "as one, 'DMSO'",
        "column 'drug': 'taxol' and 'Taxol' differ by case alone and are taken as different; write "
        "them alike if they are one",
        "column 'plate' writes 2 of its values in several ways, such as '1' and '1.0'; taken as "
        "one, '1'",
        "column 'place' writes 1 of its values in several ways, such as 'A1' and 'A01'; taken as "
        "one, 'A01'",
        "column 'place': 1 of 4 rows have no well; each is taken as a well of its own",
    )
    assert table["drug"].iloc[1] == "DMSO "


def test_a_table_of_one_spelling_is_left_as_it_is() -> None:
    table = pd.DataFrame({"well": ["A1", "A2"], "dose": [1.0, 0.0]})
    made, notes = unified(table, table.columns, wells=["well"])
    pd.testing.assert_frame_equal(made, table)
    assert notes == ()


def two_spellings() -> pd.DataFrame:
    """Two sections of one plate, whose 48 wells are A1 … in one and A01 … in the other."""
    wells = ["ABCD"[place // 12] + str(place % 12 + 1) for place in range(48)]
    padded = [f"{well[0]}{int(well[1:]):02d}" for well in wells]
    return pd.DataFrame(
        {
            "Metadata_Perturbation": [("DMSO", "x", "y", "z")[row % 4] for row in range(48)] * 2,
            "Metadata_Plate": "P1",
            "Metadata_Section": ["S1"] * 48 + ["S2"] * 48,
            "Metadata_Well": [*wells, *padded],
        }
    )


def test_no_well_lies_on_two_sides_however_written() -> None:
    table = two_spellings()
    parts = pd.Series(make_fold(table, ROLES, "iid", unit="well").part)
    well = keys(table["Metadata_Well"])
    assert (parts.groupby(well).nunique() == 1).all()
    assert {"train", "test", "val"} == set(parts)
    alike = table.assign(Metadata_Well=well)
    assert parts.tolist() == make_fold(alike, ROLES, "iid", unit="well").part.tolist()
    with pytest.raises(UserError, match="every sibling shares its wells"):
        make_fold(table, ROLES, "Metadata_Section=P1/S1")


def test_a_group_is_found_however_its_name_is_written() -> None:
    table = two_spellings().assign(Metadata_Plate=[1.0] * 48 + [2.0] * 48)
    roles = ROLES.model_copy(update={"levels": ("Metadata_Plate",)})
    assert [one.fold for one in groups(table, roles, "Metadata_Plate")] == [
        "Metadata_Plate=1",
        "Metadata_Plate=2",
    ]
    for name in ("Metadata_Plate=1", "Metadata_Plate=1.0", "Metadata_Plate= 1"):
        fold = make_fold(table, roles, name)
        assert fold.name == "Metadata_Plate=1"
        assert (fold.part == "test").tolist() == [True] * 48 + [False] * 48


def test_rows_without_a_well_are_wells_of_their_own() -> None:
    table = pd.DataFrame(
        {
            "Metadata_Perturbation": ["a", "b"] * 100,
            "Metadata_Plate": "P1",
            "Metadata_Section": "S1",
            "Metadata_Well": [None] * 100 + [f"A{1 + row % 10:02d}" for row in range(100)],
        }
    )
    units = well_units(table, ROLES)
    assert len(np.unique(units)) == 110
    assert (pd.Series(units).groupby(physical_well(table, ROLES)).nunique() == 1).all()
    for seed in range(5):
        part = make_fold(table, ROLES, "iid", unit="well", seed=seed).part
        assert 5 <= (part[:100] == "test").sum() <= 15


def test_wells_of_one_spelling_are_drawn_as_they_were_in_earlier_releases() -> None:
    wells = pd.Series([f"A{1 + row % 12}" for row in range(24)])
    table = pd.DataFrame({"Metadata_Plate": "P1", "Metadata_Section": "S1", "Metadata_Well": wells})
    np.testing.assert_array_equal(
        well_units(table, ROLES), ("P1/" + wells).astype("category").cat.codes
    )


@pytest.mark.parametrize("identifier", ["Metadata_CellID", "Metadata_RowID"])
@pytest.mark.parametrize("fold", ["iid", "Metadata_Plate=P1"])
def test_parts_do_not_depend_on_the_order_of_identified_rows(identifier: str, fold: str) -> None:
    stream = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "Metadata_Perturbation": stream.choice(["a", "b"], 200),
            "Metadata_Plate": stream.choice(["P1", "P2", "P3"], 200),
            "Metadata_Section": "S1",
            "Metadata_Well": stream.choice(["A01", "A02", "B01"], 200),
            identifier: [f"cell{row}" for row in range(200)],
        }
    )
    shuffled = table.sample(frac=1, random_state=1)
    mine, others = make_fold(table, ROLES, fold), make_fold(shuffled, ROLES, fold)
    assert mine.part[shuffled.index].tolist() == others.part.tolist()
    for part in ("train", "val", "test"):
        names = table[identifier].to_numpy()[mine.rows(part)]
        assert names.tolist() == shuffled[identifier].to_numpy()[others.rows(part)].tolist()


def test_rows_are_ordered_by_number_where_identifiers_are_numbers() -> None:
    table = pd.DataFrame({"plate": ["b", "a", "a"], "id": ["2", "10", "9"]})
    assert row_order(table, ["plate", "id"]).tolist() == [2, 1, 0]
    assert row_order(table, ["id"]).tolist() == [0, 2, 1]


def profiles(rows: int = 96) -> pd.DataFrame:
    stream = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "Metadata_Perturbation": [("DMSO", "x", "y", "z")[row % 4] for row in range(rows)],
            "Metadata_Batch": np.where(np.arange(rows) % 8 < 4, "B1", "B2"),
            "Metadata_Well": [f"{'ABCDEFGH'[row // 12]}{row % 12 + 1:02d}" for row in range(rows)],
            "Cells_a": stream.normal(size=rows),
            "Cells_b": stream.normal(size=rows),
        }
    )


def ingested(table: pd.DataFrame, folder: Path, name: str = "t.csv") -> Screen:
    folder.mkdir(exist_ok=True)
    if name.endswith(".csv"):
        table.to_csv(folder / name, index=False)
    elif name.endswith(".parquet"):
        table.to_parquet(folder / name)
    else:
        own = [column for column in table if not column.startswith("Cells")]
        features = table.drop(columns=own).to_numpy(np.float32)
        data = anndata.AnnData(features, obs=table[own].rename(index=str))
        data.var_names = ["Cells_a", "Cells_b"]
        data.write_h5ad(folder / name)
    return ingest_profiles(folder / name, folder / f"{name}-screen", quiet=True)


def test_blanks_make_no_labels_and_no_batches(tmp_path: Path) -> None:
    table = profiles()
    table["Metadata_Perturbation"] += np.where(np.arange(96) % 3 == 0, " ", "")
    table["Metadata_Batch"] += np.where(np.arange(96) % 5 == 0, " ", "")
    with pytest.warns(InputWarning) as said:
        screen = ingested(table, tmp_path)
    assert ["Perturbation" in str(one.message) for one in said] == [True, False]
    found = describe(screen.path)
    assert found.counts["labels"] == 4
    assert found.counts["environments"] == 2
    assert screen.provenance["unified"] == [str(one.message).partition(": ")[2] for one in said]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.h5ad"])
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_words_of_pandas_for_missing_are_labels_in_every_reader(tmp_path: Path, name: str) -> None:
    table = profiles()
    words = ("None", "NA", "null", "nan")
    table["Metadata_Perturbation"] = [words[row % 4] for row in range(96)]
    screen = ingested(table, tmp_path, name)
    assert screen.coded(["Metadata_Perturbation"]).names == tuple(sorted(words))


def test_words_of_pandas_for_missing_are_missing_numbers_in_features(tmp_path: Path) -> None:
    table = profiles().assign(Cells_c=np.arange(96.0))
    table["Cells_c"] = table["Cells_c"].astype(object)
    table.loc[3, "Cells_c"] = "nan"
    screen = ingested(table, tmp_path)
    assert screen.channels == ("Cells_a", "Cells_b")
    assert screen.provenance["dropped"]["not_finite"] == ["Cells_c"]


def test_an_index_of_parquet_is_read_as_columns(tmp_path: Path) -> None:
    table = profiles()[["Metadata_Perturbation", "Metadata_Batch", "Metadata_Well"]]
    for index in (["Metadata_Well"], ["Metadata_Batch", "Metadata_Well"]):
        table.set_index(index).to_parquet(tmp_path / "t.parquet")
        read = read_table(tmp_path / "t.parquet")
        pd.testing.assert_frame_equal(read[table.columns], table, check_dtype=False)
    table[table["Metadata_Batch"] == "B2"].to_parquet(tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.parquet").columns) == list(table.columns)
    table.set_index(table["Metadata_Well"]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="'Metadata_Well' is a column and a level of the index"):
        read_table(tmp_path / "t.parquet")
    table.set_axis([f"cell{row}" for row in range(96)]).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["Metadata_ObsName"].iloc[95] == "cell95"


@pytest.mark.parametrize("numbers", [[1.0, 2.0], [1, 2], ["1.0", " 2"]])
def test_images_are_joined_by_number_however_written(tmp_path: Path, numbers: list[object]) -> None:
    images = pd.DataFrame({"ImageNumber": numbers, "Metadata_Well": ["A01", "A02"]})
    images.to_parquet(tmp_path / "image.parquet")
    unnumbered = images.iloc[:1].assign(ImageNumber=float("nan"))
    pd.concat([images, unnumbered]).to_parquet(tmp_path / "unnumbered.parquet")
    cells = pd.DataFrame({"ImageNumber": ["2", "1", "2"]})
    found = joined_by_image(cells, tmp_path / "image.parquet", "cells")
    assert found["Metadata_Well"].tolist() == ["A02", "A01", "A02"]
    cells = pd.DataFrame({"ImageNumber": ["2", None]})
    with pytest.raises(UserError, match=r"row 1 .*ImageNumber None is not in"):
        joined_by_image(cells, tmp_path / "unnumbered.parquet", "cells")


def test_controls_are_found_however_written() -> None:
    table = pd.DataFrame({"Metadata_Dose": [0.0, 0.5, 1.0, np.nan], "Metadata_Well": list("ABCD")})
    for said in ("0", "0.0", " 0"):
        found = control_rows(table, None, f"Metadata_Dose={said}", "t")
        assert found.tolist() == [True, False, False, False]
    half = control_rows(table, None, "Metadata_Dose=0.50", "t")
    assert half.tolist() == [False, True, False, False]
    table["Metadata_Control_Type"] = ["negcon", "Negcon ", "treatment", None]
    assert control_rows(table, None, None, "t").tolist() == [True, True, False, False]
    label = coded(pd.Series(["a", "b", "c", "c"]))
    assert control_codes(table, label, np.arange(4)) == (0, 1)
    assert control_codes(table, label, np.arange(4), ["a "]) == (0,)
    named = control_rows(table, None, "Metadata_Control_Type=NegCon", "t")
    assert named.tolist() == [True, True, False, False]
    with pytest.raises(UserError, match="no row has Metadata_Well = E; expected one of A, B, C, D"):
        control_rows(table, None, "Metadata_Well=E", "t")


def test_genes_are_grouped_however_written() -> None:
    table = pd.DataFrame({"gene": ["1", "1.0", "TP53 ", "TP53"], "plate": [1.0, 1.0, 2.0, 2.0]})
    found = group_cells(table, "gene", None, ("plate",), "t")
    assert found.genes["gene"].tolist() == ["1", "TP53"]
    assert found.guide.tolist() == [0, 0, 1, 1]


def test_joined_columns_have_the_keys_of_each() -> None:
    table = pd.DataFrame({"plate": [1.0, 2.0], "Metadata_Well": ["a1", "B12"]})
    assert joined(table, ["plate", "Metadata_Well"]).tolist() == ["1/A01", "2/B12"]


def test_a_screen_codes_names_of_other_writings(tmp_path: Path) -> None:
    screen = ingested(profiles().assign(Metadata_Dose=[0.0, 1.0] * 48), tmp_path)
    assert screen.coded(["Metadata_Dose"]).names == ("0", "1")
    assert screen.coded(["Metadata_Dose"], ("1.0", "0.0")).codes[:2].tolist() == [1, 0]
    pair = ["Metadata_Dose", "Metadata_Well"]
    assert screen.coded(pair, ("0.0/A1", "1.0/a2")).codes[:2].tolist() == [0, 1]


def test_a_new_screen_keeps_its_identifier_and_an_earlier_one_its_order(tmp_path: Path) -> None:
    table = profiles().assign(Metadata_CellID=[f"c{row}" for row in range(96)])
    shuffled = table.sample(frac=1, random_state=0)
    screen = ingested(shuffled, tmp_path)
    assert screen.roles.identifier == ("Metadata_CellID",)
    part = make_fold(screen.table, screen.roles, "iid").part
    again = ingested(table, tmp_path / "b")
    assert again.roles.identifier is None or again.roles.identifier == ("Metadata_CellID",)
    in_order = make_fold(again.table, again.roles, "iid").part
    assert part.tolist() == in_order[shuffled.index].tolist()
    index = screen.index.model_copy(
        update={"roles": screen.roles.model_copy(update={"identifier": None}), "sha256": ""}
    )
    (screen.path / "screen.json").write_text(index.model_dump_json())
    assert "identifier" not in index.model_dump_json()
    earlier = open_screen(screen.path)
    assert earlier.roles.identifier == ()
    plain = Roles(**{**earlier.roles.model_dump(), "identifier": ()})
    unnamed = earlier.table.drop(columns="Metadata_CellID")
    assert (
        make_fold(earlier.table, earlier.roles, "iid").part.tolist()
        == make_fold(unnamed, plain, "iid").part.tolist()
    )


def test_the_well_named_by_an_option_is_parsed_too(tmp_path: Path) -> None:
    table = profiles().rename(columns={"Metadata_Well": "Metadata_Position"})
    table["Metadata_Position"] = ["A1", "A01", *table["Metadata_Position"][2:]]
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(InputWarning, match="'A1' and 'A01'"):
        screen = ingest_profiles(
            tmp_path / "t.csv",
            tmp_path / "s",
            config=IngestConfig(well="Metadata_Position"),
            quiet=True,
        )
    assert screen.table["Metadata_Position"].iloc[:2].tolist() == ["A01", "A01"]
