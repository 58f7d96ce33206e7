import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconfound.arrays import Rows
from deconfound.data.loading.sampler import (
    EnvironmentBalancedSampler,
    EpisodeSampler,
    JoinedSampler,
    LabelBalancedSampler,
    PlainSampler,
    Sampler,
    UniformSampler,
    effective_sizes,
)

ROWS = np.arange(100, 200, dtype=np.int64)[::-1].copy()
LABEL = np.repeat([0, 1, 2, 3], [60, 25, 10, 5]).astype(np.int64)
ENVIRONMENT = np.resize([0, 0, 1, 2], 100).astype(np.int64)


def build(kind: str, seed: int = 0) -> Sampler:
    if kind == "plain":
        return PlainSampler(ROWS, 16, seed)
    if kind == "environment":
        return EnvironmentBalancedSampler(ROWS, ENVIRONMENT, 18, seed)
    if kind == "episode":
        return EpisodeSampler(ROWS, ENVIRONMENT, 2, 8, seed)
    return LabelBalancedSampler(ROWS, LABEL, 24, 3, seed)


@pytest.mark.parametrize("kind", ["plain", "environment", "episode", "label"])
@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=12), seed=st.integers(0, 3))
@settings(max_examples=15)
def test_a_batch_is_a_pure_function_of_seed_and_step(
    kind: str, steps: list[int], seed: int
) -> None:
    used = build(kind, seed)
    for step in steps:
        batch = used.rows(step)
        np.testing.assert_array_equal(batch, build(kind, seed).rows(step))
        assert batch.dtype == np.int64


@pytest.mark.parametrize("kind", ["plain", "environment", "episode", "label"])
def test_seeds_and_steps_give_different_batches(kind: str) -> None:
    assert not np.array_equal(build(kind, 0).rows(0), build(kind, 1).rows(0))
    assert not np.array_equal(build(kind, 0).rows(0), build(kind, 0).rows(1))


@given(
    rows=st.integers(1, 50),
    size=st.integers(1, 60),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=40)
def test_plain_draws_every_row_at_most_once_an_epoch(
    rows: int, size: int, epoch: int, seed: int
) -> None:
    own = np.arange(7, 7 + rows, dtype=np.int64)
    sampler = PlainSampler(own, size, seed)
    batches = rows // min(size, rows)
    drawn = np.concatenate([sampler.rows(epoch * batches + step) for step in range(batches)])
    assert len(drawn) == batches * min(size, rows)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(own)
    if rows % min(size, rows) == 0:
        assert set(drawn) == set(own)


def test_plain_orders_each_epoch_anew() -> None:
    sampler = PlainSampler(ROWS, 100, 0)
    orders = [tuple(sampler.rows(epoch)) for epoch in range(3)]
    assert len(set(orders)) == 3
    assert len({frozenset(order) for order in orders}) == 1


@pytest.mark.parametrize("step", range(12))
def test_environments_are_balanced(step: int) -> None:
    batch = build("environment").rows(step)
    environment = dict(zip(ROWS, ENVIRONMENT, strict=True))
    assert np.bincount([environment[row] for row in batch]).tolist() == [6, 6, 6]
    assert len(set(batch)) == len(batch)


def test_each_environment_has_its_own_epochs() -> None:
    sampler = build("environment")
    drawn = np.concatenate([sampler.rows(step) for step in range(4)])
    of_one = ROWS[ENVIRONMENT == 1]
    assert sum(row in set(of_one) for row in drawn) == 24
    assert len(set(drawn) & set(of_one)) == 24


def test_an_environment_smaller_than_its_share_gives_all_its_rows() -> None:
    environment = np.array([0] * 20 + [1] * 3)
    rows = np.arange(23)
    for step in range(4):
        batch = EnvironmentBalancedSampler(rows, environment, 16, 0).rows(step)
        assert sorted(batch[environment[batch] == 1]) == [20, 21, 22]
        assert (environment[batch] == 0).sum() == 8


def test_rows_without_environment_or_label_are_never_drawn() -> None:
    missing = np.arange(100) % 3 == 0
    by_environment = EnvironmentBalancedSampler(ROWS, np.where(missing, -1, ENVIRONMENT), 30, 0)
    by_label = LabelBalancedSampler(ROWS, np.where(missing, -1, LABEL), 24, 3, 0)
    for sampler in (by_environment, by_label):
        drawn = {row for step in range(60) for row in sampler.rows(step)}
        assert not drawn & set(ROWS[missing])
        assert len(drawn) > 60


def labels_of(batch: Rows) -> Rows:
    return np.array([dict(zip(ROWS, LABEL, strict=True))[row] for row in batch])


@pytest.mark.parametrize("step", range(10))
def test_labels_are_distinct_and_equally_filled(step: int) -> None:
    batch = build("label").rows(step)
    assert len(set(batch)) == len(batch)
    classes, counts = np.unique(labels_of(batch), return_counts=True)
    assert len(classes) == 3
    expected = [min(8, (label == LABEL).sum()) for label in classes]
    assert counts.tolist() == expected


def test_rare_classes_give_fewer_rows() -> None:
    batches = [build("label").rows(step) for step in range(30)]
    sizes = {len(batch) for batch in batches if 3 in labels_of(batch)}
    assert sizes == {8 + 8 + 5}
    rare = [row for batch in batches for row in batch[labels_of(batch) == 3]]
    assert set(rare) == set(ROWS[LABEL == 3])


