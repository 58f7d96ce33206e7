"""The head between a representation and a contrastive block."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Projection(nn.Module):
    """Two-layer perceptron onto the unit sphere: Linear(r, r) - GELU - Linear(r, z) - normalise.

    representation (B, representation_size) -> block (B, block_size), each row of length 1, in
    float32 also under a lower-precision autocast (float64 in, float64 out).
    Makino et al., SCBD, A.1.1.
    """

    def __init__(self, representation_size: int, block_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(representation_size, representation_size),
            nn.GELU(),
            nn.Linear(representation_size, block_size),
        )

    def forward(self, representation: Tensor) -> Tensor:
        block: Tensor = self.layers(representation)
        return functional.normalize(block.to(torch.promote_types(block.dtype, torch.float32)))
