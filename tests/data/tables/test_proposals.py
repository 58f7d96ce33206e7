"""Columns that may be meant for a role."""

import pandas as pd

from deconfound.data.tables.proposals import (
    environment_candidates,
    feature_patterns,
    label_candidates,
    nested_around,
    path_candidates,
)

TABLE = pd.DataFrame(
    {
        "Path": [f"{row}.PNG" for row in range(24)],
        "Metadata_CellType": [*"ab"] * 12,
        "compounds": [*"abc"] * 8,
        "Metadata_Phenotype": [*"aabb"] * 6,
        "Gene": [f"g{row}" for row in range(24)],
        "drug": ["one"] * 24,
        "geneva": [*"ab"] * 12,
        "Metadata_Class": [None, *"ab"] * 8,
        "Cells_Location_Site": [*"abcd"] * 6,
        "Metadata_Lab": ["L1"] * 12 + ["L2"] * 12,
        "imaging date": [f"d{row // 6}" for row in range(24)],
        "PlateID": [f"p{row // 3}" for row in range(24)],
        "donor": [*"abcd"] * 6,
        "hospital": ["h1"] * 12 + ["h2"] * 12,
        "emb_1": 0,
    }
)


def test_labels_are_told_by_their_names_and_numbers_of_values() -> None:
    expected = ["Metadata_Phenotype", "Metadata_CellType", "compounds", "Metadata_Class"]
    assert label_candidates(TABLE) == expected
    assert label_candidates(TABLE, ["Metadata_Phenotype", "compounds"]) == expected[1::2]


def test_environments_are_told_the_same_way() -> None:
    expected = ["imaging date", "Metadata_Lab", "PlateID", "donor", "hospital"]
    assert environment_candidates(TABLE) == expected


def test_levels_nest_and_are_outermost_first() -> None:
    others = ["Metadata_Lab", "PlateID", "donor", "hospital"]
    expected = ["Metadata_Lab", "imaging date", "PlateID"]
    assert nested_around(TABLE, "imaging date", others) == expected
    assert nested_around(TABLE, "donor", ["imaging date"]) == ["donor"]


def test_columns_of_files_and_of_features() -> None:
    assert path_candidates(TABLE) == ["Path"]
    assert feature_patterns([*TABLE, "emb_2", "f1", "f2", "emb_30"]) == ["emb_*"]
    assert feature_patterns([*TABLE, "emb_2"]) == []
