import pytest
import torch

from deconfound.errors import UserError
from deconfound.nets.decoder import AdditiveDecoder, decoder_size


@pytest.mark.parametrize("size", [32, 64])
def test_shapes_and_gradients(size: int) -> None:
    torch.manual_seed(0)
    decoder = AdditiveDecoder(z_content=6, z_style=3, channels=5, image_size=size, width=8)
    output = decoder(torch.randn(2, 6), torch.randn(2, 3))
    assert output.shape == (2, 5, size, size)
    output.square().sum().backward()
    for path, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, path


def test_output_is_additive_in_the_blocks() -> None:
    torch.manual_seed(0)
    decoder = AdditiveDecoder(4, 4, channels=3, image_size=32, width=8).double()
    c1, c2, s1, s2 = torch.randn(4, 2, 4, dtype=torch.float64)
    change = decoder(c2, s1) - decoder(c1, s1)
    assert change.abs().max() > 1e-7
    torch.testing.assert_close(decoder(c2, s2) - decoder(c1, s2), change, rtol=1e-6, atol=1e-14)


def test_paper_width_has_table_2s_parameters() -> None:
    decoder = AdditiveDecoder(128, 128, channels=3, image_size=32)
    convolution = 256 * 256 * 9 + 256
    branch = 128 * 1024 + 1024 + 7 * convolution + 256 * 128 * 9 + 128
    assert sum(p.numel() for p in decoder.parameters()) == 2 * branch + 128 * 3 + 3


def test_size_of_the_decoded_image() -> None:
    assert [decoder_size(size) for size in (24, 32, 48, 64, 100)] == [32, 32, 64, 64, 64]
    with pytest.raises(UserError, match="48 px"):
        AdditiveDecoder(4, 4, 3, image_size=48)
    with pytest.raises(UserError, match="width 7"):
        AdditiveDecoder(4, 4, 3, image_size=32, width=7)
