"""Embeddings by the workers of a local Ray cluster: as one process makes them, killed or not."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.embeddings import spans
from deconfound.embeddings.embed import embed, embed_shards
from deconfound.embeddings.stream import Arrays, EmbeddingStream, Span
from deconfound.errors import UserError
from deconfound.runtime.cluster import Cluster, cluster_of, connected

embed_module = importlib.import_module("deconfound.embeddings.embed")
Runs = Callable[[str], Path]
ONE = Cluster(workers=1)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local cluster of two processors."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'deconfound[ray]'")
    with connected(None):
        yield ray


@pytest.fixture(autouse=True)
def _small_spans() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module, "SHARD_ROWS", 40)
        patch.setattr(embed_module, "CHUNK", 40)
        yield


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def dies(stream: EmbeddingStream, folder: Path, span: Span, arrays: Arrays) -> None:
    """Kills its worker on the second span, once for each file of a life that it finds."""
    lives = sorted(folder.parent.glob("life-*"))
    if span[0] and lives:
        lives[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    embed_module._write(40, stream, folder, span, arrays)


def test_options_of_a_cluster_without_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_of("local", None, None) is None
    assert cluster_of("ray", 2, "a:1") == Cluster(2, "a:1")
    with pytest.raises(UserError, match="--workers 0: expected 1 or more"):
        cluster_of("ray", 0, None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["embed", "run", "screen", "--out", "e", "--workers", "2"])
    assert stopped.value.code == 2
    assert "--workers 2: is of a Ray cluster; add --executor ray" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["embed", "run", "screen", "--out", "memory://b/e", "--executor", "ray"])
    assert stopped.value.code == 2
    assert "write into a folder that they share" in capsys.readouterr().err


def test_without_ray_the_extra_is_named(
    finished_runs: Runs, screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'deconfound\[ray\]'"):
        embed(finished_runs("erm"), screen.path, tmp_path / "e.h5ad", device="cpu", cluster=ONE)
    assert not (tmp_path / "e.h5ad").exists()


@pytest.mark.usefixtures("ray")
def test_workers_make_what_one_process_makes(
    finished_runs: Runs, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, common = finished_runs("scbd"), {"device": "cpu", "threads": 1, "quiet": True}
    embed_shards(run, screen.path, tmp_path / "here", **common)  # type: ignore[arg-type]
    embed(run, screen.path, tmp_path / "here.h5ad", **common)  # type: ignore[arg-type]
    words = ["embed", str(run), str(screen.path), "--device", "cpu", "--quiet"]
    for out in ("there", "there.h5ad"):
        cli.main([*words, "--executor", "ray", "--workers", "2", "--out", str(tmp_path / out)])
    assert "96 embeddings in 3 files" in capsys.readouterr().out
    assert content(tmp_path / "there") == content(tmp_path / "here")
    files = [(tmp_path / name).read_bytes() for name in ("here.h5ad", "there.h5ad")]
    assert files[0] == files[1]
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"here", "there", "here.h5ad", "there.h5ad"}


@pytest.mark.usefixtures("ray")
def test_the_work_of_a_killed_worker_is_done_again_and_one_lost_for_good_is_one_line(
    finished_runs: Runs, screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, common = finished_runs("erm"), {"device": "cpu", "threads": 1, "quiet": True}
    embed_shards(run, screen.path, tmp_path / "here", **common)  # type: ignore[arg-type]
    whole = spans.SpanWorker

    def dying(run: Path, screen: Path, folder: Path, _: Any, options: Any) -> spans.SpanWorker:
        return whole(run, screen, folder, dies, options)

    monkeypatch.setattr(spans, "SpanWorker", dying)
    monkeypatch.setattr("deconfound.runtime.cluster.TRIES", 2)
    for life in range(3):
        (tmp_path / f"life-{life}").touch()
    out = tmp_path / "there"
    with pytest.raises(UserError, match=r"2 workers were lost over rows 40 to 79.*goes on") as lost:
        embed_shards(run, screen.path, out, cluster=ONE, **common)  # type: ignore[arg-type]
    assert "\n" not in str(lost.value)
    assert not out.exists()
    done = sorted(file.name for file in (tmp_path / ".there.unfinished").glob("*.json"))
    assert done == ["part-00000.parquet.json"]
    assert len(list(tmp_path.glob("life-*"))) == 1
    embed_shards(run, screen.path, out, cluster=ONE, **common)  # type: ignore[arg-type]
    assert content(out) == content(tmp_path / "here")
    assert not list(tmp_path.glob("life-*"))
