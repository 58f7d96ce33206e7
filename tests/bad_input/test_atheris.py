"""Readers under atheris, which follows the bytes into the code, where it is installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deconfound.data.screens.screen import Screen

pytest.importorskip("atheris", reason="atheris is not installed")
HARNESS = Path(__file__).with_name("targets.py")


@pytest.mark.parametrize("name", ["csv", "screen", "weights", "resume"])
def test_no_bytes_make_a_reader_fail(
    name: str, screen: Screen, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    (tmp_path / "corpus").mkdir()
    shutil.copytree(screen.path, tmp_path / "seed")
    seed = tmp_path / "corpus" / "seed"
    match name:
        case "csv":
            seed.write_text('Path,Metadata_Label\n0.png,"a,b"\n')
        case "screen":
            shutil.copy(screen.path / "screen.json", seed)
        case "weights":
            shutil.copy(finished_runs("erm") / "model.safetensors", seed)
        case "resume":
            torch.save({"stage_number": 0, "done": 0, "weights": {"a": torch.ones(2)}}, seed)
    done = subprocess.run(
        [sys.executable, str(HARNESS), name, str(tmp_path), "-runs=300", "-rss_limit_mb=0"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 300 runs" in done.stderr
