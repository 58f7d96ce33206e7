"""The report: numbers of the summary, tables, alarms, maps, escaping, what is found."""

import base64
import gzip
import hashlib
import html
import io
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from deconfound import cli
from deconfound.data.screens.screen import open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles, coded
from deconfound.display.page import packed
from deconfound.display.umap import coordinates
from deconfound.embeddings.file import Embeddings, read_embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.reports import map as report_map
from deconfound.reports.columns import Pool
from deconfound.reports.figures import score_slopes, training_curves
from deconfound.reports.map import draw_maps, thumbnails
from deconfound.reports.methods_text import commands, paragraph
from deconfound.reports.names import Names
from deconfound.reports.report import report
from deconfound.reports.sources import SCORE_COLUMNS, Sample, find_sources
from deconfound.reports.summary import imputation_statements, statements, warnings
from deconfound.reports.tables import Level, Spread, levels, spread, with_levels
from deconfound.runs.config import config_model, dump_config

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "</script>")


def score(
    method: str,
    value: float,
    *,
    fold: str = "plate=P1",
    seed: int = 0,
    representation: str = "prediction",
    metric: str = "macro_f1",
    part: str = "test",
    note: str = "",
) -> dict[str, Any]:
    values = (method, fold, seed, representation, metric, part, value, 100, note)
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return with_levels(pd.DataFrame(rows, columns=list(SCORE_COLUMNS)))


def write_scores(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows, columns=list(SCORE_COLUMNS)).to_parquet(path)
    return path


PIXELS = {"transform": "percentile", "percentile_by": ["plate"], "groups": ["P1"]}


def write_run(
    path: Path,
    method: str = "erm",
    *,
    seed: int = 0,
    fold: str = "plate=P1",
    screen: Path = Path("/nowhere/screen"),
    identity: str = "same",
    val_loss: tuple[float, ...] = (1.25, 1.5, 1.75),
    **options: Any,
) -> Path:
    path.mkdir(parents=True)
    config = config_model(method).model_validate(
        {"method": method, "seed": seed, "data": {"fold": fold}, "options": options}
    )
    (path / "config.yaml").write_text(dump_config(config))
    classes = {"labels": ["a", "b"], "environments": ["P1"], "channels": ["DNA"]}
    roles = Roles(label="drug", environment=("plate",), levels=("plate",))
    (path / "classes.json").write_text(json.dumps(classes | {"roles": roles.model_dump()} | PIXELS))
    counts = {"train": 80, "val": 10, "test": 10, "id_test": 0, "unused": 0}
    described = {"name": fold, "counts": counts, "screen": str(screen), "screen_identity": identity}
    described["screen_provenance"] = {"resize": {"size": 48}, "options": {"crop": 100}}
    (path / "fold.json").write_text(json.dumps(described))
    history = [("classifier", step, "train", "loss", 2 - step / 40) for step in (10, 20, 30)]
    steps = zip((10, 20, 30), val_loss, strict=True)
    history += [("classifier", step, "val", "loss", value) for step, value in steps]
    history += [("classifier", step, "val", "accuracy", step / 40) for step in (10, 20, 30)]
    columns = ["stage", "step", "part", "name", "value"]
    pd.DataFrame(history, columns=columns).to_csv(path / "metrics.csv", index=False)
    best = {"loss": {"step": 20.0, "loss": 0.5}}
    selection = {"used": {"classifier": "loss"}, "best": {"classifier": best}}
    (path / "selection.json").write_text(json.dumps(selection))
    provenance = {"device": "cpu, 1 threads", "precision": "32-true", "training_seconds": 75.0}
    (path / "provenance.json").write_text(json.dumps(provenance))
    (path / "model.safetensors").touch()
    return path


def write_sample(path: Path, run: Path, *, cells: int = 30, label: str = "drug") -> Path:
    """Embeddings of `run`: content (cells, 4), labels `HOSTILE`, the last third held out."""
    config = config_model("scbd").model_validate({"method": "scbd", "data": {"fold": "plate=P1"}})
    stream = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            label: [HOSTILE[i % len(HOSTILE)] for i in range(cells)],
            "plate": [f"P{1 + i % 3}" for i in range(cells)],
            "deconfound_part": ["train" if i < 2 * cells / 3 else "test" for i in range(cells)],
            "deconfound_predicted": pd.Series([pd.NA] * cells, dtype="string"),
        }
    )
    about = {
        "method": "scbd",
        "fold": "plate=P1",
        "seed": 0,
        "run": run.name,
        "screen": "tiny",
        "roles": Roles(label=label, environment=("plate",)).model_dump(),
        "config": config.model_dump(mode="json"),
    }
    content = stream.normal(size=(cells, 4)).astype(np.float32)
    representations = {"content": content, "style": -content}
    write_embeddings(path, Embeddings(table, representations, about))
    return path


