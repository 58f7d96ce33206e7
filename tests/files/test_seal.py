"""One bit changed anywhere in embeddings or scores is refused; what other programs write is not."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deconfound import cli
from deconfound.data.readers.embedded import INDEX
from deconfound.embeddings.aggregate import read_aggregate
from deconfound.embeddings.correct import correct
from deconfound.embeddings.embed import embed_shards
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.embeddings.shards import open_index
from deconfound.errors import InputWarning, UserError
from deconfound.evaluation.measure import measure
from deconfound.evaluation.scores import COLUMNS, read_scores, write_scores
from deconfound.experiments.running.messages import (
    predictions_file,
    read_predictions,
    result_file,
    stored_result,
)
from deconfound.files import seal
from deconfound.reports.report import report
from deconfound.verification import check

FLIPS = 64
Runs = Callable[[str], Path]


def embeddings(rows: int = 60) -> Embeddings:
    """Rows of two plates and three labels, with every type of column that tables have."""
    stream = np.random.default_rng(0)
    table = pd.DataFrame({
        "drug": [f"d{row % 3}" for row in range(rows)], "plate": ["p", "q"] * (rows // 2),
        "site": np.arange(rows), "dose": stream.random(rows), "live": stream.random(rows) < 0.5,
        "count": pd.array([None, *range(1, rows)], dtype="Int64"),
        "note": pd.array([None, *["é"] * (rows - 1)], dtype="string"),
        PART: ["train", "test"] * (rows // 2), PREDICTED: pd.array([None] * rows, dtype="string"),
    })  # fmt: skip
    about = {
        "method": "erm", "fold": "iid", "seed": 0, "screen": "s", "run": "r",
        "labels": ["d0", "d1", "d2"], "environments": ["p", "q"], "config": {"method": "erm"},
        "roles": {"label": "drug", "environment": ["plate"]},
    }  # fmt: skip
    block = stream.standard_normal((rows, 4)).astype(np.float32)
    return Embeddings(table, {"content": block, "style": block[:, :2] * 2}, about)


def scores() -> list[dict[str, Any]]:
    about = {"method": "erm", "fold": "iid", "seed": 0, "representation": "content", "n": 9}
    return [
        about | {"metric": m, "part": "test", "value": v, "note": "", "config": "{}"}
        for m, v in (("accuracy", 0.25), ("macro_f1", 0.5))
    ]


def an_h5ad(folder: Path) -> Path:
    write_embeddings(folder / "e.h5ad", embeddings())
    return folder / "e.h5ad"


def a_scores_file(folder: Path) -> Path:
    write_scores(folder / "scores.parquet", scores)
    return folder / "scores.parquet"


def flipped(file: Path, places: list[int]) -> Iterator[int]:
    """Change one bit at each of `places`, numbered over the file, one after the other."""
    whole = file.read_bytes()
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        file.write_bytes(content)
        yield place
    file.write_bytes(whole)


def places_in(file: Path, count: int = FLIPS) -> list[int]:
    """Random bits."""
    stream = np.random.default_rng(1)
    return [int(place) for place in stream.integers(0, 8 * file.stat().st_size, count)]


def places(file: Path) -> list[int]:
    """Random bits, and bits of the first bytes, of the seal and of the last bytes."""
    size = file.stat().st_size
    found = places_in(file)
    at = file.read_bytes().index(seal.HEAD)
    for start in (0, at, at + len(seal.HEAD), at + len(seal.BLANK) - 8, 512, size - 8):
        found += [8 * (start + byte) + byte % 8 for byte in range(8) if start + byte < size]
    return found


@pytest.mark.parametrize("make", [an_h5ad, a_scores_file])
def test_one_bit_changed_anywhere_is_named_by_readers_and_by_check(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    file = make(tmp_path)
    readers: list[Callable[[Path], Any]] = [read_scores, lambda one: report([one], page)]
    if make is an_h5ad:
        readers = [read_embeddings, lambda one: measure([one], quiet=True)]
    readers.append(check)
    page = tmp_path / "page.html"
    for place in flipped(file, places(file)):
        for one in readers:
            with pytest.raises(UserError, match=file.name) as stop:
                one(file)
            assert "\n" not in str(stop.value), place
    assert str(check(file)).startswith(f"{file}: whole; ")


def test_every_bit_of_the_header_of_embeddings_is_under_the_seal(tmp_path: Path) -> None:
    """All bits of the user block and of the superblock of HDF5."""
    file = an_h5ad(tmp_path)
    for _ in flipped(file, list(range(0, 8 * 620, 17))):
        with pytest.raises(seal.Damaged):
            seal.verify(file)


def test_a_sector_that_is_lost_is_not_read_as_data(tmp_path: Path) -> None:
    for file in (an_h5ad(tmp_path), a_scores_file(tmp_path)):
        whole = file.read_bytes()
        for start in range(512, len(whole) - 512, 512):
            lost = whole[:start] + bytes(512) + whole[start + 512 :]
            if lost != whole:
                file.write_bytes(lost)
                with pytest.raises(UserError, match=file.name):
                    check(file)


@pytest.mark.parametrize("name", [INDEX, "part-00000.parquet"])
def test_one_bit_changed_in_a_directory_is_refused(
    name: str, finished_runs: Runs, screen: Any, tmp_path: Path
) -> None:
    out = tmp_path / "e"
    embed_shards(finished_runs("erm"), screen.path, out, device="cpu", threads=1, quiet=True)
    file = out / name
    for place in flipped(file, places_in(file, 32)):
        for reader in (read_embeddings, check):
            with pytest.raises(UserError, match=name):
                reader(out)
        assert place is not None
    content = json.loads((out / INDEX).read_text())
    (out / INDEX).write_text(json.dumps({k: v for k, v in content.items() if k != "seal"}))
    with pytest.raises(UserError, match="lost its checksum"):
        open_index(out)


def test_verbs_refuse_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, scored = an_h5ad(tmp_path), a_scores_file(tmp_path)
    genes = tmp_path / "genes.parquet"
    words = ["aggregate", str(file), "--gene", "drug", "--control", "drug=d0", "--quiet"]
    cli.main([*words, "--out", str(genes)])
    read_aggregate(genes)
    for one in (file, scored, genes):
        middle = 8 * (one.stat().st_size // 2)
        next(flipped(one, [middle]))
    calls: list[tuple[Path, Callable[[], Any]]] = [
        (file, lambda: measure([file], tmp_path / "s.parquet", quiet=True)),
        (file, lambda: correct("standardise", file, tmp_path / "c.h5ad")),
        (file, lambda: report([file], tmp_path / "r.html")),
        (scored, lambda: report([scored], tmp_path / "r.html")),
        (genes, lambda: read_aggregate(genes)),
        (file, lambda: cli.main([*words, "--out", str(tmp_path / "again.parquet")])),
        (genes, lambda: cli.main(["ingest", str(genes), "--profiles", "--label", "Metadata_Gene",
                                  "--environment", "Metadata_Gene",
                                  "--out", str(tmp_path / "p"), "--quiet"])),
        (file, lambda: cli.main(["check", str(file)])),
    ]  # fmt: skip
    for named, call in calls:
        with pytest.raises((UserError, SystemExit)) as stop:
            call()
        said = capsys.readouterr().err or str(stop.value)
        assert f"{named}: damaged" in said
        assert len(said.splitlines()) == 1
    with pytest.raises(UserError, match=r"e\.h5ad: damaged.*and 2 more of"):
        check(tmp_path)


def test_a_result_that_is_damaged_counts_as_missing(tmp_path: Path) -> None:
    file = result_file(tmp_path, "run")
    seal.write_json(file, {"scores": scores(), "validation_loss": 0.5})
    assert stored_result(tmp_path, "run") == {"scores": scores(), "validation_loss": 0.5}
    for _ in flipped(file, places_in(file)):
        assert stored_result(tmp_path, "run") is None
    file.write_text(json.dumps({"scores": [], "validation_loss": None}))  # an earlier build's
    assert stored_result(tmp_path, "run") == {"scores": [], "validation_loss": None}


def test_predictions_that_are_damaged_are_no_other_predictions(tmp_path: Path) -> None:
    file = predictions_file(tmp_path, "run")
    file.parent.mkdir()
    arrays = {"row": np.arange(9), "correct": np.ones(9, bool), "seen": np.ones(9, bool)}
    np.savez(file, part=np.array(["test"] * 9), **arrays)
    whole = read_predictions(tmp_path, "run")
    refused = 0
    for _ in flipped(file, places_in(file, 256)):
        try:
            found = read_predictions(tmp_path, "run")
        except UserError as error:
            assert f"{file}: missing or damaged" in str(error)
            refused += 1
        else:  # a bit that nothing depends on, such as a date
            assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert refused > 64


def rewritten(file: Path, change: Callable[[anndata.AnnData], None]) -> None:
    """Open a file as scanpy does, change it, and write it to its old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = anndata.read_h5ad(file)
        change(data)
        data.write_h5ad(file)


