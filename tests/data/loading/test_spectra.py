"""Cross-spectra and the maps between them, against their definitions."""

import numpy as np
import pytest
import torch

from deconfound.data.loading.spectra import (
    BANDS,
    EDGES,
    cross_spectra,
    filtered,
    transport,
)


def by_hand(image: torch.Tensor) -> torch.Tensor:
    """(B, BANDS, C, C) from the whole spectrum of NumPy, coefficient by coefficient."""
    values = image.double().numpy()
    spectrum = np.fft.fft2(values, norm="ortho")
    found = np.zeros((len(values), BANDS, values.shape[1], values.shape[1]))
    count = np.zeros(BANDS)
    for y, vertical in enumerate(np.fft.fftfreq(values.shape[2])):
        for x, horizontal in enumerate(np.fft.fftfreq(values.shape[3])):
            if (y, x) == (0, 0):
                continue
            band = np.searchsorted(EDGES, 32 * np.hypot(vertical, horizontal))
            one = spectrum[:, :, y, x]
            found[:, band] += (one[:, :, None] * one[:, None].conj()).real
            count[band] += 1
    return torch.from_numpy(found / np.maximum(count, 1)[:, None, None]).float()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12), (16, 7)])
def test_every_coefficient_counts_once(height: int, width: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 2, height, width)
    torch.testing.assert_close(cross_spectra(image), by_hand(image), rtol=1e-4, atol=1e-6)


def test_the_transport_takes_one_spectrum_to_the_other() -> None:
    torch.manual_seed(0)
    first, second = (torch.randn(4, 3, 8) for _ in range(2))
    source, target = first @ first.mT, second @ second.mT
    found = transport(source, target)
    torch.testing.assert_close(found @ source @ found, target, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, found.mT)
    assert bool((torch.linalg.eigvalsh(found) > 0).all())
    one = torch.eye(3).expand(4, 3, 3)
    torch.testing.assert_close(transport(source, source), one, rtol=1e-4, atol=1e-4)


def test_a_band_without_power_is_left_alone() -> None:
    power = torch.eye(2).repeat(2, 1, 1)
    power[1] = 0
    assert torch.equal(transport(power, 4 * torch.eye(2))[1], torch.eye(2))
    torch.testing.assert_close(transport(power, 4 * torch.eye(2))[0], 2 * torch.eye(2))


@pytest.mark.parametrize("size", [16, 33])
def test_filtered_sets_have_the_spectra_asked_for_and_the_means_they_had(size: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(64, 2, size, size)
    mixed = torch.stack([image[:, 0] + 0.5 * image[:, 1], 2 * image[:, 1]], dim=1)
    target = cross_spectra(mixed).mean(dim=0)
    maps = transport(cross_spectra(image).mean(dim=0), target).expand(len(image), -1, -1, -1)
    found = filtered(image, maps)
    torch.testing.assert_close(cross_spectra(found).mean(dim=0), target, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.mean(dim=(2, 3)), image.mean(dim=(2, 3)))


def test_filtering_is_done_image_by_image() -> None:
    torch.manual_seed(0)
    image = torch.rand(6, 3, 12, 12)
    root = torch.randn(6, BANDS, 3, 3)
    whole = filtered(image, root @ root.mT)
    for row in range(6):
        alone = filtered(image[row : row + 1], (root @ root.mT)[row : row + 1])
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_varies_by_rounding_is_not_made_to_vary(size: int, channels: int) -> None:
    """Images of one value; the FFT leaves rounding of it. Of two channels the other may leak in."""
    torch.manual_seed(0)
    image = torch.full((8, channels, size, size), 123.7)
    image[:, 1:] = torch.rand(8, channels - 1, size, size) * 300
    target = cross_spectra(torch.rand(8, channels, size, size) * 300).mean(dim=0)
    maps = transport(cross_spectra(image).mean(dim=0), target).expand(8, -1, -1, -1)
    found = filtered(image, maps)
    assert float(found[:, 0].std()) < (0.01 if channels == 1 else 0.05) * 87
