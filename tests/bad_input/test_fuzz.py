"""Random and mutated files: a reader works or says what is wrong in a line, and nothing else."""

import importlib.util
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deconfound.config import read_yaml, validated
from deconfound.data.screens import writer, zarr_images
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import read_table
from deconfound.embeddings.file import PART, PREDICTED, Embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig


def _harness() -> ModuleType:
    path = Path(__file__).with_name("targets.py")
    spec = importlib.util.spec_from_file_location("targets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


targets = _harness()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
FAST = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def quiet_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", True)


@pytest.fixture(scope="module")
def packed(screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> Screen | None:
    """The tiny screen as four shards of Zarr, each of six chunks; None without zarr."""
    if importlib.util.find_spec("zarr") is None:
        return None
    path = tmp_path_factory.mktemp("packed") / "packed"
    image = screen.dtype.itemsize * int(np.prod(screen.image_shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_BYTES", 24 * image)
        patch.setattr(zarr_images, "CHUNK_BYTES", 4 * image)
        about = screen.name, screen.channels, screen.roles, screen.provenance
        with writer.ScreenWriter(path, *about, image_format="zarr") as opened:
            opened.append(screen.read(range(len(screen))))
            opened.finish(screen.table)
    return open_screen(path)


@pytest.fixture
def folder(name: str, screen: Screen, packed: Screen | None, tmp_path: Path) -> Path:
    """Where the file of a target goes, with the screen it lies in."""
    if name in targets.SCREENS:
        held = screen if targets.SCREENS[name] == "screen" else packed
        if held is None:
            pytest.skip("zarr is not installed: pip install 'deconfound[zarr]'")
        shutil.copytree(held.path, tmp_path / targets.SCREENS[name])
    return tmp_path


@pytest.fixture(scope="module")
def whole(
    screen: Screen,
    packed: Screen | None,
    finished_runs: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """A whole file for every target."""
    folder = tmp_path_factory.mktemp("whole")
    torch.save({"stage_number": 0, "done": 2, "weights": {"a": torch.ones(3)}}, folder / "r.pt")
    rows = screen.table.head(4).assign(**{PART: "train", PREDICTED: "c0"})
    values = {"representation": np.ones((4, 2), np.float32)}
    write_embeddings(folder / "e.h5ad", Embeddings(rows, values, {"method": "erm", "roles": {}}))
    picture = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(picture, "PNG")
    run = finished_runs("erm")
    array = {} if packed is None else {
        name: packed.path.joinpath("images.zarr", file).read_bytes()
        for name, file in (("zarr", "c.1.0.0.0"), ("zarr.json", "zarr.json"))
    }  # fmt: skip
    return array | {
        "csv": b'Path,Metadata_Label,Metadata_Plate\r\n0.png,a,p\r\n1.png,"b,c",q\r\n',
        "tsv": b"Path\tMetadata_Label\n0.png\ta\n1.png\tb\n",
        "parquet": (screen.path / "table.parquet").read_bytes(),
        "screen": (screen.path / "screen.json").read_bytes(),
        "shard": (screen.path / "images-00000.npy").read_bytes(),
        "weights": (run / "model.safetensors").read_bytes(),
        "resume": (folder / "r.pt").read_bytes(),
        "classes": (run / "classes.json").read_bytes(),
        "config": (run / "config.yaml").read_bytes(),
        "image": picture.getvalue(),
        "embeddings": (folder / "e.h5ad").read_bytes(),
    }


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` with one stretch replaced by other bytes, half of them near its start, or cut."""
    place = st.integers(0, len(content)) | st.integers(0, min(200, len(content)))
    changed = st.builds(
        lambda start, length, put: content[:start] + put + content[start + length :],
        place,
        st.integers(0, 12),
        st.binary(max_size=6),
    )
    return changed | place.map(lambda kept: content[:kept])


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_whole_file_is_read(name: str, whole: dict[str, bytes], folder: Path) -> None:
    assert targets.feed(name, whole[name], folder)


@FAST
@pytest.mark.parametrize("name", targets.TARGETS)
@given(data=st.data())
def test_any_bytes_are_read_or_named(
    name: str, data: st.DataObject, whole: dict[str, bytes], folder: Path
) -> None:
    targets.feed(name, data.draw(mutated(whole[name]) | st.binary(max_size=100)), folder)


@pytest.mark.parametrize("name", ["zarr"])
@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_shard_of_zarr_in_the_place_of_another_is_named(
    name: str, number: int, whole: dict[str, bytes], folder: Path
) -> None:
    """Whole it would be other pixels; so would be the end of it behind the start of its own."""
    other = (folder / "packed" / "images.zarr" / f"c.{number}.0.0.0").read_bytes()
    for place in (0, 8, 96, 100, len(other) // 2):
        assert not targets.feed(name, whole[name][:place] + other[place:], folder)


@FAST
@pytest.mark.parametrize("name", ["zarr"])
@given(data=st.data())
def test_a_changed_bit_of_a_shard_of_zarr(
    name: str, data: st.DataObject, whole: dict[str, bytes], folder: Path
) -> None:
    content = bytearray(whole[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    targets.feed(name, bytes(content), folder)


@FAST
@given(data=st.data())
def test_a_mutated_index_of_a_screen(data: st.DataObject, screen: Screen, tmp_path: Path) -> None:
    copied(screen, tmp_path)
    index = json.loads((screen.path / "screen.json").read_text())
    index["sha256"] = ""  # or else the checksum alone would be tested
    part = data.draw(st.sampled_from([index, index["roles"], index["shards"][0]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    targets.feed("screen", json.dumps(index).encode(), tmp_path)


@FAST
@given(value=VALUES, name=st.sampled_from(["screen", "classes", "config"]))
def test_any_json_as_an_index(value: Any, name: str, screen: Screen, tmp_path: Path) -> None:
    copied(screen, tmp_path)
    targets.feed(name, json.dumps(value).encode(), tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "TIFF", "NPY"])
@FAST
@given(data=st.data())
def test_mutated_images(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    stream = io.BytesIO()
    values = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    if kind == "NPY":
        np.save(stream, values)
    elif kind == "TIFF":
        tifffile.imwrite(stream, values, photometric="rgb", compression="zlib")
    else:
        Image.fromarray(values).save(stream, kind)
    targets.feed("image", data.draw(mutated(stream.getvalue())), tmp_path)


def test_files_that_readers_choke_on(screen: Screen, tmp_path: Path) -> None:
    table = tmp_path / "long.csv"
    table.write_text(f'"{"a" * 200_000}",b\n1,2\n')
    with pytest.raises(UserError, match=r"long\.csv"):
        read_table(table)
    copy = copied(screen, tmp_path)
    (copy / "images-00000.npy").write_bytes(b"")
    with pytest.raises(UserError, match="images-00000"):
        open_screen(copy)
    (copy / "screen.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"screen\.json"):
        open_screen(copy)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a: *b", "!!python/object/apply:os.system [true]", "? [a]\n: b", "1: 2"]
)
def test_hostile_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    targets.feed("config", text.encode(), tmp_path)


@pytest.mark.parametrize("last", ["seed: *a10", "data: *a10", "other: *a10", "method: *a10"])
def test_references_in_yaml_do_not_multiply(last: str, tmp_path: Path) -> None:
    """Ten levels of ten references each: shared in memory, never written out."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    file = tmp_path / "run.yaml"
    file.write_text("\n".join([*lines, last]))
    with targets.no_longer_than(targets.SECONDS), pytest.raises(UserError) as error:
        values = read_yaml(file)
        kept = {one: values[one] for one in ("seed", "data", "other", "method") if one in values}
        validated(RunConfig, {"method": "erm"} | kept, str(file))
    assert len(str(error.value)) < 10_000


def test_the_watch_sees_what_hangs() -> None:
    with pytest.raises(TimeoutError), targets.no_longer_than(1):
        while True:
            pass


def copied(screen: Screen, folder: Path) -> Path:
    """A copy of the screen, made once a test."""
    copy = folder / "screen"
    if not copy.exists():
        shutil.copytree(screen.path, copy)
    return copy
