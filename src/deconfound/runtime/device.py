"""The machine a verb runs on: device, precision, threads, processes."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from deconfound.errors import UserError
from deconfound.runtime.quiet import debugging

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MAX_THREADS = 1024
"""PyTorch ends the process where the system starts no more of them."""

Precision = Literal["auto", "32", "bf16"]


class Processes(NamedTuple):
    """The place of this process among those of one command."""

    rank: int = 0
    """Number of this process, from 0, over all nodes."""
    world: int = 1
    """Number of processes, over all nodes."""
    local_rank: int = 0
    """Number of this process, from 0, on this node."""
    local_count: int = 1
    launcher: Literal["torchrun", "srun"] | None = None
    """The launcher that started the processes; None for a process alone."""


def processes() -> Processes:
    """Where this process stands among those that torchrun or srun started; else alone.

    Raises UserError if srun started several that do not know how many there are on a node.
    """
    known = os.environ
    if int(known.get("WORLD_SIZE", "1")) > 1:
        count, local = int(known["WORLD_SIZE"]), int(known.get("LOCAL_WORLD_SIZE", "1"))
        rank, local_rank = int(known.get("RANK", "0")), int(known.get("LOCAL_RANK", "0"))
        return Processes(rank, count, local_rank, local, "torchrun")
    # Of a step of srun alone: a batch script that starts one process itself has no such number.
    if (count := int(known.get("SLURM_STEP_NUM_TASKS", "1"))) > 1 and "WORLD_SIZE" not in known:
        if "SLURM_NTASKS_PER_NODE" not in known:
            raise UserError(f"srun started {count} processes; give it --ntasks-per-node")
        local = int(known["SLURM_NTASKS_PER_NODE"])
        return Processes(
            int(known["SLURM_PROCID"]), count, int(known["SLURM_LOCALID"]), local, "srun"
        )
    return Processes()


def start_fabric(
    device: str, precision: Precision, threads: int | None, *, alone: bool = False
) -> "Fabric":
    """Fabric on `device` ("auto" takes an accelerator if there is one), launched.

    "auto" precision is bfloat16 where the processor computes in it, else float32. Under torchrun
    and srun every process gets its own rank, on any number of nodes; for work that it does `alone`
    it takes the accelerator of its place on the node and knows nothing of the others. Raises
    UserError for a device that is not there, and for more than `MAX_THREADS`.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UserError(f"--threads {threads}: expected 1 to {MAX_THREADS}, or leave it out")
    from lightning_fabric import Fabric  # takes seconds, and the process that plans trains nothing
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    if not debugging():
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    own, device = processes(), _found(device)
    alone = alone or own.world == 1
    gpu = [own.local_rank % max(1, torch.cuda.device_count())]
    plugins: list[Any] = [LightningEnvironment()] if alone else []
    if own.launcher == "srun" and not alone:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    fabric = Fabric(
        accelerator="gpu" if device == "cuda" else device,
        devices=own.local_count if not alone else gpu if device == "cuda" else 1,
        num_nodes=1 if alone else max(1, own.world // own.local_count),
        strategy="auto" if alone else "ddp",
        precision=_fabric_precision(device, precision),
        plugins=plugins,
    )
    torch.set_num_threads(threads or max(1, available_cores() // own.local_count))
    fabric.launch()
    return fabric


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Let PyTorch take only operations that give the same bits again, if `asked`.

    Enter it before the first use of a GPU, which reads a setting of cuBLAS then. Raises UserError
    where an operation has no such form on the device.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).partition(",")[0]
        raise UserError(f"--deterministic: {reason}; leave it out") from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _found(device: str) -> str:
    """The name of a device that this machine has; resolves "auto"."""
    known = ("auto", "cpu", "cuda", "mps")
    if device not in known:
        raise UserError(f"device {device!r}; expected one of {', '.join(known)}")
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: PyTorch sees no CUDA device here; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: PyTorch sees no Apple GPU here; use --device cpu")
    return device


def free_memory() -> int | None:
    """Bytes that a process may still take on this machine; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


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


def _fabric_precision(device: str, precision: Precision) -> Literal["bf16-mixed", "32-true"]:
    half = precision == "bf16"
    if precision == "auto" and device == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    elif precision == "auto" and device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        half = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return "bf16-mixed" if half else "32-true"
