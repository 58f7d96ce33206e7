"""One table of wrong input: each row gives exit code 2, one line that names it, and no output."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

from deconfound import cli
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles

FEW = "--steps 2 --batch-size 8 --device cpu --precision 32 --threads 1 --quiet"
ONE_PLATE = {"Metadata_Plate": ["p"] * 6}


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

    def run(self, method: str = "erm", name: str = "run") -> Path:
        """Train on the screen."""
        if not (self.folder / "screen").exists():
            self.screen()
        path = self.folder / name
        words = ["fit", method, str(self.folder / "screen"), "--out", str(path), *FEW.split()]
        cli.main([*words, *(["--decoder-width", "8", "--decoder-steps", "2"] * (method == "scbd"))])
        return path

    def embed(self) -> list[str]:
        """The words that embed the screen with the run."""
        return ["embed", str(self.folder / "run"), str(self.folder / "screen"), "--device", "cpu",
                "--threads", "1", "--quiet", "--out", f"{self.out}.h5ad"]  # fmt: skip


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


def label_of_one_environment(place: Place) -> list[str]:
    place.cells["label"] = [*"ccccababbaba"] * 2
    return place.fit("--fold", "plate=p")


def pixels_not_finite(value: float) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        for row in range(6):
            (place.images / f"{row}.png").unlink()
            pixels = np.full((8, 8), value if row == 3 else 1, dtype=np.float32)
            np.save(place.images / f"{row}.npy", pixels)
        place.table["Path"] = [f"{row}.npy" for row in range(6)]
        return place.ingest()

    return words


def features(*values: object) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        table = place.table.drop(columns="Path").assign(Nuclei_Area=[*values, *"12345"][:6])
        table.to_csv(place.folder / "wells.csv", index=False)
        return ["ingest", str(place.folder / "wells.csv"), "--profiles", "--out", str(place.out)]

    return words


def repeated_ids(columns: dict[str, list[str]]) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        place.table = place.table.assign(**columns)
        return place.ingest()

    return words


def centre_outside(place: Place) -> list[str]:
    place.table["Location_Center_X"] = ["4", "4", "4", "40", "4", "4"]
    place.table["Location_Center_Y"] = "4"
    return place.ingest("--crop", "4")


def link_outside(place: Place) -> list[str]:
    (place.folder / "secret.png").write_bytes((place.images / "3.png").read_bytes())
    (place.images / "3.png").unlink()
    (place.images / "3.png").symlink_to(place.folder / "secret.png")
    return place.ingest()


def path_outside(place: Place) -> list[str]:
    place.table.loc[3, "Path"] = "../images/../cells.csv"
    return place.ingest()


def pickled(place: Place) -> list[str]:
    (place.images / "3.png").unlink()
    np.save(place.images / "3.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    place.table.loc[3, "Path"] = "3.npy"
    return place.ingest()


def checkpoint_cut(place: Place) -> list[str]:
    file = place.run() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return place.embed()


def checkpoint_of_another_method(place: Place) -> list[str]:
    (place.run() / "checksums.json").unlink()
    shutil.copy(place.run("scbd", "other") / "model.safetensors", place.folder / "run")
    return place.embed()


def checkpoint_tampered_with(place: Place) -> list[str]:
    file = place.run() / "model.safetensors"
    (file.parent / "checksums.json").unlink()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return place.embed()


def newer_run(place: Place) -> list[str]:
    file = place.run() / "classes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    return place.embed()


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


def nul_byte(text: str) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        table = place.table.to_csv(index=False).replace(text, f"{text[:1]}\0{text[1:]}", 1)
        (place.folder / "cells.csv").write_text(table)
        return place.ingest()

    return words


def of_parquet(values: list[Any]) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        file = place.folder / "cells.parquet"
        place.table.assign(Metadata_Label=values * 2).to_parquet(file)
        root = str(place.images)
        return ["ingest", str(file), "--images-root", root, "--out", str(place.out), "--quiet"]

    return words


def aliases_of_aliases(place: Place) -> list[str]:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefgh")]
    (place.folder / "run.yaml").write_text("\n".join(lines))
    return place.fit("--config", str(place.folder / "run.yaml"))


def changed(change: Callable[[Any], None]) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        place.run()
        cli.main(place.embed())
        file = Path(f"{place.out}.h5ad").rename(place.folder / "changed.h5ad")
        data = anndata.read_h5ad(file)
        change(data)
        data.write_h5ad(file)
        return ["measure", str(file), "--quiet", "--out", str(place.out)]

    return words


def with_block(made_of: Callable[[Any], Any]) -> Callable[[Place], list[str]]:
    def change(data: Any) -> None:
        data.obsm["X_representation"] = made_of(data.obsm["X_representation"])

    return changed(change)


def file_twice(place: Place) -> list[str]:
    place.run()
    cli.main(place.embed())
    file = Path(f"{place.out}.h5ad").rename(place.folder / "e.h5ad")
    return ["measure", str(file), f"{place.folder}/./e.h5ad", "--quiet", "--out", str(place.out)]


def nameless(place: Place) -> list[str]:
    place.out = Path("/")
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
    Row("a binary table", binary_table, ("cells.csv", "byte 0 (from 0) is NUL")),
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
    Row("a label of one environment", label_of_one_environment,
        ("plate=p", "none of its labels (c)", "hold out another group")),
    Row("NaN pixels", pixels_not_finite(np.nan), ("row 3", "3.npy", "not finite")),
    Row("infinite pixels", pixels_not_finite(-np.inf), ("row 3", "3.npy", "not finite")),
    Row("NaN features", features("nan"), ("wells.csv", "1 missing or infinite", "none is left")),
    Row("infinite features", features("inf"), ("1 missing or infinite", "none is left")),
    Row("a feature that is text", features("big"), ("'Nuclei_Area'", "'big'")),
    Row("a row id twice", repeated_ids({**ONE_PLATE, "Metadata_RowID": [*"123452"]}),
        ("rows 1 and 5", "'Metadata_RowID' (2)", "drop")),
    Row("an image and object twice",
        repeated_ids({**ONE_PLATE, "ImageNumber": [*"111122"], "ObjectNumber": [*"121212"]}),
        ("rows 0 and 2", "'ImageNumber' and 'ObjectNumber' (1, 1)", "2 in all")),
    Row("a centre outside its field", centre_outside, ("row 3", "outside its field")),
    Row("a link out of the images", link_outside, ("row 3", "leads outside", "--allow-outside")),
    Row("a path out of the images", path_outside, ("row 3", "leads outside", "--allow-outside")),
    Row("a pickled array", pickled, ("row 3", "3.npy")),
    Row("a checkpoint cut off", checkpoint_cut, ("model.safetensors", "changed since")),
    Row("a checkpoint of another method", checkpoint_of_another_method,
        ("model.safetensors", "cannot be loaded")),
    Row("a checkpoint tampered with", checkpoint_tampered_with,
        ("model.safetensors", "its checksum differs")),
    Row("a newer run", newer_run, ("classes.json", "format version 99")),
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
    Row("a NUL byte in a label", nul_byte("a,p"), ("cells.csv", "(from 0) is NUL", "remove these")),
    Row("a NUL byte in a path", nul_byte("0.png"), ("cells.csv", "(from 0) is NUL", "remove")),
    Row("lists for labels", of_parquet([["a"], ["b"], ["a"]]),
        ("'Metadata_Label'", "values of type ndarray", "one text or number a row")),
    Row("structures for labels", of_parquet([{"x": 1}, {"x": 2}, {"x": 1}]),
        ("'Metadata_Label'", "values of type dict")),
    Row("bytes that are no text", of_parquet([b"\xff", b"b", b"b"]),
        ("cells.parquet", "'Metadata_Label'", "no text of UTF-8", "drop it")),
    Row("a level named twice",
        lambda p: p.ingest("--levels", "Metadata_Plate", "Metadata_Plate"),
        ("--levels names 'Metadata_Plate' twice",)),
    Row("an output without a name", nameless, ("/: no name to write", "--out")),
    Row("aliases of aliases", aliases_of_aliases, ("run.yaml", "more than 1,000,000 values")),
    Row("a million threads", lambda p: p.fit("--threads", "1000000"),
        ("--threads 1000000", "1 to 1024")),
    Row("sparse embeddings", with_block(csr_matrix),
        ("changed.h5ad", "X_representation", "csr_matrix", "dense")),
    Row("complex embeddings", with_block(lambda block: block * 1j), ("complex64", "real numbers")),
    Row("embeddings of no column", with_block(lambda block: block[:, :0]),
        ("(24, 0)", "one column or more")),
    Row("embeddings without their label",
        changed(lambda data: data.obs.drop(columns="label", inplace=True)),
        ("changed.h5ad", "no column 'label'")),
    Row("embeddings named twice", file_twice, ("e.h5ad: named twice",)),
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
    warned = f"deconfound: warning: {tmp_path}"
    lines = [line for line in captured.err.splitlines() if not line.startswith(warned)]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("deconfound: ")
    for said in row.said:
        assert said in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_label_that_training_lacks_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compounds of one batch are common: the fold is fitted, and the line says what it misses."""
    place = Place(tmp_path)
    place.cells["label"] = [*"cababcbabbab"] * 2
    place.cells.loc[place.cells["plate"] != "p", "label"] = [*"ab"] * 8
    cli.main(place.fit("--fold", "plate=p"))
    captured = capsys.readouterr()
    assert captured.err == (
        "deconfound: warning: fold plate=p: training has no row of c (2 rows); their test rows are "
        "never scored, hold out another group if they must be\n"
    )
    shutil.rmtree(place.out)
    screen = str(tmp_path / "screen")
    cli.main(["fit", "erm", screen, "--out", str(place.out), *FEW.split(), "--fold", "plate=q"])
    assert "warning" not in capsys.readouterr().err


