"""The oracle: a classifier that names the label of an image taken in any environment."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deconfound.arrays import ROUNDING, Images, Rows
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.augmentation import dihedral, random_turns
from deconfound.data.loading.sampler import UniformSampler
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.counterfactual import NO_ENVIRONMENT, counterfactual
from deconfound.data.tables.table import joined
from deconfound.files import atomic
from deconfound.nets.encoder import build_encoder
from deconfound.runs.checkpoint import read_weights, save_weights
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import derived_seed, numpy_stream, torch_stream

ROWS = 3_000
"""Training rows that the oracle learns from, at most."""
RENDERINGS = 4
"""Environments in which each training row is rendered."""
BATCH = 64
LEARNING_RATE = 1e-3


class Oracle(nn.Module):
    """The encoder `small` and a linear head on stored pixels, standardised by channel.

    It stands for the label head of the encoder of Pernice et al., IST, 2023, had that head seen
    every cell in every environment.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, channels: int, size: int, labels: int) -> None:
        super().__init__()
        self.encoder = build_encoder("small", channels, size)
        self.head = nn.Linear(self.encoder.features, labels)
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Stored pixels (B, C, H, W) of any numeric dtype to logits (B, labels)."""
        image = (pixels.float() - self.offset[:, None, None]) * self.scale[:, None, None]
        logits: Tensor = self.head(self.encoder(image))
        return logits

    @torch.inference_mode()
    def probabilities(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(B, C, H, W) in stored units to the probability of every label, (B, labels) float32."""
        found = self.eval()(torch.from_numpy(images)).softmax(dim=1)
        return np.asarray(found.numpy(), dtype=np.float32)


def oracle_of(
    screen: Screen,
    problem: Problem,
    folder: Path,
    *,
    steps: int,
    seed: int,
    threads: int | None = None,
    quiet: bool = False,
) -> Oracle:
    """The oracle of a simulated or injected screen and a fold, trained here or read from `folder`.

    The oracle learns from true renderings of training rows, never from a cell that is judged. Each
    row is rendered in several environments, drawn uniformly from those of training and from "none",
    which has no technical variation. An oracle of clean images alone would take the staining of
    imputed images for another phenotype. Batches are balanced over the labels, so that its
    probabilities favour none.

    The file is `oracle-IDENTITY.safetensors`; the identity stands for all that the weights depend
    on except the machine.
    Raises UserError if the screen was neither simulated nor injected, or the file is damaged.
    """
    train = problem.fold.rows("train")
    train = train[problem.label.codes[train] >= 0]
    counts = len(screen.channels), screen.image_shape[-1], len(problem.label.names)
    torch.manual_seed(derived_seed(seed, "oracle", "weights"))
    oracle = Oracle(*counts)
    settings = [screen.identity, problem.label.names, ROWS, RENDERINGS, BATCH, steps, seed]
    digest = hashlib.sha256(json.dumps(settings).encode() + train.tobytes())
    file = folder / f"oracle-{digest.hexdigest()[:12]}.safetensors"
    if file.is_file():
        oracle.load_state_dict(read_weights(file))
        return oracle.eval()
    rows = np.sort(numpy_stream(seed, "oracle", "rows").permutation(train)[:ROWS])
    images, label = _renderings(screen, problem, rows, seed, threads, quiet)
    _train(oracle, images, label, steps, seed, quiet)
    with atomic.atomic_file(file) as temporary:
        save_weights(temporary, oracle.state_dict())
    return oracle.eval()


def _renderings(
    screen: Screen, problem: Problem, rows: Rows, seed: int, threads: int | None, quiet: bool
) -> tuple[Images, Rows]:
    """True images of every row in several environments, and their labels."""
    known = joined(screen.table, screen.roles.levels).iloc[problem.fold.rows("train")]
    environments = [NO_ENVIRONMENT, *sorted(known.unique())]
    chosen = np.repeat(rows, RENDERINGS)
    stream = numpy_stream(seed, "oracle", "environments")
    drawn = stream.integers(len(environments), size=len(chosen))
    images = np.empty((len(chosen), *screen.image_shape), screen.dtype)
    with Progress("render for the oracle", len(chosen), "images", quiet=quiet) as progress:
        for code, environment in enumerate(environments):
            own = np.flatnonzero(drawn == code)
            images[own] = counterfactual(screen, chosen[own], environment, threads=threads)
            progress.update(len(own))
    return images, problem.label.codes[chosen]


def _train(oracle: Oracle, images: Images, label: Rows, steps: int, seed: int, quiet: bool) -> None:
    values = torch.from_numpy(images[:: max(1, len(images) // 1024)]).double()
    mean, sd = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    oracle.offset.copy_(mean)
    oracle.scale.copy_(torch.where(sd > ROUNDING * mean.abs(), 1 / sd, 0))
    every = np.arange(len(label), dtype=np.int64)
    sampler = UniformSampler(every, label, BATCH, seed, "oracle")
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    oracle.train()
    with Progress("train the oracle", steps, "steps", quiet=quiet) as progress:
        for step in range(steps):
            drawn = sampler.rows(step)
            pixels = torch.from_numpy(images[drawn])
            turns = random_turns(pixels, len(pixels), torch_stream(seed, "oracle", "turn", step))
            logits = oracle(dihedral(pixels, turns))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(label[drawn]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress.update(1)