def test_what_anndata_wrote_anew_reads_as_before_and_says_nothing(tmp_path: Path) -> None:
    file = an_h5ad(tmp_path)
    before = read_embeddings(file)
    rewritten(file, lambda data: data.uns.update(note="looked at"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        after = read_embeddings(file)
    pd.testing.assert_frame_equal(after.table, before.table)
    assert after.about == before.about
    for name, values in before.representations.items():
        np.testing.assert_array_equal(after.representations[name], values)
    assert "without a checksum" in check(file)


def of_one_value(data: anndata.AnnData) -> None:
    data.obsm["X_content"][3, 2] += 1


def of_a_label(data: anndata.AnnData) -> None:
    data.obs["drug"] = data.obs["drug"].cat.rename_categories({"d0": "DMSO"})


def of_a_number(data: anndata.AnnData) -> None:
    data.obs["dose"] = data.obs["dose"] * 2


def of_the_run(data: anndata.AnnData) -> None:
    about = json.loads(data.uns["deconfound"]["json"]) | {"seed": 7}
    data.uns["deconfound"]["json"] = json.dumps(about)


@pytest.mark.parametrize("change", [of_one_value, of_a_label, of_a_number, of_the_run])
def test_a_change_made_with_anndata_is_read_with_a_warning(
    change: Callable[[anndata.AnnData], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = an_h5ad(tmp_path)
    rewritten(file, change)
    with pytest.warns(InputWarning, match=r"e\.h5ad: was changed by another program"):
        found = read_embeddings(file)
    assert len(found.table) == 60
    assert "changed by another program" in check(file)
    cli.main(["measure", str(file), "--out", str(tmp_path / "s.parquet"), "--quiet"])
    said = [line for line in capsys.readouterr().err.splitlines() if "another program" in line]
    assert len(said) == 1
    assert said[0].startswith(f"deconfound: warning: {file}: was changed")
    assert len(read_scores(tmp_path / "s.parquet")) > 0


def test_a_change_made_in_place_is_refused(tmp_path: Path) -> None:
    file = an_h5ad(tmp_path)
    with h5py.File(file, "r+") as opened:
        opened["obsm/X_content"][0, 0] = 7
    with pytest.raises(seal.Damaged):
        read_embeddings(file)


def test_files_without_a_seal_are_read(tmp_path: Path) -> None:
    """Of earlier releases and of other programs, such as pandas."""
    table = pd.DataFrame(scores(), columns=COLUMNS)
    table.to_parquet(tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(read_scores(tmp_path / "s.parquet"), table)
    assert "without a checksum" in check(tmp_path / "s.parquet")
    file = a_scores_file(tmp_path)
    assert seal.verify(file)
    pd.read_parquet(file).assign(value=0.5).to_parquet(file)
    assert not seal.verify(file)
    assert set(read_scores(file)["value"]) == {0.5}


def test_other_readers_see_a_plain_file(tmp_path: Path) -> None:
    file = a_scores_file(tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(file), pd.DataFrame(scores(), columns=COLUMNS))
    assert pq.ParquetFile(file).metadata.num_rows == 2
    with h5py.File(an_h5ad(tmp_path)) as opened:
        assert opened.userblock_size == seal.USER_BLOCK
        assert set(opened) >= {"obs", "obsm", "uns", "var"}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for make in (an_h5ad, a_scores_file):
        one = make(tmp_path).read_bytes()
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        assert make(tmp_path).read_bytes() == one


def test_what_was_not_written_by_deconfound_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "e.h5ad"
    with h5py.File(file, "w", userblock_size=512) as opened:
        opened["x"] = 1
    assert not seal.verify(file)
    file.write_bytes(b"")
    assert not seal.verify(file)
    with pytest.raises(UserError, match="not a readable"):
        read_embeddings(file)
