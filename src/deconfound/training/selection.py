"""The checkpoints of a run: which weights of each stage are kept, and which one is used."""

import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from deconfound.files import atomic
from deconfound.methods.contract import Stage
from deconfound.training.network import Network
from deconfound.training.validation import Predictions

Scores = dict[str, float]


class Selection:
    """Keeps of each stage the weights with the lowest loss, the highest accuracy, and the last."""

    def __init__(
        self, out: Path, stages: Sequence[Stage], wanted: str, network: Network, writes: bool
    ) -> None:
        """`wanted` is the checkpoint to use, "loss", "accuracy" or "last", where a stage has it.

        Of several processes one `writes` the files.
        """
        self.best: dict[str, dict[str, Scores]] = {stage.name: {} for stage in stages}
        """Validation scores, and the step, of each stage's checkpoints."""
        self._out, self._stages, self._wanted = out, stages, wanted
        self._network, self._writes = network, writes
        self._predicted: dict[Path, Predictions] = {}
        """Validation predictions of the checkpoints that this process kept."""

    def consider(self, stage: Stage, done: int, scores: Scores, predicted: Predictions) -> None:
        """Keep the weights after step `done` if they are the best yet by a score, or the last."""
        names = [name for name in ("loss", "accuracy") if name in scores]
        kept = [name for name in names if self._is_better(stage, name, scores[name])]
        for name in [*kept, "last"] if done == stage.steps else kept:
            self.best[stage.name][name] = {"step": float(done), **scores}
            file = self._file(stage, name)
            self._predicted[file] = predicted
            if self._writes:
                self._network.save(file)

    def _is_better(self, stage: Stage, name: str, value: float) -> bool:
        if name not in self.best[stage.name]:
            return True
        previous = self.best[stage.name][name][name]
        better = value < previous if name == "loss" else value > previous
        return better or math.isnan(previous)

    def file(self, stage: Stage) -> Path:
        """The checkpoint of a finished stage that is used."""
        return self._file(stage, self._used(stage))

    def scores(self, stage: Stage) -> Scores | None:
        """Validation scores of the checkpoint that is used; None if it was not validated."""
        return self.best[stage.name].get(self._used(stage))

    def predicted(self, stage: Stage) -> Predictions | None:
        """Validation predictions of the checkpoint that is used, if this process kept it."""
        return self._predicted.get(self.file(stage))

    def write(self) -> None:
        """Write selection.json of the finished run."""
        used = {
            stage.name: "last" if after and after.continues else self._used(stage)
            for stage, after in zip_longest(self._stages, self._stages[1:])
        }
        found = {"used": used, "best": self.best}
        atomic.write_text(self._out / "selection.json", json.dumps(found, indent=2))

    def _file(self, stage: Stage, name: str) -> Path:
        return self._out / f"{stage.name}-{name}.safetensors"

    def _used(self, stage: Stage) -> str:
        if not stage.selects:
            return "last"
        found = self.best[stage.name]
        return self._wanted if self._wanted in found else "loss" if "loss" in found else "last"
