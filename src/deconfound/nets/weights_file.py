"""Pretrained weights in a local file: read, matched with a network by name, and copied into it."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deconfound.errors import UserError
from deconfound.nets.encoder import TIMM_PREFIX
from deconfound.nets.low_rank import plain_state
from deconfound.nets.timm_network import classifiers, renamed
from deconfound.runtime.limits import MORE_MEMORY, lacks_memory

ChannelsAs = Literal["repeat", "sum", "concatenate", "average"]
EACH: tuple[ChannelsAs, ...] = ("concatenate", "average")
"""Uses of channels in which each goes through the network alone."""
CLASSIFIERS = ("fc", "class_layers.out")
"""Layers of resnet18 and densenet121 that a classifier has and an encoder lacks."""
State = dict[str, Tensor]


class Loaded(NamedTuple):
    """What was taken from a file."""

    tensors: int
    """Tensors copied into the network."""
    channels: int
    """Channels that the first layer takes in the file."""
    prefix: str
    """What stands before the network's names in the file."""
    ignored: tuple[str, ...]
    """Tensors that the network has no place for, such as those of a classifier."""


@torch.no_grad()
def load_file_into(
    network: nn.Module,
    name: str,
    file: Path,
    prefix: str | None = None,
    channels_as: ChannelsAs | None = None,
) -> Loaded:
    """Copy the weights in `file`, a safetensors or torch file, into the encoder `name`'s `network`.

    `prefix` stands before the network's names in the file; it is found if not given. A first layer
    of another number of channels is adapted as `channels_as` says: `repeat` takes its channels in
    turn, `sum` their sum for every channel, both scaled so that equal channels give what they gave
    before; else the network takes one channel, and that is their sum. Names of other origin are
    translated by timm. Raises UserError for a file that cannot be read, that holds several networks
    or another one, and for another number of channels without `channels_as`.
    """
    first = _first_convolution(network, name)
    found, target = read_state(file), plain_state(network)
    prefix = _prefix(found, target, f"{first}.weight", file, prefix)
    state = {key.removeprefix(prefix): it for key, it in found.items() if key.startswith(prefix)}
    timm = name.removeprefix(TIMM_PREFIX) if name.startswith(TIMM_PREFIX) else None
    if timm is not None:
        try:
            state = renamed(timm, network, state)
        except UserError:
            raise
        except Exception as error:  # timm's converters raise what their arithmetic raises
            raise _other(file, name, f"timm cannot convert it ({error})") from error
    dropped = CLASSIFIERS if timm is None else classifiers(network)
    kept = {key for key in state if not key.startswith(tuple(f"{one}." for one in dropped))}
    channels = _adapt(state, target, f"{first}.weight", file, channels_as)
    _refuse_other(file, name, {key: state[key] for key in kept}, target)
    for key, value in target.items():
        if key in state:
            value.copy_(state[key])
    ignored = tuple(sorted(set(state) - set(target)))
    return Loaded(len(set(state) & set(target)), channels, prefix, ignored)


def read_state(file: Path) -> State:
    """The tensors in a safetensors or torch file, on the CPU; nested names are joined by dots.

    Raises UserError if the file is missing, damaged, or holds objects besides tensors.
    """
    if not Path(file).is_file():
        raise UserError(f"{file}: no such file of weights; expected .safetensors, .pt or .pth")
    try:
        if Path(file).suffix == ".safetensors":
            return load_file(file)
        read = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # neither library has one exception for a damaged file
        if lacks_memory(error):
            raise UserError(f"{file}: cannot be read, memory ran out; {MORE_MEMORY}") from error
        if "Weights only" not in str(error) or not zipfile.is_zipfile(file):
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{file}: cannot be read as weights ({reason}); get it again"
            ) from error
        raise UserError(
            f"{file}: holds objects besides tensors, and those are never unpickled; expected a "
            "state_dict: torch.save(model.state_dict(), FILE), or a safetensors file"
        ) from error
    state = dict(_flat(read, ""))
    if not state:
        raise UserError(f"{file}: holds no tensors by name; expected a state_dict")
    return state


