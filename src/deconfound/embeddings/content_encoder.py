"""A run's encoder by itself: what a model directory holds, and what opens it."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deconfound import methods
from deconfound.config import validated
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.methods.contract import Task
from deconfound.runs.checkpoint import read_weights, save_weights, take_weights
from deconfound.runs.config import config_model
from deconfound.runs.run import Run

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ContentEncoder(nn.Module):
    """Stored pixels to the content of a run's method, or to its representation where it has none.

    `encoder(pixels)`: (B, C, H, W) as the screen stores them, or profiles (B, D), of any dtype ->
    (B, features) float32, as `embed` gives them. A run whose pixels are scaled by group takes
    `group` too, (B,) int64 places in `config["groups"]`; −1 is a group that training never saw,
    whose pixels are left as they are, where `embed` learns the statistics of their own screen.
    `from_pretrained` opens a directory of `export-model`, in evaluation mode.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        where = CONFIG
        try:
            run = validated(config_model(config["run"]["method"]), config["run"], where)
            task = Task(
                len(config["channels"]), config["image_size"], len(config["labels"]),
                len(config["environments"]), (), run.data.scaling == "unit",
            )  # fmt: skip
            self.method = methods.load(run.method)(run.method_options, task)
            kind = run.data.standardise if config["standardised"] else None
            self.intensity = Intensity(
                len(config["channels"]), config["transform"], len(config["groups"]), kind
            )
            self.block = str(config["embedding"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: not of a model of deconfound ({error!r})") from error
        self.config = config
        self.eval()

    def forward(self, pixels: Tensor, group: Tensor | None = None) -> Tensor:
        if self.config["groups"] and group is None:
            raise UserError(
                "this model scales pixels by group; give group, the place of each image's in "
                'config["groups"], or -1'
            )
        return self.embed_scaled(self.intensity(pixels, group))

    def embed_scaled(self, image: Tensor) -> Tensor:
        """The same of images (B, C, H, W) float32 as `intensity` leaves them."""
        return self.method.embed(image)[self.block].float()

    def predict(self, pixels: Tensor, group: Tensor | None = None) -> Tensor | None:
        """Logits (B, labels) of `config["labels"]`; None where the method predicts none."""
        return self.method.predict(self.method.embed(self.intensity(pixels, group)))

    def save_pretrained(self, path: Path) -> None:
        """Write config.json and model.safetensors into the existing directory `path`."""
        config = json.dumps(self.config, indent=2)
        (Path(path) / CONFIG).write_text(config, encoding="utf-8")
        state = {
            name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()
        }
        save_weights(Path(path) / WEIGHTS, state)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> Self:
        """Open a model directory, on the CPU.

        Raises UserError if it is none, is damaged, or of a newer format.
        """
        folder = Path(path)
        file = folder / CONFIG
        if not file.is_file():
            raise UserError(
                f"{folder}: not a model directory (no {CONFIG}); make one with `deconfound "
                "export-model`, or download it first"
            )
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            version = config["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: damaged, or of another program; export it again") from error
        if version != FORMAT_VERSION:
            raise UserError(f"{file}: format version {version!r}; this release reads version 1")
        made = cls(config)
        weights = folder / WEIGHTS
        take_weights(read_weights(weights), weights, made.method, made.intensity)
        return made.eval()


def encoder_of(run: Run, screen: Screen) -> ContentEncoder:
    """The encoder of a run, with its weights, for the images of `screen`; raises as `Run.load`."""
    method, intensity = run.load(screen)
    sides = screen.image_shape[1:]
    with torch.no_grad():
        named = method.embed(torch.zeros(2, *screen.image_shape))
    block = "content" if "content" in named else "representation"
    described = run.config.model_dump(mode="json")
    if weights := described["options"].get("weights"):
        described["options"]["weights"] = Path(weights).name
    config = {
        "model_type": "deconfound",
        "format_version": FORMAT_VERSION,
        "method": run.config.title,
        "embedding": block,
        "features": named[block].shape[1],
        "channels": list(run.channels),
        "image_size": sides[0] if sides else None,
        "dtype": screen.dtype.name,
        "transform": run.transform,
        "scaling": run.config.data.scaling,
        "standardised": bool(run.standardise_by),
        "grouped_by": list(run.percentile_by or run.standardise_by),
        "groups": list(run.groups),
        "labels": list(run.labels),
        "environments": list(run.environments),
        "run": described,
    }
    made = ContentEncoder(config)
    made.load_state_dict(
        {f"method.{name}": value for name, value in method.state_dict().items()}
        | {f"intensity.{name}": value for name, value in intensity.state_dict().items()}
    )
    return made.eval()
