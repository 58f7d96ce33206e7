"""A screen whose images are a Zarr array: read as the one of NumPy files, here and far away."""

import importlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from deconfound import cli
from deconfound.arrays import Images
from deconfound.data.ingest.arrays import ingest_array
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import fit_intensity
from deconfound.data.screens import writer, zarr_images
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.files.object_store import ObjectStore
from deconfound.verification import check

zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install 'deconfound[zarr]'")
URL = Path("memory://bucket/packed")
ROLES = Roles(label="y", environment=("e",))
ROWS, SHAPE = 41, (2, 3, 4)


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve images of uint16 to a shard, three to a chunk."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 12 * 48)
    monkeypatch.setattr(zarr_images, "CHUNK_BYTES", 3 * 48 + 47)


def images_of(rows: int = ROWS, dtype: str = "uint16") -> Images:
    """Some of them black."""
    values = np.random.default_rng(0).integers(0, 255, (rows, *SHAPE)).astype(dtype)
    values[9:16] = 0
    return values


def write(path: Path, images: Images, image_format: zarr_images.ImageFormat = "zarr") -> Screen:
    table = pd.DataFrame({"y": [f"g{row % 3}" for row in range(len(images))], "e": "p"})
    with ScreenWriter(path, "s", ("a", "b"), ROLES, {}, image_format=image_format) as opened:
        for start in range(0, len(images), 5):
            opened.append(images[start : start + 5])
        opened.finish(table)
    return open_screen(path)


@pytest.fixture
def packed(screen: Screen, tmp_path: Path) -> Screen:
    """The tiny screen as a Zarr array."""
    names = screen.name, screen.channels, screen.roles, screen.provenance
    with ScreenWriter(tmp_path / "packed", *names, image_format="zarr") as opened:
        opened.append(screen.read(range(len(screen))))
        opened.finish(screen.table, screen.index.transform, screen.index.percentile_by)
    return open_screen(tmp_path / "packed")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_it_holds_what_numpy_files_hold(tmp_path: Path, dtype: str) -> None:
    images = images_of(dtype=dtype)
    plain, packed = write(tmp_path / "n", images, "npy"), write(tmp_path / "z", images)
    assert packed.identity == plain.identity
    assert [one.rows for one in packed.index.shards] == [one.rows for one in plain.index.shards]
    assert len(packed.index.shards) > 1
    rows = np.random.default_rng(1).integers(0, ROWS, 200)
    np.testing.assert_array_equal(packed.read(rows), images[rows])
    np.testing.assert_array_equal(packed.read(range(ROWS)), images)
    out = np.empty((3, *SHAPE), packed.dtype)
    assert packed.read([40, 40, 0], out=out) is out
    np.testing.assert_array_equal(out, images[[40, 40, 0]])
    assert packed.read([]).shape == (0, *SHAPE)
    with pytest.raises(IndexError):
        packed.read([ROWS])
    assert (
        check(packed.path) == f"{packed.path}: whole; 41 images in {len(plain.index.shards)} shards"
    )


@pytest.mark.usefixtures("small")
def test_other_programs_read_one_sharded_array(tmp_path: Path) -> None:
    packed = write(tmp_path / "z", images_of())
    names = {str(file.relative_to(packed.path)) for file in packed.path.rglob("*")}
    shards = {f"images.zarr/c.{number}.0.0.0" for number in range(4)}
    assert names == {
        *shards, "images.zarr", "images.zarr/zarr.json", "screen.json", "table.parquet",
    }  # fmt: skip
    array = zarr.open_array(packed.path / "images.zarr", mode="r")
    assert (array.shape, array.shards, array.chunks) == ((41, *SHAPE), (12, *SHAPE), (3, *SHAPE))
    assert array.metadata.zarr_format == 3
    np.testing.assert_array_equal(array[...], images_of())
    said = json.loads((packed.path / "screen.json").read_text())
    assert said["format_version"] == 2


def test_a_chunk_holds_what_a_shard_can_be_divided_by() -> None:
    assert zarr_images.chunk_rows(16_384, (4, 64, 64), np.dtype("uint8")) == 2
    assert zarr_images.chunk_rows(6_710, (1, 80, 80), np.dtype("uint8")) == 5
    assert zarr_images.chunk_rows(7, (1, 100, 100), np.dtype("uint8")) == 1
    assert zarr_images.chunk_rows(3, (9, 512, 512), np.dtype("float32")) == 1


