"""The machine a verb runs on: device, precision, threads, processes."""

import logging
import os
from typing import TYPE_CHECKING, Literal

import torch

from deconfound.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["auto", "32", "bf16"]


def start(device: str, precision: Precision, threads: int | None) -> "Fabric":
    """Fabric on `device` ("auto" takes an accelerator if there is one), launched.

    "auto" precision is bfloat16 where the processor computes in it, else float32. Under torchrun
    every process gets its own rank. Raises UserError for a device that is not there.
    """
    from lightning_fabric import Fabric  # takes seconds, and a sweep itself trains nothing

    known = ("auto", "cpu", "cuda", "mps")
    if device not in known:
        raise UserError(f"device {device!r}; expected one of {', '.join(known)}")
    if device == "auto":
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: PyTorch sees no CUDA device here; use --device cpu")
    elif device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: PyTorch sees no Apple GPU here; use --device cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, available_cores() // local))
    half = precision == "bf16" or (precision == "auto" and _computes_in_bfloat16(device))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="gpu" if device == "cuda" else device,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
    )
    fabric.launch()
    return fabric


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(fabric: "Fabric") -> str:
    """The device in words, for a run's provenance."""
    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    if fabric.device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return fabric.device.type


def precision_name(fabric: "Fabric") -> str:
    """The precision in use: "bf16-mixed" or "32-true"."""
    return str(fabric._precision.precision)


def _computes_in_bfloat16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False
