"""check: verify every file of a screen, a run or a directory of embeddings."""

from pathlib import Path

from deconfound.data.screens.screen import open_screen
from deconfound.embeddings.shards import INDEX, check_shards
from deconfound.errors import UserError
from deconfound.files.checksums import differs, read_checksums
from deconfound.runs.checkpoint import read_resume, read_weights
from deconfound.runs.config import read_config
from deconfound.runs.record import read_history
from deconfound.runs.run import open_run, read_json


def check(path: Path) -> str:
    """Verify every file of a screen, a run (finished or not) or embeddings; returns a sentence.

    Raises UserError that names what is missing or damaged, and what to do.
    """
    path = Path(path)
    if (path / "screen.json").is_file():
        screen = open_screen(path)
        screen.check()
        return f"{path}: whole; {len(screen):,} images in {len(screen.index.shards)} shards"
    if (path / "config.yaml").is_file():
        return _check_run(path)
    if (path / INDEX).is_file():
        index = check_shards(path)
        return f"{path}: whole; {index.rows:,} embeddings in {len(index.shards)} files"
    raise UserError(
        f"{path}: neither a screen (screen.json) nor a run (config.yaml) nor a directory of "
        f"embeddings ({INDEX})"
    )


def _check_run(path: Path) -> str:
    if not (path / "model.safetensors").is_file():
        return _check_unfinished(path)
    expected = read_checksums(path)
    damaged = [name for name, value in expected.items() if differs(path / name, value)]
    if damaged:
        raise UserError(
            f"{path}: {', '.join(damaged)} missing or changed since the run ended; restore a copy, "
            f"or remove {path} and fit it again"
        )
    run = open_run(path)
    return f"{path}: whole; a finished run of {run.config.method}, {len(expected)} files"


def _check_unfinished(path: Path) -> str:
    read_config(path / "config.yaml")
    for name in ("classes.json", "fold.json", "intervention.json"):
        if (path / name).is_file():
            read_json(path / name)
    described = read_json(path / "fold.json") if (path / "fold.json").is_file() else {}
    recorded = described.get("config_sha256")
    if recorded is not None and differs(path / "config.yaml", recorded):
        raise UserError(
            f"{path / 'config.yaml'}: changed since the run began; restore a copy, or remove "
            f"{path} and fit it again"
        )
    for file in sorted(path.glob("*.safetensors")):
        read_weights(file)
    if not (path / "resume.pt").is_file():
        return f"{path}: not finished and without a checkpoint yet; the same fit starts it again"
    read_history(path / "metrics.csv")
    state = read_resume(path)
    return (
        f"{path}: whole and not finished, stage {state['stage_number'] + 1}, step "
        f"{state['done']}; the same fit resumes it"
    )
