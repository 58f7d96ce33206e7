"""Batch norms that take the statistics of one environment, in training and where it is embedded."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deconfound.errors import UserError
from deconfound.nets.encoder import KNOWN
from deconfound.nets.layers import sum_over_ranks


class Moments(NamedTuple):
    """What a batch norm normalises by."""

    mean: Tensor
    """(C,)."""
    variance: Tensor
    """(C,), of the population."""


Chunks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Images (B, C, H, W), or profiles (B, D), and their weights (B,), the same at every call."""


class Context:
    """Whose statistics the batch norms of one network take; shared by all of them."""

    def __init__(self) -> None:
        self.norms: list[ContextNorm] = []
        self.environment: Tensor | None = None
        """(B,) int64 environment of each row of the batch at hand; None where it is not known."""
        self.gathering: _Gathering | None = None

    @contextmanager
    def of(self, environment: Tensor) -> Iterator[None]:
        """Normalise the rows of a batch by the statistics of their environments, (B,) int64.

        In training they are those of the rows of an environment in this batch, over all processes;
        the rows of −1 are one more environment. In evaluation they are those that were `put`, and
        those of all training rows for −1.
        """
        self.environment = environment
        try:
            yield
        finally:
            self.environment = None

    @torch.no_grad()
    def gather(
        self, forward: Callable[[Tensor], object], chunks: Chunks, count: int
    ) -> list[Moments]:
        """The statistics of each norm over the images of `count` chunks.

        Each is of what the norms before it leave by their own statistics of the same images, as if
        all images were one batch. One chunk is passed through once; more are passed once for each
        norm, so that memory is that of a chunk.
        """
        self.gathering = _Gathering(alone=count == 1)
        try:
            while len(self.gathering.found) < len(self.norms):
                for image, weight in chunks():
                    self.gathering.weight = weight
                    with suppress(_ReachedError):
                        forward(image)
                if not self.gathering.ends_pass():
                    break
            return [self.gathering.found[norm] for norm in self.norms]
        finally:
            self.gathering = None

    def put(self, place: int, found: list[Moments]) -> None:
        """Make `found` the statistics of the environment `place`; of all training rows for −1."""
        for norm, moments in zip(self.norms, found, strict=True):
            norm.means[place], norm.variances[place] = moments

    def extend(self, found: list[list[Moments]]) -> None:
        """Give further environments, numbered after those there are, the statistics `found`."""
        for place, norm in enumerate(self.norms):
            of_norm = [moments[place] for moments in found]
            for name, values in (
                ("means", [moments.mean for moments in of_norm]),
                ("variances", [moments.variance for moments in of_norm]),
            ):
                table = getattr(norm, name)
                more = [value.to(table)[None] for value in values]
                setattr(norm, name, torch.cat([table[:-1], *more, table[-1:]]))

    def moments(self, place: int) -> list[Moments]:
        """The statistics of the environment `place`; of all training rows for −1."""
        return [Moments(norm.means[place], norm.variances[place]) for norm in self.norms]


class _ReachedError(Exception):
    """A pass has come to the norm that it measures."""


class _Gathering:
    def __init__(self, alone: bool) -> None:
        self.found: dict[ContextNorm, Moments] = {}
        self.weight = torch.empty(0)
        self._alone = alone
        self._norm: ContextNorm | None = None
        self._sums: list[Tensor] = []

    def of(self, norm: "ContextNorm", values: Tensor) -> Moments:
        """The statistics of `norm`; raises _ReachedError if they are still being summed up."""
        if norm in self.found:
            return self.found[norm]
        self._add(values)
        if not self._alone:
            self._norm = norm
            raise _ReachedError
        self.found[norm] = self._moments()
        return self.found[norm]

    def ends_pass(self) -> bool:
        """Keep what the pass measured; whether it measured anything."""
        if self._norm is None:
            return False
        self.found[self._norm], self._norm = self._moments(), None
        return True

    def _add(self, values: Tensor) -> None:
        wide = values if values.device.type == "mps" else values.double()
        weight = self.weight.to(wide)
        of_row = weight.view(-1, *[1] * (wide.ndim - 1)) * wide
        others = [axis for axis in range(wide.ndim) if axis != 1]
        pixels = wide[0, 0].numel()
        sums = [weight.sum() * pixels, of_row.sum(others), (of_row * wide).sum(others)]
        if self._sums:
            sums = [before + own for before, own in zip(self._sums, sums, strict=True)]
        self._sums = sums

    def _moments(self) -> Moments:
        (total, values, squares), self._sums = self._sums, []
        mean = values / total
        return Moments(mean.float(), (squares / total - mean.square()).clamp(min=0).float())


