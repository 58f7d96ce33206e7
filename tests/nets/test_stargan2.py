import pytest
import torch
from torch import nn

from deconfound.errors import UserError
from deconfound.nets.stargan2 import (
    Discriminator,
    Generator,
    MappingNetwork,
    StyleEncoder,
    generator_halvings,
)

SIZES = (16, 24, 28, 32, 48, 50, 64, 96, 100, 128)


@pytest.mark.parametrize("size", SIZES)
def test_shapes(size: int) -> None:
    channels = size % 5 + 1
    with torch.device("meta"):
        image = torch.empty(2, channels, size, size)
        trunk = StyleEncoder(channels, size, 6, 3, 4, 8).trunk
        assert trunk(image).shape == (2, trunk.features) == (2, 8)
        assert Generator(channels, size, 6, 4, 8)(image, torch.empty(2, 6)).shape == image.shape


@pytest.mark.parametrize("size", [24, 50])
def test_gradients_reach_every_parameter_and_the_inputs(size: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(3, 2, size, size, requires_grad=True)
    style, latent = torch.randn(3, 6, requires_grad=True), torch.randn(3, 5)
    domain = torch.tensor([1, 0, 1])
    calls: list[tuple[nn.Module, tuple[torch.Tensor, ...], tuple[int, ...]]] = [
        (Generator(2, size, 6, 4, 8), (image, style), (3, 2, size, size)),
        (StyleEncoder(2, size, 6, 2, 4, 8), (image, domain), (3, 6)),
        (MappingNetwork(5, 6, 2, 8), (latent, domain), (3, 6)),
        (Discriminator(2, size, 2, 4, 8), (image, domain), (3,)),
    ]
    for network, inputs, shape in calls:
        value = network(*inputs)
        assert value.shape == shape
        wanted = [*network.parameters(), *(i for i in inputs if i.requires_grad)]
        gradients = torch.autograd.grad(value.square().sum(), wanted)
        scale = max(float(gradient.abs().max()) for gradient in gradients)
        for gradient in gradients:  # more than the rounding of what a norm takes away
            assert float(gradient.abs().max()) > 1e-5 * scale


def test_halvings() -> None:
    found = {size: generator_halvings(size) for size in (16, 24, 32, 48, 64, 96, 128, 256)}
    assert found == {16: 1, 24: 1, 32: 1, 48: 1, 64: 2, 96: 2, 128: 3, 256: 4}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (15, "images of 15 px; expected 16 or more"),
        (1, "images of 1 px; expected 16 or more"),
        (33, "images of 33 px; expected a multiple of 2 px at this size, ingest with --size 32"),
        (66, "expected a multiple of 4 px at this size, ingest with --size 64 or 68"),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Generator(2, size, 6, 4, 8)


def test_a_trunk_of_small_images_is_refused() -> None:
    with pytest.raises(UserError, match="images of 8 px; expected 16 or more"):
        Discriminator(2, 8, 3, 4, 8)


def test_the_papers_widths_give_the_papers_layers() -> None:
    """256 px: 64 channels, 512 at most; 4 blocks that halve in the generator, 6 in the trunk."""
    with torch.device("meta"):
        generator = Generator(3, 256, 64, width=2**14 // 256, max_width=512)
        trunk = Discriminator(3, 256, 2, width=2**14 // 256, max_width=512).trunk
        mapping = MappingNetwork(16, 64, 2, 512)
    widths = [module.out_channels for module in generator.encode if hasattr(module, "out_channels")]
    assert widths == [64]
    assert [block.second.out_channels for block in generator.encode[1:]] == [
        128, 256, 512, 512, 512, 512,
    ]  # fmt: skip
    assert [block.second.out_channels for block in generator.decode] == [
        512, 512, 512, 256, 128, 64,
    ]  # fmt: skip
    last = [module for module in trunk if isinstance(module, nn.Conv2d)][-1]
    assert last.kernel_size == (4, 4)
    assert last.weight.shape[:2] == (512, 512)
    assert len(trunk) == 1 + 6 + 4
    assert [layer.weight.shape for layer in mapping.shared if isinstance(layer, nn.Linear)] == [
        (512, 16), (512, 512), (512, 512), (512, 512),
    ]  # fmt: skip
    assert [layer.weight.shape for layer in mapping.heads.layers] == [
        (2, 512, 512), (2, 512, 512), (2, 512, 512), (2, 64, 512),
    ]  # fmt: skip


def test_a_bias_would_be_undone_in_every_layer_but_the_last() -> None:
    torch.manual_seed(0)
    generator = Generator(2, 32, 6, 4, 8).double()
    image, style = torch.rand(2, 2, 32, 32).double(), torch.randn(2, 6).double()
    layers = {name: m for name, m in generator.named_modules() if isinstance(m, nn.Conv2d)}
    assert [name for name, layer in layers.items() if layer.bias is not None] == ["to_image.2"]
    wanted = generator(image, style)
    for name, layer in layers.items():
        layer.bias = nn.Parameter(torch.full((layer.out_channels,), 0.5).double())
        if name != "to_image.2":
            torch.testing.assert_close(generator(image, style), wanted)
    assert not torch.allclose(generator(image, style), wanted)


def test_adaptive_norms_have_the_moments_that_the_style_says() -> None:
    torch.manual_seed(0)
    block = Generator(2, 32, 6, 4, 8).decode[0].first_norm
    maps, style = 3 + 5 * torch.randn(2, 8, 16, 16), torch.randn(2, 6)
    scale, shift = block.scale_and_shift(style).chunk(2, dim=1)
    found = block(maps, style)
    torch.testing.assert_close(found.mean(dim=(2, 3)), shift, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        found.std(dim=(2, 3), correction=0), (1 + scale).abs(), rtol=0, atol=1e-4
    )
