"""Encoders that others have trained: weights from a file, frozen, fine-tuned or adapted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError
from deconfound.files.checksums import sha256
from deconfound.nets.encoder import (
    TIMM_PREFIX,
    Encoder,
    Norm,
    build_encoder,
    build_network,
    feature_count,
)
from deconfound.nets.exported_program import PROGRAM_PREFIX, ExportedProgram
from deconfound.nets.low_rank import add_adapters
from deconfound.nets.timm_network import trained_pixels, trained_size
from deconfound.nets.weights_file import EACH, ChannelsAs, load_file_into

Tune = Literal["full", "frozen", "lora"]


@dataclass(frozen=True)
class Pretrained:
    """Where the weights of an encoder come from, and what becomes of them."""

    weights: Path | None = None
    """Safetensors or torch file, needed for training alone; None for an exported program."""
    prefix: str | None = None
    """What stands before the network's names in the file; found if None."""
    channels_as: ChannelsAs | None = None
    """How a network of other channels takes those of a screen; None where they are the same."""
    input_size: int | None = None
    """Side that images are resized to; if None that of a timm network for images of one size only,
    else that of the images."""
    tune: Tune = "full"
    """full: all weights are trained; frozen: none; lora: low-rank adapters of linear layers."""
    rank: int = 8
    """Rank of the adapters."""
    unit_pixels: bool = False
    """Whether pixels come in [0, 1]: they then take the mean and sd that timm says the network was
    trained with. Otherwise they have been standardised by the screen's own."""


class PretrainedEncoder(Encoder):
    """An encoder around a pretrained network: resizes, normalises and pools as that network wants.

    (B, C, H, W) float32 -> (B, features); C times the features of the network where channels are
    concatenated. What it resizes to and normalises by is part of its state, so that a checkpoint
    needs no file of weights.
    """

    pixel_mean: Tensor
    """(C, 1, 1), or empty."""
    pixel_sd: Tensor

    def __init__(
        self, network: nn.Module, features: int, name: str, channels: int, side: int | None,
        how: Pretrained,
    ) -> None:  # fmt: skip
        super().__init__(network, features * (channels if how.channels_as == "concatenate" else 1))
        self.name, self.side, self.how = name, side, how
        mean, sd = _pixels(name, channels, how)
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_sd", sd)
        if how.tune == "frozen":
            network.requires_grad_(False)
        elif how.tune == "lora":
            add_adapters(network, how.rank, name)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but that a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.how.tune == "frozen":
            self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        side = self.side
        if side is not None and tuple(image.shape[-2:]) != (side, side):
            image = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
        if len(self.pixel_mean):
            image = (image - self.pixel_mean) / self.pixel_sd
        if self.how.channels_as not in EACH:
            return super().forward(image)
        rows, channels = image.shape[:2]
        each = super().forward(image.reshape(rows * channels, 1, *image.shape[2:]))
        each = each.reshape(rows, channels, -1)
        return each.mean(dim=1) if self.how.channels_as == "average" else each.flatten(1)

    def load(self) -> dict[str, Any]:
        """Take the weights from their file, and return what is kept of it; raises as its reader."""
        file = self.how.weights
        assert file is not None
        taken = load_file_into(self.network, self.name, file, self.how.prefix, self.how.channels_as)
        found = {"encoder": self.name, "file": str(Path(file).resolve()), "sha256": sha256(file)}
        return found | taken._asdict()


def build_pretrained(
    name: str, channels: int, image_size: int | None, norm: Norm, how: Pretrained | None
) -> Encoder:
    """As `build_encoder`, with what `how` says of pretraining, and for `torch:FILE` too.

    The weights are random until `load_pretrained`. Raises UserError as `build_encoder` does, for
    profiles, for adapters of a network without linear layers, for options of weights without any,
    and for an exported program that cannot take the images.
    """
    program = name.startswith(PROGRAM_PREFIX)
    if how is None and not program:
        return build_encoder(name, channels, image_size, norm)
    how = how or Pretrained(tune="frozen")
    if image_size is None:
        raise UserError(
            f"encoder {name} with --weights takes images, and the screen holds profiles; leave "
            "the options of pretraining out"
        )
    if program:
        return _program(name, channels, image_size, norm, how)
    if how.weights is None and (how.tune != "full" or how.channels_as is not None):
        option = f"--tune {how.tune}" if how.tune != "full" else f"--channels-as {how.channels_as}"
        raise UserError(f"{option} is for pretrained weights; add --weights FILE")
    timm = name.removeprefix(TIMM_PREFIX) if name.startswith(TIMM_PREFIX) else None
    side = how.input_size
    if side is None and timm is not None:
        side = trained_size(timm)
    seen = 1 if how.channels_as in EACH else channels
    network = build_network(name, seen, norm, side)
    features = feature_count(network, name, seen, side or image_size, norm)
    return PretrainedEncoder(network, features, name, channels, side, how)


def load_pretrained(network: nn.Module) -> list[dict[str, Any]]:
    """Give every pretrained encoder inside `network` its weights; returns what a run keeps of them.

    Raises UserError as the readers of the files do.
    """
    waiting = [one for one in network.modules() if isinstance(one, PretrainedEncoder)]
    return [one.load() for one in waiting if one.how.weights is not None]


def _program(name: str, channels: int, side: int, norm: Norm, how: Pretrained) -> Encoder:
    if how.weights is not None or how.tune != "frozen" or norm != "batch":
        raise UserError(
            f"encoder {name} is an exported program, whose weights and norms stay as they are; "
            "leave --weights, --tune and --norm out"
        )
    if how.channels_as in ("repeat", "sum"):
        raise UserError(
            f"--channels-as {how.channels_as} changes a first layer, and {name} is an exported "
            "program; choose concatenate or average, or export it for these channels"
        )
    seen = 1 if how.channels_as in EACH else channels
    network = ExportedProgram(Path(name.removeprefix(PROGRAM_PREFIX)))
    features = network.features(seen, how.input_size or side)
    return PretrainedEncoder(network, features, name, channels, how.input_size, how)


def _pixels(name: str, channels: int, how: Pretrained) -> tuple[Tensor, Tensor]:
    """Mean and sd (C, 1, 1) of each channel; empty where pixels are taken as they come."""
    known = None
    if how.unit_pixels and how.weights is not None and name.startswith(TIMM_PREFIX):
        known = trained_pixels(name.removeprefix(TIMM_PREFIX))
    if known is None:
        return torch.empty(0), torch.empty(0)
    both = torch.tensor(known)  # (2, channels of the network)
    had = both.shape[1]
    if how.channels_as == "repeat" or (how.channels_as is None and had == channels):
        both = both[:, [place % had for place in range(channels)]]
    else:
        both = both.mean(dim=1, keepdim=True).expand(2, channels)
    mean, sd = both.clone()[..., None, None]
    return mean, sd
