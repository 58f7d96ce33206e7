"""fit: train one method on one fold with one seed, resumably."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from deconfound import methods
from deconfound.config import DataOptions
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE
from deconfound.data.folds.fold import Part
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.atomic import refuse_foreign
from deconfound.intervention.intervention import begin_intervention
from deconfound.intervention.source_run import imputing_run, refuse_unfit, with_imputer
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runs.recommended import RECOMMENDED, recommend
from deconfound.runs.run import (
    Run,
    open_run,
    read_json,
    refuse_other_fold,
    refuse_other_weights,
    write_description,
)
from deconfound.runtime.device import deterministic, processes, start_fabric
from deconfound.training.batches import refuse_unfillable_batches, sampler_of
from deconfound.training.dial import choose, refuse_dial
from deconfound.training.episodes import refuse_unfit_episodes
from deconfound.training.loop import Training
from deconfound.training.positives import said, with_sampler
from deconfound.training.tracking.tracker import Tracker
from deconfound.training.validation import Predictions

FEW_ROWS = 20
"""Parts asked to have fewer rows than this are small anyway, and nobody is warned of them."""


class Trained(NamedTuple):
    """What a call of `train` did."""

    seconds: float = 0.0
    """Spent on steps, validation and waiting for batches; 0 if the run was finished before."""
    predicted: Predictions | None = None
    """The run's predictions of validation rows, where this call made them."""


def fit(
    config: RunConfig | None,
    screen: Path,
    out: Path,
    *,
    quiet: bool = False,
    warn: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
    tracker: Tracker | None = None,
) -> Run:
    """Train `config` on `screen` into the directory `out`, or resume the run in it.

    None is the recommended recipe, with random rows held out; `say` receives what was chosen.
    On the CPU a resumed run ends bit-identical to an uninterrupted one. Raises UserError if `out`
    holds another run or something else, if another process is writing it, if the loss stops being
    finite, and for every mistake in the configuration. SIGTERM or Ctrl-C saves the run at the end
    of the step and raises Stopped. `warn` receives each warning as one line: labels that are never
    scored, parts with far fewer rows than asked for, channels or features that do not vary, and
    weights that the method calls failed. `say` receives what was decided for the run, as one line:
    how many images of a batch have another of their label, where the method needs them. `tracker`
    receives what metrics.csv has whenever the run is saved, and changes no bit of it.
    """
    out, opened = Path(out), open_screen(screen)
    if config is None:
        found = recommend(opened)
        config = found.config
        if say is not None:
            say(f"{RECOMMENDED}: {found.text}")
    train(
        config,
        opened,
        pose(opened, config.data),
        out,
        quiet=quiet,
        warn=warn,
        say=say,
        tracker=tracker,
    )
    return open_run(out)


def train(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    out: Path,
    *,
    quiet: bool = False,
    warn: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
    tracker: Tracker | None = None,
) -> Trained:
    """`fit` on an opened screen, with the problem that `config.data` poses; raises as `fit`."""
    first = processes().rank == 0  # of several processes, the one that writes
    source = imputing_run(config, out)
    config = with_sampler(with_imputer(config, out, source, screen, problem), problem, out)
    config = config.model_copy(update={"chosen": None})
    refuse_dial(config)
    if first and _claims(out, config, screen, problem):
        _remove_leftovers(out)
        return Trained()
    refuse_unfillable_batches(config.training, problem)
    refuse_unfit_episodes(config, screen, problem)
    if config.options.sees_held_out and not len(problem.fold.rows("test")):
        raise UserError(
            f"fold {problem.fold.name}: holds nothing out to adapt to; choose another --fold or "
            "leave --domain-adaptation out"
        )
    if methods.load(config.method).CONTROLS:
        _refuse_without_controls(config.method, problem)
    if source is not None:
        refuse_unfit(source, config, screen, problem)
    if first and warn is not None:
        for warning in _warnings(problem, config.data):
            warn(warning)
    lock = atomic.locked(out) if first else contextlib.nullcontext()
    with lock, deterministic(config.training.deterministic):
        finished = (
            _claims(out, config, screen, problem)
            if first
            else (out / "model.safetensors").is_file()
        )
        if finished:
            return Trained()
        if config.options.dial is not None:
            config = _with_dial(config, screen, problem, out, quiet, say)
        options = config.training
        fabric = start_fabric(options.device, options.precision, options.threads)
        intervention = begin_intervention(config, screen, problem, out, source, fabric.device)
        training = Training(
            config=config, screen=screen, problem=problem, out=out, fabric=fabric,
            intervention=intervention, quiet=quiet, tracker=tracker,
        )  # fmt: skip
        if first:
            atomic.remove_leftovers(out)
            write_description(out, config, screen, problem, training.pretrained)
            if tracker is not None:
                tracker.begin(out, config)
            if intervention is not None:
                intervention.write(out)
            even = int((training.network.intensity.scale == 0).sum())
            if even and warn is not None:
                what = "features" if screen.holds_profiles else "channels"
                warn(
                    f"warning: {out}: {even} of {len(screen.channels)} {what} do not vary over the "
                    "training rows beyond rounding, and are 0 in every row"
                )
            if say is not None and methods.load(config.method).POSITIVES:
                sampler = sampler_of(config, problem, "train", training.stages[0])
                say(said(config, problem, sampler))
        training.run()
        if first and warn is not None and (alarm := training.alarm()) is not None:
            warn(f"warning: {out}: {alarm}")
        return Trained(training.seconds, training.predicted())


