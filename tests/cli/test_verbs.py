import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from pydantic import BaseModel

from deconfound import cli, methods
from deconfound.cli import runs
from deconfound.cli.former import FORMER
from deconfound.cli.printing import say
from deconfound.config import DataOptions, Options, TrainingOptions
from deconfound.data.screens.screen import Screen
from deconfound.errors import InputWarning
from deconfound.runs.config import read_config
from deconfound.verbs import VERBS

Said = pytest.CaptureFixture[str]


def stops(words: list[str]) -> int | str | None:
    """The exit code of a command; None if it returns."""
    try:
        cli.main(words)
    except SystemExit as stop:
        return stop.code
    return None


def mistake(words: list[str], said: Said) -> str:
    """The one line a mistake of the user's gives, without the name of the program."""
    said.readouterr()
    assert stops(words) == 2
    captured = said.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    assert lines[0].startswith("deconfound: ")
    return lines[0].removeprefix("deconfound: ")


@pytest.fixture
def fit_words(screen: Screen, tmp_path: Path) -> Callable[..., list[str]]:
    def words(*more: str, method: str = "erm") -> list[str]:
        few = "--steps 2 --batch-size 16 --device cpu --precision 32 --threads 1 --quiet"
        return ["fit", method, str(screen.path), "--out", str(tmp_path / "run"), *few.split(),
                "--fold", "plate=S1/P1", "--val-fraction", "0.2", *more]  # fmt: skip

    return words


def test_several_augmentations_may_stand_anywhere(
    fit_words: Callable[..., list[str]], tmp_path: Path
) -> None:
    verb, method, screen, *rest = fit_words()
    cli.main([verb, method, "--augment", "blur", "dihedral", screen, *rest])
    assert read_config(tmp_path / "run" / "config.yaml").training.augment == "dihedral blur"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["dihedrel"], "unknown augmentation 'dihedrel'; did you mean 'dihedral'?"),
        (["crop", "dihedrl"], "unknown augmentation 'dihedrl'; did you mean 'dihedral'?"),
        (["none", "crop"],
         "none goes with no other augmentation; leave it out, or give it alone"),
    ],
)  # fmt: skip
def test_what_is_no_augmentation_is_one_line(
    given: list[str], said: str, fit_words: Callable[..., list[str]], capsys: Said
) -> None:
    assert mistake(fit_words("--augment", *given), capsys) == f"fit erm: --augment: {said}"


def test_without_a_verb_all_verbs_are_listed(capsys: Said) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert stops(words) is None
        printed = capsys.readouterr().out
        assert all(re.search(rf"^  {verb} +\w", printed, re.M) for verb in VERBS)


