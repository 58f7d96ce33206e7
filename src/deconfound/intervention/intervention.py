"""The interventional distribution: images that a finished run imputes into random environments."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconfound.config import validated
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.batch import Batch
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import sha256
from deconfound.intervention.styles import (
    AT_ONCE,
    mean_style_of,
    mean_styles,
    style_bank,
    style_reference,
    styles_of,
)
from deconfound.methods.contract import Imputer
from deconfound.runs.checkpoint import read_weights, save_weights, take_weights, weights
from deconfound.runs.config import RunConfig, config_model
from deconfound.runs.run import FORMAT_VERSION, Run, build_method, read_json, refuse_changed
from deconfound.runtime.seeds import torch_stream

WEIGHTS, DESCRIPTION = "intervention.safetensors", "intervention.json"


@dataclass(frozen=True)
class Intervention:
    """P(X̂, Y | do(C)): images in styles of training environments drawn uniformly.

    Pernice et al., Interventional Style Transfer, 2023, eq. 1 and Figure 4A. Styles come from a
    bank made once, and not from a new image each time. A style may be the mean over several images
    of an environment, so that what single cells add to it cancels; the paper takes one image.
    """

    imputer: Imputer
    """Frozen, in evaluation mode."""
    intensity: Intensity
    """The pixel scaling of the imputer's run."""
    bank: Tensor
    """(K, M, S) float32: M styles for each of the K training environments."""
    source: Tensor | None
    """(K, S) float32: the mean style of each training environment, where images keep how their
    style differs from it; None where styles are not relative."""
    about: dict[str, Any]
    """The content of `intervention.json`: the configuration of the imputer's run, its labels and
    environments, the SHA-256 of its model."""
    to_mean: bool = False
    """Whether every image is brought to the mean of the bank, an addition; in the paper each is
    brought to an environment drawn for it."""

    def to(self, device: torch.device) -> "Intervention":
        """The same on a device."""
        self.imputer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        source = None if self.source is None else self.source.to(device)
        intensity, bank = self.intensity.to(device), self.bank.to(device)
        return replace(self, intensity=intensity, bank=bank, source=source)

    @property
    def targets(self) -> Tensor:
        """(T, S): the styles that images are brought to.

        The K · M styles of the bank, where style i belongs to environment i // M; or their mean.
        """
        styles = self.bank.flatten(0, 1)
        return styles.mean(dim=0, keepdim=True) if self.to_mean else styles

    @torch.no_grad()
    def impute(self, image: Tensor, style: Tensor, source: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) redrawn in the targets `style` (B,) int64: (B, C, H, W) float32.

        With `source` (B, S), the mean styles of the images' environments, styles are relative; an
        image whose source is NaN takes the target unchanged.
        """
        wanted = self.targets[style.to(self.bank.device)]
        parts = zip(torch.split(image, AT_ONCE), torch.split(wanted, AT_ONCE), strict=True)
        imputed = []
        for place, (some, styles) in enumerate(parts):
            of = None if source is None else source[place * AT_ONCE :][: len(some)]
            imputed.append(self.imputer.impute(some, styles, of).float())
        return torch.cat(imputed).contiguous(memory_format=torch.channels_last)

    def intervene(
        self, batch: Batch, stream: torch.Generator, rank: int = 0, ranks: int = 1
    ) -> Batch:
        """do(C = c): redraw every image in a random training environment's style.

        Its environment becomes that one, or stays if images are brought to the mean style. Held-out
        rows are not changed. If the batch is every `ranks`-th row of a larger one, from row `rank`,
        each row is given what it would be given there. `stream` is a generator on the CPU.
        """
        chosen = len(batch) - batch.held_out
        drawn = torch.randint(len(self.targets), (len(batch) * ranks,), generator=stream)
        style = drawn[rank::ranks][:chosen]
        own = batch.environment[:chosen]
        environment = own if self.to_mean else (style // self.bank.shape[1]).to(own.device)
        source = None if self.source is None else mean_style_of(self.source, own)
        imputed = self.impute(batch.image[:chosen], style, source)
        return replace(
            batch,
            image=torch.cat([imputed, batch.image[chosen:]]),
            environment=torch.cat([environment, batch.environment[chosen:]]),
        )

    def intervene_all(
        self, batches: Iterable[tuple[Batch, bool]], stage: str, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[Batch, bool]]:
        """`intervene` on validation batches, with the same draws every time."""
        for number, (batch, whole) in enumerate(batches):
            stream = torch_stream(0, "intervention", "validation", stage, number)
            yield self.intervene(batch, stream, rank, ranks), whole

    def write(self, run: Path) -> None:
        """Write the intervention into the directory of a run, unless the directory has one."""
        if (run / DESCRIPTION).is_file():
            return
        tensors = weights(self.imputer, self.intensity) | {"bank": self.bank.cpu().contiguous()}
        if self.source is not None:
            tensors["source"] = self.source.cpu().clone()
        with atomic.atomic_file(run / WEIGHTS) as temporary:
            save_weights(temporary, tensors)
        atomic.write_text(run / DESCRIPTION, json.dumps(self.about, indent=2))


def begin_intervention(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    out: Path,
    source: Run | None,
    device: torch.device,
) -> Intervention | None:
    """The intervention of a run on a device; None if `config` asks for none.

    Made from the imputing run `source`, or read from `out` if that is None.
    """
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
    options = config.intervention
    over = options.relative_style
    about |= {} if over is None else {"relative_style": over}
    to_mean = options.impute_into == "mean"
    about |= {"impute_into": "mean"} if to_mean else {}
    made = Intervention(frozen(method), intensity, torch.empty(0), None, about, to_mean)
    made = made.to(device)
    environment, train = problem.environment, problem.fold.rows("train")
    group = None if problem.group is None else problem.group.codes
    styles = styles_of(made.imputer, made.intensity, screen, environment.codes, group, device)
    names = environment.names
    if over is not None:
        found = style_reference(screen, problem.roles, over, config.data.controls, names, train)
        means = mean_styles(styles, found.of(names), names, config.seed)
        made = replace(made, source=means, bank=means[:, None])
        if not options.asks_bank:
            return made
    members = [train[environment.codes[train] == code] for code in range(len(names))]
    bank = style_bank(styles, members, names, options.bank, options.style_images, config.seed)
    return replace(made, bank=bank)


def frozen(imputer: Imputer) -> Imputer:
    """The same imputer in evaluation mode, with no parameter that takes gradients."""
    return imputer.eval().requires_grad_(False)


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
    bank, source = tensors.pop("bank", None), tensors.pop("source", None)
    if not isinstance(imputer, Imputer) or bank is None or bank.ndim != 3:
        raise UserError(f"{run / WEIGHTS}: holds no style bank of an imputer; fit the run again")
    take_weights(tensors, run / WEIGHTS, imputer, intensity)
    if source is None and "relative_style" in about:  # of a build whose bank was these means
        source = bank[:, 0]
    return Intervention(frozen(imputer), intensity, bank, source, about, "impute_into" in about)
