"""check: verify every file of a screen, a run, embeddings, scores, or a directory of them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deconfound.data.readers.embedded import INDEX
from deconfound.data.screens.screen import holds_screen, open_screen
from deconfound.embeddings.file import open_embeddings
from deconfound.embeddings.shards import check_shards
from deconfound.errors import UserError
from deconfound.evaluation.scores import read_scores
from deconfound.files import seal
from deconfound.files.checksums import differs, read_checksums
from deconfound.files.object_store import is_url
from deconfound.runs.checkpoint import read_resume, read_weights
from deconfound.runs.config import read_config
from deconfound.runs.record import read_history
from deconfound.runs.run import open_run, read_json

UNSEALED = "without a checksum, as an earlier release or another program writes it"


def check(path: Path) -> str:
    """Verify every file of a screen, a run (finished or not), embeddings or scores.

    A directory of several, such as that of a comparison, is searched for them. Returns a sentence.
    Raises UserError that names what is missing or damaged, and what to do.
    """
    path = Path(path)
    if not path.exists() and not is_url(path):
        raise UserError(f"{path}: no such file or directory")
    if path.is_file():
        return _check_file(path)
    if (found := _check_known(path)) is not None:
        return found
    counts: Counter[str] = Counter()
    damaged = []
    for inside in _parts(path):
        counts[inside.suffix or "directories"] += 1
        try:
            _check_known(inside) if inside.is_dir() else _check_file(inside)
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        more = f"; and {len(damaged) - 1} more of {path}" if len(damaged) > 1 else ""
        raise UserError(damaged[0] + more)
    if not counts:
        raise UserError(
            f"{path}: neither a screen (screen.json) nor a run (config.yaml) nor a directory of "
            f"embeddings ({INDEX}), and holds none of them, nor .h5ad or .parquet files"
        )
    told = ", ".join(f"{number:,} {kind}" for kind, number in sorted(counts.items()))
    return f"{path}: whole; {told}"


def _check_known(path: Path) -> str | None:
    """Verify a screen, a run or a directory of embeddings; None for another directory."""
    if holds_screen(path):
        screen = open_screen(path)
        screen.check()
        return f"{path}: whole; {len(screen):,} images in {len(screen.index.shards)} shards"
    if (path / "config.yaml").is_file():
        return _check_run(path)
    if (path / INDEX).is_file():
        index = check_shards(path)
        return f"{path}: whole; {index.rows:,} embeddings in {len(index.shards)} files"
    return None


def _parts(folder: Path) -> Iterator[Path]:
    """What lies in a directory, at any depth, and can be verified; hidden names are unfinished."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            known = any((path / name).is_file() for name in ("screen.json", "config.yaml", INDEX))
            yield from [path] if known else _parts(path)
        elif path.suffix in (".h5ad", ".parquet", ".json"):
            yield path


def _check_file(path: Path) -> str:
    """Verify embeddings, or a table or JSON that has a seal."""
    if path.suffix == ".h5ad":
        opened, changed = open_embeddings(path)
        what = f"{len(opened.table):,} embeddings"
        if changed:
            return f"{path}: readable; {what}, changed by another program since they were written"
    elif path.suffix == ".parquet":
        what = f"{len(read_scores(path)):,} rows"
    elif path.suffix == ".json":
        try:
            seal.read_json(path)
        except ValueError as error:
            raise UserError(
                f"{path}: damaged ({error}); restore a copy, or make it again"
            ) from error
        what = "JSON"
    else:
        raise UserError(f"{path}: nothing that can be verified; expected .h5ad, .parquet or .json")
    if seal.verify(path):
        return f"{path}: whole; {what}"
    return f"{path}: readable; {what}, {UNSEALED}"


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
