"""What is fuzzed: readers of files that come from elsewhere, each given bytes.

Run as a script, under atheris: `targets.py TARGET DIRECTORY -runs=N`.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from deconfound.config import read_yaml
from deconfound.data.readers.image import read_image
from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.table import read_table
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.runs.checkpoint import read_resume, read_weights
from deconfound.runs.run import read_json

SCREENS = {"screen": "screen", "shard": "screen", "zarr": "packed", "zarr.json": "packed"}
"""Targets whose file lies in a screen, and the folder of that screen."""


def read_pixels(file: Path) -> None:
    """Read every image of a screen of Zarr shards, which are the images that were written."""
    screen = open_screen(file.parents[1])
    start = 0
    for shard in screen.index.shards:
        stream = io.BytesIO()
        np.save(stream, screen.read(range(start, start + shard.rows)))
        assert hashlib.sha256(stream.getbuffer()).hexdigest() == shard.identity, "other pixels"
        start += shard.rows


SECONDS = 60
"""A reader that works longer than this on a small file hangs."""
TARGETS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "csv": ("table.csv", read_table),
    "tsv": ("table.tsv", read_table),
    "parquet": ("table.parquet", read_table),
    "screen": ("screen/screen.json", lambda file: open_screen(file.parent)),
    "shard": ("screen/images-00000.npy", lambda file: open_screen(file.parent)),
    "zarr": ("packed/images.zarr/c.1.0.0.0", read_pixels),
    "zarr.json": ("packed/images.zarr/zarr.json", read_pixels),
    "weights": ("model.safetensors", read_weights),
    "resume": ("resume.pt", lambda file: read_resume(file.parent)),
    "classes": ("classes.json", read_json),
    "config": ("config.yaml", read_yaml),
    "image": ("image", lambda file: read_image(file, max_pixels=2**20)),
    "embeddings": ("embeddings.h5ad", read_embeddings),
}
"""The file that is read, and its reader."""


def feed(name: str, content: bytes, folder: Path) -> bool:
    """Give a reader bytes; whether it could read them. Raises what is no UserError of one line."""
    file, reader = TARGETS[name]
    file_path = folder / file
    file_path.parent.mkdir(exist_ok=True)
    file_path.write_bytes(content)
    try:
        with no_longer_than(SECONDS):
            reader(file_path)
    except UserError as error:
        assert len(str(error).splitlines()) == 1, error
        assert str(file_path) in str(error) or name in ("image", "screen", "shard"), error
        return False
    return True


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a block that hangs."""

    def hangs(_: int, __: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main() -> None:
    """Fuzz one target; what a screen needs beside the fuzzed file lies in DIRECTORY/seed."""
    import atheris

    name, folder = sys.argv[1], Path(sys.argv[2])
    logging.disable()
    if name in SCREENS:
        shutil.copytree(folder / "seed", folder / SCREENS[name], dirs_exist_ok=True)
    atheris.Setup(
        [sys.argv[0], *sys.argv[3:], os.fspath(folder / "corpus")],
        lambda content: feed(name, content, folder) and None,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
