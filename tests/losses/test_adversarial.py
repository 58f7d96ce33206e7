import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deconfound.losses.generated import fake_loss, r1_penalty, real_loss
from deconfound.losses.risk import gradient_penalty


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


def test_real_and_fake_are_binary_cross_entropy() -> None:
    logits = torch.tensor([-3.0, 0.0, 40.0, -40.0], requires_grad=True)
    for loss, target in ((real_loss, 1.0), (fake_loss, 0.0)):
        expected = binary_cross_entropy_with_logits(logits, torch.full((4,), target))
        torch.testing.assert_close(loss(logits), expected)
        (found,) = torch.autograd.grad(loss(logits), logits)
        torch.testing.assert_close(found, (logits.sigmoid() - target).detach() / 4)
        assert loss(torch.zeros(0)).item() == 0


def test_the_generator_is_not_starved_where_the_critic_is_sure() -> None:
    """Non-saturating: the gradient of a fake that is surely recognised is 1 / B, not 0."""
    logits = torch.tensor([-30.0], requires_grad=True)
    (slope,) = torch.autograd.grad(real_loss(logits), logits)
    torch.testing.assert_close(slope, torch.tensor([-1.0]))


def test_r1_of_a_linear_critic_is_half_its_squared_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 3, requires_grad=True)
    image = torch.randn(5, 2, 3, 3, requires_grad=True)
    found = r1_penalty((image * weight).sum((1, 2, 3)), image)
    torch.testing.assert_close(found, 0.5 * weight.square().sum())
    (slope,) = torch.autograd.grad(found, weight)
    torch.testing.assert_close(slope, weight.detach())


def test_r1_of_a_curved_critic_is_differentiable_in_it() -> None:
    """Of w · x²: 0.5 · mean of |2 w x|²; no rows give 0."""
    w = torch.tensor(0.7, requires_grad=True)
    image = torch.randn(4, 1, 2, 2, requires_grad=True)
    found = r1_penalty((w * image**2).sum((1, 2, 3)), image)
    mean = (image.detach() ** 2).sum((1, 2, 3)).mean()
    torch.testing.assert_close(found, 2 * w**2 * mean)
    torch.testing.assert_close(torch.autograd.grad(found, w)[0], (4 * w * mean).detach())
    none = (w * image**2).sum((1, 2, 3))[:0]
    assert r1_penalty(none, image).item() == 0
