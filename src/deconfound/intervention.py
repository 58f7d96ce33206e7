"""The interventional distribution: images that a finished run imputes into random environments."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deconfound import atomic, methods
from deconfound.checkpoint import read_weights, save_weights
from deconfound.config import DataOptions, validated
from deconfound.data.batch import Batch, BatchReader
from deconfound.data.intensity import Intensity
from deconfound.data.screen import Rows, Screen
from deconfound.data.shards import sha256
from deconfound.data.table import listed
from deconfound.errors import UserError
from deconfound.methods.base import Imputer
from deconfound.problem import Problem
from deconfound.run import (
    FORMAT_VERSION,
    Run,
    RunConfig,
    build_method,
    config_model,
    open_run,
    read_json,
    refuse_changed,
    take_weights,
    weights,
)
from deconfound.streams import numpy_stream, torch_stream

WEIGHTS, DESCRIPTION = "intervention.safetensors", "intervention.json"
AT_ONCE = 128
"""Images that an imputer is given at a time."""


@dataclass(frozen=True)
class Intervention:
    """P(X̂, Y | do(C)): images in styles of training environments drawn uniformly.

    Pernice et al., Interventional Style Transfer, 2023, eq. 1 and Figure 4A. Styles come from a
    bank made once, and not from a new image each time. A style may be the mean of the codes of
    several images of an environment, in which what their own cells bring into a code cancels; the
    paper takes one.
    """

    imputer: Imputer
    """Frozen, in evaluation mode."""
    intensity: Intensity
    """What the imputer's run scales pixels by."""
    bank: Tensor
    """(K, M, S) float32: M styles of training rows of each of the K training environments."""
    about: dict[str, Any]
    """What `intervention.json` holds: the configuration of the imputer's run, its labels and
    environments, the SHA-256 of its model."""

    def to(self, device: torch.device) -> "Intervention":
        """The same on a device."""
        self.imputer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, intensity=self.intensity.to(device), bank=self.bank.to(device))

    @property
    def styles(self) -> int:
        """Styles in the bank, K · M; style i is one of environment i // M."""
        return len(self.bank) * self.bank.shape[1]

    @torch.no_grad()
    def impute(self, image: Tensor, style: Tensor) -> Tensor:
        """Images (B, C, H, W) in the styles of the bank numbered `style` (B,) int64; float32."""
        wanted = self.bank.flatten(0, 1)[style.to(self.bank.device)]
        parts = zip(torch.split(image, AT_ONCE), torch.split(wanted, AT_ONCE), strict=True)
        imputed = [self.imputer.impute(some, styles).float() for some, styles in parts]
        return torch.cat(imputed).contiguous(memory_format=torch.channels_last)

    def intervene(
        self, batch: Batch, stream: torch.Generator, rank: int = 0, ranks: int = 1
    ) -> Batch:
        """do(C = c): every image in a style of an environment drawn uniformly, which becomes its.

        Held-out rows stay as they are. Where the batch is every `ranks`-th row of a larger one,
        starting at `rank`, its draws are those of there. `stream` lives on the CPU.
        """
        chosen = len(batch) - batch.held_out
        drawn = torch.randint(self.styles, (len(batch) * ranks,), generator=stream)
        style = drawn[rank::ranks][:chosen]
        environment = (style // self.bank.shape[1]).to(batch.environment.device)
        return replace(
            batch,
            image=torch.cat([self.impute(batch.image[:chosen], style), batch.image[chosen:]]),
            environment=torch.cat([environment, batch.environment[chosen:]]),
        )

    def intervene_all(
        self, batches: Iterable[tuple[Batch, bool]], stage: str, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Batch, bool]]:
        """Validation batches likewise, with the same draws every time."""
        for number, (batch, whole) in enumerate(batches):
            stream = torch_stream(0, "intervention", "validation", stage, number)
            yield self.intervene(batch, stream, rank, ranks), whole

    def write(self, run: Path) -> None:
        """Write it into the directory of a run that begins, unless it is there."""
        if (run / DESCRIPTION).is_file():
            return
        tensors = weights(self.imputer, self.intensity) | {"bank": self.bank.cpu().contiguous()}
        with atomic.atomic_file(run / WEIGHTS) as temporary:
            save_weights(temporary, tensors)
        atomic.write_text(run / DESCRIPTION, json.dumps(self.about, indent=2))


def imputing_methods() -> list[str]:
    """Names of the methods that can impute."""
    return [name for name in methods.names() if issubclass(methods.load(name), Imputer)]


def refuse_unable(method: str, name: str, where: str) -> None:
    """Raise UserError, that `name` at `where` cannot impute, if `method` is none that can."""
    able = imputing_methods()
    if method not in able:
        said = listed(able) or "a method that imputes"
        raise UserError(f"{where}: {name} cannot impute images; fit one of {said}")


def with_imputer(config: RunConfig, out: Path) -> RunConfig:
    """`config` with the method of the run that is intervened with, if there is one.

    Raises UserError if it is no run, and `out` does not hold what is needed of it.
    """
    source = config.intervention.intervene
    if source is None:
        return config.model_copy(update={"imputer": None})
    begun = (out / DESCRIPTION).is_file()
    name = read_json(out / DESCRIPTION)["method"] if begun else open_run(source).config.method
    return config.model_copy(update={"imputer": name})


