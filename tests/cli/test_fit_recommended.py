"""fit without a method: what is recommended for the screen, said and written down."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from deconfound import cli, methods
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

Said = pytest.CaptureFixture[str]
FEW = [
    "--steps=2", "--batch-size=16", "--device=cpu", "--precision=32", "--threads=1", "--quiet",
]  # fmt: skip
CHOICE = (
    "recommended: erm on images whose environments are made alike in spectra, taken over all "
    "images; every environment has at least 16 images, but no row is marked as a control\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def written(run: Path) -> dict[str, dict[str, object]]:
    return yaml.safe_load((run / "config.yaml").read_text())


def mistake(words: list[str], said: Said) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    (line,) = said.readouterr().err.splitlines()
    return line.removeprefix("deconfound: ")


def test_a_screen_alone_is_trained_as_recommended(screen: Screen, run: Path, capsys: Said) -> None:
    cli.main(["fit", str(screen.path), "--out", str(run), *FEW])
    assert capsys.readouterr().out == f"{CHOICE}run in {run}\n"
    config = written(run)
    assert config["method"] == "erm"
    wanted = {
        "data": {
            "standardise_by": "environment", "standardise": "spectra", "fold": "iid",
        },
        "training": {
            "steps": 2, "augment": "dihedral", "schedule": "cosine", "warmup_steps": 20,
        },
        "options": {"norm": "instance", "learning_rate": 0.002},
    }  # fmt: skip
    for section, values in wanted.items():
        assert values.items() <= config[section].items()
    assert open_run(run).standardise_by == ("plate",)


def test_the_same_command_goes_on_and_its_configuration_is_the_run(
    screen: Screen, run: Path, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    words = [str(screen.path), "--out", str(run), *FEW]
    cli.main(["fit", *words])
    weights = (run / "model.safetensors").stat().st_mtime_ns
    cli.main(["fit", *words])
    cli.main(["fit", "recommended", *words])
    assert (run / "model.safetensors").stat().st_mtime_ns == weights
    for number, method in enumerate(([], ["erm"])):
        again = tmp_path / f"again{number}"
        config = ["--config", str(run / "config.yaml"), "--quiet"]
        cli.main(["fit", *method, str(screen.path), "--out", str(again), *config])
        assert_same_run(run, again)


def test_what_is_given_wins(screen: Screen, run: Path, capsys: Said) -> None:
    given = "--fold plate=S1/P1 --standardise moments --norm instance --augment none --seed 3"
    cli.main(["fit", "--out", str(run), *FEW, *given.split(), str(screen.path)])
    assert CHOICE.strip() in capsys.readouterr().out
    config = written(run)
    assert config["seed"] == 3
    assert "standardise" not in config["data"]
    assert {"standardise_by": "environment", "fold": "plate=S1/P1"}.items() <= config[
        "data"
    ].items()
    assert {"norm": "instance", "learning_rate": 0.002}.items() <= config["options"].items()
    assert config["training"]["augment"] == "none"


def test_controls_that_are_named_on_the_line_decide(
    make_table: Callable[..., pd.DataFrame], make_screen: Callable[..., Screen], tmp_path: Path,
    screen: Screen, capsys: Said,
) -> None:  # fmt: skip
    table = make_table(12)
    images = np.random.default_rng(0).integers(0, 99, (len(table), 2, 24, 24), dtype=np.uint8)
    larger = make_screen(tmp_path / "larger", images, table, screen.roles)
    words = ["fit", str(larger.path), "--out", str(tmp_path / "run"), *FEW]
    cli.main([*words, "--controls", "c0"])
    assert "every environment has at least 16 negative controls" in capsys.readouterr().out
    assert written(tmp_path / "run")["data"]["standardise_with"] == "controls"


def test_a_word_that_is_no_method_and_no_path_is_named(
    screen: Screen, run: Path, capsys: Said
) -> None:
    said = mistake(["fit", "scdb", str(screen.path), "--out", str(run)], capsys)
    assert said == "fit: 'scdb' is neither a method nor an existing path; did you mean 'scbd'?"
    said = mistake(["fit", "recomended", str(screen.path), "--out", str(run)], capsys)
    assert "did you mean 'recommended'?" in said
    assert "not a screen" in mistake(["fit", str(run.parent), "--out", str(run)], capsys)
    assert not run.exists()


def test_imputed_images_need_a_method_that_is_named(
    screen: Screen, run: Path, capsys: Said
) -> None:
    words = ["fit", str(screen.path), "--out", str(run), "--intervene", "other"]
    said = mistake(words, capsys)
    assert said == (
        "fit recommended: --intervene trains a method that is named; expected fit erm, or another, "
        "before the screen"
    )


def test_a_configuration_is_of_the_method_that_it_names(
    screen: Screen, run: Path, tmp_path: Path, capsys: Said
) -> None:
    file = tmp_path / "irm.yaml"
    file.write_text("method: irm\noptions: {learning_rate: 0.25}\n")
    words = [str(screen.path), "--out", str(run), "--config", str(file), *FEW]
    said = mistake(["fit", "recommended", *words], capsys)
    assert "is a configuration of 'irm', not of 'recommended'" in said
    cli.main(["fit", *words])
    assert written(run)["method"] == "irm"
    assert written(run)["options"]["learning_rate"] == 0.25


def test_help_without_a_method_lists_the_methods(capsys: Said) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"METHOD is one of {', '.join(methods.names())}" in printed
    assert "--standardise-by" in printed


def test_fit_of_python_recommends_too(screen: Screen, run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deconfound.runs.recommended.TRAINING", {"steps": 2, "batch_size": 16})
        made = fit(None, screen.path, run, quiet=True, say=said.append)
    assert said == [CHOICE.strip()]
    assert made.config.data.standardise == "spectra"
    assert (
        embed(made.path, screen.path, tmp_path / "e.h5ad", quiet=True).about["method"] == "erm-da"
    )


def test_what_is_given_in_place_of_the_choice_is_said(
    screen: Screen, run: Path, capsys: Said
) -> None:
    cli.main(["fit", str(screen.path), "--out", str(run), "--standardise", "robust", *FEW])
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"{CHOICE.strip()}; but as given, --standardise robust"
    assert written(run)["data"]["standardise"] == "robust"
    none = ["fit", str(screen.path), "--out", str(run / "b"), "--standardise-by", "None", *FEW]
    assert "--standardise-by None leaves nothing of the recipe" in mistake(none, capsys)


def test_a_form_sets_what_the_words_do_not(screen: Screen, run: Path, capsys: Said) -> None:
    """The defaults of the other form are not words of the user."""
    words = ["fit", "ist", str(screen.path), "--transfer-steps=1", *FEW]
    cli.main([*words, "--out", str(run), "--form", "paper", "--match-weight", "0"])
    paper = written(run)["options"]
    wanted = {"form": "paper", "output": "matched", "set_images": 1, "source_weight": 0.0}
    assert wanted.items() <= paper.items()
    assert (paper["cycle_weight"], paper["match_weight"]) == (1.0, 0.0)
    other = run.with_name("set")
    cli.main([*words, "--out", str(other), "--config", str(run / "config.yaml"), "--form=set"])
    assert written(other)["options"]["set_images"] == 8
    capsys.readouterr()
    line = mistake([*words, "--out", str(run / "c"), "--cycle-weight", "1"], capsys)
    assert "cycle-weight: belongs to the form paper" in line
