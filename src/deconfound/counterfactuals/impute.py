"""transfer --to: the images of a screen imputed into one environment."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconfound.arrays import Rows
from deconfound.config import RelativeTo, did_you_mean
from deconfound.counterfactuals.cells import about_run, diverse, names, refuse_irreversible, texts
from deconfound.counterfactuals.pictures import Landing, draw_imputed, draw_landing, find_landing
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import Screen, holds_screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import joined_key
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import sha256
from deconfound.intervention.embedder import in_batches
from deconfound.intervention.intervention import Intervention, frozen
from deconfound.intervention.source_run import refuse_unable
from deconfound.intervention.styles import (
    SourceStyles,
    mean_styles,
    of_sets_in,
    refuse_absolute,
    source_styles_of,
    style_reference,
    styles_anywhere,
    styles_of,
)
from deconfound.methods.contract import Imputer
from deconfound.runs.run import Run, open_run
from deconfound.runtime.device import start_fabric
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import numpy_stream
from deconfound.version import __version__

STYLES = 32
"""Style images at most; half of the target's rows are kept as real cells to compare with."""
SHOWN = 8
"""Cells in the picture."""
BATCH = 256
TARGET, SOURCE_ROW = "deconfound_imputed_to", "deconfound_source_row"
"""Columns that the table of an imputed screen adds to those of its source."""


@dataclass(frozen=True)
class Imputed:
    """A screen of imputed images, and how they were made."""

    screen: Screen
    rows: Rows
    """(N,) int64 rows of the source screen, ascending."""
    style_rows: Rows
    """(N,) int64 rows of the run's own screen: the style image of each image; with relative styles,
    an image of the target for the picture only."""
    clipped: float
    """Share of pixel values that were clipped to the range of the stored type."""
    landing: Landing
    """Representations of the imputed and of real cells."""


