"""What `kill.py` kills: a command for each output, and what must hold of the files it leaves."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from deconfound import methods
from deconfound.errors import UserError
from deconfound.runs.checkpoint import read_weights
from deconfound.runtime.seeds import numpy_stream
from deconfound.verification import check

ONE = "--threads 1 --quiet"
FEW = f"--batch-size 32 --device cpu --precision 32 {ONE}"
STEPS = "--steps 6 --validate-every 2 --checkpoint-every 2"
FIT = f"--fold iid {STEPS} {FEW}"
CHEAP = {
    "encoder": "small", "decoder_width": 8, "decoder_steps": 4, "block_size": 8,
    "transfer_steps": 4, "transfer_batch_size": 16, "width": 8, "max_width": 8, "mapping_width": 8,
}  # fmt: skip
"""Values of options that make a method fast, where it has them."""
GENES = "--gene Metadata_Perturbation --control Metadata_Perturbation=control"


class Case(NamedTuple):
    """A verb that is killed."""

    words: str
    """The command without its --out."""
    kind: Literal["new", "run", "comparison", "shards"] = "new"
    """new: appears whole or not at all, and the command refuses what is there. run, comparison:
    a directory that grows, and the command continues it. shards: new, but made together."""
    processes: int = 1
    """Processes that make the output together, each started with its RANK."""

    @property
    def continues(self) -> bool:
        """Whether the command succeeds where its output is whole."""
        return self.kind != "new"


def fit(method: str) -> Case:
    """A run of a method, with the values of `CHEAP` that it has options for."""
    known = methods.load(method).Options.model_fields
    flags = [f"--{name.replace('_', '-')} {CHEAP[name]}" for name in CHEAP if name in known]
    return Case(f"fit {method} screen {' '.join(flags)} {FIT}", "run")


CASES = {
    "screen": Case("simulate --cells 200 --size 24 --plates 1 --sections 1 --quiet"),
    "injected": Case("simulate --cells clean --quiet"),
    "ingested": Case(f"ingest --images-root images {ONE}"),
    "cut": Case(f"ingest fields.csv --images-root images --crop 8 {ONE}"),
    "run": fit("scbd"),
    "e.h5ad": Case(f"embed fitted screen --device cpu {ONE}"),
    "shards": Case(f"embed fitted screen --device cpu {ONE}", "shards", 2),
    "scores.parquet": Case("measure embedded.h5ad --quiet"),
    "report.html": Case("report fitted measured.parquet"),
    "corrected.h5ad": Case("correct sphering embedded.h5ad"),
    "genes.h5ad": Case(f"aggregate embedded.h5ad {GENES} --quiet"),
    "genes.parquet": Case(f"aggregate embedded.h5ad {GENES} --quiet"),
    "imputed": Case("transfer imputer screen --to S1/P1/A1 --images 40 --quiet"),
    "search": Case("compare search.yaml --embeddings --workers 1 --quiet", "comparison"),
    "study": Case(
        "compare screen --hold-out Metadata_Series --folds-per-level 1 --seeds 0 --steps 4 "
        "--batch-size 32 --methods erm=erm.yaml erm+knn --workers 2 --quiet",
        "comparison",
    ),
    "table": Case(
        "compare screen --view levels --hold-out Metadata_Series --folds-per-level 1 "
        "--seeds 0 --steps 4 --batch-size 32 --methods erm=erm.yaml erm+knn --workers 2 --quiet",
        "comparison",
    ),
    **{f"run-{name}": fit(name) for name in methods.names() if name != "scbd"},
}
"""By the name of the output."""
COPIES = {
    "run": "fitted", "run-ist": "imputer", "e.h5ad": "embedded.h5ad",
    "scores.parquet": "measured.parquet",
}  # fmt: skip
"""What later verbs read, which is never killed."""
TIMED = ("provenance.json", "checksums.json", "summary.json")
"""Files that hold the time."""
RUN_TIME = re.compile(
    rb"<dt>(training|finished)</dt><dd>[^<]*</dd>|^(training_seconds|finished): [^\n]*$",
    re.MULTILINE,
)
"""The time of a run on a page."""
SEARCH = {
    "screens": ["screen"],
    "folds": ["iid"],
    "training": {
        "steps": 4, "batch_size": 32, "validate_every": 2, "checkpoint_every": 2,
        "device": "cpu", "precision": "32", "threads": 1,
    },
    "methods": {"erm": {"options": {"encoder": "small"}, "grid": {"learning_rate": [0.001, 0.01]}}},
    "chains": ["erm", "erm+knn"],
}  # fmt: skip


def write_inputs(folder: Path) -> None:
    """Images, a table of fields of view and the plan of a search."""
    for place in ("e1/l1", "e1/l2", "e2/l1", "e2/l2"):
        (folder / "images" / place).mkdir(exist_ok=True, parents=True)
        for number in range(20):
            pixels = numpy_stream(0, place, number).integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / place / f"{number}.png")
    cells = [
        f"e{e}/l{label}/{number}.png,{5 + cell},8,l{label},e{e}"
        for e in (1, 2) for label in (1, 2) for number in range(20) for cell in range(3)
    ]  # fmt: skip
    header = "Path,Metadata_X,Metadata_Y,Metadata_Gene,Metadata_Plate"
    (folder / "fields.csv").write_text("\n".join([header, *cells]) + "\n", encoding="utf-8")
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    erm = {"method": "erm", "options": SEARCH["methods"]["erm"]["options"],  # type: ignore[index]
           "training": SEARCH["training"]}  # fmt: skip
    (folder / "erm.yaml").write_text(yaml.safe_dump(erm), encoding="utf-8")


def made_of(name: str) -> list[str]:
    """The outputs that the command of an output reads, themselves or their copies."""
    known = {COPIES.get(one, one): one for one in CASES}
    return [known[word] for word in CASES[name].words.split() if word in known]


def untimed(file: Path) -> bytes:
    """The bytes of a file, of a page without when its runs ended and how long they took."""
    held = file.read_bytes()
    return RUN_TIME.sub(b"", held) if file.suffix == ".html" else held


def content(path: Path) -> dict[str, bytes]:
    """The bytes of an output, file by file, but for the time of its runs."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return {
        str(file.relative_to(path)): b"" if file.name in TIMED else untimed(file) for file in files
    }


