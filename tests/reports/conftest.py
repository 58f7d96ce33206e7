"""A small study as a report finds it: a screen, its runs, and their embeddings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.embeddings.file import Embeddings, write_embeddings
from deconfound.runs.config import config_model, dump_config

ROLES = Roles(label="drug", environment=("plate",), levels=("plate",), well="well")


class Study:
    """A screen under `root`, to which runs with embeddings are added."""

    def __init__(
        self,
        root: Path,
        table: pd.DataFrame,
        images: npt.NDArray[Any],
        channels: tuple[str, ...] = ("DNA",),
        roles: Roles = ROLES,
    ) -> None:
        self.root, self.table, self.roles, self.channels = root, table, roles, channels
        with ScreenWriter(root / "screen", "tiny", channels, roles, {}) as writer:
            writer.append(images)
            writer.finish(table)
        index = json.loads((root / "screen" / "screen.json").read_text())
        self.dtype = index["dtype"]

    def add(
        self,
        method: str,
        test: npt.NDArray[np.bool_],
        predicted: list[str | None],
        *,
        fold: str = "plate=P1",
        seed: int = 0,
        block: npt.NDArray[np.float32] | None = None,
    ) -> Path:
        """A finished run of `method` that holds `test` out, and its embeddings; their file."""
        from deconfound.data.screens.screen import open_screen

        path = self.root / "runs" / f"{method}-{fold.replace('/', '_')}-{seed}"
        path.mkdir(parents=True)
        config = config_model(method).model_validate(
            {"method": method, "seed": seed, "data": {"fold": fold}}
        )
        label = self.table[str(self.roles.label)]
        trained = sorted(set(label[~test].dropna()))
        screen = open_screen(self.root / "screen")
        counts = {"train": int((~test).sum()), "test": int(test.sum())}
        written = {
            "classes.json": {
                "labels": trained, "environments": ["P"], "channels": self.channels,
                "roles": self.roles.model_dump(), "transform": "none", "percentile_by": [],
                "groups": [],
            },
            "fold.json": {
                "name": fold, "counts": counts, "screen": str(screen.path),
                "screen_identity": screen.identity, "screen_provenance": {},
            },
            "selection.json": {"used": {}, "best": {}},
            "provenance.json": {"device": "cpu", "precision": "32"},
        }  # fmt: skip
        for name, values in written.items():
            (path / name).write_text(json.dumps(values))
        (path / "config.yaml").write_text(dump_config(config))
        (path / "metrics.csv").write_text("stage,step,part,name,value\n")
        (path / "model.safetensors").touch()
        about = {
            "method": method, "fold": fold, "seed": seed, "run": path.name, "screen": "tiny",
            "roles": self.roles.model_dump(mode="json"), "labels": trained,
            "config": config.model_dump(mode="json"),
        }  # fmt: skip
        parts = {
            "deconfound_part": np.where(test, "test", "train"),
            "deconfound_predicted": pd.Series(predicted, dtype="string"),
        }
        if block is None:
            block = np.random.default_rng(seed).normal(size=(len(label), 4)).astype(np.float32)
        file = path / "embeddings.h5ad"
        write_embeddings(
            file, Embeddings(self.table.assign(**parts), {"representation": block}, about)
        )
        return file


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    """Called with a table, images and what else `Study` takes."""

    def make(*given: Any, **named: Any) -> Study:
        return Study(tmp_path, *given, **named)

    return make
