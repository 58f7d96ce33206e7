"""Refusing an output directory that holds something other than the command's output."""

from pathlib import Path

from deconfound.errors import UserError
from deconfound.files.atomic import is_leftover


def refuse_foreign(out: Path, marker: str, kind: str, content: str | None = None) -> bool:
    """Whether `out` already holds a `kind`, such as "sweep", that the command can continue.

    A `kind` is known by its file `marker`, which must hold the text `content` if that is given. A
    directory that is missing, or holds only what killed processes left half-written, is free.
    Raises UserError if `out` holds a `kind` with other content, or something else.
    """
    file = Path(out) / marker
    if not file.is_file():
        if not _is_free(Path(out)):
            raise UserError(f"{out}: exists and is not a {kind}; choose another --out")
        return False
    if content is not None and file.read_text(encoding="utf-8", errors="replace") != content:
        raise UserError(f"{out}: holds a {kind} with other options; choose another --out")
    return True


def _is_free(out: Path) -> bool:
    if not out.is_dir():
        return not out.exists()
    return all(is_leftover(file.name) for file in out.iterdir())
