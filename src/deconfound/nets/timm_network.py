"""Networks of the library timm, and what it says of their pretraining."""

import difflib
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from deconfound.errors import UserError

State = dict[str, Tensor]


def timm_network(name: str, channels: int, side: int | None = None) -> nn.Module:
    """The timm network `name` for images of `channels` channels, random, without its classifier.

    (B, channels, H, W) float32 -> (B, features). One that takes images of one size only is made for
    `side` × `side` pixels, if that is given. Raises UserError if timm is missing, if it has no such
    network, and for a side that the network cannot take.
    """
    timm = _timm(name)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean timm:{near[0]}?" if near else ""
        raise UserError(f"timm has no network {name!r}{hint}")
    sized = {} if side is None or not trained_size(name) else {"img_size": side}
    try:
        network: nn.Module = timm.create_model(name, in_chans=channels, num_classes=0, **sized)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if not sized:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"timm:{name} cannot take images of {side} px ({reason}); give another --input-size"
        ) from error
    return network


def trained_size(name: str) -> int | None:
    """The side in pixels of the only images that the timm network `name` takes; None if any."""
    about = _about(name)
    return int(about.input_size[-1]) if about is not None and about.fixed_input_size else None


def trained_pixels(name: str) -> tuple[list[float], list[float]] | None:
    """Mean and sd of each channel, of pixels in [0, 1], that a timm network was trained with."""
    about = _about(name)
    return None if about is None else (list(about.mean), list(about.std))


def classifiers(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a timm network that weights have and the network here lacks."""
    named = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def renamed(name: str, network: nn.Module, state: State) -> State:
    """`state` with the names and shapes that timm gives weights of other origin, such as Meta's.

    Position embeddings are resampled to the image size of `network`.
    """
    entry = _timm(name).models.model_entrypoint(name)
    convert: Callable[[State, nn.Module], State] | None = getattr(
        sys.modules[entry.__module__], "checkpoint_filter_fn", None
    )
    return state if convert is None else dict(convert(state, network))


def _about(name: str) -> Any:
    return _timm(name).models.get_pretrained_cfg(name)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"encoder timm:{name} needs the extra [timm]: pip install 'deconfound[timm]' ({error})"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"encoder timm:{name}: timm cannot be imported, as torchvision is not of the build of "
            f"torch ({error}); install torchvision from the place that torch came from"
        ) from error
    return timm
