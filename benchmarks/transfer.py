"""What IST costs beside StarGAN v2: a training step of each, and images imputed, in one process.

    python benchmarks/transfer.py --out benchmarks/results/transfer_cpu.json

Both draw images of four channels of 48 px into twelve environments, by turns, from batches of
eight content images with the style images that training draws for them: IST one each, StarGAN v2
two. IST's encoder is trained before (`ist`, encoder stage, is timed
apart). Medians of seconds, and seconds for 1,000 content images. With `--networks paper` they have
those of their papers: ResNet-18 for IST, for StarGAN v2 the width that its code takes at this size.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Imputer, Method, Stage, Task
from deconfound.methods.ist import Ist, IstOptions
from deconfound.methods.stargan2 import StarGan2, StarGan2Options
from deconfound.runtime.device import Precision, start_fabric

CHANNELS, LABELS, ENVIRONMENTS = 4, 9, 12
AT_ONCE = 128
"""Images imputed at a time, as an intervention does."""


def methods(networks: str, size: int) -> dict[str, Imputer]:
    """Both methods with small networks or those of their papers."""
    task = Task(CHANNELS, size, LABELS, ENVIRONMENTS)
    torch.manual_seed(0)
    if networks == "small":
        return {
            "ist": Ist(IstOptions(form="paper"), task),
            "stargan2": StarGan2(StarGan2Options(), task),
        }
    wide = StarGan2Options(width=min(2**14 // size, 512), max_width=512, mapping_width=512)
    return {
        "ist": Ist(IstOptions(form="paper", encoder="resnet18"), task),
        "stargan2": StarGan2(wide, task),
    }


class Timed:
    """A method with its optimizers, and the seconds that it took."""

    def __init__(
        self, method: Imputer, size: int, batch: int, precision: Precision, device: str
    ) -> None:
        self.fabric = start_fabric(device, precision, None)
        self.method = method.to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stages: tuple[Stage, ...] = method.stages(1_000)
        self.size, self.batch = size, batch
        self.images = _batch(size, AT_ONCE, 0, self.fabric.device)
        self.seconds: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}
        """Processor seconds of the same, which do not count what else the machine does."""

    def steps(self, stage: Stage) -> Iterator[None]:
        """One training step of a stage at a time, timed."""
        partners = self.batch * stage.partner_draws
        batch = _batch(self.size, self.batch + partners, partners, self.fabric.device)
        self.method.begin(stage)
        optimizers = [phase.optimizer() for phase in stage.phases]
        self.method.train()
        while True:
            start = time.perf_counter(), time.process_time()
            with self.fabric.autocast():
                self.method.step(batch, stage, optimizers, _backward)
            self._took(stage.name, start)
            yield

    @torch.inference_mode()
    def impute(self) -> None:
        """Impute 128 images, timed."""
        self.method.eval()
        style = self.method.style(self.images.image, self.images.environment)
        start = time.perf_counter(), time.process_time()
        with self.fabric.autocast():
            self.method.impute(self.images.image, style)
        self._took("impute", start)

    def _took(self, what: str, start: tuple[float, float]) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - start[0], time.process_time() - start[1]
        self.seconds.setdefault(what, []).append(taken[0])
        self.processor.setdefault(what, []).append(taken[1])


def measured(
    networks: str, size: int, batch: int, repeats: int, precision: Precision, device: str
) -> list[dict[str, Any]]:
    """Of every method the median seconds of each stage's step and of 1,000 images."""
    timed = {
        name: Timed(one, size, batch, precision, device)
        for name, one in methods(networks, size).items()
    }
    for stage in range(2):
        running = [
            one.steps(one.stages[stage]) for one in timed.values() if stage < len(one.stages)
        ]
        for _ in range(repeats + 1):
            for step in running:
                next(step)
    for _ in range(repeats + 1):
        for one in timed.values():
            one.impute()
    rows = []
    for name, one in timed.items():
        median, processor = (
            {what: statistics.median(taken[1:]) for what, taken in of.items()}
            for of in (one.seconds, one.processor)
        )
        generator = one.stages[-1].name
        rows.append(
            {
                "method": name,
                "networks": networks,
                "precision": precision,
                "seconds_a_step": median[generator],
                "processor_seconds_a_step": processor[generator],
                "generator_seconds_for_1000_images": median[generator] * 1_000 / batch,
                "encoder_seconds_for_1000_images": median.get("encoder", 0.0) * 1_000 / batch,
                "imputation_seconds_for_1000_images": median["impute"] * 1_000 / AT_ONCE,
                "parameters": _parameters(one.method),
            }
        )
    return rows


def _parameters(method: Method) -> dict[str, int]:
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in method.named_children()
    }


def _batch(size: int, images: int, partners: int, device: torch.device) -> Batch:
    image = torch.rand(images, CHANNELS, size, size, device=device)
    return Batch(
        image.to(memory_format=torch.channels_last),
        torch.randint(LABELS, (images,), device=device),
        torch.randint(ENVIRONMENTS, (images,), device=device),
        torch.arange(images),
        partners=partners,
    )


def _backward(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    with torch.autocast(loss.device.type, enabled=False):
        torch.autograd.backward(loss, inputs=parameters)


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", nargs="+", default=["small"], choices=["small", "paper"])
    parser.add_argument("--precision", nargs="+", default=["32"])
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8, help="content images, and style images")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    rows = [
        row
        for networks in given.networks
        for precision in given.precision
        for row in measured(
            networks, given.size, given.batch, given.repeats, precision, given.device
        )
    ]
    table = Table(
        "method", "networks", "precision", "s/step", "generator", "imputation",
        caption="generator and imputation: seconds for 1,000 images",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["method"],
            row["networks"],
            row["precision"],
            f"{row['seconds_a_step']:.4f}",
            f"{row['generator_seconds_for_1000_images']:.2f}",
            f"{row['imputation_seconds_for_1000_images']:.3f}",
        )
    Console().print(table)
    took = {(row["method"], row["networks"], row["precision"]): row for row in rows}
    ratios = {
        f"{networks} networks, {precision}, {what}": took["stargan2", networks, precision][what]
        / took["ist", networks, precision][what]
        for networks in given.networks
        for precision in given.precision
        for what in ("seconds_a_step", "processor_seconds_a_step")
    }
    for name, ratio in ratios.items():
        Console().print(f"{name}: StarGAN v2 takes {ratio:.2f} times as long")
    if given.out:
        on_gpu = given.device.startswith("cuda")
        found = {
            "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "size": given.size,
            "batch": given.batch,
            "step_ratios": ratios,
            "rows": rows,
        }
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
