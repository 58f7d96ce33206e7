"""The documentation does what it says: commands and code run, flags, defaults and links exist."""

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import struct
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deconfound import cli, methods
from deconfound.cli import comparing, lists, runs, scoring, screens
from deconfound.cli.dispatch import PRINTED
from deconfound.cli.parsing import flag_of
from deconfound.config import Options
from deconfound.data import sources
from deconfound.data.screens.screen import open_screen
from deconfound.data.sources import bbbc021, pacs, vlcs
from deconfound.embeddings.correct import names as corrections
from deconfound.evaluation.scores import COLUMNS
from deconfound.experiments import nested
from deconfound.methods import post_hoc
from deconfound.studies import demo
from deconfound.verbs import VERBS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PUBLIC_DATA = ROOT / "docs" / "public-data.md"
ECOSYSTEM = ROOT / "docs" / "ecosystem.md"
"""Followed by test_ecosystem.py, a section at a time."""
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
REAL = ROOT.parent / "shared" / "data"
FORMS = {form.page: form for verb in VERBS.values() for form in verb.forms}
"""Every way to use a verb, by its page."""
NAMES = {
    "fit": tuple(methods.names()),
    "correct": tuple(corrections()),
    "source": tuple(sources.discover()),
    "list": ("methods",),
}
VIEWS = ("plan", "levels", "trade-off", "demo")
"""Pages of compare beside its own."""
FEW_STEPS = "--steps 4 --batch-size 32 --device cpu --precision 32 --quiet"
CHEAP = {
    "compare demo": "--cells 500 --steps 2 --quiet",
    "simulate": "--cells 720 --quiet",
    "simulate --cells": "--quiet",
    "ingest": "--quiet",
    "ingest source": "",
    "inject": "--quiet",
    "describe": "--quiet",
    "compare cells.csv": "--methods erm --seeds 0 --workers 1 --steps 2 --batch-size 16 --quiet",
    "compare screen": "--workers 1 --steps 2 --batch-size 16 --quiet",
    "compare --view levels": "--workers 1 --steps 2 --batch-size 16 --quiet",
    "compare --view": "--workers 1 --quiet",
    "fit": FEW_STEPS,
    "fit ist": f"{FEW_STEPS} --transfer-steps 2",
    "fit scbd": f"{FEW_STEPS} --block-size 16 --decoder-steps 2 --decoder-width 8",
    "fit stargan2": f"{FEW_STEPS} --width 4 --max-width 8 --mapping-width 8",
    **{f"fit {name}": f"{FEW_STEPS} --width 4 --block-size 8" for name in ("vae", "ivae", "mcvae")},
    "embed": "--device cpu --quiet",
    "embed wells": "",
    "embed features": "",
    "export": "--quiet",
    "features": "--device cpu --quiet",
    "measure": "--quiet",
    "measure --retrieval": "--null-size 50 --quiet",
    "aggregate": "--quiet",
    "transfer": "--quiet",
    "measure runs/imputed": "--images 12 --oracle-steps 2 --device cpu --quiet",
}
"""Flags added to the documented ones, so that a command takes a second."""
NEEDS = {"retrieval": "copairs", "cellprofiler": "cp_measure"}
"""Packages of extras without which a page cannot be followed."""
LMDB = importlib.util.find_spec("lmdb") is not None
OPTUNA = importlib.util.find_spec("optuna") is not None
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


class Step(NamedTuple):
    """Something a reader does: a command, code to run, or a file to save."""

    kind: str
    text: str


def steps_of(page: Path) -> list[Step]:
    """What a page has its reader do, in order."""
    steps = []
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in ("console", "bash"):
            for line in (line.removeprefix("$ ") for line in text.splitlines()):
                if ("funk22" in line and not LMDB) or ("optuna" in line and not OPTUNA):
                    continue
                if line.startswith("deconfound "):
                    steps.append(Step("command", line))
                elif line.startswith("python -c "):
                    steps.append(Step("code", shlex.split(line)[2]))
        elif language == "yaml" and text.startswith("# "):
            steps.append(Step("file", text))
        elif language == "python":
            steps.append(Step("file" if text.startswith("# src/") else "code", text))
    return steps


