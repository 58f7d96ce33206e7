import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from deconfound.embeddings.file import PART, PREDICTED, Embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.evaluation import representations
from deconfound.evaluation.measure import measure
from deconfound.evaluation.scores import COLUMNS

ROLES = {
    "label": "y", "environment": ["plate"], "levels": ["series", "plate"],
    "well": None, "split": None,
}  # fmt: skip
PARTS = np.repeat(["train", "val", "id_test", "test"], [120, 20, 40, 40])


def made(fold: str = "plate=S1/P1", seed: int = 0, **about: Any) -> Embeddings:
    """220 rows: labels readable from the embedding, imperfect predictions, a class only in test."""
    stream = np.random.default_rng(len(fold) + 7 * seed)
    label = stream.integers(0, 3, len(PARTS))
    plate = np.where(PARTS == "test", "P1", np.where(stream.random(len(PARTS)) < 0.5, "P2", "P3"))
    values = stream.normal(0, 1, (len(PARTS), 6)).astype(np.float32)
    values[:, 0] += 2.0 * label
    values[:, 1] += 3.0 * (plate == "P2")
    text = np.array([f"c{code}" for code in label], dtype=object)
    text[np.flatnonzero(PARTS == "test")[:6]] = "only held out"
    wrong = stream.random(len(PARTS)) < 0.3
    predicted = np.where(wrong, "c0", np.array(["c0", "c1", "c2"])[label])
    table = pd.DataFrame(
        {"y": text, "series": "S1", "plate": plate, PART: PARTS, PREDICTED: predicted}
    )
    described = {
        "method": "m", "fold": fold, "seed": seed, "screen": "s", "roles": ROLES, "run": "r",
        "selection": "loss", "labels": ["c0", "c1", "c2"],
        "config": {"method": "m", "seed": seed, "options": {}, "data": {"fold": fold}},
    }  # fmt: skip
    described |= about
    return Embeddings(table, {"content": values, "representation": values[:, :4]}, described)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Embeddings], Path]:
    def save(embeddings: Embeddings) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5ad"
        write_embeddings(path, embeddings)
        return path

    return save


Saved = Callable[[Embeddings], Path]


def one(scores: pd.DataFrame, metric: str, part: str, representation: str = "prediction") -> Any:
    chosen = scores[
        (scores["metric"] == metric)
        & (scores["part"] == part)
        & (scores["representation"] == representation)
    ]
    assert len(chosen) == 1, chosen
    return chosen.iloc[0]


def test_scores_of_predictions_are_those_of_scikit_learn(saved: Saved) -> None:
    embeddings = made()
    scores = measure([saved(embeddings)], quiet=True)
    table = embeddings.table
    for part in ("val", "id_test", "test"):
        chosen = table[(table[PART] == part) & (table["y"] != "only held out")]
        truth, predicted = chosen["y"], chosen[PREDICTED]
        found = one(scores, "accuracy", part)
        assert found["value"] == pytest.approx(accuracy_score(truth, predicted))
        assert found["n"] == len(chosen)
        labels = sorted(truth.unique())
        expected = f1_score(truth, predicted, labels=labels, average="macro")
        assert one(scores, "macro_f1", part)["value"] == pytest.approx(expected)
    coverage = one(scores, "class_coverage", "test")
    assert coverage["value"] == pytest.approx(3 / 4)
    assert "6 rows are not scored" in coverage["note"]


def test_labels_seen_nearby_and_unseen_are_scored_apart(saved: Saved) -> None:
    embeddings = made()
    table = embeddings.table
    table.loc[(table["y"] == "c2") & (table[PART] != "test"), "series"] = "S2"  # not in S1
    scores = measure([saved(embeddings)], quiet=True)
    chosen = table[(table[PART] == "test") & (table["y"] != "only held out")]
    of_class = f1_score(chosen["y"], chosen[PREDICTED], labels=["c0", "c1", "c2"], average=None)
    near = one(scores, "macro_f1_seen_nearby", "test")
    assert near["value"] == pytest.approx(of_class[:2].mean())
    assert near["n"] == chosen["y"].isin(["c0", "c1"]).sum()
    far = one(scores, "macro_f1_unseen_nearby", "test")
    assert far["value"] == pytest.approx(of_class[2])
    assert far["n"] == (chosen["y"] == "c2").sum()
    assert one(scores, "macro_f1", "test")["value"] == pytest.approx(of_class.mean())
    named = scores["metric"].str.contains("nearby")
    assert set(scores[named]["part"]) == {"test"}
    assert named.sum() == 4


