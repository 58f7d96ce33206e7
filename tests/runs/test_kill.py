import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = ["screen", "ingested", "run", "e.h5ad", "shards", "scores.parquet", "search"]


def test_killed_verbs_lose_nothing_and_leave_nothing_that_looks_whole(tmp_path: Path) -> None:
    """A few of the kills that benchmarks/kill.py does by the hundred, the same every time."""
    out = tmp_path / "kill.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--out", str(out)]
    done = subprocess.run(
        [*words, "--kills", "7", "--terms", "1", "--cases", *CASES],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.is_file(), done.stderr
    report = json.loads(out.read_text())
    assert report["problems"] == []
    assert sum(report["kills"].values()) >= 7
    assert done.returncode == 0
