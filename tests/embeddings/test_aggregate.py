"""Cells to guides to genes against pandas, and known relations of what comes out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound import cli
from deconfound.embeddings.aggregate import AggregateOptions, aggregate, read_aggregate
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.embeddings.group_means import GroupMeans
from deconfound.errors import InputWarning, UserError
from deconfound.evaluation.measure import measure
from deconfound.evaluation.relations import relations
from deconfound.evaluation.scores import COLUMNS

GENES = [f"G{number}" for number in range(24)]
ROLES = {"label": "Metadata_Gene", "environment": ["Metadata_Plate"], "levels": [], "well": None}
COMPLEXES = "".join(
    f"complex {k}\t{' '.join(GENES[4 * k : 4 * k + 4])}\n" for k in range(len(GENES) // 4)
)


def screened(seed: int = 0, signal: float = 1.0, shift: float = 3.0, **columns: Any) -> Embeddings:
    """Complexes of four genes, two guides a gene, controls, three plates that move the cells.

    Guides have different numbers of cells. The cells of plate P2 are held out.
    """
    stream = np.random.default_rng(seed)
    guides = [(gene, f"{gene}.{k}") for gene in GENES for k in range(2)]
    guides += [("nontargeting", f"N{k}") for k in range(10)]
    cells = [guide for number, guide in enumerate(guides) for _ in range(10 + number % 5)]
    stream.shuffle(cells)
    table = pd.DataFrame(cells, columns=["Metadata_Gene", "Metadata_sgRNA"])
    plate = stream.integers(0, 3, len(table))
    table["Metadata_Plate"] = [f"P{code}" for code in plate]
    of_complex = {gene: number // 4 for number, gene in enumerate(GENES)}
    centres = np.vstack([np.random.default_rng(7).normal(size=(6, 8)), np.zeros(8)])
    member = table["Metadata_Gene"].map(of_complex).fillna(6).astype(int).to_numpy()
    gain = np.array([1.0, 2.0, 0.5])[plate][:, None]
    values = (signal * centres[member] + stream.normal(size=(len(table), 8))) * gain
    values = (values + shift * np.arange(8) * plate[:, None]).astype(np.float32)
    table[PART] = np.where(plate == 2, "test", np.where(np.arange(len(table)) % 9, "train", "val"))
    table[PREDICTED] = pd.NA
    table = table.assign(**columns)
    about = {
        "method": "scbd", "fold": "Metadata_Plate=P2", "seed": 3, "screen": "s", "roles": ROLES,
        "selection": "loss", "labels": GENES, "config": {"method": "scbd", "data": {}},
    }  # fmt: skip
    blocks = {"content": values, "representation": values[:, :5]}
    return Embeddings(table, blocks, about)


def saved(folder: Path, embeddings: Embeddings, name: str = "cells.h5ad") -> Path:
    write_embeddings(folder / name, embeddings)
    return folder / name


def frame_of(embeddings: Embeddings) -> pd.DataFrame:
    values = pd.DataFrame(embeddings.representations["content"].astype(float))
    return pd.concat([embeddings.table, values], axis=1)


def test_the_papers_procedure_is_that_of_pandas(tmp_path: Path) -> None:
    """Mean per guide, then per gene, less the control, z-scored with ddof 1, control included."""
    cells = screened()
    made = aggregate(saved(tmp_path, cells), tmp_path / "genes.h5ad", quiet=True)
    features = list(range(8))
    guides = frame_of(cells).groupby(["Metadata_Gene", "Metadata_sgRNA"])[features].mean()
    genes = guides.groupby("Metadata_Gene").mean()
    moved = genes - genes.loc["nontargeting"]
    expected = (moved - moved.mean()) / moved.std()
    assert made.table["Metadata_Gene"].tolist() == expected.index.tolist()
    np.testing.assert_allclose(made.values, expected.to_numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.values.std(axis=0, ddof=1), 1, rtol=1e-5)
    assert made.control.tolist() == [gene == "nontargeting" for gene in expected.index]
    assert (made.table["Metadata_Guide_Count"] == [2] * 24 + [10]).all()
    assert made.table["Metadata_Object_Count"].sum() == len(cells.table)
    unequal = frame_of(cells).groupby("Metadata_Gene")[features].mean()
    assert not np.allclose(unequal, genes)  # guides weigh the same, not cells


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_means_do_not_depend_on_chunks_or_order(chunk: int) -> None:
    stream = np.random.default_rng(0)
    values, group = stream.normal(size=(300, 4)), stream.integers(-1, 5, 300)
    means = GroupMeans(6, 4)
    order = stream.permutation(300)
    for start in range(0, 300, chunk):
        rows = order[start : start + chunk]
        means.add(values[rows], group[rows])
    expected = [values[group == one].mean(axis=0) for one in range(5)]
    np.testing.assert_allclose(means.means()[:5], expected, rtol=1e-12)
    assert np.isnan(means.means()[5]).all()
    np.testing.assert_array_equal(means.rows, [*np.bincount(group[group >= 0]), 0])


def test_levels_parts_and_what_is_kept_apart(tmp_path: Path) -> None:
    cells = screened()
    file = saved(tmp_path, cells)
    options = AggregateOptions(level="guide", within=("Metadata_Plate",), parts=("train", "val"))
    made = aggregate(file, tmp_path / "guides.parquet", options, quiet=True)
    kept = frame_of(cells)[cells.part != "test"]
    keys = ["Metadata_Gene", "Metadata_sgRNA", "Metadata_Plate"]
    expected = kept.groupby(keys)[list(range(8))].mean().reset_index()
    pd.testing.assert_frame_equal(
        made.table[keys], expected[keys].astype("string"), check_column_type=False
    )
    raw = expected[list(range(8))]
    np.testing.assert_allclose(made.values, (raw - raw.mean()) / raw.std(), rtol=1e-5, atol=1e-5)
    assert made.part == "all"
    one = AggregateOptions(parts=("test",), representation="representation")
    found = aggregate(file, tmp_path / "test.h5ad", one, quiet=True)
    assert (found.part, found.values.shape) == ("test", (25, 5))


def test_parquet_and_anndata_hold_the_same(tmp_path: Path) -> None:
    file = saved(tmp_path, screened())
    for name in ("genes.h5ad", "genes.parquet"):
        aggregate(file, tmp_path / name, quiet=True)
    first, second = (read_aggregate(tmp_path / name) for name in ("genes.h5ad", "genes.parquet"))
    np.testing.assert_array_equal(first.values, second.values)
    assert first.table.astype(str).equals(second.table.astype(str))
    assert (first.representation, first.about) == (second.representation, second.about)
    opened = read_embeddings(tmp_path / "genes.h5ad")
    assert opened.about["aggregated"]["guide"] == "Metadata_sgRNA"
    plain = pd.read_parquet(tmp_path / "genes.parquet")
    assert list(plain.columns[:1]) == ["Metadata_Gene"]
    assert list(plain.columns[-8:]) == [f"content_{number}" for number in range(8)]


def test_other_tools_take_the_parquet_file(tmp_path: Path) -> None:
    copairs = pytest.importorskip("copairs.map", reason="needs the extra [retrieval]")
    aggregate(
        saved(tmp_path, screened(signal=3, shift=0)), tmp_path / "guides.parquet",
        AggregateOptions(level="guide"), quiet=True,
    )  # fmt: skip
    frame = pd.read_parquet(tmp_path / "guides.parquet")
    metadata = frame.filter(regex="^Metadata_")
    found = copairs.average_precision(
        metadata, frame.drop(columns=metadata.columns).to_numpy(), ["Metadata_Gene"], [], [],
        ["Metadata_Gene"], progress_bar=False,
    )  # fmt: skip
    assert found["average_precision"].mean() > 0.2


@pytest.mark.parametrize("align", ["centre-scale", "tvn"])
def test_alignment_is_learnt_on_controls_and_undoes_the_plates(align: str, tmp_path: Path) -> None:
    file = saved(tmp_path, screened(signal=1.5))
    options = AggregateOptions(align=align, within=("Metadata_Plate",))
    found = aggregate(file, tmp_path / "aligned.h5ad", options, quiet=True)
    plates, genes = (
        found.table["Metadata_Plate"].to_numpy(),
        found.table["Metadata_Gene"].to_numpy(),
    )
    controls = found.values[found.control]
    assert np.abs(controls).max() < 0.5  # controls lie at the origin of every plate
    between = [found.values[plates == one].mean(axis=0) for one in ("P0", "P1", "P2")]
    within = [found.values[genes == one].std(axis=0).mean() for one in GENES]
    assert np.std(between, axis=0).max() < 0.3
    assert np.mean(within) < found.values.std()
    assert not found.about.get("saw_held_out")


def test_alignment_does_not_read_held_out_cells(tmp_path: Path) -> None:
    """P2 alone is held out; the other plates' rows are as they were when its cells change."""
    cells, noisy = screened(), screened()
    hidden = cells.part == "test"
    stream = np.random.default_rng(1)
    noisy.representations["content"][hidden] = stream.normal(size=(hidden.sum(), 8)) * 50
    made = []
    for name, one in (("a", cells), ("b", noisy)):
        file = saved(tmp_path, one, f"{name}.h5ad")
        for on in ("train", "all"):
            options = AggregateOptions(align="tvn", within=("Metadata_Plate",), align_on=on)
            made.append(aggregate(file, tmp_path / f"{name}-{on}.h5ad", options, quiet=True))
    seen = (made[0].table["Metadata_Plate"] != "P2").to_numpy()
    np.testing.assert_array_equal(made[0].values[seen], made[2].values[seen])
    assert not np.allclose(made[0].values[~seen], made[2].values[~seen])
    assert not np.allclose(made[1].values[seen], made[3].values[seen])
    assert made[1].about["saw_held_out"] is True


