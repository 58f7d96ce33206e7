"""A tracker that follows a run: what metrics.csv has is sent to it whenever the run is saved.

So a run that is killed goes on in the same run of the tracker, and no step is there twice: how far
the tracker has come is kept in `tracker.json` of the run directory, written before a step is sent.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deconfound.config import did_you_mean
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.methods.contract import Stage
from deconfound.runs.config import RunConfig
from deconfound.runs.record import History
from deconfound.runs.run import read_json

if TYPE_CHECKING:
    from deconfound.training.tracking.loggers import PictureLogger

KINDS = ("tensorboard", "wandb", "mlflow")
FILE = "tracker.json"


class Tracker:
    """Sends the history, the configuration and pictures of one run to a tracker.

    Nothing is sent before `begin`. A tracker that fails later is told of once, and is tried again
    at the end; training goes on.
    """

    def __init__(
        self,
        word: str,
        warn: Callable[[str], None] | None = None,
        *,
        title: str | None = None,
        required: bool = True,
    ) -> None:
        """`word` is tensorboard, wandb or mlflow, with :PLACE if it is not in the run directory.

        `title` is the run's name there, that of its directory if not given. A run trains without
        its tracker if that cannot be opened and is not `required`. Raises UserError for any other
        word.
        """
        self.kind, self._place = split_word(word)
        self._word, self._warn = word, warn
        self._title, self._required = title, required
        self._logger: PictureLogger | None = None
        self._out = Path()
        self._sent, self._read, self._failed = 0, 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._logger is not None:
            self._try(self._logger.finalize, "success" if error is None else "failed")

    @property
    def begun(self) -> bool:
        """Whether a run is followed."""
        return self._logger is not None

    def begin(self, out: Path, config: RunConfig) -> None:
        """Follow the run in `out`, from where the tracker stands.

        Raises UserError if the tracker's package is missing or its place cannot be opened, where it
        is required.
        """
        from deconfound.training.tracking.loggers import open_logger

        out.mkdir(parents=True, exist_ok=True)
        self._out, run = out, None
        if (out / FILE).is_file():
            known = read_json(out / FILE)
            if known.get("tracker") == self._word:
                run, self._sent = str(known["run"]), int(known["step"])
        title = self._title or out.name
        try:
            self._logger = open_logger(self.kind, self._place, out, run, title)
        except UserError as error:
            if self._required:
                raise
            if self._warn is not None:
                self._warn(f"warning: {out}: {error}; training goes on without it")
            return
        if self._logger.reached is not None:
            self._sent = min(self._sent, self._logger.reached)
        if run is None:
            self._try(self._logger.log_hyperparams, _flat(config.model_dump(mode="json")))
        self._note(self._sent)

    def follow(
        self, history: History, stages: Sequence[Stage], until: int, *, last: bool = False
    ) -> None:
        """Send what the history has of steps up to `until`, counted over all stages.

        With `last` a tracker that has failed is tried again.
        """
        if self._logger is None or (self._failed and not last):
            return
        before, of_stage = 0, {}
        for stage in stages:
            of_stage[stage.name] = before
            before += stage.steps
        steps: dict[int, dict[str, float]] = {}
        for name, step, part, metric, value in history.since(self._read):
            place = of_stage[name] + step
            if place > until:
                break
            self._read += 1
            if place > self._sent:
                title = f"{part}/{metric}" if len(stages) == 1 else f"{name}/{part}/{metric}"
                steps.setdefault(place, {})[title] = value
        if not steps:
            return
        done = self._sent
        self._note(max(steps))
        for step, values in steps.items():
            if not self._try(self._logger.log_metrics, values, step):
                self._read = 0
                self._note(done)
                return
            done = step
        self._try(self._logger.save)

    def picture(self, name: str, file: Path) -> None:
        """Show a PNG file of the finished run."""
        if self._logger is not None and not self._failed:
            self._try(self._logger.log_picture, name, file, self._sent)

    def _note(self, step: int) -> None:
        assert self._logger is not None
        self._sent = step
        found = {"tracker": self._word, "run": str(self._logger.version), "step": step}
        atomic.write_text(self._out / FILE, json.dumps(found))

    def _try(self, send: Callable[..., object], *words: Any) -> bool:
        """Whether the tracker took it; a failure is told of once."""
        try:
            send(*words)
        except Exception as error:  # no fault of a tracker may end a run
            if not self._failed and self._warn is not None:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self._warn(
                    f"warning: {self._out}: --tracker {self._word} failed ({reason}); training "
                    "goes on without it, metrics.csv has everything"
                )
            self._failed = True
            return False
        self._failed = False
        return True


def split_word(word: str) -> tuple[str, str | None]:
    """The tracker that a word names, and its place; raises UserError for an unknown tracker."""
    kind, _, place = word.partition(":")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise UserError(f"--tracker {word}: unknown tracker {kind!r}; {hint}")
    return kind, place or None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, (bool, int, float, str))
            found[prefix + name] = value if plain else json.dumps(value)
    return found
