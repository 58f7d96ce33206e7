import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deconfound.nets.layers import DomainHeads

WIDTHS = (5, 7, 6, 3)


def all_heads_indexed(heads: DomainHeads, features: Tensor, domain: Tensor) -> Tensor:
    """Every head on every row, as the paper has it, and then the row's own."""
    domains = heads.layers[0].weight.shape[0]
    maps = features[None].expand(domains, -1, -1)
    for number, layer in enumerate(heads.layers):
        maps = maps.relu() if number else maps
        maps = torch.stack([maps[k] @ layer.weight[k].T + layer.bias[k] for k in range(domains)])
    return maps[domain, torch.arange(len(domain))]


def built(domains: int, widths: tuple[int, ...] = WIDTHS) -> DomainHeads:
    torch.manual_seed(0)
    heads = DomainHeads(domains, widths).double()
    for layer in heads.layers:
        torch.nn.init.normal_(layer.bias)
    return heads


@pytest.mark.parametrize("domain", [[2, 0, 2, 3, 3, 2], [1, 1, 1], [4, 3, 2, 1, 0], [3]])
def test_they_are_all_heads_indexed(domain: list[int]) -> None:
    heads, of = built(5), torch.tensor(domain)
    features = torch.randn(len(of), 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(len(of), 3, dtype=torch.float64)
    inputs = [features, *heads.parameters()]
    found, wanted = heads(features, of), all_heads_indexed(heads, features, of)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad((v * direction).sum(), inputs) for v in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        assert (other != 0).any()
        torch.testing.assert_close(one, other)
    absent = [k for k in range(5) if k not in domain]
    assert all((gradient[absent] == 0).all() for gradient in gradients[0][1:])


def test_arithmetic_is_that_of_the_domains_present() -> None:
    domain = torch.tensor([0, 2, 2, 1, 0, 1])
    features = torch.randn(6, 5, dtype=torch.float64)
    counted = {}
    for domains in (3, 120):
        heads = built(domains)
        with FlopCounterMode(display=False) as forward:
            value = heads(features, domain)
        with FlopCounterMode(display=False) as backward:
            value.sum().backward()
        counted[domains] = forward.get_total_flops(), backward.get_total_flops()
        with FlopCounterMode(display=False) as every:
            all_heads_indexed(heads, features, domain)
        assert every.get_total_flops() == domains * 2 * 6 * (5 * 7 + 7 * 6 + 6 * 3)
    assert counted[3][0] == 2 * 6 * (5 * 7 + 7 * 6 + 6 * 3)
    assert counted[3] == counted[120]


def test_no_rows_give_no_rows_and_a_gradient_of_zero() -> None:
    heads = built(3)
    value = heads(torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert value.shape == (0, 3)
    value.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())


def test_initial_weights_keep_the_variance() -> None:
    torch.manual_seed(0)
    (layer,) = DomainHeads(4, [512, 64]).layers
    assert float(layer.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert not layer.bias.any()
