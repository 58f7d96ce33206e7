"""The contrastive losses against the paper's listing and equations, written over N x N pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconfound.losses import content_losses, invariance, supervised_contrastive
from deconfound.runtime.seeds import torch_stream

REDUCTIONS = ("balanced", "listing", "equation")


def listing_supervised_contrastive(z: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Makino et al., SCBD, appendix B."""
    positive = (u[:, None] == u[None, :]).to(z) * (1.0 - torch.eye(len(z)).to(z))
    p = positive / positive.sum(1, keepdim=True).clamp(min=1.0)
    return F.cross_entropy(F.log_softmax(z @ z.T / temperature, dim=1), p)


def listing_invariance(z: Tensor, e: Tensor, temperature: float) -> Tensor:
    """Makino et al., SCBD, appendix B."""
    positive = (e[:, None] == e[None, :]).to(z)
    negative = 1.0 - positive
    positive = positive * (1.0 - torch.eye(len(z)).to(z))
    q = F.log_softmax(z @ z.T / temperature, dim=1)
    return ((q * positive).mean(1) - (q * negative).mean(1)).abs().mean()


def log_probabilities(z: Tensor, temperature: float, include_self: bool) -> Tensor:
    """q_ij, with 0 where it is never used (j = i)."""
    own = torch.eye(len(z), dtype=torch.bool)
    logits = z @ z.T / temperature
    kept = logits if include_self else logits.masked_fill(own, -torch.inf)
    if len(z) == 1 and not include_self:
        return logits * 0
    return (logits - kept.logsumexp(1, keepdim=True)).masked_fill(own, 0.0)


def pairs_supervised_contrastive(
    z: Tensor, label: Tensor, temperature: float, include_self: bool
) -> Tensor:
    q = log_probabilities(z, temperature, include_self)
    positive = (label[:, None] == label[None, :]) & (label[:, None] >= 0)
    positive.fill_diagonal_(False)
    return -((q * positive).sum(1) / positive.sum(1).clamp(min=1)).mean()


def pairs_invariance(
    z: Tensor, environment: Tensor, temperature: float, reduction: str, include_self: bool
) -> Tensor:
    q = log_probabilities(z, temperature, include_self)
    known = (environment[:, None] >= 0) & (environment[None, :] >= 0)
    same = environment[:, None] == environment[None, :]
    positive, negative = (same & known).fill_diagonal_(False), ~same & known
    if reduction == "balanced":
        both = positive.any(1) & negative.any(1)
        mean_positive = (q * positive).sum(1) / positive.sum(1).clamp(min=1)
        mean_negative = (q * negative).sum(1) / negative.sum(1).clamp(min=1)
        return ((mean_positive - mean_negative) * both).abs().mean()
    gap = ((q * positive).sum(1) - (q * negative).sum(1)).abs()
    return gap.sum() if reduction == "equation" else gap.mean() / len(z)


def unit_rows(count: int, dimensions: int, *purpose: str | int) -> Tensor:
    stream = torch_stream(0, "rows", count, dimensions, *purpose)
    z = torch.randn(count, dimensions, dtype=torch.float64, generator=stream)
    # A shared direction makes the logits of a batch neither centred nor small.
    return F.normalize(z + 1.0, dim=1).requires_grad_()


def groups(count: int, kinds: int, *purpose: str | int, missing: bool = False) -> Tensor:
    """Unequal groups: kind k is drawn k + 1 times as often as kind 0; ids are far apart."""
    stream = torch_stream(0, "groups", count, kinds, *purpose)
    weights = torch.arange(1.0, kinds + 1)
    group = torch.multinomial(weights, count, replacement=True, generator=stream) * 1_000_003
    if missing:
        group[torch.rand(count, generator=stream) < 0.2] = -1
    return group


