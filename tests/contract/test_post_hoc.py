"""What every post hoc method promises, on planted environments."""

import numpy as np
import pytest
from numpy.typing import NDArray

from deconfound import methods
from deconfound.errors import UserError
from deconfound.methods import post_hoc
from deconfound.methods.contract.post_hoc import PostHoc, TooFewControls

every_method = pytest.mark.parametrize("name", post_hoc.names())
NEED_HARMONYPY = {"harmony", "symphony"}
BLIND = {"pca", "sphering"}
"""Those that do not look at the environment."""


def planted(
    rows: int = 240, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Rows (N, 8) of three labels, moved by their environment; environments; labels."""
    stream = np.random.default_rng(seed)
    label, environment = stream.integers(0, 3, rows), stream.integers(0, 3, rows)
    centres, shifts = np.random.default_rng(1).normal(size=(2, 3, 8)) * [[[4]], [[2]]]
    values = centres[label] + shifts[environment] + stream.normal(size=(rows, 8))
    return values.astype(np.float32), environment, label


def built(name: str) -> PostHoc:
    if name in NEED_HARMONYPY:
        pytest.importorskip("harmonypy", reason="needs the extra [harmony]")
    method = post_hoc.load(name)
    return method(method.Options())


def state(method: PostHoc) -> dict[str, bytes]:
    """The bytes of every array that a method holds, however deep."""
    found: dict[str, bytes] = {}

    def visit(where: str, one: object) -> None:
        if isinstance(one, np.ndarray):
            found[where] = one.tobytes()
        inner = one if isinstance(one, dict) else getattr(one, "__dict__", {})
        if isinstance(one, tuple):
            inner = dict(enumerate(one))
        for name, value in inner.items():
            visit(f"{where}.{name}", value)

    visit("", method)
    return found


@every_method
def test_fit_returns_its_rows_corrected_and_mixed(name: str) -> None:
    values, environment, label = planted()
    before = values.copy()
    corrected = built(name).fit(values, environment, label == 0)
    np.testing.assert_array_equal(values, before)
    assert corrected.shape == (len(values), 8)
    assert corrected.dtype == np.float32
    assert np.isfinite(corrected).all()

    def spread(rows: NDArray[np.float32], codes: NDArray[np.int64]) -> float:
        means = np.array([rows[codes == code].mean(axis=0) for code in range(3)])
        return float(means.std(axis=0).mean() / rows.std(axis=0).mean())

    scaled = values / values.std(axis=0)
    if name not in BLIND:
        assert spread(corrected, environment) < 0.5 * spread(scaled, environment)
        assert spread(corrected, label) > 0.8 * spread(scaled, label)
    np.testing.assert_array_equal(corrected, built(name).fit(values, environment, label == 0))


@every_method
def test_new_rows_of_new_environments_are_mapped_and_change_nothing(name: str) -> None:
    method = built(name)
    values, environment, label = planted()
    corrected = method.fit(values, environment, label == 0)
    new, _, of_new = planted(50, seed=3)
    strange, control = np.arange(50) % 2 + 70, of_new == 0
    if not method.MAPS:
        with pytest.raises(UserError, match="cannot map rows that it was not fitted on"):
            method.transform(new, strange)
        assert "held-out" in method.SUMMARY
        return
    before = state(method)
    assert before
    mapped = method.transform(new, strange, control)
    assert mapped.shape == (50, corrected.shape[1])
    assert mapped.dtype == np.float32
    assert np.isfinite(mapped).all()
    assert state(method) == before
    np.testing.assert_array_equal(mapped, method.transform(new, strange, control))
    again = method.transform(values, environment, label == 0)
    if name not in NEED_HARMONYPY:  # Symphony moves the rows of a query together, Harmony's or not
        np.testing.assert_allclose(again, corrected, rtol=1e-5, atol=1e-5)


@every_method
def test_methods_that_need_controls_say_which_environment_lacks_them(name: str) -> None:
    method = built(name)
    if not method.needs_controls():
        return
    values, environment, label = planted()
    with pytest.raises(TooFewControls, match="0 controls in all environments; expected 2 or more"):
        method.fit(values, environment, label == 9)
    if name in BLIND:
        return
    method.fit(values, environment, label == 0)
    lacking, control = environment + 70, label == 0
    control[np.flatnonzero(control & (lacking == 72))[1:]] = False
    with pytest.raises(TooFewControls, match=r"1 controls in 72; .* --control") as error:
        method.transform(values, lacking, control)
    assert error.value.environment == 72


@pytest.mark.parametrize("name", sorted(NEED_HARMONYPY))
def test_one_environment_is_refused(name: str) -> None:
    values, environment, _ = planted(30)
    with pytest.raises(UserError, match=rf"{name}: .* have 1 environment; expected 2"):
        post_hoc.load(name)(post_hoc.load(name).Options()).fit(values, environment * 0)


@every_method
def test_they_say_what_they_are_and_are_not_trained(name: str) -> None:
    method = post_hoc.load(name)
    assert method.SUMMARY
    assert "\n" not in method.SUMMARY
    assert all(field.description for field in method.Options.model_fields.values())
    assert name not in methods.names()
    with pytest.raises(UserError, match=rf"post hoc .* `deconfound correct {name} "):
        methods.load(name)


def test_they_are_found_by_their_files() -> None:
    known = ["harmony", "pca", "sphering", "standardise", "symphony", "tvn"]
    assert post_hoc.names() == known
    assert "post_hoc" not in methods.names()
    with pytest.raises(UserError, match="unknown post hoc method 'symphonie'; did you mean 'symph"):
        post_hoc.load("symphonie")