def test_a_random_split_has_no_labels_nearby(saved: Saved) -> None:
    scores = measure([saved(made("iid"))], quiet=True)
    assert not scores["metric"].str.contains("nearby").any()


def test_probes_are_those_of_scikit_learn(saved: Saved) -> None:
    embeddings = made()
    scores = measure([saved(embeddings)], quiet=True)
    table, values = embeddings.table, embeddings.representations["content"].astype(np.float64)
    train = table[PART] == "train"
    scaler = StandardScaler().fit(values[train])
    for target, column, part in (
        ("label", "y", "id_test"),
        ("label", "y", "test"),
        ("environment", "plate", "id_test"),
    ):
        probe = LogisticRegression(max_iter=1000)
        probe.fit(scaler.transform(values[train]), table[column][train])
        chosen = (table[PART] == part) & (table[column] != "only held out")
        predicted = probe.predict(scaler.transform(values[chosen]))
        expected = accuracy_score(table[column][chosen], predicted)
        found = one(scores, f"probe_{target}_accuracy", part, "content")
        assert found["value"] == pytest.approx(expected)
    parts = scores[scores["metric"] == "probe_environment_accuracy"]["part"]
    assert set(parts) == {"id_test"}, "a held-out environment has no training row"


def test_the_table_has_its_columns_and_survives_its_file(saved: Saved, tmp_path: Path) -> None:
    out = tmp_path / "scores" / "s.parquet"
    scores = measure([saved(made())], out, quiet=True)
    assert scores.columns.tolist() == COLUMNS
    assert set(scores["method"]) == {"m"}
    assert set(scores["fold"]) == {"plate=S1/P1"}
    assert set(scores["representation"]) == {"prediction", "content", "representation"}
    assert scores["value"].dtype == np.float64
    assert scores["n"].dtype == np.int64
    assert not scores.duplicated(["representation", "metric", "part"]).any()
    pd.testing.assert_frame_equal(pd.read_parquet(out), scores)
    with pytest.raises(UserError, match="already exists"):
        measure([tmp_path / "not looked at"], out, quiet=True)


def test_every_metric_written_is_declared(saved: Saved) -> None:
    from deconfound.metrics.score import all_metrics

    scores = measure([saved(made())], quiet=True)
    declared = all_metrics()
    assert set(scores["metric"]) <= set(declared)
    for row in scores.itertuples():
        low, high = declared[str(row.metric)].range
        assert math.isnan(row.value) or low <= row.value <= high, row


def test_folds_of_one_level_are_pooled_over_their_rows(saved: Saved) -> None:
    folds = [made(f"plate=S1/{plate}") for plate in ("P1", "PP2", "PPP3")]
    others = [made("iid"), made("series=S1"), made("plate=S1/P1", seed=1)]
    scores = measure([saved(fold) for fold in [*folds, *others]], quiet=True)
    pooled = scores[scores["fold"].str.contains("pooled")]
    assert set(pooled["fold"]) == {"plate (pooled over 3 folds)"}
    assert set(pooled["part"]) == {"test"}
    tables = [fold.table[fold.table[PART] == "test"] for fold in folds]
    table = pd.concat(tables)
    table = table[table["y"] != "only held out"]
    accuracy = one(pooled, "accuracy", "test")
    assert accuracy["n"] == len(table) == 3 * 34
    assert accuracy["value"] == pytest.approx(accuracy_score(table["y"], table[PREDICTED]))
    expected = f1_score(table["y"], table[PREDICTED], average="macro")
    assert one(pooled, "macro_f1", "test")["value"] == pytest.approx(expected)


def test_a_class_is_scored_in_the_folds_whose_training_has_it(saved: Saved) -> None:
    """Pooling does not bring back a class that a fold's training lacked."""
    first, second = made("plate=S1/P1"), made("plate=S1/PP2")
    table = second.table.copy()
    table.loc[(table[PART] != "test") & (table["y"] == "c1"), "y"] = "c0"
    about = second.about | {"labels": ["c0", "c2"]}
    lacking = Embeddings(table, second.representations, about)
    scores = measure([saved(first), saved(lacking)], quiet=True)
    lost = ((table[PART] == "test") & (table["y"] == "c1")).sum()
    assert lost > 0
    found = one(scores[scores["fold"].str.contains("pooled")], "accuracy", "test")
    assert found["n"] == 2 * 34 - lost


