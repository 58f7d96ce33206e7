"""export-model: a run's encoder as a directory that others open without a run or a screen."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from deconfound.arrays import Floats, Rows
from deconfound.data.loading.batch import BatchReader
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.embeddings.content_encoder import ContentEncoder, encoder_of
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.intervention.embedder import Embedder
from deconfound.nets.exported_program import PROGRAM_PREFIX
from deconfound.nets.low_rank import merge_adapters
from deconfound.reports.model_card import model_card
from deconfound.runs.run import Run, learn_groups, open_run
from deconfound.runtime.device import start_fabric

PROGRAM = "encoder.pt2"
ROWS = 64
"""Rows that are embedded both ways at most."""
TOLERANCE = 1e-4
"""Largest difference from `embed`, of the largest value that `embed` gives."""
MOST_IMAGES = 65_536
"""Images in a batch of the exported program at most."""


class Checked(NamedTuple):
    """How the exported program was compared with `embed`."""

    rows: int
    difference: float
    """Largest absolute difference."""
    stored: bool
    """Whether the program takes pixels as stored; else as the run scales them."""


def export_model(
    run: Path, out: Path, *, screen: Path | None = None, scores: Sequence[Path] = ()
) -> ContentEncoder:
    """Write the encoder of `run` into the directory `out`, and open it from there.

    `model.safetensors` and `config.json` are what `ContentEncoder.from_pretrained` opens,
    `encoder.pt2` is the same as a program of torch.export, from pixels as stored (or, where the run
    scales them by group or by each image's percentiles, from pixels so scaled) to content, and
    README.md a model card with the scores in the files `scores`. Both are compared with `embed` on
    rows of the run's screen, which is looked for at `screen` if it has been moved; nothing is left
    if they differ. Raises UserError if `out` exists, if the screen is not the run's, and for a run
    whose embeddings need other images: batch statistics of an environment, or images redrawn.
    """
    opened = open_run(run)
    _refuse_what_needs_others(opened)
    path = opened.screen_path if screen is None else Path(screen)
    if not (path / "screen.json").is_file():
        raise UserError(
            f"{path}: the screen that {run} was trained on is not there; say where it is with "
            "--screen"
        )
    trained = open_screen(path)
    if not opened.trained_on(trained):
        raise UserError(f"{path}: is not the screen that {run} was trained on; give that one")
    with atomic.atomic_directory(Path(out)) as folder:
        made = encoder_of(opened, trained)
        made.save_pretrained(folder)
        rows = np.unique(np.linspace(0, len(trained) - 1, ROWS).astype(np.int64))
        expected = _embedded(opened, trained, rows, made.block)
        checked = _program(made, opened, trained, rows, expected, folder / PROGRAM)
        again = ContentEncoder.from_pretrained(folder)
        found = again.embed_scaled(_scaled(opened, trained, rows))
        _refuse_other(found.detach().numpy(), expected, folder / "model.safetensors")
        card = model_card(opened, trained, made.config, checked._asdict(), scores)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return ContentEncoder.from_pretrained(Path(out))


def _refuse_what_needs_others(run: Run) -> None:
    config = run.config
    reason = None
    if config.options.context is not None:
        reason = "takes the batch statistics of each environment's own images"
    elif config.intervention.intervene is not None and config.intervention.correction_draws:
        reason = "redraws images with another run before it embeds them"
    elif str(getattr(config.options, "encoder", "")).startswith(PROGRAM_PREFIX):
        reason = "begins with an exported program, a file of its own"
    if reason is not None:
        raise UserError(
            f"{run.path}: {config.title} {reason}, so its encoder cannot stand alone; give the run "
            "itself to `deconfound embed`, or export a run of another method"
        )


@torch.inference_mode()
def _embedded(run: Run, screen: Screen, rows: Rows, block: str) -> Floats:
    """What `embed` gives for `rows`, (B, D)."""
    embedder = Embedder.of_run(run, screen, _on_cpu())
    (found,) = embedder.stream([rows])
    return found.representations[block].numpy()


def _scaled(run: Run, screen: Screen, rows: Rows) -> Tensor:
    """The images of `rows` as the run's network sees them, (B, C, H, W)."""
    _, intensity = run.load(screen)
    group = learn_groups(run, screen, intensity)
    reader = BatchReader(
        screen, intensity=intensity, device=torch.device("cpu"), group=group, channels_last=False
    )
    return reader.read(rows).image


def _on_cpu() -> Fabric:
    return start_fabric("cpu", "32", None, alone=True)


class _Program(nn.Module):
    def __init__(self, made: ContentEncoder, stored: bool) -> None:
        super().__init__()
        self.made, self.stored = made, stored

    def forward(self, pixels: Tensor) -> Tensor:
        if self.stored:
            found: Tensor = self.made(pixels)
            return found
        return self.made.embed_scaled(pixels)


def _program(
    made: ContentEncoder, run: Run, screen: Screen, rows: Rows, expected: Floats, file: Path
) -> Checked:
    """Export the encoder to `file`, and compare what is read from there with `expected`."""
    stored = not run.groups and run.transform != "percentile"
    pixels = _scaled(run, screen, rows)
    if stored:
        pixels = torch.from_numpy(screen.read(rows).astype(np.float32))
    merged = copy.deepcopy(made).eval()
    merge_adapters(merged)
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    example = (torch.cat([pixels, pixels])[:2],)
    try:
        program = torch.export.export(
            _Program(merged, stored).eval(), example, dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, str(file))
    except Exception as error:  # torch.export has no one exception for what it cannot follow
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{run.path}: torch {torch.__version__} cannot export its network ({reason}); use the "
            "run itself"
        ) from error
    with torch.inference_mode():
        found = torch.export.load(str(file)).module()(pixels).numpy()
    _refuse_other(found, expected, file)
    return Checked(len(rows), float(np.abs(found - expected).max()), stored)


def _refuse_other(found: Floats, expected: Floats, file: Path) -> None:
    difference = float(np.abs(found - expected).max())
    most = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= most:
        raise UserError(
            f"{file.name}: differs from `embed` by up to {difference:.2g} (at most {most:.2g} is "
            "rounding), so nothing was written; report this with the run's config.yaml"
        )