def _flat(read: object, before: str) -> list[tuple[str, Tensor]]:
    if isinstance(read, Tensor):
        return [(before.removesuffix("."), read)] if before else []
    if not isinstance(read, Mapping):
        return []
    return [pair for key, value in read.items() for pair in _flat(value, f"{before}{key}.")]


def _first_convolution(network: nn.Module, name: str) -> str:
    for found, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            return str(found)
    raise UserError(f"{name}: has no convolution to take the channels of --weights; choose another")


def _prefix(found: State, target: State, first: str, file: Path, given: str | None) -> str:
    """What stands before the names of the network in `found`."""
    if given is not None:
        given = given if given.endswith(".") or not given else f"{given}."
        if not any(key.startswith(given) for key in found):
            raise UserError(
                f"{file}: no tensor begins with --weights-prefix {given!r}; the first is "
                f"{next(iter(found))!r}"
            )
        return given
    before: list[str] = [
        key.removesuffix(first) for key in found if f".{key}".endswith(f".{first}")
    ]
    counts = {one: sum(f"{one}{key}" in found for key in target) for one in before}
    whole = max(len(target) // 2, *counts.values(), 0)
    fits = [one for one, count in counts.items() if count == whole]
    if len(fits) > 1:
        several = ", ".join(map(repr, fits[:4]))
        raise UserError(
            f"{file}: holds several networks ({several}); name one with --weights-prefix"
        )
    if fits:
        return fits[0]
    shared = ""
    while len({key.removeprefix(shared).partition(".")[0] for key in found}) == 1:
        step = next(iter(found)).removeprefix(shared).partition(".")
        if not step[1]:
            break
        shared += f"{step[0]}."
    return shared


def _adapt(
    state: State, target: State, first: str, file: Path, channels_as: ChannelsAs | None
) -> int:
    """Give the first layer in `state` the channels of `target`; returns those that it had."""
    weight, wanted = state.get(first), target[first].shape[1]
    if weight is None or weight.ndim != 4:
        return 0
    had = weight.shape[1]
    if channels_as is None:
        if had != wanted:
            raise UserError(
                f"{file}: its first layer takes {had} channels, and the screen has {wanted}; say "
                "what becomes of them with --channels-as repeat, sum, concatenate or average"
            )
        return had
    weight = weight.float()
    if channels_as == "repeat":
        state[first] = weight[:, [place % had for place in range(wanted)]] * (had / wanted)
    else:  # one channel alone, or the same weights for every channel
        state[first] = weight.sum(dim=1, keepdim=True).expand(-1, wanted, -1, -1) / wanted
    return had


def _refuse_other(file: Path, name: str, state: State, target: State) -> None:
    """Raise UserError unless `state` has all tensors of `target`, and no more of its layers."""
    counters = "num_batches_tracked"
    missing = [key for key in target if key not in state and not key.endswith(counters)]
    if missing:
        other = next(iter(sorted(set(state) - set(target))), None)
        instead = "" if other is None else f", and it has {other!r}"
        raise _other(
            file, name,
            f"{len(missing)} of {len(target)} tensors are missing, such as {missing[0]!r}{instead}",
        )  # fmt: skip
    for key, value in target.items():
        if key in state and state[key].shape != value.shape:
            found, expected = tuple(state[key].shape), tuple(value.shape)
            raise _other(file, name, f"{key!r} is {found}, expected {expected}")
    parts = {key.partition(".")[0] for key in target}
    more = [key for key in sorted(set(state) - set(target)) if key.partition(".")[0] in parts]
    if more:
        raise _other(file, name, f"{len(more)} tensors too many, such as {more[0]!r}")


def _other(file: Path, name: str, why: str) -> UserError:
    return UserError(
        f"{file}: is not of the network {name}: {why}; choose the --encoder that it belongs to, or "
        "the weights of this one"
    )
