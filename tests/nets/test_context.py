"""Batch norms by environment, against PyTorch's batch norm of the rows of one environment alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError
from deconfound.nets.context import Context, ContextNorm, Moments, adapt_batch_norm
from deconfound.nets.encoder import Encoder, build_encoder

SIZE = 33


class Adapted(Encoder):
    context: Context


def built(name: str = "small", environments: int = 3) -> tuple[Encoder, Adapted]:
    """An encoder in float64 whose norms are PyTorch's, and the same whose norms adapt."""
    torch.manual_seed(0)
    plain = build_encoder(name, *((5, None) if name == "mlp" else (2, SIZE)))
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    adapted = Adapted(copy.deepcopy(plain.network), plain.features)
    adapted.context = adapt_batch_norm(adapted, environments, "here")
    return plain.double(), adapted.double()


def images(count: int, name: str = "small") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (5,) if name == "mlp" else (2, SIZE, SIZE)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("name", ["small", "resnet18", "mlp"])
def test_an_episode_is_normalised_by_its_own_rows_and_so_are_gradients(name: str) -> None:
    """Each environment alone through PyTorch's norms in training gives values and gradients."""
    plain, adapted = built(name)
    image, environment = images(12, name), torch.tensor([0, 2, -1, 0, 2, -1, 0, 2, 2, -1, 0, 2])
    image.requires_grad_()
    weight = torch.randn(12, plain.features, dtype=torch.float64)
    expected = torch.zeros_like(weight)
    for code in (0, 2, -1):
        own = environment == code
        expected = expected.index_put((own.nonzero()[:, 0],), plain.train()(image[own]))
    with adapted.context.of(environment):
        found = adapted.train()(image)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [image, *plain.parameters()])
    gradients = torch.autograd.grad((found * weight).sum(), [image, *adapted.parameters()])
    torch.testing.assert_close(gradients, wanted)


def test_gradients_flow_through_the_statistics() -> None:
    """A row bears on what becomes of another of its environment, and on no other."""
    _, adapted = built()
    image = images(6).requires_grad_()
    with adapted.context.of(torch.tensor([0, 0, 0, 1, 1, 1])):
        (gradient,) = torch.autograd.grad(adapted.train()(image)[0].sum(), image)
    reached = gradient.flatten(1).abs().amax(dim=1) > 1e-9
    assert reached.tolist() == [True, True, True, False, False, False]


def test_without_a_context_a_training_batch_is_one_environment() -> None:
    plain, adapted = built()
    torch.testing.assert_close(adapted.train()(images(8)), plain.train()(images(8)))


def test_evaluation_takes_what_was_put_for_each_environment() -> None:
    norm = nn.BatchNorm1d(2)
    network = nn.Sequential(norm)
    context = adapt_batch_norm(network, 2, "here")
    (found,) = context.norms
    found.means.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    found.variances.copy_(torch.tensor([[4.0, 1.0], [9.0, 1.0], [16.0, 1.0]]))
    image = torch.tensor([[1.0, 2.0], [6.0, 5.0], [9.0, 6.0]])
    network.eval()
    with context.of(torch.tensor([0, 1, -1])):
        torch.testing.assert_close(
            network(image), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), rtol=0, atol=1e-4
        )
    expected = functional.batch_norm(image, found.means[-1], found.variances[-1])
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("name", ["small", "resnet18", "mlp"])
@pytest.mark.parametrize("size", [3, 20])
def test_what_is_gathered_is_that_of_all_images_as_one_batch(name: str, size: int) -> None:
    """In as many chunks as it takes; a training batch of them all is then embedded the same."""
    _, adapted = built(name)
    image = images(20, name)
    parts = image.split(size)
    even = torch.full((20,), 1 / 20).split(size)
    context = adapted.context
    expected = adapted.train()(image).detach()
    found = context.gather(adapted.eval(), lambda: zip(parts, even, strict=True), len(parts))
    context.put(1, found)
    with context.of(torch.ones(20, dtype=torch.int64)), torch.no_grad():
        torch.testing.assert_close(adapted(image), expected, rtol=1e-4, atol=1e-4)
    assert context.gathering is None
    with torch.no_grad():
        assert not torch.allclose(adapted(image), expected, atol=0.1)


@pytest.mark.parametrize("size", [2, 7])
def test_a_weight_of_two_thirds_is_a_row_that_stands_twice(size: int) -> None:
    _, adapted = built()
    image = images(4)
    rows = torch.tensor([0, 1, 2, 3, 2, 2, 3, 3][:7])
    weight = torch.bincount(rows).float() / 7

    def gathered(image: Tensor, weight: Tensor) -> list[Tensor]:
        parts = image.split(size), weight.split(size)
        chunks = len(parts[0])
        found = adapted.context.gather(adapted, lambda: zip(*parts, strict=True), chunks)
        return [values for moments in found for values in moments]

    adapted.eval()
    once = gathered(image, weight)
    torch.testing.assert_close(once, gathered(image[rows], torch.full((7,), 1 / 7)))


def test_more_environments_stand_before_all_training_rows() -> None:
    _, adapted = built(environments=2)
    context = adapted.context
    more = [Moments(norm.means[0] + 9, norm.variances[0] + 9) for norm in context.norms]
    context.put(-1, more)
    context.extend([context.moments(0), context.moments(-1)])
    for norm in context.norms:
        assert norm.means[:, 0].tolist() == [0, 0, 0, 9, 9]
        assert norm.variances[:, 0].tolist() == [1, 1, 1, 10, 10]


def test_weights_keep_their_names() -> None:
    plain, adapted = built()
    assert [name for name, _ in plain.named_parameters()] == [
        name for name, _ in adapted.named_parameters()
    ]
    assert len(adapted.context.norms) == 5
    assert all(isinstance(norm, ContextNorm) for norm in adapted.context.norms)


def test_networks_that_cannot_adapt_are_refused() -> None:
    class Activated(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r"^here: has no batch norm, whose statistics adapt; use"):
        adapt_batch_norm(nn.Sequential(nn.GroupNorm(1, 2)), 2, "here")
    with pytest.raises(UserError, match=r"^here: its Activated does more than normalise; use sm"):
        adapt_batch_norm(nn.Sequential(Activated(2)), 2, "here")
