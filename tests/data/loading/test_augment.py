import re

import pytest
import torch
from monai import transforms
from torch import Tensor

from deconfound.config import AUGMENTATIONS, TrainingOptions, validated
from deconfound.data.loading import augmentation
from deconfound.data.loading.augmentation import SIGMAS, augmented, dihedral, random_turns
from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
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


def batch_of(image: Tensor) -> Batch:
    rows = torch.arange(len(image))
    return Batch(image, rows, rows + 1, rows + 2)


def changed(image: Tensor, names: str, seed: int = 0, step: int = 0) -> Tensor:
    return augmented(batch_of(image), names, seed, step).image


@pytest.mark.parametrize("names", [*AUGMENTATIONS, " ".join(AUGMENTATIONS)])
def test_augmentation_is_a_pure_function_of_seed_and_step(names: str) -> None:
    batch = batch_of(torch.rand(12, 2, 16, 16))
    first, again = (augmented(batch, names, 3, 5) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, batch.image)
    for seed, step in ((4, 5), (3, 6)):
        assert not torch.equal(first.image, augmented(batch, names, seed, step).image)
    assert torch.equal(first.label, batch.label)
    assert torch.equal(first.environment, batch.environment)
    assert torch.equal(first.row, batch.row)
    assert augmented(batch, "none", 3, 5).image is batch.image


