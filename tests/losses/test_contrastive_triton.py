"""The Triton kernels, on a GPU where there is one and otherwise in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed")

from deconfound.losses import content_losses, contrastive_triton  # noqa: E402
from deconfound.runtime.seeds import torch_stream  # noqa: E402


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize(
    ("count", "dimensions", "rows"),
    [
        (1, 3, slice(0, 1)),
        (33, 16, slice(0, 33)),
        (130, 200, slice(0, 130)),
        (100, 20, slice(31, 80)),
        (97, 64, slice(64, 97)),
        (40, 8, slice(40, 40)),
    ],
)
def test_kernels(
    count: int, dimensions: int, rows: slice, temperature: float, include_self: bool
) -> None:
    stream = torch_stream(0, "triton", count)
    z = F.normalize(torch.randn(count, dimensions, generator=stream), dim=1)
    weight = torch.randn(count, generator=stream)
    exact = z.double().requires_grad_()
    logits = exact @ exact.T / temperature
    if not include_self:
        logits = logits.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    lse = logits.logsumexp(1)
    lse = lse.masked_fill(lse.isneginf(), 0.0)
    (expected,) = torch.autograd.grad((lse * weight).sum(), exact)

    on_device = z.to(DEVICE)
    found = contrastive_triton.log_sum_exp(on_device, rows, temperature, include_self)
    found.masked_fill_(found.isneginf(), 0.0)
    torch.testing.assert_close(
        found.cpu().double(), lse[rows].detach(), rtol=0, atol=1e-6 / temperature
    )
    gradient = contrastive_triton.log_sum_exp_gradient(
        on_device,
        lse.float().detach().to(DEVICE),
        weight.to(DEVICE),
        rows,
        temperature,
        include_self,
    )
    tolerance = 1e-6 / temperature * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(gradient.cpu().double(), expected[rows], rtol=0, atol=tolerance)


def test_kernels_compile_for_a_gpu() -> None:
    script = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from deconfound.losses import contrastive_triton as kernels

constants = dict(
    INCLUDE_SELF=False, ROWS=kernels.ROWS, COLUMNS=kernels.COLUMNS, CHUNK=kernels.CHUNK,
    WIDTH=128, PRECISION="tf32x3",
)
pointers = ("z", "lse", "gradient", "dz")
for kernel in (kernels._log_sum_exp, kernels._log_sum_exp_gradient):
    kinds = {
        name: "constexpr" if name in constants
        else "*fp32" if name in pointers
        else "fp32" if name == "inverse_temperature"
        else "i32"
        for name in kernel.arg_names
    }
    values = {(i,): constants[name] for i, name in enumerate(kinds) if name in constants}
    built = compile(ASTSource(kernel, kinds, values), target=GPUTarget("cuda", 80, 32))
    assert built.metadata.shared <= 48 * 1024, built.metadata.shared
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_losses_on_the_gpu() -> None:
    stream = torch_stream(0, "triton losses")
    z = F.normalize(torch.randn(700, 128, generator=stream), dim=1)
    label, environment = torch.arange(700) % 9, torch.arange(700) % 4
    found = []
    for rows in (z.double(), z.to(DEVICE)):
        rows.requires_grad_()
        groups = label.to(rows.device), environment.to(rows.device)
        loss = sum(content_losses(rows, *groups, 0.1, "listing"))
        (gradient,) = torch.autograd.grad(loss, rows)
        found.append((loss.cpu().double(), gradient.cpu().double()))
    (loss, gradient), (found_loss, found_gradient) = found
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        found_gradient, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item()
    )
