"""A comparison of what Python holds: screens, arrays, DataFrames and AnnData, with keywords."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile

from deconfound.data.screens.memory import with_table
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.errors import UserError
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions, by_keyword

FEW: dict[str, Any] = {
    "methods": "erm", "hold_out": "plate=S1/P1", "seeds": 0, "steps": 2, "batch_size": 16,
    "workers": 1, "quiet": True,
}  # fmt: skip


def _scores(found: Any) -> pd.DataFrame:
    scores: pd.DataFrame = found.scores
    return scores.drop(columns=["run"], errors="ignore").reset_index(drop=True)


def test_a_screen_is_compared_where_it_lies(screen: Screen, tmp_path: Path) -> None:
    found = compare(screen, tmp_path / "out", **FEW)
    assert not (tmp_path / "out" / "screen").exists()
    by_path = compare(
        str(screen.path),
        tmp_path / "path",
        CompareOptions(methods=("erm",), hold_out=("plate=S1/P1",), seeds=(0,)),
        steps=2, batch_size=16, workers=1, quiet=True,
    )  # fmt: skip
    assert (tmp_path / "out" / "verdict.json").read_bytes() == (
        tmp_path / "path" / "verdict.json"
    ).read_bytes()
    pd.testing.assert_frame_equal(found.scores, by_path.scores)


def test_arrays_read_as_the_screen_of_them_on_disk(screen: Screen, tmp_path: Path) -> None:
    images = screen.read(range(len(screen)))
    roles = screen.roles
    found = compare(
        images, tmp_path / "out", table=screen.table, label=str(roles.label),
        environment=list(roles.environment), levels=list(roles.levels), **FEW,
    )  # fmt: skip
    written = open_screen(tmp_path / "out" / "screen")
    np.testing.assert_array_equal(written.read(range(len(written))), images)
    pd.testing.assert_frame_equal(_scores(found), _scores(compare(screen, **FEW)))
    again = compare(
        images, tmp_path / "out", table=screen.table, label=str(roles.label),
        environment=list(roles.environment), levels=list(roles.levels), **FEW,
    )  # fmt: skip
    assert again.summary is not None
    assert again.summary.before == again.summary.runs
    with pytest.raises(UserError, match="was begun with another sha256"):
        compare(
            images[::-1], tmp_path / "out", table=screen.table, label=str(roles.label),
            environment=list(roles.environment), levels=list(roles.levels), **FEW,
        )  # fmt: skip


def test_labels_and_environments_may_be_arrays(screen: Screen) -> None:
    images, table = screen.read(range(len(screen))), screen.table
    found = compare(
        images, label=table["compound"].to_numpy(), environment=table["plate"],
        **FEW | {"hold_out": "plate"},
    )  # fmt: skip
    assert found.verdict is not None
    assert {one["fold"].partition("=")[0] for one in found.verdict.groups} == {"plate"}


@pytest.mark.parametrize("kind", ["DataFrame", "AnnData", "obsm"])
def test_profiles_are_compared(kind: str, make_table: Callable[..., pd.DataFrame]) -> None:
    table = make_table(30)
    values = np.random.default_rng(0).normal(size=(len(table), 6)).astype(np.float32)
    named = pd.DataFrame(values, columns=[f"Cells_F{place}" for place in range(6)])
    told: dict[str, Any] = {"label": "compound", "environment": "plate"}
    data: Any = pd.concat([named, table], axis=1)
    if kind != "DataFrame":
        obs = table.rename(index=str)
        data = anndata.AnnData(values, obs=obs) if kind == "AnnData" else anndata.AnnData(obs=obs)
        if kind == "obsm":
            data.obsm["X_pca"] = values
            told["obsm"] = "X_pca"
    found = compare(data, levels=["series", "plate"], **told, **FEW)
    assert found.verdict is not None
    assert found.verdict.label == "compound"
    assert open_screen(Path(found.verdict.source)).image_shape == (6,)


def test_a_dataframe_with_the_paths_of_images(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    rows = [
        {"Path": f"{batch}-{label}-{number}.tif", "Metadata_Perturbation": label,
         "Metadata_Batch": batch}
        for batch in ("B1", "B2", "B3") for label in ("taxol", "DMSO") for number in range(10)
    ]  # fmt: skip
    for row in rows:
        image = stream.integers(0, 200, (24, 24)).astype(np.uint16)
        tifffile.imwrite(tmp_path / row["Path"], image)
    asked = FEW | {"hold_out": "Metadata_Batch=B2", "images_root": tmp_path}
    found = compare(pd.DataFrame(rows), tmp_path / "out", **asked)
    assert found.verdict is not None
    assert len(open_screen(tmp_path / "out" / "screen")) == 60
    again = compare(pd.DataFrame(rows), tmp_path / "out", **asked)
    assert again.verdict == found.verdict
    with pytest.raises(UserError, match="was begun with another sha256"):
        compare(pd.DataFrame(rows[1:]), tmp_path / "out", **asked)


def test_without_out_nothing_is_left(screen: Screen, tmp_path: Path) -> None:
    found = compare(screen, **FEW)
    place = found.out
    assert place is not None
    assert found.best == "erm"
    found.report(tmp_path / "page.html")
    del found
    gc.collect()
    assert not place.parent.exists()
    assert (tmp_path / "page.html").is_file()


def test_a_screen_with_another_table_is_no_longer_the_one_on_disk(
    screen: Screen, tmp_path: Path
) -> None:
    table = screen.table.assign(compound=screen.table["compound"].to_numpy()[::-1])
    compare(with_table(screen, table, screen.roles), tmp_path / "out", **FEW)
    written = open_screen(tmp_path / "out" / "screen")
    assert written.table["compound"].tolist() == table["compound"].tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hold_uot": "plate"}, "no option 'hold_uot'; did you mean 'hold_out'"),
        ({"budget": -1}, "budget.*greater than 0"),
        ({"methods": "emr"}, "did you mean 'erm'"),
        ({"hold_out": "plate=S9/P1"}, "no such group"),
        ({"label": "compuond"}, "did you mean 'compound'|no column 'compuond'"),
        ({"images_root": "images"}, "images_root belongs to a DataFrame"),
        ({"obsm": "X_pca"}, "obsm belongs to AnnData"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    change: dict[str, Any], said: str, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        compare(screen, tmp_path / "out", **FEW | change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": 500}, "--cells is not read with the view verdict"),
        ({"view": "search"}, "--view search reads a plan"),
        ({"methods": "emr"}, "did you mean 'erm'"),
    ],
)
def test_options_that_are_wrong_are_refused_before_a_screen_is_made(
    change: dict[str, Any], said: str, screen: Screen, tmp_path: Path
) -> None:
    images, roles = screen.read(range(len(screen))), screen.roles
    with pytest.raises(UserError, match=said):
        compare(
            images, tmp_path / "out", table=screen.table, label=str(roles.label),
            environment=list(roles.environment), **FEW | change,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", [3, None, [1, 2]])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(UserError, match="expected images as an array"):
        compare(source, **FEW)


def test_parts_of_anndata_belong_to_rows_in_memory(screen: Screen) -> None:
    with pytest.raises(UserError, match="belong to rows in memory"):
        compare(screen.path, layer="counts", **FEW)


def test_keywords_change_options_that_are_given() -> None:
    found = by_keyword(CompareOptions(steps=3, seeds=(1, 2)), {"steps": 4, "style_images": 2})
    assert (found.options.steps, found.options.seeds) == (4, (1, 2))
    assert found.intervention == {"style_images": 2}
