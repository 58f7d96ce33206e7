"""Processes that launchers start, on one node or several, as Lightning Fabric sees them."""

import os

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from deconfound.errors import UserError
from deconfound.runtime import device
from deconfound.runtime.device import (
    Processes,
    deterministic,
    free_memory,
    processes,
    start_fabric,
)

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "7",
}  # fmt: skip
"""The sixth of eight processes: `torchrun --nnodes 2 --nproc-per-node 4` on the second node."""
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "1234567", "SLURM_JOB_NAME": "bash", "SLURM_NODELIST": "node[0-1]",
}  # fmt: skip
"""The same of `srun --nodes 2 --ntasks-per-node 4`, from a shell called bash too."""


@pytest.fixture(autouse=True)
def _nothing_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fabric, "launch", lambda _: None)
    monkeypatch.setattr(device, "available_cores", lambda: 4)
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC", "MASTER")) or name in TORCHRUN:
            monkeypatch.delenv(name)


def setenv(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("launcher", "expected"), [(TORCHRUN, TorchElasticEnvironment), (SRUN, SLURMEnvironment)]
)
def test_processes_of_two_nodes_have_their_places(
    launcher: dict[str, str], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, launcher)
    own = processes()
    assert own[:4] == (5, 8, 1, 4)
    fabric = start_fabric("cpu", "32", None)
    assert isinstance(fabric._strategy.cluster_environment, expected)  # type: ignore[attr-defined]
    assert (fabric.global_rank, fabric.world_size) == (5, 8)
    assert (fabric.local_rank, fabric.node_rank) == (1, 1)
    assert fabric._strategy.num_nodes == 2  # type: ignore[attr-defined]
    assert fabric._strategy.cluster_environment.main_address == "node0"  # type: ignore[attr-defined]


def test_torchrun_within_srun_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task of srun a node starts torchrun, whose processes are those that work."""
    setenv(monkeypatch, SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | TORCHRUN)
    assert processes() == (5, 8, 1, 4, "torchrun")
    fabric = start_fabric("cpu", "32", None)
    assert (fabric.global_rank, fabric.world_size) == (5, 8)


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN])
def test_work_that_is_not_shared_starts_no_group(
    launcher: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, launcher)
    fabric = start_fabric("cpu", "32", None, alone=True)
    assert (fabric.global_rank, fabric.world_size) == (0, 1)


def test_a_process_of_a_batch_script_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch sets what it was asked for; only srun starts so many processes."""
    of_sbatch = {name: value for name, value in SRUN.items() if "STEP" not in name}
    setenv(monkeypatch, of_sbatch | {"SLURM_JOB_NAME": "train"})
    assert processes() == Processes()
    assert start_fabric("cpu", "32", None).world_size == 1


def test_srun_has_to_say_how_many_processes_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, {n: v for n, v in SRUN.items() if n != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(UserError, match="srun started 8 processes; give it --ntasks-per-node"):
        processes()


def test_free_memory_is_a_number_of_bytes() -> None:
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("asked", [True, False])
def test_determinism_is_asked_of_pytorch_for_as_long_as_it_is_asked_for(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(asked):
        assert torch.are_deterministic_algorithms_enabled() == asked
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if asked else None)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_has_no_such_form_is_said_in_one_line() -> None:
    said = "nll_loss2d does not have a deterministic implementation, but you set"
    expected = "--deterministic: nll_loss2d does not have a deterministic implementation; leave"
    with pytest.raises(UserError, match=expected), deterministic(True):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="of memory"), deterministic(True):
        raise RuntimeError("out of memory")
    assert not torch.are_deterministic_algorithms_enabled()
