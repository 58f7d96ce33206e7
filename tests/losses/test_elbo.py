"""The terms of the bound against torch.distributions, values and gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as oracle

from deconfound.losses.elbo import (
    active_units,
    distance_to_zero,
    kl_divergence,
    optimal_sigma_nll,
    prior_spread,
    row_mean,
)
from deconfound.nets.vae import Gaussian

COUNTED = torch.tensor([True, False, True, True, True])


def leaves(*shape: int, count: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64).requires_grad_() for _ in range(count)]


def normal(gaussian: Gaussian) -> Normal:
    return Normal(gaussian.mean, (0.5 * gaussian.log_variance).exp())  # type: ignore[no-untyped-call]


def test_kl_is_that_of_torch_with_a_learned_prior_and_with_the_unit_one() -> None:
    parameters = leaves(5, 3)
    q, p = Gaussian(*parameters[:2]), Gaussian(*parameters[2:])
    unit = Normal(torch.zeros(5, 3).double(), 1.0)  # type: ignore[no-untyped-call]
    weight = torch.arange(1.0, 6.0, dtype=torch.float64)
    for found, expected, own in (
        (kl_divergence(q, p), oracle(normal(q), normal(p)).sum(1), parameters),
        (kl_divergence(q), oracle(normal(q), unit).sum(1), parameters[:2]),
    ):
        torch.testing.assert_close(found, expected)
        got = torch.autograd.grad((weight * found).sum(), own, retain_graph=True)
        wanted = torch.autograd.grad((weight * expected).sum(), own, retain_graph=True)
        torch.testing.assert_close(got, wanted)
    assert kl_divergence(q, q).abs().max() < 1e-12


def test_the_distance_to_zero_is_the_expected_squared_length_of_a_draw() -> None:
    """W2² to a point mass is E|s|²: here by its definition, through the moments of torch."""
    mean, log_variance = leaves(5, 3, count=2)
    q = Gaussian(mean, log_variance)
    expected = (normal(q).mean ** 2 + normal(q).variance).sum(dim=1)
    found = distance_to_zero(q)
    torch.testing.assert_close(found, expected)
    got = torch.autograd.grad(found.sum(), [mean, log_variance])
    torch.testing.assert_close(got, (2 * mean, log_variance.exp()))


def test_a_draw_has_the_posteriors_moments_and_both_gradients() -> None:
    mean = torch.tensor([[1.0, -2.0]], requires_grad=True)
    log_variance = torch.tensor([[0.0, -2.0]], requires_grad=True)
    torch.manual_seed(0)
    many = Gaussian(mean.expand(20000, 2), log_variance.expand(20000, 2)).sample()
    torch.testing.assert_close(many.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(many.var(0), log_variance.exp()[0], rtol=0.05, atol=0)
    # E[z²] = mean² + variance, whose derivative in the log-variance is the variance.
    got = torch.autograd.grad((many**2).mean(0).sum(), [mean, log_variance])
    torch.testing.assert_close(got[0], 2 * mean, rtol=0.05, atol=0)
    torch.testing.assert_close(got[1], log_variance.exp(), rtol=0.1, atol=0)


def test_a_row_that_does_not_count_gives_neither_value_nor_gradient() -> None:
    values = torch.tensor([1.0, 5.0, 3.0], requires_grad=True)
    counted = torch.tensor([True, False, True])
    mean = row_mean(values, counted)
    assert mean == 2
    assert torch.autograd.grad(mean, values)[0].tolist() == [0.5, 0, 0.5]
    assert row_mean(values) == 3
    assert row_mean(values, torch.zeros(3, dtype=torch.bool)) == 0


def test_units_are_active_where_the_mean_varies_against_its_own_sd() -> None:
    torch.manual_seed(0)
    rows = torch.randn(1000)
    mean = torch.stack([rows, 0.01 * rows, 0.01 * rows, torch.full((1000,), 3.0)], dim=1)
    log_variance = torch.tensor([0.0, 0.0, -10.0, -20.0]).expand(1000, 4)
    assert active_units(Gaussian(mean, log_variance)) == 2
    assert active_units(Gaussian(mean[:0], log_variance[:0])) == 0


def test_priors_that_coincide_have_no_spread_and_one_apart_dimension_shows() -> None:
    mean = torch.ones(3, 4)
    log_variance = torch.full((3, 4), 2.0).log()
    assert prior_spread(Gaussian(mean, log_variance)) == 0
    mean[0, 2] = 4
    expected = mean[:, 2].numpy().std() / 2**0.5
    torch.testing.assert_close(float(prior_spread(Gaussian(mean, log_variance))), float(expected))


@pytest.mark.parametrize("shape", [(5, 2, 4, 4), (5, 7)])
def test_the_optimal_sigma_is_the_likeliest_and_gradients_go_through_it(
    shape: tuple[int, ...],
) -> None:
    """Against a normal distribution whose sd autograd follows, and against the closed form."""
    mean, target = leaves(*shape, count=2)
    found = optimal_sigma_nll(mean, target, COUNTED)
    error = (mean[COUNTED] - target[COUNTED]) ** 2
    sd = error.mean().sqrt()
    every = -Normal(mean, sd).log_prob(target).flatten(1).sum(1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, every)
    total = found[COUNTED].sum()
    closed = error.numel() / 2 * (torch.log(2 * torch.pi * error.mean()) + 1)
    torch.testing.assert_close(total, closed)
    got = torch.autograd.grad(total, [mean, target])
    torch.testing.assert_close(got, torch.autograd.grad(closed, [mean, target], retain_graph=True))
    for other in (0.9 * sd, 1.1 * sd):
        unlikely = -Normal(mean, other).log_prob(target)[COUNTED].sum()  # type: ignore[no-untyped-call]
        assert unlikely > total


def test_the_optimal_sigma_is_bounded_and_ignores_rows_that_do_not_count() -> None:
    target = torch.ones(5, 3)
    exact = optimal_sigma_nll(target.clone(), target, COUNTED)
    torch.testing.assert_close(exact, torch.full((5,), 3 * (0.5 * math.log(2 * math.pi) - 6)))
    mean = torch.zeros(5, 3)
    mean[1] = 1000.0
    assert optimal_sigma_nll(mean, target, COUNTED)[0] < 5
    nobody = torch.zeros(5, dtype=torch.bool)
    assert optimal_sigma_nll(mean, target, nobody).isfinite().all()


def test_the_optimal_sigma_is_computed_in_float32_at_least() -> None:
    mean, target = torch.zeros(5, 70_000).half(), torch.ones(5, 70_000).half()
    found = optimal_sigma_nll(mean, target, COUNTED)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((5,), 35_000 * (math.log(2 * math.pi) + 1)))
