"""Deconfounder: fit, transform and predict on arrays, data frames, AnnData, data sets, screens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy.typing as npt
import pandas as pd
import yaml

from deconfound.data.readers.features import Part
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.file import Embeddings, as_anndata
from deconfound.estimator.kept import (
    Files,
    Kept,
    in_python,
    in_words_of_python,
    kept_of,
    read,
    with_kept,
    write,
)
from deconfound.estimator.model import (
    NotFitted,
    described,
    embed_screen,
    label_type,
    macro_f1_of,
    predicted,
    screen_of_rows,
    train_model,
)
from deconfound.estimator.pixels import brightest_of, refuse_beyond_unit
from deconfound.estimator.rows import Data, Values, rows_of
from deconfound.estimator.screens import named_columns, training_screen
from deconfound.estimator.settings import SAID_TO_FIT, WHERE, options_of, resolve, roles_of, written
from deconfound.runs.recommended import RECOMMENDED
from deconfound.runtime.escaping import card, for_terminal, one_line

if TYPE_CHECKING:
    from anndata import AnnData


class Deconfounder:
    """A method with scikit-learn's interface: fit, transform, predict, score, save and load.

    `method` is the name of a trained method; None takes the recommended recipe. `options` are those
    of `deconfound fit METHOD`, by the same names (`alpha`, `steps`, `batch_size`, `device`, `seed`,
    `standardise_by`, …); they are looked at in `fit`, which raises UserError for one that does not
    exist, naming the nearest. With `quiet` nothing is printed and no progress shown.

    Rows are images, as an array or tensor (N, C, H, W) or (N, H, W) or a torch Dataset whose items
    are an image or begin with one; profiles, as a DataFrame, AnnData or an array (N, D); or a
    `Screen`, or its path. Pixels are uint8, uint16 or floating point; the last become float32 in
    their own units, and must be finite. Whatever belongs to rows (label, environment, …) is an
    array of N values, in their order, or the name of a column of the DataFrame, of `obs`, of the
    screen or of `table`, a DataFrame with a row for each image.

    Nothing is left on disk: images stay in memory, and the files of a run lie in a temporary folder
    while `fit` and `transform` work, also where they fail.
    """

    def __init__(self, method: str | None = None, *, quiet: bool = False, **options: Any) -> None:
        self.method = method
        self.quiet = quiet
        self.options = options
        self._files: Files | None = None

    def fit(
        self,
        data: "Data",
        label: "Values | None" = None,
        environment: "Values | None" = None,
        *,
        levels: "Values | None" = None,
        controls: "Values | None" = None,
        hold_out: "Values | None" = None,
        table: pd.DataFrame | None = None,
        channels: Sequence[str] = (),
        layer: str | None = None,
        obsm: str | None = None,
    ) -> Self:
        """Train on rows, with their labels and environments; returns the estimator itself.

        `levels` are nested groups, outermost first; `controls` names labels, or marks rows by True;
        `hold_out` is "COLUMN=GROUP" of a level, True for each row to hold out, or the part of each
        row (train, val, id_test, test); random rows if not given. What is not given is looked up in
        the options of the estimator, and then among the usual names of columns. `channels` names
        those of images; `layer` and `obsm` choose a part of AnnData other than X. Missing and
        constant features of profiles are dropped. Raises UserError for every mistake, in one line.
        """
        told = {"label": label, "environment": environment, "levels": levels,
                "controls": controls, "hold_out": hold_out}  # fmt: skip
        self._train(data, told, table, channels, Part(layer, obsm))
        return self

    def transform(
        self,
        data: "Data",
        environment: "Values | None" = None,
        *,
        label: "Values | None" = None,
        controls: "Values | None" = None,
        table: pd.DataFrame | None = None,
        layer: str | None = None,
        obsm: str | None = None,
    ) -> "AnnData":
        """Embed rows: AnnData as `deconfound embed` writes it.

        `obs` holds the table, the part of each row ("new" in all but the very rows and columns that
        the model was fitted on) and the predicted label; `obsm` holds X_representation and, of some
        methods, X_content and X_style, (N, D) float32. An environment that training never saw is
        measured on its own rows, where the model makes environments alike; with fewer than 16 the
        statistics of all training rows stand in, and an InputWarning says so. `controls` marks rows
        by True. Raises UserError before `fit`, for rows of another shape or type, and where the
        model needs an environment and none is given.
        """
        told = {"environment": environment, "label": label, "controls": controls}
        return as_anndata(self._embed(data, told, table, Part(layer, obsm)))

    def fit_transform(
        self,
        data: "Data",
        label: "Values | None" = None,
        environment: "Values | None" = None,
        *,
        levels: "Values | None" = None,
        controls: "Values | None" = None,
        hold_out: "Values | None" = None,
        table: pd.DataFrame | None = None,
        channels: Sequence[str] = (),
        layer: str | None = None,
        obsm: str | None = None,
    ) -> "AnnData":
        """`fit`, and the embeddings of the same rows, each with its part (train, val, test, …)."""
        told = {"label": label, "environment": environment, "levels": levels,
                "controls": controls, "hold_out": hold_out}  # fmt: skip
        screen = self._train(data, told, table, channels, Part(layer, obsm))
        return as_anndata(embed_screen(self._fitted(), screen, self.options, self.quiet))

    def predict(
        self,
        data: "Data",
        environment: "Values | None" = None,
        *,
        controls: "Values | None" = None,
        table: pd.DataFrame | None = None,
        layer: str | None = None,
        obsm: str | None = None,
    ) -> npt.NDArray[Any]:
        """The label of each row (N,): text, or a number where labels were numbers.

        Raises UserError as `transform`, and for a method that predicts none.
        """
        told = {"environment": environment, "controls": controls}
        labels = predicted(self._embed(data, told, table, Part(layer, obsm))).to_numpy(dtype=str)
        kept = kept_of(self._fitted()) or Kept()
        return labels if kept.label_type is None else labels.astype(kept.label_type)

    def score(
        self,
        data: "Data",
        label: "Values | None" = None,
        environment: "Values | None" = None,
        *,
        controls: "Values | None" = None,
        table: pd.DataFrame | None = None,
        layer: str | None = None,
        obsm: str | None = None,
    ) -> float:
        """Macro-F1 of the predicted labels, in [0, 1], over the labels that training has.

        Raises UserError as `predict`, and where no row has such a label.
        """
        told = {"environment": environment, "label": label, "controls": controls}
        return macro_f1_of(self._embed(data, told, table, Part(layer, obsm)))

    @property
    def classes_(self) -> tuple[str, ...]:
        """The labels of training, as text."""
        return tuple(map(str, json.loads(self._fitted()["classes.json"])["labels"]))

    @property
    def environments_(self) -> tuple[str, ...]:
        """The environments of training."""
        return tuple(map(str, json.loads(self._fitted()["classes.json"])["environments"]))

    @property
    def config_(self) -> dict[str, Any]:
        """The configuration of the run, resolved: method, seed, data, training, options."""
        return dict(yaml.safe_load(self._fitted()["config.yaml"]))

    def save(self, path: Path | str) -> None:
        """Write the model as the run directory `path`, for `load` and for `deconfound embed`.

        Raises UserError if `path` exists, and before `fit`.
        """
        write(self._fitted(), Path(path))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The model of a run directory, of `save` or of `deconfound fit`.

        Raises UserError if it is no finished run, or damaged.
        """
        run, files = read(Path(path))
        kept = kept_of(files)
        if kept is None:
            made = cls(run.config.method, **options_of(run.config))
        else:
            made = cls(kept.method, quiet=kept.quiet, **kept.options)
        made._files = files
        return made

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - scikit-learn's
        """`method`, `quiet` and all options that are given."""
        return {"method": self.method, "quiet": self.quiet, **self.options}

    def set_params(self, **params: Any) -> Self:
        """Set `method`, `quiet` or options, for the next `fit`; returns the estimator itself."""
        for name, value in params.items():
            if name in ("method", "quiet"):
                setattr(self, name, value)
            else:
                self.options[name] = value
        return self

    def __repr__(self) -> str:
        given = [] if self.method is None else [repr(self.method)]
        given += ["quiet=True"] if self.quiet else []
        given += [f"{name}={value!r}" for name, value in self.options.items()]
        return f"Deconfounder({', '.join(given)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the method, its options and what it was fitted on."""
        rows = {name: one_line(repr(value)) for name, value in self.options.items()}
        rows |= {"fitted": "not yet"} if self._files is None else described(self._files)
        return card(f"{WHERE}: {self.method or RECOMMENDED}", rows)

    def _train(
        self,
        data: "Data",
        told: dict[str, Any],
        table: pd.DataFrame | None,
        channels: Sequence[str],
        part: Part,
    ) -> Screen:
        """Fit, and the screen that was fitted on."""
        self._files = None
        options = {name: one for name, one in self.options.items() if name not in SAID_TO_FIT}
        told = roles_of(self.options) | {name: one for name, one in told.items() if one is not None}
        with in_words_of_python():
            rows = rows_of(data, table=table, part=part, named=named_columns(told))
            screen, named = training_screen(rows, told, channels)
            config, said = resolve(self.method, options, named, screen)
            if rows.values is not None:
                refuse_beyond_unit(rows.values, config.data.scaling)
        if said is not None:
            self._say(said)
        files = train_model(config, screen, quiet=self.quiet, say=self._say)
        kept = Kept(
            method=self.method,
            quiet=self.quiet,
            options=written(self.options),
            image_shape=screen.image_shape,
            brightest=None if rows.values is None else brightest_of(rows.values),
            layer=part.layer,
            obsm=part.obsm,
            label_type=label_type(files, screen),
        )
        self._files = with_kept(files, kept)
        return screen

    def _embed(
        self, data: "Data", told: dict[str, Any], table: pd.DataFrame | None, part: Part
    ) -> Embeddings:
        screen = screen_of_rows(self._fitted(), data, told, table, part)
        return embed_screen(self._fitted(), screen, self.options, self.quiet)

    def _fitted(self) -> Files:
        if self._files is None:
            raise NotFitted(f"{WHERE}: not fitted yet; call fit first, or load a saved model")
        return self._files

    def __sklearn_is_fitted__(self) -> bool:
        return self._files is not None

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator

        return BaseEstimator().__sklearn_tags__()

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(for_terminal(in_python(text)))
