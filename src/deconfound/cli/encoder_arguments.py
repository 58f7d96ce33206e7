"""The arguments of verbs on encoders that others have trained, or will use."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from tyro.conf import Positional

from deconfound.cli.arguments import Arguments, ComputedArguments


class FeaturesArguments(ComputedArguments):
    """Embed every image once with a frozen encoder: a screen of profiles for every method."""

    screen: Positional[Path]
    """Screen of images."""
    encoder: str
    """timm:NAME, resnet18, densenet121 or small, with --weights, or torch:FILE, an exported
    program."""
    out: Path
    """Screen of profiles to write; if it holds these very features, nothing is done."""
    weights: Path | None = None
    """Safetensors or torch file of the encoder's weights."""
    weights_prefix: str | None = None
    """What stands before the encoder's names in a file of several networks."""
    channels_as: Literal["repeat", "sum", "concatenate", "average"] | None = None
    """How the encoder takes channels where the weights are of another number: repeat (those of its
    first layer in turn), sum (their sum for every channel), or each channel alone through the
    network, whose representations are joined (concatenate) or averaged (average)."""
    input_size: int | None = Field(None, ge=8)
    """Pixels that images are resized to; if not given, their own, or those of a timm network that
    takes one size only."""
    transform: Literal["percentile", "none"] = "percentile"
    """percentile: each image is stretched between its own 0.1 and 99.9 percentiles, channel by
    channel; none: divided by the maximum of its type."""
    precision: Literal["auto", "32", "bf16"] = "32"
    """Precision of the network."""


class ExportModelArguments(Arguments):
    """Write a run's encoder as a directory that others open: weights, program and model card."""

    run: Positional[Path]
    """Directory of a finished run."""
    out: Path
    """Directory to write; must not exist."""
    screen: Path | None = None
    """The screen that the run was trained on, if it has been moved."""
    scores: tuple[Path, ...] = ()
    """Files of scores; those of the run go into the model card."""
