"""Runs as jobs of SLURM, submitted through submitit; all nodes share the experiment's folders."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deconfound.errors import UserError
from deconfound.experiments.running.messages import Order, Outcome

CLUSTER = "slurm"
"""Submitit's name of it; `local` does the jobs in processes of this machine."""
AT_A_TIME = 64
"""Jobs that wait or run, if `--workers` does not say."""
TRIES = 3
"""Times that a job is submitted which is lost, as where its node fails."""
LOOK_SECONDS = 2.0
"""Between looks at the jobs."""


class Ask(NamedTuple):
    """What each job asks SLURM for."""

    partition: str | None
    minutes: int
    gpus: int


class _Run:
    """What a job does; SLURM may stop it and take it up again, for its run resumes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, order: Order) -> Outcome:
        from deconfound.experiments.running.job import Runner

        return Runner(self.number).run(order)

    def checkpoint(self, order: Order) -> Any:
        """What submitit queues again where the time of a job is up, or it is preempted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)


class _Job(NamedTuple):
    job: Any
    number: int
    order: Order
    tries: int


def run_slurm(
    orders: Sequence[Order], workers: int | None, threads: int, ask: Ask
) -> Generator[Outcome, None, None]:
    """Outcomes of all orders as they come, from jobs of `threads` processors, a run each.

    At most `workers` jobs wait or run. One that is lost is submitted again, twice at most, and its
    run resumes from the last checkpoint. Logs and what submitit hands over lie in `slurm` of the
    experiment's directory. Closing the iterator cancels the jobs. Raises UserError if submitit is
    not installed, where there is no SLURM, and where it refuses a job.
    """
    if not orders:
        return
    executor = _executor(Path(orders[0].out) / "slurm", threads, ask)
    waiting = deque((order, 1) for order in orders)
    free = deque(range(min(workers or AT_A_TIME, len(orders))))
    in_hand: list[_Job] = []
    try:
        while waiting or in_hand:
            while waiting and free:
                order, tries = waiting.popleft()
                number = free.popleft()
                in_hand.append(_Job(_submitted(executor, number, order), number, order, tries))
            ended = [one for one in in_hand if one.job.done()]
            for one in ended:
                in_hand.remove(one)
                free.append(one.number)
                outcome = _outcome(one)
                if outcome is None:
                    waiting.append((one.order, one.tries + 1))
                else:
                    yield outcome
            if not ended:
                time.sleep(LOOK_SECONDS)
    finally:
        for one in in_hand:
            one.job.cancel(check=False)


def _outcome(one: _Job) -> Outcome | None:
    """The answer of a job that has ended; None for one that is to be submitted again."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        found: Outcome = one.job.result()
        return found
    except FailedJobError as error:
        trace = str(error).partition("You can check full logs")[0].rstrip("- \n")
        reason = trace.splitlines()[-1].strip()[:200]
    except UncompletedJobError:
        if one.tries < TRIES:
            return None
        reason = f"lost {one.tries} times, at last as {one.job.state}"
    reason = f"SLURM job {one.job.job_id}: {reason}; see {one.job.paths.stderr}"
    return Outcome(one.order.name, one.number, time.time(), time.time(), reason=reason)


def _submitted(executor: Any, number: int, order: Order) -> Any:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return executor.submit(_Run(number), order)
    except (FailedSubmissionError, FailedJobError, OSError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(
            f"--executor slurm: SLURM refused a job ({reason}); check --partition, --job-minutes "
            "and --job-gpus with `sinfo`"
        ) from error


def _executor(folder: Path, threads: int, ask: Ask) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--executor slurm: submitit is not installed; pip install 'deconfound[slurm]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=CLUSTER)
    except RuntimeError as error:
        raise UserError(
            "--executor slurm: there is no SLURM here (no `srun`); start the command on a login "
            "node, or use --executor local"
        ) from error
    executor.update_parameters(
        name="deconfound",
        timeout_min=ask.minutes,
        cpus_per_task=threads,
        gpus_per_node=ask.gpus,
    )
    if ask.partition is not None:
        executor.update_parameters(slurm_partition=ask.partition)
    return executor
