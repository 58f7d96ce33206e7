"""The table of Pernice et al. for a screen: rows, folds, and the way from one to the other."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from deconfound.config import DataOptions
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.experiments.held_out import Folds, chosen_levels, describe_folds, level_titles
from deconfound.experiments.running.chain import Chain
from deconfound.experiments.table import read_table_file
from deconfound.experiments.words import read_rows
from deconfound.reports.sources import find_sources
from deconfound.runs.config import RunConfig, dump_config
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions, Comparison
from deconfound.studies.levels import make_table, plan_values, shown

MakeScreen = Callable[..., Screen]


def by_levels(
    methods: tuple[str, ...],
    screen: Path,
    out: Path,
    options: CompareOptions | None = None,
    **more: Any,
) -> Comparison:
    """Compare methods on a screen by levels."""
    asked = (options or CompareOptions()).model_copy(update={"methods": methods, "view": "levels"})
    return compare(screen, out, asked, **more)


def test_rows_share_the_runs_of_their_method(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    file = tmp_path / "dr.yaml"
    file.write_text(dump_config(make_config("dann")))
    rows, entries = read_rows(("erm", "erm+knn", f"dr={file}", "dr+knn"))
    assert rows == [
        Chain("erm", "erm"),
        Chain("erm+knn", "erm", None, 10),
        Chain("dr", "dr"),
        Chain("dr+knn", "dr", None, 10),
    ]
    assert entries == {"erm": {}, "dr": {"method": "dann", "config": str(file)}}
    pytest.importorskip("harmonypy", reason="needs the extra [harmony]")
    (symphony, harmony), _ = read_rows(("erm+symphony+knn", "erm+harmony"))
    assert symphony == Chain("erm+symphony+knn", "erm", "symphony", 10)
    assert harmony == Chain("erm+harmony-refit", "erm", "harmony")


def test_rows_of_methods_trained_on_imputed_images(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    scbd, far = tmp_path / "scbd.yaml", tmp_path / "far.yaml"
    scbd.write_text(dump_config(make_config("scbd")))
    far.write_text(dump_config(make_config("ist")))
    words = ("erm+ist", "erm+ist+knn", f"scbd={scbd}", "scbd+far", f"far={far}")
    rows, entries = read_rows(words)
    assert rows == [
        Chain("erm+ist", "erm+ist"),
        Chain("erm+ist+knn", "erm+ist", None, 10),
        Chain("scbd", "scbd"),
        Chain("scbd+far", "scbd+far"),
        Chain("far", "far"),
    ]
    assert entries == {
        "erm+ist": {"method": "erm", "intervene": "ist"},
        "scbd": {"method": "scbd", "config": str(scbd)},
        "scbd+far": {"method": "scbd", "config": str(scbd), "intervene": "far"},
        "far": {"method": "ist", "config": str(far)},
        "ist": {},
    }
    given = {"relative_style": "controls", "correction_draws": 0, "bank": None}
    swept = plan_values(tmp_path, entries, [], CompareOptions(), given)["methods"]
    del given["bank"]
    assert swept["erm+ist"]["intervention"] == given
    plain = {name: entry for name, entry in entries.items() if "intervene" not in entry}
    with pytest.raises(UserError, match="--style-images belongs to METHOD"):
        plan_values(tmp_path, plain, [], CompareOptions(), {"style_images": 2})
    assert "intervention" not in swept["scbd"]


def test_what_no_run_could_take_is_refused_before_anything_is_written(
    screen: Screen, tmp_path: Path
) -> None:
    given = {"impute_into": "mean", "correction_draws": 4}
    said = "compare: methods.erm.ist: option 'intervention.correction_draws' = 4: .* give 1 or 0"
    with pytest.raises(UserError, match=said):
        by_levels(("erm+ist",), screen.path, tmp_path / "out", **given, quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one method or more"),
        (("emr",), "unknown method 'emr'; did you mean 'erm'"),
        (("symphony",), "symphony is a post hoc method"),
        (("erm+kn",), "'kn' neither imputes nor corrects; did you mean 'knn'"),
        (("erm+mixstyle",), "'mixstyle' neither imputes nor corrects"),
        (("erm+knn+ist",), "one imputer at most"),
        (("erm+ist+stargan2",), "one imputer at most"),
        (("erm+knn+symphony",), "one correction at most, then knn"),
        (("erm+harmony+symphony",), "one correction at most, then knn"),
        (("erm+knn+knn",), "one correction at most, then knn"),
        (("erm=none.yaml",), "no such configuration file"),
        (("erm=a.yaml", "erm+knn=b.yaml"), "erm has two configurations"),
    ],
)
def test_mistakes_in_methods_are_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("+", r"\+")) as error:
        read_rows(words)
    assert "\n" not in str(error.value)


def test_a_correction_that_is_not_installed_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "harmonypy", None)
    with pytest.raises(UserError, match=r"symphony needs the extra \[harmony\]"):
        read_rows(("erm+symphony+knn",))


def test_levels_are_those_of_the_screen_innermost_first(screen: Screen) -> None:
    def levels(*wanted: str) -> list[str]:
        return chosen_levels(screen, wanted)

    assert levels() == ["section", "plate", "series"]
    assert levels("series,section") == levels("series", "section") == ["section", "series"]
    with pytest.raises(UserError, match="unknown level 'plat'; did you mean 'plate'"):
        levels("plat")
    with pytest.raises(UserError, match="column 'well' is not nested in the levels"):
        levels("section,well")


def test_levels_have_the_numbers_of_the_paper(screen: Screen) -> None:
    """Whichever are asked for; a screen without sections begins with level 2, as LINCS-SC does."""
    assert level_titles(screen, ["plate", "series"]) == {
        "plate": "Level-2: plate", "series": "Level-3: series",
    }  # fmt: skip
    levels = ("Metadata_Series", "Metadata_Plate")
    lincs = SimpleNamespace(roles=Roles(levels=levels))
    assert level_titles(lincs, ["Metadata_Plate", "Metadata_Series"]) == {  # type: ignore[arg-type]
        "Metadata_Plate": "Level-2: Metadata_Plate", "Metadata_Series": "Level-3: Metadata_Series",
    }  # fmt: skip


def test_folds_are_all_groups_or_some_drawn_by_a_seed(screen: Screen) -> None:
    every = Folds().choose(screen, ["section", "plate", "series"], DataOptions())
    assert every.groupby("level", sort=False).size().to_dict() == {
        "section": 8, "plate": 4, "series": 2,
    }  # fmt: skip
    assert every["held_out"].all()
    assert (every["rows"] == every["level"].map({"section": 12, "plate": 24, "series": 48})).all()
    drawn = {
        seed: Folds().choose(screen, ["section"], DataOptions(), folds_per_level=2, draw_seed=seed)
        for seed in range(3)
    }
    for table in drawn.values():
        assert table["held_out"].sum() == 2
        assert (table["reason"].str.contains("not drawn") != table["held_out"]).all()
    assert len({tuple(table.loc[table["held_out"], "fold"]) for table in drawn.values()}) > 1
    pd.testing.assert_frame_equal(
        drawn[0],
        Folds().choose(screen, ["section"], DataOptions(), folds_per_level=2, draw_seed=0),
    )
    lines = describe_folds(drawn[0])
    assert lines[0].startswith("section: 2 of 8 groups held out: S")
    assert lines[1] == "section: 6 not held out: not drawn: --folds-per-level 2"


def test_a_group_that_cannot_be_scored_is_left_out_with_its_reason(
    make_screen: MakeScreen, make_images: Any, make_table: Any, tmp_path: Path
) -> None:
    """S3 has one plate, so it is no fold of plates, and a label of its own, so none of series."""
    table = make_table()
    extra = table[(table["series"] == "S2") & (table["plate"] == "P2")].assign(series="S3")
    table = pd.concat([table, extra], ignore_index=True)
    images = make_images(table)
    table.loc[table["series"] == "S3", "compound"] = "c9"
    made = make_screen(tmp_path / "s", images, table)
    folds = Folds().choose(made, ["plate", "series"], DataOptions()).set_index("fold")
    assert not folds.loc[["plate=S3/P2", "series=S3"], "held_out"].any()
    assert "has no other group" in folds.loc["plate=S3/P2", "reason"]
    assert "nothing could be scored" in folds.loc["series=S3", "reason"]
    assert folds["held_out"].sum() == 6


def test_screens_that_cannot_be_cross_validated_are_refused(
    make_screen: MakeScreen, make_images: Any, make_table: Any, tmp_path: Path
) -> None:
    table = make_table().assign(batch="B1")
    images: npt.NDArray[np.uint16] = make_images(table)
    for name, roles, said in (
        ("one", Roles(label="compound", environment=("batch",), levels=("batch", "plate")),
         "has 1 environment; expected 2 or more"),
        ("flat", Roles(label="compound", environment=("plate",)), "has no levels to hold out"),
    ):  # fmt: skip
        made = make_screen(tmp_path / name, images, table, roles)
        with pytest.raises(UserError, match=said) as error:
            by_levels(("erm",), made.path, tmp_path / "o", quiet=True)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


def test_the_sweep_holds_what_was_asked(screen: Screen) -> None:
    options = CompareOptions(seeds=(4,), steps=7, environment=("plate", "section"))
    found = plan_values(screen.path, {"erm": {}}, ["series=S1"], options, {})
    assert found["folds"] == ["iid", "series=S1"]
    assert found["training"] == {"steps": 7}
    assert found["data"] == {"environment": ["plate", "section"]}
    assert found["seeds"] == [4]


def score(method: str, fold: str, metric: str, value: float, **other: Any) -> dict[str, Any]:
    known = {"representation": "prediction", "part": "test", "seed": 0}
    return {"method": method, "fold": fold, "metric": metric, "value": value} | known | other


def test_cells_are_means_and_sds_over_folds_and_seeds() -> None:
    scores = pd.DataFrame(
        [
            *(score("a", "iid", "macro_f1", v, seed=s) for s, v in enumerate((0.8, 0.6))),
            score("a", "iid", "macro_f1", 9.0, part="val"),
            score("a", "iid", "lisi_ratio", 1.5, representation="content"),
            score("a", "iid", "lisi_ratio", 9.0, representation="style"),
            score("a", "plate=1", "macro_f1", 0.1),
            score("a", "plate=1", "macro_f1", 0.3, seed=1),
            score("a", "plate=2", "macro_f1", 0.8),
            score("a", "plate=2", "macro_f1", math.nan, seed=1),
            score("a", "plate=2", "macro_f1_chance", 0.2),
            score("b", "series=1", "macro_f1", 0.5),
            score("b", "series=1", "macro_f1_seen_nearby", 0.75),
            score("b", "series=1", "macro_f1_seen_nearby_chance", 0.25),
            score("b", "series=1", "macro_f1_unseen_nearby", 0.5),
        ]
    )
    folds = {"plate": ["plate=1", "plate=2"], "series": ["series=1"]}
    table = make_table(scores, ["a", "b"], folds).set_index("method")
    a, b = table.loc["a"], table.loc["b"]
    assert (a["IID_mean"], a["IID_runs"]) == (pytest.approx(0.7), 2)
    assert a["cLISI/bLISI_mean"] == 1.5
    assert a["plate_mean"] == pytest.approx(0.4)
    assert a["plate_sd"] == pytest.approx(np.std([0.1, 0.3, 0.8], ddof=1))
    assert (a["plate_runs"], a["plate_chance"]) == (3, 0.2)
    assert math.isnan(a["series_mean"])
    assert (b["series_mean"], b["series_runs"]) == (0.5, 1)
    assert (b["series_seen_nearby_mean"], b["series_seen_nearby_chance"]) == (0.75, 0.25)
    assert (b["series_unseen_nearby_mean"], b["series_unseen_nearby_runs"]) == (0.5, 1)
    assert a["plate_seen_nearby_runs"] == 0
    text = shown(table.reset_index(), {"plate": "Level-1: plate", "series": "Level-2: series"})
    assert list(text.columns) == [
        "method", "IID", "cLISI/bLISI", "kNN BatchCV", "Level-1: plate", "Level-2: series",
    ]  # fmt: skip
    assert text.iloc[0].tolist() == ["a", "0.700 ± 0.141", "1.500", "–", "0.400 ± 0.361", "–"]


def test_from_a_screen_to_the_table(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "c"
    options = CompareOptions(
        hold_out=("plate", "series"), folds_per_level=1, seeds=(0,), steps=3, batch_size=24, knn=3
    )
    found = by_levels(("erm", "erm+knn"), screen.path, out, options, workers=1, quiet=True)
    assert found.summary is not None
    assert found.summary.failed == 0
    assert pd.read_csv(out / "folds.csv")["held_out"].sum() == 2
    table = pd.read_csv(out / "table.csv").set_index("method")
    for column in ("IID", "cLISI/bLISI", "kNN BatchCV", "plate", "series"):
        assert table[f"{column}_runs"].tolist() == [1, 1], column
        assert table[f"{column}_mean"].notna().all(), column
    files = sorted((out / "embeddings").glob("*+knn3.h5ad"))
    assert len(files) == 3
    for file in files:
        opened = read_embeddings(file)
        test = opened.part == "test"
        truth = opened.label()[test].astype(str)
        predicted = opened.table.loc[test, "deconfound_predicted"].astype(str)
        column = str(opened.about["fold"]).partition("=")[0].replace("iid", "IID")
        expected = f1_score(truth, predicted, average="macro")
        assert table.loc["erm+knn", f"{column}_mean"] == pytest.approx(expected), column
    assert "erm+knn" in (out / "table.md").read_text(encoding="utf-8")
    assert r"\toprule" in (out / "table.tex").read_text(encoding="utf-8")
    scores = pd.read_parquet(out / "scores.parquet")
    assert set(scores["method"]) == {"erm", "erm+knn"}
    nearby = scores[scores["metric"].str.contains("_nearby")]
    assert set(nearby["method"]) == {"erm", "erm+knn"}
    assert (nearby["part"] == "test").all()
    assert not nearby["fold"].eq("iid").any()
    assert nearby["fold"].nunique() == 2
    assert not scores.duplicated(
        ["method", "fold", "seed", "representation", "metric", "part"]
    ).any()

    ((shown_of, reported),) = find_sources([out], points=5, seed=0).sweeps
    assert (shown_of, list(reported.columns)) == (out, list(found.shown.columns))
    assert read_table_file(out).to_numpy().tolist() == found.shown.to_numpy().tolist()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5ad")}
    csv = (out / "table.csv").read_bytes()
    again = by_levels(("erm", "erm+knn"), screen.path, out, options, workers=1, quiet=True)
    pd.testing.assert_frame_equal(again.shown, found.shown)
    assert (out / "table.csv").read_bytes() == csv
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.h5ad")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a cross-validation"):
        by_levels(("erm",), screen.path, tmp_path / "mine", options, quiet=True)


def test_imputed_images_from_a_screen_to_the_table(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    far, erm = tmp_path / "far.yaml", tmp_path / "erm.yaml"
    far.write_text(dump_config(make_config("ist")))
    erm.write_text(dump_config(make_config("erm")))
    options = CompareOptions(
        hold_out=("series",), folds_per_level=1, seeds=(0,), steps=2, batch_size=24
    )
    words = (f"erm+far={erm}", f"far={far}")
    out = tmp_path / "c"
    given = {"bank": 2}
    found = by_levels(words, screen.path, out, options, **given, workers=2, quiet=True)
    assert found.summary is not None
    assert found.summary.failed == 0
    table = pd.read_csv(out / "table.csv").set_index("method")
    assert table.loc["erm+far", ["IID_runs", "series_runs"]].tolist() == [1, 1]
    titles = {read_embeddings(file).about["method"] for file in (out / "embeddings").glob("*.h5ad")}
    assert titles == {"erm+ist", "ist"}


def test_too_many_runs_are_refused_before_a_fold_is_posed(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folds, "pose", None)
    options = CompareOptions(view="levels", hold_out=("plate",), seeds=(0, 1, 2), max_runs=44)
    with pytest.raises(UserError, match=r"45 runs are more than 44; .* with --max-runs 45"):
        compare(screen.path, tmp_path / "out", options)
    one = options.model_copy(update={"folds_per_level": 2, "max_runs": 26})
    with pytest.raises(UserError, match="27 runs are more than 26"):
        compare(screen.path, tmp_path / "out", one)
    assert not (tmp_path / "out").exists()
