"""What is to be known of a GPU, in one call of less than eight minutes.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --device cpu --tiny        # whether it runs, of a few images

1. `scbd`: a step of SCBD's two ResNet-18 encoders, 2,048 images of 4 × 64 × 64, float32 and
   bfloat16.
2. `losses`: the three contrastive terms, forward and backward, beside the card's own rate of
   matrix products, which is measured first. A pass needs 12 N² D operations at least: z zᵀ of two
   blocks, and twice as many for the gradients. Goal: 60 %.
3. `embed`: embed beside its encoder alone. Goal: 90 %.
4. `ist`: a step of IST's networks and of StarGAN v2's, and 1,000 images imputed.
5. `precision`: scores of the same runs in float32 and in bfloat16, and how they differ.

JSON with the device's name is written after each part; a part that would begin after `--minutes`
is left out and named in `left_out`.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import embed
import losses
import scbd_step
import torch
import transfer

from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.embeddings.embed import embed as embed_screen
from deconfound.evaluation.measure import measure
from deconfound.methods.contract import Task
from deconfound.runs.config import config_model
from deconfound.runtime.device import Precision, device_name, start_fabric
from deconfound.training.fit import fit

PRECISIONS: tuple[Precision, ...] = ("32", "bf16")
LEAST_OPERATIONS = 12


def synchronised(device: str) -> float:
    """The clock, once the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(device: str, side: int, *, tf32: bool) -> float:
    """Operations a second of products of float32 matrices, the best of five."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    left, right = (torch.rand(side, side, device=device) for _ in range(2))
    seconds = []
    for _ in range(6):
        started = synchronised(device)
        torch.matmul(left, right)
        seconds.append(synchronised(device) - started)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * side**3 / min(seconds[1:])


def of_scbd(device: str, tiny: bool) -> list[dict[str, Any]]:
    """A step in both precisions."""
    rows = []
    images, task = (8, Task(4, 32, 10, 4)) if tiny else (scbd_step.POOLED_BATCH, scbd_step.POOLED)
    for precision in PRECISIONS:
        (seconds,) = scbd_step.seconds_a_step(
            "small" if tiny else "resnet18",
            "none",
            32,
            1 if tiny else 9,
            precision,
            images=images,
            task=task,
            device=device,
        ).values()
        row = {"precision": precision, "seconds_a_step": seconds}
        rows.append(row | {"batch": images, "images_a_second": images / seconds})
    return rows


def of_losses(device: str, tiny: bool) -> dict[str, Any]:
    """Rates of the terms, and their share of the card's."""
    side = 256 if tiny else 8_192
    rates = {name: matrix_rate(device, side, tf32=name == "tf32") for name in ("float32", "tf32")}
    given = argparse.Namespace(
        dimensions=128, device=device, labels=5_000, environments=34, repeats=2 if tiny else 9
    )
    rows = []
    for count in (128,) if tiny else (2_048, 16_384, 65_536):
        seconds = losses.measure_times(count, ["ours"], given)["ours"]["best_s"]
        rate = LEAST_OPERATIONS * count**2 * given.dimensions / seconds
        rows.append(
            {"rows": count, "dimensions": given.dimensions, "seconds": seconds}
            | {"operations_a_second": rate}
            | {f"share_of_{name}": rate / known for name, known in rates.items()}
        )
    return {"matrix_operations_a_second": rates, "rows": rows}


def of_embed(device: str, tiny: bool) -> dict[str, Any]:
    """Rates beside the encoder's."""
    vars(importlib.import_module("deconfound.embeddings.embed"))["EmbeddingStream"] = embed.Timed
    if tiny:
        embed.ROUNDS = 1
        embed.SECONDS |= {device: 0.05}
    found = {}
    cases = [("small", "32"), ("resnet18", "bf16")]
    for encoder, precision in cases[:1] if tiny else cases:
        with tempfile.TemporaryDirectory() as folder:
            found[f"{encoder}, {precision}"] = embed.measure(
                encoder, device, precision, 1, Path(folder)
            )
    return found


def of_ist(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Steps of both methods, with the networks of their papers."""
    networks, size, batch, repeats = ("small", 24, 2, 1) if tiny else ("paper", 64, 32, 5)
    if tiny:
        transfer.AT_ONCE = 2
    return [
        row
        for precision in PRECISIONS[: 1 if tiny else 2]
        for row in transfer.measured(networks, size, batch, repeats, precision, device)
    ]  # fmt: skip


def of_precision(device: str, tiny: bool) -> dict[str, Any]:
    """Scores of the test part by precision: mean over seeds, and the mean difference."""
    cells, size, steps, seeds = (320, 24, 2, 1) if tiny else (6_000, 48, 300, 3)
    method, options = ("erm", {}) if tiny else ("scbd", {"decoder": "none"})
    scores: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = SimulateConfig(cells=cells, size=size)
        screen = simulate(folder / "screen", config=config, quiet=True)
        for seed in range(seeds):
            for precision in PRECISIONS:
                run = folder / f"{precision}-{seed}"
                training = {
                    "steps": steps, "batch_size": 32 if tiny else 256, "validate_every": steps,
                    "device": device, "precision": precision,
                }  # fmt: skip
                asked = {"method": method, "seed": seed, "training": training, "options": options}
                fit(config_model(method).model_validate(asked), screen.path, run, quiet=True)
                file = folder / f"{run.name}.h5ad"
                embed_screen(run, screen.path, file, device=device, precision=precision, quiet=True)
                for row in measure([file], quiet=True).to_dict("records"):
                    key = f"{row['representation']} {row['metric']} {row['part']}"
                    scores.setdefault(key, {}).setdefault(precision, []).append(row["value"])
    return {
        key: {
            **{precision: statistics.fmean(of[precision]) for precision in PRECISIONS},
            "mean_difference": statistics.fmean(
                half - whole for whole, half in zip(*(of[p] for p in PRECISIONS), strict=True)
            ),
        }
        for key, of in scores.items()
    }


PARTS: dict[str, Callable[[str, bool], Any]] = {
    "scbd": of_scbd,
    "losses": of_losses,
    "embed": of_embed,
    "ist": of_ist,
    "precision": of_precision,
}


def main() -> None:
    """Run the parts that there is time for, and write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few images: whether it runs")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=7.0, help="no part begins later")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    started = time.perf_counter()
    fabric = start_fabric(given.device, "32", None, alone=True)
    report: dict[str, Any] = {
        "device": device_name(fabric),
        "torch": torch.__version__,
        "tiny": given.tiny,
        "left_out": [],
        "seconds": {},
    }
    for name in given.parts:
        begun = time.perf_counter()
        if begun - started > 60 * given.minutes:
            report["left_out"].append(name)
            continue
        report[name] = PARTS[name](given.device, given.tiny)
        report["seconds"][name] = round(time.perf_counter() - begun, 1)
        text = json.dumps(report, indent=1) + "\n"
        if given.out:
            given.out.write_text(text, encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
