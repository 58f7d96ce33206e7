"""One table of wrong input: each row gives exit code 2, one line that names it, and no output."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconfound import cli
from deconfound.data.screen import ScreenWriter
from deconfound.data.table import Roles

FEW = "--steps 2 --batch-size 8 --device cpu --precision 32 --threads 1 --quiet"


class Place:
    """A folder with six images and their table, and a screen of 24 images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.images = folder / "images"
        self.images.mkdir()
        for row in range(6):
            Image.fromarray(np.full((8, 8), row, dtype=np.uint8)).save(self.images / f"{row}.png")
        self.table = pd.DataFrame(
            {
                "Path": [f"{row}.png" for row in range(6)],
                "Metadata_Label": [*"ababab"],
                "Metadata_Plate": [*"ppqqrr"],
            }
        )
        self.cells = pd.DataFrame(
            {
                "label": [*"ab"] * 12,
                "plate": [*"ppppqqqqrrrr"] * 2,
                "twin": ["yes" if label == "a" else "no" for label in "ab" * 12],
                "one": "same",
            }
        )
        self.roles = Roles(label="label", environment=("plate",), levels=("plate",))

    def pixels(self, row: int, values: np.ndarray) -> None:  # type: ignore[type-arg]
        """Replace the image of a row."""
        Image.fromarray(values).save(self.images / f"{row}.png")

    def screen(self) -> Path:
        """Write the screen."""
        path = self.folder / "screen"
        images = np.random.default_rng(0).integers(0, 255, (len(self.cells), 1, 24, 24))
        with ScreenWriter(path, "screen", ("a",), self.roles, {}) as writer:
            writer.append(images.astype(np.uint8))
            writer.finish(self.cells)
        return path

    def ingest(self, *more: str) -> list[str]:
        """The words that make a screen of the table."""
        file = self.folder / "cells.csv"
        if not file.exists():
            self.table.to_csv(file, index=False)
        return ["ingest", str(file), "--images-root", str(self.images), "--out", str(self.out),
                "--quiet", *more]  # fmt: skip

    def fit(self, *more: str, method: str = "erm") -> list[str]:
        """The words that train on the screen."""
        return ["fit", method, str(self.screen()), "--out", str(self.out), *FEW.split(), *more]


class Row(NamedTuple):
    """Something wrong, and words of the one line it must give."""

    name: str
    words: Callable[[Place], list[str]]
    said: tuple[str, ...]


def missing_image(place: Place) -> list[str]:
    (place.images / "3.png").unlink()
    return place.ingest()


def truncated_image(place: Place) -> list[str]:
    file = place.images / "3.png"
    place.pixels(3, np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint8))
    file.write_bytes(file.read_bytes()[:-50])
    return place.ingest()


def empty_image(place: Place) -> list[str]:
    (place.images / "3.png").write_bytes(b"")
    return place.ingest()


def no_image(place: Place) -> list[str]:
    (place.images / "3.png").write_text("%PDF-1.7 not an image")
    return place.ingest()


def image_is_a_folder(place: Place) -> list[str]:
    (place.images / "3.png").unlink()
    (place.images / "3.png").mkdir()
    return place.ingest()


def other_shape(place: Place) -> list[str]:
    place.pixels(3, np.zeros((9, 8), dtype=np.uint8))
    return place.ingest()


def other_channels(place: Place) -> list[str]:
    place.pixels(3, np.zeros((8, 8, 3), dtype=np.uint8))
    return place.ingest()


def other_type(place: Place) -> list[str]:
    place.pixels(3, np.zeros((8, 8), dtype=np.uint16))
    return place.ingest()


def repeated_column(place: Place) -> list[str]:
    (place.folder / "cells.csv").write_text("Path,Metadata_Label,Metadata_Label\n0.png,a,b\n")
    return place.ingest()


def emptied(column: str, *rows: int) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        place.table.loc[list(rows), column] = ""
        return place.ingest()

    return words


def repeated_row(place: Place) -> list[str]:
    place.table.loc[4, "Path"] = "1.png"
    return place.ingest()


def without_label_column(place: Place) -> list[str]:
    place.table = place.table.drop(columns="Metadata_Label")
    return place.ingest()


def no_rows(place: Place) -> list[str]:
    place.table = place.table.head(0)
    return place.ingest()


def empty_table(place: Place) -> list[str]:
    (place.folder / "cells.csv").write_text("")
    return place.ingest()


def binary_table(place: Place) -> list[str]:
    (place.folder / "cells.csv").write_bytes(bytes(range(256)))
    return place.ingest()


def empty_class(place: Place) -> list[str]:
    for hospital, label in ("h1", "a"), ("h1", "b"), ("h2", "a"), ("h2", "b"):
        folder = place.folder / "classes" / hospital / label
        folder.mkdir(parents=True)
        if (hospital, label) != ("h2", "b"):
            shutil.copy(place.images / "0.png", folder)
    root = str(place.folder / "classes")
    return ["ingest", "--images-root", root, "--out", str(place.out), "--quiet"]


def class_without_training_rows(place: Place) -> list[str]:
    place.cells["label"] = [*"aaaabbbbbbbb"] * 2
    return place.fit("--fold", "plate=p")


def missing_environments(place: Place) -> list[str]:
    place.cells["plate"] = None
    return place.fit()


def missing_labels(place: Place) -> list[str]:
    place.cells["label"] = None
    return place.fit()


def newer_screen(place: Place) -> list[str]:
    words = place.fit()
    file = place.folder / "screen" / "screen.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    return words