def _with_dial(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    out: Path,
    quiet: bool,
    say: Callable[[str], None] | None,
) -> RunConfig:
    """The configuration with the value found for its option that is `auto`; makes the trials."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "config.yaml").is_file():
        atomic.write_text(out / "config.yaml", dump_config(config))

    def trial(tried: RunConfig, posed: Problem, path: Path) -> Trained:
        return train(tried, screen, posed, path, quiet=quiet)

    record = choose(config, screen, problem, out, trial)
    if say is not None:
        say(f"{config.method}: {record.text()}")
    return config.model_copy(update={"chosen": {record.option: record.chosen}})


def _claims(out: Path, config: RunConfig, screen: Screen, problem: Problem) -> bool:
    """Whether `out` already holds this run, finished; raises UserError if it holds another."""
    if not refuse_foreign(out, "config.yaml", "run"):
        return False
    recorded = read_config(out / "config.yaml").model_copy(update={"chosen": None})
    if dump_config(recorded) != dump_config(config):
        raise UserError(f"{out}: holds a run with another configuration; choose another --out")
    if (out / "classes.json").is_file():
        read_json(out / "classes.json")
    if (out / "fold.json").is_file():
        fold = read_json(out / "fold.json")
        if fold["screen_identity"] != screen.identity:
            raise UserError(f"{out}: was trained on another screen; choose another --out")
        refuse_other_fold(out, problem)
    refuse_other_weights(out)
    return (out / "model.safetensors").is_file()


def _refuse_without_controls(method: str, problem: Problem) -> None:
    if not problem.controls:
        raise UserError(
            f"{method}: no label is a control: none has {NEGATIVE!r} in {CONTROL_TYPE!r} in every "
            "training row; name the controls with --controls LABEL"
        )
    if len(problem.controls) == len(problem.label.names):
        raise UserError(
            f"{method}: every label of training is a control; name fewer with --controls LABEL"
        )


def _warnings(problem: Problem, options: DataOptions) -> Iterator[str]:
    """Of labels without training rows, and of random parts with half of the rows asked for."""
    fold = problem.fold
    found = [f"{name} ({rows} rows)" for name, rows in problem.untrained().items()]
    if found:
        yield (
            f"warning: fold {fold.name}: training has no row of {listed(found, 5)}; their test "
            "rows are never scored, hold out another group if they must be"
        )
    if options.fold == "given":
        return
    counts = fold.counts()
    other: Part = "test" if options.fold == "iid" else "id_test"
    drawn = counts["train"] + counts["val"] + counts[other]
    asked = {"val": options.val_fraction, other: options.id_test_fraction}
    few = [part for part, share in asked.items() if counts[part] < share * drawn / 2]
    if any(asked[part] * drawn >= FEW_ROWS for part in few):
        has = " and ".join(f"{counts[part]:,} ({share:.0%} asked)" for part, share in asked.items())
        yield (
            f"warning: fold {fold.name}: of {drawn:,} rows val and {other} have {has}: where a "
            "label has one or two rows in an environment, they stay in training; scores and the "
            "choice of a checkpoint rest on few rows, so name fewer columns with --environment, or "
            "give a split (--fold given)"
        )


def _remove_leftovers(out: Path) -> None:
    """Remove the files left by a process that was killed while it finished the run."""
    resume = out / "resume.pt"
    if resume.is_file() or any(file.suffix == ".partial" for file in out.iterdir()):
        with contextlib.suppress(OSError, UserError), atomic.locked(out):
            resume.unlink(missing_ok=True)
            atomic.remove_leftovers(out)