def follow(page: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Take every step of a page in the current directory."""
    monkeypatch.setattr("deconfound.experiments.running.executors.available_cores", lambda: 1)
    monkeypatch.setattr(demo, "SEEDS", 1)
    monkeypatch.setattr(nested, "NEIGHBOURS", 1)
    names: dict[str, Any] = {"__name__": page.stem}
    steps = steps_of(page)
    for step in steps:
        match step.kind:
            case "command":
                cli.main(cheaply(shlex.split(step.text)[1:]))
            case "code":
                exec(compile(step.text, str(page), "exec"), names)
            case "file":
                save(step.text, monkeypatch)
    return steps


def cheaply(words: list[str]) -> list[str]:
    """The words of a command with those of `CHEAP`."""
    marks = [word for word in words if word in ("--view", "levels", "--retrieval")]
    key = " ".join([words[0], *marks] if marks else words[:2])
    return words + CHEAP.get(key, CHEAP.get(words[0], "")).split()


def save(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a file whose first line is its path; a module is then found by its package.

    In YAML steps are made few.
    """
    path = Path(text.splitlines()[0].removeprefix("# "))
    if path.suffix == ".yaml":
        path.write_text(re.sub(r"steps: \d+", "steps: 2", text), encoding="utf-8")
        return
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    package = importlib.import_module(".".join(path.parts[1:-1]))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(path.parent.resolve())])
    importlib.invalidate_caches()


