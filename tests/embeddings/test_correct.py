"""Embeddings corrected after training: what is learnt from which rows, and what the file says."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier

from deconfound import cli
from deconfound.embeddings.correct import correct
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.methods import post_hoc
from deconfound.methods.post_hoc.harmony import HarmonyOptions
from deconfound.reports.report import report

PARTS = np.repeat(["train", "val", "id_test", "test"], [120, 20, 30, 40])
ROLES = {"label": "y", "environment": ["plate"], "levels": [], "well": None, "split": None}


def made(new: bool = False, seed: int = 0, **about: Any) -> Embeddings:
    """Labels and plates both move the rows; the plate of test rows is held out."""
    stream = np.random.default_rng(seed)
    label = stream.integers(0, 3, len(PARTS))
    plate = np.where(PARTS == "test", 2, stream.integers(0, 2, len(PARTS)))
    centres, shifts = np.random.default_rng(9).normal(size=(2, 3, 6)) * [[[3]], [[2]]]
    values = (centres[label] + shifts[plate] + stream.normal(size=(len(PARTS), 6))).astype("f4")
    text = pd.Series([f"c{code}" for code in label]).mask(np.arange(len(PARTS)) == 5)
    table = pd.DataFrame({"y": text, "plate": [f"P{code}" for code in plate]})
    table[PART] = "new" if new else PARTS
    table[PREDICTED] = "c0"
    described = {
        "method": "erm", "fold": "plate=P2", "seed": 0, "screen": "s", "roles": ROLES, "run": "r",
        "selection": "loss", "labels": ["c0", "c1", "c2"], "saw_held_out": False,
        "config": {"method": "erm", "seed": 0, "options": {}, "data": {"fold": "plate=P2"}},
    }  # fmt: skip
    return Embeddings(
        table, {"representation": values, "content": values[:, :3]}, described | about
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_embeddings(tmp_path / "erm.h5ad", made())
    return tmp_path / "erm.h5ad"


def test_a_file_that_declares_more_than_it_holds_is_refused(file: Path) -> None:
    anndata.read_h5ad(file).write_h5ad(file)  # which leaves the seal out
    with h5py.File(file, "a") as opened:
        more = {"shape": (len(PARTS), 10**10), "chunks": (1, 10**6), "compression": "gzip"}
        opened["obsm"].create_dataset("X_more", dtype="float32", **more)
    with pytest.raises(UserError, match=r"erm\.h5ad: declares obsm/X_more .* 256 times the file"):
        read_embeddings(file)


@pytest.fixture
def harmonypy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in that subtracts the mean of each environment; the rows of every call."""
    rows: list[int] = []
    module = ModuleType("harmonypy")

    def run_harmony(values: Any, meta: Any, names: Any, **_: Any) -> SimpleNamespace:
        codes = np.asarray(meta[names[0]])
        rows.append(len(values))
        corrected = values.copy()
        for code in np.unique(codes):
            corrected[codes == code] -= values[codes == code].mean(axis=0)
        odds = np.exp(values[:, :2])
        return SimpleNamespace(
            Z_orig=values, Z_corr=corrected, R=odds / odds.sum(axis=1, keepdims=True)
        )

    module.run_harmony = run_harmony  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harmonypy", module)
    return rows


def test_the_vote_is_that_of_the_nearest_training_rows(file: Path, tmp_path: Path) -> None:
    found = correct("knn", file, tmp_path / "knn.h5ad", knn=7)
    before = made()
    train = np.flatnonzero((PARTS == "train") & before.table["y"].notna().to_numpy())
    values, label = before.representations["representation"], before.table["y"].to_numpy(object)
    oracle = KNeighborsClassifier(7).fit(values[train], label[train])
    other = PARTS != "train"
    agreed = oracle.predict(values[other]) == found.table[PREDICTED].astype(str)[other]
    assert agreed.mean() > 0.97  # sklearn breaks ties by the order of labels, this by distance
    for row in (0, 60):  # a training row has no vote on itself
        rest = train[train != row]
        alone = KNeighborsClassifier(1).fit(values[rest], label[rest]).predict(values[[row]])
        single = correct("knn", file, tmp_path / f"{row}.h5ad", knn=1)
        assert single.table[PREDICTED].astype(str)[row] == alone[0]
    np.testing.assert_array_equal(found.representations["representation"], values)
    assert list(found.representations) == ["representation"]
    assert found.about["method"] == "erm+knn"
    assert found.about["config"]["post_hoc"]["knn"]["k"] == 7
    pd.testing.assert_series_equal(found.table[PART], read_embeddings(file).table[PART])


