"""The image file of each row, and the check that no path leaves the folder of the images."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deconfound.data.readers.image import SUFFIXES
from deconfound.data.readers.ome_zarr import is_group
from deconfound.data.readers.zarr_chunks import all_below
from deconfound.data.tables.keys import shown
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError

FOLDER_ENVIRONMENT = "Metadata_Environment"
FOLDER_LABEL = "Metadata_Label"
FOLDER_PATH = "Metadata_Path"
FOLDER_ROLES = Roles(
    label=FOLDER_LABEL, environment=(FOLDER_ENVIRONMENT,), levels=(FOLDER_ENVIRONMENT,)
)


def class_folders(root: Path, *, allow_outside: bool = False) -> pd.DataFrame:
    """The images below `root`/ENVIRONMENT/LABEL/ as a table, sorted by path; hidden files skipped.

    Columns `Metadata_Environment`, `Metadata_Label` and `Metadata_Path` (relative to `root`).
    Symbolic links are followed, out of `root` only with `allow_outside`. Raises UserError for a
    link that leaves `root`, if an image lies at another depth, or if there is none in all or in one
    class.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; check --images-root")
    real_root = os.path.realpath(root)
    rows: list[tuple[str, ...]] = []
    empty: list[str] = []
    for place, folders, files in os.walk(root, followlinks=True):
        before = len(rows)
        if not (allow_outside or Path(os.path.realpath(place)).is_relative_to(real_root)):
            raise UserError(
                f"{place}: a link that leads outside {root}; move the folder below it, or pass "
                "--allow-outside if that is meant"
            )
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
                    "or give a table, with --class-folders where the folders are labels"
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


def labelled_by_folder(
    table: pd.DataFrame, column: str, root: Path, where: str
) -> tuple[pd.DataFrame, int]:
    """`table` with the labels of its images, which lie in `root`/LABEL/file.

    `column` holds paths (LABEL/file, relative to `root`) or names of files, which then must be
    unique over the folders. Adds `Metadata_Label` and `Metadata_Path`, and returns with it how many
    images no row names. Raises UserError for a row whose file is in no folder, or in several.
    """
    if FOLDER_LABEL in table.columns:
        raise UserError(
            f"{where}: column {FOLDER_LABEL!r} and --class-folders both give the label; drop one"
        )
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; check --images-root")
    folders: dict[str, list[str]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            for file in folder.iterdir():
                if file.name.lower().endswith(SUFFIXES) and not file.name.startswith("."):
                    folders.setdefault(file.name, []).append(folder.name)
    labels, paths = [], []
    for row, path in enumerate(table[column].tolist()):
        place = f"{where}: row {row} (from 0): column {column!r}: {shown(path)}"
        *above, name = path.strip().split("/") if isinstance(path, str) else [""]
        found = folders.get(name, [])
        if above:
            found = [folder for folder in found if [folder] == above]
        if not found:
            raise UserError(f"{place} is not in LABEL/file below {root}; check --images-root")
        if len(found) > 1:
            raise UserError(
                f"{place} is in the folders {' and '.join(found)}; write LABEL/file in the table"
            )
        labels.append(found[0])
        paths.append(f"{found[0]}/{name}")
    unnamed = sum(map(len, folders.values())) - len(set(paths))
    return table.assign(**{FOLDER_LABEL: labels, FOLDER_PATH: paths}), unnamed


def image_files(
    paths: Sequence[object],
    root: Path,
    where: str,
    *,
    column: str | None = None,
    allow_outside: bool = False,
    shared: bool = False,
) -> list[Path]:
    """The file of every row (or OME-Zarr's folder), all of them present and inside `root`.

    `paths` are relative to `root` or absolute, from the table's `column`; symbolic links are
    followed. Raises UserError naming the first row whose path is empty, leaves `root` itself or by
    a file of its store (unless `allow_outside`) or repeats an earlier row's (unless rows may have
    `shared` files), and the first missing file with the number of all that are missing.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; check --images-root")
    real_root = Path(os.path.realpath(root))
    of_column = f"column {column!r}: " if column else ""
    real_folders: dict[str, Path] = {}
    known: dict[str, Path] = {}
    first_row: dict[Path, int] = {}
    files: list[Path] = []
    missing: list[int] = []
    for row, path in enumerate(paths):
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise UserError(
                f"{where}: row {row} (from 0): {of_column}path {shown(path)}; expected a "
                "file's path"
            )
        if shared and path in known:
            files.append(known[path])
            continue
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
                f"{where}: row {row} (from 0): {of_column}{path} leads outside {root}; move "
                "the images below it, or pass --allow-outside if that is meant"
            )
        if stat.S_ISDIR(mode) and is_group(file):
            try:
                inner = None if allow_outside else _leading_outside(file, real_root)
            except OSError:
                missing.append(row)
                inner = None
            if inner is not None:
                raise UserError(
                    f"{where}: row {row} (from 0): {of_column}{path}: its file {inner} leads "
                    f"outside {root}; move it below, or pass --allow-outside if that is meant"
                )
        elif not stat.S_ISREG(mode):
            missing.append(row)
        if not shared and first_row.setdefault(file, row) != row:
            raise UserError(
                f"{where}: rows {first_row[file]} and {row} (from 0) both name {path}; expected "
                "one image per row, drop one of them, or cut cells out of fields with --crop"
            )
        known[path] = file
        files.append(file)
    if missing:
        raise UserError(
            f"{where}: row {missing[0]} (from 0): {of_column}no file "
            f"{root / str(paths[missing[0]])}; {len(missing)} of {len(known)} files are missing, "
            "check --images-root"
        )
    return files


def _leading_outside(store: Path, real_root: Path) -> Path | None:
    """The first file or folder that a store holds or links to outside `real_root`."""
    for place in all_below(store):
        real = Path(os.path.realpath(place)) if place.is_symlink() else place
        if not real.is_relative_to(real_root):
            return place
    return None
