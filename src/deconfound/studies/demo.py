"""demo: the main job, from a simulated screen to a report, as a chain of the other verbs."""

from pathlib import Path

from pydantic import Field

from deconfound.config import DataOptions, Options, TrainingOptions, validated
from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.groups import groups
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.files import atomic
from deconfound.reports.report import report
from deconfound.runs.config import RunConfig, config_model
from deconfound.training.fit import fit

METHODS = ("erm", "scbd")


class DemoOptions(Options):
    """How large the demonstration is."""

    cells: int = Field(6_000, ge=500)
    """Simulated cells."""
    steps: int = Field(200, ge=1)
    """Training steps of every run."""
    seed: int = 0
    """Seed of the screen and of the runs."""


def demo(out: Path, options: DemoOptions | None = None, *, quiet: bool = False) -> Path:
    """Simulate a screen, hold out one plate and one series, compare ERM with SCBD, report.

    Everything is written under `out`; what is there already is not made again, so a killed
    demonstration resumes. Returns the path of the report. Raises UserError if `out` holds
    something else or a demonstration with other options.
    """
    options = options or DemoOptions()
    out = Path(out)
    _claim(out, options)
    screen = _screen(out / "screen", options, quiet)
    embeddings = []
    for level in (screen.roles.levels[1], screen.roles.levels[0]):
        fold = next(group.fold for group in groups(screen.table, screen.roles, level)
                    if group.refused is None)  # fmt: skip
        for method in METHODS:
            name = f"{method}-{level.removeprefix('Metadata_').lower()}"
            run = fit(_config(method, fold, options), screen.path, out / name, quiet=quiet)
            file = out / f"{name}.h5ad"
            if not file.exists():
                embed(run.path, screen.path, file, quiet=quiet)
            embeddings.append(file)
            grid = out / f"{name}-swap"
            if method == "scbd" and not grid.exists():
                transfer(run.path, screen.path, grid)
    scores = out / "scores.parquet"
    if not scores.exists():
        measure(embeddings, scores, quiet=quiet)
    page = out / "report.html"
    if not page.exists():
        report([out], page)
    return page


def _config(method: str, fold: str, options: DemoOptions) -> RunConfig:
    training = TrainingOptions(
        steps=options.steps,
        augment="dihedral",
        schedule="cosine",
        warmup_steps=20,
        validate_every=50,
    )
    chosen = {"learning_rate": 2e-3}
    if method == "scbd":
        chosen |= {"alpha": 1.0, "decoder_steps": max(1, options.steps // 2)}
    values = {
        "method": method,
        "seed": options.seed,
        "data": DataOptions(fold=fold).model_dump(),
        "training": training.model_dump(),
        "options": chosen,
    }
    return validated(config_model(method), values, "demo")


def _screen(path: Path, options: DemoOptions, quiet: bool) -> Screen:
    if path.exists():
        return open_screen(path)
    return simulate(
        path, config=SimulateConfig(cells=options.cells, seed=options.seed), quiet=quiet
    )


def _claim(out: Path, options: DemoOptions) -> None:
    note = out / "demo.json"
    wanted = options.model_dump_json(indent=2)
    if note.is_file():
        if note.read_text(encoding="utf-8") != wanted:
            raise UserError(f"{out}: holds a demo with other options; choose another --out")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not a demo; choose another --out")
    else:
        atomic.write_text(note, wanted)
