"""A small study as a report finds it, and a page of a tiny screen whose names are hostile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound.config import DataOptions, TrainingOptions
from deconfound.counterfactuals.swap import transfer
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import Embeddings, write_embeddings
from deconfound.evaluation.measure import measure
from deconfound.reports import map as report_map
from deconfound.reports.report import report
from deconfound.runs.config import config_model, dump_config
from deconfound.training.fit import fit

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


LABELS = (
    "<script>document.title='run'</script>",
    "\"><img src=x onerror=document.title='run'>",
    "</script><script>document.title='run'</script>",
)
PLATES = ("{{7*7}}", "<b>P2</b>", "%{x} &lt;")
CELLS, SITES = 80, 20


class HostileReport(NamedTuple):
    """The page and what is in it."""

    page: Path
    cells: int
    labels: tuple[str, ...]
    plates: tuple[str, ...]
    sites: int


def verdict() -> dict[str, Any]:
    """A verdict.json whose every text is hostile."""

    def summed(mean: float, chance: float) -> dict[str, float]:
        return {"mean": mean, "sd": 0.04, "n": 6, "chance": chance}

    def of_method(mean: float, difference: dict[str, float] | None) -> dict[str, Any]:
        return {
            "held_out": summed(mean, 0.3),
            "in_distribution": summed(mean + 0.1, 0.3),
            "environment_readable": summed(0.9 - mean, 0.3),
            "biology_kept": None,
            "chosen_by_score": mean,
            "difference": difference,
            "saw_held_out": False,
        }

    gained = {"mean": 0.125, "low": 0.05, "high": 0.2, "p": 0.002}
    return {
        "format": 1, "source": LABELS[0], "label": LABELS[1], "environment": "plate",
        "hold_out": ["plate"], "verdict": "helps", "sentence": f"It helps: {LABELS[1]}.",
        "why": LABELS[0], "chosen_by": LABELS[2], "recommended": LABELS[0], "baseline": "erm",
        "difference": {**gained, "groups": 3, "seeds": 2},
        "methods": {"erm": of_method(0.5, None), LABELS[0]: of_method(0.625, gained)},
    }  # fmt: skip


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> HostileReport:
    """Two tiny runs, their embeddings, scores, swapped cells and a verdict, in one page."""
    root = tmp_path_factory.mktemp("report")
    stream = np.random.default_rng(0)
    roles = Roles(label="<i>drug</i>", environment=("plate",), levels=("plate",))
    with ScreenWriter(root / "screen", "tiny", ("DNA", "actin"), roles, {}) as writer:
        writer.append(stream.integers(0, 255, (CELLS, 2, 16, 16), dtype=np.uint8))
        row = np.arange(CELLS)
        drug, plate = ([n[i] for i in c] for n, c in ((LABELS, row % 3), (PLATES, row // 3 % 3)))
        table = {"<i>drug</i>": drug, "plate": plate, "site": [f"s{i % SITES}" for i in row]}
        writer.finish(pd.DataFrame({**table, "dose": stream.random(CELLS)}))
    for method in ("erm", "scbd"):
        model = config_model(method)
        small = {"decoder_steps": 2, "decoder_width": 4, "block_size": 8}
        config = model.model_validate(
            {
                "method": method,
                "data": DataOptions(fold=f"plate={PLATES[1]}", val_fraction=0.3),
                "training": TrainingOptions(
                    steps=4, batch_size=16, validate_every=2, threads=1, precision="32",
                    device="cpu",
                ),
                "options": small if method == "scbd" else {},
            }
        )  # fmt: skip
        run = fit(config, root / "screen", root / method, quiet=True).path
        embed(run, root / "screen", run / "embeddings.h5ad", device="cpu", threads=1, quiet=True)
        if method == "scbd":
            transfer(run, root / "screen", root / "swap", images=3)
    files = [root / method / "embeddings.h5ad" for method in ("erm", "scbd")]
    measure(files, root / "scores.parquet", quiet=True)
    (root / "verdict.json").write_text(json.dumps(verdict()), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # UMAP takes seconds to compile
        patch.setattr(report_map, "coordinates", lambda values, _seed: values[:, :2])
        report([root], root / "report.html")
    return HostileReport(root / "report.html", CELLS, LABELS, PLATES, SITES)