def impute(
    run: Path,
    screen: Path,
    out: Path,
    *,
    to: str,
    images: int | None = None,
    relative_style: RelativeTo | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Imputed:
    """Impute images of `screen` into the training environment `to` and write the directory `out`.

    All images are imputed, or `images` of them drawn by `seed`. Each gets the style of an image
    drawn from at most 32 training rows of `to` in the run's own screen. With `relative_style` the
    mean style of an image's environment, over all of its images or its negative controls, is
    replaced by that of `to`, and the image keeps how its own style differs from it. Writes the
    screen imputed/, transfer.png, umap.png and imputed.json. Pernice et al., Interventional Style
    Transfer, 2023, Figure 4B. Raises UserError if `out` exists, if the method cannot impute, for an
    environment that training lacks, if the screen does not fit the run, if styles cannot be
    relative as asked, and if the run's own screen is no longer there.
    """
    out = Path(out)
    atomic.refuse_existing(out)
    opened, source = open_run(run), open_screen(screen)
    to = joined_key(to, opened.roles.environment)
    _refuse_unable(opened, source, to, relative_style is not None)
    rows = _rows(source, images, seed)
    relative_style = relative_style or of_sets_in(opened, source)
    own = _own_screen(opened, source)
    problem = pose(own, opened.config.data)
    training = opened.config.training
    fabric = start_fabric(training.device, "32", training.threads)
    method, intensity = opened.load(source)
    if source.image_shape != own.image_shape:
        found, expected = (" × ".join(map(str, one.image_shape)) for one in (source, own))
        raise UserError(
            f"{screen}: images of {found}; the run draws images of {expected}, ingest with --size "
            f"{own.image_shape[-1]}"
        )
    assert isinstance(method, Imputer)
    imputer = Intervention(frozen(method), intensity, torch.empty(0), None, {}).to(fabric.device)
    of_target = _training_rows(problem, to, seed)
    styles = min(STYLES, -(-len(of_target) // 2))
    group = None if problem.group is None else problem.group.codes
    of_imputer = imputer.imputer, imputer.intensity
    own_styles = styles_of(*of_imputer, own, problem.environment.codes, group, fabric.device)
    bank = own_styles(of_target[:styles])
    source_styles = None
    if relative_style is not None:
        controls, trained_on = opened.config.data.controls, problem.environment.names
        train = problem.fold.rows("train")
        stand_for = style_reference(own, problem.roles, relative_style, controls, trained_on, train)
        bank = mean_styles(own_styles, stand_for.of([to]), [to], seed).expand_as(bank)
        every_style = styles_anywhere(opened, source, *of_imputer)
        source_styles = source_styles_of(opened, source, every_style, relative_style, seed)
    imputer = replace(imputer, bank=bank[None])
    style = numpy_stream(seed, "imputed styles").integers(len(bank), size=len(rows))
    style_rows = of_target[style]
    environment = names(source, opened.roles.environment)
    others = np.flatnonzero((environment.iloc[rows].fillna("") != to).to_numpy(dtype=bool))
    if not len(others):
        raise UserError(
            f"{screen}: all {len(rows)} images are of {to!r} already; nothing to impute"
        )
    with atomic.atomic_directory(out) as temporary:
        folder = temporary / "imputed"
        clipped = _write(
            folder,
            opened,
            source,
            imputer,
            source_styles=source_styles,
            rows=rows,
            style=style,
            to=to,
            quiet=quiet,
        )
        written = open_screen(folder)
        shown = _shown(opened, source, rows, others, seed)
        draw_imputed(
            source.read(rows[shown]),
            own.read(style_rows[shown]),
            written.read(shown),
            temporary / "transfer.png",
            channels=source.channels,
            environments=texts(environment, rows[shown]),
            to=to,
        )
        landing = find_landing(
            imputer,
            fabric,
            (source, rows[others], texts(environment, rows[others])),
            (written, others),
            (own, of_target[styles:] if len(of_target) > 1 else of_target),
            seed,
        )
        draw_landing(landing, to, temporary / "umap.png", seed)
        about = about_run(opened, source) | {
            "imputed_to": to,
            "images": len(rows),
            "styles": len(bank),
            "cells_seed": seed,
            "clipped": clipped,
            "neighbors_of_target": landing.shares(),
            "relative_style": relative_style,
        }
        (temporary / "imputed.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    return Imputed(open_screen(out / "imputed"), rows, style_rows, clipped, landing)


def _write(
    folder: Path,
    run: Run,
    source: Screen,
    imputer: Intervention,
    *,
    source_styles: SourceStyles | None,
    rows: Rows,
    style: Rows,
    to: str,
    quiet: bool,
) -> float:
    """Write the screen of imputed images; returns the share of values that were clipped.

    `style` (N,) is the number of each image's style in the bank of `imputer`; `source_styles` say
    where the rows of the source were taken, None where styles are not relative.
    """
    provenance = {
        "made_by": f"deconfound transfer {__version__}",
        "run": run.path.resolve().name,
        "method": run.config.method,
        "model_sha256": sha256(run.path / "model.safetensors"),
        "imputed_to": to,
        "source": source.name,
        "source_identity": source.identity,
        "source_provenance": source.provenance,
    }
    intensity = imputer.intensity
    reader = BatchReader(source, intensity=intensity, device=imputer.bank.device)
    beyond = values = 0
    name = f"{source.name} as {to}"
    with (
        ScreenWriter(folder, name, source.channels, source.roles, provenance) as writer,
        Progress("impute", len(rows), "images", quiet=quiet) as progress,
    ):
        batches = reader.stream(in_batches(rows, BATCH))
        for numbers, batch in zip(in_batches(style, BATCH), batches, strict=True):
            taken_in = None if source_styles is None else source_styles.of(batch.row)
            imputed = imputer.impute(batch.image, torch.from_numpy(numbers), taken_in)
            pixels, clipped = stored(intensity.inverse(imputed), source.dtype)
            writer.append(pixels)
            beyond, values = beyond + clipped, values + pixels.size
            progress.update(len(numbers))
        table = source.table.iloc[rows].reset_index(drop=True)
        table[TARGET] = to
        table[SOURCE_ROW] = rows
        writer.finish(table, source.index.transform, source.index.percentile_by)
    return beyond / values


def stored(image: torch.Tensor, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Float images in stored units as the stored type, and how many values that clipped."""
    pixels = image.cpu().contiguous().numpy()
    if dtype.kind == "u":
        pixels = pixels.round()
    inside = within_range(pixels, dtype)
    return inside.astype(dtype), int(((inside < pixels) | (inside > pixels)).sum())


def within_range(image: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The images clipped to the range of an unsigned stored type; not rounded."""
    return np.clip(image, 0, np.iinfo(dtype).max) if dtype.kind == "u" else image


def _refuse_unable(run: Run, screen: Screen, to: str, relative: bool) -> None:
    refuse_unable(run.config.method, run.config.method, str(run.path))
    if relative:
        refuse_absolute(run.config.method, str(run.path))
    if screen.holds_profiles:
        raise UserError(
            f"{screen.path}: holds profiles; transfer draws cells, give a screen of images"
        )
    if to not in run.environments:
        raise UserError(
            f"--to {to}: no environment of the run's training; "
            f"{did_you_mean(to, list(run.environments))}"
        )
    refuse_irreversible(run)


def _rows(screen: Screen, images: int | None, seed: int) -> Rows:
    everything = np.arange(len(screen), dtype=np.int64)
    if images is None:
        return everything
    if not 1 <= images <= len(screen):
        raise UserError(
            f"--images {images}: expected 1 to {len(screen)}, the rows of {screen.path}"
        )
    return np.sort(numpy_stream(seed, "imputed rows").permutation(everything)[:images])


def _own_screen(run: Run, screen: Screen) -> Screen:
    """The screen that the run was trained on; styles come from it."""
    if run.trained_on(screen):
        return screen
    path = run.screen_path
    if holds_screen(path) and run.trained_on(own := open_screen(path)):
        return own
    raise UserError(
        f"{path}: the screen that the run was trained on, where styles come from, is not there or "
        "has changed; put it back"
    )


def _training_rows(problem: Problem, environment: str, seed: int) -> Rows:
    """Training rows of an environment, shuffled."""
    train = problem.fold.rows("train")
    code = problem.environment.names.index(environment)
    rows = train[problem.environment.codes[train] == code]
    return np.asarray(numpy_stream(seed, "style images").permutation(rows), dtype=np.int64)


def _shown(run: Run, source: Screen, rows: Rows, others: Rows, seed: int) -> Rows:
    """Places in `rows` of the cells in the picture.

    They are of other environments than the target, and not of training where there are such cells.
    """
    candidates = rows[others]
    unseen = candidates[run.parts(source)[candidates] != "train"]
    candidates = unseen if len(unseen) else candidates
    label = names(source, [str(run.roles.label)])
    environment = names(source, run.roles.environment)
    return np.searchsorted(rows, diverse(candidates, label, environment, SHOWN, seed))
