"""Power and cross-spectra of sets of images by spatial frequency, and maps between two sets.

Blur, noise and light that leaks between channels change how much of each spatial frequency an
image holds, and how its channels go together there. The map of a band is the optimal transport
between two centred Gaussians: Olkin and Pukelsheim, The distance between two random vectors with
given dispersion matrices, 1982. Signals are filtered so by Gnassounou et al., Convolutional Monge
Mapping Normalization, 2023.
"""

import functools

import torch
from torch import Tensor

EDGES = (1.5, 2.5, 3.5, 5.0, 6.5, 8.0, 10.0, 12.5, 15.0)
"""Upper ends of the bands but the last, in cycles over 32 pixels."""
BANDS = len(EDGES) + 1
LEAST = 1e-6
"""Least eigenvalue of a band, relative to the largest of both sets; less is rounding."""


@functools.cache
def _bands(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Of the coefficients of `rfft2`, (height, width // 2 + 1): their band, and how often each
    counts in the whole spectrum; the mean over pixels is in no band, −1.
    """
    vertical = torch.fft.fftfreq(height)[:, None]
    horizontal = torch.fft.rfftfreq(width)[None]
    radius = 32 * (vertical.square() + horizontal.square()).sqrt()
    band = torch.bucketize(radius, torch.tensor(EDGES))
    band[0, 0] = -1
    often = torch.full((width // 2 + 1,), 2.0)
    often[0] = 1.0
    if width % 2 == 0:
        often[-1] = 1.0
    return band, often.expand(height, -1).contiguous()


def cross_spectra(image: Tensor) -> Tensor:
    """Mean power of each band and pair of channels: (B, C, H, W) float32 to (B, BANDS, C, C).

    Symmetric and positive semidefinite: the real part of the cross-spectral density, averaged over
    the coefficients of the band; 0 where a band is beyond the resolution of the image.
    """
    channels = image.shape[1]
    band, often = (one.to(image.device) for one in _bands(*image.shape[2:]))
    spectrum = torch.fft.rfft2(image, norm="ortho")
    counted = (band >= 0).flatten()
    bands, weight = band.flatten()[counted], often.flatten()[counted]
    flat = spectrum.flatten(2)[:, :, counted]
    total = image.new_zeros(len(image), BANDS, channels, channels)
    for first in range(channels):
        for second in range(first, channels):
            power = (flat[:, first] * flat[:, second].conj()).real * weight
            own = image.new_zeros(len(image), BANDS).index_add_(1, bands, power)
            total[:, :, first, second] = total[:, :, second, first] = own
    count = weight.new_zeros(BANDS).index_add_(0, bands, weight).clamp(min=1)
    return total / count[:, None, None]


def transport(source: Tensor, target: Tensor) -> Tensor:
    """The map T, symmetric and positive, for which T · source · T is `target`; (..., C, C) each.

    Eigenvalues below a millionth of the largest of both count as that. A band in which one holds
    less than a millionth of the other's power is left alone: T is the identity.
    """
    wide = source.double(), target.double()
    power = [one.diagonal(dim1=-2, dim2=-1).sum(dim=-1) for one in wide]
    empty = (torch.minimum(*power) <= LEAST * torch.maximum(*power))[..., None, None]
    one = torch.eye(source.shape[-1], dtype=torch.float64, device=source.device)
    before, after = (torch.where(empty, one, given) for given in wide)
    least = LEAST * torch.maximum(*(torch.where(empty[..., 0, 0], 1.0, some) for some in power))
    root, inverse = _power(before, 0.5, least), _power(before, -0.5, least)
    found = inverse @ _power(root @ after @ root, 0.5, least.square()) @ inverse
    return torch.where(empty, one, found).to(source.dtype)


def _power(matrix: Tensor, exponent: float, least: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp(min=least[..., None])
    found: Tensor = (vectors * values.pow(exponent)[..., None, :]) @ vectors.mT
    return found


def filtered(image: Tensor, maps: Tensor) -> Tensor:
    """Images (B, C, H, W) float32, each band's channels multiplied by the image's map of the band.

    `maps` (B, BANDS, C, C). Means over pixels stay.
    """
    band, _ = _bands(*image.shape[2:])
    band = band.to(image.device)
    spectrum = torch.fft.rfft2(image, norm="ortho")
    place, inside = band.clamp(min=0), band >= 0
    found = torch.zeros_like(spectrum)
    for own in range(image.shape[1]):
        for other in range(image.shape[1]):
            found[:, own] += maps[:, place, own, other] * spectrum[:, other]
    found = torch.where(inside, found, spectrum)
    back: Tensor = torch.fft.irfft2(found, s=image.shape[2:], norm="ortho")
    return back
