import pytest
import torch
from torch import nn

from deconfound.errors import UserError
from deconfound.nets.vae import Gaussian, GaussianTable, build_decoder, build_trunk


def convolutions(network: nn.Module) -> list[tuple[int, int, int]]:
    kinds = nn.Conv2d | nn.ConvTranspose2d
    return [
        (layer.in_channels, layer.out_channels, layer.stride[0])
        for layer in network.modules()
        if isinstance(layer, kinds)
    ]


def test_the_networks_are_those_of_tables_3_and_4() -> None:
    trunk, decoder = build_trunk("vae", 4, 64, 32), build_decoder(128, 4, 64, 32)
    assert convolutions(trunk) == [(4, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2)]
    assert trunk.features == 64 * 8**2
    linear = next(layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
    assert (linear.in_features, linear.out_features) == (2 * 64, 64 * 8**2)
    assert convolutions(decoder) == [
        (64, 64, 2), (64, 64, 1), (64, 32, 2), (32, 32, 1), (32, 4, 2),
    ]  # fmt: skip
    assert trunk(torch.randn(2, 4, 64, 64)).shape == (2, 4096)
    assert decoder(torch.randn(2, 128)).shape == (2, 4, 64, 64)


def test_32_pixels_take_one_stride_fewer_on_both_ways() -> None:
    trunk, decoder = build_trunk("vae", 3, 32, 4), build_decoder(6, 3, 32, 4)
    assert [stride for *_, stride in convolutions(trunk)] == [2, 1, 2, 1, 1]
    assert [stride for *_, stride in convolutions(decoder)] == [1, 1, 2, 1, 2]
    assert trunk(torch.randn(2, 3, 32, 32)).shape == (2, trunk.features)
    assert decoder(torch.randn(2, 6)).shape == (2, 3, 32, 32)


def test_profiles_take_perceptrons_both_ways() -> None:
    trunk, decoder = build_trunk("vae", 12, None, 4), build_decoder(6, 12, None, 4)
    assert trunk(torch.randn(5, 12)).shape == (5, trunk.features)
    assert decoder(torch.randn(5, 6)).shape == (5, 12)
    assert not convolutions(trunk)
    assert not convolutions(decoder)
    with pytest.raises(UserError, match="takes images"):
        build_trunk("resnet18", 12, None, 4)


def test_any_encoder_of_images_can_be_the_trunk() -> None:
    assert build_trunk("small", 2, 32, 4).features == 256


def test_what_is_decoded_at_first_has_about_the_variance_of_the_latent_variables() -> None:
    torch.manual_seed(0)
    for side in (32, 64):
        drawn = build_decoder(64, 3, side, 32)(torch.randn(64, 64))
        assert 0.1 < float(drawn.detach().var(dim=0).mean()) < 4


def test_log_variances_are_floored_and_half_precision_widened() -> None:
    parameters = torch.tensor([[1.0, 2.0, -50.0, 3.0]], dtype=torch.bfloat16)
    q = Gaussian.of(parameters)
    assert q.mean.dtype == torch.float32
    assert q.mean.tolist() == [[1, 2]]
    assert q.log_variance.tolist() == [[-20, 3]]


def test_a_table_gives_each_row_the_distribution_of_its_class() -> None:
    table = GaussianTable(3, 2)
    assert len({tuple(mean.tolist()) for mean in table.mean}) == 3
    with torch.no_grad():
        assert table.log_variance is not None
        table.log_variance[2] = 1
    found = table(torch.tensor([2, 0]))
    assert torch.equal(found.mean, table.mean[[2, 0]])
    assert found.log_variance.tolist() == [[1, 1], [0, 0]]
    fixed = GaussianTable(3, 2, learns_variance=False)
    assert [name for name, _ in fixed.named_parameters()] == ["mean"]
    assert not fixed(torch.tensor([1])).log_variance.any()
