"""Screens in object storage, here fsspec's memory: as on the disk, and when the store fails."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deconfound import cli
from deconfound.data.screens.screen import Screen, holds_screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.files.object_store import ObjectStore, fetched, is_url, url_of

URL = Path("memory://bucket/screen")


@pytest.fixture(autouse=True)
def store() -> Iterator[MemoryFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def far(screen: Screen, store: MemoryFileSystem) -> Screen:
    """The tiny screen, in object storage."""
    ObjectStore(URL).send(screen.path, ("screen.json",))
    assert store.exists("/bucket/screen/screen.json")
    return open_screen(URL)


def failing(monkeypatch: pytest.MonkeyPatch, method: str, after: int) -> None:
    """Let a method of the store fail from the call `after` on."""
    whole = getattr(MemoryFileSystem, method)
    calls = iter(range(10_000))

    def call(*given: Any, **named: Any) -> Any:
        if next(calls) >= after:
            raise ConnectionError("503 Slow Down\nsecond line")
        return whole(*given, **named)

    monkeypatch.setattr(MemoryFileSystem, method, call)


def test_a_url_is_known_from_a_path() -> None:
    assert url_of(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert url_of(Path("simplecache::gs://bucket/a")) == "simplecache::gs://bucket/a"
    for path in ("screen", "/a/b", "C:/screens/a", "a:b", "plate:1/x y"):
        assert not is_url(Path(path))
    with pytest.raises(UserError, match="screen: not a URL"):
        url_of("screen")


def test_rows_are_those_of_the_disk(screen: Screen, far: Screen) -> None:
    assert far.identity == screen.identity
    pd.testing.assert_frame_equal(far.table, screen.table)
    rows = np.random.default_rng(0).integers(0, len(screen), 200)
    np.testing.assert_array_equal(far.read(rows), screen.read(rows))
    assert far.read([]).shape == (0, *screen.image_shape)
    np.testing.assert_array_equal(far.read([5, 5, 4]), screen.read([5, 5, 4]))
    with pytest.raises(IndexError):
        far.read([len(screen)])
    far.check()


def test_rows_of_several_shards_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deconfound.data.screens.writer.SHARD_BYTES", 5 * 64)
    images = np.random.default_rng(0).integers(0, 255, (17, 1, 8, 8), np.uint8)
    with ScreenWriter(tmp_path / "s", "s", ("c",), Roles(), {}) as writer:
        writer.append(images)
        writer.finish(pd.DataFrame({"a": range(17)}))
    ObjectStore(URL).send(tmp_path / "s", ("screen.json",))
    asked = []
    whole = MemoryFileSystem.cat_ranges

    def counted(self: Any, paths: list[str], *given: Any, **named: Any) -> Any:
        asked.append(len(paths))
        return whole(self, paths, *given, **named)

    far = open_screen(URL)
    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", counted)
    assert len(far.index.shards) == 4
    order = np.array([16, 3, 4, 0, 9, 10, 4, 11])
    np.testing.assert_array_equal(far.read(order), images[order])
    assert asked == [5]  # 0, 3 and 4, 9, 10 and 11, 16 in one call, each run of rows once


def test_what_is_no_screen_or_damaged_is_one_line(far: Screen, store: MemoryFileSystem) -> None:
    assert not holds_screen(Path("memory://bucket/other"))
    with pytest.raises(UserError, match="not a screen"):
        open_screen(Path("memory://bucket/other"))
    file = f"/bucket/screen/{far.index.shards[0].file}"
    content = store.cat_file(file)
    store.pipe_file(file, content[:-100])
    with pytest.raises(UserError, match="cut off, holds"):
        far.read([len(far) - 1])
    store.pipe_file(file, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="checksum differs"):
        far.check()
    store.pipe_file(file, bytes(len(content)))
    with pytest.raises(UserError, match=r"does not hold 96 × .* as screen\.json says"):
        open_screen(URL)
    store.rm(file)
    with pytest.raises(UserError, match="no such file in the object store"):
        open_screen(URL)
    store.pipe_file("/bucket/screen/table.parquet", b"other")
    with pytest.raises(UserError, match=r"table\.parquet: missing or changed"):
        open_screen(URL)


def test_a_store_that_is_not_known_or_lacks_its_package_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"abc://x/y: cannot be reached; .*abc"):
        ObjectStore("abc://x/y")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'deconfound\[s3\]'"):
            ObjectStore("s3://bucket/screen")


def test_a_screen_at_a_url_is_fitted_embedded_and_checked(
    screen: Screen,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ObjectStore(URL).send(screen.path, ("screen.json",))
    run = finished_runs("erm")
    common: dict[str, Any] = {"device": "cpu", "threads": 1, "quiet": True}
    near = embed(run, screen.path, tmp_path / "near.h5ad", **common)
    words = ["embed", str(run), "memory://bucket/screen", "--device", "cpu", "--threads", "1"]
    cli.main([*words, "--quiet", "--out", "memory://bucket/far.h5ad"])
    assert "96 embeddings in memory:/bucket/far.h5ad" in capsys.readouterr().out
    found = read_embeddings(Path("memory://bucket/far.h5ad"))
    for name, values in near.representations.items():
        np.testing.assert_array_equal(found.representations[name], values)
    pd.testing.assert_frame_equal(found.table, near.table)
    cli.main([*words, "--quiet", "--out", "memory://bucket/far"])
    again = read_embeddings(Path("memory://bucket/far"))
    np.testing.assert_array_equal(again.representations["representation"],
                                  near.representations["representation"])  # fmt: skip
    scores = tmp_path / "scores.parquet"
    cli.main(["measure", "memory://bucket/far.h5ad", "--out", str(scores), "--quiet"])
    assert len(pd.read_parquet(scores))
    steps = "--steps 2 --validate-every 2 --batch-size 16 --device cpu --threads 1 --quiet"
    for place, out in ((str(screen.path), "a"), ("memory://bucket/screen", "b")):
        cli.main(["fit", "erm", place, "--out", str(tmp_path / out), *shlex.split(steps)])
    models = [(tmp_path / out / "model.safetensors").read_bytes() for out in "ab"]
    assert models[0] == models[1]
    cli.main(["check", "memory://bucket/screen"])
    assert "whole; 96 images" in capsys.readouterr().out


def test_ingest_and_simulate_write_to_a_url(tmp_path: Path) -> None:
    cli.main(
        ["simulate", "--cells", "200", "--size", "24", "--out", str(tmp_path / "s"), "--quiet"]
    )
    cli.main(["simulate", "--cells", "200", "--size", "24", "--out", str(URL), "--quiet"])
    near, far = open_screen(tmp_path / "s"), open_screen(URL)
    np.testing.assert_array_equal(far.read(range(200)), near.read(range(200)))
    values = np.random.default_rng(0).random((20, 3), np.float32)
    np.save(tmp_path / "a.npy", values)
    pd.DataFrame({"Metadata_Gene": ["x", "y"] * 10, "Metadata_Plate": "P"}).to_csv(
        tmp_path / "t.csv", index=False
    )
    words = ["ingest", str(tmp_path / "t.csv"), "--array", str(tmp_path / "a.npy"), "--out"]
    cli.main([*words, "memory://bucket/array"])
    np.testing.assert_array_equal(
        open_screen(Path("memory://bucket/array")).read(range(20)), values
    )
    with pytest.raises(SystemExit):
        cli.main([*words, "memory://bucket/array"])


def test_a_store_that_fails_midway_leaves_nothing_that_looks_whole(
    screen: Screen, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "put_file", 1)
        with pytest.raises(UserError, match=r"failed when it was written.*503 Slow Down") as error:
            ObjectStore(URL).send(screen.path, ("screen.json",))
    assert "\n" not in str(error.value)
    assert store.exists("/bucket/screen")
    assert not holds_screen(URL)
    ObjectStore(URL).send(screen.path, ("screen.json",))
    assert open_screen(URL).identity == screen.identity


def test_what_could_not_be_sent_is_kept_here(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["simulate", "--cells", "200", "--size", "24", "--out", str(URL), "--quiet"]
    with monkeypatch.context() as patch:
        failing(patch, "put_file", 1)
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    kept = Path(said.rpartition("is whole in ")[2])
    assert len(open_screen(kept)) == 200
    cli.main(words)
    assert len(open_screen(URL)) == 200
    assert not kept.exists()


def test_a_store_that_fails_while_rows_are_read_ends_embed_with_one_line(
    far: Screen,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("deconfound.embeddings.embed.CHUNK", 22)
    monkeypatch.setattr("deconfound.embeddings.stream.BATCH", 8)
    run, out = finished_runs("erm"), tmp_path / "e.h5ad"
    words = ["embed", str(run), str(URL), "--out", str(out), "--device", "cpu", "--threads", "1"]
    with monkeypatch.context() as patch:
        failing(patch, "cat_ranges", 6)
        with pytest.raises(SystemExit) as stopped:
            cli.main([*words, "--quiet"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "failed when it was read (ConnectionError: 503 Slow Down" in said
    assert len(said.splitlines()) == 1
    assert not out.exists()
    assert list((tmp_path / ".e.h5ad.unfinished").glob("*.safetensors"))
    cli.main([*words, "--quiet"])
    assert len(read_embeddings(out).table) == len(far)


def test_a_fetched_copy_is_removed(far: Screen) -> None:
    with fetched(URL) as local:
        assert open_screen(local).identity == far.identity
    assert not local.exists()
    assert not local.parent.exists()
