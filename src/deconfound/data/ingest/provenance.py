"""The provenance of an ingested screen, and the remarks on it that the user is shown."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deconfound.config import Options
from deconfound.data.tables.table import listed
from deconfound.files.checksums import sha256


def provenance_of(
    table: Path | None, images_root: Path | None, config: Options, size: int | None
) -> dict[str, Any]:
    """The provenance known before the images are read: files, options, resizing and versions."""
    packages = ("deconfound", "numpy", "pandas", "pillow", "tifffile")
    return {
        "made_by": "ingest",
        "table": None if table is None else os.fspath(table),
        "table_sha256": None if table is None else sha256(Path(table)),
        "images_root": None if images_root is None else os.fspath(images_root),
        "options": config.model_dump(mode="json"),
        "resize": None if size is None else resizing(size),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def resizing(size: int) -> dict[str, Any]:
    """The provenance of images resized to `size` × `size`."""
    return {"size": size, "shrinking": "area mean", "growing": "linear"}


def identity_of(made: dict[str, Any], files: Iterable[tuple[Path, ...]]) -> str:
    """A checksum of all that the images of a screen depend on, for an ingest to go on from another.

    `made` is its provenance, of which the number of threads does not count; of every image file the
    path, the size and the time of its last change do.
    """
    options = made["options"] | {"threads": None}
    digest = hashlib.sha256(json.dumps(made | {"options": options}).encode())
    for file in dict.fromkeys(file for of_row in files for file in of_row):
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def remarks(made: dict[str, Any]) -> list[str]:
    """Remarks for the user on a screen just made: dropped rows or features, black images."""
    said = [
        f"dropped {len(features)} features, {why.replace('_', ' ')}: {listed(features)}"
        for why, features in made.get("dropped", {}).items()
        if features
    ]
    crop = made.get("crop")
    if crop:
        said.append(
            f"{crop['dropped_at_border']:,} of {crop['rows_of_table']:,} cells in "
            f"{crop['fields']:,} fields lie too near the border and were dropped"
        )
    if made.get("files_without_row"):
        said.append(
            f"{made['files_without_row']:,} images in class folders have no row in the table "
            "and were left out"
        )
    if made.get("black_images"):
        said.append(
            f"warning: {made['black_images']:,} images are black (every pixel 0); check "
            "their files, or drop these rows"
        )
    return said
