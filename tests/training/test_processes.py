"""Two processes on half batches against one process on whole batches.

Run as a script, this file is one process: `test_processes.py RANK RANKS DIRECTORY`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deconfound import methods
from deconfound.config import AUGMENTATIONS
from deconfound.data.folds.problem import pose
from deconfound.data.loading import pairs
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.loading.intensity import fit_intensity
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.methods import ist, stargan2
from deconfound.methods.contract import Method
from deconfound.nets import mixstyle, vae
from deconfound.nets.layers import synchronise_batch_norm
from deconfound.runs.checkpoint import read_resume
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runs.run import build_method
from deconfound.training.fit import fit
from deconfound.training.step import sum_gradients

STEPS = 3
OPTIONS = {
    "scbd": {"decoder": "beside"},
    "mixstyle": {"mix_probability": 1.0},
    "fish": {"form": "authors", "meta_steps": 2},
}
VARIANTS = {
    "dann-reversal": ("dann", {"form": "reversal"}),
    "scbd-joint": ("scbd", {"decoder": "joint", "decoder_weight": 2.0}),
    "scbd-content": ("scbd", {"style_block": False}),
    "dann-penalty": ("dann", {"discriminator_gradient_penalty": 0.5}),
    "vae-optimal-sigma": ("vae", {"likelihood": "optimal_sigma"}),
    "ivae-image": ("ivae", {"likelihood": "optimal_sigma", "style_posterior": "image"}),
}
"""Other settings of a method, by a name of their own."""


def trained(config: RunConfig, screen: Screen, rank: int, ranks: int) -> dict[str, Tensor]:
    """Losses of every step, last gradients and final weights of a few steps in float64."""
    problem = pose(screen, config.data)
    intensity = fit_intensity(screen, problem.fold.rows("train"), "none", "standardise", 0)
    counts = len(problem.label.names), len(problem.environment.names)
    method = build_method(config, screen, *counts, problem.controls)
    if ranks > 1:
        synchronise_batch_norm(method)
    method.double().train()
    reader = BatchReader(
        screen,
        label=problem.label.codes,
        environment=problem.environment.codes,
        intensity=intensity,
        device=torch.device("cpu"),
    )
    rows = problem.fold.rows("train")[:39]
    batch = reader.read(rows[rank::ranks].copy())
    batch = replace(batch, image=batch.image.double())
    found = {}

    def backward(loss: Tensor, parameters: list[nn.Parameter]) -> None:
        torch.autograd.backward(loss)
        if ranks > 1:
            sum_gradients(parameters)

    with mixing_within_rows_of_each_of_two(alone=ranks == 1), styles_of_rows(alone=ranks == 1):
        for stage in method.stages(STEPS):
            optimizers = [phase.optimizer() for phase in stage.phases]
            for step in range(STEPS):
                for loss, value in method.step(batch, stage, optimizers, backward).items():
                    found[f"{stage.name}.{step}.{loss}"] = value
    return found | _state(method)


@contextmanager
def mixing_within_rows_of_each_of_two(alone: bool) -> Iterator[None]:
    """Fixed partners and weight: a row's partner is the next one of its process, alone too."""

    def partners(environment: Tensor, *_: object) -> Tensor:
        rows = torch.arange(len(environment))
        found = rows.clone()
        for own in (rows[0::2], rows[1::2]) if alone else (rows,):
            found[own] = own.roll(-1)
        return found

    with (
        patch.object(mixstyle, "draw_partners", partners),
        patch.object(mixstyle.MixStyle, "weights", lambda _, count: torch.full((count,), 0.25)),
    ):
        yield