def test_runs_of_one_fold_and_runs_that_differ_are_not_pooled(saved: Saved) -> None:
    """Two values of alpha, or two checkpoints, on the same fold are two runs, not two folds."""
    runs = [
        made("plate=S1/P1", config={"options": {"alpha": alpha}, "data": {}}) for alpha in (0, 8)
    ]
    runs += [made("plate=S1/PP2", selection="accuracy"), made("plate=S1/PP2", selection="last")]
    runs += [
        made("plate=S1/P3", run="copy"),
        made("plate=S1/P3", run="other copy", selection="loss"),
    ]
    scores = measure([saved(run) for run in runs], quiet=True)
    assert not scores["fold"].str.contains("pooled").any()


def changed(embeddings: Embeddings, rows: npt.NDArray[np.bool_], **columns: str) -> Embeddings:
    table = embeddings.table.copy()
    for column, value in columns.items():
        table.loc[rows, column] = value
    return Embeddings(table, embeddings.representations, embeddings.about)


def test_held_out_labels_change_no_score_of_another_part(saved: Saved) -> None:
    embeddings = made()
    test = (embeddings.table[PART] == "test").to_numpy()
    first, second = (
        measure([saved(one)], quiet=True) for one in (embeddings, changed(embeddings, test, y="c1"))
    )
    rest = first["part"] != "test"
    assert rest.any()
    pd.testing.assert_frame_equal(first[rest], second[rest])


def test_held_out_embeddings_change_no_score_of_another_part(saved: Saved) -> None:
    embeddings = made()
    test = (embeddings.table[PART] == "test").to_numpy()
    noise = {
        name: np.where(test[:, None], np.float32(50), values)
        for name, values in embeddings.representations.items()
    }
    mutated = Embeddings(embeddings.table, noise, embeddings.about)
    first, second = (measure([saved(one)], quiet=True) for one in (embeddings, mutated))
    rest = first["part"] != "test"
    pd.testing.assert_frame_equal(first[rest], second[rest])


def test_no_score_is_nan_without_a_reason(saved: Saved) -> None:
    embeddings = made()
    everything = np.ones(len(PARTS), dtype=bool)
    train = PARTS == "train"
    for hard in (
        changed(embeddings, everything, plate="P2"),
        changed(embeddings, everything, y="c1"),
        changed(embeddings, ~train, y="never trained on"),
    ):
        scores = measure([saved(hard)], quiet=True)
        undefined = scores[scores["value"].isna()]
        assert len(undefined)
        assert (undefined["note"].str.len() > 0).all(), undefined
        assert len(scores) > 20


def test_a_method_without_a_classifier_has_no_scores_of_predictions(saved: Saved) -> None:
    embeddings = made()
    table = embeddings.table.assign(
        **{PREDICTED: pd.Series(pd.NA, index=range(220), dtype="string")}
    )
    silent = Embeddings(table, embeddings.representations, embeddings.about)
    scores = measure([saved(silent)], quiet=True)
    assert "prediction" not in set(scores["representation"])
    assert "probe_label_macro_f1" in set(scores["metric"])


def test_another_screen_is_scored_by_the_labels_it_shares(saved: Saved) -> None:
    """Rows of a screen that training never saw have a label and a prediction too."""
    embeddings = made()
    everything = np.ones(len(PARTS), dtype=bool)
    new = changed(embeddings, everything, **{PART: "new"})
    scores = measure([saved(new)], quiet=True)
    table = embeddings.table[embeddings.table["y"] != "only held out"]
    found = one(scores, "accuracy", "new")
    assert found["value"] == pytest.approx(accuracy_score(table["y"], table[PREDICTED]))


def test_a_collapsed_block_is_called_so(saved: Saved) -> None:
    embeddings = made()
    point = embeddings.representations | {"content": np.ones((len(PARTS), 6), np.float32)}
    scores = measure([saved(Embeddings(embeddings.table, point, embeddings.about))], quiet=True)
    found = one(scores, "mean_resultant_length", "id_test", "content")
    assert found["value"] == pytest.approx(1)
    assert "collapsed" in found["note"]
    assert "collapsed" in one(scores, "supcon_collapse", "id_test", "content")["note"]