def oblong(place: Place) -> list[str]:
    words = place.fit()
    shutil.rmtree(place.folder / "screen")
    with ScreenWriter(place.folder / "screen", "s", ("a",), place.roles, {}) as writer:
        writer.append(np.zeros((24, 1, 24, 20), dtype=np.uint8))
        writer.finish(place.cells)
    return words


def config_typo(place: Place) -> list[str]:
    file = place.folder / "run.yaml"
    file.write_text("training:\n  batchsize: 4\n")
    return place.fit("--config", str(file))


def no_screen(*words: str) -> Callable[[Place], list[str]]:
    return lambda place: [*words, str(place.images), "--out", str(place.out)]


def no_permission(place: Place) -> list[str]:
    locked = place.folder / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    place.out = locked / "out"
    return place.ingest()


def out_below_a_file(place: Place) -> list[str]:
    place.out = place.images / "0.png" / "out"
    return place.ingest()


TABLE = [
    Row("missing image", missing_image, ("row 3", "3.png", "1 of 6 files are missing")),
    Row("truncated image", truncated_image, ("row 3", "3.png", "cut short")),
    Row("zero-byte image", empty_image, ("row 3", "3.png", "not a PNG")),
    Row("image of another kind", no_image, ("row 3", "3.png", "not a PNG")),
    Row("folder for an image", image_is_a_folder, ("row 3", "3.png")),
    Row("mixed shapes", other_shape, ("row 3", "3.png", "--size")),
    Row("mixed channels", other_channels, ("row 3", "3.png", "--rgb")),
    Row("mixed types", other_type, ("row 3", "3.png", "uint16", "one pixel type")),
    Row("unknown column", lambda p: p.ingest("--label", "Metadata_Labl"),
        ("'Metadata_Labl'", "did you mean 'Metadata_Label'?")),
    Row("duplicated column", repeated_column, ("'Metadata_Label' appears twice",)),
    Row("empty column", emptied("Metadata_Plate", *range(6)), ("'Metadata_Plate' is empty",)),
    Row("missing labels", emptied("Metadata_Label", 2, 5), ("'Metadata_Label'", "rows 2, 5")),
    Row("missing path", emptied("Path", 2), ("row 2", "path")),
    Row("an image named twice", repeated_row, ("rows 1 and 4", "1.png")),
    Row("no label column", without_label_column, ("--label",)),
    Row("a table without rows", no_rows, ("cells.csv", "no rows")),
    Row("an empty table", empty_table, ("cells.csv",)),
    Row("a binary table", binary_table, ("cells.csv", "cannot be read as a table")),
    Row("an empty class", empty_class, ("h2/b", "no images")),
    Row("no labels at all", missing_labels, ("training has 0 labels",)),
    Row("no environments at all", missing_environments, ("no training row has an environment",)),
    Row("one environment, scbd", lambda p: p.fit("--environment", "one", method="scbd"),
        ("scbd", "1 environment", "--environment")),
    Row("label is the environment", lambda p: p.fit("--environment", "label"),
        ("'label'", "--environment")),
    Row("label tells the environment", lambda p: p.fit("--environment", "twin"),
        ("'label'", "'twin'", "--environment")),
    Row("one class left", class_without_training_rows, ("plate=p", "training has 1 label")),
    Row("unknown group", lambda p: p.fit("--fold", "plate=x"), ("plate=x", "p, q, r")),
    Row("unknown level", lambda p: p.fit("--fold", "plat=p"), ("plat=p", "plate")),
    Row("no split column", lambda p: p.fit("--fold", "given"), ("--split",)),
    Row("only group of its level", lambda p: p.fit("--levels", "one", "--fold", "one=same"),
        ("one=same", "nothing is left to train on")),
    Row("batch larger than the data", lambda p: p.fit("--batch-size", "100"),
        ("--batch-size 100", "rows")),
    Row("more classes than a batch holds",
        lambda p: p.fit("--sampler", "label_balanced", "--batch-size", "1"),
        ("--batch-size 1", "2 labels")),
    Row("more environments than a batch holds",
        lambda p: p.fit("--sampler", "environment_balanced", "--batch-size", "2"),
        ("--batch-size 2", "3 environments")),
    Row("a typo in a configuration", config_typo, ("'training.batchsize'", "'batch_size'")),
    Row("a typo in a flag", lambda p: p.fit("--batch-sise", "4"), ("--batch-size",)),
    Row("no such device", lambda p: p.fit("--device", "gpu"), ("gpu", "cuda")),
    Row("images not square", oblong, ("24 × 20", "--size")),
    Row("a newer screen", newer_screen, ("screen.json", "format version 99")),
    Row("fit on no screen", no_screen("fit", "erm"), ("images", "not a screen")),
    Row("describe no screen", no_screen("describe"), ("images", "not a screen")),
    Row("embed no run", lambda p: ["embed", str(p.images), *no_screen("screen")(p)[1:-1],
                                   str(p.out.with_suffix(".h5ad"))], ("images", "not a run")),
    Row("transfer no run", lambda p: ["transfer", str(p.images), *no_screen("screen")(p)[1:]],
        ("images", "not a run")),
    Row("report on nothing", lambda p: ["report", str(p.images), "--out", f"{p.out}.html"],
        ("nothing to report on",)),
    Row("out below a file", out_below_a_file, ("0.png",)),
    pytest.param(
        Row("no write permission", no_permission, ("locked",)),
        marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere"),
    ),
]  # fmt: skip


def name_of(row: object) -> str:
    return row.name.replace(" ", "-") if isinstance(row, Row) else str(row)


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_wrong_input_gives_one_line_and_no_output(
    row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    words = row.words(place)
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("deconfound: ")
    for said in row.said:
        assert said in lines[0]
    assert sorted(tmp_path.rglob("*")) == before
