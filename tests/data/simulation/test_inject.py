"""Injected screens: every cell once, exact counterfactuals, errors of one line."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound import cli
from deconfound.config import validated
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.counterfactual import counterfactual, new_environment
from deconfound.data.simulation.inject import InjectConfig, inject
from deconfound.data.simulation.optics import apply_optics, optics_from
from deconfound.data.tables.table import Roles, joined
from deconfound.errors import UserError
from deconfound.runtime.seeds import numpy_stream

SMALL = {"series": 2, "plates": 2, "sections": 2, "wells": 1}
ROLES = Roles(label="pattern", environment=("Metadata_Plate",), levels=("Metadata_Plate",))


def clean_screen(
    out: Path, *, channels: int = 1, dtype: str = "uint8", labels: str = "abcd", cells: int = 90,
    brightest: int | None = None, roles: Roles = ROLES, sides: tuple[int, int] = (20, 20),
) -> Screen:  # fmt: skip
    """Blurred noise of unequally many cells of each label; one plate, and a name of each cell."""
    stream = np.random.default_rng(3)
    pixels = stream.integers(0, 200, (cells, channels, *sides)).astype(dtype)
    if dtype != "float32":
        pixels[-1, 0, 0, 0] = brightest or np.iinfo(dtype).max
    pattern = [
        labels[min(row * len(labels) // (cells - 7), len(labels) - 1)] for row in range(cells)
    ]
    table = pd.DataFrame({"pattern": pattern, "Metadata_Plate": "P9", "Metadata_Well": "Z"})
    table = table.assign(name=[f"{row:03d}.png" for row in range(cells)])
    table = table.sample(frac=1, random_state=0)
    with ScreenWriter(out, "cells", "abcde"[:channels], roles, {"made_by": "test"}) as writer:
        writer.append(pixels)
        writer.finish(table)
    return open_screen(out)


def small(clean: Screen, out: Path, **options: Any) -> Screen:
    config = InjectConfig.model_validate(SMALL | options)
    return inject(clean.path, out, config=config, threads=1, quiet=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return clean_screen(tmp_path_factory.mktemp("clean") / "clean")


@pytest.fixture(scope="module")
def screen(clean: Screen, tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return small(clean, tmp_path_factory.mktemp("injected") / "screen")


def every_image(screen: Screen) -> Any:
    return screen.read(np.arange(len(screen)))


def test_every_clean_cell_is_used_once_with_its_label_and_name(
    clean: Screen, screen: Screen
) -> None:
    cell = screen.table["Truth_Cell"]
    assert sorted(cell) == list(range(len(clean))) != cell.tolist()
    for column in ("pattern", "name"):
        kept = clean.table[column].iloc[cell].tolist()
        assert screen.table[column].tolist() == kept


def test_a_screen_has_the_declared_form(clean: Screen, screen: Screen) -> None:
    assert (screen.channels, screen.image_shape, screen.dtype) == (("a",), (1, 20, 20), np.uint8)
    levels = ("Metadata_Series", "Metadata_Plate", "Metadata_Section")
    assert screen.roles == Roles(
        label="pattern", environment=levels, levels=levels, well="Metadata_Well"
    )
    assert set(screen.table) == {
        *levels, "Metadata_Well", "Metadata_Site", "Metadata_ObjectNumber", "pattern", "name",
        "Truth_Cell", "Truth_FieldX", "Truth_FieldY",
    }  # fmt: skip
    assert "P9" not in screen.table["Metadata_Plate"].tolist()
    made = screen.provenance["injected"]
    assert made["clean"] == {
        "path": str(clean.path), "name": "cells", "identity": clean.identity,
    }  # fmt: skip
    assert made["options"]["sections"] == 2
    assert screen.provenance["made_by"].startswith("deconfound inject")
    assert set(screen.provenance["environments"]) == set(joined(screen.table, levels))
    assert screen.table[["Truth_FieldX", "Truth_FieldY"]].abs().max(axis=None) <= 1


def test_labels_are_partly_shared_and_their_wells_even(screen: Screen) -> None:
    table = screen.table
    plates = ["Metadata_Series", "Metadata_Plate"]
    held = table.groupby(plates)["pattern"].nunique()
    assert ((held >= 2) & (held < 4)).all()
    assert (table.groupby("pattern")["Metadata_Series"].nunique() == 2).any()
    well = table.groupby([*plates, "Metadata_Section", "Metadata_Well"])["pattern"]
    assert (well.nunique() == 1).all()
    cells = well.agg(["first", "size"]).groupby("first")["size"]
    assert (cells.max() - cells.min() <= 1).all()


def test_a_control_lies_on_every_plate_and_is_named(clean: Screen, tmp_path: Path) -> None:
    screen = small(clean, tmp_path / "screen", control="c")
    plate = screen.table.groupby(["Metadata_Series", "Metadata_Plate"])["pattern"]
    assert plate.agg(lambda pattern: (pattern == "c").any()).all()
    negative = screen.table["Metadata_Control_Type"] == "negcon"
    assert negative.tolist() == (screen.table["pattern"] == "c").tolist()


def test_the_plate_maps_of_lincs_share_the_control_alone(clean: Screen, tmp_path: Path) -> None:
    screen = small(clean, tmp_path / "screen", layout="lincs", maps=3, plates=1, control="a")
    assert screen.roles.levels == ("Metadata_Series", "Metadata_Plate")
    for _, patterns in screen.table.groupby("Metadata_PlateMap")["pattern"]:
        assert len(set(patterns)) == 2
        assert "a" in set(patterns)
    own = joined(screen.table, screen.roles.levels)[0]
    np.testing.assert_array_equal(counterfactual(screen, [0], own), screen.read([0]))


@pytest.mark.parametrize(
    "form",
    [{}, {"channels": 3}, {"channels": 5, "dtype": "uint16", "brightest": 4095}],
    ids=["grey", "colour", "12 bits"],
)
def test_own_environment_returns_the_stored_pixels(tmp_path: Path, form: Any) -> None:
    clean = clean_screen(tmp_path / "clean", **form)
    small(clean, tmp_path / "screen")
    screen = open_screen(tmp_path / "screen")
    assert (screen.dtype, screen.image_shape) == (clean.dtype, clean.image_shape)
    environments = joined(screen.table, screen.roles.levels)
    for environment in environments.unique().tolist():
        rows = np.flatnonzero((environments == environment).to_numpy(dtype=bool))[::-2]
        images = counterfactual(screen, rows, environment)
        assert images.dtype == screen.dtype
        np.testing.assert_array_equal(images, screen.read(rows))


def test_another_environment_does_to_the_clean_cell_what_its_optics_say(
    clean: Screen, screen: Screen
) -> None:
    row = 31
    cell = int(screen.table["Truth_Cell"][row])
    light = clean.read([cell]).astype(np.float32) * np.float32(0.5 / 255)
    noise = numpy_stream(0, "injected noise", cell).standard_normal((1, 1, 20, 20), np.float32)
    field = 2 * numpy_stream(0, "injected field", cell).random((1, 2), np.float32) - 1
    other = "S2/P1/A2"
    assert not other.startswith(screen.table["Metadata_Series"][row])
    seen = apply_optics(light, optics_from(screen.provenance["environments"][other]), field, noise)
    expected = np.rint(seen * 255).astype(np.uint8)
    np.testing.assert_array_equal(counterfactual(screen, [row], other), expected)
    assert np.abs(expected.astype(int) - screen.read([row])).mean() > 1


def test_no_environment_is_the_clean_image_at_its_exposure(
    clean: Screen, screen: Screen, tmp_path: Path
) -> None:
    rows = np.arange(len(screen))
    own = clean.read(screen.table["Truth_Cell"])
    halved = counterfactual(screen, rows, "none")
    assert np.abs(halved.astype(float) - own / 2).max() <= 0.5
    full = small(clean, tmp_path / "full", exposure=1)
    np.testing.assert_array_equal(counterfactual(full, rows, "none"), own)
    untouched = small(clean, tmp_path / "untouched", technical=0)
    np.testing.assert_array_equal(every_image(untouched), halved)
    assert not np.array_equal(every_image(screen), halved)


def test_pixels_are_scaled_by_the_brightest_of_the_screen(tmp_path: Path) -> None:
    clean = clean_screen(tmp_path / "clean", dtype="uint16", brightest=4095)
    screen = small(clean, tmp_path / "screen", exposure=1)
    own = clean.read(screen.table["Truth_Cell"])
    shown = counterfactual(screen, np.arange(len(screen)), "none")
    np.testing.assert_allclose(shown, own * (65535 / 4095), atol=0.51)


def test_the_same_seed_gives_the_same_files_whatever_the_threads(
    clean: Screen, screen: Screen, tmp_path: Path
) -> None:
    config = InjectConfig.model_validate(SMALL)
    again = inject(clean.path, tmp_path / "screen", config=config, threads=3, quiet=True)
    assert again.index.model_dump() == screen.index.model_dump()
    other = small(clean, tmp_path / "other", seed=1)
    assert other.table["Truth_Cell"].tolist() != screen.table["Truth_Cell"].tolist()


def test_a_counterfactual_does_not_depend_on_its_companions(screen: Screen) -> None:
    together = counterfactual(screen, np.arange(len(screen)), "S1/P2/A1")
    for rows in ([3], [80, 3, 77]):
        np.testing.assert_array_equal(counterfactual(screen, rows, "S1/P2/A1"), together[rows])
    assert counterfactual(screen, [], "none").shape == (0, 1, 20, 20)
    new = new_environment(screen, "new")
    assert new.as_dict() not in screen.provenance["environments"].values()
    assert counterfactual(screen, [0], new).shape == (1, 1, 20, 20)


def test_a_clean_screen_that_is_gone_or_changed_is_named(clean: Screen, tmp_path: Path) -> None:
    shutil.copytree(clean.path, tmp_path / "clean")
    screen = small(open_screen(tmp_path / "clean"), tmp_path / "screen")
    shutil.rmtree(tmp_path / "clean")
    with pytest.raises(UserError, match=r"its clean screen .* is gone"):
        counterfactual(screen, [], "none")
    clean_screen(tmp_path / "clean", cells=91)
    with pytest.raises(UserError, match=r"its clean screen .* has changed since"):
        counterfactual(screen, [], "none")


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ({"roles": Roles()}, {}, "has no label"),
        (
            {"roles": Roles(label="Metadata_Well")},
            {},
            "label Metadata_Well is a column that inject",
        ),
        ({"dtype": "float32"}, {}, "type float32, which has no full scale"),
        ({"sides": (20, 24)}, {}, "images of 20 × 24 pixels"),
        ({"labels": "a"}, {}, "pattern has 1 value"),
        ({}, {"wells": 5}, r"\d\d cells of pattern \w for \d+ wells; lower --wells"),
        ({}, {"control": "e"}, "no pattern is 'e'"),
        ({}, {"layout": "lincs"}, "lincs needs a control"),
        ({}, {"layout": "lincs", "control": "a"}, "6 plate maps for 3 treatments"),
    ],
)
def test_what_cannot_be_injected_is_a_user_error(
    tmp_path: Path, form: Any, options: Any, message: str
) -> None:
    clean = clean_screen(tmp_path / "clean", **form)
    with pytest.raises(UserError, match=message) as error:
        small(clean, tmp_path / "screen", **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["clean"]


def test_profiles_black_and_unlabelled_cells_are_user_errors(tmp_path: Path) -> None:
    table = pd.DataFrame({"pattern": ["a", "b"] * 32})
    dark = np.zeros((64, 1, 20, 20), dtype=np.uint8)
    for name, rows, values, message in (
        ("profiles", table, np.ones((64, 2), dtype=np.float32), "holds profiles"),
        ("black", table, dark, "every image is black"),
        ("unlabelled", table.assign(pattern=["a", "b", None, "a"] * 16), dark + np.uint8(9),
         r"row 2 \(from 0\) has no pattern"),
    ):  # fmt: skip
        channels = "ab"[: values.shape[1]]
        with ScreenWriter(tmp_path / name, name, channels, ROLES.model_copy(
            update={"environment": (), "levels": ()}
        ), {}) as writer:  # fmt: skip
            writer.append(values)
            writer.finish(rows)
        with pytest.raises(UserError, match=message):
            small(open_screen(tmp_path / name), tmp_path / "screen")


def test_neither_injecting_twice_nor_over_a_screen_is_possible(
    clean: Screen, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"is injected already; give its clean screen, {clean.path}"
    ):
        small(screen, tmp_path / "again")
    with pytest.raises(UserError, match="already exists"):
        small(clean, screen.path)
    with pytest.raises(UserError, match="'exposure'"):
        validated(InjectConfig, {"exposure": 0}, "inject")


def test_the_verb_injects_and_describe_says_so(
    clean: Screen, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "said"
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    cli.main(["inject", str(clean.path), "--out", str(out), *words, "--quiet"])
    assert f"90 cells of {clean.path} with injected effects in {out}" in capsys.readouterr().out
    assert open_screen(out).identity == screen.identity
    cli.main(["describe", str(out), "--quiet"])
    assert "injected into cells" in capsys.readouterr().out


def test_a_report_says_of_a_run_that_its_effects_were_injected(screen: Screen) -> None:
    from deconfound.reports.run_facts import _pixels

    config = {"data": {"scaling": "unit"}}
    for made, said in ((screen.provenance, "injected into cells, "), ({"made_by": "test"}, "")):
        fold = {"screen_provenance": made}
        opened = SimpleNamespace(percentile_by=(), standardise_by=(), transform="none")
        run: Any = SimpleNamespace(fold=fold, config=config, run=opened)
        begun = f"technical effects {said}" if said else ""
        assert _pixels(run) == f"{begun}transform none, scaling unit"