@contextmanager
def styles_of_rows(alone: bool) -> Iterator[None]:
    """Noise that depends on the row; references are the next two rows of a process, alone too."""

    def references(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.arange(len(batch))
        first, second = rows.clone(), rows.clone()
        for own in (rows[0::2], rows[1::2]) if alone else (rows,):
            first[own], second[own] = own.roll(-1), own.roll(-2)
        return rows, first, second

    def latents(batch: Batch, own: Tensor, size: int) -> Tensor:
        angle = batch.row[own].double()[:, None] * torch.arange(1, size + 1)
        return torch.stack([angle.sin(), angle.cos()])

    def rolled(batch: Batch) -> pairs.Pairs:
        _, style, _ = references(batch)
        of_style = batch.image[style], batch.environment[style], batch.label[style]
        return pairs.Pairs(batch.image, batch.environment, *of_style)

    with (
        patch.object(ist, "pairs", rolled),
        patch.object(stargan2, "reference_rows", references),
        patch.object(stargan2, "draw_latents", latents),
        patch.object(vae, "standard_normal", lambda like: torch.full_like(like, 0.5)),
    ):
        yield


def _state(method: Method) -> dict[str, Tensor]:
    gradients = {
        f"gradient.{name}": parameter.grad.clone()
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }
    return gradients | {name: value.clone() for name, value in method.state_dict().items()}


def one_rank(rank: int, ranks: int, directory: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{directory}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    screen = open_screen(Path((directory / "screen.txt").read_text()))
    for name in [*methods.names(), *VARIANTS]:
        config = read_config(directory / f"{name}.yaml")
        save_file(trained(config, screen, rank, ranks), directory / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()


def test_half_batches_of_two_processes_train_as_one_process_does(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "screen.txt").write_text(str(screen.path))
    settings = {name: (name, OPTIONS.get(name)) for name in methods.names()} | VARIANTS
    configs = {name: make_config(method, options=own) for name, (method, own) in settings.items()}
    for name, config in configs.items():
        (tmp_path / f"{name}.yaml").write_text(dump_config(config))
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(tmp_path)])
        for rank in range(2)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for name, config in configs.items():
        expected = trained(config, screen, 0, 1)
        for rank in range(2):
            found = load_file(tmp_path / f"{name}-{rank}.safetensors")
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                scale = max(1.0, float(value.double().abs().max()))
                # Losses are logged in float32.
                within = 1e-9 if value.dtype == torch.float64 else 1e-6
                difference = float((found[key].double() - value.double()).abs().max())
                assert difference <= within * scale, (name, rank, key, difference)


def test_torchrun_fits_what_one_process_fits(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    every = " ".join(AUGMENTATIONS)
    config = make_config("scbd", training={"augment": every, "batch_size": 23})
    alone = fit(config, screen.path, tmp_path / "alone", quiet=True)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "deconfound"),
        *("fit", "scbd", str(screen.path), "--config", str(tmp_path / "run.yaml")),
        *("--out", str(tmp_path / "both"), "--quiet"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "both" / "provenance.json").read_text())["processes"] == 2
    assert {file.name for file in (tmp_path / "both").iterdir()} == {
        file.name for file in alone.path.iterdir()
    }
    losses = [
        pd.read_csv(run / "metrics.csv").select_dtypes("number").to_numpy()
        for run in (alone.path, tmp_path / "both")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2, atol=2e-3)


def test_a_signal_to_one_process_of_two_stops_both_and_saves_once(
    screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Only the second process is asked, which writes nothing itself."""
    few = {"steps": 4000, "validate_every": 5, "checkpoint_every": 4000}
    (tmp_path / "run.yaml").write_text(dump_config(make_config("erm", training=few)))
    command = [sys.executable, "-m", "deconfound", "fit", "erm", str(screen.path), "--quiet"]
    command += ["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                command, env={**os.environ, **own, "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "t"},
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        while not (tmp_path / "run" / "classifier-loss.safetensors").exists():
            assert all(rank.poll() is None for rank in ranks), [r.communicate() for r in ranks]
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGTERM)
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert all("the same command resumes" in line for line in said), said
    state = read_resume(tmp_path / "run")
    assert 0 < state["done"] < 4000
    assert all(f"saved at step {state['done']} of 4000" in line for line in said)
    assert not list((tmp_path / "run").glob("*.partial"))


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