def imputing_run(config: RunConfig, screen: Screen, problem: Problem, out: Path) -> Run | None:
    """The run to intervene with; None without an intervention, or where `out` has its own copy.

    Raises UserError if its method cannot impute, if it saw held-out images or may have seen what
    this run holds out, or if it is of another screen.
    """
    path = config.intervention.intervene
    if path is None or (out / DESCRIPTION).is_file():
        return None
    run = open_run(path)
    name = run.config.title
    refuse_unable(run.config.method, name, f"--intervene {path}")
    if run.config.options.sees_held_out:
        raise UserError(
            f"--intervene {path}: {name} saw images of test rows; give a run that did not"
        )
    if run.config.imputer is not None:
        raise UserError(
            f"--intervene {path}: {name} was itself trained with --intervene; give a run of "
            f"{run.config.method} that was not"
        )
    if read_json(run.path / "fold.json")["screen_identity"] != screen.identity:
        raise UserError(
            f"--intervene {path}: was trained on another screen than {screen.path}; fit "
            f"{name} on this one"
        )
    _refuse_other_data(run, config.data, problem)
    return run


def _refuse_other_data(run: Run, data: DataOptions, problem: Problem) -> None:
    """Raise UserError if the run splits or names its rows, or scales its pixels, in another way."""
    theirs = run.config.data.model_dump(exclude={"controls"})
    own = data.model_dump(exclude={"controls"})
    theirs |= {name: getattr(run.roles, name) for name in ("label", "environment", "levels")}
    own |= {name: getattr(problem.roles, name) for name in ("label", "environment", "levels")}
    for name, (that, this) in {
        "transform": (run.transform, problem.transform),
        "percentile_by": (run.percentile_by, problem.percentile_by),
    }.items():
        theirs[name], own[name] = that, this
    for name, value in theirs.items():
        if value != own[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"--intervene {run.path}: its {flag} is {_said(value)}, here {_said(own[name])}; "
                "both must hold out and scale the same, give the same options"
            )


def _said(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def begin_intervention(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    out: Path,
    source: Run | None,
    device: torch.device,
) -> Intervention | None:
    """The intervention of a run on a device: of `source`, or as `out` holds it; None without."""
    if config.intervention.intervene is None:
        return None
    if source is None:
        return load_intervention(out, screen).to(device)
    method, intensity = source.load(screen)
    assert isinstance(method, Imputer)
    about = {
        "format_version": FORMAT_VERSION,
        "method": source.config.method,
        "config": source.config.model_dump(mode="json"),
        "labels": source.labels,
        "environments": source.environments,
        "channels": source.channels,
        "transform": source.transform,
        "groups": len(source.groups),
        "run": source.path.resolve().name,
        "model_sha256": sha256(source.path / "model.safetensors"),
    }
    nothing = torch.empty(0)
    made = Intervention(frozen(method), intensity, nothing, about).to(device)
    options = config.intervention
    bank = style_bank(
        made, screen, problem, options.bank, options.style_images, config.seed, device
    )
    return replace(made, bank=bank)


def frozen(imputer: Imputer) -> Imputer:
    """The same imputer, in evaluation mode, without gradients."""
    return imputer.eval().requires_grad_(False)


def style_bank(
    intervention: Intervention,
    screen: Screen,
    problem: Problem,
    styles: int,
    images: int,
    seed: int,
    device: torch.device,
) -> Tensor:
    """(K, `styles`, S) float32: of each training environment those of training rows, drawn by seed.

    A style is the mean of the codes of `images` rows. Rows are drawn without replacement; where
    there are too few they are repeated.
    """
    train = problem.fold.rows("train")
    found = []
    for code, name in enumerate(problem.environment.names):
        rows = train[problem.environment.codes[train] == code]
        stream = numpy_stream(seed, "style bank", name)
        drawn = stream.permutation(rows)[: styles * images]
        again = stream.choice(rows, styles * images - len(drawn))
        every = np.concatenate([drawn, again])
        codes = styles_of(intervention, screen, problem, every, device)
        found.append(codes.reshape(styles, images, -1).mean(dim=1))
    return torch.stack(found)


@torch.no_grad()
def styles_of(
    intervention: Intervention, screen: Screen, problem: Problem, rows: Rows, device: torch.device
) -> Tensor:
    """The styles (B, S) float32 of training rows."""
    reader = BatchReader(
        screen,
        problem.label.codes,
        problem.environment.codes,
        intervention.intensity,
        device,
        channels_last=True,
        group=None if problem.group is None else problem.group.codes,
    )
    parts = np.split(rows, np.arange(AT_ONCE, len(rows), AT_ONCE))
    batches = reader.stream(parts)
    return torch.cat(
        [intervention.imputer.style(batch.image, batch.environment).float() for batch in batches]
    )


def load_intervention(run: Path, screen: Screen) -> Intervention:
    """The intervention that a run holds, on the CPU; raises UserError if it is damaged."""
    refuse_changed(run / DESCRIPTION)
    refuse_changed(run / WEIGHTS)
    about = read_json(run / DESCRIPTION)
    try:
        name, counts = about["method"], (len(about["labels"]), len(about["environments"]))
        intensity = Intensity(len(about["channels"]), about["transform"], about["groups"])
        config = validated(config_model(name), about["config"], str(run / DESCRIPTION))
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / DESCRIPTION}: damaged; fit the run again") from error
    imputer = build_method(config, screen, *counts)
    tensors = read_weights(run / WEIGHTS)
    bank = tensors.pop("bank", None)
    if not isinstance(imputer, Imputer) or bank is None or bank.ndim != 3:
        raise UserError(f"{run / WEIGHTS}: holds no style bank of an imputer; fit the run again")
    take_weights(tensors, run / WEIGHTS, imputer, intensity)
    return Intervention(frozen(imputer), intensity, bank, about)