def write_screen(path: Path, cells: int = 30) -> np.ndarray:
    """A screen of one grey level an image, so that its thumbnail is known."""
    level = np.linspace(0, 1000, cells).round().astype(np.uint16)
    with ScreenWriter(path, "tiny", ("phase",), Roles(), {}) as writer:
        writer.append(np.broadcast_to(level[:, None, None, None], (cells, 1, 8, 8)))
        writer.finish(pd.DataFrame({"drug": ["a"] * cells}))
    return level


def page_data(page: str) -> Any:
    """What the scripts of a page read."""
    packed = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def numbers(text: str, kind: str) -> list[int]:
    """A packed column, whose bytes lie apart by their place in a number."""
    places = np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=np.uint8)
    together = np.ascontiguousarray(places.reshape(np.dtype(kind).itemsize, -1).T)
    found: list[int] = together.view(kind)[:, 0].tolist()
    return found


def cell(level: Level, table: str, method: str, representation: str, metric: str) -> Any:
    found = next(one for one in level.tables if one.title == table)
    row = next(r for r in found.rows if (r.method, r.representation) == (method, representation))
    return row.cells[[column.metric for column in found.columns].index(metric)]


def test_summary_numbers_are_mean_and_sample_sd_of_the_scores() -> None:
    stream = np.random.default_rng(0)
    values = {"scbd": 0.7 + 0.1 * stream.random((2, 3)), "erm": 0.4 + 0.1 * stream.random((2, 3))}
    rows = [
        score(method, found[fold, seed], fold=f"Metadata_Plate=P{fold}", seed=seed)
        for method, found in values.items()
        for fold in range(2)
        for seed in range(3)
    ]
    rows.append(score("erm", 0.1, fold="Metadata_Plate=P0", metric="macro_f1_chance"))
    found = statements(framed(rows), "Plate")
    mean = {method: found.mean() for method, found in values.items()}
    sd = {method: found.std(ddof=1) for method, found in values.items()}
    assert [statement.subject for statement in found] == ["Held-out Plate"]
    assert found[0].text == (
        f"scbd {mean['scbd']:.2f} ± {sd['scbd']:.2f}, against {mean['erm']:.2f} ± "
        f"{sd['erm']:.2f} for erm (macro-F1, mean ± sd over 2 folds and 3 seeds; chance 0.10)."
    )


def test_one_value_has_no_sd_and_undefined_ones_do_not_count() -> None:
    one = spread(pd.DataFrame([score("erm", 0.5)]))
    assert (one.text(2), one.values) == ("0.50", 1)
    assert math.isnan(one.sd)
    rows = [score("erm", 0.5), score("erm", math.nan, seed=1, note="no row has a label")]
    mixed = spread(pd.DataFrame(rows))
    assert mixed.text(2) == "0.50"
    assert "seed 1: undefined, n = 100 (no row has a label)" in mixed.detail
    assert Spread(math.nan, math.nan, 0, 0, 0, "").text(3) == "–"
    (sentence,) = statements(framed([score("erm", 0.5)]), "plate")
    assert sentence.text == "erm 0.50 (macro-F1)."


def test_summary_orders_by_what_is_better_and_says_when_it_is_noise() -> None:
    rows = []
    for method, held_out, leaked in (("erm", 0.50, 0.91), ("scbd", 0.52, 0.31)):
        for seed in range(2):
            offset = 0.04 * seed
            rows.append(score(method, held_out + offset, seed=seed))
            rows.append(score(method, 0.9, seed=seed, part="id_test"))
            where = "content" if method == "scbd" else "representation"
            for name in {where, "representation"}:
                value = leaked + offset if name == where else 0.99
                rows.append(
                    score(
                        method, value, seed=seed, part="id_test", representation=name,
                        metric="probe_environment_macro_f1",
                    )
                )  # fmt: skip
    held_out, inside, leak = statements(framed(rows), "plate")
    assert held_out.text.endswith("The difference between scbd and erm is within one sd.")
    assert inside.subject == "In distribution"
    assert leak.subject.startswith("plate read from the embedding")
    assert leak.text.startswith("scbd content 0.33 ± 0.03, against 0.93 ± 0.03 for erm ")
    assert "within" not in leak.text


def test_tables_mark_the_best_by_direction_and_leave_style_aside() -> None:
    rows = []
    for method, value in (("erm", 0.9), ("scbd", 0.3)):
        rows.append(score(method, value))
        rows.append(score(method, value, metric="class_coverage"))
        rows.append(score(method, value, metric="something_new"))
        for name, leaked in (("content", value), ("style", value - 0.25)):
            rows.append(
                score(method, leaked, representation=name, metric="probe_environment_macro_f1")
            )
    (level,) = levels(framed(rows))
    assert cell(level, "Predictions", "erm", "prediction", "macro_f1").best
    assert not cell(level, "Predictions", "scbd", "prediction", "macro_f1").best
    assert not cell(level, "Predictions", "erm", "prediction", "class_coverage").best
    assert not cell(level, "Other scores", "erm", "prediction", "something_new").best
    probe = "probe_environment_macro_f1"
    assert cell(level, "Linear probes", "scbd", "content", probe).best
    assert not cell(level, "Linear probes", "scbd", "style", probe).best
    arrows = {c.metric: c.arrow for table in level.tables for c in table.columns}
    assert (arrows["macro_f1"], arrows[probe], arrows["class_coverage"]) == ("↑", "↓", "")


