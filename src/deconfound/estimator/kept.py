"""The files of a model's run, kept in memory, and what an estimator adds to them."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from deconfound.config import Options
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import CHECKSUMS
from deconfound.runs.run import Run, open_run, refuse_changed

NAME = "Deconfounder"
"""Name of the folder that a run lies in while it is needed."""
FILE = "deconfounder.json"
"""What an estimator adds to a run directory."""
FORMAT_VERSION = 1
_FLAG = re.compile(r"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")

Files = dict[str, bytes]
"""The files of a finished run, by name."""


class Kept(Options):
    """What an estimator adds to a run: how it was made, and what it was given."""

    format_version: int = FORMAT_VERSION
    method: str | None = None
    quiet: bool = False
    options: dict[str, Any] = Field({})
    image_shape: tuple[int, ...] = ()
    """(C, H, W), or (D,) of profiles; empty where it is not known."""
    brightest: float | None = None
    """Largest absolute value of floating-point images."""
    layer: str | None = None
    obsm: str | None = None
    """Part of AnnData that held the profiles."""
    label_type: str | None = None
    """Type of labels that were numbers."""


@contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A run directory with these files, in a temporary folder that is removed after the block.

    UserErrors of the block are `in_words_of_python`.
    """
    with tempfile.TemporaryDirectory(prefix="deconfound-", ignore_cleanup_errors=True) as folder:
        run = Path(folder) / NAME
        run.mkdir()
        for name, content in files.items():
            (run / name).write_bytes(content)
        with in_words_of_python(Path(folder)):
            yield run


@contextmanager
def in_words_of_python(folder: Path | None = None) -> Iterator[None]:
    """UserErrors of the block speak of options by their names in Python, and not of `folder`."""
    try:
        yield
    except UserError as error:
        raise type(error)(in_python(str(error), folder)) from error


def in_python(text: str, folder: Path | None = None) -> str:
    """A message of the command line with options as Python names them, but in `commands`."""
    if folder is not None:
        text = text.replace(f"{folder}/", "")
    text = text.replace("choose another --out", "choose another path")
    parts = text.split("`")
    parts[::2] = [_FLAG.sub(lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]]
    return "`".join(parts)


def packed(run: Path) -> Files:
    """The files of a run directory."""
    files = (file for file in sorted(run.iterdir()) if file.is_file() and file.name[0] != ".")
    return {file.name: file.read_bytes() for file in files}


def with_kept(files: Files, kept: Kept) -> Files:
    """The files with what the estimator adds, and its checksum among theirs."""
    note = json.dumps(kept.model_dump(), default=str, indent=2).encode()
    sums = json.loads(files[CHECKSUMS]) | {FILE: hashlib.sha256(note).hexdigest()}
    return files | {FILE: note, CHECKSUMS: json.dumps(sums, indent=2).encode()}


def kept_of(files: Mapping[str, bytes]) -> Kept | None:
    """What an estimator added to a run; None for a run of the command line.

    Raises UserError if it is damaged or of a newer format.
    """
    if FILE not in files:
        return None
    try:
        found = json.loads(files[FILE])
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{FILE}: format version {version!r}; this release reads {FORMAT_VERSION}, take a "
                "newer one"
            )
        return Kept.model_validate(found)
    except (ValueError, AttributeError, ValidationError) as error:
        raise UserError(f"{FILE}: damaged; restore a copy, or fit and save the model again") from (
            error
        )


def read(path: Path) -> tuple[Run, Files]:
    """The finished run in a directory, and its files; raises UserError if it is none or damaged."""
    with in_words_of_python():
        run = open_run(path)
        refuse_changed(path / FILE)
        return run, packed(path)


def write(files: Mapping[str, bytes], path: Path) -> None:
    """Write the files as the run directory `path`; raises UserError if it exists."""
    with in_words_of_python(), atomic.atomic_directory(path) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
