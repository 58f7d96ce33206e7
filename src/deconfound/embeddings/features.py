"""features: what a frozen encoder sees in every image, computed once, as a screen of profiles."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import fit_intensity
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.embeddings.stream import batch_size
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import sha256
from deconfound.intervention.embedder import in_batches
from deconfound.nets.encoder import Encoder
from deconfound.nets.exported_program import PROGRAM_PREFIX
from deconfound.nets.pretrained import Pretrained, build_pretrained, load_pretrained
from deconfound.nets.weights_file import ChannelsAs
from deconfound.runs.record import software
from deconfound.runtime import stop
from deconfound.runtime.device import Precision, device_name, start_fabric
from deconfound.runtime.progress import Progress

MADE_OF = "made_of"
"""Entry of a screen's provenance: checksum of all that its features depend on."""


@stop.told(stop.RESUMES)
def features(
    screen: Path,
    out: Path,
    *,
    encoder: str,
    weights: Path | None = None,
    weights_prefix: str | None = None,
    channels_as: ChannelsAs | None = None,
    input_size: int | None = None,
    transform: Literal["percentile", "none"] = "percentile",
    device: str = "auto",
    precision: Precision = "32",
    threads: int | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Screen:
    """Embed all images of `screen` with a frozen encoder into the screen of profiles `out`.

    `encoder` is one of `fit` with `weights`, or `torch:FILE`; the options are those of
    `PretrainedOptions`. Pixels come to it in [0, 1]: each image stretched between its own 0.1 and
    99.9 percentiles, or, with transform "none", divided by the maximum of its type. Nothing is
    fitted, so the features serve every fold. What is written goes to the disk every few seconds;
    a killed call goes on from there, and one whose features are there does nothing.

    Raises UserError if `out` is something else, for profiles and images that are not square, for an
    encoder without weights, and if encoder, weights and images do not fit.
    """
    out, opened = Path(out), open_screen(screen)
    side = _side(opened, input_size)
    program = encoder.startswith(PROGRAM_PREFIX)
    if weights is None and not program:
        raise UserError(
            f"features: {encoder} has random weights; add --weights FILE, or take torch:FILE"
        )
    file = Path(encoder.removeprefix(PROGRAM_PREFIX)) if weights is None else Path(weights)
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected the weights of {encoder}")
    about: dict[str, Any] = {
        "encoder": encoder,
        "weights_sha256": sha256(file),
        "weights_prefix": weights_prefix,
        "channels_as": channels_as,
        "input_size": input_size,
        "transform": transform,
        "precision": precision,
        "screen_identity": opened.identity,
    }
    made_of = digest(json.dumps(about).encode()).hexdigest()
    if out.exists():
        return _already(out, made_of, say)
    how = Pretrained(
        weights, weights_prefix, channels_as, input_size, tune="frozen", unit_pixels=True
    )
    network = build_pretrained(encoder, len(opened.channels), side, "batch", how)
    load_pretrained(network)
    fabric = start_fabric(device, precision, threads, alone=True)
    network.to(fabric.device).eval()
    nothing = np.empty(0, dtype=np.int64)
    intensity = fit_intensity(opened, nothing, transform, "unit", seed=0)
    reader = BatchReader(opened, intensity=intensity, device=fabric.device)
    provenance = about | {
        "made_by": "features",
        MADE_OF: made_of,
        "weights": file.name,
        "screen": opened.name,
        "screen_provenance": opened.provenance,
        **software(),
    }
    names = _names(network, opened, channels_as)
    writer = ScreenWriter(out, out.name, names, opened.roles, provenance, made_of)
    started = time.perf_counter()
    with writer, torch.inference_mode():
        done = writer.rows
        rows = np.arange(done, len(opened), dtype=np.int64)
        batches = in_batches(rows, batch_size(fabric.device.type))
        with (
            Progress(f"features {opened.name}", len(opened), "images", done, quiet) as progress,
            closing(reader.stream(batches)) as read,
        ):
            for batch in read:
                with fabric.autocast():
                    found = network(batch.image)
                writer.append(found.float().cpu().numpy())
                progress.update(len(batch))
        writer.finish(opened.table)
    if say is not None and len(rows):
        rate = len(rows) / max(time.perf_counter() - started, 1e-9)
        say(f"{len(rows):,} images, {rate:,.0f} images/s on {device_name(fabric)}")
    return open_screen(out)


def _side(screen: Screen, input_size: int | None) -> int:
    """The side of the images that the encoder sees."""
    if screen.holds_profiles:
        raise UserError(f"{screen.path}: holds profiles already; expected a screen of images")
    _, height, width = screen.image_shape
    if input_size is None and height != width:
        raise UserError(
            f"{screen.path}: images of {height} × {width} px; expected square ones, or --input-size"
        )
    return width if input_size is None else input_size


def _already(out: Path, made_of: str, say: Callable[[str], None] | None) -> Screen:
    """The screen `out`, if its features are those asked for."""
    if not (out / "screen.json").is_file():
        atomic.refuse_existing(out)
    found = open_screen(out)
    if found.provenance.get(MADE_OF) != made_of:
        raise UserError(
            f"{out}: holds another screen, or features of another screen, encoder, file or option; "
            "remove it or choose another --out"
        )
    if say is not None:
        say(f"{out}: made before, of the same images, encoder and weights")
    return found


def _names(network: Encoder, screen: Screen, channels_as: ChannelsAs | None) -> list[str]:
    """A name for each feature; where channels are concatenated it begins with the channel's."""
    of = screen.channels if channels_as == "concatenate" else ("feature",)
    each = network.features // len(of)
    digits = len(str(each - 1))
    return [f"{name}_{number:0{digits}d}" for name in of for number in range(each)]
