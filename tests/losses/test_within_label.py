import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconfound.errors import UserError
from deconfound.losses import (
    content_losses,
    invariance,
    invariance_given_label,
    supervised_contrastive,
)
from deconfound.runtime.seeds import torch_stream

LABEL = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, -1, 0, 0, 3])
ENVIRONMENT = torch.tensor([0, 0, 1, 1, 2, 0, 0, 2, 2, 1, 1, 1, -1, 0, 2])


def rows(count: int = len(LABEL), purpose: str = "rows") -> Tensor:
    stream = torch_stream(0, purpose, count)
    z = F.normalize(torch.randn(count, 4, dtype=torch.float64, generator=stream), dim=1)
    return z.requires_grad_()


def by_loops(z: Tensor, label: Tensor, environment: Tensor, temperature: float) -> Tensor:
    """The definition of `invariance_given_label`, with q written out."""
    logits = z @ z.T / temperature
    q = logits - logits.logsumexp(1, keepdim=True)
    pairs = list(zip(label.tolist(), environment.tolist(), strict=True))
    kept = [i for i, pair in enumerate(pairs) if min(pair) >= 0 and pairs.count(pair) > 1]
    total, weights = z.new_zeros(()), 0
    for i in kept:
        positives = [j for j in kept if j != i and pairs[j] == pairs[i]]
        negatives = [j for j in kept if pairs[j][0] == pairs[i][0] and pairs[j][1] != pairs[i][1]]
        if negatives:
            gap = q[i, positives].mean() - q[i, negatives].mean()
            total = total + len(negatives) * gap
            weights += len(negatives)
    return total.abs() / weights


def heavier_by_loops(z: Tensor, weight: float, include_self: bool) -> Tensor:
    """The weighted mean of `supervised_contrastive`, pair by pair."""
    logits = z @ z.T / 0.1
    allowed = logits if include_self else logits - torch.diag(torch.full((len(z),), torch.inf))
    q = logits - allowed.logsumexp(1, keepdim=True)
    total = z.new_zeros(())
    for i in range(len(z)):
        sums, weights = z.new_zeros(()), 0.0
        for j in range(len(z)):
            if i == j or LABEL[i] < 0 or LABEL[i] != LABEL[j]:
                continue
            known = min(ENVIRONMENT[i], ENVIRONMENT[j]) >= 0
            own = weight if known and ENVIRONMENT[i] != ENVIRONMENT[j] else 1.0
            sums, weights = sums + own * q[i, j], weights + own
        if weights:
            total = total - sums / weights
    return total / len(z)


def test_given_label_is_its_definition() -> None:
    z = rows()
    expected = by_loops(z, LABEL, ENVIRONMENT, 0.1)
    found = invariance_given_label(z, LABEL, ENVIRONMENT)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, z)
    (wanted,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_both_losses_in_one_pass_are_the_two() -> None:
    z = rows()
    pull, gap = content_losses(z, LABEL, ENVIRONMENT, given="label", cross_environment_weight=3.0)
    assert gap.item() == invariance_given_label(z, LABEL, ENVIRONMENT).item()
    alone = supervised_contrastive(z, LABEL, environment=ENVIRONMENT, cross_environment_weight=3.0)
    assert pull.item() == alone.item()
    pull, gap = content_losses(z, LABEL, ENVIRONMENT)
    assert pull.item() == supervised_contrastive(z, LABEL).item()
    assert gap.item() == invariance(z, ENVIRONMENT).item()


def test_it_is_half_the_squared_distance_of_the_environments_means() -> None:
    # Two labels with one point for each environment: no chance, so the distance is exact.
    place = F.normalize(torch.tensor([[1, 0], [1, 1], [0, 1], [1, -2]]).double(), dim=1)
    label, environment = torch.arange(4).repeat(5) // 2, torch.arange(4).repeat(5) % 2
    z = place.repeat(5, 1)
    distances = (place[0] - place[1]).square().sum(), (place[2] - place[3]).square().sum()
    found = invariance_given_label(z, label, environment, 0.5)
    assert found.item() == pytest.approx((sum(distances) / 2 / 2 / 0.5).item(), rel=1e-12)


def test_labels_of_one_environment_count_for_nothing() -> None:
    z = rows(12)
    label, environment = torch.arange(12) // 4, torch.arange(12) // 4
    loss = invariance_given_label(z, label, environment)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None and not z.grad.any()
    # A fourth label in two environments is all that counts.
    shared = rows(4, "shared")
    both = torch.cat([z, shared])
    of_both = invariance_given_label(
        both,
        torch.cat([label, torch.full((4,), 3)]),
        torch.cat([environment, torch.tensor([0, 0, 1, 1])]),
    )
    alone = invariance_given_label(
        shared, torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    )
    assert of_both.item() == pytest.approx(alone.item(), rel=1e-12)


def test_chance_differences_are_not_pressed_down() -> None:
    """Labels spread about their centres, whatever the environment: a mean of |gap| sees a gap."""
    stream = torch_stream(0, "no effect of the environment")
    label, environment = torch.arange(256) % 10, torch.arange(256) // 10 % 3
    pooled, single = [], []
    for _ in range(50):
        centre = torch.eye(10, 16, dtype=torch.float64)[label]
        noise = torch.randn(256, 16, dtype=torch.float64, generator=stream) * 0.2
        z = F.normalize(centre + noise, dim=1)
        pooled.append(invariance_given_label(z, label, environment).item())
        of_labels = [
            invariance(z[label == one], environment[label == one]).item() for one in range(10)
        ]
        single.append(sum(of_labels) / 10)
    assert sum(pooled) / 50 < 0.1 * sum(single) / 50


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_gradcheck(temperature: float) -> None:
    assert torch.autograd.gradcheck(
        lambda z: content_losses(
            z, LABEL, ENVIRONMENT, temperature, given="label", cross_environment_weight=4.0
        ),
        rows(),
    )


@pytest.mark.parametrize("include_self", [True, False])
def test_positives_of_other_environments_weigh_more(include_self: bool) -> None:
    z = rows()
    found = supervised_contrastive(
        z, LABEL, 0.1, include_self, environment=ENVIRONMENT, cross_environment_weight=4.0
    )
    expected = heavier_by_loops(z, 4.0, include_self)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, z)
    (wanted,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)
    near_one = supervised_contrastive(
        z, LABEL, 0.1, include_self, environment=ENVIRONMENT, cross_environment_weight=1 + 1e-12
    )
    paper = supervised_contrastive(z, LABEL, 0.1, include_self)
    assert near_one.item() == pytest.approx(paper.item(), rel=1e-10)


def test_what_is_refused() -> None:
    z = rows()
    with pytest.raises(UserError, match="at least 1"):
        content_losses(z, LABEL, ENVIRONMENT, cross_environment_weight=0.5)
    with pytest.raises(UserError, match="without environments"):
        supervised_contrastive(z, LABEL, cross_environment_weight=2.0)
    with pytest.raises(UserError, match='choose "balanced"'):
        content_losses(z, LABEL, ENVIRONMENT, reduction="listing", given="label")
    with pytest.raises(UserError, match="none, label"):
        content_losses(z, LABEL, ENVIRONMENT, given="plate")
