"""A run or an embeddings file that is damaged is named in one line, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "junk": lambda _: b"\x00\xff{}",
    "another": lambda _: b"[1, 2]",
}


@pytest.mark.parametrize("file", ["classes.json", "fold.json", "model.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_run_is_named(
    file: str, damage: str, screen: Screen, finished_runs: Callable[[str], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, out = tmp_path / "run", tmp_path / "e.h5ad"
    shutil.copytree(finished_runs("erm"), run)
    (run / file).write_bytes(DAMAGE[damage]((run / file).read_bytes()))
    words = ["embed", str(run), str(screen.path), "--out", str(out), "--quiet", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--threads", "1"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(run / file) in said
    assert not out.exists()


def test_damaged_embeddings_are_read_or_named(
    screen: Screen, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "e.h5ad"
    embed(finished_runs("erm"), screen.path, file, quiet=True, device="cpu", threads=1)
    whole = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    stream = np.random.default_rng(0)
    named = 0
    for _ in range(40):
        content = whole.copy()
        content[stream.integers(0, len(content), 20)] = stream.integers(0, 256, 20)
        file.write_bytes(content[: stream.choice([len(content), len(content) // 2])].tobytes())
        try:
            read_embeddings(file)
        except UserError as error:
            named += str(file) in str(error)
    assert named > 10
