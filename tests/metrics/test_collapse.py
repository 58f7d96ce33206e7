import math

import numpy as np
import pytest

from deconfound.metrics.collapse import mean_resultant_length, supcon_against_collapse


def test_one_direction_gives_one_and_raises_the_alarm() -> None:
    z = np.outer(np.arange(1, 9), [3.0, 4.0]).astype(np.float32)
    score = mean_resultant_length(z)
    assert score.value == pytest.approx(1.0, abs=1e-6)
    assert score.n == 8
    assert score.note.startswith("collapsed")


def test_opposite_directions_give_zero() -> None:
    assert mean_resultant_length(np.array([[2.0, 0.0], [-5.0, 0.0]])) == (0.0, 2, "")


@pytest.mark.parametrize(("angle", "alarm"), [(8.0, True), (8.2, False)])
def test_alarm_starts_at_099(angle: float, alarm: bool) -> None:
    """Two unit vectors at +-angle degrees have mean length cos(angle); 0.99 is 8.11 degrees."""
    a = math.radians(angle)
    score = mean_resultant_length(
        np.array([[math.cos(a), math.sin(a)], [math.cos(a), -math.sin(a)]])
    )
    assert score.value == pytest.approx(math.cos(a))
    assert bool(score.note) is alarm


def test_zero_rows_have_no_direction() -> None:
    assert mean_resultant_length(np.array([[0.0, 0.0], [0.0, 2.0]]))[:2] == (1.0, 1)
    nothing = mean_resultant_length(np.zeros((3, 2)))
    assert math.isnan(nothing.value) and nothing.note == "every embedding is zero"


@pytest.mark.parametrize("include_self", [True, False])
def test_supcon_of_a_single_point_is_the_reference(include_self: bool) -> None:
    """SupCon written out for 64 equal unit vectors, four classes, temperature 0.1."""
    z, label = np.tile([0.6, 0.8], (64, 1)), np.arange(64) % 4
    logits = z @ z.T / 0.1
    others = ~np.eye(64, dtype=bool)
    mass = np.exp(logits) if include_self else np.where(others, np.exp(logits), 0)
    log_probability = logits - np.log(mass.sum(axis=1, keepdims=True))
    positive = (label[:, None] == label) & others
    loss = -np.mean((log_probability * positive).sum(axis=1) / positive.sum(axis=1))
    score = supcon_against_collapse(float(loss), 64, include_self)
    assert score.value == pytest.approx(1.0, abs=1e-9)
    assert score.note.startswith("collapsed")


@pytest.mark.parametrize(
    ("ratio", "alarm"), [(0.5, 0), (0.985, 0), (0.995, 1), (1.005, 1), (1.3, 0)]
)
def test_alarm_within_one_percent(ratio: float, alarm: int) -> None:
    score = supcon_against_collapse(ratio * math.log(2048), 2048)
    assert score.value == pytest.approx(ratio)
    assert bool(score.note) is bool(alarm)


def test_too_small_a_batch_is_undefined() -> None:
    assert math.isnan(supcon_against_collapse(0.0, 1).value)
    assert math.isnan(supcon_against_collapse(0.0, 2, include_self=False).value)
    assert supcon_against_collapse(0.0, 1).note == "a batch of 1 has no collapsed value"
