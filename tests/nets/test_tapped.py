"""Style codes and what becomes of them when an environment's mean style moves."""

import torch

from deconfound.nets.ist import build_tapped_encoder, relative_code, style_code

WIDTHS = (2, 3)


def codes(seed: int, rows: int = 5) -> torch.Tensor:
    """Means of any sign, deviations above 0, layer by layer."""
    stream = torch.Generator().manual_seed(seed)
    parts = []
    for width in WIDTHS:
        parts.append(torch.randn(rows, width, generator=stream))
        parts.append(torch.rand(rows, width, generator=stream) + 0.5)
    return torch.cat(parts, dim=1)


def test_an_image_that_is_its_environments_mean_gets_the_target() -> None:
    torch.testing.assert_close(relative_code(codes(0), codes(0), codes(1), WIDTHS), codes(1))


def test_an_environment_that_stays_leaves_the_style_alone() -> None:
    torch.testing.assert_close(relative_code(codes(0), codes(1), codes(1), WIDTHS), codes(0))


def test_moving_there_and_back_changes_nothing() -> None:
    there = relative_code(codes(0), codes(1), codes(2), WIDTHS)
    torch.testing.assert_close(relative_code(there, codes(2), codes(1), WIDTHS), codes(0))


def test_a_gain_and_offset_of_the_environment_are_found_in_the_first_layer() -> None:
    """x -> g x + b in all images of an environment: so is the code of each of them."""
    stream = torch.Generator().manual_seed(0)
    image = torch.rand(6, 2, 24, 24, generator=stream) * torch.rand(6, 2, 1, 1, generator=stream)
    gain, offset = torch.tensor([3.0, 0.5])[:, None, None], torch.tensor([1.0, -2.0])[:, None, None]
    before, after = style_code(image, []), style_code(gain * image + offset, [])
    means = (code.mean(dim=0, keepdim=True).expand_as(code) for code in (before, after))
    torch.testing.assert_close(relative_code(before, *means, (2,)), after, rtol=1e-3, atol=1e-3)


def test_the_widths_of_an_encoder_fit_its_codes() -> None:
    encoder = build_tapped_encoder("small", 3, 32)
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        code = style_code(image, encoder(image).taps)
    mean = code.mean(dim=0, keepdim=True).expand_as(code)
    torch.testing.assert_close(relative_code(code, mean, mean, (3, *encoder.widths)), code)
