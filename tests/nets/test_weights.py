import pytest
import torch
from torch import nn

from deconfound.nets.weights import averaged_copy, constant, update_average


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.GroupNorm(2, 4)).double()


def test_the_copy_computes_the_same_and_is_not_trained() -> None:
    own = network()
    average, x = averaged_copy(own), torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(average(x), own(x))
    assert not list(average.parameters())
    assert average.state_dict().keys() == own.state_dict().keys()
    with torch.no_grad():
        own[0].weight.zero_()
    assert average[0].weight.any()


def test_the_average_follows() -> None:
    own = network()
    average = averaged_copy(own)
    start = {name: value.clone() for name, value in average.state_dict().items()}
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1)
    for _ in range(2):
        update_average(average, own, 0.9)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.19)


def test_a_constant_network_passes_gradients_to_its_input_alone() -> None:
    own = network()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    found, wanted = constant(own)(x).square().sum(), own(x).square().sum()
    assert torch.equal(found, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(v, x, retain_graph=True) for v in (found, wanted))
    )
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(found, list(own.parameters()))
