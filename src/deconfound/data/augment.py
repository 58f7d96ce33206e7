"""Augmentations that a cell image is invariant to."""

import torch
from torch import Tensor


def dihedral(image: Tensor, generator: torch.Generator) -> Tensor:
    """Turn every image of (B, C, H, W) by one of the eight flips and quarter turns of a square.

    Images that are not square get flips and half turns only. `generator` lives on the CPU.
    """
    square = image.shape[-1] == image.shape[-2]
    choice = torch.randint(8 if square else 4, (len(image),), generator=generator)
    out = torch.empty_like(image)
    for turn in sorted(set(choice.tolist())):
        chosen = (choice == turn).nonzero().squeeze(1).to(image.device)
        part = image[chosen]
        if turn & 1:
            part = part.flip(-1)
        if turn & 2:
            part = part.flip(-2)
        if turn & 4:
            part = part.transpose(-1, -2)
        out[chosen] = part
    return out
