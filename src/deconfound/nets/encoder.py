"""Encoders of images and of profiles, and the projection of what they return onto a block."""

import copy
import difflib
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError
from deconfound.nets.timm_network import timm_network

Norm = Literal["batch", "instance", "group", "none"]

ENCODERS = ("small", "resnet18", "densenet121")
KNOWN = ", ".join(ENCODERS)
MLP = "mlp"
MLP_WIDTHS = (512, 512, 256)
TIMM_PREFIX = "timm:"


class Encoder(nn.Module):
    """A network that turns images or profiles into representations.

    `encoder(image)`: image (B, C, H, W), or profile (B, D), float32 -> representation
    (B, features).
    Random initial weights come from PyTorch's global stream: seed it before building.
    """

    def __init__(self, network: nn.Module, features: int) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, image: Tensor) -> Tensor:
        representation: Tensor = self.network(image)
        return representation


class ChannelAffine(nn.Module):
    """Scale and shift of each channel without statistics: the norm called "none".

    map (B, C, H, W) -> (B, C, H, W). It supplies the bias that convolutions before a norm lack.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, map: Tensor) -> Tensor:
        return map * self.weight + self.bias


class Projection(nn.Module):
    """Two-layer perceptron onto the unit sphere: Linear(r, r) - GELU - Linear(r, z) - normalise.

    representation (B, representation_size) -> block (B, block_size), each row of length 1, in
    float32 also under a lower-precision autocast (float64 in, float64 out).
    Makino et al., SCBD, A.1.1.
    """

    def __init__(self, representation_size: int, block_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(representation_size, representation_size),
            nn.GELU(),
            nn.Linear(representation_size, block_size),
        )

    def forward(self, representation: Tensor) -> Tensor:
        block: Tensor = self.layers(representation)
        return functional.normalize(block.to(torch.promote_types(block.dtype, torch.float32)))


def build_encoder(
    name: str, channels: int, image_size: int | None, norm: Norm = "batch"
) -> Encoder:
    """The encoder called `name` for square images of `image_size` pixels and `channels` channels.

    If `image_size` is None it is for profiles of `channels` features, and `name` is `mlp`, or the
    default `small`, which then selects `mlp`.

    - `small`: four convolutions, 256 features; not from the papers, and the default. Its pooled
      features are standardised over the batch under every norm.
    - `resnet18` (512 features) and `densenet121` (1,024): the encoders of Makino et al., SCBD,
      A.1.1, with the ImageNet stem (7x7 stride 2, max-pool) at every image size and BatchNorm;
      the layers and their initialisation are MONAI's, laid out as torchvision's.
    - `timm:NAME`: any network of the extra `[timm]`, with random weights and its own norm;
      `build_pretrained` gives it weights.
    - `mlp`, for profiles only: hidden layers of 512 and 512, 256 features, standardised over the
      batch as those of `small`.

    `norm` replaces the BatchNorm of the maps by affine instance norm, group norm (8 groups) or a
    plain per-channel scale and shift ("none"); the parameter count does not change.

    Raises UserError for an unknown name or norm, a missing extra, a norm other than "batch" with
    a timm network, an image size that the network or its norm cannot take, an image encoder for
    profiles or `mlp` for images, and instance norm for profiles, which have no maps.
    """
    if norm not in get_args(Norm):
        raise UserError(f"unknown norm {norm!r}; expected one of {', '.join(get_args(Norm))}")
    if image_size is None:
        return _mlp(name, channels, norm)
    if name == MLP:
        raise UserError(f"encoder {MLP} takes profiles, and the screen holds images; use small")
    network = build_network(name, channels, norm)
    return Encoder(network, feature_count(network, name, channels, image_size, norm))


def build_network(name: str, channels: int, norm: Norm, timm_side: int | None = None) -> nn.Module:
    """The network of an encoder of images; `timm_side` is the image size of a timm network.

    Raises UserError as `build_encoder` does.
    """
    builders = {"small": _small, "resnet18": _resnet18, "densenet121": _densenet121}
    if name in builders:
        network = builders[name](channels)
    elif name.startswith(TIMM_PREFIX):
        if norm != "batch":
            raise UserError(f"{name} keeps its own norm; norm={norm!r} works with {KNOWN}")
        network = timm_network(name.removeprefix(TIMM_PREFIX), channels, timm_side)
    else:
        near = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown encoder {name!r}; {hint}expected {KNOWN} or timm:NAME")
    if norm != "batch":
        _replace_batch_norm(network, norm)
    return network


def _small(channels: int) -> nn.Module:
    def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    # Means of rectified maps are all positive, so every z would start nearly parallel and a strong
    # invariance weight would keep it there; centred features spread z from the first step.
    return nn.Sequential(
        *layer(channels, 32, stride=2),
        *layer(32, 64, stride=2),
        *layer(64, 128, stride=2),
        *layer(128, 256, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(256),
    )


def _mlp(name: str, features: int, norm: Norm) -> Encoder:
    if name not in (MLP, "small"):
        raise UserError(f"encoder {name} takes images, and the screen holds profiles; use {MLP}")
    if norm == "instance":
        raise UserError(f"norm {norm!r} needs maps, and profiles have none; use batch or group")

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        linear = nn.Linear(inputs, outputs, bias=norm == "none")
        normed: dict[Norm, nn.Module] = {
            "batch": nn.BatchNorm1d(outputs), "group": nn.GroupNorm(8, outputs),
        }  # fmt: skip
        return [linear, *([normed[norm]] if norm in normed else []), nn.ReLU(inplace=True)]

    first, second, last = MLP_WIDTHS
    network = nn.Sequential(
        *layer(features, first),
        *layer(first, second),
        nn.Linear(second, last, bias=False),
        nn.BatchNorm1d(last),
    )
    return Encoder(network, last)


def _resnet18(channels: int) -> nn.Module:
    # MONAI takes seconds to import; a run with `small` does not pay for it.
    from monai.networks.nets.resnet import resnet18

    network: nn.Module = resnet18(
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    return network


def _densenet121(channels: int) -> nn.Module:
    from monai.networks.nets.densenet import DenseNet121

    network: nn.Module = DenseNet121(spatial_dims=2, in_channels=channels, out_channels=1)
    network.class_layers.out = nn.Identity()  # type: ignore[union-attr]
    return network


def _replace_batch_norm(module: nn.Module, norm: Norm) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _norm_layer(norm, child.num_features))
        else:
            _replace_batch_norm(child, norm)


def _norm_layer(norm: Norm, channels: int) -> nn.Module:
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return ChannelAffine(channels)


def feature_count(network: nn.Module, name: str, channels: int, image_size: int, norm: Norm) -> int:
    """Width of the representation, by a pass without data; raises UserError for small maps."""
    image = torch.empty(2, channels, image_size, image_size, device="meta")
    try:
        representation: Tensor = copy.deepcopy(network).to("meta")(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"encoder {name} with norm {norm!r} cannot take {channels} x {image_size} x "
            f"{image_size} images ({str(error).splitlines()[0]}); "
            "use larger images, another norm or the encoder small"
        ) from error
    return representation.shape[1]