def test_black_images_are_a_warning_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    for row in (2, 4):
        place.pixels(row, np.zeros((8, 8), dtype=np.uint8))
    cli.main(place.ingest())
    assert "warning: 3 images are black" in capsys.readouterr().out


@pytest.mark.parametrize(
    "columns",
    [
        {"Metadata_RowID": [*"123123"]},  # counted within each of two plates
        {"Metadata_ImageNumber": [*"111111"]},  # one field, objects not numbered
        {"ImageNumber": [*"111111"], "ObjectNumber": [*"123456"]},
        {"ImageNumber": [*"123456"], "ObjectNumber": [*"111111"]},
        {"ImageNumber": [*"111111"], "ObjectNumber": [*"112233"], "ObjectType": [*"cncncn"]},
        {"Metadata_ImageID": [*"111111"], "Metadata_ObjectNumber": [*"123456"]},
        {"Metadata_CellID": ["", "", "", "", "", "6"]},
        {"Metadata_Well": ["A01"] * 6, "Metadata_Site": ["1"] * 6},
    ],
)
def test_identifiers_that_count_within_a_place_are_no_mistake(
    columns: dict[str, list[str]], tmp_path: Path
) -> None:
    place = Place(tmp_path)
    place.table = place.table.assign(Metadata_Plate=[*"pppqqq"], **columns)
    cli.main(place.ingest())
    assert (place.out / "screen.json").is_file()
