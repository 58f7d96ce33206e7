from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconfound.losses.risk import coral_penalty, irm_penalty


def rows(count: int, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Features float64, labels and environments, a few of them missing."""
    torch.manual_seed(count)
    features = torch.randn(count, width, dtype=torch.float64, requires_grad=True)
    return features, torch.randint(-1, width, (count,)), torch.randint(-1, 4, (count,))


def test_coral_is_the_mean_over_pairs_in_value_and_gradient() -> None:
    features, _, environment = rows(40)
    groups = [features[environment == e] for e in range(4)]
    expected = torch.stack(
        [
            (a.mean(0) - b.mean(0)).square().mean() + (a.T.cov() - b.T.cov()).square().mean()
            for a, b in combinations(groups, 2)
        ]
    ).mean()
    found = coral_penalty(features, environment)
    torch.testing.assert_close(found, expected)
    gradient, wanted = (torch.autograd.grad(value, features)[0] for value in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert (gradient[environment < 0] == 0).all()


def test_coral_of_identical_environments_is_0() -> None:
    features, *_ = rows(12)
    environment = torch.arange(3).repeat_interleave(12)
    same = coral_penalty(features.repeat(3, 1), environment)
    assert same.item() == pytest.approx(0, abs=1e-12)
    shifted = torch.cat([features, features, features + 1])
    assert coral_penalty(shifted, environment).item() == pytest.approx(2 / 3), "two pairs of three"


@pytest.mark.parametrize("codes", [[-1, -1, -1, -1], [2, 2, 2, 2], [0, 0, 0, 3], []])
def test_coral_without_two_environments_of_two_rows_is_0(codes: list[int]) -> None:
    features = torch.randn(len(codes), 3, requires_grad=True)
    found = coral_penalty(features, torch.tensor(codes, dtype=torch.int64))
    assert found.item() == 0
    assert (torch.autograd.grad(found, features)[0] == 0).all()


def test_coral_is_computed_in_float32_under_autocast() -> None:
    features, _, environment = rows(40)
    single = features.detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = coral_penalty(single, environment)
    torch.testing.assert_close(found, coral_penalty(single, environment), rtol=0, atol=0)


def test_irm_is_the_product_of_two_derivatives_in_value_and_gradient() -> None:
    logits, label, environment = rows(40)
    products = []
    for e in range(4):
        own = ((environment == e) & (label >= 0)).nonzero()[:, 0]
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        halves = [F.cross_entropy(scale * logits[own[h::2]], label[own[h::2]]) for h in (0, 1)]
        slopes = [torch.autograd.grad(h, scale, create_graph=True)[0] for h in halves]
        products.append(slopes[0] * slopes[1])
    expected = torch.stack(products).mean()
    found = irm_penalty(logits, label, environment)
    torch.testing.assert_close(found, expected)
    gradient, wanted = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert (gradient[(environment < 0) | (label < 0)] == 0).all()


def test_irm_of_zero_logits_is_0() -> None:
    _, label, environment = rows(40)
    assert irm_penalty(torch.zeros(40, 5), label, environment).item() == 0


def test_irm_can_be_negative() -> None:
    """One row that a larger scale helps and one that it harms."""
    logits, label = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    assert irm_penalty(logits, label, torch.tensor([0, 0])).item() < 0


def test_irm_estimates_the_squared_derivative_without_bias() -> None:
    """The mean over orders of the rows is free of what each row adds to its own square."""
    torch.manual_seed(0)
    logits, label = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 3, (6,))
    slope = (logits.softmax(1) * logits).sum(1) - logits[torch.arange(6), label]
    pairs = [(slope[i] * slope[j]).item() for i, j in combinations(range(6), 2)]
    found = []
    for even in combinations(range(6), 3):
        odd = [row for row in range(6) if row not in even]
        order = torch.tensor([row for pair in zip(even, odd, strict=True) for row in pair])
        one = irm_penalty(logits[order], label[order], torch.zeros(6, dtype=torch.int64))
        found.append(one.item())
    assert sum(found) / len(found) == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize("codes", [[-1, -1], [0, 1], []])
def test_irm_without_two_rows_of_an_environment_is_0(codes: list[int]) -> None:
    logits = torch.randn(len(codes), 3, requires_grad=True)
    label = torch.zeros(len(codes), dtype=torch.int64)
    found = irm_penalty(logits, label, torch.tensor(codes, dtype=torch.int64))
    assert found.item() == 0
    assert (torch.autograd.grad(found, logits)[0] == 0).all()
