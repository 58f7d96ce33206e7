"""correct: post hoc removal of the environment from embeddings, and a vote of neighbours."""

from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deconfound.arrays import Floats, Mask
from deconfound.config import did_you_mean
from deconfound.data.folds.controls import control_rows
from deconfound.data.readers.blocks import one_block
from deconfound.data.tables.table import Coded, coded
from deconfound.embeddings.file import PREDICTED, Embeddings, read_embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.methods import post_hoc
from deconfound.methods.contract.post_hoc import PostHoc, PostHocOptions, TooFewControls
from deconfound.metrics.neighbors import nearest, vote
from deconfound.runs.config import ALIGNED, HELD_OUT_NOTES, SAW_HELD_OUT

KNN = "knn"
"""The name under which `correct` only takes the vote and leaves the embedding as it is."""
NEIGHBORS = 10
NOTES = "post_hoc_notes"


def names() -> list[str]:
    """Names that `correct` takes: every post hoc method, and "knn"."""
    return [*post_hoc.names(), KNN]


def correct(
    method: str,
    embeddings: Path,
    out: Path,
    options: PostHocOptions | None = None,
    *,
    representation: str = "representation",
    knn: int | None = None,
    reference: Path | None = None,
    control: str | None = None,
) -> Embeddings:
    """Correct one representation of an embeddings file with a post hoc method; write `out`.

    The method learns from rows of `embeddings` whose part is train, or from those of the file
    `reference`; a method that cannot map new rows is fitted on all rows, and the file says so.
    Rows of each other part are mapped together. With `knn`, or where `method` is "knn", the k
    nearest training rows vote for the label of every row (a training row has no vote on itself);
    otherwise nothing is predicted. A method that needs controls finds them by `control`, as in
    `control_rows`. The new file holds that representation alone, and is called
    METHOD+CORRECTION; what a correction left out is told in `about["post_hoc_notes"]`, which is
    missing where nothing is. Raises UserError if `out` exists or is being written, or if the file
    has no such representation or no training rows.
    """
    out = Path(out)
    if out.suffix != ".h5ad":
        raise UserError(f"{out}: expected a name ending in .h5ad")
    if method not in names():
        raise UserError(f"unknown post hoc method {method!r}; {did_you_mean(method, names())}")
    if method == KNN and knn is None:
        knn = NEIGHBORS
    if knn is not None and knn < 1:
        raise UserError(f"correct: --knn {knn}: expected 1 or more neighbours")
    with atomic.claimed(out):
        opened = read_embeddings(embeddings, one_block(representation))
        order = opened.order()
        opened = opened.taken(order)
        learnt = opened if reference is None else _fitting(reference, embeddings, opened)
        for path, one in ((embeddings, opened), (reference or embeddings, learnt)):
            one.block(representation, str(path))
        _refuse_unfit(learnt, opened, method, reference or embeddings, reference is not None)
        correction = None
        if method != KNN:
            loaded = post_hoc.load(method)
            correction = loaded(loaded.Options() if options is None else options)
        controls = None
        if correction is not None and correction.needs_controls():
            controls = [
                control_rows(one.table, one.roles.label, control, str(embeddings))
                for one in (learnt, opened)
            ]
        fitted, values = _corrected(correction, opened, learnt, representation, controls)
        predicted = pd.Series(pd.NA, index=opened.table.index, dtype="string")
        if knn is not None:
            predicted = _voted(fitted, learnt, values, opened, knn)
        table = opened.table.assign(**{PREDICTED: predicted})
        done: dict[str, Any] = {}
        if correction is not None:
            done[_word(method)] = correction.options.model_dump(mode="json")
            done[_word(method)]["representation"] = representation
            if controls is not None and control is not None:
                done[_word(method)]["control"] = control
        if knn is not None:
            done[KNN] = {"k": knn, "representation": representation}
        about = _about(opened, correction, done, reference)
        made = Embeddings(table, {representation: values}, about)
        write_embeddings(out, made.taken(None if order is None else np.argsort(order)))
    return read_embeddings(out)


def _fitting(reference: Path, embeddings: Path, opened: Embeddings) -> Embeddings:
    """Read the file to learn from; raises UserError if it is of another run than `embeddings`."""
    found = read_embeddings(reference)
    found = found.taken(found.order())
    if (opened.part == "train").any():
        raise UserError(
            f"{embeddings}: holds training rows of its own; --reference is for embeddings of "
            "another screen, leave it out"
        )
    for entry in ("config", "selection"):
        if found.about.get(entry) != opened.about.get(entry):
            raise UserError(
                f"{reference}: is not of the run that {embeddings} is of ({entry} differs); embed "
                "both screens with one run"
            )
    return found


