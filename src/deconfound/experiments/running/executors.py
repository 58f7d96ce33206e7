"""Where the runs of an experiment are done: this machine's processes, a Ray cluster, or SLURM."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from deconfound.config import Options, validated
from deconfound.errors import UserError
from deconfound.experiments.running.local import run_local
from deconfound.experiments.running.messages import Order, Outcome
from deconfound.experiments.running.ray import run_ray
from deconfound.experiments.running.slurm import Ask, run_slurm
from deconfound.runtime.device import available_cores

ExecutorName = Literal["local", "ray", "slurm"]
JOB_MINUTES = 720
"""Of a job of SLURM, unless `--job-minutes` says otherwise."""


class ExecutorOptions(Options):
    """Who does the runs, and how many at a time."""

    executor: ExecutorName = "local"
    """Processes of this machine, a Ray cluster, or jobs of SLURM."""
    workers: int | None = Field(None, ge=1)
    """Runs at a time; if not given, as many as cores hold the threads of a run, one on each CUDA
    device, or what the cluster holds; 64 jobs of SLURM."""
    address: str | None = None
    """Address of the Ray cluster; one is started here if not given."""
    partition: str | None = None
    """Of SLURM; its own default if not given."""
    job_minutes: int | None = Field(None, ge=1)
    """After which SLURM ends a job, which is then queued again and resumes; 720 if not given."""
    job_gpus: int | None = Field(None, ge=0)
    """GPUs that each job asks SLURM for; none if not given."""

    @property
    def saves(self) -> bool:
        """Whether runs under way are saved when they are stopped."""
        return self.executor == "local"

    def run(
        self, orders: Sequence[Order], *, threads: int, devices: set[str]
    ) -> Generator[Outcome, None, None]:
        """Outcomes of all orders as they come.

        `threads` are those of the run that takes most, `devices` the names that runs may train on.
        Closing the iterator stops the runs under way, which resume later. Raises UserError where
        Ray or submitit is not installed, or their cluster cannot be reached.
        """
        if self.executor == "slurm":
            ask = Ask(self.partition, self.job_minutes or JOB_MINUTES, self.job_gpus or 0)
            return run_slurm(orders, self.workers, threads, ask)
        if self.executor == "ray":
            return run_ray(orders, self.workers, threads, self.address)
        return run_local(orders, self.workers or _processes(devices, threads))


def executor_options(given: Mapping[str, Any]) -> ExecutorOptions:
    """Options by their names, checked; raises UserError for what belongs to another executor."""
    options = validated(ExecutorOptions, dict(given), "executor")
    if options.address is not None and options.executor != "ray":
        raise UserError("--address is of a Ray cluster; add --executor ray")
    for name in ("partition", "job_minutes", "job_gpus"):
        if getattr(options, name) is not None and options.executor != "slurm":
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is of a job of SLURM; add --executor slurm")
    return options


def _processes(devices: set[str], threads: int) -> int:
    """As many as there are CUDA devices if runs may use them, else as cores hold `threads`."""
    if devices & {"auto", "cuda"} and torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, available_cores() // threads)
