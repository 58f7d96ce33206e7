"""The model card of an exported encoder: data, fold, scores and limits, in Markdown."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.evaluation.scores import read_scores
from deconfound.runs.run import Run, read_json

NAMED = 12
"""Labels, environments and groups that are named at most; config.json has all."""


def model_card(
    run: Run,
    screen: Screen,
    config: dict[str, Any],
    checked: dict[str, Any],
    scores: Sequence[Path] = (),
) -> str:
    """The text of README.md, with the front matter that hubs read.

    `config` is that of the model and `checked` says how its program was compared with `embed`.
    Raises UserError if a file of `scores` has none of this run.
    """
    table = _scores(run, scores)
    parts = {
        "Use": _use(config, checked),
        "Data": _data(run, screen, config),
        "What was held out": _fold(run),
        "Scores": _table_of(table) if scores else _validation(run),
        "Limits": _limits(run, config, checked),
        "Training": _training(run),
    }
    front = {
        "library_name": "deconfound",
        "tags": ["microscopy", "embeddings", "batch-effects", run.config.method],
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---", ""]
    lines += [f"# {run.path.name}: {run.config.title} on {screen.name}", ""]
    for title, text in parts.items():
        lines += [f"## {title}", "", *text, ""]
    return "\n".join(lines)


def _use(config: dict[str, Any], checked: dict[str, Any]) -> Iterator[str]:
    what = "profiles (B, D)" if config["image_size"] is None else "images (B, C, H, W)"
    stored = "as stored" if checked["stored"] else "as `encoder.intensity` scales them"
    called = "encoder(pixels, group)" if config["groups"] else "encoder(pixels)"
    yield from (
        "```python",
        "from deconfound import ContentEncoder",
        "",
        "encoder = ContentEncoder.from_pretrained(FOLDER)",
        f"embedding = {called}  # {what} as stored -> (B, {config['features']})",
        "```",
        "",
        "`encoder.pt2` is the same as a program, without deconfound:",
        "",
        "```python",
        "import torch",
        "",
        'encoder = torch.export.load("encoder.pt2").module()',
        f"embedding = encoder(pixels)  # float32, pixels {stored}",
        "```",
        "",
        f"It was compared with `deconfound embed` on {checked['rows']} rows of the screen: the "
        f"largest difference is {checked['difference']:.1e}.",
    )


def _data(run: Run, screen: Screen, config: dict[str, Any]) -> Iterator[str]:
    size = config["image_size"]
    what = "features" if size is None else f"channels of {size} × {size} px, {config['dtype']}"
    yield f"- screen: {screen.name}, {len(screen):,} rows, identity `{screen.identity[:16]}`"
    yield f"- {len(run.channels)} {what}, in this order: {listed(run.channels, NAMED)}"
    yield f"- label: {run.roles.label}, {len(run.labels):,} in training: {_some(run.labels)}"
    columns = " / ".join(run.roles.environment)
    many = len(run.environments)
    yield f"- environment: {columns}, {many:,} in training: {_some(run.environments)}"
    scaling = f"- pixels: transform {run.transform}, then {config['scaling']}"
    if config["grouped_by"]:
        by = " / ".join(config["grouped_by"])
        scaling += f", by {by}: {_some(run.groups)}"
    yield scaling


def _fold(run: Run) -> Iterator[str]:
    about = read_json(run.path / "fold.json")
    counts = ", ".join(f"{part} {rows:,}" for part, rows in about["counts"].items())
    yield f"Fold `{run.fold}`, rows by part: {counts}."


def _validation(run: Run) -> Iterator[str]:
    yield "No file of scores was given (`--scores`). In training, on validation rows that are not "
    yield "held out by environment:"
    yield ""
    found = read_json(run.path / "selection.json")
    yield "```json"
    yield json.dumps(found, indent=1)
    yield "```"


def _scores(run: Run, files: Sequence[Path]) -> pd.DataFrame:
    tables = []
    for file in files:
        table = read_scores(Path(file))
        own = table["method"].eq(run.config.title) & table["fold"].eq(run.fold)
        table = table[own & table["seed"].eq(run.config.seed)]
        if table.empty:
            raise UserError(
                f"{file}: has no score of {run.config.title}, fold {run.fold}, seed "
                f"{run.config.seed}; give the file that `measure` wrote for this run"
            )
        tables.append(table)
    return pd.concat(tables) if tables else pd.DataFrame()


def _table_of(table: pd.DataFrame) -> Iterator[str]:
    yield "| representation | metric | part | value | n | note |"
    yield "|---|---|---|---|---|---|"
    for row in table.itertuples():
        cells = (row.representation, row.metric, row.part, f"{row.value:.4g}", row.n, row.note)
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _limits(run: Run, config: dict[str, Any], checked: dict[str, Any]) -> Iterator[str]:
    yield "- It was trained on this screen alone: other cells, stains, microscopes and"
    yield "  magnifications are outside of what its scores say. Measure it on your own first."
    yield "- It wants the channels in the order above, of the same type and size."
    for note in run.config.held_out_notes:
        yield f"- Every score carries the note: {note}."
    if config["groups"]:
        by = " / ".join(config["grouped_by"])
        yield f"- Pixels are scaled by {by}. `group` is the place of an image's group in `groups`"
        yield "  of config.json; −1, a group that training never saw, leaves its pixels as they"
        yield "  are, where `deconfound embed` learns the statistics of that group first."
    if not checked["stored"]:
        yield "- `encoder.pt2` takes pixels after that scaling, as a program has no group."
    yield "- It is made for research, not for diagnosis."


def _training(run: Run) -> Iterator[str]:
    about = run.provenance()
    versions = ", ".join(f"{name} {one}" for name, one in about.get("packages", {}).items())
    yield f"- {run.config.training.steps:,} steps, seed {run.config.seed}, {about.get('device')}"
    yield f"- Python {about.get('python')}, {versions}"
    if (run.path / "pretrained.json").is_file():
        for one in read_json(run.path / "pretrained.json")["encoders"]:
            file, digest = Path(one["file"]).name, one["sha256"][:16]
            yield f"- began with the weights {file} (SHA-256 {digest}…) of {one['encoder']}"


def _some(names: Sequence[str]) -> str:
    return listed(names, NAMED)
