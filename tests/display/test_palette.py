"""The colours of groups: told apart by every eye, and seen on white and on dark paper."""

import numpy as np
import numpy.typing as npt
import pytest

from deconfound.display.palette import FEW, MANY, OTHER, colours

# Machado et al. 2009, table 1, severity 1; rows are linear red, green and blue.
EYES = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                     [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                       [-0.011820, 0.042940, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                      [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(palette: tuple[str, ...]) -> npt.NDArray[np.float64]:
    srgb = np.array([[int(one[i : i + 2], 16) / 255 for i in (1, 3, 5)] for one in palette])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def oklab(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ottosson 2020."""
    cones = np.cbrt(
        np.clip(rgb, 0, 1)
        @ np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                    [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]]).T
    )  # fmt: skip
    return cones @ np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                             [1.9779984951, -2.4285922050, 0.4505937099],
                             [0.0259040371, 0.7827717662, -0.8086757660]]).T  # fmt: skip


@pytest.mark.parametrize("eye", EYES)
def test_twenty_colours_are_told_apart(eye: str) -> None:
    seen = oklab(linear(MANY) @ np.array(EYES[eye]).T)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(20, 1)]
    assert distance.min() > (0.10 if eye == "all cones" else 0.077)


def test_every_colour_is_seen_on_white_and_on_dark_paper() -> None:
    luminance = linear((*FEW, *MANY, OTHER)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (1.05 / (luminance + 0.05)).min() > 1.4
    dark = linear(("#14181c",)) @ np.array([0.2126, 0.7152, 0.0722])
    assert ((luminance + 0.05) / (dark + 0.05)).min() > 1.4


def test_groups_beyond_the_last_colour_are_grey() -> None:
    assert colours(3) == FEW[:3]
    assert colours(20) == MANY
    assert colours(22) == (*MANY, OTHER, OTHER)
