"""Embeddings as a directory: by one process or several, killed anywhere, as one .h5ad file."""

import importlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deconfound import cli
from deconfound.data.readers.blocks import no_block, one_block
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.correct import correct
from deconfound.embeddings.embed import embed, embed_shards
from deconfound.embeddings.file import read_embeddings, write_embeddings
from deconfound.embeddings.shards import ShardsIndex, metadata_names, open_index
from deconfound.errors import InputWarning, UserError
from deconfound.evaluation.measure import measure
from deconfound.files import lock, seal
from deconfound.reports.sources import find_sources
from deconfound.runtime.device import Processes
from deconfound.verification import check

embed_module = importlib.import_module("deconfound.embeddings.embed")
stream_module = importlib.import_module("deconfound.embeddings.stream")
Runs = Callable[[str], Path]
Maker = Callable[..., ShardsIndex | None]


@pytest.fixture(autouse=True, scope="module")
def _small_shards() -> Iterator[None]:
    """The tiny screen is 5 shards, the last one shorter, of batches that do not fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module, "SHARD_ROWS", 22)
        patch.setattr(embed_module, "CHUNK", 22)
        patch.setattr(stream_module, "BATCH", 8)
        yield


@pytest.fixture(scope="module")
def make(finished_runs: Runs, screen: Screen) -> Maker:
    """Embed the tiny screen into a directory."""

    def made(out: Path, run: str = "scbd", **named: Any) -> ShardsIndex | None:
        common = {"device": "cpu", "threads": 1, "quiet": True}
        return embed_shards(finished_runs(run), screen.path, out, **common, **named)

    return made


@pytest.fixture(scope="module")
def alone(make: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes that nothing stops; not to be changed."""
    out = tmp_path_factory.mktemp("alone") / "e"
    make(out)
    return out


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    own = Processes(rank, count, rank, count, "torchrun")
    monkeypatch.setattr(embed_module, "processes", lambda: own)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_directory_holds_what_one_file_holds(
    make: Maker, finished_runs: Runs, screen: Screen, tmp_path: Path
) -> None:
    said: list[str] = []
    index = make(tmp_path / "e", say=said.append)
    assert index is not None
    assert [shard.rows for shard in index.shards] == [22, 22, 22, 22, 8]
    one = embed(finished_runs("scbd"), screen.path, tmp_path / "e.h5ad", device="cpu", threads=1,
                quiet=True)  # fmt: skip
    found = read_embeddings(tmp_path / "e")
    for name, values in one.representations.items():
        np.testing.assert_array_equal(found.representations[name], values)
    pd.testing.assert_frame_equal(found.table, one.table, check_categorical=False)
    assert found.about == one.about
    assert len(said) == 1
    assert said[0].startswith("96 images in ")
    assert "images/s on cpu, 1 threads" in said[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e", "e.h5ad"]


def test_blocks_that_are_not_asked_for_are_not_read(alone: Path, tmp_path: Path) -> None:
    whole = read_embeddings(alone)
    file, changed = tmp_path / "e.h5ad", tmp_path / "changed.h5ad"
    write_embeddings(file, whole)
    other = anndata.read_h5ad(file)
    other.obsm["X_style"][0, 0] += 1
    other.write_h5ad(changed)
    for path in (alone, file):
        one = read_embeddings(path, one_block("content"))
        assert list(one.representations) == ["content"]
        np.testing.assert_array_equal(
            one.representations["content"], whole.representations["content"]
        )
        pd.testing.assert_frame_equal(one.table, read_embeddings(path).table)
        assert read_embeddings(path, no_block).representations == {}
        assert set(read_embeddings(path, one_block("contents")).representations) == set(
            whole.representations
        )
    with pytest.warns(InputWarning, match="was changed by another program"):
        assert set(read_embeddings(changed, no_block).representations) == set(whole.representations)


def test_no_column_of_another_block_is_read(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_table, asked = pq.read_table, []

    def read(*args: Any, **named: Any) -> Any:
        table = read_table(*args, **named)
        asked.append({name.partition("_")[0] for name in table.column_names})
        return table

    monkeypatch.setattr(pq, "read_table", read)
    read_embeddings(alone, one_block("content"))
    assert set().union(*asked) == {"Metadata", "content"}


def test_the_memory_that_is_asked_for_is_that_of_the_blocks_read(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(alone)
    table = index.rows * 16 * len(index.columns)
    widths = index.representations
    monkeypatch.setattr("deconfound.embeddings.shards.free_memory", lambda: table)
    assert len(read_embeddings(alone, no_block).table) == index.rows
    with pytest.raises(UserError, match="embeddings need"):
        read_embeddings(alone, one_block("content"))
    of_content = 4 * index.rows * widths["content"]
    monkeypatch.setattr("deconfound.embeddings.shards.free_memory", lambda: table + of_content)
    assert list(read_embeddings(alone, one_block("content")).representations) == ["content"]
    with pytest.raises(UserError, match="embeddings need"):
        read_embeddings(alone)


def test_a_file_is_a_table_of_metadata_and_features(alone: Path, screen: Screen) -> None:
    """As pycytominer takes it: metadata by its prefix, features by their list."""
    table = pd.concat(pd.read_parquet(file) for file in sorted(alone.glob("*.parquet")))
    metadata = [name for name in table if name.startswith("Metadata_")]
    features = [name for name in table if name not in metadata]
    assert table["Metadata_compound"].tolist() == screen.table["compound"].tolist()
    assert set(table["Metadata_deconfound_part"]) == {"train", "val", "id_test", "test"}
    assert {"content_00", "style_15", "representation_255"} <= set(features)
    assert len(features) == 16 + 16 + 256
    assert (table[features].dtypes == np.float32).all()


def test_columns_get_names_that_no_other_has() -> None:
    names = metadata_names(["Plate", "Metadata_Plate", "x", "Metadata_Metadata_Plate"])
    assert names["Metadata_Plate"] == "Metadata_Plate"
    assert names["x"] == "Metadata_x"
    assert names["Plate"] == "Metadata_Metadata_Metadata_Plate"
    assert len(set(names.values())) == 4


def test_two_processes_make_what_one_makes(
    make: Maker, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, 1, 2)
    assert make(tmp_path / "both") is None
    assert not (tmp_path / "both").exists()
    done = sorted(file.name for file in (tmp_path / ".both.unfinished" / "shards").iterdir())
    assert done == ["part-00001.parquet", "part-00003.parquet"]
    as_process(monkeypatch, 0, 2)
    assert make(tmp_path / "both") is not None
    assert content(tmp_path / "both") == content(alone)
    as_process(monkeypatch, 1, 2)  # one that finds nothing left to do
    assert make(tmp_path / "both") is not None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["both"]


def dying_process(make: Maker, out: Path, rank: int, count: int, die_at: int) -> int:
    """A process that embeds its share and dies at a rename or a removal; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        embed_module.processes = lambda: Processes(rank, count, rank, count, "torchrun")
        operations = 0

        def stop() -> None:
            nonlocal operations
            operations += 1
            if operations == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("replace", "rename", "unlink"):
            original = getattr(Path, name)

            def dying(path: Path, *words: Any, _original: Any = original, **named: Any) -> Any:
                stop()
                return _original(path, *words, **named)

            setattr(Path, name, dying)
        make(out)
        code = 0
    finally:
        os._exit(code)


def test_processes_killed_at_any_point_lose_nothing(
    make: Maker, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of two die, each at another operation on files; two more, one of which dies; then one.

    Whatever is there under the final name is whole, and what the last call makes is what one
    process makes that nothing stops.
    """
    whole = content(alone)
    out = tmp_path / "e"
    for first, second in ((1, 4), (5, 3), (6, 8)):
        for deaths in ((first, second), (0, first)):
            ranks = [dying_process(make, out, rank, 2, at) for rank, at in enumerate(deaths)]
            ends = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
            assert set(ends) <= {0, -signal.SIGKILL}, ends
            assert not out.exists() or content(out) == whole
        if not out.exists():
            make(out)
        assert content(out) == whole
        with monkeypatch.context() as patch:
            as_process(patch, 0, 2)
            make(out)  # what a process killed after the last rename has left is removed
        assert [file.name for file in tmp_path.iterdir()] == ["e"]
        shutil.rmtree(out)


def interrupt(make: Maker, out: Path, **named: Any) -> list[Path]:
    """Stop after the second shard; the shards that are kept."""
    write, written = embed_module._write, []

    def stopping(*words: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(*words))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            make(out, **named)
    return sorted((out.parent / f".{out.name}.unfinished" / "shards").iterdir())


def test_a_half_written_shard_is_written_again_and_others_are_not(
    make: Maker, alone: Path, tmp_path: Path
) -> None:
    first, second = interrupt(make, tmp_path / "e")
    second.write_bytes(second.read_bytes()[:-100])
    before = first.stat().st_ino
    make(tmp_path / "e")
    assert content(tmp_path / "e") == content(alone)
    assert (tmp_path / "e" / first.name).stat().st_ino == before


def test_shards_of_another_run_are_not_used(make: Maker, tmp_path: Path) -> None:
    interrupt(make, tmp_path / "e")
    make(tmp_path / "e", "erm")
    assert set(read_embeddings(tmp_path / "e").representations) == {"representation"}


def test_another_command_waits_for_one_that_writes(make: Maker, tmp_path: Path) -> None:
    out = tmp_path / "e"
    interrupt(make, out)
    identity = (tmp_path / ".e.unfinished" / "identity").read_text()
    with (
        lock.joined(out, lambda: None, lambda: True),
        pytest.raises(UserError, match=r"e: process \d+ on \S+ is writing it; wait until it ends"),
    ):
        make(out, "erm")
    assert (tmp_path / ".e.unfinished" / "identity").read_text() == identity
    make(out)


@pytest.mark.parametrize("count", [1, 2])
def test_a_directory_of_another_kind_is_refused(
    count: int, make: Maker, screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, 0, count)
    with pytest.raises(UserError, match="already exists; remove it or choose another --out"):
        make(screen.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="already exists"):
        make(tmp_path / "empty")
    with pytest.raises(UserError, match=r"holds no embeddings \(no _embeddings\.json\)"):
        read_embeddings(screen.path)


def test_embeddings_of_another_run_are_refused(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "e", "erm")
    with pytest.raises(UserError, match="already exists"):
        make(tmp_path / "e")
    as_process(monkeypatch, 0, 2)
    with pytest.raises(UserError, match="holds embeddings of another run, screen or option"):
        make(tmp_path / "e")


def cut_short(folder: Path, _: Path) -> None:
    file = folder / "part-00002.parquet"
    file.write_bytes(file.read_bytes()[:-50])


def missing(folder: Path, _: Path) -> None:
    (folder / "part-00002.parquet").unlink()


def anothers(folder: Path, other: Path) -> None:
    shutil.copy(other / "part-00002.parquet", folder)


def of_other_rows(folder: Path, _: Path) -> None:
    shutil.copy(folder / "part-00004.parquet", folder / "part-00002.parquet")


def newer(folder: Path, _: Path) -> None:
    change(folder, format_version=3)


def damaged(folder: Path, _: Path) -> None:
    change(folder, rows=95)


def change(folder: Path, **values: Any) -> None:
    """Write another index, with a checksum of its own."""
    content, _ = seal.read_json(folder / "_embeddings.json")
    seal.write_json(folder / "_embeddings.json", content | values)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_short, r"part-00002\.parquet: missing or cut short \(.*embed again"),
        (missing, r"part-00002\.parquet: missing or cut short \(.*embed again"),
        (anothers, r"part-00002\.parquet: is not the file that _embeddings\.json names \(another"),
        (of_other_rows, r"part-00002\.parquet: is not the file that _embeddings\.json names"),
        (newer, r"_embeddings\.json: format version 3; this release reads 1 and 2"),
        (damaged, r"_embeddings\.json: damaged \(its rows are not those of its files\)"),
    ],
)
def test_a_damaged_directory_is_refused_in_one_line(
    harm: Callable[[Path, Path], None], said: str, make: Maker, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone, tmp_path / "e")
    if harm is anothers:
        make(tmp_path / "other", precision="bf16")
    harm(tmp_path / "e", tmp_path / "other")
    for reader in (read_embeddings, check):
        with pytest.raises(UserError, match=said) as stop:
            reader(tmp_path / "e")
        assert "\n" not in str(stop.value)


