import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from deconfound.errors import UserError
from deconfound.nets.ist import (
    StyledConvolution,
    TappedName,
    UNetGenerator,
    adaptive_instance_norm,
    build_tapped_encoder,
    channel_statistics,
    code_layers,
    style_code,
)


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "sides", "widths"),
    [
        ("small", [32, 16, 8], [32, 64, 128]),
        ("resnet18", [32, 16, 8, 4, 2], [64, 64, 128, 256, 512]),
    ],
)
def test_taps_lie_where_they_should(name: TappedName, sides: list[int], widths: list[int]) -> None:
    encoder = build_tapped_encoder(name, 2, 64).to("meta")
    taps, pooled = encoder(images(3, 64).to("meta"))
    assert [tap.shape for tap in taps] == [
        (3, width, side, side) for width, side in zip(widths, sides, strict=True)
    ]
    assert list(encoder.widths) == widths
    assert pooled.shape == (3, encoder.features) == (3, widths[-1])


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_taps_are_what_the_norms_see(name: TappedName) -> None:
    """Every tap is the input of an instance norm: no norm has blinded it."""
    torch.manual_seed(0)
    encoder = build_tapped_encoder(name, 2, 33)
    seen: list[torch.Tensor] = []
    for layer in encoder.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    taps, _ = encoder(images(2, 33))
    for tap in taps:
        assert any(tap.shape == one.shape and torch.equal(tap, one) for one in seen)


def test_resnet18_is_that_of_the_other_methods() -> None:
    """Its last map, by the network's own forward pass; instance norm in all of it."""
    torch.manual_seed(0)
    encoder = build_tapped_encoder("resnet18", 2, 33).train()
    image = images(2, 33)
    network = encoder.get_submodule("network")
    torch.testing.assert_close(encoder(image).pooled, network(image).flatten(1))
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in encoder.modules()) == 20
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules())


@pytest.mark.parametrize(("name", "least"), [("small", 9), ("resnet18", 33)])
def test_single_pixels_are_refused_by_size(name: TappedName, least: int) -> None:
    """B3.4: instance norm cannot take a map of one pixel."""
    build_tapped_encoder(name, 2, least)(images(1, least))
    message = rf"encoder {name}.*{least - 1} x {least - 1} px.*expected {least} x {least}"
    with pytest.raises(UserError, match=message):
        build_tapped_encoder(name, 2, least - 1)


def test_a_pure_gain_shows_in_the_code_and_not_behind_the_norm() -> None:
    """B3.1. Held-out pairs are told apart by a line through the code, and not through the pool."""
    torch.manual_seed(0)
    encoder = build_tapped_encoder("small", 2, 24)
    image = images(200, 24) + 0.5
    both = torch.cat([image, 1.3 * image])
    with torch.no_grad():
        taps, pooled = encoder(both)
    gained = np.repeat([0, 1], 200)
    trained = np.arange(400) % 200 < 100

    def accuracy(code: torch.Tensor) -> float:
        probe = LogisticRegression(C=1e3, max_iter=2000)
        probe.fit(code[trained].numpy(), gained[trained])
        return float(probe.score(code[~trained].numpy(), gained[~trained]))

    first_tap = torch.cat(channel_statistics(taps[0]), dim=1)
    assert accuracy(first_tap) > 0.95
    assert accuracy(style_code(both, taps)) > 0.95
    torch.testing.assert_close(pooled[:200], pooled[200:], rtol=1e-2, atol=1e-3)