def write_users_files(folder: Path) -> None:
    """What the pages take for granted: a table, images, class folders, public data, recipes."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    stream = np.random.default_rng(0)
    compounds = ("DMSO", "taxol", "nocodazole")
    rows = [
        (batch, plate, f"{'ABC'[row]}0{site % 2 + 1}", compound)
        for batch in ("B1", "B2")
        for plate in ("P1", "P2")
        for row, compound in enumerate(compounds)
        for site in range(10)
    ]
    table = pd.DataFrame(rows, columns=["Batch", "Plate", "Well", "Perturbation"])
    table = table.add_prefix("Metadata_")
    table.insert(0, "Path", [f"{row:03d}.png" for row in range(len(table))])
    (folder / "images").mkdir()
    for name, compound in zip(table["Path"], table["Metadata_Perturbation"], strict=True):
        pixels = stream.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        corner = 2 + 8 * compounds.index(compound)
        pixels[corner : corner + 8, corner : corner + 8] += 120
        Image.fromarray(pixels).save(folder / "images" / name)
    table.to_csv(folder / "cells.csv", index=False)
    new = table.iloc[::5].assign(Metadata_Batch="B9")
    new.to_csv(folder / "new.csv", index=False)
    for row, path in enumerate(table["Path"][:8]):
        place = folder / "folders" / f"hospital-{row % 2}" / f"class-{row // 4}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "images" / path, place)
    for row, path in enumerate(table["Path"][:8]):
        place = folder / "tissue" / f"class-{row // 4}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "images" / path, place)
    hospitals = pd.DataFrame({"File": table["Path"][:8], "Hospital": [*"AB"] * 4})
    hospitals.to_csv(folder / "hospitals.csv", index=False)
    write_fields(folder, table, stream)
    (folder / "complexes.tsv").write_text("poisons of microtubules\ttaxol nocodazole\n")
    wells = table.drop(columns="Path")
    for number, name in enumerate(["Cells_Area", "Nuclei_Area", "Nuclei_Texture"]):
        follows = wells["Metadata_Perturbation"].map(compounds.index)
        wells[name] = stream.normal(size=len(wells)) + number * follows
    wells.to_parquet(folder / "wells.parquet")
    np.save(folder / "crops.npy", stream.integers(0, 255, (len(new), 24, 24, 3), dtype=np.uint8))
    new.to_csv(folder / "crops.csv", index=False)
    write_stacks(folder, table, stream)
    write_mnist(folder / "mnist", stream)
    write_public_trees(folder, stream)
    write_pooled(folder, stream)
    (folder / "downloads").mkdir()
    np.savez(
        folder / "downloads" / "cells.npz",
        image=stream.integers(0, 255, (12, 2, 32, 32), dtype=np.uint8),
        compound=np.array([*compounds] * 4),
        plate=np.array(["01", "02"] * 6),
    )


def write_stacks(folder: Path, table: pd.DataFrame, stream: np.random.Generator) -> None:
    """stacks.csv: OME-TIFF files of several planes; mixed.csv: pictures of two sizes."""
    for name in ("stacks", "mixed"):
        (folder / name).mkdir()
    for row in range(8):
        planes = stream.integers(0, 4000, (3, 2, 24, 24), dtype=np.uint16)
        file = folder / "stacks" / f"{row}.tif"
        tifffile.imwrite(file, planes, ome=True, metadata={"axes": "ZCYX"})
        pixels = stream.integers(1, 255, (32 + row % 2, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "mixed" / f"{row}.png")
    for name, suffix in (("stacks", "tif"), ("mixed", "png")):
        named = table.iloc[:16:2].assign(Path=[f"{row}.{suffix}" for row in range(8)])
        named.to_csv(folder / f"{name}.csv", index=False)


def write_fields(folder: Path, table: pd.DataFrame, stream: np.random.Generator) -> None:
    """Fields of two channels, a file each, as CellProfiler lists them: by image and by cell."""
    (folder / "sites").mkdir()
    sites = table.iloc[::20].drop(columns="Path")
    sites["ImageNumber"] = range(1, len(sites) + 1)
    for channel in ("OrigDNA", "OrigER"):
        names = [f"{site}-{channel}.tif" for site in range(len(sites))]
        for name in names:
            pixels = stream.integers(0, 4096, (48, 64), dtype=np.uint16)
            Image.fromarray(pixels).save(folder / "sites" / name)
        sites = sites.assign(**{f"FileName_{channel}": names, f"PathName_{channel}": "."})
    sites.to_csv(folder / "Image.csv", index=False)
    cells = sites.loc[sites.index.repeat(5)]
    cells["Location_Center_X"] = stream.uniform(0, 63, len(cells))
    cells["Location_Center_Y"] = stream.uniform(0, 47, len(cells))
    cells.to_csv(folder / "Cells.csv", index=False)
    of_cells = ["ImageNumber", "Location_Center_X", "Location_Center_Y"]
    cells[of_cells].to_csv(folder / "Nuclei.csv", index=False)


def write_public_trees(folder: Path, stream: np.random.Generator) -> None:
    """PACS, VLCS, Camelyon17 and RxRx1 in their published layouts, a few pictures each.

    GRID and LINCS-SC with an index, BBBC021 as its three tables.
    """

    def save(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(file)

    for root, domains, classes in (
        ("PACS", pacs.DOMAINS, pacs.CLASSES),
        ("VLCS", vlcs.DOMAINS, vlcs.CLASSES),
    ):
        for domain in domains:
            for name in classes:
                for number in range(2):
                    save(folder / root / domain / name / f"{number}.jpg")
    patches, fields = [], []
    for center in range(5):
        for x in range(4):
            patch = {"patient": "004", "node": center, "x_coord": x, "y_coord": 0, "tumor": x % 2,
                     "slide": center, "center": center, "split": x // 2}  # fmt: skip
            patches.append(patch)
            named = f"patient_004_node_{center}"
            file = f"patches/{named}/patch_{named}_x_{x}_y_0.png"
            save(folder / "camelyon17_v1.0" / file)
    pd.DataFrame(patches).to_csv(folder / "camelyon17_v1.0" / "metadata.csv")
    for number, dataset in enumerate(("train", "train", "val", "test")):
        for site in (1, 2):
            field = {"cell_type": "HUVEC", "dataset": dataset, "experiment": f"HUVEC-0{number}",
                     "plate": 1, "well": "B02", "site": site, "sirna_id": number % 2}  # fmt: skip
            fields.append(field)
            save(folder / "rxrx1_v1.0" / f"images/HUVEC-0{number}/Plate1/B02_s{site}.png")
    pd.DataFrame(fields).to_csv(folder / "rxrx1_v1.0" / "metadata.csv", index=False)
    for root, label, channels in (("GRID", "Disease", 3), ("LINCS", "Perturbation", 5)):
        rows = [{"Path": f"{row}.tif", label: "AB"[row % 2], "Patient": "AB"[row % 2],
                 "Series": row // 4, "Plate": 1, "Section": row % 2, "PlateMap": "M",
                 "Well": f"A{row % 2}"} for row in range(8)]  # fmt: skip
        (folder / root).mkdir()
        index = pd.DataFrame(rows).add_prefix("Metadata_")
        index.to_csv(folder / root / "index.csv", index=False)
        for path in index["Metadata_Path"]:
            pixels = stream.integers(0, 4096, (channels, 24, 24), dtype=np.uint16)
            tifffile.imwrite(folder / root / path, pixels, photometric="minisblack")
    wells = pd.DataFrame([(f"Week{week}_1", f"B0{well}") for week in (1, 2) for well in (2, 3)])
    treated = [["DMSO", "0"], ["taxol", "0.3"]]
    tables = {
        bbbc021.PROFILES: wells.set_axis(list(bbbc021.OF_PROFILES), axis=1).assign(
            Cells_AreaShape_Area=range(4)
        ),
        bbbc021.IMAGES: wells.join(pd.DataFrame(treated * 2), rsuffix="_").set_axis(
            list(bbbc021.OF_IMAGES), axis=1
        ),
        bbbc021.MECHANISMS: pd.DataFrame(
            [[*one, one[0]] for one in treated], columns=list(bbbc021.OF_MECHANISMS)
        ),
    }
    (folder / "BBBC021").mkdir()
    for name, table in tables.items():
        table.to_csv(folder / "BBBC021" / name, index=False)


def write_pooled(folder: Path, stream: np.random.Generator) -> None:
    """Crops of a pooled screen with their table, and Funk22's LMDBs where lmdb is installed."""
    cells = pd.DataFrame(
        {
            "Metadata_Gene": ["nontargeting", "TP53"] * 50,
            "Metadata_sgRNA": ["AC", "GT"] * 50,
            "Metadata_Plate": ["P1"] * 50 + ["P2"] * 50,
            "Metadata_Well": ["A1", "A1", "A2", "A2"] * 25,
        }
    )
    (folder / "pooled").mkdir()
    for row in range(8):
        pixels = stream.integers(0, 4096, (4, 24, 24), dtype=np.uint16)
        np.save(folder / "pooled" / f"{row}.npy", pixels)
    crops = [f"{row}.npy" for row in range(8)]
    cells[:8].assign(Crop=crops).to_csv(folder / "pooled.csv", index=False)
    if not LMDB:
        return
    keys = cells.set_axis(["gene_symbol_0", "sgRNA_0", "plate", "well"], axis=1).assign(
        tile="1", UID=[f"{row:08d}" for row in range(100)], index="5", cell_i=90.5, cell_j=90.5,
        plate=["20200202_6W-LaC024A", "20200202_6W-LaC024D"] * 50,
    )  # fmt: skip
    named = ["UID", "plate", "well", "tile", "gene_symbol_0", "index"]
    lmdb = importlib.import_module("lmdb")
    for name, rows in (("ntc", keys[::2]), ("perturbed", keys[1::2])):
        archive = folder / "funk22_lmdb_shuffled" / name
        archive.mkdir(parents=True)
        rows.to_csv(archive / "key.csv", index=False)
        with (
            lmdb.open(str(archive), map_size=2**26) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key in rows[named].agg("_".join, axis=1):
                crop = stream.integers(0, 4096, (4, 100, 100), dtype=np.uint16)
                transaction.put(key.encode(), crop.astype("<u2").tobytes())


def write_mnist(folder: Path, stream: np.random.Generator) -> None:
    """Four idx files in the format of MNIST, with few digits."""
    folder.mkdir()
    for name, count in (("train", 100), ("t10k", 20)):
        pixels = stream.integers(0, 255, (count, 28, 28), dtype=np.uint8).tobytes()
        digits = (np.arange(count) % 10).astype(np.uint8).tobytes()
        header = struct.pack(">4I", 2051, count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + digits)


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the user's files lie and the README has been followed."""
    folder = tmp_path_factory.mktemp("user")
    write_users_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert follow(README, patch)
    return folder


@pytest.fixture
def forgotten_modules() -> Iterator[None]:
    """Modules imported by the test are forgotten after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("deconfound."):
            parent, _, child = name.rpartition(".")
            del sys.modules[name]
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)


def test_readme_ends_in_a_report(after_readme: Path) -> None:
    assert "<html" in (after_readme / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no public data in {REAL}")
def test_public_data_are_read_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the page on the real files; then the README's five steps on HEp-2."""
    (tmp_path / "data").symlink_to(REAL)
    monkeypatch.chdir(tmp_path)
    follow(PUBLIC_DATA, monkeypatch)
    rows = {"pacs": 9991, "vlcs": 187, "hep2/grid": 4200, "periscope": 185, "bbbc021": 632}
    assert {name: len(open_screen(Path(name))) for name in rows} == rows
    (tmp_path / "screen-of-hep2").mkdir()
    monkeypatch.chdir(tmp_path / "screen-of-hep2")
    for name in ("cells.csv", "images"):
        Path(name).symlink_to(tmp_path / name)
    five = [step.text for step in steps_of(README) if step.kind == "command"][1:6]
    assert [words.split()[1] for words in five] == ["ingest", "fit", "embed", "measure", "report"]
    for words in five:
        cli.main(cheaply(shlex.split(words)[1:]))
    assert len(open_screen(Path("screen"))) == 4200
    assert "<html" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", sorted({*PAGES} - {PUBLIC_DATA, ECOSYSTEM}), ids=lambda page: page.stem
)
@pytest.mark.usefixtures("forgotten_modules")
def test_page_can_be_followed(
    page: Path, after_readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem], reason="needs an extra")
    steps = steps_of(page)
    if not steps:
        pytest.skip("nothing to do on this page")
    folder = tmp_path / "user"
    shutil.copytree(after_readme, folder)
    monkeypatch.chdir(folder)
    commands = [shlex.split(step.text) for step in steps if step.kind == "command"]
    written = [words[words.index("--out") + 1] for words in commands if "--out" in words]
    for made in map(Path, written):
        if made.is_dir():
            shutil.rmtree(made)
        made.unlink(missing_ok=True)
    follow(page, monkeypatch)
    assert all(Path(made).exists() for made in written)


