import pytest
import torch
from torch import nn

from deconfound.losses.adversarial import fake_loss, gradient_penalty, r1_penalty, real_loss


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


def test_real_and_fake_losses_are_binary_cross_entropies() -> None:
    logits = torch.tensor([-60.0, -1.5, 0.0, 0.3, 60.0], dtype=torch.float64, requires_grad=True)
    for found, target in ((real_loss, torch.ones(5)), (fake_loss, torch.zeros(5))):
        wanted = nn.functional.binary_cross_entropy_with_logits(logits, target.double())
        torch.testing.assert_close(found(logits), wanted)
        gradients = [torch.autograd.grad(value, logits)[0] for value in (found(logits), wanted)]
        torch.testing.assert_close(*gradients)
    assert real_loss(logits.detach().bfloat16()).dtype == torch.float32


def test_r1_of_a_linear_critic_is_half_its_squared_length() -> None:
    torch.manual_seed(0)
    critic = nn.Linear(2 * 5 * 5, 1).double()
    image = torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    found = r1_penalty(critic(image.flatten(1)).squeeze(1), image)
    torch.testing.assert_close(found, 0.5 * critic.weight.square().sum())
    (gradient,) = torch.autograd.grad(found, critic.weight)
    torch.testing.assert_close(gradient, critic.weight.detach())


def test_r1_is_the_mean_over_images_of_their_own_slopes() -> None:
    """The critic Σ x³ has the slope 3 x², so R1 of a row is ½ Σ 9 x⁴."""
    image = torch.tensor([[1.0, 2.0], [0.5, -1.0]], requires_grad=True).view(2, 1, 1, 2)
    found = r1_penalty(image.pow(3).sum(dim=(1, 2, 3)), image)
    assert found.item() == pytest.approx(0.5 * 9 * ((1 + 16) + (0.0625 + 1)) / 2)


def test_adversarial_losses_of_no_rows_are_zero() -> None:
    image = torch.zeros(0, 1, 4, 4, requires_grad=True)
    logits = image.sum(dim=(1, 2, 3))
    assert real_loss(logits).item() == fake_loss(logits).item() == 0
    assert r1_penalty(logits, image).item() == 0