class ContextNorm(_BatchNorm):
    """A batch norm whose statistics are those of the environment of each row, as `context` says.

    (B, C, …) floating -> the same; statistics in float32, or float64 of float64. Without a context
    the rows of a training batch are one environment, and evaluation takes the statistics of all
    training rows.
    """

    means: Tensor
    """(environments + 1, C): in the last row those of all training rows."""
    variances: Tensor

    def __init__(self, norm: _BatchNorm, environments: int, context: Context) -> None:
        features = norm.num_features
        super().__init__(features, norm.eps, None, norm.affine, track_running_stats=False)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("means", torch.zeros(environments + 1, features))
        self.register_buffer("variances", torch.ones(environments + 1, features))
        self.context = context
        context.norms.append(self)

    def forward(self, input: Tensor) -> Tensor:
        values = input if input.dtype == torch.float64 else input.float()
        context = self.context
        place = context.environment
        if context.gathering is not None:
            found = context.gathering.of(self, values)
            mean, variance, place = found.mean[None], found.variance[None], None
        elif self.training:
            mean, variance = self._of_batch(values, place)
        else:
            mean, variance = self.means, self.variances
        each = slice(-1, None) if place is None else place
        sides = [1] * (input.ndim - 2)
        gain = torch.rsqrt(variance[each] + self.eps) * self.weight
        centre, gain, shift = (
            part.view(*part.shape, *sides) for part in (mean[each], gain, self.bias)
        )
        return torch.addcmul(shift, values - centre, gain).to(input.dtype)

    def _of_batch(self, values: Tensor, environment: Tensor | None) -> tuple[Tensor, Tensor]:
        """Means and variances (environments + 1, C); the last row is that of −1."""
        groups = len(self.means)
        place = values.new_zeros(len(values), dtype=torch.int64)
        place = (place - 1 if environment is None else environment) % groups

        def summed(part: Tensor) -> Tensor:
            of_row = part.sum(list(range(2, part.ndim))) if part.ndim > 2 else part
            empty = of_row.new_zeros(groups, of_row.shape[1])
            return sum_over_ranks(empty.index_add(0, place, of_row))

        ones = values.new_full((len(values), 1), float(math.prod(values.shape[2:])))
        rows = summed(ones).clamp(min=1)
        mean = summed(values) / rows
        centred = values - mean[place].view(*values.shape[:2], *[1] * (values.ndim - 2))
        return mean, summed(centred.square()) / rows

    def _check_input_dim(self, input: Tensor) -> None:
        del input


def adapt_batch_norm(network: nn.Module, environments: int, where: str) -> Context:
    """Make every batch norm of `network` a `ContextNorm`, in place, and return their context.

    Scales and shifts and their names stay. Raises UserError, which begins with `where`, if there is
    no batch norm, or one that does more than normalise.
    """
    context = Context()
    _adapt(network, environments, context, where)
    if not context.norms:
        raise UserError(f"{where}: has no batch norm, whose statistics adapt; use {KNOWN}")
    return context


def _adapt(network: nn.Module, environments: int, context: Context, where: str) -> None:
    for name, child in network.named_children():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            assert isinstance(child, _BatchNorm)
            setattr(network, name, ContextNorm(child, environments, context))
        elif isinstance(child, _BatchNorm):
            raise UserError(
                f"{where}: its {type(child).__name__} does more than normalise; use {KNOWN}"
            )
        else:
            _adapt(child, environments, context, where)
