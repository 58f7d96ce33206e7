"""A study from its source to its verdict, page and recommended run; what stops, goes on."""

import html
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from deconfound import cli
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.reports.sources import find_sources
from deconfound.runs.run import open_run
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions, Comparison
from deconfound.studies.judge import units
from deconfound.studies.study import WITH_CONTROLS, WITHOUT_CONTROLS, default_methods

FOLDS = ("plate=S1/P1", "plate=S2/P1")
FEW = CompareOptions(
    methods=("erm", "recommended"), hold_out=FOLDS, seeds=(0,), steps=2, batch_size=16
)


@pytest.fixture(scope="module")
def done(screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    out = tmp_path_factory.mktemp("study") / "out"
    return out, compare(screen.path, out, FEW, workers=1, quiet=True)


def test_it_ends_in_a_verdict_a_page_and_a_run_to_use(
    done: tuple[Path, Comparison], screen: Screen
) -> None:
    out, found = done
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["verdict"] in ("cannot be told", "no difference")  # two groups, one seed
    assert set(verdict["methods"]) == {"erm", "recommended"}
    assert verdict["hold_out"] == ["plate"]
    assert {one["fold"] for one in verdict["groups"]} == set(FOLDS)
    assert verdict["methods"]["recommended"]["saw_held_out"]
    assert verdict["methods"]["erm"]["environment_readable"]["n"] == 1
    assert found.sentences[0] == verdict["sentence"]
    assert len(found.sentences) <= 10
    assert found.page == out / "report.html"
    page = (out / "report.html").read_text()
    assert verdict["sentence"] in page
    assert len(page) < 8_000_000
    run = open_run(out / "recommended" / "run")
    assert run.config.data.fold == "iid"
    assert len(read_embeddings(out / "recommended" / "embeddings.h5ad").part) == len(screen)


def test_what_it_returns_holds_scores_the_best_method_and_a_page(
    done: tuple[Path, Comparison], tmp_path: Path
) -> None:
    _, found = done
    assert found.verdict is not None
    assert found.best == found.verdict.recommended
    assert set(found.scores["method"]) == {"erm", "recommended"}
    found.report(tmp_path / "again.html")
    assert (tmp_path / "again.html").is_file()
    assert found._repr_html_().startswith("<p>")
    nothing = Comparison(pd.DataFrame())
    for asked in (lambda: nothing.best, lambda: nothing.scores):
        with pytest.raises(UserError, match="this comparison has no"):
            asked()


def test_its_page_calls_methods_as_the_verdict_does(done: tuple[Path, Comparison]) -> None:
    out, _ = done
    sources = find_sources([out], 100, 0)
    assert {run.name for run in sources.runs} == {"erm", "recommended"}
    assert set(sources.scores["method"]) == {"erm", "recommended"}
    shown = {sample.name for sample in sources.samples if "recommended" not in sample.path.parts}
    assert shown == {"erm", "recommended"}


def test_every_run_is_listed_with_what_it_is_for(done: tuple[Path, Comparison]) -> None:
    out, found = done
    runs = pd.read_csv(out / "runs.csv", keep_default_na=False)
    assert set(runs["run"]) == {path.name for path in (out / "runs").iterdir() if path.is_dir()}
    assert (found.summary and found.summary.runs) == len(runs)
    outer = runs[runs["without"] == ""]
    assert len(outer) == 4
    assert runs["measured"].sum() == 2
    # three groups beside each of the two, one pair of which is theirs together
    assert len(runs) == 4 + 2 * (3 + 3 - 1)


def test_the_same_command_does_nothing_again(done: tuple[Path, Comparison], screen: Screen) -> None:
    out, found = done
    before = json.loads((out / "verdict.json").read_text())
    again = compare(screen.path, out, FEW, workers=1, quiet=True)
    assert again.summary is not None
    assert again.summary.before == again.summary.runs
    assert json.loads((out / "verdict.json").read_text()) == before
    assert again.sentences == found.sentences


def test_the_command_of_its_page_makes_it_again(done: tuple[Path, Comparison]) -> None:
    out, _ = done
    command = json.loads((out / "verdict.json").read_text())["command"]
    page = html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert f"{command} --out {shlex.quote(f'{out}-again')}" in page
    before = {name: (out / name).read_bytes() for name in ("study.yaml", "runs.csv")}
    cli.main([*shlex.split(command)[1:], "--out", str(out), "--workers", "1", "--quiet"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["before"] == summary["runs"]  # the same runs, all of them there
    assert {name: (out / name).read_bytes() for name in before} == before


def test_labels_of_the_held_out_group_change_no_choice(
    screen: Screen, make_table: Callable[..., pd.DataFrame], make_images: Callable[..., Any],
    make_screen: Callable[..., Screen], tmp_path: Path,
) -> None:  # fmt: skip
    """Runs without the held-out group and another one are the same, so the choice is."""
    table = make_table()
    images = make_images(table)
    fold = (table["series"] == "S1") & (table["plate"] == "P1")
    table.loc[fold, "compound"] = table.loc[fold, "compound"].to_numpy()[::-1]
    other = make_screen(tmp_path / "other", images, table)
    options = FEW.model_copy(update={"hold_out": FOLDS[:1], "methods": ("erm", "mixstyle")})
    compare(screen.path, tmp_path / "a", options, workers=1, quiet=True)
    compare(other.path, tmp_path / "b", options, workers=1, quiet=True)
    verdicts = [json.loads((tmp_path / one / "verdict.json").read_text()) for one in "ab"]
    (one,), (two,) = (verdict["groups"] for verdict in verdicts)
    assert one["chosen"] == two["chosen"]
    scores = [{name: row["chosen_by_score"] for name, row in verdict["methods"].items()}
              for verdict in verdicts]  # fmt: skip
    assert scores[0] == scores[1]


def test_a_table_and_a_folder_of_images_are_enough(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    rows = []
    for batch in ("B1", "B2", "B3"):
        for label in ("taxol", "DMSO"):
            for number in range(20):
                path = f"{batch}-{label}-{number}.tif"
                image = stream.integers(0, 200, (24, 24)) + 40 * (label == "taxol")
                (tmp_path / "images").mkdir(exist_ok=True)
                tifffile.imwrite(tmp_path / "images" / path, image.astype(np.uint16))
                rows.append({"Path": path, "Metadata_Perturbation": label, "Metadata_Batch": batch})
    pd.DataFrame(rows).to_csv(tmp_path / "cells.csv", index=False)
    options = CompareOptions(
        methods=("erm",), images_root=tmp_path / "images", hold_out=("Metadata_Batch=B2",),
        seeds=(0,), steps=2, batch_size=8,
    )  # fmt: skip
    out = tmp_path / "study"
    compare(tmp_path / "cells.csv", out, options, workers=1, quiet=True)
    assert len(open_screen(out / "screen")) == 120
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["label"] == "Metadata_Perturbation"
    assert [one["fold"] for one in verdict["groups"]] == ["Metadata_Batch=B2"]

    with pytest.raises(UserError, match="add --images-root FOLDER"):
        bare = options.model_copy(update={"images_root": None})
        compare(tmp_path / "cells.csv", tmp_path / "other", bare, quiet=True)
    assert not (tmp_path / "other").exists()
    pd.DataFrame(rows[1:]).to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(UserError, match="was begun with another sha256"):
        compare(tmp_path / "cells.csv", out, options, quiet=True)


def test_a_table_that_was_mended_goes_into_the_same_folder(tmp_path: Path) -> None:
    """Nothing was made of the first one, so nothing is held against the second."""
    (tmp_path / "images").mkdir()
    columns = {"Metadata_Perturbation": ["a", "b"], "Metadata_Batch": ["B1", "B2"]}
    table = tmp_path / "cells.csv"
    options = CompareOptions(images_root=tmp_path / "images", methods=("emr",))
    pd.DataFrame({"Path": ["0.tif", "1.tif"]} | columns).to_csv(table, index=False)
    out = tmp_path / "study"
    with pytest.raises(UserError, match="did you mean 'erm'"):
        compare(table, out, options, quiet=True)
    assert not out.exists()
    options = options.model_copy(update={"methods": ("erm",)})
    with pytest.raises(UserError, match=r"no file .*0\.tif"):
        compare(table, out, options, quiet=True)
    pd.DataFrame({"Path": ["2.tif", "3.tif"]} | columns).to_csv(table, index=False)
    with pytest.raises(UserError, match=r"no file .*2\.tif"):
        compare(table, out, options, quiet=True)


def test_without_methods_the_correction_fits_the_controls(
    screen: Screen, make_table: Callable[..., pd.DataFrame], make_images: Callable[..., Any],
    make_screen: Callable[..., Screen], tmp_path: Path,
) -> None:  # fmt: skip
    first = ("erm", "recommended", "scbd")
    assert default_methods(screen, CompareOptions()) == (*first, WITHOUT_CONTROLS)
    table = make_table(30)
    table["Metadata_Control_Type"] = np.where(table["compound"] == "c0", "negcon", "trt")
    marked = make_screen(tmp_path / "marked", make_images(table), table)
    assert default_methods(marked, CompareOptions()) == (*first, WITH_CONTROLS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hold_out": ("plate=S9/P1",)}, "--hold-out plate=S9/P1: no such group; plate has S1/P1"),
        ({"hold_out": ("plat",)}, "did you mean 'plate'"),
        ({"methods": ("emr",)}, "did you mean 'erm'"),
        ({"images_root": Path("images")}, "--images-root belongs to a table"),
        ({"folds_per_level": 1, "hold_out": ("compound",)}, "is not nested in the levels"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    change: dict[str, Any], said: str, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        compare(screen.path, tmp_path / "out", FEW.model_copy(update=change), quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_study_is_left_alone(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a study; choose another --out"):
        compare(screen.path, tmp_path / "out", FEW, quiet=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_recommendation_that_changed_is_made_anew(
    done: tuple[Path, Comparison], screen: Screen, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    about = out / "recommended" / "recommended.json"
    about.write_text(about.read_text().replace('"method": "', '"method": "not-', 1))
    compare(screen.path, out, FEW, workers=1, quiet=True)
    assert '"method": "not-' not in about.read_text()
    assert (out / "recommended" / "embeddings.h5ad").is_file()


def test_a_study_of_another_screen_in_the_same_folder_recommends_a_run_of_its_own(
    done: tuple[Path, Comparison], make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., Any], make_screen: Callable[..., Screen], tmp_path: Path,
) -> None:  # fmt: skip
    out, table = tmp_path / "out", make_table(30)
    shutil.copytree(done[0], out)
    other = make_screen(tmp_path / "other", make_images(table), table)
    one = FEW.model_copy(update={"methods": ("erm",), "hold_out": FOLDS[:1]})
    compare(other.path, out, one, workers=1, quiet=True)
    assert open_run(out / "recommended" / "run").trained_on(other)
    assert len(read_embeddings(out / "recommended" / "embeddings.h5ad").part) == len(other)


def test_units_are_groups_of_the_outermost_level_held_out() -> None:
    levels = ("Series", "Plate", "Section")
    folds = ["Series=S1/a", "Plate=S1%2Fa/P1", "Section=S1%2Fa/P1/A", "Plate=S2/P1"]
    assert list(units(folds, levels).values()) == ["S1%2Fa", "S1%2Fa", "S1%2Fa", "S2"]
    inner = ["Plate=S1/P1", "Section=S1/P1/A", "Section=S1/P2/A"]
    assert list(units(inner, levels).values()) == ["S1/P1", "S1/P1", "S1/P2"]


def test_a_study_on_ray_ends_as_on_this_machine(
    done: tuple[Path, Comparison], screen: Screen, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'deconfound[ray]'")
    compare(screen.path, tmp_path / "ray", FEW, executor="ray", workers=2, quiet=True)
    for name in ("verdict.json", "scores.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (done[0] / name).read_bytes()