def test_the_version_is_printed(capsys: Said) -> None:
    assert stops(["--version"]) is None
    assert re.fullmatch(r"deconfound \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_helps(verb: str, capsys: Said) -> None:
    named = {"fit": ["scbd"], "ingest": ["source", "cmnist"], "correct": ["symphony"]}
    for words in [[verb, "--help"], *([[verb, *named[verb], "--help"]] if verb in named else [])]:
        assert stops(words) == 0
        captured = capsys.readouterr()
        assert verb in captured.out
        assert not captured.err


@pytest.mark.parametrize("method", methods.names())
def test_the_help_of_a_method_holds_its_options_and_its_paper(method: str, capsys: Said) -> None:
    assert stops(["fit", method, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found = methods.load(method)
    assert found.PAPER.split(",")[0] in printed
    for name in found.Options.model_fields:
        assert "--" + name.replace("_", "-") in printed


@pytest.mark.parametrize("method", methods.names())
def test_no_two_flags_of_fit_share_a_name(method: str) -> None:
    groups: list[type[BaseModel]] = [methods.load(method).Options, DataOptions, TrainingOptions]
    flags = [flag for group in groups for flag in every_flag(group)]
    flags += ["screen", "out", "seed", "quiet", "config", "debug", "help"]
    assert sorted(flags) == sorted(set(flags))


def every_flag(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from every_flag(field.annotation)
        else:
            yield name


def test_an_unknown_verb_is_answered_with_the_nearest(capsys: Said) -> None:
    assert "unknown verb 'fitt'; did you mean 'fit'?" in mistake(["fitt"], capsys)


def test_an_unknown_method_is_answered_with_the_nearest(capsys: Said) -> None:
    said = mistake(["fit", "scbdd"], capsys)
    assert "'scbdd' is neither a method nor an existing path; did you mean 'scbd'?" in said
    assert "scbd" in mistake(["fit"], capsys)


def test_an_unknown_source_is_answered_with_the_nearest(capsys: Said) -> None:
    assert "did you mean 'cmnist'?" in mistake(["ingest", "source", "cminst"], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alhpa", "3"], "--alpha"),
        (["--learning-rte", "3"], "--learning-rate"),
        (["--stps", "3"], "--steps"),
        (["--alpha", "much"], "much"),
        (["--alpha", "-1"], "expected a number of at least 0, or auto"),
        (["--alpha"], "alpha"),
        (["--steps", "0"], "greater than or equal to 1"),
        (["--steps", "2.5"], "2.5"),
        (["--val-fraction", "1.5"], "less than 1"),
        (["--sampler", "balanced"], "label_balanced"),
        (["--temperature", "0"], "greater than 0"),
        (["--environment", "plte"], "did you mean 'plate'?"),
        (["--label", "compund"], "did you mean 'compound'?"),
        (["--levels", "series", "plat"], "did you mean 'plate'?"),
        (["--fold", "plate=S1/P9"], "S1/P1, S1/P2"),
        (["--fold", "plte=S1/P1"], "series, plate, section"),
        (["--fold", "given"], "no split column"),
        (["--encoder", "smal"], "did you mean small?"),
        (["--device", "gpu"], "auto, cpu, cuda, mps"),
        (["--likelihood", "bernoulli", "--decoder", "beside"], "--scaling unit"),
        (["--transform", "arcsinh", "--scaling", "unit"], "--transform none"),
        (["--iid-unit", "wells"], "well"),
        (["--decoder-width", "7"], "even"),
        (["extra"], "extra"),
    ],
)
def test_a_wrong_option_of_fit_is_one_line(
    words: list[str], said: str, fit_words: Callable[..., list[str]], capsys: Said
) -> None:
    assert said in mistake(fit_words(*words, method="scbd"), capsys)


def test_options_of_imputed_images_belong_to_intervene(
    fit_words: Callable[..., list[str]], capsys: Said
) -> None:
    for option in ("--correction-draws", "--bank", "--style-images"):
        answer = mistake(fit_words(option, "3"), capsys)
        assert f"{option} belongs to --intervene RUN; add it" in answer


def test_a_configuration_that_says_how_to_intervene_needs_a_run(
    fit_words: Callable[..., list[str]], capsys: Said, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: erm\nintervention: {impute_into: mean}\n")
    answer = mistake(fit_words("--config", str(recipe)), capsys)
    assert "--impute-into belongs to --intervene RUN; add it" in answer


def test_a_missing_required_option_is_named(screen: Screen, capsys: Said) -> None:
    assert "out" in mistake(["fit", "erm", str(screen.path)], capsys)
    assert "out" in mistake(["embed", "a", "b"], capsys)


def test_boxes_drawn_in_ascii_leave_no_trace() -> None:
    """Where the terminal takes no other characters."""
    command = [sys.executable, "-m", "deconfound", "check"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("deconfound: check: Missing from deconfound check: ")
    assert "---" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_path_that_is_no_screen_or_run(
    screen: Screen, tmp_path: Path, capsys: Said, finished_runs: Callable[[str], Path]
) -> None:
    out = ["--out", str(tmp_path / "o.h5ad")]
    nowhere = str(tmp_path / "nowhere")
    assert "not a screen" in mistake(["fit", "erm", nowhere, "--out", str(tmp_path / "r")], capsys)
    assert "not a run" in mistake(["embed", nowhere, str(screen.path), *out], capsys)
    assert "not a run" in mistake(["embed", str(screen.path), str(screen.path), *out], capsys)
    run = str(finished_runs("erm"))
    assert "not a screen" in mistake(["embed", run, nowhere, *out], capsys)
    scores = ["--out", str(tmp_path / "s.parquet"), "--quiet"]
    assert "no such embeddings file" in mistake(["measure", nowhere, *scores], capsys)
    text = tmp_path / "text.h5ad"
    text.write_text("not HDF5")
    assert "not a readable .h5ad" in mistake(["measure", str(text), *scores], capsys)
    assert "nothing to measure" in mistake(["measure", *scores], capsys)


def test_an_output_that_exists_is_kept(
    screen: Screen, tmp_path: Path, capsys: Said, finished_runs: Callable[[str], Path],
    fit_words: Callable[..., list[str]],
) -> None:  # fmt: skip
    file = tmp_path / "o.h5ad"
    file.write_text("mine")
    run = str(finished_runs("erm"))
    said = mistake(["embed", run, str(screen.path), "--out", str(file)], capsys)
    assert "already exists" in said
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert "exists and is not a run" in mistake(fit_words(), capsys)
    scores = tmp_path / "s.parquet"
    scores.write_text("mine")
    assert "already exists" in mistake(["measure", str(file), "--out", str(scores)], capsys)
    assert [path.read_text() for path in (file, folder / "notes.txt", scores)] == ["mine"] * 3


def test_the_name_of_embeddings_ends_in_h5ad(
    screen: Screen, tmp_path: Path, capsys: Said, finished_runs: Callable[[str], Path]
) -> None:
    words = ["embed", str(finished_runs("erm")), str(screen.path), "--out", str(tmp_path / "e.pt")]
    assert ".h5ad" in mistake(words, capsys)


@pytest.mark.parametrize("damage", ["shard", "table", "index", "gone"])
def test_a_damaged_screen_is_named(
    damage: str, screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(screen.path, copy)
    file = {"shard": "images-00000.npy", "table": "table.parquet", "index": "screen.json"}.get(
        damage, "images-00000.npy"
    )
    if damage == "gone":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes((copy / file).read_bytes()[:-100])
    said = mistake(["fit", "erm", str(copy), "--out", str(tmp_path / "run")], capsys)
    assert file in said
    assert not (tmp_path / "run").exists()


def test_a_file_gives_defaults_and_flags_override_it(
    fit_words: Callable[..., list[str]], tmp_path: Path, capsys: Said
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: erm\nseed: 7\noptions: {learning_rate: 0.5, weight_decay: 0.25}\n")
    assert stops(fit_words("--config", str(file), "--learning-rate", "0.125")) is None
    written = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("seed: 7", "learning_rate: 0.125", "weight_decay: 0.25", "steps: 2"):
        assert line in written
    assert str(tmp_path / "run") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("options: {alhpa: 3}", "unknown option 'options.alhpa'; did you mean 'alpha'?"),
        ("training: {stepps: 3}", "unknown option 'training.stepps'; did you mean 'steps'?"),
        ("optoins: {alpha: 3}", "unknown option 'optoins'; did you mean 'options'?"),
        ("method: erm", "is a configuration of 'erm', not of 'scbd'"),
        ("training: {steps: many}", "'training.steps' = 'many'"),
        ("training: {steps: 0}", "greater than or equal to 1"),
        ("training: 3", "training"),
        ("- alpha", "name: value"),
        ("", "name: value"),
        ("options: {alpha: 3", "not valid YAML"),
        ("options: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(
    text: str, said: str, fit_words: Callable[..., list[str]], tmp_path: Path, capsys: Said
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    answer = mistake(fit_words("--config", str(file), method="scbd"), capsys)
    assert said in answer
    assert str(file) in answer


def test_a_missing_file_is_named(
    fit_words: Callable[..., list[str]], tmp_path: Path, capsys: Said
) -> None:
    nowhere = str(tmp_path / "no.yaml")
    assert f"{nowhere}: no such configuration file" in mistake(
        fit_words(f"--config={nowhere}"), capsys
    )
    assert "--config needs a value" in mistake(fit_words("--config"), capsys)


def test_debug_shows_the_traceback(capsys: Said) -> None:
    assert stops(["fitt", "--debug"]) == 2
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.splitlines()[-1].startswith("deconfound: unknown verb")


def test_an_interrupt_ends_in_one_line(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "call_fit", interrupted)
    assert stops(["fit"]) == 130
    assert capsys.readouterr().err == "deconfound: stopped; the same command resumes\n"


def test_a_file_that_cannot_be_written_is_one_line(
    fit_words: Callable[..., list[str]], tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    assert str(tmp_path / "run") in mistake(fit_words(), capsys)


@pytest.mark.parametrize("verb", ["methods", "metrics", "sources"])
def test_lists_name_what_there_is(verb: str, capsys: Said) -> None:
    assert stops(["list", verb]) is None
    printed = capsys.readouterr().out
    some = {"methods": methods.names(), "metrics": ["macro_f1"], "sources": ["cmnist"]}[verb]
    assert all(name in printed for name in some)


def test_fit_embed_measure(
    fit_words: Callable[..., list[str]], screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    file, scores = tmp_path / "e.h5ad", tmp_path / "s.parquet"
    embed = ["embed", str(tmp_path / "run"), str(screen.path), "--out", str(file), "--quiet"]
    assert stops(fit_words()) is None
    assert stops([*embed, "--device", "cpu", "--threads", "1"]) is None
    assert stops(["measure", str(file), "--out", str(scores)]) is None
    captured = capsys.readouterr()
    assert not [line for line in captured.err.splitlines() if "measure" not in line]
    for said in ("run in", f"{len(screen)} embeddings in", "leakage", f"scores in {scores}"):
        assert said in captured.out
    assert len(captured.out.splitlines()) <= 14
    every = ["measure", str(file), "--out", str(tmp_path / "all.parquet"), "--all"]
    assert stops(every) is None
    printed = capsys.readouterr().out.splitlines()
    table = pd.read_parquet(scores)
    assert len(printed) == len(table) + 2
    assert all(metric in line for metric, line in zip(table["metric"], printed[1:], strict=False))


@pytest.mark.parametrize("words", [["list", "methods"], ["--help"], ["fit", "erm", "--help"]])
def test_a_reader_that_leaves_ends_the_verb_quietly(words: list[str]) -> None:
    command = [sys.executable, "-c", "from deconfound.cli import main; main()", *words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize("option", ["--size", "--max-pixels"])
def test_a_value_out_of_range_names_its_option(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ingest", "x.csv", "--images-root", ".", "--out", str(tmp_path / "o"), option, "0"]
    with pytest.raises(SystemExit):
        cli.main(words)
    said = capsys.readouterr().err
    assert said == (f"deconfound: ingest: {option}: Input should be greater than or equal to 1\n")


@pytest.mark.parametrize(
    ("words", "today"),
    [
        ("methods", "list methods"),
        ("sweep f.yaml --out o --workers 2", "compare f.yaml --out o --workers 2"),
        (
            "crossval erm erm+knn screen --levels=plate --out o",
            "compare screen --view levels --hold-out=plate --out o --methods erm erm+knn",
        ),
        (
            "diagnose screen --folds iid --erm a.yaml --out o",
            "compare screen --view trade-off --hold-out iid --out o --methods erm=a.yaml",
        ),
        ("demo --cells 500", "compare demo --out demo --cells 500"),
        ("demo --out d", "compare demo --out d"),
        ("source cmnist --root r --out o", "ingest source cmnist --root r --out o"),
        ("cellprofiler s --out o", "ingest cellprofiler s --out o"),
        ("inject s --out o", "simulate --cells=s --out o"),
        ("inject --out o s --plates 2", "simulate --cells=s --out o --plates 2"),
        (
            "crossval --seeds=0 --out o erm screen",
            "compare screen --view levels --seeds=0 --out o --methods erm",
        ),
        (
            "diagnose s --erm=a.yaml --quiet",
            "compare s --view trade-off --quiet --methods erm=a.yaml",
        ),
        ("profiles s --out o", "embed s --out o"),
        ("relations g --complexes c --out o", "measure g --complexes c --out o"),
        ("retrieval w --out o", "measure w --out o --retrieval"),
        ("imputation r s --out o", "measure r s --out o"),
    ],
)
def test_a_former_verb_is_what_it_says_to_type(
    words: str, today: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("deconfound.cli.dispatch._dispatch", called.append)
    assert stops(words.split()) is None
    assert called == [today.split()]
    said = capsys.readouterr().err
    assert said.endswith(f"type: deconfound {today}\n")


def test_no_former_verb_is_a_verb() -> None:
    assert not set(FORMER) & set(VERBS)


def test_hold_out_is_the_fold_of_a_run(fit_words: Callable[..., list[str]], tmp_path: Path) -> None:
    words = [word.replace("--fold", "--hold-out") for word in fit_words()]
    assert stops(words) is None
    assert "fold: plate=S1/P1" in (tmp_path / "run" / "config.yaml").read_text()


def test_forms_of_a_verb_are_told_apart_by_what_is_given(
    screen: Screen, tmp_path: Path, capsys: Said
) -> None:
    """Each is refused by its own reader."""
    out = ("--out", str(tmp_path / "o.h5ad"))
    nowhere = str(tmp_path / "no")
    assert "holds images" in mistake(["embed", str(screen.path), *out], capsys)
    assert "no.tsv" in mistake(["measure", nowhere, "--complexes", "no.tsv", *out], capsys)
    said = mistake(["measure", nowhere, "--retrieval", *out], capsys)
    assert nowhere in said or "[retrieval]" in said
    assert "not a screen" in mistake(["simulate", "--cells", nowhere, *out], capsys)
    assert "--cells" in mistake(["simulate", "--cells", "0", *out], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["nowhere", "--out", "o"],
            "nowhere: expected a screen, a table of images or profiles",
        ),
        (["SCREEN", "--out", "o", "--alphas", "1"], "--alphas is not read with the view verdict"),
        (["SCREEN", "--out", "o", "--view", "search"], "reads a plan FILE.yaml"),
        (["demo", "--out", "o", "--bank", "3"], "--bank is not read with demo"),
        (["demo", "--out", "o", "--knn", "3"], "--knn is not read with demo"),
        (
            ["SCREEN", "--out", "o", "--view", "trade-off", "--methods", "irm"],
            "trains erm and scbd",
        ),
        (["SCREEN", "--out", "o", "--methods", "emr"], "did you mean 'erm'"),
        (["SCREEN", "--out", "o", "--hold-out", "plat"], "did you mean 'plate'"),
    ],
)
def test_mistakes_in_a_comparison_are_one_line(
    words: list[str], said: str, screen: Screen, tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [str(screen.path) if word == "SCREEN" else word for word in words]
    assert said in mistake(["compare", *given], capsys)
    assert not (tmp_path / "o").exists()


def test_an_input_warning_is_one_line_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def warn(words: list[str]) -> None:
        for _ in range(2):
            warnings.warn(f"{words[0]}: two\nlines; see to it", InputWarning, stacklevel=2)
        say("done")

    monkeypatch.setattr("deconfound.cli.screens.call_describe", warn)
    cli.main(["describe", "t.csv"])
    shown = capsys.readouterr()
    assert shown.err == "deconfound: warning: t.csv: two lines; see to it\n"
    assert shown.out == "done\n"
