"""Scores by the workers of a local Ray cluster: those of one process, killed workers or not."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed, embed_shards
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.runtime.cluster import Cluster, connected

measure_module = importlib.import_module("deconfound.evaluation.measure")
ONE = Cluster(workers=1)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local cluster of two processors."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'deconfound[ray]'")
    with connected(None):
        yield ray


@pytest.fixture(scope="module")
def files(
    finished_runs: Callable[[str], Path],
    screen: Screen,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """Embeddings of two runs, a file with one representation and a directory with three."""
    folder = tmp_path_factory.mktemp("embeddings")
    embed(finished_runs("erm"), screen.path, folder / "erm.h5ad", device="cpu", quiet=True)
    embed_shards(finished_runs("scbd"), screen.path, folder / "scbd", device="cpu", quiet=True)
    return [folder / "erm.h5ad", folder / "scbd"]


@dataclass(frozen=True)
class Dying(measure_module._Worker):  # type: ignore[name-defined, misc]
    """Kills its process over the style, once for each file of a life that it finds."""

    lives: Path = Path()

    def __call__(self) -> Any:
        score = super().__call__()

        def dying(part: tuple[Path, str]) -> Any:
            left = sorted(self.lives.glob("life-*"))
            if part[1] == "style" and left:
                left[0].unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return score(part)

        return dying


@pytest.mark.usefixtures("ray")
def test_workers_write_the_file_of_one_process(
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = measure(files, tmp_path / "here.parquet", quiet=True)
    assert {"representation", "content", "style", "prediction"} <= set(scores["representation"])
    monkeypatch.chdir(files[0].parent)  # the workers have another folder
    words = ["measure", "erm.h5ad", "scbd", "--out", str(tmp_path / "there.parquet"), "--quiet"]
    cli.main([*words, "--executor", "ray", "--workers", "2"])
    assert capsys.readouterr().out.startswith(f"{len(scores)} scores in ")
    written = [(tmp_path / f"{name}.parquet").read_bytes() for name in ("here", "there")]
    assert written[0] == written[1]
    assert {file.name for file in tmp_path.iterdir()} == {"here.parquet", "there.parquet"}


@pytest.mark.usefixtures("ray")
def test_the_work_of_a_killed_worker_is_done_again_and_one_lost_for_good_is_one_line(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(files, tmp_path / "here.parquet", quiet=True)

    def dying(seed: int) -> Dying:
        return Dying(seed, lives=tmp_path)

    monkeypatch.setattr(measure_module, "_Worker", dying)
    monkeypatch.setattr("deconfound.runtime.cluster.TRIES", 2)
    for life in range(3):
        (tmp_path / f"life-{life}").touch()
    there = tmp_path / "there.parquet"
    with pytest.raises(UserError, match="2 workers were lost over style of /") as lost:
        measure(files, there, quiet=True, cluster=ONE)
    assert "\n" not in str(lost.value)
    assert str(lost.value).endswith("and the same command starts again")
    assert "is kept" not in str(lost.value)
    assert not there.exists()
    assert len(list(tmp_path.glob("life-*"))) == 1
    measure(files, there, quiet=True, cluster=ONE)
    assert there.read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert not list(tmp_path.glob("life-*"))


def test_options_of_a_cluster_without_one_are_refused(
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores.parquet"
    words = ["measure", str(files[0]), "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--workers", "2"])
    assert stopped.value.code == 2
    assert "--workers 2: is of a Ray cluster; add --executor ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--quiet", "--executor", "ray"])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'deconfound[ray]'")
    assert not out.exists()