def test_levels_are_kept_apart_and_pooled_scores_are_not_averaged_in() -> None:
    rows = [score("erm", 0.4, fold="plate=P1"), score("erm", 0.6, fold="plate=P2")]
    rows += [score("erm", 0.45, fold="plate (pooled over 2 folds)"), score("erm", 0.9, fold="iid")]
    found = {level.title: level for level in levels(framed(rows))}
    assert set(found) == {"Held-out plate", "Random split"}
    plates = found["Held-out plate"]
    assert plates.folds == ["plate=P1", "plate=P2"]
    (table,) = plates.tables
    assert [column.part for column in table.columns] == ["held out", "held out, folds pooled"]
    assert [one.text for one in table.rows[0].cells] == ["0.500 ± 0.141", "0.450"]
    assert [part for part, _ in found["Random split"].tables[0].parts] == ["in distribution"]


def imputed(method: str, error: float, **more: float) -> list[dict[str, Any]]:
    """Scores of imputed images on the test rows of one fold and seed."""
    values = {"error": error, "error_low": error - 0.1, "error_high": error + 0.1, **more}
    return [
        score(method, value, metric=f"imputation_{name}", representation="image")
        for name, value in values.items()
    ]


def test_imputed_images_come_first_with_their_baselines(tmp_path: Path) -> None:
    rows = [
        *imputed("ist", 0.4, hallucination=0.05, label_probability=0.6, label_probability_true=0.7),
        *imputed("moments", 0.6, hallucination=0.02),
        *imputed("left alone", 1.0, hallucination=0.0),
        score("ist", 0.3, metric="imputation_error", representation="channel DNA"),
        score("erm", 0.8),
    ]
    (level,) = levels(framed(rows[:-1]))
    found = cell(level, "Imputed images", "ist", "image", "imputation_error")
    assert (found.text, found.aside, found.best) == ("0.400", "0.30 to 0.50", True)
    found = cell(level, "Imputed images", "ist", "image", "imputation_label_probability")
    assert (found.text, found.aside) == ("0.600", "0.70")
    (table,) = level.tables
    assert [column.metric.removeprefix("imputation_") for column in table.columns] == [
        "error", "label_probability", "hallucination",
    ]  # fmt: skip
    (statement,) = imputation_statements(framed(rows[:-1]))
    assert statement.subject == "Error of imputed images, held-out plate"
    assert statement.text == "ist 0.40 (5% hallucinated), moments 0.60 (2% hallucinated)."
    several = [*rows[:-1], *imputed("ist", 0.6), *imputed("ist", 0.5)]
    for place, row in enumerate(several[-6:]):
        row["seed"] = 1 + place // 3
    found = cell(levels(framed(several))[0], "Imputed images", "ist", "image", "imputation_error")
    assert (found.text, found.aside) == ("0.500 ± 0.100", "")

    report([write_scores(tmp_path / "scores.parquet", rows)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    places = [page.index(f'<section id="{name}">') for name in ("imputation", "summary", "scores")]
    assert places == sorted(places)
    assert "ist 0.40 (5% hallucinated)" in page[places[0] : places[1]]
    assert "Imputed images" not in page[places[2] :]
    assert "Only one seed of erm and ist" in page


def source_read(method: str, environment: float, level: float) -> list[dict[str, Any]]:
    """How well the source of imputed images is read, of four environments and two series."""
    values = {"environment": environment, "environment_chance": 0.25, "level": level,
              "level_chance": 0.5}  # fmt: skip
    return [
        score(method, value, metric=f"imputation_source_{name}", representation="image",
              part="id_test")
        for name, value in values.items()
    ]  # fmt: skip


def test_how_well_the_source_is_read_stands_beside_the_error(tmp_path: Path) -> None:
    rows = [
        *imputed("ist", 0.4, hallucination=0.05),
        *imputed("left alone", 1.0, hallucination=0.0),
        *source_read("ist", 0.62, 0.98),
        *source_read("moments", 0.71, 1.0),
        *source_read("left alone", 0.9, 1.0),
        *source_read("rendered exactly", 0.27, 0.52),
    ]
    (level,) = levels(framed(rows))
    (table,) = level.tables
    assert [(column.part, column.metric, column.arrow) for column in table.columns] == [
        ("held out", "imputation_error", "↓"),
        ("held out", "imputation_hallucination", "↓"),
        ("in distribution", "imputation_source_environment", "↓"),
        ("in distribution", "imputation_source_level", "↓"),
    ]
    read = "imputation_source_environment"
    found = cell(level, "Imputed images", "ist", "image", read)
    assert (found.text, found.aside, found.best) == ("0.620", "0.25", True)
    found = cell(level, "Imputed images", "rendered exactly", "image", read)
    assert (found.text, found.best) == ("0.270", False)
    assert cell(level, "Imputed images", "rendered exactly", "image", "imputation_error").text == ""
    error, environment, outermost = imputation_statements(framed(rows))
    assert error.text == "ist 0.40 (5% hallucinated)."
    assert environment.subject == (
        "Source environment read from imputed images, held-out plate, in distribution"
    )
    assert environment.text == (
        "ist 0.62, moments 0.71, left alone 0.90, rendered exactly 0.27 "
        "(balanced accuracy; chance 0.25)."
    )
    assert outermost.subject.startswith("Source outermost level read from imputed images")

    report([write_scores(tmp_path / "scores.parquet", rows)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    start, end = (page.index(f'<section id="{name}">') for name in ("imputation", "summary"))
    assert environment.text in page[start:end]
    assert "rendered exactly" not in page[end : page.index('<section id="scores">')]


def test_alarms(tmp_path: Path) -> None:
    collapsed = "collapsed: all embeddings point the same way; lower alpha"
    rows = [
        score("scbd", 0.99, representation="content", metric="mean_resultant_length",
              note=collapsed),
        score("scbd", 0.2, representation="content", metric="probe_label_macro_f1",
              note="not converged after 1000 iterations"),
        score("scbd", 0.6, metric="class_coverage"),
        score("scbd", math.nan, note="no test row has a label"),
        score("erm", 0.5, fold="plate=P2"),
        score("erm", 0.5, fold="plate=P2", seed=1),
    ]  # fmt: skip
    write_run(tmp_path / "a", val_loss=(1.0, 0.8, 0.5))
    write_run(tmp_path / "b", seed=1, identity="other", screen=Path("/elsewhere"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("method: erm")
    (tmp_path / "c" / "fold.json").write_text("{}")
    text = "\n".join(warnings(find_sources([tmp_path], 10, 0), framed(rows)))
    for expected in (
        "The content of scbd has collapsed to a point",
        "probe that had not converged",
        "training has only 60% of the labels",
        "macro-F1 of scbd on plate=P1, test, seed 0 is undefined: no test row has a label",
        "Only one seed of scbd:",
        "erm and scbd were not scored on the same folds",
        "trained on 2 different screens: /elsewhere and /nowhere/screen",
        "still falling at the last step of erm, stage classifier (1 run)",
        f"Left out: {tmp_path / 'c'}: the run is not finished",
    ):
        assert expected in text
    calm = [score(m, 0.5, seed=seed) for m in ("erm", "scbd") for seed in (0, 1)]
    only = find_sources([write_run(tmp_path / "d", val_loss=(1.0, 0.501, 0.5))], 10, 0)
    assert warnings(only, framed(calm)) == []


def test_scores_twice_are_one_and_contradictions_are_refused(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "scores-1.parquet", [score("erm", 0.5)])
    again = write_scores(tmp_path / "scores-2.parquet", [score("erm", 0.5)])
    assert len(find_sources([first, again], 10, 0).scores) == 1
    other = write_scores(tmp_path / "scores-3.parquet", [score("erm", 0.6)])
    with pytest.raises(UserError, match=r"0.5 in .*scores-1.parquet and 0.6 in .*scores-3"):
        find_sources([first, other], 10, 0)


def test_settings_of_a_method_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "scbd", alpha=0)
    write_run(tmp_path / "b", "scbd", alpha=8)
    write_run(tmp_path / "c", "scbd", alpha=8, seed=1, fold="plate=P2")
    write_run(tmp_path / "d", "erm")
    runs = find_sources([tmp_path], 10, 0).runs
    assert [run.name for run in runs] == [
        "scbd (alpha 0.0)", "scbd (alpha 8.0)", "scbd (alpha 8.0)", "erm",
    ]  # fmt: skip
    rows = [score("scbd", 0.1 * i) for i in (1, 2)]
    for row, run in zip(rows, runs, strict=False):
        row["config"] = json.dumps(run.config)
    pd.DataFrame(rows).to_parquet(tmp_path / "scores.parquet")
    scores = find_sources([tmp_path], 10, 0).scores
    assert scores["method"].tolist() == ["scbd (alpha 0.0)", "scbd (alpha 8.0)"]


def test_an_option_that_is_not_set_is_as_one_that_an_earlier_release_lacked() -> None:
    earlier, unset, dropped = (
        {"method": "erm", "imputer": "ist", "intervention": {"bank": 32} | options}
        for options in ({}, {"relative_style": None}, {"relative_style": None, "impute_into": None})
    )
    mean = {**unset, "intervention": {"bank": 32, "impute_into": "mean"}}
    names = Names([earlier, unset, dropped, mean])
    assert {names.of(one) for one in (earlier, unset, dropped)} == {"erm+ist"}
    assert names.of(mean) == "erm+ist (impute_into mean)"
    assert Names([earlier, unset]).of(unset) == "erm+ist"


def test_what_cannot_be_reported_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        find_sources([tmp_path / "absent"], 10, 0)
    with pytest.raises(UserError, match="nothing to report on"):
        find_sources([tmp_path], 10, 0)
    note = tmp_path / "notes.txt"
    note.touch()
    with pytest.raises(UserError, match=r"expected \.h5ad or \.parquet"):
        find_sources([note], 10, 0)
    bad = tmp_path / "scores.parquet"
    bad.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as scores"):
        find_sources([bad], 10, 0)
    pd.DataFrame({"method": ["erm"]}).to_parquet(bad)
    with pytest.raises(UserError, match="no column 'fold'"):
        find_sources([bad], 10, 0)
    scores = write_scores(tmp_path / "scores-2.parquet", [score("erm", 0.5)])
    assert "no column 'fold'" in find_sources([tmp_path], 10, 0).left_out[0]
    with pytest.raises(UserError, match=r"ending in \.html"):
        report([scores], tmp_path / "page.txt")
    page = tmp_path / "page.html"
    page.touch()
    with pytest.raises(UserError, match="already exists"):
        report([scores], page)


def test_a_run_alone_and_pooled_scores_alone_make_a_page(tmp_path: Path) -> None:
    report([write_run(tmp_path / "run")], tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "1 min 15 s" in page
    assert 'id="scores"' not in page
    rows = [score("erm", 0.4, fold="plate (pooled over 2 folds)")]
    report([write_scores(tmp_path / "scores.parquet", rows)], tmp_path / "pooled.html")
    assert "held out, folds pooled" in (tmp_path / "pooled.html").read_text(encoding="utf-8")


def test_curves_hold_the_history_and_the_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (curves,) = training_curves(find_sources([tmp_path], 10, 0).runs)
    assert [name for name, _ in curves.legend] == ["loss", "accuracy"]
    (panel,) = curves.panels
    assert panel.title == "plate=P1 · seed 0 · classifier"
    traces = {trace["name"]: trace for trace in panel.figure["data"]}
    assert traces["loss (val)"]["y"] == [1.25, 1.5, 1.75]
    assert traces["loss (train)"]["opacity"] < traces["loss (val)"]["opacity"]
    assert traces["accuracy (val)"]["yaxis"] == "y2"
    assert panel.figure["layout"]["shapes"][0]["x0"] == 20


def test_umap_follows_the_neighbours_and_its_seed() -> None:
    stream = np.random.default_rng(0)
    centres = np.repeat(np.eye(2, 8, dtype=np.float32) * 30, 30, axis=0)
    values = centres + stream.normal(size=(60, 8)).astype(np.float32)
    xy = coordinates(values, 0)
    gap = np.linalg.norm(xy[:30].mean(axis=0) - xy[30:].mean(axis=0))
    assert gap > 2 * max(xy[:30].std(axis=0).max(), xy[30:].std(axis=0).max())
    np.testing.assert_array_equal(xy, coordinates(values, 0))
    assert not np.array_equal(xy, coordinates(values, 1))
    assert np.isfinite(coordinates(values[:4], 0)).all()
    for bad, reason in ((values[:3], "4 or more"), (np.ones((9, 2), np.float32), "coincide")):
        with pytest.raises(UserError, match=reason):
            coordinates(bad, 0)


def test_thumbnails_are_the_images_of_their_rows(tmp_path: Path) -> None:
    level = write_screen(tmp_path / "screen")
    rows = np.array([3, 11, 29, 7, 20])
    sprite = thumbnails(open_screen(tmp_path / "screen"), rows, 4, seed=0)
    assert len(sprite.place) == 4
    assert set(sprite.place) < set(rows.tolist())
    encoded = base64.b64decode(sprite.source.partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(encoded)).convert("L")).astype(float)
    shown = {}
    for row, tile in sprite.place.items():
        down, across = divmod(tile, sprite.columns)
        shown[row] = sheet[down * sprite.side + 4, across * sprite.side + 4]
    by_level = sorted(shown, key=lambda row: level[row])
    assert sorted(shown, key=lambda row: shown[row]) == by_level
    assert shown[by_level[0]] < 10
    assert shown[by_level[-1]] > 245


@pytest.fixture
def flat_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of the first two dimensions instead of UMAP, which takes seconds to compile."""
    monkeypatch.setattr(report_map, "coordinates", lambda values, _seed: values[:, :2])


@pytest.mark.usefixtures("flat_map")
def test_maps_name_every_point_and_find_their_screen(tmp_path: Path) -> None:
    write_screen(tmp_path / "screen")
    identity = open_screen(tmp_path / "screen").identity
    run = write_run(tmp_path / "run", "scbd", screen=tmp_path / "screen", identity=identity)
    write_sample(run / "embeddings.h5ad", run)
    sources = find_sources([run], 12, 0)
    (sample,) = sources.samples
    assert (sample.representation, len(sample.rows), sample.total) == ("content", 12, 30)
    pool = Pool()
    maps, sprites = draw_maps(sources.samples, sources.runs, 0, pool)
    points = maps[0].points
    assert points is not None
    rows = np.cumsum(numbers(pool.arrays[points["row"]], "<u4")).tolist()
    assert rows == sample.rows.tolist()
    assert list(points["columns"]) == ["Label", "Environment", "Part of the fold", "drug", "plate"]

    def texts(column: str) -> list[str]:
        entry = pool.entries[points["columns"][column]]
        return [entry["names"][code] for code in numbers(entry["codes"], "u1")]

    assert texts("Label") == texts("drug") == [HOSTILE[row % 4] for row in rows]
    assert points["columns"]["Label"] == points["columns"]["drug"], "equal columns are held once"
    assert texts("Part of the fold") == ["train" if row < 20 else "test" for row in rows]
    assert numbers(pool.arrays[points["held"]], "u1") == [int(row >= 20) for row in rows]
    assert numbers(pool.arrays[points["tile"]], "<u2") == [
        sprites[0].place[row] + 1 for row in rows
    ]
    x = np.array(numbers(points["x"], "<u2")) / points["steps"]
    expected = sample.values[:, 0]
    np.testing.assert_allclose(x, (expected - expected.min()) / np.ptp(expected), atol=1e-4)
    (tmp_path / "screen").rename(tmp_path / "moved")
    maps, sprites = draw_maps(sources.samples, sources.runs, 0, Pool())
    assert sprites == []
    assert "no cell pictures, for the screen is no longer at" in maps[0].caption
    assert maps[0].points is not None
    assert maps[0].points["sheet"] is None


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture
def hostile_page(tmp_path: Path, flat_map: None) -> str:  # noqa: ARG001
    rows = [
        score(name, 0.5, fold=f"plate={name}", seed=seed, note=name, part=part, metric=metric)
        for name in HOSTILE
        for seed in (0, 1)
        for part in ("test", name)
        for metric in ("macro_f1", name)
    ]
    rows.append(score("erm", math.nan, fold=f"plate={HOSTILE[0]}", note=HOSTILE[1]))
    write_scores(tmp_path / "scores.parquet", rows)
    run = write_run(tmp_path / "run", "scbd", fold=f"plate={HOSTILE[0]}")
    write_sample(run / "embeddings.h5ad", run, label=HOSTILE[0])
    swap = tmp_path / "swap"
    swap.mkdir()
    Image.new("RGB", (4, 4)).save(swap / "swap.png")
    about = {"method": HOSTILE[0], "fold": HOSTILE[1], "seed": 0, "screen": HOSTILE[3], "rows": [1]}
    config = {"method": HOSTILE[0]}
    (swap / "transfer.json").write_text(json.dumps({**about, "config": config}))
    imputed = tmp_path / "imputed"
    imputed.mkdir()
    for name in ("transfer.png", "umap.png"):
        Image.new("RGB", (4, 4)).save(imputed / name)
    about |= {"imputed_to": HOSTILE[2], "images": 3, "config": config}
    (imputed / "imputed.json").write_text(json.dumps(about))
    report([tmp_path], tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_names_from_a_table_stay_text(hostile_page: str) -> None:
    found = Elements(hostile_page)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 3
    assert all("onerror" not in attributes for _, attributes in found.elements)
    images = [attributes["src"] for tag, attributes in found.elements if tag == "img"]
    assert [str(source)[:23] for source in images] == ["data:image/webp;base64,"] * 3
    data = page_data(hostile_page)
    text = "".join(found.text)
    for name in HOSTILE:
        assert name in text
    assert "49" not in re.findall(r"\d+", text.split("All ")[0])
    (points,) = data["maps"]
    assert set(data["columns"][points["columns"]["Label"]]["names"]) == set(HOSTILE)
    for figure in data["figures"].values():
        assert "<script" not in json.dumps(figure)


def test_the_page_fetches_nothing_and_runs_only_its_own_scripts(hostile_page: str) -> None:
    found = Elements(hostile_page)
    for tag, attributes in found.elements:
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
    policy = next(
        str(attributes["content"])
        for _, attributes in found.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    for script in re.findall(r"<script>(.*?)</script>", hostile_page, flags=re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    style = re.search(r"<style>(.*?)</style>", hostile_page, flags=re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_undefined_scores_are_a_dash_with_the_reason(hostile_page: str) -> None:
    reason = html.escape(f"undefined, n = 100 ({HOSTILE[1]})", quote=False)
    cells = re.findall(r'<td class="number" title="([^"]*)">–</td>', hostile_page)
    assert any(html.unescape(cell).endswith(html.unescape(reason)) for cell in cells)


def test_all_scores_are_in_the_page(tmp_path: Path) -> None:
    rows = [score("erm", 1 / 3), score("erm", math.nan, seed=1, note='a "note", with\nlines')]
    write_scores(tmp_path / "scores.parquet", rows)
    report([tmp_path], tmp_path / "page.html")
    table = page_data((tmp_path / "page.html").read_text(encoding="utf-8"))["tables"]["scores"]
    assert table["columns"] == SCORE_COLUMNS
    expected = [[*row.values()] for row in rows]
    expected[1][SCORE_COLUMNS.index("value")] = None
    assert table["rows"] == expected


def test_imputed_cells_without_their_map_are_left_out_with_the_reason(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", [score("erm", 0.5)])
    imputed = tmp_path / "imputed"
    imputed.mkdir()
    about = {"method": "ist", "fold": "iid", "seed": 0, "screen": "s", "imputed_to": "P1"}
    about |= {"images": 3, "config": {"method": "ist"}}
    (imputed / "imputed.json").write_text(json.dumps(about))
    report([tmp_path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "transfer.png: missing" in page
    with pytest.raises(UserError, match=r"transfer\.png: missing"):
        report([imputed], tmp_path / "other.html")


def swap_directory(path: Path, **more: Any) -> Path:
    path.mkdir()
    Image.new("RGB", (4, 4)).save(path / "swap.png")
    about = {"method": "scbd", "fold": "iid", "seed": 0, "screen": "s", "rows": [1, 2], **more}
    (path / "transfer.json").write_text(json.dumps({**about, "config": {"method": "scbd"}}))
    return path


@pytest.mark.parametrize(
    ("share", "opened", "said"),
    [
        (0.42, True, "<b>42 %</b>"),
        (0.04, False, "a longer or larger decoder"),
        (-0.5, False, "<b>nothing</b> (-0.50)"),
        (None, False, "was not measured"),
    ],
)
def test_swapped_cells_are_folded_where_they_say_nothing(
    tmp_path: Path, share: float | None, opened: bool, said: str
) -> None:
    more = {} if share is None else {"explained": share}
    report([swap_directory(tmp_path / "swap", **more)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="swaps">') :]
    section = section[: section.index("</section>")]
    assert said in section
    assert ('<details class="grid" open>' in section) == opened
    assert "data:image/webp" in section


def test_the_methods_can_be_pasted_and_the_commands_run_again(tmp_path: Path) -> None:
    write_run(tmp_path / "a b", "scbd", alpha=2, fold="plate=P1")
    write_run(tmp_path / "c", "scbd", alpha=2, seed=1, fold="plate=P2")
    sources = find_sources([tmp_path], 10, 0)
    text = paragraph(sources)
    for said in (
        "scbd (Makino et al., Supervised Contrastive Block Disentanglement, eq. 1)",
        "alpha 2.0", "batch size", "checkpoints by loss", "2 runs",
        "Held out, one at a time: plate=P1, plate=P2; seeds 0, 1.",
    ):  # fmt: skip
        assert said in text
    lines = commands(sources)
    config = tmp_path / "a b" / "config.yaml"
    assert lines[0] == (
        f"deconfound fit scbd /nowhere/screen --config '{config}' --out 'a b-again'"
    )
    assert [line.split()[1] for line in lines] == ["fit", "embed"] * 2 + ["measure", "report"]
    report([tmp_path], tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert text in page
    assert "\n".join(lines) in page


def test_a_run_is_trained_again_by_the_command_of_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words that the page gives are those that the command takes."""
    write_run(tmp_path / "a", "erm")
    words = shlex.split(commands(find_sources([tmp_path], 10, 0))[0])
    with pytest.raises(SystemExit) as ended:
        cli.main(words[1:])
    assert ended.value.code == 2
    assert "/nowhere/screen" in capsys.readouterr().err, "only the screen is missing"


def test_lines_go_from_the_baseline_to_each_method() -> None:
    values = {"erm": 0.5, "scbd": 0.6, "<b>": 0.4}
    rows = [score(m, v + 0.01 * s, seed=s) for m, v in values.items() for s in (0, 1)]
    rows.append(score("erm", 0.1, metric="macro_f1_chance"))
    (panel,) = score_slopes(framed(rows), "erm")
    traces = panel.figure["data"]
    assert [trace["y"] for trace in traces] == [
        pytest.approx(pair)
        for pair in ([0.5, 0.6], [0.51, 0.61], [0.505, 0.605], [0.5, 0.4], [0.51, 0.41],
                     [0.505, 0.405])
    ]  # fmt: skip
    assert panel.figure["layout"]["xaxis"]["ticktext"] == ["erm", "scbd", "erm", "&lt;b&gt;"]
    low, high = panel.figure["layout"]["yaxis"]["range"]
    assert low < 0.4 < 0.61 < high < 0.8
    (alone,) = score_slopes(framed(rows[2:4]), "erm")
    assert [trace["y"] for trace in alone.figure["data"]] == [
        pytest.approx([value]) for value in (0.6, 0.61, 0.605)
    ]


@pytest.mark.usefixtures("flat_map")
def test_a_page_of_twenty_runs_is_at_most_eight_megabytes(tmp_path: Path) -> None:
    with ScreenWriter(tmp_path / "screen", "tiny", ("DNA", "actin"), Roles(), {}) as writer:
        noise = np.random.default_rng(0).integers(0, 255, (2_500, 2, 48, 48), dtype=np.uint8)
        writer.append(noise)
        writer.finish(pd.DataFrame({"drug": ["a"] * 2_500}))
    identity = open_screen(tmp_path / "screen").identity
    runs = [
        write_run(
            tmp_path / f"run-{fold}-{seed}", "scbd", seed=seed, fold=f"plate=P{fold}",
            screen=tmp_path / "screen", identity=identity,
        )
        for fold in range(5)
        for seed in range(4)
    ]  # fmt: skip
    write_sample(runs[0] / "embeddings.h5ad", runs[0], cells=2_500)
    rows = [
        score("scbd", 0.5, fold=f"plate=P{fold}", seed=seed, metric=f"metric_{metric}")
        for fold in range(5) for seed in range(4) for metric in range(60)
    ]  # fmt: skip
    write_scores(tmp_path / "scores.parquet", rows)
    report([tmp_path], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 8_000_000


def test_three_maps_of_200_000_points_are_below_eight_megabytes() -> None:
    """Drawn with a fifth of the points, whose bytes grow with them."""
    stream, count = np.random.default_rng(0), 40_000
    rows = np.sort(stream.permutation(200_000)[:count])
    well = stream.integers(34, size=count)
    table = pd.DataFrame(
        {
            "Metadata_Plate": np.char.add("P", (well % 6).astype(str)),
            "Metadata_Well": np.char.add("A", well.astype(str)),
            "Metadata_X": stream.random(count) * 2960,
            "Metadata_Y": stream.random(count) * 2960,
        }
    )
    part = coded(pd.Series(stream.choice(["train", "val", "test"], count)))
    label = coded(pd.Series(stream.integers(900, size=count).astype(str)))
    environment = coded(table["Metadata_Plate"] + "/" + table["Metadata_Well"])
    pool = Pool()
    maps = []
    for method in ("erm", "ist", "scbd"):
        guessed = coded(pd.Series(stream.integers(900, size=count).astype(str)))
        marks = {"part": part, "label": label, "environment": environment, "predicted": guessed}
        sample = Sample(
            Path("cells"),
            method,
            {"method": method, "fold": "iid", "seed": 0, "screen": "s"},
            "content",
            stream.standard_normal((count, 2)).astype(np.float32),
            rows,
            200_000,
            marks,
            table,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report_map, "coordinates", lambda values, _seed: values)
            maps += draw_maps([sample], [], 0, pool)[0]
    data = {"maps": [one.points for one in maps], "columns": pool.entries, "arrays": pool.arrays}
    assert [len(one.points["columns"]) for one in maps if one.points] == [8, 8, 8]
    text = json.dumps(data, separators=(",", ":"))
    assert 5 * len(packed(text)) + len(packed(get_plotlyjs())) < 8_000_000
    x = np.array(numbers(data["maps"][2]["x"], "<u2")) / 8_191
    expected = (sample.values[:, 0] - sample.values[:, 0].min()) / np.ptp(sample.values[:, 0])
    np.testing.assert_allclose(x, expected, rtol=0, atol=0.51 / 8_191)


def test_a_file_of_genes_has_no_environment_and_makes_a_map(tmp_path: Path) -> None:
    """`aggregate` without `--within` writes rows that lie in no environment."""
    path = write_sample(tmp_path / "cells.h5ad", tmp_path / "run")
    genes = read_embeddings(path)
    genes.about["roles"] = Roles(label="drug").model_dump()
    genes.about["aggregated"] = {"parts": []}
    write_embeddings(tmp_path / "genes.h5ad", genes)
    found = find_sources([tmp_path / "genes.h5ad"], 10, 0).samples[0]
    assert found.marks["environment"].names == ()
    report([tmp_path / "genes.h5ad"], tmp_path / "page.html")
    assert page_data((tmp_path / "page.html").read_text(encoding="utf-8"))["maps"][0]["count"] == 30