def test_relations_are_scored_into_a_scores_file(tmp_path: Path) -> None:
    (tmp_path / "complexes.tsv").write_text(COMPLEXES + "elsewhere\tX1 X2\n")
    strong = saved(tmp_path, screened(signal=2, shift=0))
    none = saved(tmp_path, screened(signal=0, shift=0), "none.h5ad")
    for name, file in (("strong", strong), ("chance", none)):
        aggregate(file, tmp_path / f"{name}.parquet", quiet=True)
    files = [tmp_path / "strong.parquet", tmp_path / "chance.parquet"]
    out = tmp_path / "scores.parquet"
    with pytest.warns(InputWarning, match=r"2 of 26 members .* match no gene \(X1, X2\)"):
        scores = relations(files, out, complexes=tmp_path / "complexes.tsv")
    assert list(scores.columns) == COLUMNS
    pd.testing.assert_frame_equal(scores, pd.read_parquet(out))
    value = scores.groupby("metric", sort=False)["value"].apply(list)
    assert set(scores["representation"]) == {"content"}
    assert value["corum_prevalence"][0] == pytest.approx(36 / 276)
    assert value["corum_average_precision"][0] > 0.9
    assert value["corum_average_precision"][1] < 0.35
    assert value["corum_recall_5_95"][0] > 2 * value["corum_recall_5_95"][1]
    assert scores["note"].str.contains("complexes.tsv: 24 of 24 genes in 36 pairs").all()
    assert scores["note"].str.contains("match no gene (X1, X2)", regex=False).all()
    (tmp_path / "mouse.tsv").write_text(COMPLEXES.replace("G3", "g3"))
    with pytest.warns(InputWarning, match=r"genes of \S*/strong.parquet 1 match .* case .*\(g3\)"):
        mouse = relations(files[:1], None, complexes=tmp_path / "mouse.tsv")
    assert mouse["value"].tolist() == scores["value"].tolist()[: len(mouse)]
    assert mouse["note"].str.contains("1 match a gene spelt in other case").all()
    config = json.loads(scores["config"].iloc[0])
    assert config["aggregated"]["align"] == "none"
    with pytest.raises(UserError, match=r"no two of the 24 genes .* share a complex"):
        (tmp_path / "other.tsv").write_text("one\tA B\n")
        relations(files, tmp_path / "no.parquet", complexes=tmp_path / "other.tsv")
    with pytest.raises(UserError, match="not a file of complexes"):
        (tmp_path / "wrong.tsv").write_text("not at all")
        relations(files, tmp_path / "no.parquet", complexes=tmp_path / "wrong.tsv")
    with pytest.raises(UserError, match="was not written by `deconfound aggregate`"):
        relations([strong], tmp_path / "no.parquet", complexes=tmp_path / "complexes.tsv")
    aggregate(strong, tmp_path / "guides.h5ad", AggregateOptions(level="guide"), quiet=True)
    with pytest.raises(UserError, match="a gene has several rows"):
        relations([tmp_path / "guides.h5ad"], None, complexes=tmp_path / "complexes.tsv")
    with pytest.raises(UserError, match="holds genes, not cells"):
        measure([tmp_path / "guides.h5ad"], quiet=True)
    assert not list(tmp_path.glob("*no.parquet*"))


