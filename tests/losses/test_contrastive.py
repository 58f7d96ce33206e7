import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deconfound.errors import UserError
from deconfound.losses import content_losses, invariance, supervised_contrastive
from deconfound.runtime.seeds import torch_stream


def unit_rows(count: int, dimensions: int, dtype: torch.dtype = torch.float64) -> Tensor:
    stream = torch_stream(0, "rows", count, dimensions)
    return F.normalize(torch.randn(count, dimensions, dtype=dtype, generator=stream), dim=1)


def collapsed(count: int) -> Tensor:
    z = torch.zeros(count, 4, dtype=torch.float64)
    z[:, 1] = 1.0
    return z


@pytest.mark.parametrize(
    ("kinds", "value", "half_digit"), [(2, 0.00372, 5e-6), (3, 2.5453, 5e-5), (34, 7.1798, 5e-5)]
)
def test_listing_invariance_at_collapse(kinds: int, value: float, half_digit: float) -> None:
    count = 2048
    environment = torch.arange(count) % kinds
    loss = invariance(collapsed(count), environment, 0.1, "listing").item()
    size = torch.bincount(environment).double()
    gaps = (count - 2 * size + 1).abs() / count * math.log(count)
    assert loss == pytest.approx((size / count * gaps).sum().item(), rel=1e-9)
    assert loss == pytest.approx(value, abs=half_digit)
    assert invariance(collapsed(count), environment, 0.1).item() == pytest.approx(0, abs=1e-12)


def test_supervised_contrastive_at_collapse() -> None:
    label = torch.arange(600) % 7
    z = collapsed(600)
    assert supervised_contrastive(z, label).item() == pytest.approx(math.log(600), rel=1e-12)
    without_self = supervised_contrastive(z, label, include_self=False)
    assert without_self.item() == pytest.approx(math.log(599), rel=1e-12)


@pytest.mark.parametrize("include_self", [True, False])
def test_equation_is_the_listing_times_the_squared_batch(include_self: bool) -> None:
    z, environment = unit_rows(50, 5), torch.arange(50) % 3
    listing = invariance(z, environment, 0.1, "listing", include_self)
    equation = invariance(z, environment, 0.1, "equation", include_self)
    assert equation.item() == pytest.approx(2500 * listing.item(), rel=1e-12)


def test_balanced_invariance_ignores_a_constant_in_the_logits() -> None:
    environment = torch.arange(50) % 3
    z = unit_rows(50, 5).requires_grad_()
    # Rows (z, c) have the logits of z plus c²/τ.
    shifted = torch.cat([z, torch.full((50, 1), 3.0, dtype=z.dtype)], dim=1)
    one, other = invariance(z, environment), invariance(shifted, environment)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(one, z)[0], torch.autograd.grad(other, z)[0], rtol=0, atol=1e-12
    )


def test_balanced_invariance_has_no_gradient_from_the_log_partition() -> None:
    environment = torch.arange(40) % 3
    z = unit_rows(40, 5).requires_grad_()
    same = environment[:, None] == environment[None, :]
    other = ~same
    same.fill_diagonal_(False)
    logits = z @ z.T / 0.1
    gap = (logits * same).sum(1) / same.sum(1) - (logits * other).sum(1) / other.sum(1)
    (expected,) = torch.autograd.grad(gap.abs().mean(), z)
    (gradient,) = torch.autograd.grad(invariance(z, environment), z)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("include_self", [True, False])
def test_one_environment_gives_zero(include_self: bool) -> None:
    z = unit_rows(20, 5).requires_grad_()
    loss = invariance(z, torch.zeros(20, dtype=torch.int64), 0.1, "balanced", include_self)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None and not z.grad.any()


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("include_self", [True, False])
def test_without_positives_zero_and_finite(count: int, include_self: bool) -> None:
    z = unit_rows(count, 5).requires_grad_()
    missing = torch.full((count,), -1)
    different = torch.arange(count)
    assert supervised_contrastive(z, different, 0.1, include_self).item() == 0
    attraction, gap = content_losses(z, missing, missing, 0.1, "listing", include_self)
    (attraction + gap).backward()
    assert attraction.item() == gap.item() == 0
    assert z.grad is not None and not z.grad.any()


def test_a_missing_label_is_a_negative_of_everything() -> None:
    z = unit_rows(4, 5)
    label = torch.tensor([0, 0, -1, -1])
    both_missing = supervised_contrastive(z, label)
    assert both_missing.item() == supervised_contrastive(z, torch.tensor([5, 5, 7, 8])).item()
    assert both_missing.item() != supervised_contrastive(z, torch.tensor([5, 5, 7, 7])).item()


def test_a_missing_environment_leaves_positives_and_negatives() -> None:
    z = unit_rows(6, 5).requires_grad_()
    environment = torch.tensor([0, 0, 1, 1, -1, -1])
    loss = invariance(z, environment)
    known = invariance(z[:4], environment[:4])
    assert loss.item() == pytest.approx(known.item() * 4 / 6, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, z)
    assert not gradient[4:].any()


@pytest.mark.parametrize("temperature", [0.5, 0.001])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduction", ["balanced", "listing", "equation"])
def test_gradcheck(reduction: str, include_self: bool, temperature: float) -> None:
    z = unit_rows(9, 4).requires_grad_()
    label = torch.tensor([0, 0, 1, 1, 1, 2, -1, 0, -1])
    environment = torch.tensor([0, 1, 0, 1, 2, 2, 2, -1, 0])
    assert torch.autograd.gradcheck(
        lambda z: content_losses(z, label, environment, temperature, reduction, include_self), z
    )


def test_a_second_derivative_is_refused() -> None:
    z = unit_rows(9, 4).requires_grad_()
    loss = supervised_contrastive(z, torch.arange(9) % 2)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


def test_memory_stays_far_below_the_pairs() -> None:
    count = 4096
    z = unit_rows(count, 32, torch.float32).requires_grad_()
    label, environment = torch.arange(count) % 256, torch.arange(count) % 34
    for temperature in (0.1, 0.01):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            sum(content_losses(z, label, environment, temperature, "listing")).backward()
        held = peak = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        assert count * 32 * 4 < peak < count * count * 4 / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(3)}, "z: "),
        ({"z": torch.zeros(3, 2, dtype=torch.int64)}, "z: "),
        ({"z": torch.zeros(0, 2), "label": torch.zeros(0, dtype=torch.int64)}, "no rows"),
        ({"label": torch.zeros(2, dtype=torch.int64)}, "labels: "),
        ({"label": torch.zeros(3)}, "labels: "),
        ({"temperature": 0.0}, "temperature: "),
        ({"temperature": math.nan}, "temperature: "),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    right = {"z": torch.zeros(3, 2), "label": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(UserError, match=message):
        supervised_contrastive(**{**right, **change})


def test_unknown_reduction() -> None:
    z, group = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UserError, match="balanced, listing, equation"):
        invariance(z, group, reduction="mean")
    with pytest.raises(UserError, match="balanced, listing, equation"):
        content_losses(z, group, group, reduction="mean")