@pytest.mark.usefixtures("store")
def test_batches_and_embeddings_are_bit_for_bit_the_same(
    screen: Screen,
    packed: Screen,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    ObjectStore(URL).send(packed.path, ("screen.json",))
    far = open_screen(URL)
    assert far.place == URL
    far.check()
    rows = np.arange(len(screen), dtype=np.int64)
    drawn = np.random.default_rng(0).integers(0, len(screen), 40)
    batches = []
    for one in (screen, packed, far):
        intensity = fit_intensity(one, rows, "percentile", "standardise", 0)
        reader = BatchReader(one, intensity=intensity, device=torch.device("cpu"))
        batches += [batch.image for batch in reader.stream([drawn])]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])
    found = []
    for number, path in enumerate((screen.path, packed.path, URL)):
        out = tmp_path / f"{number}.h5ad"
        embed(finished_runs("erm"), path, out, device="cpu", threads=1, quiet=True)
        found.append(read_embeddings(out))
    for other in found[1:]:
        for name, values in found[0].representations.items():
            np.testing.assert_array_equal(other.representations[name], values)
        pd.testing.assert_frame_equal(other.table, found[0].table)


def test_a_run_fitted_on_it_is_the_same(
    screen: Screen, packed: Screen, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    fit = importlib.import_module("deconfound.training.fit").fit
    for one, out in ((screen, "here"), (packed, "there")):
        fit(make_config("erm"), one.path, tmp_path / out, quiet=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("store")
def test_verbs_write_describe_and_export_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, into object storage and out again."""
    images = np.random.default_rng(0).integers(0, 255, (12, 1, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    table = {"Metadata_Gene": ["a", "b"] * 6, "Metadata_Plate": ["p"] * 6 + ["q"] * 6}
    pd.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    words = ["ingest", str(tmp_path / "table.csv"), "--array", str(tmp_path / "images.npy")]
    words += ["--image-format", "zarr", "--quiet", "--out"]
    cli.main([*words, str(tmp_path / "packed")])
    cli.main([*words, str(URL), "--name", "packed"])
    assert open_screen(URL).identity == open_screen(tmp_path / "packed").identity
    np.testing.assert_array_equal(open_screen(URL).read(range(12)), images)
    cli.main(["describe", str(URL), "--quiet"])
    cli.main(["export", str(tmp_path / "packed"), "--out", str(tmp_path / "exported"), "--quiet"])
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("with: ")[2])
    assert command[command.index("--image-format") + 1] == "zarr"
    cli.main([*command[1:-1], str(tmp_path / "again"), "--quiet"])
    np.testing.assert_array_equal(open_screen(tmp_path / "again").read(range(12)), images)


@pytest.mark.usefixtures("small")
def test_a_changed_byte_is_never_read_as_pixels(tmp_path: Path) -> None:
    packed = write(tmp_path / "z", images_of())
    file = packed.path / "images.zarr" / "c.1.0.0.0"
    whole, harmless = file.read_bytes(), set()
    places = {*range(72), *range(72, len(whole), 5)}
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(open_screen(packed.path).read(range(ROWS)), images_of())
            harmless.add(place)
        except UserError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)
            assert "make the screen again" in str(error)
    assert harmless >= {*range(64, 68)}  # the checksum of the index, whose entries are compared
    assert len(harmless) < len(places) / 10  # others are bits that zstd leaves unused
    with pytest.raises(UserError, match=r"c\.1\.0\.0\.0: checksum differs from screen\.json"):
        packed.check()


@pytest.mark.usefixtures("small", "store")
def test_a_store_that_fails_midway_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = write(tmp_path / "z", images_of())
    ObjectStore(URL).send(packed.path, ("screen.json",))
    far = open_screen(URL)
    np.testing.assert_array_equal(far.read([0, 40]), images_of()[[0, 40]])

    def failing(*_: Any, **__: Any) -> Any:
        raise ConnectionError("503 Slow Down\nsecond line")

    whole = MemoryFileSystem.cat_ranges
    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", failing)
    with pytest.raises(UserError, match=r"c\.1\.0\.0\.0: the object store failed") as error:
        far.read([13])
    assert "\n" not in str(error.value)
    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", whole)
    np.testing.assert_array_equal(far.read([13]), images_of()[[13]])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("far", [False, True])
def test_a_shard_that_is_missing_or_cut_off_is_named(
    tmp_path: Path, store: MemoryFileSystem, far: bool
) -> None:
    packed = write(tmp_path / "z", images_of())
    file = packed.path / "images.zarr" / "c.1.0.0.0"

    def opened() -> Screen:
        if not far:
            return open_screen(packed.path)
        store.store.clear()
        ObjectStore(URL).send(packed.path, ("screen.json",))
        return open_screen(URL)

    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert len(opened().read([0])) == 1
    with pytest.raises(UserError, match=r"images\.zarr/c\.1\.0\.0\.0: cut off, holds") as error:
        opened().read([23])
    assert "\n" not in str(error.value)
    file.unlink()
    expected = "no such file in the object store" if far else "missing; restore it"
    with pytest.raises(UserError, match=rf"images\.zarr/c\.1\.0\.0\.0: {expected}"):
        opened()
    file.write_bytes(whole)
    before = opened()
    before.check()
    (packed.path / "images.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match=r"images\.zarr/zarr\.json: checksum differs"):
        opened()
    with pytest.raises(UserError, match=r"images\.zarr/zarr\.json: checksum differs"):
        before.check()
    (packed.path / "images.zarr" / "zarr.json").unlink()
    with pytest.raises(UserError, match=rf"images\.zarr/zarr\.json: {expected}"):
        opened()


@pytest.mark.usefixtures("small", "store")
@pytest.mark.parametrize("far", [False, True])
def test_shards_that_change_places_are_named(tmp_path: Path, far: bool) -> None:
    """Noise, which no codec packs: all their chunks are of one length."""
    images = np.random.default_rng(0).integers(0, 2**16, (24, *SHAPE), np.uint16)
    packed = write(tmp_path / "z", images)
    first, second = (packed.path / "images.zarr" / f"c.{number}.0.0.0" for number in (0, 1))
    assert first.read_bytes()[:64] == second.read_bytes()[:64]
    first.rename(tmp_path / "moved")
    second.rename(first)
    (tmp_path / "moved").rename(second)
    if far:
        ObjectStore(URL).send(packed.path, ("screen.json",))
    opened = open_screen(URL if far else packed.path)
    for row, number in ((0, 0), (23, 1), (0, 0)):
        with pytest.raises(UserError) as error:
            opened.read([row])
        assert f"images.zarr/c.{number}.0.0.0: damaged, its start is not that" in str(error.value)


@pytest.mark.usefixtures("small")
def test_a_screen_made_before_starts_were_recorded_is_read(tmp_path: Path) -> None:
    packed = write(tmp_path / "z", images_of())
    index = packed.index
    shards = tuple(one.model_copy(update={"start_sha256": ""}) for one in index.shards)
    assert "start_sha256" not in shards[0].model_dump()
    index = index.model_copy(update={"shards": shards})
    index = index.model_copy(update={"sha256": index.digest()})
    (packed.path / "screen.json").write_text(index.model_dump_json())
    former = open_screen(packed.path)
    assert former.identity == packed.identity
    np.testing.assert_array_equal(former.read(range(ROWS)), images_of())


def test_a_damaged_chunk_ends_a_verb_with_one_line(
    packed: Screen,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = packed.path / "images.zarr" / "c.0.0.0.0"
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    words = ["embed", str(finished_runs("erm")), str(packed.path), "--out", str(tmp_path / "e")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--device", "cpu", "--quiet"])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{file}: damaged, the chunk of rows" in line
    assert not (tmp_path / "e").exists()


def test_without_zarr_the_extra_is_named_and_reading_needs_none(
    packed: Screen,
    screen: Screen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    np.testing.assert_array_equal(open_screen(packed.path).read([7]), screen.read([7]))
    np.save(tmp_path / "images.npy", images_of(8))
    pd.DataFrame({"y": list("abababab"), "e": list("ppppqqqq")}).to_csv(
        tmp_path / "t.csv", index=False
    )
    words = ["ingest", str(tmp_path / "t.csv"), "--array", str(tmp_path / "images.npy")]
    words += ["--label", "y", "--environment", "e", "--array-axes", "NCHW", "--quiet"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--image-format", "zarr", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith(
        "--image-format zarr: zarr 3 is not installed; pip install 'deconfound[zarr]'"
    )
    assert not (tmp_path / "out").exists()


def test_profiles_have_no_image_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "profiles.npy", np.random.default_rng(0).normal(size=(8, 3)))
    table = {"Metadata_Gene": ["a", "b"] * 4, "Metadata_Plate": ["p"] * 4 + ["q"] * 4}
    frame = pd.DataFrame(table | {"Cells_A": np.arange(8.0)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = IngestConfig(image_format="zarr")
    with pytest.raises(UserError, match="--image-format means nothing for profiles; leave it out"):
        ingest_array(tmp_path / "t.csv", tmp_path / "profiles.npy", tmp_path / "o", config=config)
    words = ["ingest", str(tmp_path / "t.csv"), "--profiles", "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--image-format", "zarr"])
    assert stopped.value.code == 2
    assert "--image-format means nothing for profiles" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words[:2], "--images-root", ".", *words[3:], "--image-format", "tiff"])
    assert stopped.value.code == 2
    assert "npy" in capsys.readouterr().err


def test_an_index_that_names_other_shards_is_refused(tmp_path: Path) -> None:
    packed = write(tmp_path / "z", images_of())
    shutil.copy(packed.path / "table.parquet", tmp_path / "outside")
    file = packed.path / "screen.json"
    said = json.loads(file.read_text())
    said["shards"][0]["file"] = "../outside"
    file.write_text(json.dumps(said | {"sha256": ""}))
    with pytest.raises(UserError, match=r"shard '../outside' is not images\.zarr/c\.0\.0\.0\.0"):
        open_screen(packed.path)
