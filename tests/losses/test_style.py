import torch
from torch import Tensor

from deconfound.losses.generated import (
    class_matching,
    content_distance,
    gram,
    pixel_distance,
    style_loss,
)


def maps(seed: int, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, width, side, side, generator=generator, dtype=torch.float64)
        for width, side in ((2, 5), (4, 3))
    ]


def test_gram_is_symmetric_and_by_hand() -> None:
    (map, _) = maps(0)
    found = gram(map)
    torch.testing.assert_close(found, found.mT)
    for image in range(3):
        for i in range(2):
            for j in range(2):
                total = sum(
                    float(map[image, i, y, x] * map[image, j, y, x])
                    for y in range(5)
                    for x in range(5)
                )
                torch.testing.assert_close(found[image, i, j].item(), total / (2 * 5 * 5))


def test_gram_does_not_grow_with_the_map() -> None:
    """Twice the pixels: the same matrix. Twice the channels: the same trace."""
    (map, _) = maps(0)
    torch.testing.assert_close(gram(torch.cat([map, map], dim=3)), gram(map))
    doubled = gram(torch.cat([map, map], dim=1))
    trace = gram(map).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(doubled.diagonal(dim1=1, dim2=2).sum(1), trace)


def test_the_style_loss_is_written_out() -> None:
    drawn, style = maps(0), maps(1)
    expected = 0.0
    for image in range(3):
        for one, other in zip(drawn, style, strict=True):
            a, b = one[image].flatten(1), other[image].flatten(1)
            expected += float((a @ a.T - b @ b.T).abs().sum()) / a.numel() / 2 / 3
    torch.testing.assert_close(style_loss(drawn, style).item(), expected)


def test_every_loss_has_the_gradient_of_finite_differences() -> None:
    drawn, other = [map.requires_grad_() for map in maps(0)], maps(1)
    assert torch.autograd.gradcheck(lambda *x: style_loss(x, other), drawn)
    assert torch.autograd.gradcheck(lambda *x: content_distance(x, other), drawn)
    assert torch.autograd.gradcheck(lambda x: pixel_distance(x, other[0]), drawn[0])
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: class_matching(x, target), logits)


def test_the_content_distance_ignores_gain_and_offset_of_a_channel() -> None:
    content = maps(0)
    moved = [7 * map - 3 for map in content]
    assert content_distance(moved, content).item() < 1e-4
    assert pixel_distance(moved[0], content[0]).item() > 1
    assert content_distance(maps(1), content).item() > 0.1


def test_pixel_distance_is_the_mean_absolute_difference() -> None:
    one, other = maps(0)[0], maps(1)[0]
    torch.testing.assert_close(pixel_distance(one, other), (one - other).abs().mean())


def test_class_matching_follows_the_prediction_and_is_least_there() -> None:
    drawn = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], requires_grad=True)
    content = torch.tensor([[0.3, 1.0, -2.0], [1.0, 0.0, 0.0]], requires_grad=True)
    target = content.softmax(1).detach()
    expected = -(target * drawn.log_softmax(1)).sum(1).mean()
    found = class_matching(drawn, content)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert content.grad is None
    same = content.detach().clone().requires_grad_()
    class_matching(same, content).backward()
    assert same.grad is not None
    assert float(same.grad.abs().max()) < 1e-6
