"""How fast batches come: the project's reader beside a per-item DataLoader, same process.

    python benchmarks/loading.py --out benchmarks/results/loading.json
    python benchmarks/loading.py --formats --out benchmarks/results/loading_formats.json

Two figures: 4×100×100 uint8 images read from a warm screen, and standardised float32 batches of
4×64×64 uint16 on one core, beside a DataLoader that reads item by item and collates the metadata
with pandas, delivering the same tensor. `of_memory` is the share of the rate at which the same
pixels are read and written once as float32, without a scale: what memory allows. Rates are of
processor time, which other programs do not stretch.

With --formats: batches of 128 images of 4×64×64, drawn at random or in order, from a screen of
NumPy files and from the same as a Zarr array, on the disk and in object storage (fsspec's memory,
so without a network), the room each takes, and the rate of zarr itself on that array.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deconfound.data.loading.batch import BatchReader
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.loading.sampler import PlainSampler
from deconfound.data.screens.screen import INDEX_FILE, Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.screens.zarr_images import ImageFormat
from deconfound.data.tables.table import Roles
from deconfound.files.object_store import ObjectStore

IMAGES = 16_384
BATCH, BATCHES = 128, 16
REPEATS = 5


def make_screen(path: Path, size: int, dtype: str) -> Screen:
    """A screen of noise: 16,384 images of 4 × size × size."""
    stream = np.random.default_rng(0)
    channels = ("DNA", "actin", "tubulin", "mitochondria")
    with ScreenWriter(path, "noise", channels, Roles(label="Metadata_Label"), {}) as writer:
        for _ in range(IMAGES // 1024):
            high = np.iinfo(dtype).max
            writer.append(stream.integers(0, high, (1024, 4, size, size), dtype=dtype))
        label = stream.integers(0, 50, IMAGES).astype(str)
        writer.finish(pd.DataFrame({"Metadata_Label": label, "Metadata_Well": label}))
    return open_screen(path)


class PerItem(Dataset[tuple[Tensor, "pd.Series[Any]"]]):
    """One image and one row of the table at a time."""

    def __init__(self, screen: Screen, rows: np.ndarray[Any, Any], intensity: Intensity) -> None:
        self.screen, self.rows, self.intensity = screen, rows, intensity

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, "pd.Series[Any]"]:
        row = int(self.rows[item])
        image = self.intensity(torch.from_numpy(self.screen.read([row])))[0]
        return image, self.screen.table.iloc[row]


def pandas_collate(items: list[tuple[Tensor, "pd.Series[Any]"]]) -> tuple[Tensor, pd.DataFrame]:
    """Stack the images and build a table of the rows."""
    return torch.stack([image for image, _ in items]), pd.DataFrame([row for _, row in items])


def best_rate(images: int, work: Callable[[], None]) -> float:
    """Images per second of all threads of the processor, of the fastest of the repeats."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return images / min(seconds)


def measure(folder: Path) -> dict[str, float]:
    """Rates in images per second, and their ratios."""
    rows = np.arange(IMAGES, dtype=np.int64)
    warm = make_screen(folder / "uint8", 100, "uint8")
    sampler = PlainSampler(rows, 2048, 0)

    def read() -> None:
        for step in range(8):
            warm.read(sampler.rows(step))

    read_rate = best_rate(8 * 2048, read)

    torch.set_num_threads(1)
    screen = make_screen(folder / "uint16", 64, "uint16")
    code = screen.coded(["Metadata_Label"]).codes
    intensity = fit_intensity(screen, rows, "none", "standardise", 0)
    cpu = torch.device("cpu")
    reader = BatchReader(screen, label=code, environment=code, intensity=intensity, device=cpu)
    small = PlainSampler(rows, 512, 0)

    def deliver() -> None:
        for _ in reader.stream(small.rows(step) for step in range(16)):
            pass

    def convert_once() -> None:
        """The same bytes read at the same rows and written as float32: nothing can do less."""
        for step in range(16):
            pixels = torch.from_numpy(screen.read(small.rows(step)))
            torch.empty(pixels.shape, dtype=torch.float32).copy_(pixels)

    few = small.rows(0)
    per_item = PerItem(screen, few, intensity)
    loader = DataLoader(per_item, batch_size=512, collate_fn=pandas_collate)

    def deliver_per_item() -> None:
        for _ in loader:
            pass

    same = torch.equal(next(iter(loader))[0], reader.read(few).image)
    if not same:
        raise AssertionError("the two loaders deliver different tensors")
    delivered, reference = best_rate(16 * 512, deliver), best_rate(512, deliver_per_item)
    least = best_rate(16 * 512, convert_once)
    return {
        "read_uint8_4x100x100_per_s": read_rate,
        "float32_4x64x64_uint16_per_s": delivered,
        "per_item_pandas_per_s": reference,
        "ratio": delivered / reference,
        "read_and_converted_per_s": least,
        "of_memory": delivered / least,
    }


