"""Which axis of a stored image is what: channels, height and width, and stacks to project."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from deconfound.arrays import Pixels
from deconfound.errors import UserError

Project = Literal["max", "mean", "middle"]

CHANNELS = "CS"
STACKS = {"Z": "depth", "T": "time"}
UNNAMED = "QI"
"""Letters that tifffile gives to pages and to axes of which a file does not say what they are."""


class Taken(BaseModel, frozen=True, extra="forbid"):
    """How the axes of a file were taken."""

    kind: str
    """PNG, JPEG, BMP, TIFF, NPY, OME-Zarr or array."""
    axes: str
    """The axes as they lie in the file: C channels, S samples of a pixel, Z depth, T time, Q and I
    unnamed, N images."""
    taken: str
    """The same axes as they were taken, without those projected."""
    why: str
    """What that rests on."""
    guessed: bool = False
    """Whether neither the file nor the user said so."""
    alpha_dropped: bool = False
    """Whether the transparency of the pixels was left out."""


class Plan(NamedTuple):
    """How an array becomes (C, H, W)."""

    order: tuple[int, ...]
    """Its axes, height and width last."""
    projected: tuple[int, ...]
    project: Project | None
    taken: Taken

    def apply(self, values: Pixels) -> Pixels:
        """(C, H, W) of `values`, in their dtype."""
        for axis in self.projected:
            values = _projected(values, axis, self.project)
        values = values.transpose(self.order)
        return values.reshape(-1, *values.shape[-2:])


def planned(
    kind: str,
    axes: str,
    shape: Sequence[int],
    *,
    channels: int | None = None,
    project: Project | None = None,
    either: bool = False,
) -> Plan:
    """How a file of `shape`, with one letter for each of its `axes`, becomes (C, H, W).

    `channels` is the number of channels that the user names, `project` what becomes of depth and
    time, and of unnamed pages where one channel is named. An axis that the file does not name is
    the channels if it comes first and is as long as `channels` or shorter than the last; the last
    is, if it alone is as long as `channels` and shorter than the first. With `either` the one as
    long as `channels` is, or else the shorter. Raises UserError (without the file's name) for axes
    without one height and width, a stack that is not projected, several axes that could be
    channels, and where both first and last could be.
    """
    found = f"axes {axes} {tuple(shape)}"
    if len(axes) != len(shape) or axes.count("Y") != 1 or axes.count("X") != 1:
        raise UserError(f"{found}; expected one height and one width: save it with its axes")
    sides = axes.index("Y"), axes.index("X")
    others = [axis for axis in range(len(axes)) if axis not in sides]
    long = [axis for axis in others if shape[axis] > 1 or either]
    one = project is not None and channels == 1 != shape[sides[1]]
    stacks = [axis for axis in long if axes[axis] in STACKS or (one and axes[axis] in UNNAMED)]
    if stacks and project is None and not (len(long) == 1 and shape[long[0]] == channels):
        raise UserError(
            f"{found}, a stack in {_spoken(axes, stacks)}; say what becomes of it with --project "
            "max, mean or middle"
        )
    projected = stacks if project else []
    left = [axis for axis in long if axis not in projected]
    if len(left) > 1 or any(axes[axis] not in (*CHANNELS, *UNNAMED, *STACKS) for axis in left):
        raise UserError(
            f"{found}; expected height, width and at most one more, the channels: project or split "
            "the others"
        )
    roles, why, guessed = dict.fromkeys(left, "C"), "as the file says", False
    if left and axes[left[0]] in STACKS:
        why, guessed = f"--channels names as many as it has planes in {_spoken(axes, left)}", True
    elif left and left[0] < sides[0] < sides[1]:
        first, last = shape[left[0]], shape[sides[1]]
        unnamed = axes[left[0]] in UNNAMED
        if channels == last != first and (either or first > last):
            roles = {left[0]: "Y", sides[0]: "X", sides[1]: "C"}
            why, guessed = "--channels names as many as the last axis has", not unnamed
        elif unnamed and channels == first != last:
            why = "--channels names as many as the first axis has"
        elif unnamed and (first == last or not (first < last or either)):
            raise UserError(
                f"{found} in which first and last axis could both be the channels; name the "
                "channels with --channels, or save it as TIFF with its axes"
            )
        elif unnamed:
            roles = roles if first < last else {left[0]: "Y", sides[0]: "X", sides[1]: "C"}
            why = "the shorter of first and last axis is the channels"
            guessed = min(first, last) > 1
        elif first > last and channels is None:
            why, guessed = f"as the file says, of {first} channels {last} pixels wide", True
    if projected:
        why += f", {project} over {_spoken(axes, projected)}"
        guessed = guessed or any(axes[axis] in UNNAMED for axis in projected)
    return _plan(kind, axes, roles, projected, project, why, guessed)


def _plan(
    kind: str,
    axes: str,
    roles: Mapping[int, str],
    projected: list[int],
    project: Project | None,
    why: str,
    guessed: bool,
) -> Plan:
    letters = [roles.get(axis, letter) for axis, letter in enumerate(axes)]
    kept = [axis for axis in range(len(axes)) if letters[axis] not in "YX"]
    order = (*kept, letters.index("Y"), letters.index("X"))
    shown = [letter for axis, letter in enumerate(letters) if letter in "YX" or axis in roles]
    taken = Taken(kind=kind, axes=axes, taken="".join(shown), why=why, guessed=guessed)
    return Plan(order, tuple(projected), project, taken)


def _spoken(axes: str, stacks: Sequence[int]) -> str:
    return " and ".join(STACKS.get(axes[axis], "pages") for axis in stacks)


def _projected(values: Pixels, axis: int, project: Project | None) -> Pixels:
    """`values` with length 1 along `axis`; the middle of an even number is the later one."""
    if project == "max":
        return np.asarray(values.max(axis=axis, keepdims=True))
    if project == "middle":
        middle = values.shape[axis] // 2
        return values.take([middle], axis=axis)
    mean = values.mean(axis=axis, keepdims=True, dtype=np.float64)
    return np.asarray(np.rint(mean) if values.dtype.kind in "biu" else mean).astype(values.dtype)
