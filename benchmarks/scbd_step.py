"""What a training step of SCBD costs, with the decoder beside the encoders and after them.

    python benchmarks/scbd_step.py --out benchmarks/results/scbd_step.json

Batches of 256 images of 32 px, three channels, two environments; the paper's decoder width of 256
and the default of 32; `small` and `resnet18` encoders. Median of seconds a step, one process. Then
the step of each encoder in float32 and in bfloat16, with images laid out channels last or first.

    python benchmarks/scbd_step.py --pooled --out benchmarks/results/scbd_step_h200.json

times what the paper trains on a pooled screen instead: batches of 2,048 images of 64 px, four
channels, 5,000 genes and 34 wells, both encoders without a decoder. For a GPU.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.scbd import Scbd, ScbdOptions
from deconfound.runtime.device import Precision, start_fabric

BATCH = 256
TASK = Task(channels=3, image_size=32, labels=10, environments=2)
PRECISIONS: tuple[Precision, ...] = ("32", "bf16")
POOLED_BATCH = 2_048
POOLED = Task(channels=4, image_size=64, labels=5_000, environments=34)


def seconds_a_step(
    encoder: str,
    decoder: Literal["after", "beside", "none"],
    width: int,
    repeats: int,
    precision: Precision = "auto",
    layout: torch.memory_format = torch.channels_last,
    images: int = BATCH,
    task: Task = TASK,
    device: str = "auto",
) -> dict[str, float]:
    """Median seconds of a step of every stage."""
    torch.manual_seed(0)
    options = ScbdOptions(
        encoder=encoder,
        decoder=decoder,
        decoder_width=width,
        decoder_batch_size=images,
        likelihood="bernoulli",
    )
    size = task.image_size
    assert size is not None
    method = Scbd(options, task)
    fabric = start_fabric(device, precision, None)
    method.to(fabric.device, memory_format=layout)  # type: ignore[call-overload]
    batch = Batch(
        torch.rand(images, task.channels, size, size, device=fabric.device).to(
            memory_format=layout
        ),
        torch.randint(task.labels, (images,), device=fabric.device),
        torch.randint(task.environments, (images,), device=fabric.device),
        torch.arange(images),
    )
    found = {}
    for stage in method.stages(1):
        optimizers = [phase.optimizer() for phase in stage.phases]
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            with fabric.autocast():
                logged = method.step(batch, stage, optimizers, _backward)
            float(next(iter(logged.values())))
            seconds.append(time.perf_counter() - start)
        found[stage.name] = sorted(seconds[1:])[repeats // 2]
    return found


def _backward(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    torch.autograd.backward(loss, inputs=parameters)


def _formats(repeats: int) -> list[dict[str, Any]]:
    """Seconds a step of the encoders alone, in every precision and layout."""
    rows = []
    table = Table("encoder", "precision", "layout", "s/step")
    for encoder in ("small", "resnet18"):
        for precision in PRECISIONS:
            for layout in (torch.contiguous_format, torch.channels_last):
                (value,) = seconds_a_step(encoder, "none", 32, repeats, precision, layout).values()
                name = "last" if layout == torch.channels_last else "first"
                row = {"encoder": encoder, "precision": precision, "channels": name}
                rows.append(row | {"seconds_a_step": value})
                table.add_row(*row.values(), f"{value:.3f}")
    Console().print(table)
    return rows


def _pooled(repeats: int) -> dict[str, Any]:
    """Seconds a step and images a second of both encoders at the size of the pooled screen."""
    rows = []
    for encoder in ("small", "resnet18"):
        for precision in PRECISIONS:
            (value,) = seconds_a_step(
                encoder, "none", 32, repeats, precision, images=POOLED_BATCH, task=POOLED
            ).values()
            row = {"encoder": encoder, "precision": precision, "seconds_a_step": value}
            rows.append(row | {"images_a_second": POOLED_BATCH / value})
            print(rows[-1], flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "batch": POOLED_BATCH, "image": "4 x 64 x 64", "rows": rows}


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pooled", action="store_true", help="the step of the pooled screen")
    arguments = parser.parse_args()
    if arguments.pooled:
        found = _pooled(arguments.repeats)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    rows: list[dict[str, Any]] = []
    table = Table("encoder", "decoder", "width", "stage", "s/step")
    decoders: list[tuple[Literal["after", "beside"], int]] = [
        ("after", 32),
        ("after", 256),
        ("beside", 256),
    ]
    cases = [(encoder, *decoder) for encoder in ("small", "resnet18") for decoder in decoders]
    for encoder, decoder, width in cases:
        for stage, value in seconds_a_step(encoder, decoder, width, arguments.repeats).items():
            rows.append(
                {"encoder": encoder, "decoder": decoder, "width": width, "stage": stage}
                | {"seconds_a_step": value}
            )
            table.add_row(encoder, decoder, str(width), stage, f"{value:.3f}")
    Console().print(table)
    formats = _formats(arguments.repeats)
    if arguments.out:
        timed = {"batch": BATCH, "threads": torch.get_num_threads(), "rows": rows}
        text = json.dumps(timed | {"precision_and_layout": formats}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
