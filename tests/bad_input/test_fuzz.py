"""Random and mutated files: a reader works or says what is wrong, and nothing else."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deconfound.data.screen import Screen, open_screen
from deconfound.data.table import read_table
from deconfound.errors import UserError

TEXT = 'Path,Metadata_Label,Metadata_Plate\r\n0.png,a,p\r\n1.png,"b,c",q\r\n'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
FAST = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` with one stretch replaced by other bytes."""
    place = st.integers(0, len(content))
    return st.builds(
        lambda start, length, put: content[:start] + put + content[start + length :],
        place,
        st.integers(0, 12),
        st.binary(max_size=6),
    )


def works_or_says(action: Any, path: Path) -> None:
    with contextlib.suppress(UserError):
        action(path)


@FAST
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@given(content=st.binary(max_size=200) | mutated(TEXT.encode()))
def test_any_bytes_as_a_table(suffix: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"table{suffix}"
    file.write_bytes(content)
    works_or_says(read_table, file)


@FAST
@given(data=st.data())
def test_a_mutated_parquet_table(data: st.DataObject, screen: Screen, tmp_path: Path) -> None:
    whole = (screen.path / "table.parquet").read_bytes()
    file = tmp_path / "table.parquet"
    file.write_bytes(data.draw(mutated(whole)))
    works_or_says(read_table, file)


@FAST
@given(data=st.data())
def test_mutated_bytes_of_a_screen(data: st.DataObject, screen: Screen, tmp_path: Path) -> None:
    copy = copied(screen, tmp_path)
    whole = (screen.path / "screen.json").read_bytes()
    (copy / "screen.json").write_bytes(data.draw(mutated(whole)))
    works_or_says(open_screen, copy)


@FAST
@given(data=st.data())
def test_a_mutated_index_of_a_screen(data: st.DataObject, screen: Screen, tmp_path: Path) -> None:
    copy = copied(screen, tmp_path)
    index = json.loads((screen.path / "screen.json").read_text())
    parts = [index, index["roles"], index["shards"][0]]
    part = data.draw(st.sampled_from(parts))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    (copy / "screen.json").write_text(json.dumps(index))
    works_or_says(open_screen, copy)


@FAST
@given(value=VALUES)
def test_any_json_as_an_index(value: Any, screen: Screen, tmp_path: Path) -> None:
    copy = copied(screen, tmp_path)
    (copy / "screen.json").write_text(json.dumps(value))
    works_or_says(open_screen, copy)


@FAST
@given(data=st.data(), kept=st.integers(0, 200))
def test_a_mutated_shard(data: st.DataObject, kept: int, screen: Screen, tmp_path: Path) -> None:
    copy = copied(screen, tmp_path)
    whole = (screen.path / "images-00000.npy").read_bytes()
    content = data.draw(mutated(whole[:128]))[:kept] + whole[128:]
    (copy / "images-00000.npy").write_bytes(content)
    works_or_says(open_screen, copy)


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


def copied(screen: Screen, folder: Path) -> Path:
    """A copy of the screen, made once a test."""
    copy = folder / "copy"
    if not copy.exists():
        shutil.copytree(screen.path, copy)
    return copy
