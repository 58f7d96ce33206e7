"""MixStyle: channel statistics of feature maps, mixed between the images of a batch."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from deconfound.errors import UserError
from deconfound.nets.encoder import Encoder, Norm

Mix = Literal["random", "crossdomain"]
EPSILON = 1e-6

BLOCKS = {
    "small": ("2", "5", "8"),
    "resnet18": ("layer1", "layer2", "layer3"),
    "densenet121": ("features.transition1", "features.transition2", "features.transition3"),
}
"""The modules of each encoder after which statistics can be mixed: all blocks but the last."""


def mix_statistics(map: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Each map with mean and sd moved towards its partner's: Zhou et al., MixStyle, eq. 3–6.

    map (B, C, H, W) floating, H · W ≥ 2; partner (B,) int64, rows of the batch; weight (B,) in
    [0, 1], the share of an image's own statistics: 1 returns the map. Statistics are taken over
    the pixels of each channel (unbiased variance + 1e-6) and carry no gradient. Same shape and
    dtype.
    """
    values = map.detach().to(torch.promote_types(map.dtype, torch.float32))
    mean = values.mean(dim=(2, 3), keepdim=True)
    sd = (values.var(dim=(2, 3), keepdim=True) + EPSILON).sqrt()
    share = weight.to(values).view(-1, 1, 1, 1)
    mixed_mean = share * mean + (1 - share) * mean[partner]
    scale = (share * sd + (1 - share) * sd[partner]) / sd
    return (map * scale + (mixed_mean - mean * scale)).to(map.dtype)


def draw_partners(environment: Tensor, mix: Mix, held_out: int = 0) -> Tensor:
    """The row (B,) int64 that each row of a batch is mixed with, from the CPU's global stream.

    `random` permutes the batch. `crossdomain` draws a row of another environment, uniformly; a row
    without environment (−1), or with no other environment in the batch, is its own partner. If the
    last `held_out` rows are held-out images, every other row draws one of them, whatever `mix` is,
    and they are their own partners. environment: (B,) int64 on the CPU.
    """
    rows = torch.arange(len(environment))
    if held_out:
        own = len(environment) - held_out
        drawn = own + torch.randint(held_out, (own,))
        return torch.cat([drawn, rows[own:]])
    if mix == "random":
        return torch.randperm(len(environment))
    known = rows[environment >= 0]
    group = environment[known]
    count = group.bincount()
    others = len(known) - count[group]
    # Rows in order of environment form a circle; a partner lies behind one's own environment.
    first = (count.cumsum(0) - count)[group] + count[group]
    offset = (torch.rand(len(known), dtype=torch.float64) * others).long()
    by_environment = known[group.argsort(stable=True)]
    drawn = by_environment[(first + offset) % max(1, len(known))]
    return rows.index_copy(0, known, torch.where(others > 0, drawn, known))


class MixStyle(nn.Module):
    """One mixing for all blocks of an encoder; the identity in evaluation, and outside `of`.

    Zhou et al., Domain Generalization with MixStyle, 2021, section 3.2: at every call, with
    `probability` and for the whole batch, each map's statistics are mixed with a partner's by a
    weight from Beta(alpha, alpha). Under several processes each mixes within its own rows.
    """

    def __init__(self, mix: Mix, probability: float, alpha: float) -> None:
        super().__init__()
        self.mix: Mix = mix
        self.probability = probability
        self.alpha = alpha
        self._environment: Tensor | None = None
        self._held_out = 0

    @contextmanager
    def of(self, environment: Tensor, held_out: int = 0) -> Iterator[None]:
        """Mix a batch with environments (B,), whose last `held_out` rows are held out."""
        self._environment, self._held_out = environment.cpu(), held_out
        try:
            yield
        finally:
            self._environment = None

    def forward(self, map: Tensor) -> Tensor:
        if not self.training or self._environment is None or torch.rand(()) >= self.probability:
            return map
        partner = draw_partners(self._environment, self.mix, self._held_out)
        weight = self.weights(len(map))
        return mix_statistics(map, partner.to(map.device), weight.to(map.device))

    def weights(self, count: int) -> Tensor:
        """Shares (count,) float32 of an image's own statistics."""
        alpha = torch.tensor(self.alpha, dtype=torch.float64)
        return Beta(alpha, alpha).sample((count,)).float()


def mix_after(
    encoder: Encoder,
    name: str,
    norm: Norm,
    shape: tuple[int, int],
    blocks: Sequence[int],
    mixing: MixStyle,
) -> None:
    """Let `mixing` see the maps after the `blocks` (1 to 3) of the encoder called `name`, in place.

    The encoder's parameters keep their names. `shape` is (channels, image size). Raises UserError
    for an encoder whose blocks are not known, one whose norm would undo the mixing, and images so
    small that a map has a single pixel and no spread.
    """
    if name not in BLOCKS:
        raise UserError(
            f"mixstyle knows the blocks of {', '.join(BLOCKS)}, and not those of --encoder {name}"
        )
    if norm == "instance" and name != "resnet18":
        raise UserError(
            f"--norm instance beside the mixing undoes it in --encoder {name}; use resnet18, which "
            "mixes sums that are not normalised, or another --norm"
        )
    channels, size = shape
    pixels: dict[int, int] = {}
    outline = copy.deepcopy(encoder.network).to("meta")
    for block in blocks:
        module = outline.get_submodule(BLOCKS[name][block - 1])
        module.register_forward_hook(
            lambda _, __, map, block=block: pixels.update({block: map[0, 0].numel()})
        )
    outline(torch.empty(2, channels, size, size, device="meta"))
    for block, count in pixels.items():
        if count < 2:
            raise UserError(
                f"--mix-after {block}: the map of {size} px images has a single pixel there, and "
                "no spread; leave the block out, or use larger images"
            )
    for block in blocks:
        encoder.network.get_submodule(BLOCKS[name][block - 1]).register_forward_hook(
            lambda _, __, map: mixing(map)
        )
