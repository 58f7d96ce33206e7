import pytest
import torch
from torch import Tensor

from deconfound.data.loading.batch import dihedral, random_turns
from deconfound.runtime.seeds import torch_stream


def turned(image: Tensor, seed: int) -> Tensor:
    return dihedral(image, random_turns(image, len(image), torch_stream(seed, "augment")))


def symmetries(image: Tensor) -> list[Tensor]:
    """The eight of one image (C, H, W), written as turns and mirror images."""
    turned = [torch.rot90(image, quarter, (-2, -1)) for quarter in range(4)]
    return turned + [one.flip(-1) for one in turned]


def test_every_symmetry_of_the_square_occurs_and_nothing_else() -> None:
    image = torch.arange(2 * 3 * 3.0).reshape(1, 2, 3, 3)
    out = turned(image.expand(400, -1, -1, -1), 0)
    known = symmetries(image[0])
    found = [next(k for k, one in enumerate(known) if torch.equal(one, row)) for row in out]
    counts = torch.bincount(torch.tensor(found), minlength=8)
    assert (counts > 20).all()


def test_images_that_are_not_square_are_flipped_and_turned_by_half() -> None:
    image = torch.arange(2 * 3.0).reshape(1, 1, 2, 3)
    out = turned(image.expand(200, -1, -1, -1), 0)
    known = [image[0], image[0].flip(-1), image[0].flip(-2), image[0].flip(-1, -2)]
    assert {next(k for k, one in enumerate(known) if torch.equal(one, row)) for row in out} == {
        0, 1, 2, 3,
    }  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_image_stays_in_its_row_whatever_the_memory_layout(
    layout: torch.memory_format,
) -> None:
    image = torch.rand(32, 3, 5, 5).contiguous(memory_format=layout)
    out = turned(image, 1)
    torch.testing.assert_close(out.sum(dim=(2, 3)), image.sum(dim=(2, 3)))
    assert not torch.equal(out, image)


def test_the_same_stream_gives_the_same_turns() -> None:
    image = torch.rand(16, 1, 4, 4)
    first, again, other = (turned(image, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