def test_the_readme_is_short_and_every_verb_has_a_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120
    assert {page.stem for page in PAGES} >= {*FORMS, *VIEWS}


@pytest.mark.parametrize("page", FORMS)
def test_every_form_of_a_verb_has_a_page_that_runs_it(page: str) -> None:
    wanted = [word for word in FORMS[page].usage.split() if word.islower() or word[:2] == "--"]
    wanted = [word for word in wanted if word not in ("demo", "metrics", "methods", "--hold-out")]
    steps = steps_of(ROOT / "docs" / f"{page}.md")
    commands = [step.text.split()[1:] for step in steps if step.kind == "command"]
    assert any(set(wanted) <= set(words) for words in commands), wanted


@pytest.mark.parametrize("page", [README, *PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [title.lower().replace(" ", "-") for title in titles], link


class _Seen(Exception):
    """Carries the arguments of a verb out of it."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model


def fields_of(page: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, FieldInfo]:
    """The fields behind every flag of a form, whatever name follows it; of several the first."""

    def show(model: type[BaseModel], *_: object) -> None:
        raise _Seen(model)

    for module in (comparing, lists, runs, scoring, screens):
        monkeypatch.setattr(module, "parse", show, raising=False)
    module_name, _, function = FORMS[page].call.partition(":")
    call = getattr(importlib.import_module(f"deconfound.cli.{module_name}"), function)
    found: dict[str, FieldInfo] = {}
    for name in NAMES.get(page, ("",)):
        with pytest.raises(_Seen) as seen:
            call([name] if name else [])
        found = _flat(seen.value.model) | found
    return found


def _flat(model: type[BaseModel]) -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Options):
            found |= _flat(kind)
        else:
            found[flag_of(name, field)] = field
    return found


def test_every_flag_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"--help", "--version", "--debug", "--config", "--retrieval"} | {*PRINTED}
    for form in FORMS:
        for flag, field in fields_of(form, monkeypatch).items():
            known |= {flag, flag.replace("--", "--no-", 1)} if field.annotation is bool else {flag}
    for page in [README, *PAGES, *NOTEBOOKS]:
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"^    (\w+): ", text, re.MULTILINE)  # options of an example
        own = {"--" + name.replace("_", "-") for name in shown}
        text = re.sub(
            r"(srun|torchrun) .*? -m|#SBATCH .*|benchmarks/.*|(pip|docker) .*", "", text
        )  # not ours
        assert set(FLAG.findall(text)) <= known | own, page.name


@pytest.mark.parametrize("page", [*FORMS, *VIEWS])
def test_tables_of_options_tell_the_defaults(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--[a-z0-9-]+)` \| (.+?) \|", text, re.MULTILINE)
    fields = fields_of("compare" if page in VIEWS else page, monkeypatch)
    assert rows or list(fields) in (["--path"], [])  # check takes a directory and no options
    for flag, said in rows:
        field = fields[flag]
        if field.is_required():
            assert said == "required", flag
        elif field.default is False:
            assert said == "off", flag
        elif field.default is None or field.default == ():
            assert not re.fullmatch("`[^`]+`", said), flag
        elif isinstance(field.default, tuple):
            assert said == f"`{' '.join(map(str, field.default))}`", flag
        else:
            assert said == f"`{field.default}`", flag


def test_messages_are_those_of_the_code() -> None:
    spoken = [
        node.value
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for page in PAGES:
        _, found, text = page.read_text(encoding="utf-8").partition("| message | remedy |\n")
        for row in text.splitlines()[1:] if found else []:
            message = row.split(" | ")[0].removeprefix("| ").strip("` ")
            for piece in message.split("…"):
                assert any(piece.strip() in text for text in spoken), f"{page.name}: {piece}"


def test_the_page_of_methods_tells_the_defaults_of_each() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert [title for title in sections if title in methods.names()] == methods.names()
    options = {name: methods.load(name).Options for name in methods.names()}
    options |= {name: post_hoc.load(name).Options for name in post_hoc.names()}
    for name, model in options.items():
        fields = model.model_fields
        for option, said in re.findall(r"^\| `--([a-z0-9-]+)` \| (.+?) \|", sections[name], re.M):
            field = option.replace("-", "_")
            if field.startswith("no_"):
                assert said == ("off" if fields[field[3:]].default else "on"), f"{name}: --{option}"
                continue
            default = fields[field].default
            if default is None:
                assert not re.fullmatch("`[^`]+`", said), f"{name}: --{option}"
            elif default is False:
                assert said == "off", f"{name}: --{option}"
            elif isinstance(default, tuple):
                assert said == f"`{' '.join(map(str, default))}`", f"{name}: --{option}"
            else:
                assert said == f"`{default}`", f"{name}: --{option}"


@pytest.mark.parametrize("page", [README, *PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_commands_in_a_line_of_text_name_a_verb(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert set(re.findall(r"`deconfound ([a-z][\w-]*)", text)) <= VERBS.keys()


def test_which_command_leads_to_every_page_of_a_verb() -> None:
    text = (ROOT / "docs" / "which-command.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\[`deconfound ([a-z][\w-]*)", text))
    assert named == VERBS.keys()
    assert {*FORMS, *VIEWS} - {"demo"} <= set(re.findall(r"\]\(([\w-]+)\.md", text))


def test_the_glossary_holds_the_vocabulary_of_the_architecture() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    vocabulary = architecture.partition("## Vocabulary\n")[2].partition("\n#")[0]
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words, explained = (
        set(re.findall(r"^\| (\w+)", text, re.MULTILINE)) for text in (vocabulary, glossary)
    )
    assert words <= explained


def test_every_method_is_in_the_readme_and_in_the_table_of_its_page() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    table = page.partition("| name | what it does | paper |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == methods.names()
    section = README.read_text(encoding="utf-8").partition("## Methods\n")[2].partition("\n#")[0]
    assert re.findall(r"`(\w+)`", section) == methods.names()


def test_architecture_lists_the_files_of_a_run(after_readme: Path) -> None:
    section = _section("Run directory")
    named = [
        name.replace("STAGE", "*")
        for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    ]
    files = [file.name for file in (after_readme / "runs" / "scbd").iterdir()]
    assert [file for file in files if not any(fnmatch(file, name) for name in named)] == []
    named.remove("resume.pt")  # gone when the run is finished
    named.remove("dial.json")  # of a run with --alpha auto
    named.remove("pretrained.json")  # of a run with --weights
    named.remove("tracker.json")  # of a run with --tracker
    assert [name for name in named if not any(fnmatch(file, name) for file in files)] == []


def test_architecture_lists_the_columns_of_scores() -> None:
    listed = _section("Scores file").partition(": ")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", listed) == COLUMNS


def _section(title: str) -> str:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return text.partition(f"### {title}\n")[2].partition("\n#")[0]
