"""cellprofiler: the features of CellProfiler, measured on every image of a screen."""

from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.data.ingest.profiles import write_profiles
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.errors import UserError
from deconfound.files import atomic, lock
from deconfound.runtime import stop
from deconfound.runtime.progress import Progress

CHUNK = 64
"""Images measured between two writes to the disk."""
OBJECT = "Cell"

Measure = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int32]], tuple[Any, list[str]]]


@stop.told(stop.RESUMES)
def cellprofiler(
    screen: Path, out: Path, *, mask: str | None = None, slow: bool = False, quiet: bool = False
) -> Screen:
    """Measure every image of `screen` by cp_measure; write a screen of profiles at `out`.

    Muñoz et al. 2025. The object is the whole image or, with `mask`, the pixels above 0 of that
    channel, which is not measured itself; if its middle pixel is not 0, only the pixels of that
    value. Images are divided by the maximum of their type. `slow` adds granularity and Costes'
    correlation. Features that are constant, or missing or infinite in some row, are dropped, as by
    ingest. If stopped, the same call resumes. Raises UserError without cp_measure, if `out` exists
    or is being written, for a screen of profiles, and for an image whose mask is empty.
    """
    out, opened = Path(out), open_screen(screen)
    atomic.refuse_existing(out)
    if opened.holds_profiles:
        raise UserError(f"{opened.path}: holds profiles already; expected a screen of images")
    if mask is not None and mask not in opened.channels:
        known = ", ".join(opened.channels)
        raise UserError(f"{opened.path}: there is no channel {mask!r}; it has {known}")
    measured = [name for name in opened.channels if name != mask]
    measure = _featurizer(measured, slow)
    about = {
        "measured_by": f"cp_measure {metadata.version('cp_measure')}",
        "screen_identity": opened.identity,
        "mask": mask,
        "slow": slow,
    }
    with atomic.resumable(lock.beside(out, f"{out.name}.features"), str(about)) as folder:
        chunks_of = np.split(np.arange(len(opened)), range(CHUNK, len(opened), CHUNK))
        parts = {folder / f"{rows[0]:012d}.npz": rows for rows in chunks_of}
        done = sum(len(rows) for file, rows in parts.items() if file.exists())
        with Progress("measure", len(opened), "images", done, quiet) as progress:
            for file, rows in parts.items():
                if not file.exists():
                    values, names = measure(*_objects(opened, rows, mask))
                    with atomic.atomic_file(file) as temporary, temporary.open("wb") as stream:
                        np.savez(stream, values=values.astype(np.float32), names=np.array(names))
                    progress.update(len(rows))
        with np.load(next(iter(parts)), allow_pickle=False) as first:
            names = [str(name) for name in first["names"]]

        def chunks(chosen: Sequence[str]) -> Iterator[npt.NDArray[np.float32]]:
            columns = [names.index(name) for name in chosen]
            for file in parts:
                with np.load(file, allow_pickle=False) as kept:
                    yield kept["values"][:, columns]

        return write_profiles(
            names, chunks, opened.table, out, opened.roles, about, where=str(screen), quiet=quiet
        )


def _objects(
    screen: Screen, rows: npt.NDArray[np.int64], mask: str | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Images (B, C, H, W) float32 in 0 … 1, without the mask, and objects (B, 1, H, W)."""
    images = screen.read(rows)
    most = np.iinfo(images.dtype).max if np.issubdtype(images.dtype, np.integer) else 1.0
    objects = np.ones((len(rows), 1, *images.shape[2:]), dtype=np.int32)
    if mask is not None:
        number = screen.channels.index(mask)
        label = images[:, number]
        middle = label[:, label.shape[1] // 2, label.shape[2] // 2][:, None, None]
        objects = np.where(middle > 0, label == middle, label > 0).astype(np.int32)[:, None]
        empty = np.flatnonzero(~objects.any(axis=(1, 2, 3)))
        if len(empty):
            raise UserError(
                f"{screen.path}: row {rows[empty[0]]}: channel {mask!r} marks no pixel; leave such "
                "rows out, or measure whole images without --mask"
            )
        images = np.delete(images, number, axis=1)
    return (images / most).astype(np.float32), objects


def _featurizer(channels: list[str], slow: bool) -> Measure:
    """A function that measures images and objects; raises UserError if cp_measure is missing."""
    try:
        from cp_measure.featurizer import featurize, make_featurizer_config
    except ImportError as error:
        raise UserError(
            "cellprofiler needs the extra [cellprofiler]: pip install 'deconfound[cellprofiler]' "
            f"({error})"
        ) from error
    config = make_featurizer_config(
        channels,
        objects=[OBJECT],
        granularity=slow,
        correlation_costes=slow,
        correlation_costes_params={"scale_max": 255},
    )

    def measure(
        images: npt.NDArray[np.float32], objects: npt.NDArray[np.int32]
    ) -> tuple[Any, list[str]]:
        with np.errstate(all="ignore"):
            values, names, found = featurize(images, objects, config)
        if [row[0] for row in found] != list(range(len(images))):
            raise RuntimeError("cp_measure: expected one object an image")
        return values, [f"{OBJECT}_{name}" for name in names]

    return measure
