"""Where the time of an experiment went."""

import time
from dataclasses import dataclass

from deconfound.experiments.running.messages import Outcome


@dataclass(frozen=True)
class Summary:
    """What a call did, and where its time went."""

    runs: int
    """Runs of the experiment."""
    before: int
    """Of these, done before this call."""
    failed: int
    left: int
    """Not begun, as the time given was over."""
    workers: int
    """Processes that did runs."""
    wall_seconds: float
    training_seconds: float
    """Steps, validation and waiting for batches, over all processes; the others likewise."""
    evaluation_seconds: float
    """Predicting, scoring and writing results."""
    preparation_seconds: float
    """Opening screens, making folds and networks, checkpoints, and runs that failed."""
    start_up_seconds: float
    """Planning, starting processes, handing out runs."""
    waiting_seconds: float
    """Processes without a run while the last runs end."""
    table_seconds: float

    @property
    def overhead(self) -> float:
        """Share of the time that is not training, processes that wait at the end left out."""
        other = self.evaluation_seconds + self.preparation_seconds
        other += self.start_up_seconds + self.table_seconds
        return other / (other + self.training_seconds) if self.workers else 0.0

    def text(self) -> str:
        """One line for the terminal."""
        runs = f"{self.runs} runs, {self.before} of them done before, {self.failed} failed"
        runs += f", {self.left} left for a call with more time" if self.left else ""
        if not self.workers:
            return runs
        return (
            f"{runs}; {self.wall_seconds:.0f} s on {self.workers} at a time, overhead "
            f"{100 * self.overhead:.1f} %"
        )


def summarise(
    runs: int, rounds: list[list[Outcome]], began: float, runs_ended: float, left: int = 0
) -> Summary:
    """Where the time went; the seconds add up to workers × wall time.

    `left` of the runs were not begun. Each of the `rounds` of runs begins when the one before has
    ended.
    """
    ended = time.time()
    rounds = [of_round for of_round in rounds if of_round]
    outcomes = [outcome for of_round in rounds for outcome in of_round]
    workers = len({one.worker for one in outcomes})
    busy = sum(one.ended - one.started for one in outcomes)
    training = sum(one.training for one in outcomes)
    evaluation = sum(one.evaluation for one in outcomes)
    waiting = 0.0
    for number, of_round in enumerate(rounds, 1):
        last = dict.fromkeys({one.worker for one in outcomes}, of_round[0].started)
        for one in of_round:
            last[one.worker] = max(one.ended, last[one.worker])
        until = max(last.values()) if number < len(rounds) else runs_ended
        waiting += sum(until - moment for moment in last.values())
    return Summary(
        runs=runs,
        before=runs - left - len({one.name for one in outcomes}),
        failed=sum(bool(one.reason) for one in outcomes),
        left=left,
        workers=workers,
        wall_seconds=ended - began,
        training_seconds=training,
        evaluation_seconds=evaluation,
        preparation_seconds=busy - training - evaluation,
        start_up_seconds=workers * (runs_ended - began) - busy - waiting,
        waiting_seconds=waiting,
        table_seconds=workers * (ended - runs_ended),
    )
