"""Noise in what is held out, test and id_test, pixels and labels: no fitted number changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound import methods
from deconfound.config import ScalingName, TransformName
from deconfound.data.folds.problem import pose
from deconfound.data.loading.intensity import fit_intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles
from deconfound.embeddings.file import PART, Embeddings, write_embeddings
from deconfound.evaluation.measure import measure
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

MakeScreen = Callable[..., Screen]
PARTS = np.array([*("train",) * 6, "val", "val", "id_test", "test"])


def with_split(
    screen: Screen, make_screen: MakeScreen, path: Path, noisy: tuple[str, ...]
) -> Screen:
    """The tiny screen with a given split, and noise for pixels and labels of the parts `noisy`."""
    part = np.resize(PARTS, len(screen))
    stream = np.random.default_rng(3)
    images, table = screen.read(np.arange(len(screen))), screen.table.assign(split=part)
    hidden = np.isin(part, noisy)
    images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
    table.loc[hidden, "compound"] = stream.choice(["c0", "c1", "unheard of"], hidden.sum())
    roles = Roles(label="compound", environment=("plate",), levels=("series",), split="split")
    return make_screen(path, images, table, roles)


@pytest.mark.parametrize("name", methods.names())
def test_no_method_reads_what_a_given_split_holds_out(
    name: str,
    screen: Screen,
    make_screen: MakeScreen,
    make_config: Callable[..., RunConfig],
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    config = make_config(name, data={"fold": "given"}, training={"selection": "accuracy"})
    clean, noisy = (
        fit(config, with_split(screen, make_screen, tmp_path / f"s{run}", parts).path,
            tmp_path / f"r{run}", quiet=True).path
        for run, parts in enumerate([(), ("test", "id_test")])
    )  # fmt: skip
    assert len(list(clean.glob("*.safetensors"))) >= 2
    assert_same_run(clean, noisy)


@pytest.mark.parametrize("name", ["ist", "scbd", "stargan2"])
def test_no_method_reads_a_plate_that_is_held_out(
    name: str,
    screen: Screen,
    make_screen: MakeScreen,
    make_config: Callable[..., RunConfig],
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """Neither its pixels and labels nor its environments, were they three that no one else has."""
    config = make_config(name, data={"environment": ["stain"]})
    part = pose(screen, make_config(name).data).fold.part
    hidden = np.isin(part, ["test", "id_test", "unused"])
    assert (part == "test").any()
    stream = np.random.default_rng(3)
    runs = []
    for noisy in (False, True):
        images = screen.read(np.arange(len(screen)))
        table = screen.table.assign(stain=screen.table["plate"])
        if noisy:
            images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
            table.loc[part == "test", "compound"] = stream.choice(
                ["c0", "new"], sum(part == "test")
            )
            table.loc[part == "test", "stain"] = stream.choice([*"xyz"], sum(part == "test"))
        made = make_screen(tmp_path / f"s{noisy}", images, table, screen.roles)
        runs.append(fit(config, made.path, tmp_path / f"r{noisy}", quiet=True).path)
    assert len(list(runs[0].glob("*.safetensors"))) >= 2
    assert_same_run(*runs)


@pytest.mark.parametrize(
    ("transform", "scaling"),
    [(name, "standardise") for name in ("none", "arcsinh", "percentile")] + [("none", "unit")],
)
def test_scaling_of_pixels_is_fitted_on_training_rows(
    transform: TransformName,
    scaling: ScalingName,
    screen: Screen,
    make_screen: MakeScreen,
    tmp_path: Path,
) -> None:
    rows = np.flatnonzero(np.resize(PARTS, len(screen)) == "train")
    clean, held_out, trained = (
        fit_intensity(with_split(screen, make_screen, tmp_path / f"{run}", parts), rows,
                      transform, scaling, 0).state_dict()
        for run, parts in enumerate([(), ("test", "id_test", "val"), ("train",)])
    )  # fmt: skip
    assert clean.keys() == held_out.keys()
    assert all(bool((clean[key] == held_out[key]).all()) for key in clean)
    if scaling == "standardise":
        assert any(bool((clean[key] != trained[key]).any()) for key in clean)


@pytest.mark.parametrize("noisy", ["test", "id_test"])
def test_probes_and_neighbours_are_fitted_on_training_rows(noisy: str, tmp_path: Path) -> None:
    """Scores of every other part are the same when one part's embeddings and labels are noise."""
    stream = np.random.default_rng(0)
    part = np.resize(PARTS, 200)
    label = stream.choice(["c0", "c1", "c2"], 200)
    values = stream.normal(size=(200, 8)).astype(np.float32)
    values[:, 0] += 2 * (label == "c1")
    table = pd.DataFrame(
        {"y": label, "p": stream.choice(["p0", "p1"], 200), PART: part,
         "deconfound_predicted": stream.choice(["c0", "c1"], 200)}
    )  # fmt: skip
    about = {
        "method": "m", "fold": "plate=p9", "seed": 0, "screen": "s", "selection": "loss",
        "labels": ["c0", "c1", "c2"], "environments": ["p0", "p1"],
        "roles": Roles(label="y", environment=("p",)).model_dump(),
        "config": {"method": "m", "seed": 0, "options": {}, "data": {"fold": "plate=p9"}},
    }  # fmt: skip
    hidden = part == noisy
    other = values.copy()
    other[hidden] = stream.normal(50, 9, other[hidden].shape)
    relabelled = table.assign(y=np.where(hidden, stream.permutation(label), label))
    relabelled.loc[hidden, "p"] = "p0"
    scores = []
    for number, (rows, embedded) in enumerate([(table, values), (relabelled, other)]):
        file = tmp_path / f"{number}.h5ad"
        write_embeddings(file, Embeddings(rows, {"content": embedded}, about))
        scores.append(measure([file], quiet=True))
    rest = scores[0]["part"] != noisy
    probes = scores[0]["metric"].str.startswith("probe_label") & rest
    assert probes.any()
    pd.testing.assert_frame_equal(scores[0][rest], scores[1][rest])
    assert not scores[0][~rest].equals(scores[1][~rest])
