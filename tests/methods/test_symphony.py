"""Symphony's mapping against the regressions written out, and against symphonypy."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from deconfound.methods.post_hoc.harmony import Components, HarmonyOptions
from deconfound.methods.post_hoc.symphony import Reference, Symphony, unit_length

Doubles = NDArray[np.float64]


def reference(seed: int = 0, clusters: int = 4, dimensions: int = 3) -> Reference:
    stream = np.random.default_rng(seed)
    corrected = stream.normal(size=(60, dimensions)) + 2
    assignment = stream.dirichlet(np.ones(clusters) / 3, 60)
    return Reference.of(corrected, assignment)


def by_hand(kept: Reference, values: Doubles, environment: NDArray[np.int64]) -> Doubles:
    """Kang et al., Methods: one ridge regression a cluster, with the design written out."""
    known = sorted({int(e) for e in environment if e >= 0})
    design = np.array([[1.0, *(float(e == one) for one in known)] for e in environment])
    mapped = values.copy()
    for cluster in range(len(kept.size)):
        weight = np.empty(len(values))
        for row, value in enumerate(values):
            cosine = kept.centroids @ value / np.linalg.norm(value)
            odds = np.exp(-2 * (1 - cosine) / 0.1)
            weight[row] = (odds / odds.sum())[cluster]
        counted = np.where(environment >= 0, weight, 0.0)
        left = design.T @ (counted[:, None] * design)
        right = design.T @ (counted[:, None] * values)
        left[0, 0] += kept.size[cluster]
        right[0] += kept.total[cluster]
        penalty = np.diag([0.0] + [1.0] * len(known))
        terms = np.linalg.solve(left + penalty, right)
        terms[0] = 0
        mapped -= weight[:, None] * (design @ terms)
    return mapped


@pytest.mark.parametrize("environments", [[5], [0, 3, 9], [-1, 2, 4]])
def test_the_mapping_is_that_of_the_regressions(environments: list[int]) -> None:
    stream = np.random.default_rng(2)
    values = stream.normal(size=(25, 3)) + 1
    environment = np.resize(environments, 25)
    kept = reference()
    found = kept.map(values, environment)
    np.testing.assert_allclose(found, by_hand(kept, values, environment), rtol=1e-10, atol=1e-12)
    assert not np.allclose(found[environment >= 0], values[environment >= 0], atol=0.05)
    np.testing.assert_array_equal(found[environment < 0], values[environment < 0])


def test_rows_of_unknown_environment_alone_keep_their_place() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(reference().map(values, np.full(5, -1)), values)


def test_the_names_of_environments_do_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3)) + 1
    one, other = np.resize([0, 1], 12), np.resize([40, 7], 12)
    np.testing.assert_allclose(reference().map(values, one), reference().map(values, other))


def test_a_shift_of_a_large_query_is_removed() -> None:
    """One cluster: the term of the environment is the shift, but for a ridge of 1."""
    stream = np.random.default_rng(0)
    corrected = stream.normal(size=(500, 3)) + 5
    kept = Reference.of(corrected, np.ones((500, 1)))
    query = stream.normal(size=(2000, 3)) + 5 + [3, 0, -2]
    mapped = kept.map(query, np.zeros(2000, dtype=np.int64))
    np.testing.assert_allclose(mapped.mean(axis=0), corrected.mean(axis=0), atol=0.02)


def test_own_rows_under_a_new_name_return_to_where_harmony_put_them() -> None:
    pytest.importorskip("harmonypy", reason="needs the extra [harmony]")
    values, environment = moved()
    method = Symphony(HarmonyOptions(components=6))
    corrected = method.fit(values, environment)
    before = [method.reference.centroids.tobytes(), method.reference.total.tobytes()]
    plain = method.components.project(values)
    for one in range(3):
        inside = environment == one
        mapped = method.transform(values[inside], np.full(inside.sum(), 99))
        wrong = np.linalg.norm(mapped - corrected[inside])
        assert wrong < 0.15 * np.linalg.norm(plain[inside] - corrected[inside])
    assert [method.reference.centroids.tobytes(), method.reference.total.tobytes()] == before


def test_a_training_row_without_environment_is_mapped_and_teaches_nothing() -> None:
    pytest.importorskip("harmonypy", reason="needs the extra [harmony]")
    values, environment = moved()
    known = np.arange(len(values)) >= 10
    method, other = (Symphony(HarmonyOptions(components=6)) for _ in range(2))
    found = method.fit(values, np.where(known, environment, -1))
    expected = other.fit(values[known], environment[known])
    np.testing.assert_array_equal(found[known], expected)
    plain = other.components.project(values[~known])
    np.testing.assert_allclose(found[~known], plain, rtol=1e-5)


def test_the_mapping_is_that_of_symphonypy() -> None:
    """Both from the reference that symphonypy builds with harmonypy."""
    pytest.importorskip("harmonypy", reason="needs the extra [harmony]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        symphonypy = pytest.importorskip("symphonypy", reason="symphonypy needs scanpy")
        anndata = pytest.importorskip("anndata")
        values, environment = moved()
        kept = Components.of(values, 6)
        built = anndata.AnnData(
            (values - kept.mean) / kept.sd, obs={"batch": environment.astype(str)}
        )
        built.obsm["X_pca"], built.varm["PCs"] = kept.project(values), kept.loadings
        built.var["mean"], built.var["std"] = kept.mean, kept.sd
        symphonypy.pp.harmony_integrate(built, "batch", verbose=False)
        query = anndata.AnnData(values[environment > 0] + 1)
        query.obs["batch"] = environment[environment > 0].astype(str)
        symphonypy.tl.map_embedding(query, built, key="batch", use_genes_column=None)
    corrected = np.asarray(built.obsm["X_pca_harmony"], dtype=np.float64)
    ours = Reference.of(corrected, np.asarray(built.uns["harmony"]["R"], dtype=np.float64).T)
    plain = kept.project(values[environment > 0] + 1)
    theirs = np.asarray(query.obsm["X_pca_harmony"])
    found = ours.map(plain, environment[environment > 0])
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    assert np.abs(theirs - plain).max() > 0.1


def test_rows_of_length_one() -> None:
    found = unit_length(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]])


def moved() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows (300, 6) of three clusters, moved by their environment."""
    stream = np.random.default_rng(0)
    cluster, environment = stream.integers(0, 3, 300), stream.integers(0, 3, 300)
    centres, shifts = stream.normal(size=(3, 6)) * 4, stream.normal(size=(3, 6)) * 2
    values = centres[cluster] + shifts[environment] + stream.normal(size=(300, 6))
    return values.astype(np.float32), environment
