"""Retrieval by copairs against average precision written out by hand."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from deconfound import cli
from deconfound.embeddings.file import PART, PREDICTED, Embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.retrieval import retrieval
from deconfound.metrics.corum import cosines
from deconfound.metrics.retrieval import profile_retrieval

needs_copairs = pytest.mark.usefixtures("copairs")
Pick = Callable[[int, int], bool]


@pytest.fixture
def copairs() -> None:
    pytest.importorskip("copairs", reason="needs the extra [retrieval]")


class Profiles:
    """40 profiles: 6 perturbations of 3 targets and 10 controls, in 2 environments."""

    def __init__(self, signal: float = 1.5, seed: int = 0) -> None:
        stream = np.random.default_rng(seed)
        self.perturbation = np.array([*np.repeat(np.arange(6), 5), *[6] * 10])
        self.target = np.array([0, 0, 1, 1, 2, 2, -1])[self.perturbation]
        self.control = self.perturbation == 6
        self.environment = np.arange(40) % 2
        centres = stream.normal(size=(4, 6))
        shift = stream.normal(size=(2, 6))[self.environment]
        self.values = signal * centres[self.target] + shift + stream.normal(size=(40, 6))


def by_hand(
    values: NDArray[np.float64], group: NDArray[np.int64], queries: list[int],
    positive: Pick, negative: Pick,
) -> dict[int, float]:  # fmt: skip
    """Mean over the queries of a group of the mean precision at each positive's rank."""
    cosine = cosines(values)
    found: dict[int, list[float]] = {}
    for query in queries:
        others = [k for k in range(len(values)) if k != query]
        ranked = [k for k in others if positive(query, k) or negative(query, k)]
        ranked.sort(key=lambda k, query=query: -cosine[query, k])
        hits = [positive(query, k) for k in ranked]
        if not any(hits):
            continue
        precisions = [sum(hits[:rank]) / rank for rank in range(1, len(hits) + 1) if hits[rank - 1]]
        found.setdefault(int(group[query]), []).append(sum(precisions) / len(precisions))
    return {one: sum(values) / len(values) for one, values in found.items()}


@needs_copairs
def test_every_form_is_that_of_the_loops() -> None:
    p = Profiles()
    treated = np.flatnonzero(~p.control).tolist()

    def same(i: int, k: int) -> bool:
        return bool(p.perturbation[i] == p.perturbation[k])

    def is_control(_: int, k: int) -> bool:
        return bool(p.control[k])

    forms = {
        "activity": by_hand(p.values, p.perturbation, treated, same, is_control),
        "cross_batch": by_hand(
            p.values, p.perturbation, treated,
            lambda i, k: same(i, k) and p.environment[i] != p.environment[k], is_control,
        ),
        "consistency": by_hand(
            p.values, p.target, treated,
            lambda i, k: p.target[i] == p.target[k] and not same(i, k),
            lambda i, k: p.target[i] != p.target[k] and not p.control[k],
        ),
    }  # fmt: skip
    for form, expected in forms.items():
        found = profile_retrieval(
            p.values, p.perturbation, p.control, form, environment=p.environment, target=p.target,
            null_size=200,
        )  # fmt: skip
        assert dict(zip(found.group.tolist(), found.mean_average_precision, strict=True)) == (
            pytest.approx(expected, abs=1e-6)
        )
        assert found.mean().value == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert forms["activity"] != forms["cross_batch"]


@needs_copairs
def test_p_values_tell_signal_from_none_and_are_corrected() -> None:
    strong, none = Profiles(6.0), Profiles(0.0, seed=3)
    found = profile_retrieval(strong.values, strong.perturbation, strong.control, null_size=500)
    assert found.share().value == 1
    noise = profile_retrieval(none.values, none.perturbation, none.control, null_size=500)
    assert noise.share().value < 0.5
    order = np.argsort(noise.p_value)
    ranked = noise.p_value[order] * len(order) / np.arange(1, len(order) + 1)
    expected = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1)
    np.testing.assert_allclose(noise.corrected_p_value[order], expected, rtol=1e-9)


@needs_copairs
def test_what_cannot_be_compared_is_undefined_with_a_reason() -> None:
    p = Profiles()
    alone = np.arange(40)
    for arguments, said in (
        ((p.values, alone, p.control, "activity"), "no perturbation has two profiles"),
        ((p.values, p.perturbation, p.control & False, "activity"), "there are no controls"),
        ((p.values, p.perturbation, p.control, "cross_batch"), "no perturbation has two environ"),
    ):
        found = profile_retrieval(*arguments, environment=p.environment * 0)
        assert np.isnan(found.mean().value)
        assert found.mean().note.startswith(said)
    with pytest.raises(UserError, match="retrieval: consistency needs targets"):
        profile_retrieval(p.values, p.perturbation, p.control, "consistency")
    many = np.zeros((20_001, 1), dtype=np.float32)
    with pytest.raises(UserError, match=r"20,001 profiles, .* aggregate cells first"):
        profile_retrieval(many, many[:, 0].astype(int), many[:, 0] > 0)


def saved(folder: Path) -> Path:
    p = Profiles(4.0)
    table = pd.DataFrame({
        "Metadata_Perturbation": [f"p{code}" for code in p.perturbation],
        "Metadata_Plate": [f"P{code}" for code in p.environment],
        "Metadata_Target": pd.Series(p.target).map(lambda code: f"t{code}").mask(p.control),
        "Metadata_Control_Type": np.where(p.control, "negcon", "treatment"),
        PART: np.where(np.arange(40) % 4, "train", "test"), PREDICTED: pd.NA,
    })  # fmt: skip
    roles = {"label": "Metadata_Perturbation", "environment": ["Metadata_Plate"]}
    about = {"method": "erm", "fold": "iid", "seed": 0, "roles": roles, "config": {"data": {}}}
    file = folder / "profiles.h5ad"
    write_embeddings(file, Embeddings(table, {"content": p.values.astype("f4")}, about))
    return file


@needs_copairs
def test_the_verb_writes_scores_and_details(tmp_path: Path) -> None:
    file, out, details = saved(tmp_path), tmp_path / "s.parquet", tmp_path / "d.parquet"
    words = ["--target", "Metadata_Target", "--details", str(details), "--null-size", "200"]
    cli.main(["measure", str(file), "--retrieval", "--out", str(out), *words, "--quiet"])
    scores = pd.read_parquet(out).set_index("metric")["value"]
    assert len(scores) == 6
    assert scores["retrieval_activity_map"] > 0.8
    assert scores["retrieval_consistency_map"] > 0.8
    groups = pd.read_parquet(details)
    assert groups.groupby("form")["group"].apply(list).to_dict() == {
        "activity": [f"p{code}" for code in range(6)],
        "consistency": ["t0", "t1", "t2"],
        "cross_batch": [f"p{code}" for code in range(6)],
    }
    mean = groups[groups["form"] == "activity"]["mean_average_precision"].mean()
    assert mean == pytest.approx(scores["retrieval_activity_map"])
    with pytest.raises(UserError, match="no controls, no row has Metadata_Plate = P9"):
        retrieval([file], tmp_path / "no.parquet", control="Metadata_Plate=P9")
    with pytest.raises(UserError, match="no row is of part 'tset'; did you mean 'test'"):
        retrieval([file], tmp_path / "no.parquet", parts=("tset",))


def test_without_copairs_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "copairs", None)
    with pytest.raises(UserError, match=r"pip install 'deconfound\[retrieval\]'"):
        retrieval([saved(tmp_path)], tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()