def assert_same(ours: Tensor, theirs: Tensor, z: Tensor) -> None:
    """Equal values and gradients in z, to 1e-10 of the gradient's scale."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(ours, z)
    (expected,) = torch.autograd.grad(theirs, z)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 511, 512, 513, 1025])
def test_listing(count: int) -> None:
    z = unit_rows(count, 16)
    label, environment = groups(count, 9, "label"), groups(count, 4, "environment")
    ours = supervised_contrastive(z, label, 0.1)
    assert_same(ours, listing_supervised_contrastive(z, label, 0.1), z)
    ours = invariance(z, environment, 0.1, "listing")
    assert_same(ours, listing_invariance(z, environment, 0.1), z)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("count", [1, 2, 5, 90])
def test_pairs(count: int, temperature: float, include_self: bool, missing: bool) -> None:
    z = unit_rows(count, 6)
    label = groups(count, 40, "label", missing=missing)
    environment = groups(count, 3, "environment", missing=missing)
    ours = supervised_contrastive(z, label, temperature, include_self)
    assert_same(ours, pairs_supervised_contrastive(z, label, temperature, include_self), z)
    for reduction in REDUCTIONS:
        ours = invariance(z, environment, temperature, reduction, include_self)
        theirs = pairs_invariance(z, environment, temperature, reduction, include_self)
        assert_same(ours, theirs, z)


@pytest.mark.parametrize("count", [513, 1025])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_blocks(count: int, reduction: str) -> None:
    z = unit_rows(count, 8)
    label, environment = groups(count, 50, missing=True), groups(count, 5, missing=True)
    for temperature in (0.1, 0.001):
        ours = sum(content_losses(z, label, environment, temperature, reduction, False))
        theirs = pairs_supervised_contrastive(z, label, temperature, False) + pairs_invariance(
            z, environment, temperature, reduction, False
        )
        assert_same(ours, theirs, z)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_content_losses(reduction: str, include_self: bool) -> None:
    z = unit_rows(70, 6)
    label, environment = groups(70, 9, "label"), groups(70, 3, "environment")
    attraction, gap = content_losses(z, label, environment, 0.2, reduction, include_self)
    alone = supervised_contrastive(z, label, 0.2, include_self)
    gap_alone = invariance(z, environment, 0.2, reduction, include_self)
    assert attraction.item() == alone.item()
    assert gap.item() == pytest.approx(gap_alone.item(), rel=1e-14)
    assert_same(attraction - 3 * gap, alone - 3 * gap_alone, z)


@pytest.mark.parametrize("include_self", [True, False])
def test_rows_far_from_unit_norm(include_self: bool) -> None:
    stream = torch_stream(0, "norms")
    scale = 60 * torch.rand(40, 1, dtype=torch.float64, generator=stream)
    z = (unit_rows(40, 5).detach() * scale).requires_grad_()
    label = groups(40, 4)
    ours = supervised_contrastive(z, label, 0.1, include_self)
    assert_same(ours, pairs_supervised_contrastive(z, label, 0.1, include_self), z)


@pytest.mark.parametrize("temperature", [0.1, 0.03, 0.025, 0.01])
def test_float32(temperature: float) -> None:
    z = unit_rows(600, 16)
    label, environment = groups(600, 9), groups(600, 4)
    theirs = pairs_supervised_contrastive(z, label, temperature, False) + pairs_invariance(
        z, environment, temperature, "listing", False
    )
    (expected,) = torch.autograd.grad(theirs, z)
    single = z.detach().float().requires_grad_()
    ours = sum(content_losses(single, label, environment, temperature, "listing", False))
    (gradient,) = torch.autograd.grad(ours, single)
    assert ours.dtype == gradient.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    tolerance = 1e-5 * expected.abs().max().item() / temperature
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z = unit_rows(300, 16).detach().to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    label, environment = groups(300, 9), groups(300, 4)
    ours = sum(content_losses(z, label, environment, 0.1, "listing"))
    theirs = listing_supervised_contrastive(exact, label, 0.1) + listing_invariance(
        exact, environment, 0.1
    )
    (gradient,) = torch.autograd.grad(ours, z)
    (expected,) = torch.autograd.grad(theirs, exact)
    assert ours.dtype == torch.float32
    assert gradient.dtype == dtype
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    # Only the rounding of the gradient to its dtype remains.
    torch.testing.assert_close(gradient.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-7)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_autocast_changes_nothing(temperature: float) -> None:
    z = unit_rows(200, 16).detach().float().requires_grad_()
    label, environment = groups(200, 9), groups(200, 4)
    plain = sum(content_losses(z, label, environment, temperature, "listing"))
    (expected,) = torch.autograd.grad(plain, z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sum(content_losses(z, label, environment, temperature, "listing"))
        (gradient,) = torch.autograd.grad(inside, z)
    assert inside.item() == plain.item()
    assert torch.equal(gradient, expected)