def test_the_code_is_mean_and_sd_layer_by_layer() -> None:
    image = images(3, 8)
    tap = torch.randn(3, 5, 4, 4)
    code = style_code(image, [tap])
    assert code.shape == (3, 2 * (2 + 5))
    flat = image.flatten(2)
    expected = [flat.mean(2), flat.std(2, correction=0)]
    expected += [tap.flatten(2).mean(2), tap.flatten(2).std(2, correction=0)]
    torch.testing.assert_close(code, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    (mean, sd), *_ = code_layers(code, [2, 5])
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(sd, expected[1], rtol=1e-4, atol=1e-5)


def test_adain_takes_the_mean_and_sd_of_the_style() -> None:
    map, style = torch.randn(3, 4, 6, 6) * 7 + 2, torch.randn(3, 4, 9, 9) * 0.3 - 1
    mean, sd = channel_statistics(adaptive_instance_norm(map, *channel_statistics(style)))
    expected_mean, expected_sd = channel_statistics(style)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(sd, expected_sd, rtol=1e-3, atol=1e-4)


def test_the_skips_statistics_do_not_pass_by_adain() -> None:
    """B3.2: every direct block leaves the code's mean and sd, whatever the content image's are."""
    torch.manual_seed(0)
    encoder = build_tapped_encoder("small", 2, 24)
    content, style = 5 * images(3, 24) + 3, images(3, 24, seed=1)
    with torch.no_grad():
        content_taps, style_taps = encoder(content).taps, encoder(style).taps
    generator = UNetGenerator(2, encoder.widths, "direct", "linear")
    drawn: list[torch.Tensor] = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, __, map: drawn.append(map))
    with torch.no_grad():
        generator(content, content_taps, style_code(style, style_taps))
    *maps, finest = drawn
    for map, tap in zip(maps, style_taps[::-1], strict=True):
        mean, sd = channel_statistics(map)
        expected_mean, expected_sd = channel_statistics(tap)
        torch.testing.assert_close(mean, expected_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sd, expected_sd, rtol=1e-2, atol=1e-2)
    own = channel_statistics(content_taps[0])[1]
    assert (own > 2 * channel_statistics(style_taps[0])[1]).all()
    # The block at full size is affine: its statistics depend on the style image alone.
    with torch.no_grad():
        drawn.clear()
        other = -2 * images(3, 24, seed=2) + 1
        generator(other, encoder(other).taps, style_code(style, style_taps))
    for first, second in zip(
        channel_statistics(finest), channel_statistics(drawn[-1]), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "size", "adain", "output"),
    [
        ("small", 24, "direct", "matched"),
        ("small", 13, "affine", "matched"),
        ("small", 9, "direct", "linear"),
        ("small", 24, "affine", "residual"),
        ("resnet18", 33, "direct", "linear"),
    ],
)
def test_any_size_is_drawn_and_every_weight_learns(
    name: TappedName, size: int, adain: str, output: str
) -> None:
    torch.manual_seed(0)
    encoder = build_tapped_encoder(name, 2, size)
    generator = UNetGenerator(2, encoder.widths, adain, output)  # type: ignore[arg-type]
    nn.init.normal_(generator.to_image.weight)
    content, style = images(2, size), images(2, size, seed=1)
    with torch.no_grad():
        taps, code = encoder(content).taps, style_code(style, encoder(style).taps)
    drawn = generator(content, taps, code)
    assert drawn.shape == content.shape
    assert drawn.dtype == torch.float32
    (drawn * torch.randn(drawn.shape)).sum().backward()
    for path, parameter in generator.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.abs().sum() > 0, path


@pytest.mark.parametrize("output", ["matched", "residual"])
def test_an_image_in_its_own_style_begins_as_itself(output: str) -> None:
    torch.manual_seed(0)
    encoder = build_tapped_encoder("small", 2, 24)
    generator = UNetGenerator(2, encoder.widths, output=output)  # type: ignore[arg-type]
    content, style = images(3, 24), 2 * images(3, 24, seed=1) + 1
    with torch.no_grad():
        taps = encoder(content).taps
        own = generator(content, taps, style_code(content, taps))
        other = generator(content, taps, style_code(style, encoder(style).taps))
    torch.testing.assert_close(own, content, rtol=1e-5, atol=1e-5)
    if output == "residual":
        assert torch.equal(other, content)
        return
    for found, expected in zip(channel_statistics(other), channel_statistics(style), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_affine_adain_scales_by_one_plus_gamma() -> None:
    torch.manual_seed(0)
    block = StyledConvolution(3, 4, 5, "affine")
    mean, sd = torch.randn(2, 5), torch.rand(2, 5)
    assert block.affine is not None
    gamma, beta = (torch.cat([mean, sd], 1) @ block.affine.weight.T + block.affine.bias).split(4, 1)
    with torch.no_grad():
        drawn = block(torch.randn(2, 3, 8, 8), mean, sd)
    found_mean, found_sd = channel_statistics(drawn)
    torch.testing.assert_close(found_mean, beta, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_sd, (1 + gamma).abs(), rtol=1e-3, atol=1e-3)
