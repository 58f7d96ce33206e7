"""54 untrained numbers of the intensities of an image: what a method must read beyond.

Of each of 4 channels the mean, the standard deviation, 9 percentiles and the mean slope, and the
correlations of the 6 pairs of channels.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.embeddings.file import PART, PREDICTED, Embeddings, write_embeddings

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
CHUNK = 2_048

Values = npt.NDArray[np.float32]


def intensities(images: npt.NDArray[np.generic]) -> Values:
    """(N, C·12 + C·(C−1)/2) numbers of images (N, C, H, W) of any type; 54 of 4 channels."""
    light = images.astype(np.float32)
    flat = light.reshape(*light.shape[:2], -1)
    mean, sd = flat.mean(axis=2), flat.std(axis=2)
    down, across = np.gradient(light, axis=(2, 3))
    slope = np.hypot(down, across).mean(axis=(2, 3))
    unit = (flat - mean[:, :, None]) / np.where(sd > 0, sd, 1)[:, :, None]
    pairs = [
        (unit[:, i] * unit[:, j]).mean(axis=1) for i, j in combinations(range(len(unit[0])), 2)
    ]
    found = [mean, sd, *np.percentile(flat, PERCENTILES, axis=2), slope, np.stack(pairs, axis=1)]
    return np.concatenate(found, axis=1).astype(np.float32)


def of_screen(screen: Screen) -> Values:
    """(N, D) numbers of every image of a screen."""
    rows = np.arange(len(screen))
    chunks = np.split(rows, range(CHUNK, len(rows), CHUNK))
    return np.concatenate([intensities(screen.read(some)) for some in chunks])


def write_intensities(screen: Screen, file: Path, fold: str = "given") -> None:
    """The embeddings file of the numbers of every image, with the parts of a fold."""
    write_values(screen, file, "intensities", of_screen(screen), fold)


def write_profiles(screen: Screen, file: Path) -> None:
    """A Parquet table of the screen's metadata and its numbers, for `deconfound ingest`."""
    values = of_screen(screen)
    columns = [f"Intensity_{number}" for number in range(values.shape[1])]
    known = screen.table[
        [name for name in screen.table.columns if not str(name).startswith("Truth_")]
    ]
    numbers = pd.DataFrame(values, columns=columns, index=known.index)
    pd.concat([known, numbers], axis=1).to_parquet(file, index=False)


def write_values(screen: Screen, file: Path, method: str, values: Values, fold: str) -> None:
    """The embeddings file of `values` (N, D) of every image, as if made by `method`."""
    problem = pose(screen, DataOptions(fold=fold))
    table = screen.table.copy()
    table[PART] = problem.fold.part
    table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
    about = {
        "method": method, "fold": fold, "seed": 0, "config": {},
        "roles": problem.roles.model_dump(mode="json"),
    }  # fmt: skip
    write_embeddings(file, Embeddings(table, {"representation": values}, about))


def main() -> None:
    """Write the numbers of a screen's images as embeddings or as profiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("screen", type=Path)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="embeddings file, .h5ad, or a table of profiles, .parquet",
    )
    parser.add_argument("--fold", default="given")
    arguments = parser.parse_args()
    screen = open_screen(arguments.screen)
    if arguments.out.suffix == ".parquet":
        write_profiles(screen, arguments.out)
    else:
        write_intensities(screen, arguments.out, arguments.fold)


if __name__ == "__main__":
    main()
