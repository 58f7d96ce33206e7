"""Styles of sets, against the transformation that was planted between two sets."""

import torch
from torch import Tensor

from deconfound.nets.ist import gram
from deconfound.nets.set_style import RunningMean, SetStyles

CHANNELS, SIDE = 2, 16


def smooth(image: Tensor) -> Tensor:
    """Each pixel averaged with its neighbours."""
    return torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)


def two_sets() -> tuple[Tensor, Tensor]:
    """The same 200 images in two environments: another gain and gamma, a leak, and a blur."""
    torch.manual_seed(0)
    clean = smooth(torch.rand(200, CHANNELS, SIDE, SIDE).pow(3))
    other = 2.0 * clean.pow(1.3) + 0.1
    other = torch.stack([other[:, 0] + 0.3 * other[:, 1], other[:, 1]], dim=1)
    return clean, smooth(other)


def build() -> SetStyles:
    sets = SetStyles(CHANNELS, (3,), 2)
    clean, other = two_sets()
    for image in (clean, other):
        tones = sets.parts(sets(image, [image[:, :1].expand(-1, 3, -1, -1)])).tones
        sets.count_tones(tones)
    return sets


def style(sets: SetStyles, image: Tensor) -> Tensor:
    found: Tensor = sets(image, [image[:, :1].expand(-1, 3, -1, -1)])
    return found


def test_a_set_is_brought_to_another() -> None:
    """In pixels the images come nearer to what they are there than their tones alone bring them."""
    sets = build()
    clean, other = two_sets()
    own, there = style(sets, clean), style(sets, other)
    target, source = (one.mean(dim=0).expand_as(one) for one in (there, own))
    found, _ = sets.transfer(clean, target, own, source)
    tones, _ = sets.toned(clean, target)
    left, brought, toned = (float((one - other).abs().mean()) for one in (clean, found, tones))
    assert brought < 0.5 * left
    assert brought < 0.7 * toned


def test_a_set_in_its_own_style_stays() -> None:
    sets = build()
    clean, _ = two_sets()
    own = style(sets, clean)
    source = own.mean(dim=0).expand_as(own)
    found, code = sets.transfer(clean, source, own, source)
    torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(code, sets.parts(own).code, rtol=1e-4, atol=1e-5)


def test_an_unknown_source_takes_the_tones_of_the_style_alone() -> None:
    sets = build()
    clean, other = two_sets()
    own, target = style(sets, clean), style(sets, other).mean(dim=0).expand(200, -1)
    source = own.mean(dim=0).expand_as(own).clone()
    source[:100] = torch.nan
    found, _ = sets.transfer(clean, target, own, source)
    whole, _ = sets.transfer(clean, target, own, own.mean(dim=0).expand_as(own))
    torch.testing.assert_close(found[100:], whole[100:])
    reached = sets.parts(style(sets, found[:100])).tones
    torch.testing.assert_close(reached, sets.parts(target[:100]).tones, rtol=0.05, atol=0.02)


def test_running_means_are_means_whatever_the_batches() -> None:
    torch.manual_seed(0)
    value, environment = torch.randn(50, 2, 3), torch.randint(-1, 3, (50,))
    for sizes in ([50], [20, 30], [1] * 50):
        mean = RunningMean(4, (2, 3))
        for some, of in zip(value.split(sizes), environment.split(sizes), strict=True):
            mean.add(of, some)
        for one in range(3):
            torch.testing.assert_close(mean.mean[one], value[environment == one].mean(dim=0))
        assert torch.equal(mean.count[:3], torch.bincount(environment[environment >= 0]).float())
    otherwise = torch.full((3, 2, 3), 7.0)
    found = mean.of(torch.tensor([1, 3, -1]), otherwise)
    assert torch.equal(found[0], mean.mean[1])
    assert torch.equal(found[1:], otherwise[1:])


def test_gram_matrices_of_an_environment_are_means() -> None:
    torch.manual_seed(0)
    sets = SetStyles(CHANNELS, (3,), 2)
    tap, environment = torch.randn(6, 3, 4, 4), torch.tensor([0, 0, 0, 1, -1, -1])
    sets.count(environment, torch.zeros(6, sets.styles.mean.shape[1]), [gram(tap)])
    (found,) = sets.mean_grams(torch.tensor([0, 1, -1]), [tap[3:]])
    torch.testing.assert_close(found[0], gram(tap[:3]).mean(dim=0))
    torch.testing.assert_close(found[1:], gram(tap[[3, 5]]))