def first(column: str, value: Any) -> Embeddings:
    """The screen with another value in the first row."""
    cells = screened()
    cells.table.loc[0, column] = value
    return cells


def half_controls() -> Embeddings:
    """One cell of a gene is said to be a control."""
    cells = screened()
    gene = cells.table["Metadata_Gene"]
    control = gene == "nontargeting"
    control[gene.index[gene == "G3"][0]] = True
    cells.table["Metadata_Control_Type"] = np.where(control, "negcon", "treatment")
    return cells


def controls_of_one_plate() -> Embeddings:
    """All controls lie in P0."""
    cells = screened()
    cells.table.loc[cells.table["Metadata_Gene"] == "nontargeting", "Metadata_Plate"] = "P0"
    return cells


@pytest.mark.parametrize(
    ("cells", "options", "said"),
    [
        (first("Metadata_Gene", pd.NA), {}, r"row 0: guide '.*' has no gene \(1 such rows\)"),
        (first("Metadata_sgRNA", pd.NA), {}, r"row 0: gene '.*' has no guide"),
        (first("Metadata_Gene", "G0"), {}, r"guide '.*' is of gene 'G0' and of '.*'"),
        (screened(), {"control": "Metadata_Gene=none"}, "no controls, no row has Metadata_Gene = "),
        (screened(), {"control": "nontargeting"}, "--control nontargeting: expected COLUMN=VALUE"),
        (screened(Metadata_Control_Type="treatment"), {}, "has Metadata_Control_Type = negcon"),
        (half_controls(), {}, r"gene 'G3' is a control in 1 of its \d+ rows \(row \d+ first\)"),
        (screened(), {"gene": "Gene"}, "no column 'Gene'"),
        (screened(), {"representation": "contents"}, "did you mean 'content'"),
        (screened(), {"parts": ("tests",)}, "no row is of part 'tests'; did you mean 'test'"),
        (screened(**{PART: "new"}), {"align": "tvn"}, "no training rows .* add --align-on all"),
        (controls_of_one_plate(), {"align": "tvn"}, "0 controls in P1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    cells: Embeddings, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, cells)
    with pytest.raises(UserError, match=said) as error:
        aggregate(file, tmp_path / "out.h5ad", AggregateOptions(**options), quiet=True)
    assert "\n" not in str(error.value)
    assert [one.name for one in tmp_path.iterdir() if "out.h5ad" in one.name] in (
        [],
        [".out.h5ad.lock"],
    )


def test_features_that_are_not_finite_are_named_with_their_file(tmp_path: Path) -> None:
    cells = screened()
    cells.representations["content"][3, 2] = np.nan
    file = saved(tmp_path, cells)
    said = f"{file}: embedding row 3 holds NaN or infinity"
    with pytest.raises(UserError, match=said):
        aggregate(file, tmp_path / "out.h5ad", quiet=True)


def test_rows_with_neither_guide_nor_gene_are_left_out(tmp_path: Path) -> None:
    cells = screened()
    cells.table.loc[:4, ["Metadata_Gene", "Metadata_sgRNA"]] = pd.NA
    made = aggregate(saved(tmp_path, cells), tmp_path / "out.h5ad", quiet=True)
    assert made.table["Metadata_Object_Count"].sum() == len(cells.table) - 5


def test_the_label_stands_in_for_genes_and_guides_may_be_missing(tmp_path: Path) -> None:
    cells = screened()
    table = cells.table.rename(columns={"Metadata_Gene": "compound"})
    table = table.drop(columns="Metadata_sgRNA").replace("nontargeting", "DMSO")
    about = cells.about | {"roles": ROLES | {"label": "compound"}}
    file = saved(tmp_path, Embeddings(table, cells.representations, about))
    words = ["aggregate", str(file), "--out", str(tmp_path / "o.parquet")]
    cli.main([*words, "--control", "compound=DMSO", "--quiet"])
    made = read_aggregate(tmp_path / "o.parquet")
    assert "Metadata_Guide_Count" not in made.table
    means = frame_of(cells).groupby("Metadata_Gene")[list(range(8))].mean()
    expected = (means - means.mean()) / means.std()
    order = made.table["Metadata_Gene"].replace("DMSO", "nontargeting")
    np.testing.assert_allclose(made.values, expected.loc[order], rtol=1e-4, atol=1e-5)


def test_a_dimension_that_varies_by_rounding_alone_is_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = screened()
    noise = np.random.default_rng(0).random(len(cells.table)) > 0.5
    cells.representations["content"][:, 2] = 0.1
    cells.representations["content"][:, 3] = np.float32(1_000) + np.float32(6e-5) * noise
    out = tmp_path / "genes.h5ad"
    cli.main(["aggregate", str(saved(tmp_path, cells)), "--out", str(out), "--quiet"])
    note = "2 of 8 dimensions do not vary beyond rounding and are 0"
    assert f"deconfound: {out}: {note}\n" in capsys.readouterr().err
    found = read_aggregate(out)
    assert found.about["aggregated"]["notes"] == [note]
    assert (found.values[:, 2:4] == 0).all()
    varying = np.delete(found.values, [2, 3], axis=1)
    np.testing.assert_allclose(varying.std(axis=0, ddof=1), 1, rtol=1e-5)


def test_alignment_on_few_controls_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    cells = screened()
    few = (cells.table["Metadata_Gene"] == "nontargeting").to_numpy()
    few &= (cells.table.groupby(["Metadata_Gene", "Metadata_Plate"]).cumcount() < 3).to_numpy()
    cells.table["kind"] = np.where(few, "control", "drug")
    cells.table.loc[~few & (cells.table["Metadata_Gene"] == "nontargeting"), "Metadata_Gene"] = "G0"
    cells.table["Metadata_sgRNA"] = cells.table["Metadata_Gene"] + ".0"
    options = AggregateOptions(
        align="tvn", within=("Metadata_Plate",), control="kind=control", align_on="all"
    )
    wide = np.tile(cells.representations["content"], 2)
    wide[:, 8:] += np.random.default_rng(1).normal(size=(len(wide), 8)).astype(np.float32)
    found = aggregate(
        saved(tmp_path, Embeddings(cells.table, {"content": wide}, cells.about)),
        tmp_path / "genes.h5ad", options, quiet=True,
    )  # fmt: skip
    assert found.values.shape[1] == 8
    assert np.abs(found.values).max() < 50
    assert found.about["aggregated"]["notes"] == [
        "tvn: 8 of 16 principal components are kept: along the others the 9 rows learnt from do "
        "not vary beyond rounding"
    ]


def test_plates_that_repeat_in_series_are_kept_apart(tmp_path: Path) -> None:
    """Plates 1 and 2 of two series are four plates: a mean over both series would merge them."""
    cells = screened()
    table = cells.table.assign(
        Metadata_Series=np.where(np.arange(len(cells.table)) % 2, "S1", "S2"),
        Metadata_Well=np.where(np.arange(len(cells.table)) % 3, "A01", "A02"),
    )
    levels = ["Metadata_Series", "Metadata_Plate"]
    about = cells.about | {"roles": ROLES | {"environment": levels, "levels": levels}}
    file = saved(tmp_path, Embeddings(table, cells.representations, about))
    within = ("Metadata_Plate", "Metadata_Well")
    options = AggregateOptions(level="guide", within=within)
    made = aggregate(file, tmp_path / "wells.h5ad", options, quiet=True)
    keys = ["Metadata_Gene", "Metadata_sgRNA", "Metadata_Series", *within]
    assert len(made.table) == table.groupby(keys).ngroups > table.groupby(keys[:2]).ngroups * 6
    assert not made.table.duplicated(keys).any()
    assert made.about["aggregated"]["within"] == ["Metadata_Series", *within]
    assert made.about["aggregated"]["notes"] == [
        "kept apart by Metadata_Series too, in which what is kept apart repeats"
    ]
    assert made.about["roles"]["environment"] == ["Metadata_Series", *within]
    plates = table.assign(Metadata_Plate=table["Metadata_Series"] + table["Metadata_Plate"])
    unique = saved(tmp_path, Embeddings(plates, cells.representations, about), "unique.h5ad")
    found = aggregate(unique, tmp_path / "unique-wells.h5ad", options, quiet=True)
    assert found.about["aggregated"]["within"] == list(within)
    assert "notes" not in found.about["aggregated"]
    assert len(found.table) == len(made.table)
