"""Harmony: what is handed to harmonypy, and what its versions hand back."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deconfound.errors import UserError
from deconfound.methods.post_hoc.harmony import (
    Components,
    Harmony,
    HarmonyOptions,
    harmonise,
    rows_first,
)


@pytest.mark.parametrize("rows", [5, 3])
def test_the_orientation_of_a_result_is_found(rows: int) -> None:
    """Before 0.1 harmonypy gave d × N; with as many rows as columns no shape tells."""
    stream = np.random.default_rng(0)
    values, corrected = stream.normal(size=(2, rows, 3))
    assignment = stream.dirichlet(np.ones(2), rows)
    new = SimpleNamespace(Z_orig=values.astype(np.float32), Z_corr=corrected, R=assignment)
    old = SimpleNamespace(Z_orig=values.T, Z_corr=corrected.T, R=assignment.T)
    for result in (new, old):
        found = rows_first(result, values)
        np.testing.assert_array_equal(found.corrected, corrected)
        np.testing.assert_array_equal(found.assignment, assignment)


def test_components_are_those_of_the_standardised_rows() -> None:
    stream = np.random.default_rng(0)
    values = (stream.normal(size=(50, 5)) * [1, 10, 0.1, 3, 0]).astype(np.float32)
    found = Components.of(values, 3)
    scaled = (values[:, :4] - values[:, :4].mean(axis=0)) / values[:, :4].std(axis=0)
    _, axes = np.linalg.eigh(scaled.T @ scaled)
    projected = found.project(values)
    assert projected.shape == (50, 3)
    for number in range(3):
        expected = scaled @ axes[:, 3 - number]
        assert abs(np.corrcoef(projected[:, number], expected)[0, 1]) > 0.9999
    assert Components.of(values[:4], 20).project(values).shape == (50, 3)  # less their mean


def test_what_harmonypy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    module = ModuleType("harmonypy")

    def run_harmony(values: Any, meta: Any, names: Any, **options: Any) -> SimpleNamespace:
        asked.update(options, meta=meta, names=names)
        return SimpleNamespace(Z_orig=values, Z_corr=values + 1, R=np.ones((len(values), 2)) / 2)

    module.run_harmony = run_harmony  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harmonypy", module)
    values, environment = np.random.default_rng(0).normal(size=(90, 3)), np.resize([4, 7], 90)
    found = harmonise(values, environment, HarmonyOptions(theta=1.5), "harmony")
    np.testing.assert_array_equal(found.corrected, values + 1)
    np.testing.assert_array_equal(asked["meta"]["environment"], environment)
    assert (asked["theta"], asked["sigma"], asked["nclust"]) == (1.5, 0.1, 3)
    first = asked["random_state"]
    harmonise(values[:20], environment[:20], HarmonyOptions(seed=1), "harmony")
    assert asked["nclust"] == 2
    assert asked["random_state"] != first


def test_without_harmonypy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    values = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    with pytest.raises(UserError, match=r"needs the extra \[harmony\]: pip install") as error:
        Harmony(HarmonyOptions()).fit(values, np.resize([0, 1], 30))
    assert "\n" not in str(error.value)


def test_a_row_without_an_environment_is_named() -> None:
    values = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(UserError, match="row 1 has no environment"):
        Harmony(HarmonyOptions()).fit(values, np.array([0, -1, 1]))
