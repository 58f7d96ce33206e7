"""Which output directories a command may write into, and how it refuses the others."""

from pathlib import Path

import pytest

from deconfound.errors import UserError
from deconfound.files.atomic import refuse_foreign


def test_a_missing_and_an_empty_directory_are_free(tmp_path: Path) -> None:
    assert not refuse_foreign(tmp_path / "missing", "sweep.yaml", "sweep", "text")
    assert not refuse_foreign(tmp_path, "sweep.yaml", "sweep", "text")


def test_a_directory_with_files_half_written_by_killed_processes_is_free(tmp_path: Path) -> None:
    (tmp_path / ".sweep.yaml.123.partial").write_text("half")
    assert not refuse_foreign(tmp_path, "sweep.yaml", "sweep")


def test_the_same_content_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("text", encoding="utf-8")
    assert refuse_foreign(tmp_path, "sweep.yaml", "sweep", "text")
    assert refuse_foreign(tmp_path, "sweep.yaml", "sweep")


@pytest.mark.parametrize("content", [b"other", b"\xff\xfe"])
def test_other_content_is_refused_where_it_counts(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_bytes(content)
    assert refuse_foreign(tmp_path, "sweep.yaml", "sweep")
    with pytest.raises(UserError) as refused:
        refuse_foreign(tmp_path, "sweep.yaml", "sweep", "text")
    assert str(refused.value) == (
        f"{tmp_path}: holds a sweep with other options; choose another --out"
    )


@pytest.mark.parametrize("name", ["notes.txt", "mine.partial", "sweep.yaml/x"])
def test_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="exists and is not a sweep; choose another --out"):
        refuse_foreign(tmp_path, "sweep.yaml", "sweep")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a sweep; choose another --out"):
        refuse_foreign(tmp_path / "out", "sweep.yaml", "sweep")