def test_more_than_the_memory_that_is_free_is_refused(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deconfound.embeddings.shards.free_memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"96 embeddings need 0\.0 GiB of memory, 0\.0 GiB are fr"):
        measure([alone])


def test_too_many_rows_for_one_file_are_refused(
    finished_runs: Runs, screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "MOST_ROWS", 95)
    with pytest.raises(UserError, match=r"96 rows are too many for one file \(at most 95\); leave"):
        embed(finished_runs("scbd"), screen.path, tmp_path / "e.h5ad", device="cpu", quiet=True)


def test_later_verbs_take_a_directory(
    make: Maker, finished_runs: Runs, screen: Screen, tmp_path: Path
) -> None:
    make(tmp_path / "e", "erm")
    embed(finished_runs("erm"), screen.path, tmp_path / "e.h5ad", device="cpu", threads=1,
          quiet=True)  # fmt: skip
    both = [measure([tmp_path / name], quiet=True) for name in ("e", "e.h5ad")]
    pd.testing.assert_frame_equal(*both)
    voted = correct("knn", tmp_path / "e", tmp_path / "knn.h5ad")
    assert voted.table.iloc[:, 0].tolist() == screen.table.iloc[:, 0].tolist()
    (sample,) = find_sources([tmp_path / "e"], 50, 0).samples
    assert sample.total == 96
    assert check(tmp_path / "e") == f"{tmp_path / 'e'}: whole; 96 embeddings in 5 files"
    assert open_index(tmp_path / "e").rows == 96


def test_the_command_line_takes_the_form_from_the_name(
    finished_runs: Runs, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", str(finished_runs("erm")), str(screen.path), "--device", "cpu", "--quiet"]
    cli.main([*words, "--out", str(tmp_path / "e")])
    said = capsys.readouterr().out
    assert "96 images in " in said
    assert f"96 embeddings in 5 files in {tmp_path / 'e'}" in said