@pytest.mark.parametrize("names", [*AUGMENTATIONS, " ".join(AUGMENTATIONS)])
def test_processes_that_share_a_batch_change_each_image_as_one_process_does(names: str) -> None:
    whole = batch_of(torch.rand(11, 2, 16, 16))
    expected = augmented(whole, names, 1, 2).image
    for rank in range(3):
        own = slice(rank, None, 3)
        part = Batch(whole.image[own], whole.label[own], whole.environment[own], whole.row[own])
        found = augmented(part, names, 1, 2, rank, 3).image
        torch.testing.assert_close(found, expected[own], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_amounts_are_relative_to_the_image(name: str) -> None:
    image = torch.rand(8, 2, 16, 16) - 0.3
    torch.testing.assert_close(changed(100 * image, name), 100 * changed(image, name))
    flat = changed(torch.full((8, 2, 16, 16), 0.7), name)
    assert torch.isfinite(flat).all()
    if name != "intensity":
        torch.testing.assert_close(flat, torch.full_like(flat, 0.7))


def test_a_cropped_image_is_a_window_of_the_mirrored_one() -> None:
    image = torch.rand(40, 2, 16, 16)
    out = changed(image, "crop")
    pad = transforms.SpatialPad((20, 20), mode="reflect")
    found = []
    for before, after in zip(image, out, strict=True):
        padded = torch.as_tensor(pad(before))
        places = [(y, x) for y in range(5) for x in range(5)]
        (place,) = [(y, x) for y, x in places
                    if torch.equal(padded[:, y : y + 16, x : x + 16], after)]  # fmt: skip
        found.append(place)
    assert len(set(found)) > 12
    small = torch.rand(2, 1, 7, 7)
    assert torch.equal(changed(small, "crop"), small)


def test_intensity_is_a_gain_and_an_offset_of_each_channel() -> None:
    image = torch.rand(30, 3, 12, 12, dtype=torch.float64)
    out = changed(image, "intensity")
    gains, offsets = [], []
    for before, after in zip(image.flatten(0, 1), out.flatten(0, 1), strict=True):
        gain = float((after.max() - after.min()) / (before.max() - before.min()))
        scaled = transforms.ScaleIntensity(None, None, factor=gain - 1)(before[None])[0]
        offset = float((after - scaled).mean() / before.std(correction=0))
        shifted = transforms.StdShiftIntensity(offset)(before[None])[0] - before
        torch.testing.assert_close(after, torch.as_tensor(scaled + shifted), rtol=0, atol=1e-6)
        gains.append(gain)
        offsets.append(offset)
    assert 0.8 <= min(gains) < 0.85 < 1.15 < max(gains) <= 1.2
    assert -0.2 <= min(offsets) < -0.15 < 0.15 < max(offsets) <= 0.2


def test_a_blurred_image_is_what_monai_makes_of_it() -> None:
    image = torch.rand(60, 2, 32, 32)
    out = changed(image, "blur")
    inside = slice(7, -7)
    taken = []
    for before, after in zip(image, out, strict=True):
        if torch.equal(before, after):
            taken.append(0.0)
            continue
        distance = {}
        for sigma in SIGMAS:
            smooth = torch.as_tensor(transforms.GaussianSmooth(sigma)(before))
            difference = (smooth - after)[:, inside, inside]
            distance[sigma] = float(difference.abs().max())
        sigma = min(distance, key=distance.__getitem__)
        assert distance[sigma] < 1e-4
        taken.append(sigma)
    assert 20 < taken.count(0.0) < 40
    assert set(taken) == {0.0, *SIGMAS}


def test_noise_differs_from_image_to_image_and_is_a_share_of_the_channel() -> None:
    image = torch.rand(50, 2, 32, 32) * torch.tensor([1.0, 10.0]).view(2, 1, 1)
    added = changed(image, "noise") - image
    share = added.std(dim=(2, 3)) / image.std(dim=(2, 3))
    assert (share < 0.11).all()
    torch.testing.assert_close(share[:, 0], share[:, 1], rtol=0.15, atol=0.001)
    assert share[:, 0].min() < 0.02 < 0.08 < share[:, 0].max()
    assert float((added / image.std(dim=(2, 3), keepdim=True)).mean().abs()) < 0.002


def test_style_is_gain_and_gamma_then_bleed_blur_and_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("STYLE_BLEED", "STYLE_NOISE"):
        monkeypatch.setattr(augmentation, name, 0.0)
    monkeypatch.setattr(augmentation, "_smoothed", lambda image, _: image)
    image = torch.rand(40, 2, 16, 16) + 3
    gammas = []
    for before, after in zip(
        image.flatten(0, 1), changed(image, "style").flatten(0, 1), strict=True
    ):
        gain = float((after.max() - after.min()) / (before.max() - before.min()))
        signal = (before - before.min()) / (before.max() - before.min())
        middle = (signal - 0.5).abs().argmin()
        changed_to = (after.flatten()[middle] - after.min()) / (after.max() - after.min())
        gamma = float(changed_to.log() / signal.flatten()[middle].log())
        contrast = transforms.AdjustContrast(gamma)(before[None])[0] - before.min()
        torch.testing.assert_close(
            after - after.min(), torch.as_tensor(gain * contrast), rtol=0, atol=1e-3
        )
        assert 1 / 1.5 - 1e-3 <= gain <= 1.5 + 1e-3
        gammas.append(gamma)
    assert 1 / 1.5 - 1e-2 <= min(gammas) < 0.75 < 1.3 < max(gammas) <= 1.5 + 1e-2
    monkeypatch.setattr(augmentation, "STYLE_BLEED", 0.15)
    first = torch.stack([torch.rand(16, 16), torch.zeros(16, 16)])[None]
    bled = changed(first, "style")[0, 1]
    assert 0 < float(bled.max()) < 0.15 * 1.5 + 1e-6


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("none", "none"),
        ("dihedral", "dihedral"),
        ("noise dihedral", "dihedral noise"),
        (["blur", "crop", "blur"], "crop blur"),
        (("none",), "none"),
    ],
)
def test_names_are_joined_in_the_order_in_which_they_are_applied(given: object, taken: str) -> None:
    options = TrainingOptions.model_validate({"augment": given})
    assert options.augment == options.model_dump(mode="json")["augment"] == taken


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dihedrel", "unknown augmentation 'dihedrel'; did you mean 'dihedral'?"),
        ("none crop", "none goes with no other augmentation"),
        ([], "none goes with no other augmentation"),
        (3, "should be a valid string"),
    ],
)
def test_names_that_are_no_augmentation_are_refused(given: object, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        validated(TrainingOptions, {"augment": given}, "run.yaml")