def wrong(case: Case, out: Path, whole: dict[str, bytes]) -> Iterator[str]:
    """What looks whole and is not of the files that a killed process left."""
    if case.kind in ("new", "shards") and out.exists() and content(out) != whole:
        yield f"{out.name} is there and differs"
    places = [out] if case.kind in ("run", "comparison") else []
    places += out.parent.glob(".*.unfinished")
    for place in places:
        for file in [place, *place.rglob("*")]:
            judged = file.is_file() or (file / "config.yaml").is_file()
            if judged and (reason := unreadable(file)):
                yield f"{file.relative_to(out.parent)}: {reason}"


def unreadable(path: Path) -> str | None:
    """Why a file or a run is not whole; None if it is, or if its name says that it is unfinished.

    Names of temporary files and of locks begin with a dot.
    """
    if path.name.startswith(".") and path.suffix != ".unfinished":
        return None
    try:
        match path.suffix:
            case _ if path.is_dir():
                check(path)
            case ".h5ad" | ".parquet" | ".json":
                check(path)
            case ".csv":
                pd.read_csv(path)
            case ".yaml":
                yaml.safe_load(path.read_bytes())
            case ".safetensors":
                read_weights(path)
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    [arrays[name] for name in arrays]
            case ".md" | ".tex":
                assert path.read_bytes().endswith(b"\n"), "is cut short"
    except (UserError, OSError, ValueError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return None
