"""Corrections on controls, and PCA, against scikit-learn and SciPy."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import fractional_matrix_power
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from deconfound.errors import UserError
from deconfound.methods.post_hoc.pca import Pca, PcaOptions
from deconfound.methods.post_hoc.sphering import Sphering, SpheringOptions, power
from deconfound.methods.post_hoc.standardise import Standardise, StandardiseOptions
from deconfound.methods.post_hoc.tvn import Tvn, TvnOptions

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]


def cells(seed: int = 0, rows: int = 300) -> tuple[Floats, Codes, Mask]:
    """Rows (N, 5) moved and mixed by their environment; 40 % are controls."""
    stream = np.random.default_rng(seed)
    environment = stream.integers(0, 3, rows)
    mixing = np.random.default_rng(5).normal(size=(3, 5, 5))
    control = stream.random(rows) < 0.4
    values = np.einsum("nd,nde->ne", stream.normal(size=(rows, 5)), mixing[environment])
    values += 4 * environment[:, None] + ~control[:, None] * np.arange(5)
    return values.astype(np.float32), environment, control


def test_pca_is_that_of_scikit_learn_and_is_fitted_once() -> None:
    values, environment, _ = cells()
    method = Pca(PcaOptions(components=3))
    found = method.fit(values, environment)
    scaler = StandardScaler().fit(values.astype(float))
    oracle = PCA(3).fit(scaler.transform(values.astype(float)))
    expected = oracle.transform(scaler.transform(values.astype(float)))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)
    new, _, _ = cells(1, 20)
    mapped = method.transform(new, environment[:20])
    expected = oracle.transform(scaler.transform(new.astype(float)))
    np.testing.assert_allclose(np.abs(mapped), np.abs(expected), rtol=1e-3, atol=1e-4)
    assert Pca(PcaOptions()).fit(values, environment).shape == (300, 5)


@pytest.mark.parametrize("by", ["controls", "all"])
def test_every_environment_is_standardised_by_its_own_rows(by: str) -> None:
    values, environment, control = cells()
    method = Standardise(StandardiseOptions(by=by))
    found = method.fit(values, environment, control if by == "controls" else None)
    for one in range(3):
        rows = environment == one
        learnt = rows & control if by == "controls" else rows
        oracle = StandardScaler().fit(values[learnt].astype(float))
        np.testing.assert_allclose(
            found[rows], oracle.transform(values[rows]), rtol=1e-4, atol=1e-4
        )


def test_seen_environments_keep_their_scale_and_new_ones_have_their_own() -> None:
    values, environment, control = cells()
    method = Standardise(StandardiseOptions())
    fitted = method.fit(values, environment, control)
    moved = values + 100
    old = method.transform(moved, environment, control)
    np.testing.assert_allclose(old - fitted, 100 / spreads(values, environment, control), rtol=1e-3)
    new = method.transform(moved, environment + 5, control)
    np.testing.assert_allclose(new, fitted, atol=1e-3)
    unknown = method.transform(values, environment * 0 - 1, control)
    oracle = StandardScaler().fit(values[control].astype(float))
    np.testing.assert_allclose(unknown, oracle.transform(values), rtol=1e-4, atol=1e-4)


def spreads(values: Floats, environment: Codes, control: Mask) -> NDArray[np.float64]:
    of = np.array([values[(environment == one) & control].std(axis=0) for one in range(3)])
    return np.asarray(of[environment], dtype=np.float64)


def test_sphered_controls_are_a_sphere() -> None:
    values, environment, control = cells()
    method = Sphering(SpheringOptions(regularisation=1e-9))
    found = method.fit(values, environment, control)[control]
    np.testing.assert_allclose(np.cov(found, rowvar=False, ddof=0), np.eye(5), atol=1e-3)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    strong = Sphering(SpheringOptions(regularisation=1e4)).fit(values, environment, control)
    plain = (values - values[control].mean(axis=0)) / values[control].std(axis=0)
    np.testing.assert_allclose(strong, plain / 100, rtol=1e-2, atol=1e-3)


def test_a_power_of_a_covariance_is_that_of_scipy() -> None:
    some = np.random.default_rng(0).normal(size=(40, 4))
    covariance = np.cov(some, rowvar=False)
    for exponent in (-0.5, 0.5):
        expected = fractional_matrix_power(covariance + 0.3 * np.eye(4), exponent)
        np.testing.assert_allclose(power(covariance, exponent, 0.3), expected, rtol=1e-9)


def by_hand(values: Floats, environment: Codes, control: Mask) -> NDArray[np.float64]:
    """Celik et al. 2024: PCA on controls, then centre-scale and CORAL per environment."""
    scaler = StandardScaler().fit(values[control].astype(float))
    standard = scaler.transform(values.astype(float))
    rows = PCA().fit(standard[control]).transform(standard)
    for one in np.unique(environment):
        inside = environment == one
        rows[inside] = StandardScaler().fit(rows[inside & control]).transform(rows[inside])
    target = np.cov(rows[control], rowvar=False, ddof=1) + 0.5 * np.eye(rows.shape[1])
    aligned = rows.copy()
    for one in np.unique(environment):
        inside = environment == one
        source = np.cov(rows[inside & control], rowvar=False, ddof=1) + 0.5 * np.eye(rows.shape[1])
        aligned[inside] = rows[inside] @ fractional_matrix_power(source, -0.5)
        aligned[inside] = aligned[inside] @ fractional_matrix_power(target, 0.5)
    return np.asarray(aligned)


def test_tvn_is_that_of_efaar() -> None:
    values, environment, control = cells()
    found = Tvn(TvnOptions()).fit(values, environment, control)
    expected = by_hand(values, environment, control)
    cosine = [one @ one.T for one in (found.astype(float), expected)]  # signs of components cancel
    np.testing.assert_allclose(cosine[0], cosine[1], rtol=1e-3, atol=1e-2)
    kept = Tvn(TvnOptions(components=2)).fit(values, environment, control)
    assert kept.shape == (300, 2)


def test_tvn_aligns_a_new_environment_by_its_own_controls() -> None:
    values, environment, control = cells()
    method = Tvn(TvnOptions())
    fitted = method.fit(values, environment, control)
    found = method.transform(values, environment + 9, control)
    np.testing.assert_allclose(found, fitted, rtol=1e-3, atol=1e-3)
    means = [found[control & (environment == one)].mean(axis=0) for one in range(3)]
    np.testing.assert_allclose(means, 0, atol=1e-4)
    with pytest.raises(UserError, match="tvn: row 4 has no environment"):
        method.transform(values, np.where(np.arange(300) == 4, -1, environment), control)
    with pytest.raises(UserError, match="tvn: row 4 has no environment"):
        method.fit(values, np.where(np.arange(300) == 4, -1, environment), control)


def few(controls: int, features: int = 40) -> tuple[Floats, Codes, Mask]:
    """200 rows (200, 40) of two environments; the first `controls` are controls."""
    stream = np.random.default_rng(0)
    values = stream.normal(size=(200, features)).astype(np.float32)
    return values, np.arange(200) % 2, np.arange(200) < controls


@pytest.mark.parametrize("controls", [4, 12, 30, 40])
def test_tvn_keeps_the_components_that_controls_span(controls: int) -> None:
    """The others are rounding: divided by it, treated rows came near 1e16."""
    values, environment, control = few(controls)
    method = Tvn(TvnOptions())
    found = method.fit(values, environment, control)
    assert found.shape == (200, controls - 1)
    assert np.abs(found).max() < 200
    assert method.notes() == [
        f"{controls - 1} of 40 principal components are kept: along the others the {controls} rows "
        "learnt from do not vary beyond rounding"
    ]
    whitened = method.transform(values, environment + 5, control)
    np.testing.assert_allclose(whitened, found, rtol=1e-4, atol=1e-4)


def test_tvn_of_as_many_controls_as_span_every_dimension_says_nothing() -> None:
    values, environment, control = few(100)
    method = Tvn(TvnOptions())
    assert method.fit(values, environment, control).shape == (200, 40)
    assert method.notes() == []
    fewer = Tvn(TvnOptions(components=7))
    assert fewer.fit(values, environment, control).shape == (200, 7)
    assert fewer.notes() == []


def test_repeated_dimensions_are_one_direction() -> None:
    """As many controls as one could want do not help where features are sums of others."""
    values, environment, control = few(150, 10)
    wide = np.concatenate([values, values[:, ::-1], values[:, :1] - values[:, 1:2]], axis=1)
    wide[~control] += 0.1 * np.random.default_rng(1).normal(size=(50, 21)).astype(np.float32)
    for method in (Tvn(TvnOptions()), Pca(PcaOptions())):
        fitted = method.fit(wide, environment, control)
        assert fitted.shape[1] == (10 if isinstance(method, Tvn) else 21)
        assert np.abs(fitted).max() < 30


def test_an_environment_whose_controls_are_one_point_is_centred_alone() -> None:
    values, environment, control = few(100)
    values[control & (environment == 1)] = values[1]
    method = Tvn(TvnOptions())
    found = method.fit(values, environment, control)
    assert np.abs(found).max() < 50
    assert method.notes()[-1] == (
        "40 of 40 dimensions are centred and not scaled, as they do not vary over the controls of "
        "an environment beyond rounding"
    )


@pytest.mark.parametrize("constant", [1_000.0, 0.1])
def test_a_dimension_that_varies_by_rounding_alone_is_not_scaled(constant: float) -> None:
    values, environment, control = few(100)
    noise = np.random.default_rng(3).normal(size=200)
    values[:, 3] = np.float32(constant) + np.spacing(np.float32(constant)) * (noise > 0)
    standardise = Standardise(StandardiseOptions())
    found = standardise.fit(values, environment, control)
    assert np.abs(found[:, 3]).max() < 1e-3
    assert np.abs(found).max() < 10
    told = "1 of 40 dimensions are centred and not scaled, as they do not vary over"
    assert standardise.notes() == [f"{told} the controls of an environment beyond rounding"]
    sphering = Sphering(SpheringOptions())
    assert np.abs(sphering.fit(values, environment, control)).max() < 20
    assert sphering.notes() == [f"{told} the controls beyond rounding"]
    values[-1, 3] = 3_000  # says nothing of the components, in which the dimension has no part
    for method in (Tvn(TvnOptions()), Pca(PcaOptions())):
        rows = slice(0, 199)
        method.fit(values[rows], environment[rows], control[rows])
        assert np.abs(method.transform(values, environment, control)).max() < 50
        assert method.notes()[0].startswith("39 of 40 principal components are kept")


def test_pca_then_standardise_of_few_rows_stays_small() -> None:
    values, environment, control = few(16)
    reduced = Pca(PcaOptions())
    reduced.fit(values[control], environment[control])
    components = reduced.transform(values, environment)
    assert components.shape == (200, 15)
    found = Standardise(StandardiseOptions()).fit(components, environment, control)
    assert np.abs(found).max() < 100


def test_sphering_without_regularisation_drops_what_is_rounding() -> None:
    values, environment, control = few(12)
    found = Sphering(SpheringOptions(regularisation=1e-30)).fit(values, environment, control)
    assert np.abs(found).max() < 100
    np.testing.assert_allclose(found[control].std(axis=0) < 1.01, True)


def test_controls_that_do_not_vary_are_refused() -> None:
    values, environment, control = few(12)
    values[control] = values[0]
    for method in (Tvn(TvnOptions()), Pca(PcaOptions())):
        with pytest.raises(UserError, match="none of the 40 dimensions varies over the 12 rows"):
            method.fit(values[control], environment[control], control[control])