def test_neighbours_are_thinned_by_the_seed_alone(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representations, "GRAPH_ROWS", 60)
    path = saved(made())
    first, again, other = (measure([path], seed=seed, quiet=True) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    lisi = first["metric"] == "lisi_environment"
    assert (first[lisi]["value"] != other[lisi]["value"]).any()
    score = one(first, "lisi_environment", "id_test", "content")
    assert score["n"] == 30
    assert score["note"].startswith("30 of 40 rows among 60 of 160, standard error 0.")
    vote = one(first, "knn_batch_cv", "id_test", "content")["note"]
    assert vote.endswith("30 of 40 rows among 60 of 160")
    monkeypatch.undo()
    assert one(measure([path], quiet=True), "ilisi", "id_test", "content")["note"] == ""


def test_nothing_to_measure_is_said() -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        measure([], quiet=True)


def test_the_papers_batch_prediction_is_of_folds_that_hold_no_environment_out(saved: Saved) -> None:
    inside, outside = (
        measure([saved(made(fold))], quiet=True) for fold in ("given", "plate=S1/P1")
    )
    assert not (outside["metric"] == "batch_prediction_macro_f1").any()
    assert not (inside["metric"] == "batch_prediction_macro_f1").any()  # P1 is in test alone
    overlapping = made("iid")
    overlapping.table["plate"] = overlapping.table["plate"].replace("P1", "P2")
    scores = measure([saved(overlapping)], quiet=True)
    score = one(scores, "batch_prediction_macro_f1", "all", "content")
    assert 0.6 < score["value"] <= 1
    assert score["n"] == round(0.4 * len(PARTS))


def test_labels_are_compared_by_their_keys(saved: Callable[[Embeddings], Path]) -> None:
    """A run trained on labels 1.0 and 2.0 is scored on a screen that writes 1 and 2."""
    text, number = made(), made()
    codes = {"c0": 0, "c1": 1, "c2": 2, "only held out": 3}
    text.table["y"] = text.table["y"].map(codes).astype(str)
    text.table[PREDICTED] = text.table[PREDICTED].map(codes).astype(str)
    number.table["y"] = number.table["y"].map(codes).astype(float)
    number.table[PREDICTED] = number.table[PREDICTED].map(codes).astype(float).astype(str)
    text.about["labels"], number.about["labels"] = ["0", "1", "2"], ["0.0", "1.0", "2.0"]
    expected, found = (measure([saved(one)], quiet=True) for one in (text, number))
    pd.testing.assert_frame_equal(found, expected)
    scored = expected[(expected["metric"] == "accuracy") & (expected["part"] == "id_test")]
    assert scored["value"].iloc[0] > 0.6


def test_a_screen_without_a_label_of_training_is_an_error(
    saved: Callable[[Embeddings], Path],
) -> None:
    other = made()
    other.table["y"] = "z" + other.table["y"]
    other.table[PART] = "new"
    with pytest.raises(UserError, match=r"none of the labels of column 'y' \(zc0, .*c0, c1, c2"):
        measure([saved(other)], quiet=True)
    other.table["y"] = pd.Series(pd.NA, index=other.table.index, dtype="string")
    with pytest.raises(UserError, match="nothing to score: no row outside training has a label"):
        measure([saved(other)], quiet=True)


def test_identified_rows_in_another_order_have_the_same_scores(
    saved: Callable[[Embeddings], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representations, "PROBE_ROWS", 50)
    monkeypatch.setattr(representations, "GRAPH_ROWS", 60)
    first = made()
    first.about["roles"] = ROLES | {"identifier": ["id"]}
    first.table["id"] = [f"cell{row}" for row in range(len(PARTS))]
    order = np.random.default_rng(0).permutation(len(PARTS))
    expected, found = (measure([saved(one)], quiet=True) for one in (first, first.taken(order)))
    pd.testing.assert_frame_equal(found, expected)


def test_a_file_that_gives_no_score_is_an_error(saved: Saved) -> None:
    alone = made()
    alone.table[PART] = "train"
    with pytest.raises(UserError, match=r"nothing to score: .*\(parts: train\); embed the whole"):
        measure([saved(alone)], quiet=True)


def test_another_screen_need_not_have_the_columns_of_training(saved: Saved) -> None:
    """Identifier and environment play no part in its scores; without a label there are none."""
    first = made()
    first.about["roles"] = ROLES | {"identifier": ["id"]}
    first.table[PART] = "new"
    expected = measure([saved(first.taken(np.arange(len(PARTS))[::-1]))], quiet=True)
    first.table.drop(columns="plate", inplace=True)
    pd.testing.assert_frame_equal(measure([saved(first)], quiet=True), expected)
    first.table.rename(columns={"y": "z"}, inplace=True)
    with pytest.raises(UserError, match=r"\.h5ad: there is no column 'y'.*it has z"):
        measure([saved(first)], quiet=True)


def test_one_fold_written_two_ways_is_one_fold(saved: Saved) -> None:
    """Plate 1.0 and plate 1 are not pooled as two folds."""
    first, again = made("plate=S1/1.0"), made("plate=S1/1")
    again.about["config"] = first.about["config"]
    scores = measure([saved(first), saved(again)], quiet=True)
    assert set(scores["fold"]) == {"plate=S1/1"}