def test_classes_are_drawn_by_their_training_frequency() -> None:
    """One class a batch: its frequency over many batches is that of the training rows."""
    steps = 4000
    sampler = LabelBalancedSampler(ROWS, LABEL, 1, 1, seed=0)
    label = dict(zip(ROWS, LABEL, strict=True))
    drawn = np.bincount([label[sampler.rows(step)[0]] for step in range(steps)], minlength=4)
    expected = np.bincount(LABEL) / len(LABEL)
    error = 5 * np.sqrt(expected * (1 - expected) / steps)
    assert (np.abs(drawn / steps - expected) < error).all()


def test_classes_are_drawn_without_replacement_by_frequency() -> None:
    """Two of three classes: the probability of each pair, drawn one after the other."""
    label = np.repeat([0, 1, 2], [6, 3, 1])
    sampler = LabelBalancedSampler(np.arange(10), label, 2, 2, seed=0)
    steps = 4000
    left_out = np.zeros(3)
    for step in range(steps):
        left_out[({0, 1, 2} - set(label[sampler.rows(step)])).pop()] += 1
    p = np.array([0.6, 0.3, 0.1])
    pairs = [(1, 2), (0, 2), (0, 1)]
    expected = np.array([p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b])) for a, b in pairs])
    error = 5 * np.sqrt(expected * (1 - expected) / steps)
    assert (np.abs(left_out / steps - expected) < error).all()


def test_rows_of_a_class_are_equally_likely() -> None:
    sampler = LabelBalancedSampler(np.arange(6), np.zeros(6, np.int64), 2, 1, seed=0)
    steps = 3000
    drawn = np.bincount(np.concatenate([sampler.rows(step) for step in range(steps)]))
    expected = steps * 2 / 6
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()


def test_more_classes_than_there_are_takes_all_of_them() -> None:
    batch = LabelBalancedSampler(ROWS, LABEL, 40, 256, seed=0).rows(0)
    assert np.bincount(labels_of(batch)).tolist() == [10, 10, 10, 5]


def test_several_rows_of_each_group_drawn() -> None:
    """The groups and the first rows are those of one draw; second rows are of the same groups."""
    group = np.resize([0, 0, 0, 1, 2, -1], 100).astype(np.int64)
    codes = dict(zip(ROWS.tolist(), group.tolist(), strict=True))

    def drawn(step: int) -> list[list[int]]:
        rows = UniformSampler(ROWS, group, 50, 0, "partner", draws=3).rows(step)
        assert len(rows) == 150
        assert rows.dtype == np.int64
        return [part.tolist() for part in np.split(rows, 3)]

    for step in range(3):
        first, second, third = drawn(step)
        groups = [[codes[row] for row in part] for part in (first, second, third)]
        assert groups[0] == groups[1] == groups[2]
        assert set(groups[0]) == {0, 1, 2}
        assert first != second != third != first
    assert drawn(1)[0] == UniformSampler(ROWS, group, 50, 0, "partner").rows(1).tolist()


def test_effective_sizes_tell_how_much_small_groups_are_repeated() -> None:
    rows, group = np.arange(12), np.repeat([0, 1], [10, 2])
    own = UniformSampler(rows, group, 4, 0, "own")
    even = UniformSampler(rows, np.repeat([0, 1], 6), 4, 0, "partner")
    assert effective_sizes(PlainSampler(rows, 4, 0)) == {}
    found = effective_sizes(JoinedSampler(own, even))
    weight = np.repeat([0.5 / 10, 0.5 / 2], [10, 2])
    assert found["effective_size_own"] == pytest.approx(1 / np.square(weight).sum())
    assert found["effective_size_partner"] == pytest.approx(12)


def test_an_episode_is_of_distinct_rows_of_one_environment_and_its_controls_follow() -> None:
    negative = ROWS % 3 == 0
    sampler = EpisodeSampler(ROWS, ENVIRONMENT, 2, 6, 0, negative, 3)
    of_row = dict(zip(ROWS.tolist(), ENVIRONMENT.tolist(), strict=True))
    together = set()
    for step in range(50):
        rows = sampler.rows(step)
        assert len(rows) == 2 * 6 + 2 * 3
        assert sampler.own == 12
        first, second, joined, other = np.split(rows, [6, 12, 15])
        for own, controls in ((first, joined), (second, other)):
            assert len(set(own.tolist())) == 6
            assert len({of_row[row] for row in [*own.tolist(), *controls.tolist()]}) == 1
            assert (controls % 3 == 0).all()
        together.add((of_row[first[0]], of_row[second[0]]))
    assert together == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_an_environment_smaller_than_an_episode_repeats_rows() -> None:
    sampler = EpisodeSampler(ROWS[:5], np.array([0, 0, 0, 1, -1]), 2, 4, 0)
    rows = sampler.rows(0)
    assert len(rows) == 8
    assert ROWS[4] not in rows
    assert (rows == ROWS[3]).sum() == 4


def test_environments_of_an_episode_are_drawn_evenly() -> None:
    sampler = EpisodeSampler(ROWS, ENVIRONMENT, 1, 2, 0)
    of_row = dict(zip(ROWS.tolist(), ENVIRONMENT.tolist(), strict=True))
    drawn = [of_row[int(sampler.rows(step)[0])] for step in range(600)]
    assert np.bincount(drawn).min() > 160
