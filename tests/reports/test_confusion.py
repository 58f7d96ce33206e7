"""Scores by label and confusion matrices of a report, against scikit-learn and by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from deconfound.metrics.accuracy import macro_f1
from deconfound.reports.cells import read_cells
from deconfound.reports.confusion import (
    MOST_LABELS,
    MOST_MATRICES,
    MOST_SCORED,
    confusion_matrices,
    label_scores,
)
from deconfound.reports.sources import find_sources

HOSTILE = '"><img src=x onerror=alert(1)>'


def study_of(make_study: Callable[..., Any], labels: list[str], plates: list[str]) -> Any:
    table = pd.DataFrame({"drug": labels, "plate": plates, "well": "A01"})
    return make_study(table, np.zeros((len(table), 1, 2, 2), np.uint8))


def made(study: Any) -> str:
    return str(confusion_matrices(read_cells(find_sources([study.root], 10, 0).samples)))


def matrix(page: str, number: int = 0) -> tuple[list[str], dict[str, list[str]]]:
    """Columns, and the counts of every row as the page says them."""
    table = page.split('<table class="shaded matrix">')[number + 1].split("</table>")[0]
    columns = re.findall(r'<th title="([^"]*)">', table)
    rows = {}
    for row in table[table.index("<tbody>") :].split("<tr>")[1:]:
        name = re.search(r'title="([^"]*)"', row)
        assert name is not None
        rows[name[1]] = [
            (re.search(r'title="([\d,]+) of', cell) or [None, "0"])[1]
            for cell in row.split("<td")[1:]
        ]
    return columns, rows


def scores(page: str) -> dict[str, list[str]]:
    """The cells of the table of scores, by label."""
    table = page.split('<table class="shaded">')[1].split("</table>")[0]
    return {
        re.search(r'title="([^"]*)"', row)[1]: re.findall(r"<td[^>]*>([^<]*)</td>", row)  # type: ignore[index]
        for row in table[table.index("<tbody>") :].split("<tr>")[1:]
    }


def test_scores_of_labels_are_those_of_scikit_learn_and_average_to_macro_f1() -> None:
    stream = np.random.default_rng(0)
    truth = stream.choice(list("abcd"), 200)
    predicted = np.where(stream.random(200) < 0.5, truth, stream.choice(list("abc"), 200))
    seen = truth != "d"
    rows = pd.DataFrame({"truth": truth, "predicted": predicted, "seen": seen})
    found = label_scores(rows)
    precision, recall, f1, support = precision_recall_fscore_support(
        truth[seen], predicted[seen], labels=list("abc")
    )
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(found.loc[list("abc"), name], values)
        assert np.isnan(found.loc["d", name])
    assert found.loc[list("abc"), "rows"].tolist() == support.tolist()
    assert found.loc["d", "rows"] == (truth == "d").sum()
    codes = [pd.Categorical(one, list("abcd")).codes for one in (truth, predicted)]
    np.testing.assert_allclose(found["f1"].mean(), macro_f1(*codes, seen).value)


def test_a_label_that_is_never_given_has_no_precision_and_an_f1_of_0() -> None:
    rows = pd.DataFrame({"truth": ["a", "b"], "predicted": ["a", None], "seen": True})
    found = label_scores(rows)
    assert found["f1"].tolist() == [1.0, 0.0]
    assert found["recall"].tolist() == [1.0, 0.0]
    assert np.isnan(found.loc["b", "precision"])


def test_the_matrix_counts_test_rows_and_names_labels_of_one_side(
    make_study: Callable[..., Any],
) -> None:
    labels = ["a", "b", "c", "a", "a", "a", "b", "new", "new"]
    plates = ["P2"] * 3 + ["P1"] * 6
    study = study_of(make_study, labels, plates)
    test = (study.table["plate"] == "P1").to_numpy()
    study.add("erm", test, ["b", "b", "b", "a", "a", "b", None, "c", "a"])
    page = made(study)
    columns, rows = matrix(page)
    assert columns == ["a", "b", "c", "no prediction"]
    assert rows == {
        "a": ["2", "1", "0", "0"],
        "b": ["0", "0", "0", "1"],
        "new": ["1", "0", "1", "0"],
    }
    assert "Never trained, so never predicted and not scored: new." in page
    assert "Only in training, so without a row: c." in page
    assert page.count("never trained</small>") == 2
    # Of a: 2 right, 1 missed; the row of "new" given a is no error, since it is not scored.
    assert scores(page) == {
        "a": ["3", "0.80", "1.00", "0.67"],
        "b": ["1", "0.00", "0.00", "0.00"],
        "new": ["2", "–", "–", "–"],
    }
    assert "erm: 6 rows, 1 fold, 1 seed" in page


def test_a_label_may_be_called_as_a_column_of_the_page(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study, ["other labels", "no prediction"] * 2, ["P1", "P1", "P2", "P2"])
    test = (study.table["plate"] == "P1").to_numpy()
    study.add("erm", test, ["other labels", None] * 2)
    columns, rows = matrix(made(study))
    assert columns == ["no prediction", "other labels", "no prediction"]
    assert rows == {"no prediction": ["0", "0", "1"], "other labels": ["0", "1", "0"]}


def test_folds_and_seeds_are_summed_and_levels_and_methods_kept_apart(
    make_study: Callable[..., Any],
) -> None:
    study = study_of(make_study, ["a", "b", "only"] * 2, ["P1"] * 2 + ["P3"] + ["P2"] * 2 + ["P4"])
    plate, right = study.table["plate"], study.table["drug"].tolist()
    for seed in (0, 1):
        for name in ("P1", "P2"):
            given = ["a"] * 6 if seed else right
            study.add("erm", (plate == name).to_numpy(), given, fold=f"plate={name}", seed=seed)
    study.add("scbd", (plate == "P1").to_numpy(), right)
    study.add("erm", (plate == "P2").to_numpy(), right, fold="iid")
    page = made(study)
    assert re.findall(r"<h3>([^<]*)</h3>", page) == ["Random split", "Held-out plate"]
    columns, rows = matrix(page, 1)
    assert columns == ["a", "b", "only"]
    assert rows == {"a": ["4", "0", "0"], "b": ["2", "2", "0"]}
    assert "erm: 8 rows, 2 folds, 2 seeds" in page
    assert "scbd: 2 rows, 1 fold, 1 seed" in page
    assert "Only in training, so without a row: only." in page


def test_a_label_that_some_folds_lack_is_said_to_be(make_study: Callable[..., Any]) -> None:
    study = study_of(make_study, ["a", "b", "c", "c", "a"], ["P1", "P1", "P1", "P2", "P2"])
    plate, label = study.table["plate"], study.table["drug"].tolist()
    for name in ("P1", "P2"):
        study.add("erm", (plate == name).to_numpy(), label, fold=f"plate={name}")
    page = made(study)
    assert [page_remark(page, one) for one in "abc"] == ["", "never trained", ""]
    study.add("erm", np.arange(5) >= 1, label, fold="plate=P3")
    assert page_remark(made(study), "c") == "not trained in 1 of 3 folds"


def page_remark(page: str, label: str) -> str:
    found = re.search(rf'title="{label}">{label}</span><small>([^<]*)<', page)
    return found[1] if found else ""


def test_many_labels_are_cut_by_a_rule_that_is_said(make_study: Callable[..., Any]) -> None:
    names = [f"d{n}" for n in range(110)]
    labels = names + names + names[:MOST_LABELS]
    plates = ["P2"] * 110 + ["P1"] * (len(labels) - 110)
    study = study_of(make_study, labels, plates)
    given = [names[-1]] * len(labels)
    study.add("erm", (study.table["plate"] == "P1").to_numpy(), given)
    page = made(study)
    columns, rows = matrix(page)
    assert list(rows) == names[:MOST_LABELS]
    assert columns == [*names[:MOST_LABELS], "other labels"]
    assert rows["d3"] == ["0"] * MOST_LABELS + ["2"]
    assert len(scores(page)) == MOST_SCORED
    assert (
        f"The matrices show the {MOST_LABELS} of 110 labels with most rows; the scores are of "
        f"{MOST_SCORED}."
    ) in page


def test_a_page_holds_a_number_of_matrices_and_names_the_rest(
    make_study: Callable[..., Any],
) -> None:
    study = study_of(make_study, ["a", "b", "a", "b"], ["P1", "P1", "P2", "P2"])
    study.add("erm", (study.table["plate"] == "P1").to_numpy(), list("abab"))
    (one,) = read_cells(find_sources([study.root], 10, 0).samples)
    many = [replace(one, name=f"m{n}") for n in range(MOST_MATRICES + 2)]
    page = str(confusion_matrices(many))
    assert page.count("shaded matrix") == MOST_MATRICES
    assert f"those of m{MOST_MATRICES}, m{MOST_MATRICES + 1} are not drawn" in page


def test_hostile_labels_stay_text_and_rows_without_predictions_give_nothing(
    make_study: Callable[..., Any],
) -> None:
    study = study_of(make_study, [HOSTILE, "b"] * 2, ["P1", "P1", "P2", "P2"])
    test = (study.table["plate"] == "P1").to_numpy()
    study.add("erm", test, [None] * 4)
    assert made(study) == ""
    study.add("scbd", test, [HOSTILE] * 4)
    page = made(study)
    assert "<img" not in page
    assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;" in page
