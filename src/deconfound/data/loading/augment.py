"""Augmentations that a cell image is invariant to."""

import torch
from torch import Tensor


def random_turns(image: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 on the CPU, each one of the eight symmetries of a square, for `dihedral`.

    Images (B, C, H, W) that are not square get flips and half turns only. `generator` lives on
    the CPU.
    """
    square = image.shape[-1] == image.shape[-2]
    return torch.randint(8 if square else 4, (count,), generator=generator)


def dihedral(image: Tensor, turns: Tensor) -> Tensor:
    """Flip and turn every image of (B, C, H, W) as `turns` (B,) of `random_turns` say."""
    out = torch.empty_like(image)
    for turn in sorted(set(turns.tolist())):
        chosen = (turns == turn).nonzero().squeeze(1).to(image.device)
        part = image[chosen]
        if turn & 1:
            part = part.flip(-1)
        if turn & 2:
            part = part.flip(-2)
        if turn & 4:
            part = part.transpose(-1, -2)
        out[chosen] = part
    return out
