"""The verdict on planted points, and the way from a screen to it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.verdict import judge
from deconfound.reports.report import report
from deconfound.studies.compare import compare
from deconfound.studies.comparison import CompareOptions
from deconfound.studies.trade_off import sentences

FEW = CompareOptions(
    view="trade-off", hold_out=("series=S1",), learning_rates=(1e-3, 3e-3), lengths=(2, 4),
    alphas=(0.0, 1.0),
    seeds=(0,), batch_size=16,
)  # fmt: skip


def points(slope: float, noise: float, folds: int = 1, weak: int = 0) -> pd.DataFrame:
    """Eight strong settings of two seeds on a line, and some near chance off it."""
    stream = np.random.default_rng(0)
    rows = []
    for fold in range(folds):
        for setting in range(8 + weak):
            strong = setting < 8
            accuracy = 0.7 + 0.03 * setting if strong else 0.12
            for seed in (0, 1):
                held_out = 0.5 + slope * (accuracy - 0.8) + stream.normal(0, noise)
                rows.append(
                    {
                        "method": "erm",
                        "fold": f"f{fold}",
                        "setting": str(setting),
                        "seed": seed,
                        "in_distribution": accuracy + stream.normal(0, noise / 4),
                        "held_out": held_out if strong else 0.1,
                        "chance": 0.1,
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("slope", "noise", "verdict"),
    [(-1, 0.01, "help"), (1, 0.01, "cost"), (0, 0.1, "cannot tell")],
)
def test_the_verdict_follows_the_sign_of_the_correlation(
    slope: float, noise: float, verdict: str
) -> None:
    fold, overall = judge(points(slope, noise))
    assert fold.verdict == overall.verdict == verdict
    assert fold.low < fold.correlation < fold.high
    assert fold.correlation == pytest.approx(overall.correlation)


def test_settings_that_are_weak_in_distribution_do_not_count() -> None:
    """With them the cloud rises, from networks that have hardly begun."""
    table = points(-1, 0.01, weak=6)
    means = table.groupby("setting")[["in_distribution", "held_out"]].mean()
    assert np.corrcoef(means.T)[0, 1] > 0
    fold, _ = judge(table)
    assert (fold.settings, fold.verdict) == (8, "help")


def test_correlation_is_that_of_the_means_of_seeds() -> None:
    table = points(-1, 0.05)
    means = table.groupby("setting")[["in_distribution", "held_out"]].mean()
    assert judge(table)[0].correlation == pytest.approx(np.corrcoef(means.T)[0, 1])


def test_all_folds_together_have_fishers_mean_and_tell_more_than_one() -> None:
    table = points(-0.6, 0.06, folds=6)
    *folds, overall = judge(table)
    expected = np.tanh(np.mean([np.arctanh(one.correlation) for one in folds]))
    assert overall.correlation == pytest.approx(expected)
    widths = [one.high - one.low for one in folds]
    assert overall.high - overall.low < np.median(widths) / 1.5
    assert len(sentences([*folds, overall])) == 7


def test_too_few_settings_or_no_spread_cannot_tell() -> None:
    few = points(-1, 0.01)
    fold, overall = judge(few[few["setting"].isin(["0", "1", "2"])])
    assert (fold.verdict, overall.verdict) == ("cannot tell", "cannot tell")
    assert np.isnan(fold.correlation)
    assert "needs 4" in sentences([fold, overall])[0]
    assert judge(few.assign(held_out=0.5))[0].verdict == "cannot tell"


def test_means_that_differ_by_rounding_alone_have_no_correlation() -> None:
    """The same accuracies in another order of seeds have means that differ by 1e-17."""
    table = points(-1, 0.05)
    table = pd.concat([table, table.assign(seed=table["seed"] + 2)], ignore_index=True)
    accuracies = [0.813, 0.829, 0.847, 0.878]
    orders = [np.random.default_rng(i).permutation(accuracies) for i in range(8)]
    place = table["setting"].astype(int)
    table["in_distribution"] = [
        orders[setting][seed] for setting, seed in zip(place, table["seed"], strict=True)
    ]
    assert 0 < np.ptp([sum(order) for order in orders]) < 1e-12
    assert np.isnan(judge(table)[0].correlation)


def test_from_a_screen_to_a_verdict_and_a_page(screen: Screen, tmp_path: Path) -> None:
    out = tmp_path / "d"
    found = compare(screen.path, out, FEW, workers=1, quiet=True)
    table = pd.read_csv(out / "points.csv")
    assert table["method"].value_counts().to_dict() == {"erm": 4, "scbd": 2}
    assert table[["in_distribution", "held_out", "chance"]].notna().all(axis=None)
    about = json.loads((out / "diagnosis.json").read_text())
    assert [one["fold"] for one in about["folds"]] == ["series=S1", "all folds"]
    assert about["sentences"] == found.sentences
    assert "a correlation needs 4" in found.sentences[0] or "correlate with r" in found.sentences[0]
    assert [row["alpha"] for row in about["curve"]] == [0, 1]
    made = (out / "diagnosis.png").read_bytes()
    runs = sorted(path.name for path in (out / "runs").iterdir())
    compare(screen.path, out, FEW, workers=1, quiet=True)
    assert sorted(path.name for path in (out / "runs").iterdir()) == runs
    assert (out / "diagnosis.png").read_bytes() == made
    report([out], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Will invariance help?" in page
    assert "data:image/webp" in page
    with pytest.raises(UserError, match="other options"):
        compare(screen.path, out, FEW.model_copy(update={"seeds": (1,)}), quiet=True)


def test_a_screen_without_levels_says_what_is_missing(
    make_screen: Callable[..., Screen],
    make_images: Callable[..., np.ndarray],  # type: ignore[type-arg]
    make_table: Callable[..., pd.DataFrame],
    tmp_path: Path,
) -> None:
    from deconfound.data.tables.table import Roles

    table = make_table()
    roles = Roles(label="compound", environment=("plate",))
    plain = make_screen(tmp_path / "s", make_images(table), table, roles)
    with pytest.raises(UserError, match="--hold-out"):
        compare(plain.path, tmp_path / "d", FEW.model_copy(update={"hold_out": ()}), quiet=True)
    assert not (tmp_path / "d").exists()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a diagnosis"):
        compare(plain.path, tmp_path / "d", FEW, quiet=True)