def test_held_out_rows_teach_nothing(file: Path, tmp_path: Path, harmonypy: list[int]) -> None:
    """Rows of a part are as they were when pixels and labels of all other held-out ones change."""
    noisy = made()
    hidden = np.isin(PARTS, ["test", "id_test"])
    stream = np.random.default_rng(5)
    noisy.representations["representation"][hidden] = stream.normal(size=(hidden.sum(), 6)) * 50
    noisy.table.loc[hidden, "y"] = "unheard of"
    write_embeddings(tmp_path / "noisy.h5ad", noisy)
    first = correct("symphony", file, tmp_path / "a.h5ad", knn=5)
    again = correct("symphony", tmp_path / "noisy.h5ad", tmp_path / "b.h5ad", knn=5)
    kept, key = ~hidden, "representation"
    assert harmonypy == [120, 120]
    np.testing.assert_array_equal(
        first.representations[key][kept], again.representations[key][kept]
    )
    assert (first.table[PREDICTED][kept].astype(str) == again.table[PREDICTED][kept]).all()
    changed = first.representations[key][hidden] != again.representations[key][hidden]
    assert changed.all()


@pytest.mark.usefixtures("harmonypy")
def test_symphony_is_measured_and_reported_as_a_method_of_its_own(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corrected.h5ad"
    found = correct("symphony", file, out, HarmonyOptions(components=4), knn=5)
    assert found.representations["representation"].shape == (len(PARTS), 4)
    assert found.about["saw_held_out"] is False
    assert found.about["config"]["post_hoc"]["symphony"]["components"] == 4
    scores = measure([file, out], tmp_path / "s.parquet", quiet=True)
    assert set(scores["method"]) == {"erm", "erm+symphony+knn"}
    accuracy = scores[(scores.metric == "accuracy") & (scores.part == "test")]
    mine = accuracy[accuracy.method == "erm+symphony+knn"]["value"].iloc[0]
    right = found.table[PREDICTED].astype(str) == found.table["y"].astype(str)
    assert mine == pytest.approx(right[PARTS == "test"].mean())
    assert not scores["note"].str.contains("trained with").any()
    told = scores["note"].str.contains("unseen groups aligned by embeddings of test rows")
    assert (told == (scores["method"] == "erm+symphony+knn")).all()
    report([tmp_path / "s.parquet"], tmp_path / "r.html")
    assert "erm+symphony+knn" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_harmony_is_fitted_on_all_rows_and_says_so(
    file: Path, tmp_path: Path, harmonypy: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "h.h5ad", tmp_path / "s.parquet"
    cli.main(["correct", "harmony", str(file), "--out", str(out), "--theta", "1"])
    assert "held-out rows took part" in capsys.readouterr().err
    assert harmonypy == [len(PARTS)]
    found = read_embeddings(out)
    assert (found.about["method"], found.about["saw_held_out"]) == ("erm+harmony-refit", True)
    assert found.table[PREDICTED].isna().all()
    table = measure([out], scores, quiet=True)
    assert set(table["method"]) == {"erm+harmony-refit"}
    assert table["note"].str.contains("trained with images of test rows").all()
    report([scores], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "erm+harmony-refit was trained with images of test rows" in page


def test_another_screen_without_columns_of_training(file: Path, tmp_path: Path) -> None:
    """It has no identifier of its own, and without an environment it is refused in one line."""
    new = made(new=True)
    new.about["roles"] = ROLES | {"identifier": ["id"]}
    write_embeddings(tmp_path / "new.h5ad", new)
    found = correct("pca", tmp_path / "new.h5ad", tmp_path / "out.h5ad", reference=file)
    write_embeddings(tmp_path / "same.h5ad", made(new=True))
    same = correct("pca", tmp_path / "same.h5ad", tmp_path / "s.h5ad", reference=file)
    assert (found.representations["representation"] == same.representations["representation"]).all()
    new.table.drop(columns="plate", inplace=True)
    write_embeddings(tmp_path / "none.h5ad", new)
    with pytest.raises(UserError, match="screen 's': there is no column 'plate'"):
        correct("pca", tmp_path / "none.h5ad", tmp_path / "no.h5ad", reference=file)


@pytest.mark.usefixtures("harmonypy")
def test_another_screen_is_mapped_onto_the_reference(file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.h5ad"
    write_embeddings(new, made(new=True, seed=4))
    found = correct("symphony", new, tmp_path / "out.h5ad", reference=file, knn=5)
    assert (found.table[PART].astype(str) == "new").all()
    right = found.table[PREDICTED].astype(str) == found.table["y"].astype(str)
    assert right.mean() > 0.7
    with pytest.raises(UserError, match=r"no training rows .*; name .* --reference"):
        correct("symphony", new, tmp_path / "no.h5ad")
    with pytest.raises(UserError, match="harmony: cannot map rows onto a reference"):
        correct("harmony", new, tmp_path / "no.h5ad", reference=file)
    with pytest.raises(UserError, match="holds training rows of its own"):
        correct("symphony", file, tmp_path / "no.h5ad", reference=file)
    write_embeddings(tmp_path / "other.h5ad", made(selection="accuracy"))
    with pytest.raises(UserError, match=r"is not of the run .* \(selection differs\)"):
        correct("symphony", new, tmp_path / "no.h5ad", reference=tmp_path / "other.h5ad")
    assert not list(tmp_path.glob("*no.h5ad*"))


def test_mistakes_are_one_line(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.h5ad"
    for words, said in (
        (("symfony", file, out), "unknown post hoc method 'symfony'; did you mean 'symphony'"),
        (("knn", file, tmp_path / "o.parquet"), "expected a name ending in .h5ad"),
        (("knn", file, file), "already exists"),
        (("knn", tmp_path / "none.h5ad", out), "no such embeddings file"),
    ):
        with pytest.raises(UserError, match=said) as error:
            correct(*words)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no representation 'contents'; did you mean 'content'"):
        correct("knn", file, out, representation="contents")
    with pytest.raises(UserError, match="--knn 0"):
        correct("knn", file, out, knn=0)
    correct("knn", file, out)
    with pytest.raises(UserError, match="already corrected by knn"):
        correct("knn", out, tmp_path / "twice.h5ad")
    assert not (tmp_path / "twice.h5ad").exists()


def with_controls(embeddings: Embeddings) -> Embeddings:
    """Every third row is a control."""
    rows = np.arange(len(PARTS)) % 3 == 0
    embeddings.table["Metadata_Control_Type"] = np.where(rows, "negcon", "treatment")
    return embeddings


@pytest.mark.parametrize("name", ["pca", "sphering", "standardise", "tvn"])
def test_corrections_on_controls_learn_from_training_rows(name: str, tmp_path: Path) -> None:
    cells, noisy = with_controls(made()), with_controls(made())
    hidden = PARTS == "test"
    noisy.representations["representation"][hidden] *= 50
    found = []
    for number, one in enumerate((cells, noisy)):
        write_embeddings(tmp_path / f"{number}.h5ad", one)
        found.append(correct(name, tmp_path / f"{number}.h5ad", tmp_path / f"{name}{number}.h5ad"))
    first, second = (one.representations["representation"] for one in found)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first[~hidden], second[~hidden])
    assert found[0].about["method"] == f"erm+{name}"
    assert found[0].about["saw_held_out"] is False
    assert measure([tmp_path / f"{name}0.h5ad"], quiet=True)["value"].notna().any()


def test_corrections_on_controls_are_told_which_they_are(tmp_path: Path) -> None:
    cells, file = with_controls(made()), tmp_path / "cells.h5ad"
    write_embeddings(file, cells)
    words = ["correct", "tvn", str(file), "--out", str(tmp_path / "tvn.h5ad"), "--components", "4"]
    cli.main([*words, "--control", "y=c1"])
    done = read_embeddings(tmp_path / "tvn.h5ad").about["config"]["post_hoc"]["tvn"]
    assert done == {"components": 4, "control": "y=c1", "representation": "representation"}
    with pytest.raises(UserError, match="no controls, no row has y = c9; did you mean 'c2'"):
        correct("tvn", file, tmp_path / "no.h5ad", control="y=c9")
    cells.table.loc[PARTS == "test", "Metadata_Control_Type"] = "treatment"
    write_embeddings(tmp_path / "lacking.h5ad", cells)
    with pytest.raises(UserError, match="rows of part test: 0 controls in P2; expected 2 or more"):
        correct("standardise", tmp_path / "lacking.h5ad", tmp_path / "no.h5ad")
    correct("sphering", tmp_path / "lacking.h5ad", tmp_path / "sphered.h5ad")
    none = made()
    none.about["roles"] = ROLES | {"label": None}
    write_embeddings(tmp_path / "none.h5ad", none)
    with pytest.raises(UserError, match="no column Metadata_Control_Type; name the controls"):
        correct("tvn", tmp_path / "none.h5ad", tmp_path / "no.h5ad")


@pytest.mark.parametrize("name", ["harmony", "symphony", "tvn"])
def test_fit_says_that_a_post_hoc_method_is_not_trained(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", name, "screen", "--out", "run"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"`deconfound correct {name} EMBEDDINGS.h5ad`" in said
    cli.main(["methods"])
    assert f"{name} (post hoc)" in " ".join(capsys.readouterr().out.split())


def test_a_correction_does_not_depend_on_the_order_of_identified_rows(tmp_path: Path) -> None:
    cells = with_controls(made())
    cells.table["id"] = [f"cell{row}" for row in range(len(PARTS))]
    cells.about["roles"] = {**cells.about["roles"], "identifier": ["id"]}
    order = np.random.default_rng(0).permutation(len(PARTS))
    values = []
    for number, one in enumerate((cells, cells.taken(order))):
        write_embeddings(tmp_path / f"{number}.h5ad", one)
        made_of = correct("pca", tmp_path / f"{number}.h5ad", tmp_path / f"pca{number}.h5ad", knn=3)
        assert made_of.table["id"].tolist() == one.table["id"].tolist()
        values.append(made_of.representations["representation"])
    np.testing.assert_array_equal(values[0][order], values[1])


def test_what_a_correction_leaves_out_is_said_once_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings = made()
    control = np.zeros(len(PARTS), dtype=bool)
    for plate in ("P0", "P1", "P2"):
        inside = (embeddings.table["plate"] == plate).to_numpy()
        train = np.isin(PARTS, "test" if plate == "P2" else "train")
        control[np.flatnonzero(inside & train)[:2]] = True
    for part in ("val", "id_test"):
        for plate in ("P0", "P1"):
            inside = (embeddings.table["plate"] == plate).to_numpy() & np.isin(PARTS, part)
            control[np.flatnonzero(inside)[:2]] = True
    embeddings.table["kind"] = np.where(control, "dmso", "drug")
    file, out = tmp_path / "e.h5ad", tmp_path / "c.h5ad"
    write_embeddings(file, embeddings)
    words = ["correct", "tvn", str(file), "--out", str(out), "--control", "kind=dmso"]
    cli.main(words)
    note = (
        "tvn: 3 of 6 principal components are kept: along the others the 4 rows learnt from do "
        "not vary beyond rounding"
    )
    assert capsys.readouterr().err == f"deconfound: {out}: {note}\n"
    found = read_embeddings(out)
    assert found.about["post_hoc_notes"] == [note]
    values = found.representations["representation"]
    assert values.shape == (len(PARTS), 3)
    assert np.abs(values).max() < 100
    plain = correct("pca", file, tmp_path / "p.h5ad")
    assert "post_hoc_notes" not in plain.about


def test_corrections_that_take_an_unseen_plates_own_rows_are_known() -> None:
    """Those whose `transform` learns from the rows it is given; pca and sphering keep what `fit`
    learnt, and harmony is fitted on all rows and says that instead."""
    adapting = {name for name in post_hoc.names() if post_hoc.load(name).ADAPTS}
    assert adapting == {"standardise", "symphony", "tvn"}
