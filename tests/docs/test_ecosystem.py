"""docs/ecosystem.md does what it says, each program by itself where it is installed."""

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound import cli
from deconfound.data.screens.screen import open_screen

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
PARTS = (part.partition("\n") for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:])
SECTIONS = {title: body for title, _, body in PARTS}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {
    "scanpy": "scanpy",
    "pycytominer": "pycytominer",
    "copairs": "copairs",
    "mantispy": "mantispy",
    "scib-metrics": "scib_metrics",
    "SpatialData": "spatialdata",
}
CHEAP = {
    "simulate": "--quiet",
    "fit": "--steps 4 --batch-size 32 --block-size 16 --decoder none --device cpu --quiet",
    "embed": "--device cpu --threads 1 --quiet",
    "embed contents": "",
    "aggregate": "--quiet",
    "ingest": "--quiet",
}


def follow(section: str) -> int:
    """Take every step of a section in the current directory; returns their number."""
    names: dict[str, Any] = {"__name__": "ecosystem"}
    steps = BLOCK.findall(SECTIONS[section])
    for language, text in steps:
        if language == "console":
            for line in text.splitlines():
                words = shlex.split(line.removeprefix("$ deconfound "))
                flags = CHEAP.get(" ".join(words[:2]), CHEAP[words[0]])
                cli.main([*words, *flags.split()])
            continue
        needed = re.match(r"# needs (\w+)\n", text)
        if needed is None or importlib.util.find_spec(needed[1]) is not None:
            exec(compile(text, str(PAGE), "exec"), names)
    return len(steps)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first section was followed."""
    folder = tmp_path_factory.mktemp("ecosystem")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        follow("The files used here")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setenv("MPLBACKEND", "agg")
    yield tmp_path / "user"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS)
def test_other_programs_take_the_files(program: str, folder: Path) -> None:
    reason = f"{program} is not installed: pip install 'deconfound[ecosystem]'"
    pytest.importorskip(PROGRAMS[program], reason=reason)
    assert follow(program)
    assert (folder / "cells.h5ad").is_file()


def test_wells_of_two_series_are_not_merged(folder: Path) -> None:
    """A plate of a series has the name of one in another: 160 wells, not 40."""
    table = open_screen(folder / "cells").table
    assert table.groupby(["Metadata_Plate", "Metadata_Well"]).ngroups == 40
    wells = pd.read_parquet("profiles.parquet")
    assert wells.groupby(["Metadata_Series", "Metadata_Plate", "Metadata_Well"]).ngroups == 160
    assert len(wells) == 160


def test_embeddings_become_screens_again(folder: Path) -> None:
    assert follow("Back into a screen")
    rows = np.arange(640)
    screens = [open_screen(Path(name)) for name in ("contents", "the-same-contents")]
    np.testing.assert_array_equal(*(screen.read(rows) for screen in screens))
    assert open_screen(Path("styles")).channels[0] == "style_00"
    assert (folder / "contents.h5ad").is_file()


def test_tables_beside_profiles_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stream = np.random.default_rng(0)
    wells = pd.DataFrame(
        [("s1", f"{100 + plate}", f"A{well:02d}") for plate in range(4) for well in range(1, 7)],
        columns=["Metadata_Source", "Metadata_Plate", "Metadata_Well"],
    )
    compounds = [f"JCP2022_{number % 3:06d}" for number in range(24)]
    profiles = wells.assign(Cells_AreaShape_Area=stream.normal(size=24))
    profiles.to_parquet("jump.parquet")
    wells.assign(Metadata_JCP2022=compounds).to_csv("well.csv", index=False)
    plates = wells[["Metadata_Source", "Metadata_Plate"]].drop_duplicates()
    plates.assign(Metadata_Batch=["b1", "b1", "b2", "b2"]).to_csv("plate.csv", index=False)
    named = pd.DataFrame(
        {"Metadata_JCP2022": sorted(set(compounds)), "Metadata_InChIKey": [*"abc"]}
    )
    named.to_csv("compound.csv", index=False)
    profiles.to_csv("unlabelled.csv", index=False)
    Path("platemaps/platemap").mkdir(parents=True)
    positions = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    for name in ("m1", "m2"):
        samples = [f"{name}-{number % 3}" for number in range(384)]
        made = {"plate_map_name": name, "well_position": positions, "broad_sample": samples}
        pd.DataFrame(made).to_csv(f"platemaps/platemap/{name}.txt", sep="\t", index=False)
    barcodes = {"Assay_Plate_Barcode": range(100, 104), "Plate_Map_Name": ["m1", "m2"] * 2}
    pd.DataFrame(barcodes).to_csv("platemaps/barcode_platemap.csv", index=False)
    assert follow("Tables beside the profiles")
    jump, mapped = open_screen(Path("jump")), open_screen(Path("mapped"))
    assert jump.roles.label == "Metadata_JCP2022"
    assert jump.table["Metadata_JCP2022"].tolist() == compounds
    expected = [f"m{1 + plate % 2}-{well % 3}" for plate in range(4) for well in range(6)]
    assert mapped.table["Metadata_broad_sample"].tolist() == expected


def test_deepprofiler_and_cytotable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stream = np.random.default_rng(0)
    index, expected = [], []
    for plate in ("P1", "P2"):
        for well, site in (("A01", "1"), ("A01", "2"), ("B02", "1")):
            features = stream.normal(size=(3, 4)).astype(np.float32)
            metadata = np.array({"Metadata_Plate": plate, "Metadata_Model": "m"}, dtype=object)
            Path("deepprofiler", plate, well).mkdir(parents=True, exist_ok=True)
            np.savez(
                Path("deepprofiler", plate, well, f"{site}.npz"), features=features,
                metadata=metadata, locations=stream.uniform(0, 9, (3, 2)),
            )  # fmt: skip
            expected.append(features)
            index.append((plate, well, site, {"A01": "DMSO", "B02": "taxol"}[well]))
    places = [f"Metadata_{name}" for name in ("Plate", "Well", "Site", "Perturbation")]
    pd.DataFrame(index, columns=places).to_csv("index.csv", index=False)
    # CytoTable 1.2: a prefix for each compartment, metadata of the image, and no label
    cells = pd.DataFrame(
        {
            "Metadata_ImageNumber": np.repeat([1, 2, 3, 4], 4),
            "Metadata_Cytoplasm_Parent_Cells": 1,
            "Image_Metadata_Plate": np.repeat(["P1", "P2"], 8),
            "Image_Metadata_Well": np.tile(np.repeat(["A01", "B02"], 4), 2),
            "Metadata_ObjectNumber": np.tile([1, 2, 3, 4], 4),
            "Cytoplasm_AreaShape_Area": stream.normal(size=16),
            "Cells_AreaShape_Area": stream.normal(size=16),
            "Nuclei_Location_Center_X": stream.uniform(size=16),
        }
    )  # fmt: skip
    cells.to_parquet("cytotable.parquet")
    known = {"Metadata_Well": ["A1", "B2"], "Metadata_Perturbation": ["DMSO", "taxol"]}
    pd.DataFrame(known).to_csv("wells-of-cytotable.csv", index=False)
    assert follow("DeepProfiler and CytoTable")
    deep, single = open_screen(Path("deep")), open_screen(Path("single-cells"))
    np.testing.assert_array_equal(deep.read(np.arange(18)), np.concatenate(expected))
    assert deep.table["Metadata_Perturbation"].tolist() == (["DMSO"] * 6 + ["taxol"] * 3) * 2
    assert deep.channels == ("DP_0", "DP_1", "DP_2", "DP_3")
    assert single.channels == ("Cytoplasm_AreaShape_Area", "Cells_AreaShape_Area")
    assert single.table["Metadata_Perturbation"].tolist() == (["DMSO"] * 4 + ["taxol"] * 4) * 2
