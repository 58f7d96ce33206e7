import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.verification import check

MakeConfig = Callable[..., RunConfig]
Runs = Callable[[str], Path]


@pytest.fixture
def run(finished_runs: Runs, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(finished_runs("erm"), tmp_path / "run"))


@pytest.fixture
def unfinished(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that ended before its last checkpoint, at step 4 of 6."""
    saves = []
    save = Training._save_resume

    def dying(training: Training) -> None:
        save(training)
        saves.append(training)
        if len(saves) == 2:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_save_resume", dying)
        with pytest.raises(MemoryError):
            fit(make_config("erm"), screen.path, tmp_path / "half", quiet=True)
    return tmp_path / "half"


def flip(file: Path, place: int = -1) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_what_is_whole_is_said_to_be(screen: Screen, run: Path, unfinished: Path) -> None:
    assert check(screen.path) == f"{screen.path}: whole; 96 images in 1 shards"
    assert "whole; a finished run of erm" in check(run)
    assert "whole and not finished, stage 1, step 4" in check(unfinished)


def test_every_file_of_a_finished_run_is_verified(run: Path) -> None:
    names = sorted(file.name for file in run.iterdir())
    assert len(names) >= 10
    for name in names:
        whole = (run / name).read_bytes()
        flip(run / name, len(whole) // 2)
        with pytest.raises(UserError, match=name if name != "checksums.json" else "changed"):
            check(run)
        if name not in ("config.yaml", "model.safetensors"):
            (run / name).unlink()
            with pytest.raises(UserError, match=name):
                check(run)
        (run / name).write_bytes(whole)
    check(run)


def test_a_run_killed_as_it_finished_is_tidied(
    screen: Screen, run: Path, unfinished: Path, make_config: MakeConfig
) -> None:
    shutil.copy(unfinished / "resume.pt", run)
    before = {file.name for file in run.iterdir()}
    fit(make_config("erm"), screen.path, run, quiet=True)
    assert before - {file.name for file in run.iterdir()} == {"resume.pt"}
    check(run)


@pytest.mark.parametrize("name", ["resume.pt", "classifier-loss.safetensors", "fold.json"])
def test_a_file_cut_off_in_an_unfinished_run_is_named(name: str, unfinished: Path) -> None:
    content = (unfinished / name).read_bytes()
    (unfinished / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        check(unfinished)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_changed_bit_in_kept_weights_is_found(
    place: float, screen: Screen, make_config: MakeConfig, unfinished: Path
) -> None:
    file = unfinished / "classifier-loss.safetensors"
    flip(file, int(place * file.stat().st_size))
    with pytest.raises(UserError, match=r"classifier-loss\.safetensors: damaged \(its checksum"):
        check(unfinished)
    # Training goes on, and says so where it would use them, unless it has found better ones.
    with contextlib.suppress(UserError):
        fit(make_config("erm"), screen.path, unfinished, quiet=True)
        check(unfinished)


def test_a_configuration_cut_between_lines_is_found(
    run: Path, unfinished: Path, screen: Screen, tmp_path: Path
) -> None:
    for path in (run, unfinished):
        file = path / "config.yaml"
        whole = file.read_text()
        file.write_text("".join(whole.splitlines(keepends=True)[:4]))
        read_config(file)
        with pytest.raises(UserError, match=r"config\.yaml.*changed since the run"):
            check(path)
    with pytest.raises(UserError, match=r"config\.yaml: changed since the run ended"):
        embed(run, screen.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)


def test_damage_is_one_line_and_exits_with_2(
    screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(screen.path, tmp_path / "copy"))
    flip(copy / "images-00000.npy")
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(copy)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "images-00000.npy: checksum differs" in said
    with pytest.raises(UserError, match=r"copy/images-00000\.npy: checksum differs"):
        check(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a screen"):
        check(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file"):
        check(tmp_path / "nowhere")


def test_a_changed_bit_in_the_state_to_resume_from_is_found(
    screen: Screen, make_config: MakeConfig, unfinished: Path
) -> None:
    flip(unfinished / "resume.pt", (unfinished / "resume.pt").stat().st_size // 2)
    with pytest.raises(UserError, match=r"resume\.pt: damaged"):
        fit(make_config("erm"), screen.path, unfinished, quiet=True)


def test_the_state_of_another_method_is_refused(
    screen: Screen,
    make_config: MakeConfig,
    unfinished: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(unfinished, other)
    config = make_config("scbd", training={"sampler": "plain"})
    for file in ("config.yaml", "classes.json"):
        (other / file).unlink()
    (other / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match=r"resume\.pt: damaged"):
        fit(config, screen.path, other, quiet=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other method", "one tensor"])
def test_damaged_weights_are_one_line(
    damage: str, screen: Screen, run: Path, finished_runs: Runs, tmp_path: Path
) -> None:
    file = run / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flipped":
        flip(file)
    elif damage == "other method":
        shutil.copy(finished_runs("scbd") / file.name, file)
    else:
        tensors = load_file(file)
        name = next(iter(tensors))
        tensors[name] = tensors[name] + 1
        save_file(tensors, file)
    with pytest.raises(UserError, match=r"model\.safetensors: changed since the run ended"):
        embed(run, screen.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)
    (run / "checksums.json").write_text(
        json.dumps({**json.loads((run / "checksums.json").read_text()), file.name: _sum(file)})
    )
    if damage != "one tensor":
        said = "cannot be loaded" if damage == "other method" else "damaged"
        with pytest.raises(UserError, match=rf"model\.safetensors: {said}"):
            embed(run, screen.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)


def _sum(file: Path) -> str:
    from deconfound.files.checksums import sha256

    return sha256(file)


def test_a_newer_format_is_refused(
    screen: Screen, run: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    def newer(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 2}))

    newer(run / "classes.json")
    with pytest.raises(UserError, match=r"classes\.json: format version 2; this release reads"):
        fit(make_config("erm"), screen.path, run, quiet=True)
    with pytest.raises(UserError, match="format version 2"):
        embed(run, screen.path, tmp_path / "e.h5ad", quiet=True)
    copy = Path(shutil.copytree(screen.path, tmp_path / "copy"))
    file = copy / "screen.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 3}))
    with pytest.raises(UserError, match="format version 3; this release reads versions 1 and 2"):
        check(copy)


@pytest.mark.parametrize("name", ["classes.json", "fold.json", "provenance.json"])
def test_a_description_cut_off_is_one_line(
    name: str, screen: Screen, run: Path, tmp_path: Path
) -> None:
    content = (run / name).read_text()
    (run / name).write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name}: missing or damaged"):
        embed(run, screen.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)
    assert not (tmp_path / "e.h5ad").exists()
