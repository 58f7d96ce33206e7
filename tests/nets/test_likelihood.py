import torch
from torch.distributions import Bernoulli, Normal

from deconfound.nets.decoder import BernoulliLikelihood, GaussianLikelihood


def test_bernoulli_is_the_mean_over_pixels() -> None:
    torch.manual_seed(0)
    output = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    likelihood = BernoulliLikelihood()
    expected = -Bernoulli(logits=output, validate_args=False).log_prob(target).mean()  # type: ignore[no-untyped-call]
    loss = likelihood.negative_log_likelihood(output, target)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient, (output.sigmoid() - target) / output.numel())
    torch.testing.assert_close(likelihood.mean(output), Bernoulli(logits=output).mean)


def test_gaussian_is_the_mean_over_pixels_and_learns_its_spread() -> None:
    torch.manual_seed(0)
    output = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    likelihood = GaussianLikelihood().double()
    with torch.no_grad():
        likelihood.log_sd.fill_(0.3)
    expected = -Normal(output, likelihood.log_sd.exp()).log_prob(target).mean()  # type: ignore[no-untyped-call]
    loss = likelihood.negative_log_likelihood(output, target)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [output, likelihood.log_sd], retain_graph=True)
    got = torch.autograd.grad(loss, [output, likelihood.log_sd])
    torch.testing.assert_close(got, wanted)
    assert likelihood.mean(output) is output
    assert GaussianLikelihood().log_sd.item() == 0


def test_gaussian_of_each_row_is_the_sum_over_its_pixels() -> None:
    torch.manual_seed(0)
    likelihood = GaussianLikelihood().double()
    with torch.no_grad():
        likelihood.log_sd.fill_(-0.4)
    for shape in ((3, 2, 4, 4), (3, 7)):
        output = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        target = torch.randn(*shape, dtype=torch.float64)
        expected = -Normal(output, likelihood.log_sd.exp()).log_prob(target).flatten(1).sum(1)  # type: ignore[no-untyped-call]
        found = likelihood.of_each(output, target)
        torch.testing.assert_close(found, expected)
        weight = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
        own = [output, likelihood.log_sd]
        got = torch.autograd.grad((weight * found).sum(), own)
        torch.testing.assert_close(got, torch.autograd.grad((weight * expected).sum(), own))
