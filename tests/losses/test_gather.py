"""Losses of a batch spread over processes against the same batch in one process.

Run as a script, this file is one process: `test_gather.py RANK DIRECTORY`. It joins a group of
three ranks and then, as one of the first two, a group of two.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from deconfound.losses import content_losses, invariance, supervised_contrastive
from deconfound.losses.gather import gather_rows, gather_with_gradient, whole_batch
from deconfound.runtime.seeds import torch_stream

ROWS = {2: [5, 9], 3: [4, 0, 526]}
CASES = [
    (reduction, include_self, temperature)
    for reduction in ("balanced", "listing", "equation")
    for include_self in (True, False)
    for temperature in (0.1, 0.01)
]


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch_stream(0, "batch", count)
    z = F.normalize(torch.randn(count, 6, dtype=torch.float64, generator=stream), dim=1)
    label = torch.randint(-1, 4, (count,), generator=stream)
    environment = torch.randint(-1, 3, (count,), generator=stream)
    return z, label, environment


def values_and_gradients(z: Tensor, label: Tensor, environment: Tensor) -> list[np.ndarray]:
    """Per case: the four losses (4,), and the gradient in z of a weighted sum of them (b, D)."""
    found = []
    for reduction, include_self, temperature in CASES:
        z = z.detach().requires_grad_()
        losses = [
            supervised_contrastive(z, label, temperature, include_self),
            invariance(z, environment, temperature, reduction, include_self),
            *content_losses(z, label, environment, temperature, reduction, include_self),
        ]
        losses_together = torch.stack(losses)
        (losses_together * torch.tensor([1.0, 2.0, -3.0, 5.0], dtype=z.dtype)).sum().backward()
        found += [losses_together.detach().numpy(), z.grad.numpy()]
    z = z.detach().requires_grad_()
    both = torch.stack(
        content_losses(z, label, environment, given="label", cross_environment_weight=3.0)
    )
    (both * torch.tensor([1.0, 2.0], dtype=z.dtype)).sum().backward()
    return [*found, both.detach().numpy(), z.grad.numpy()]


def bfloat16_gradient(z: Tensor, label: Tensor) -> np.ndarray:
    z = z.detach().bfloat16().requires_grad_()
    supervised_contrastive(z, label).backward()
    return z.grad.float().numpy()


def one_rank(rank: int, ranks: int, directory: Path) -> None:
    rendezvous = f"file://{directory}/rendezvous{ranks}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    start = sum(ROWS[ranks][:rank])
    own = slice(start, start + ROWS[ranks][rank])
    z, label, environment = (part[own] for part in batch(sum(ROWS[ranks])))
    gathered = gather_with_gradient(z.requires_grad_())
    factor = torch.arange(1.0, len(gathered) + 1, dtype=z.dtype)[:, None]
    (gathered * factor).sum().backward()
    dealt = torch.arange(sum(ROWS[ranks]))[rank::ranks]
    values = dealt.double().requires_grad_()
    whole, codes = whole_batch(values, -dealt)
    (whole * torch.arange(len(whole))).sum().backward()
    np.savez(
        directory / f"{rank}of{ranks}.npz",
        *values_and_gradients(z, label, environment),
        bfloat16=bfloat16_gradient(z, label),
        gathered=gathered.detach().numpy(),
        gathered_gradient=z.grad.numpy(),
        labels=gather_rows(label).numpy(),
        whole=torch.stack([whole.detach(), codes]).numpy(),
        whole_gradient=values.grad.numpy(),
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three processes have left what each rank of each group found."""
    directory = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(directory)], env=environment)
        for rank in range(max(ROWS))
    ]
    try:
        codes = [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * len(processes)
    return directory


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process(ranks: int, directory: Path) -> None:
    z, label, environment = batch(sum(ROWS[ranks]))
    expected = values_and_gradients(z, label, environment)
    expected_bfloat16 = bfloat16_gradient(z, label)
    start = 0
    for rank, count in enumerate(ROWS[ranks]):
        own = slice(start, start + count)
        start += count
        with np.load(directory / f"{rank}of{ranks}.npz") as found:
            for case in range(len(expected) // 2):
                losses, gradient = expected[2 * case], expected[2 * case + 1][own]
                scale = max(1.0, np.abs(expected[2 * case + 1]).max())
                np.testing.assert_allclose(found[f"arr_{2 * case}"], losses, rtol=1e-12)
                np.testing.assert_allclose(
                    found[f"arr_{2 * case + 1}"], gradient, rtol=0, atol=1e-12 * scale
                )
            np.testing.assert_allclose(
                found["bfloat16"], expected_bfloat16[own], rtol=0.01, atol=1e-7
            )
            np.testing.assert_array_equal(found["gathered"], z)
            np.testing.assert_array_equal(found["labels"], label)
            factor = np.arange(1.0, len(z) + 1)[own, None]
            np.testing.assert_array_equal(found["gathered_gradient"], np.tile(factor, 6))
            count = np.arange(len(z))
            np.testing.assert_array_equal(found["whole"], [count, -count])
            np.testing.assert_array_equal(found["whole_gradient"], count[rank::ranks])


def test_one_process_gathers_nothing() -> None:
    z = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(z) is z
    assert not gather_rows(z).requires_grad
    codes = torch.arange(3)
    assert whole_batch(z, codes)[0] is z
    assert whole_batch(z, codes)[1] is codes


if __name__ == "__main__":
    for ranks in sorted(ROWS, reverse=True):
        if int(sys.argv[1]) < ranks:
            one_rank(int(sys.argv[1]), ranks, Path(sys.argv[2]))
