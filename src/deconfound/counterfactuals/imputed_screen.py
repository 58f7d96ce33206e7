"""The screen of imputed images: written batch by batch, in the stored type of its source."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconfound.arrays import Rows
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import Screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.files.checksums import sha256
from deconfound.intervention.embedder import in_batches
from deconfound.intervention.intervention import Intervention
from deconfound.intervention.styles import SourceStyles
from deconfound.runs.run import Run
from deconfound.runtime.progress import Progress

BATCH = 256
TARGET, SOURCE_ROW = "deconfound_imputed_to", "deconfound_source_row"
"""Columns that the table of an imputed screen adds to those of its source."""


@dataclass(frozen=True)
class Imputation:
    """Which images are imputed, by which imputer and in which styles."""

    run: Run
    source: Screen
    imputer: Intervention
    """Its bank holds the styles."""
    source_styles: SourceStyles | None
    """Where the rows of the source were taken; None where styles are not relative."""
    rows: Rows
    """(N,) int64 rows of the source, ascending."""
    style: Rows
    """(N,) int64, the number of the style that each image gets."""
    to: str
    """The environment that the styles are of."""

    def write(self, folder: Path, quiet: bool) -> float:
        """Write the imputed screen; returns the share of values that were clipped."""
        run, source, rows = self.run, self.source, self.rows
        provenance = {
            "made_by": f"deconfound transfer {version('deconfound')}",
            "run": run.path.resolve().name,
            "method": run.config.method,
            "model_sha256": sha256(run.path / "model.safetensors"),
            "imputed_to": self.to,
            "source": source.name,
            "source_identity": source.identity,
            "source_provenance": source.provenance,
        }
        intensity = self.imputer.intensity
        reader = BatchReader(source, intensity=intensity, device=self.imputer.bank.device)
        beyond = values = 0
        name = f"{source.name} as {self.to}"
        with (
            ScreenWriter(folder, name, source.channels, source.roles, provenance) as writer,
            Progress("impute", len(rows), "images", quiet=quiet) as progress,
        ):
            batches = reader.stream(in_batches(rows, BATCH))
            for style, batch in zip(in_batches(self.style, BATCH), batches, strict=True):
                taken_in = None if self.source_styles is None else self.source_styles.of(batch.row)
                imputed = self.imputer.impute(batch.image, torch.from_numpy(style), taken_in)
                pixels, clipped = stored(intensity.inverse(imputed), source.dtype)
                writer.append(pixels)
                beyond, values = beyond + clipped, values + pixels.size
                progress.update(len(style))
            table = source.table.iloc[rows].reset_index(drop=True)
            table[TARGET] = self.to
            table[SOURCE_ROW] = rows
            writer.finish(table, source.index.transform, source.index.percentile_by)
        return beyond / values


def stored(image: torch.Tensor, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Float images in stored units as the stored type, and how many values that clipped."""
    pixels = image.cpu().contiguous().numpy()
    if dtype.kind != "u":
        return pixels.astype(dtype), 0
    pixels = pixels.round()
    largest = float(np.iinfo(dtype).max)
    clipped = int(((pixels < 0) | (pixels > largest)).sum())
    return np.clip(pixels, 0, largest).astype(dtype), clipped