def make_blurred(path: Path, dtype: str, image_format: ImageFormat) -> Screen:
    """A screen of 2,048 images of 4×64×64, smooth with the noise of a camera, as cells pack."""
    stream = np.random.default_rng(0)
    channels = ("DNA", "actin", "tubulin", "mitochondria")
    bright = 16 if dtype == "uint8" else 256
    with ScreenWriter(path, "s", channels, Roles(), {}, image_format=image_format) as writer:
        for _ in range(4):
            smooth = gaussian_filter(stream.random((512, 4, 64, 64)), (0, 0, 4, 4))
            signal = bright * (smooth - smooth.min()) / smooth.std()
            writer.append(stream.poisson(signal).clip(0, np.iinfo(dtype).max).astype(dtype))
        writer.finish(pd.DataFrame({"Metadata_Well": np.arange(writer.rows) % 96}))
    return open_screen(path)


def read_rates(screen: Screen) -> dict[str, float]:
    """Images per second in random batches, and in order, as `embed` reads."""
    sampler = PlainSampler(np.arange(len(screen), dtype=np.int64), BATCH, 0)

    def drawn() -> None:
        for step in range(BATCHES):
            screen.read(sampler.rows(step))

    def ordered() -> None:
        for step in range(BATCHES):
            screen.read(np.arange(step * BATCH, (step + 1) * BATCH))

    rates = {}
    for name, read in (("drawn", drawn), ("ordered", ordered)):
        read()
        rates[f"{name}_per_s"] = best_rate(BATCHES * BATCH, read)
    return rates


def compare_formats(folder: Path) -> dict[str, float]:
    """Rates by format, from a disk and from object storage, and the room that Zarr saves."""
    import fsspec
    import zarr

    found: dict[str, float] = {}
    formats: tuple[ImageFormat, ...] = ("npy", "zarr")
    for dtype in ("uint8", "uint16"):
        sizes = []
        for image_format in formats:
            name = f"{dtype}_{image_format}"
            screen = make_blurred(folder / name, dtype, image_format)
            url = Path(f"memory://bucket/{name}")
            ObjectStore(url).send(screen.path, (INDEX_FILE,))
            for place, one in (("disk", screen), ("store", open_screen(url))):
                rates = read_rates(one)
                found |= {f"{name}_{place}_{how}": rate for how, rate in rates.items()}
            fsspec.filesystem("memory").store.clear()
            files = [screen.path / shard.file for shard in screen.index.shards]
            sizes.append(sum(file.stat().st_size for file in files))
        array: Any = zarr.open_array(screen.path / "images.zarr", mode="r")
        rows = PlainSampler(np.arange(len(screen), dtype=np.int64), BATCH, 0).rows(0)

        def read_by_zarr(array: Any = array, rows: Any = rows) -> Any:
            return array.oindex[rows]

        if not np.array_equal(read_by_zarr(), screen.read(rows)):
            raise AssertionError("zarr reads other images")
        of_disk = [found[f"{dtype}_{one}_disk_drawn_per_s"] for one in formats]
        found |= {
            f"{dtype}_drawn_zarr_of_npy": of_disk[1] / of_disk[0],
            f"{dtype}_bytes_zarr_of_npy": sizes[1] / sizes[0],
            f"{dtype}_drawn_by_zarr_itself_per_s": best_rate(BATCH, read_by_zarr),
        }
    return found


def main() -> None:
    """Run, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--formats", action="store_true", help="NumPy files beside Zarr")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = (compare_formats if arguments.formats else measure)(Path(folder))
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name, f"{value:,.3f}")
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