def _refuse_unfit(
    learnt: Embeddings, opened: Embeddings, method: str, path: Path, apart: bool
) -> None:
    if not (learnt.part == "train").any():
        raise UserError(
            f"{path}: holds no training rows to learn from; name the embeddings of the screen "
            "trained on with --reference"
        )
    if apart and method != KNN and not post_hoc.load(method).MAPS:
        raise UserError(
            f"{method}: cannot map rows onto a reference; use symphony, or leave --reference out"
        )
    if _word(method) in opened.about["config"].get("post_hoc", {}):
        raise UserError(f"{path}: is already corrected by {method}; name the file it was made of")


def _corrected(
    correction: PostHoc | None,
    opened: Embeddings,
    learnt: Embeddings,
    representation: str,
    controls: list[Mask] | None,
) -> tuple[Floats, Floats]:
    """The corrected training rows of `learnt`, and all rows of `opened`, corrected.

    `controls` are those of `learnt` and `opened`, (N,) each.
    """
    training, part = learnt.part == "train", opened.part
    source, target = learnt.representations[representation], opened.representations[representation]
    if correction is None:
        return source[training], target
    # Codes of both files are numbered together, so that a code stands for one environment.
    both = coded(pd.concat([learnt.environment(), opened.environment()], ignore_index=True))
    of_source, of_target = both.codes[: len(training)], both.codes[len(training) :]
    if not correction.MAPS:
        values = correction.fit(target, of_target)
        return values[training], values
    control, of_new = controls or (None, None)
    name = "train"
    try:
        fitted = correction.fit(
            source[training], of_source[training], None if control is None else control[training]
        )
        values = np.empty((len(part), fitted.shape[1]), dtype=np.float32)
        for name in np.unique(part).tolist():
            inside = part == name
            if name == "train":
                values[inside] = fitted
            else:
                chosen = None if of_new is None else of_new[inside]
                values[inside] = correction.transform(target[inside], of_target[inside], chosen)
    except TooFewControls as error:
        raise UserError(f"rows of part {name}: {named_line(error, both.names)}") from error
    return fitted, values


def named_line(error: TooFewControls, names: tuple[str, ...]) -> str:
    """The error's line, with the name of the environment instead of its code."""
    one = error.environment
    return error.line("all environments" if one is None or one < 0 else names[one])


def _voted(
    fitted: Floats, learnt: Embeddings, values: Floats, opened: Embeddings, k: int
) -> pd.Series:
    """The label that the k nearest labelled training rows give to every row."""
    training = learnt.part == "train"
    label: Coded = coded(learnt.label()[training])
    known = np.flatnonzero(label.codes >= 0)
    own = np.full(len(values), -1, dtype=np.int64)
    if learnt is opened:
        own[np.flatnonzero(training)[known]] = np.arange(len(known))
    k = min(k, len(known) - (learnt is opened))
    if k < 1:
        raise UserError("correct: too few labelled training rows to vote; expected 2 or more")
    chosen, _ = nearest(fitted[known], values, k, exclude=own)
    codes = vote(label.codes[known][chosen])
    names = np.asarray(label.names, dtype=object)[codes]
    return pd.Series(names, index=opened.table.index, dtype="string")


def _word(method: str) -> str:
    """What a method adds to the name of the corrected method."""
    return method if method == KNN else post_hoc.load(method).title(method)


def _about(
    opened: Embeddings, correction: PostHoc | None, done: dict[str, Any], reference: Path | None
) -> dict[str, Any]:
    """What the corrected file holds of its run, and the options `done` of each correction."""
    refitted = correction is not None and not correction.MAPS
    about = opened.about | {
        "method": "+".join([str(opened.about["method"]), *done]),
        "saw_held_out": bool(opened.about.get("saw_held_out")) or refitted,
        "corrected_from": opened.about.get("run"),
        "fitted_on": "all rows, held-out ones too" if refitted else "rows of part train",
        "config": opened.about["config"]
        | {"post_hoc": opened.about["config"].get("post_hoc", {}) | done},
    }
    if refitted and HELD_OUT_NOTES in about:
        about[HELD_OUT_NOTES] = list(dict.fromkeys([*about[HELD_OUT_NOTES], SAW_HELD_OUT]))
    if correction is not None and correction.ADAPTS:
        told = about.get(HELD_OUT_NOTES, [SAW_HELD_OUT] if about["saw_held_out"] else [])
        about[HELD_OUT_NOTES] = list(dict.fromkeys([*told, ALIGNED]))
    if correction is not None and (notes := correction.notes()):
        name = next(iter(done))
        about[NOTES] = [*opened.about.get(NOTES, []), *(f"{name}: {note}" for note in notes)]
    if reference is not None:
        about["reference"] = Path(reference).name
    if correction is not None:
        about["post_hoc_software"] = {}
        with suppress(metadata.PackageNotFoundError):
            about["post_hoc_software"]["harmonypy"] = metadata.version("harmonypy")
    return about
