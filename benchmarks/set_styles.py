"""How near the images of IST come to the true ones where a style set has few images.

    python benchmarks/set_styles.py RUN SCREEN --images 300 --json set_styles.json

The mean style of K images stands for its environment's controls with the error of K draws. The best
linear estimate (Robinson, That BLUP is a good thing, 1991) shrinks it towards the mean of the
training environments, by how styles vary between environments and between the images of one. It is
fitted on all training environments, without the target, and without the target's outermost level,
as for an environment never seen. RUN is of `ist` in the form set, fitted on the simulated SCREEN.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from deconfound.counterfactuals.cells import interventions
from deconfound.counterfactuals.shown import RUN, StoredImputer, shown_images
from deconfound.data.folds.fold import Part
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import open_screen
from deconfound.evaluation.scores import ALONE, EXACT
from deconfound.intervention.styles import of_sets_in, source_styles_of, styles_anywhere
from deconfound.methods.contract import Imputer
from deconfound.metrics.imputation import absolute_distance
from deconfound.runs.run import open_run
from deconfound.runtime.seeds import numpy_stream

Values = npt.NDArray[np.float64]
Without = Literal["nothing", "target", "outermost"]
OF_ENVIRONMENT = 150
"""Images of each training environment that variances are estimated from."""
DIRECTIONS = 40
"""Principal directions of how images of one environment vary; the rest counts as independent."""
OWN = 0.2
"""Share of the variance between environments that no direction of the known ones holds."""
PARTS: tuple[Part, ...] = ("id_test", "test")


@dataclass(frozen=True)
class Known:
    """Styles of training environments."""

    images: Values
    """(N, S) of single images."""
    environment: npt.NDArray[np.int64]
    """(N,) codes of theirs."""
    controls: Values
    """(E, S) means over the controls, which are what is estimated."""
    outermost: npt.NDArray[np.str_]
    """(E,) the outermost level of each environment."""

    def estimate(self, style: Values, count: int, keep: npt.NDArray[np.bool_]) -> Values:
        """(B, S) of mean styles (B, S) over `count` images, by the environments of `keep`."""
        codes = np.flatnonzero(keep)
        means = np.stack([self.images[self.environment == code].mean(axis=0) for code in codes])
        own = np.isin(self.environment, codes)
        place = np.searchsorted(codes, self.environment[own])
        within = self.images[own] - means[place]
        scale = within.std(axis=0) + 1e-9
        controls = self.controls[codes]
        center = controls.mean(axis=0)
        between = (controls - center) / scale / np.sqrt(len(codes) - 1)
        _, singular, right = np.linalg.svd(within / scale, full_matrices=False)
        shared = right[:DIRECTIONS] * singular[:DIRECTIONS, None] / np.sqrt(len(within) * count)
        alone = np.maximum(1 / count - (shared**2).sum(axis=0), 0.05 / count)
        free = OWN * np.maximum((between**2).sum(axis=0), 1e-6)
        factors = np.vstack([between * np.sqrt(1 - OWN), shared])
        weighted = factors / (free + alone)
        deviation = (style - means.mean(axis=0)) / scale / (free + alone)
        inverse = np.linalg.inv(np.eye(len(factors)) + weighted @ factors.T)  # Woodbury
        solved = deviation - (deviation @ factors.T) @ inverse @ weighted
        found = free * solved + (1 - OWN) * (solved @ between.T) @ between
        estimated: Values = center + scale * found
        return estimated


@dataclass(frozen=True)
class Shrinking(StoredImputer):
    """Imputes into the estimate of each style set's environment."""

    known: Known
    without: Without

    @torch.inference_mode()
    def __call__(
        self, rows: np.ndarray, source: np.ndarray, style: np.ndarray, environment: np.ndarray
    ) -> npt.NDArray[np.float32]:
        """Impute the source images (B, C, H, W) of `rows`; stored units."""
        count = style.shape[1]
        pixels = self.intensity(torch.from_numpy(style).flatten(0, 1))
        taken_in = torch.from_numpy(environment).repeat_interleave(count)
        of_image = self.method.style(pixels, taken_in).reshape(len(source), count, -1)
        code = of_image.mean(dim=1).double().numpy()
        outermost = self.known.outermost
        for target in np.unique(environment):
            keep = np.ones(len(outermost), dtype=bool)
            if self.without == "target":
                keep[target] = False
            elif self.without == "outermost":
                keep = outermost != outermost[target]
            own = environment == target
            code[own] = self.known.estimate(code[own], count, keep)
        assert self.source_styles is not None
        where = self.source_styles.of(torch.from_numpy(rows))
        image = self.intensity(torch.from_numpy(source))
        imputed = self.method.impute(image, torch.from_numpy(code).float(), where)
        return np.asarray(self.intensity.inverse(imputed.float()).numpy())


def main() -> None:
    """Print the error of each estimate, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--style-images", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run, screen = open_run(arguments.run), open_screen(arguments.screen)
    method, intensity = run.load(screen)
    assert isinstance(method, Imputer)
    method.eval()
    over = of_sets_in(run, screen)
    assert over is not None, "not of the form set"
    styles = styles_anywhere(run, screen, method, intensity)
    source_styles = source_styles_of(run, screen, styles, over, 0)
    problem = pose(screen, run.config.data)
    train = problem.fold.rows("train")
    codes = problem.environment.codes[train]
    drawn = [
        numpy_stream(0, "set styles", name).permutation(train[codes == code])[:OF_ENVIRONMENT]
        for code, name in enumerate(run.environments)
    ]
    with torch.inference_mode():
        images = torch.cat([styles(np.sort(rows)) for rows in drawn]).double().numpy()
    known = Known(
        images,
        np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn]),
        source_styles.of_names(run.environments).double().numpy(),
        np.array([name.split("/")[0].strip() for name in run.environments]),
    )
    of_run = method, intensity, run.environments, source_styles
    imputers: dict[str, StoredImputer] = {
        "mean of the set": StoredImputer(*of_run, False),
        "controls of the environment": StoredImputer(*of_run, True),
    }
    of_prior: dict[str, Without] = {
        "estimate, target known": "nothing",
        "estimate, target unknown": "target",
        "estimate, its outermost level unknown": "outermost",
    }
    for name, without in of_prior.items():
        imputers[name] = Shrinking(*of_run, False, known, without)
    found = []
    for part in PARTS:
        asked = interventions(screen, problem, part, arguments.images, 0, arguments.style_images)
        for name, imputer in imputers.items():
            own = left = 0.0
            for _, shown in shown_images(screen, imputer, asked, None):
                own += float(absolute_distance(shown[RUN], shown[EXACT]).sum())
                left += float(absolute_distance(shown[ALONE], shown[EXACT]).sum())
            found.append({"part": part, "style": name, "error": round(own / left, 4)})
            print(found[-1], flush=True)
    if arguments.json:
        about = {"fold": problem.fold.name, "style_images": arguments.style_images,
                 "images": arguments.images}  # fmt: skip
        arguments.json.write_text(json.dumps({"about": about, "errors": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
