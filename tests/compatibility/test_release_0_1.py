"""What release 0.1 wrote opens as before; tests/fixtures/release_0_1 says how the files were made.

Numbers are those of one CPU thread in float32. On the processor that made them, with the torch that
made them, they are equal bit for bit; another one adds in another order, and there they are equal
to within 1e-5.
"""

import hashlib
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from deconfound.config import DataOptions, read_yaml
from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.numbers import numbered
from deconfound.embeddings.correct import correct
from deconfound.embeddings.embed import embed, embed_shards, profiles
from deconfound.embeddings.file import Embeddings, read_embeddings
from deconfound.embeddings.stream import TIMES
from deconfound.evaluation.measure import measure
from deconfound.experiments.plan_file import read_plan
from deconfound.methods.post_hoc import standardise
from deconfound.runs.config import read_config
from deconfound.runs.run import open_run
from deconfound.studies.compare import CompareOptions, compare
from deconfound.training.fit import fit
from deconfound.verification import check

FIXTURE = Path(__file__).parents[1] / "fixtures" / "release_0_1"
ARCHIVE = FIXTURE / "release_0_1.tar.xz"
RECIPES = Path(__file__).parents[2] / "recipes"
FINISHED = ("erm", "scbd", "ist", "erm+ist", "whole")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which release 0.1 worked, unpacked; it is the current one."""
    folder = tmp_path_factory.mktemp("release-0.1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "timm", raising=False)
        patch.syspath_prepend(str(FIXTURE / "timm_stub"))
        patch.chdir(folder)
        yield folder
    sys.modules.pop("timm", None)


@pytest.fixture(scope="module")
def tolerance(release: Path) -> float:
    """0 on the kind of processor and with the torch that made the files, 1e-5 elsewhere."""
    information = Path("/proc/cpuinfo")
    own = information.read_text().splitlines() if information.is_file() else []
    made_on = (release / "processor.txt").read_text().splitlines()
    made_with = read_embeddings(release / "embeddings" / "erm.h5ad").about["software"]["packages"]
    same = torch.__version__ == made_with["torch"] and all(line in own for line in made_on)
    return 0.0 if same else 1e-5


def same_numbers(found: Any, stored: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, stored, rtol=tolerance, atol=tolerance)


def same_embeddings(found: Embeddings, stored: Embeddings, tolerance: float) -> None:
    expected = numbered(stored.table, stored.roles.columns())  # sites were text in release 0.1
    pd.testing.assert_frame_equal(found.table, expected)
    assert found.representations.keys() == stored.representations.keys()
    for name, values in stored.representations.items():
        same_numbers(found.representations[name], values, tolerance)


def unchanging(about: dict[str, Any]) -> dict[str, Any]:
    """What embeddings say of themselves, without versions, times of training, and newer entries."""
    left_out = ("software", "screen_identity")
    found = {name: value for name, value in about.items() if name not in left_out}
    training = dict(found.get("training", {}))
    return found | {"training": {k: v for k, v in training.items() if k not in TIMES}}


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize(("name", "shape"), [("images", (60, 4, 24, 24)), ("profiles", (48, 5))])
def test_screens_open_and_are_whole(release: Path, name: str, shape: tuple[int, ...]) -> None:
    screen = open_screen(release / name)
    screen.check()
    assert screen.read(np.arange(len(screen))).shape == shape


@pytest.mark.parametrize("name", FINISHED)
def test_finished_runs_load(release: Path, name: str) -> None:
    run = open_run(release / "runs" / name)
    method, _ = run.load(open_screen(release / "images"))
    assert run.config.method == ("erm" if name in ("erm+ist", "whole") else name)
    assert all(torch.isfinite(weights).all() for weights in method.parameters())


@pytest.mark.parametrize("name", FINISHED)
def test_the_same_fit_finds_a_finished_run_and_changes_nothing(release: Path, name: str) -> None:
    run = release / "runs" / name
    before = digests(run)
    fit(read_config(run / "config.yaml"), Path("images"), run, quiet=True)
    assert digests(run) == before


def test_a_stopped_run_ends_as_the_release_would_have_ended_it(
    release: Path, tolerance: float
) -> None:
    run, whole = release / "runs" / "stopped", release / "runs" / "whole"
    assert (run / "resume.pt").is_file()
    assert "not finished" in check(run)
    assert len(pd.read_csv(run / "metrics.csv")) < len(pd.read_csv(whole / "metrics.csv"))
    fit(read_config(run / "config.yaml"), Path("images"), run, quiet=True)
    pd.testing.assert_frame_equal(
        pd.read_csv(run / "metrics.csv"), pd.read_csv(whole / "metrics.csv"), atol=100 * tolerance
    )
    assert {file.name for file in run.iterdir()} == {file.name for file in whole.iterdir()}
    for file in whole.glob("*.safetensors"):
        weights = load_file(run / file.name)
        for name, values in load_file(file).items():
            same_numbers(weights[name], values, 100 * tolerance)
        assert tolerance or (run / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ["erm", "scbd", "erm+ist"])
def test_runs_embed_as_before(release: Path, tmp_path: Path, tolerance: float, name: str) -> None:
    stored = read_embeddings(release / "embeddings" / f"{name}.h5ad")
    out = tmp_path / f"{name}.h5ad"
    run = Path("runs") / name
    found = embed(run, Path("images"), out, device="cpu", threads=1, quiet=True)
    same_embeddings(found, stored, tolerance)
    assert unchanging(found.about) == unchanging(stored.about)


def test_a_directory_of_embeddings_reads_as_before(
    release: Path, tmp_path: Path, tolerance: float
) -> None:
    stored = read_embeddings(release / "embeddings" / "scbd")
    one = read_embeddings(release / "embeddings" / "scbd.h5ad")
    assert stored.representations.keys() == one.representations.keys()
    for name, values in one.representations.items():
        np.testing.assert_array_equal(stored.representations[name], values)
    embed_shards(
        Path("runs/scbd"), Path("images"), tmp_path / "again", device="cpu", threads=1, quiet=True
    )
    same_embeddings(read_embeddings(tmp_path / "again"), stored, tolerance)


def test_profiles_and_corrections_are_as_before(
    release: Path, tmp_path: Path, tolerance: float
) -> None:
    stored = read_embeddings(release / "embeddings" / "profiles.h5ad")
    options = DataOptions.model_validate(stored.about["config"]["data"])
    profiles(Path("profiles"), tmp_path / "profiles.h5ad", options)
    same_embeddings(read_embeddings(tmp_path / "profiles.h5ad"), stored, tolerance)
    corrected = correct(
        "standardise",
        release / "embeddings" / "erm.h5ad",
        tmp_path / "corrected.h5ad",
        standardise.StandardiseOptions(by="all"),
        knn=3,
    )
    same_embeddings(
        corrected, read_embeddings(release / "embeddings" / "erm-standardised.h5ad"), tolerance
    )


def test_scores_are_as_before(release: Path, tolerance: float) -> None:
    stored = pd.read_parquet(release / "scores.parquet")
    names = ("erm", "scbd", "erm-standardised")
    files = [release / "embeddings" / f"{name}.h5ad" for name in names]
    found = measure(files, quiet=True)
    found = found[~found["metric"].str.contains("_nearby")].reset_index(drop=True)  # came later
    pd.testing.assert_frame_equal(found, stored, rtol=tolerance, atol=tolerance)


def test_a_sweep_is_not_done_again(release: Path) -> None:
    """Runs are named by a hash of their configuration and screen; all are found by their names."""
    out = release / "sweep"
    table = pd.read_csv(out / "table.csv")
    scores = pd.read_parquet(out / "scores.parquet")
    runs = digests(out / "runs") | digests(out / "results")
    summary = compare(Path("sweep.yaml"), out, quiet=True).summary
    assert summary is not None
    assert (summary.before, summary.failed, summary.workers) == (summary.runs, 0, 0)
    assert digests(out / "runs") | digests(out / "results") == runs
    pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), table)
    found = pd.read_parquet(out / "scores.parquet")
    pd.testing.assert_frame_equal(found[list(scores.columns)], scores)


def test_a_crossval_is_not_done_again(release: Path) -> None:
    """Release 0.1 kept no scores of chains beside its table: those are made, and no run is."""
    out = release / "crossval"
    table = pd.read_csv(out / "table.csv")
    runs = digests(out / "sweep" / "runs")
    summary = compare(
        Path("images"),
        out,
        CompareOptions(
            methods=("erm=erm.yaml", "erm+knn"),
            hold_out=("Metadata_Plate",),
            folds_per_level=1,
            seeds=(0,),
            steps=4,
            batch_size=8,
        ),
        workers=1,
        quiet=True,
    ).summary
    assert summary is not None
    assert (summary.failed, summary.training_seconds) == (0, 0)
    assert digests(out / "sweep" / "runs") == runs
    found = pd.read_csv(out / "table.csv")[list(table.columns)]  # labels seen nearby came later
    pd.testing.assert_frame_equal(found, table, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["images", "profiles", *(f"runs/{run}" for run in FINISHED), "embeddings/scbd"]
)
def test_check_finds_all_whole(release: Path, name: str) -> None:
    assert "whole" in check(release / name)


@pytest.mark.parametrize(
    "file", sorted(RECIPES.rglob("*.yaml")), ids=lambda file: str(file.relative_to(RECIPES))
)
def test_recipes_are_read(file: Path) -> None:
    values = read_yaml(file)
    if "methods" in values:
        assert read_plan(file).methods
    else:
        assert read_config(file).method == values["method"]


def test_no_file_names_a_folder_of_a_machine() -> None:
    folders = (b"/home/", b"/root/", b"/tmp/", b"/work/", b"/Users/", b"/mnt/")
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            opened = archive.extractfile(member)
            held = b"" if opened is None else opened.read()
            assert not [folder for folder in folders if folder in held], member.name
