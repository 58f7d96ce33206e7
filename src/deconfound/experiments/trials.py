"""The trials of a search, proposed by Optuna and kept in its own storage."""

import contextlib
import json
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deconfound.errors import UserError
from deconfound.experiments.plan import Search, Setting
from deconfound.experiments.search_space import Numbers
from deconfound.runtime.seeds import derived_seed

if TYPE_CHECKING:
    import optuna

ABOUT = "deconfound"
"""The attribute of a study that holds what its trials have in common."""
LOCKED_SECONDS = 60
"""How long another program may hold the storage."""
ANEW = (
    "the search then begins anew, and of trials that it proposes again no run is done a second time"
)


def require(asked_by: str) -> None:
    """Raise a one-line UserError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{asked_by} needs the extra [optuna]: pip install 'deconfound[optuna]' ({error})"
        ) from error


@contextlib.contextmanager
def opened(file: Path) -> Iterator["optuna.storages.BaseStorage"]:
    """The storage in a file of SQLite, which is made if it is missing.

    What is stored is stored whole, also where the process is killed. Raises UserError for a file
    that is no such storage or is damaged, and where the disk is full.
    """
    import optuna
    import sqlalchemy

    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            engine: dict[str, Any] = {
                "creator": lambda: sqlite3.connect(
                    file, timeout=LOCKED_SECONDS
                ),  # an address cannot hold every path
                "poolclass": sqlalchemy.pool.NullPool,
            }
            storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=engine)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(said)


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Within the block what Optuna and SQLite raise of the storage is a UserError."""
    import optuna
    import sqlalchemy

    kinds = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, sqlite3.Error)
    try:
        yield
    except (*kinds, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        raise UserError(
            f"{file}: Optuna cannot use it ({reason}); where the disk is full make room, else "
            f"remove the file: {ANEW}"
        ) from error


class Trials:
    """The trials of one search, a study of the storage in `file`.

    Raises UserError if the study was begun with other ranges, choices, seeds, rule or
    configuration.
    """

    def __init__(self, storage: "optuna.storages.BaseStorage", file: Path, search: Search) -> None:
        import optuna

        self.search, self._file = search, file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a high that no step reaches
            self._distributions = {
                name: _distribution(values) for name, values in search.space.items()
            }
        self._direction: Literal["minimize", "maximize"] = (
            "minimize" if search.about["rule"] == "loss" else "maximize"
        )
        screen = f"{search.screen.name} {search.screen.identity[:8]}"
        name = f"{search.entry}, {search.fold}, {screen}"
        with explained(file):
            self._study = optuna.create_study(
                study_name=name, storage=storage, direction=self._direction, load_if_exists=True
            )
            self._agree()
            self._known = self._study.get_trials()[: search.options.trials]

    def batch(self, number: int) -> list[Setting]:
        """The settings of a batch, which are proposed unless they are stored; added to the plan.

        A proposal follows from the seed, the number of the trial, what earlier batches have reached
        and what stands in the batch already.
        """
        options = self.search.options
        first = number * options.batch
        last = min(first + options.batch, options.trials)
        return [self._setting(trial) for trial in range(first, last)]

    def tell(self, setting: Setting, value: float) -> None:
        """Store what a trial has reached; one that has ended keeps what it had."""
        assert setting.trial is not None
        with explained(self._file):
            self._study.tell(setting.trial, value, skip_if_finished=True)
            self._known = self._study.get_trials()[: self.search.options.trials]

    def _setting(self, number: int) -> Setting:
        if number < len(self._known):
            return self._laid_out(number, self._known[number].params)
        proposed = self._proposed(number)
        setting = self._laid_out(number, proposed)
        with explained(self._file):
            self._study.add_trial(self._open(proposed, runs=list(setting.runs.values())))
            self._known = self._study.get_trials()
        return setting

    def _open(self, params: dict[str, Any], **attributes: Any) -> "optuna.trial.FrozenTrial":
        """A trial that has not ended."""
        import optuna

        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=params,
            distributions=self._distributions,
            user_attrs=attributes,
        )

    def _proposed(self, number: int) -> dict[str, Any]:
        """Proposed in memory, so that a process that is killed stores a trial or none."""
        import optuna

        words = (self.search.entry, self.search.screen.identity, self.search.fold, number)
        seed = derived_seed(self.search.seed, "optuna", *words) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _sampler(self.search, seed)
        with explained(self._file):
            study = optuna.create_study(direction=self._direction, sampler=sampler)
            first = number - number % self.search.options.batch
            study.add_trials(self._known[:first])
            study.add_trials(self._open(one.params) for one in self._known[first:number])
            proposed: dict[str, Any] = study.ask(self._distributions).params
        return proposed

    def _laid_out(self, number: int, params: dict[str, Any]) -> Setting:
        if params.keys() != self.search.space.keys():
            raise UserError(
                f"{self._file}: trial {number} of {self._study.study_name} lacks values or has "
                f"others than {', '.join(self.search.space)}; remove the file: {ANEW}"
            )
        with explained(self._file):
            values = {
                name: params[name] if isinstance(space, Numbers) else _choices(space)[params[name]]
                for name, space in self.search.space.items()
            }
        return self.search.lay_out(number, values)

    def _agree(self) -> None:
        """Refuse a study that was begun for something else."""
        wanted = json.loads(json.dumps(self.search.about, default=str))
        found = self._study.user_attrs.get(ABOUT)
        if found is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr(ABOUT, wanted)
            return
        differing = [name for name in wanted if (found or {}).get(name) != wanted[name]]
        if differing:
            raise UserError(
                f"{self._file}: the search of {self.search.entry} on {self.search.fold} was begun "
                f"with another {' and '.join(differing)} than the plan has now; choose another "
                f"--out, or remove the file: {ANEW}"
            )


def _distribution(values: Numbers | list[Any]) -> "optuna.distributions.BaseDistribution":
    import optuna

    if isinstance(values, list):
        return optuna.distributions.CategoricalDistribution(list(_choices(values)))
    if values.whole:
        low, high = map(int, values.ends)
        step = int(values.step or 1)
        return optuna.distributions.IntDistribution(low, high, log=values.log, step=step)
    return optuna.distributions.FloatDistribution(
        values.low, values.high, log=values.log, step=values.step
    )


def _choices(values: list[Any]) -> dict[str, Any]:
    """The values by their text, which is what Optuna stores."""
    return {one if isinstance(one, str) else json.dumps(one, default=str): one for one in values}


def _sampler(search: Search, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if search.options.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=search.options.startup,
        multivariate=True,
        constant_liar=True,
    )
