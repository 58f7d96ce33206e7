"""A sweep whose entry is trained on what another entry imputes."""

from pathlib import Path

import pandas as pd
import yaml

from deconfound.data.screen import Screen
from deconfound.run import open_run
from deconfound.sweep import sweep
from deconfound.sweep_order import run_directory


def test_what_is_needed_is_done_first(screen: Screen, tmp_path: Path) -> None:
    """With two processes too; the run names its own sweep's, and the scores its title."""
    values = {
        "screens": [str(screen.path)],
        "folds": ["plate=S1/P1"],
        "training": {"steps": 3, "batch_size": 24, "device": "cpu", "precision": "32"},
        "methods": {
            "redrawn": {"method": "erm", "intervene": "ist", "intervention": {"bank": 3}},
            "ist": {"options": {"transfer_steps": 2}},
        },
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(values))
    done = sweep(file, tmp_path / "out", workers=2, quiet=True)
    assert (done.runs, done.failed) == (2, 0)
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    redrawn = open_run(run_directory(tmp_path / "out", table.loc["redrawn", "runs"]))
    source = run_directory(tmp_path / "out", table.loc["ist", "runs"])
    assert redrawn.config.intervention.intervene == source.resolve()
    assert set(pd.read_parquet(tmp_path / "out" / "scores.parquet")["method"]) == {"erm+ist", "ist"}
    again = sweep(file, tmp_path / "out", workers=2, quiet=True)
    assert (again.before, again.workers) == (2, 0)
