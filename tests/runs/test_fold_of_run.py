"""A run records the parts of its rows, and is refused where they would be drawn otherwise."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig
from deconfound.runs.run import open_run
from deconfound.training.fit import fit


def test_a_fold_drawn_otherwise_is_refused(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("erm")
    fit(config, screen.path, tmp_path / "run", quiet=True)
    file = tmp_path / "run" / "fold.json"
    recorded = json.loads(file.read_text())
    run = open_run(tmp_path / "run")
    assert len(run.parts(screen)) == len(screen)
    (tmp_path / "run" / "checksums.json").unlink(missing_ok=True)
    for changed in (
        recorded | {"parts_sha256": "0" * 64},
        recorded | {"counts": recorded["counts"] | {"val": 0}},
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match="drawn by another release"):
            run.parts(screen)
        with pytest.raises(UserError, match="drawn by another release"):
            fit(config, screen.path, tmp_path / "run", quiet=True)
    del recorded["parts_sha256"]
    file.write_text(json.dumps(recorded))
    assert (run.parts(screen) == "test").any()
