"""Which image file belongs to which row, and that no path leaves the folder of the images."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deconfound.data.image_file import SUFFIXES
from deconfound.data.table import require_columns
from deconfound.errors import UserError

PATH_COLUMNS = ("Metadata_Path", "Path", "File", "FileName", "Image")
FOLDER_ENVIRONMENT = "Metadata_Environment"
FOLDER_LABEL = "Metadata_Label"
FOLDER_PATH = "Metadata_Path"


def path_column(table: pd.DataFrame, name: str | None, where: str) -> str:
    """The column of image paths: `name`, or the one column called as in `PATH_COLUMNS`.

    Case does not matter for the latter. Raises UserError if there is none, or more than one.
    """
    if name is not None:
        require_columns(table, [name], where)
        return name
    known = {column.lower() for column in PATH_COLUMNS}
    found = [str(column) for column in table.columns if str(column).lower() in known]
    if len(found) == 1:
        return found[0]
    what = f"columns {' and '.join(found)} could both be" if found else "there is no column of"
    raise UserError(
        f"{where}: {what} image paths; name one with --path-column "
        f"(looked for {', '.join(PATH_COLUMNS)})"
    )


def class_folders(root: Path) -> pd.DataFrame:
    """The images below `root`/ENVIRONMENT/LABEL/ as a table, sorted by path; hidden files skipped.

    Columns `Metadata_Environment`, `Metadata_Label` and `Metadata_Path` (relative to `root`).
    Raises UserError if an image lies at another depth, or if there is none in all or in one class.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; check --images-root")
    rows: list[tuple[str, ...]] = []
    empty: list[str] = []
    for place, folders, files in os.walk(root, followlinks=True):
        before = len(rows)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        parts = Path(place).relative_to(root).parts
        if len(parts) == 2:
            for folder in folders:
                raise UserError(
                    f"{Path(place, folder)}: a folder inside a class folder; expected "
                    "ENVIRONMENT/LABEL/file, or give a table"
                )
        for file in sorted(files):
            if file.startswith(".") or not file.lower().endswith(SUFFIXES):
                continue
            if len(parts) != 2:
                raise UserError(
                    f"{Path(place, file)}: expected ENVIRONMENT/LABEL/file below {root}; move it, "
                    "or give a table"
                )
            path = "/".join((*parts, file))
            if not path.isprintable():
                raise UserError(f"{root}: file name {path!r} is not printable UTF-8; rename it")
            rows.append((*parts, path))
        if len(parts) == 2 and len(rows) == before:
            empty.append(place)
    if not rows:
        raise UserError(
            f"{root}: no images; expected ENVIRONMENT/LABEL/file with one of "
            f"{', '.join(SUFFIXES)}, or give a table"
        )
    if empty:
        raise UserError(f"{empty[0]}: no images in this class; add some, or remove the folder")
    return pd.DataFrame(rows, columns=[FOLDER_ENVIRONMENT, FOLDER_LABEL, FOLDER_PATH])


def image_files(
    paths: Sequence[object], root: Path, where: str, *, allow_outside: bool = False
) -> list[Path]:
    """The file of every row, all of them present and inside `root`.

    `paths` are relative to `root` or absolute; symbolic links are followed. Raises UserError naming
    the first row whose path is empty, leaves `root` (unless `allow_outside`) or repeats an earlier
    row's, and the first missing file with the number of all that are missing.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; check --images-root")
    real_root = Path(os.path.realpath(root))
    real_folders: dict[str, Path] = {}
    first_row: dict[Path, int] = {}
    files: list[Path] = []
    missing: list[int] = []
    for row, path in enumerate(paths):
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise UserError(f"{where}: row {row} (from 0): path {path!r}; expected a file's path")
        folder, name = os.path.split(path)
        if folder not in real_folders:
            real_folders[folder] = Path(os.path.realpath(root / folder))
        file = real_folders[folder] / name
        try:
            mode = file.lstat().st_mode
            if stat.S_ISLNK(mode) or name in ("", ".", ".."):
                file = Path(os.path.realpath(file))
                mode = file.stat().st_mode
        except OSError:
            mode = 0
        if not allow_outside and not file.is_relative_to(real_root):
            raise UserError(
                f"{where}: row {row} (from 0): {path} leads outside {root}; move the images below "
                "it, or pass --allow-outside if that is meant"
            )
        if not stat.S_ISREG(mode):
            missing.append(row)
        if first_row.setdefault(file, row) != row:
            raise UserError(
                f"{where}: rows {first_row[file]} and {row} (from 0) both name {path}; expected "
                "one image per row, drop one of them"
            )
        files.append(file)
    if missing:
        raise UserError(
            f"{where}: row {missing[0]} (from 0): no file {root / str(paths[missing[0]])}; "
            f"{len(missing)} of {len(files)} files are missing, check --images-root"
        )
    return files
