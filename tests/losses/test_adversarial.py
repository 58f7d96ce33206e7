import torch
from torch import nn

from deconfound.losses.adversarial import gradient_penalty


def test_the_penalty_of_a_linear_discriminator_is_known() -> None:
    """∂ CE / ∂r = Wᵀ (softmax − onehot); rows without an environment count nowhere."""
    torch.manual_seed(0)
    discriminator = nn.Linear(5, 3).double()
    r = torch.randn(7, 5, dtype=torch.float64)
    e = torch.tensor([0, 1, 2, -1, 1, 0, -1])
    expected = 0.0
    for row, environment in zip(r, e.tolist(), strict=True):
        if environment >= 0:
            error = discriminator(row).softmax(0).detach()
            error[environment] -= 1
            expected += (discriminator.weight.T @ error).square().sum().item() / 5
    found = gradient_penalty(discriminator, r, e)
    torch.testing.assert_close(found.item(), expected)


def test_the_penalty_has_gradients_on_both_sides() -> None:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    r = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    e = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda x: gradient_penalty(discriminator, x, e), r)
    weights = [p for p in discriminator.parameters() if p.ndim == 2]
    gradients = torch.autograd.grad(gradient_penalty(discriminator, r.detach(), e), weights)
    assert all((gradient != 0).any() for gradient in gradients)


def test_without_gradients_the_value_is_the_same() -> None:
    torch.manual_seed(0)
    discriminator, r, e = nn.Linear(4, 2), torch.randn(3, 4), torch.tensor([0, 1, 1])
    with torch.no_grad():
        value = gradient_penalty(discriminator, r, e)
    assert not value.requires_grad
    torch.testing.assert_close(value, gradient_penalty(discriminator, r, e).detach())


def test_no_known_environment_is_no_penalty() -> None:
    r = torch.randn(3, 4, requires_grad=True)
    assert gradient_penalty(nn.Linear(4, 2), r, torch.full((3,), -1)).item() == 0
