"""Random streams derived from (seed, purpose), so that no two parts ever share one."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Purpose = str | int


def derived_seed(seed: int, *purpose: Purpose) -> int:
    """A 63-bit seed that depends on `seed` and on every word of `purpose`, and on nothing else."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_stream(seed: int, *purpose: Purpose) -> np.random.Generator:
    """A NumPy generator for one purpose, e.g. `numpy_stream(seed, "split")`."""
    return np.random.default_rng(derived_seed(seed, *purpose))


def torch_stream(seed: int, *purpose: Purpose) -> "torch.Generator":
    """A PyTorch CPU generator for one purpose, e.g. `torch_stream(seed, "augment", step)`."""
    import torch  # takes seconds, which metrics do without

    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
