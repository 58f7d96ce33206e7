import torch

from deconfound.nets.encoder import Projection


def test_rows_have_unit_length_and_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    projection = Projection(48, 16)
    block = projection(torch.randn(5, 48))
    assert block.shape == (5, 16)
    torch.testing.assert_close(block.norm(dim=1), torch.ones(5))
    block[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projection.parameters())


def test_layers_of_the_paper() -> None:
    parameters = sum(p.numel() for p in Projection(512, 128).parameters())
    assert parameters == 512 * 512 + 512 + 512 * 128 + 128


def test_block_is_float32_under_autocast_and_float64_stays() -> None:
    projection = Projection(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block = projection(torch.ones(3, 8))
    assert block.dtype == torch.float32
    torch.testing.assert_close(block.norm(dim=1), torch.ones(3))
    assert projection.double()(torch.ones(3, 8, dtype=torch.float64)).dtype == torch.float64
