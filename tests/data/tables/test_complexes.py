"""Files of complexes in each form, and those that are none."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from deconfound.data.tables.complexes import matched, pairs_among, read_complexes
from deconfound.errors import UserError

EXPECTED = {frozenset("AB"), frozenset("BCD")}
DOWNLOAD = (
    "ComplexID\tComplexName\tOrganism\tsubunits(Gene name)\tPubMed ID\n"
    "1\tone\tHuman\tA; B;\t1\n"
    '2\ta "quoted\tMouse\tA;C\t2\n'
    "3\tthree\tHuman\tB;C;D;N/A;None\t3\n"
)
NEWER = DOWNLOAD.replace(
    "ComplexID\tComplexName\tOrganism\tsubunits(Gene name)",
    "complex_id\tcomplex_name\torganism\tsubunits_gene_name",
)
FORMS = {
    "named.tsv": "one\tA B\nthree, really\tB C D\n",
    "sets.gmt": "one\t\tA\tB\nthree\tabout it\tB\tC\tD\t\n",
    "coreComplexes.txt": DOWNLOAD,
    "corum_humanComplexes.txt": NEWER,
    "quoted_names.tsv": '"one"\t"A B"\n"three,\treally"\t"B C D"\n',
    "commas.tsv": "one\tA, B\nthree\tB,C,D\n",
    "quoted_commas.tsv": 'one\t"A, B"\nthree\t"B, C, D,"\n',
    "semicolons.tsv": "one\tA;B\nthree\tB; C; D\n",
    "weights.tsv": "one\tA,1.0 B,1\nthree\tB,0.5, C,1e-3; D,1.0\n",
    "weights.gmt": "one\tNA\tA,1.0\tB,1.0\nthree\t\tB,1.0\tC,0.25\tD , 1\t\n",
    "quoted_weights.gmt": '"one"\t\t"A,1.0"\t"B,1.0"\n"three"\t\t"B,1.0"\t"C,1.0"\t"D,1.0"\n',
    "one_cell.gmt": "one\tabout\tA, B\nthree\tabout\tB, C, D\n",
    "quoted.txt": NEWER.replace("A; B;", '"A; B;"').replace("B;C;D;N/A;None", '"B;C;D"'),
    "all_quoted.txt": "\n".join(
        "\t".join(f'"{cell}"' for cell in line.replace('"', "").split("\t"))
        for line in NEWER.splitlines()
    ),
    "tab_and_line_in_quotes.txt": NEWER.replace("three", '"three\tor\n\nmore"'),
    "comma_list.txt": NEWER.replace("A; B;", "A, B").replace("B;C;D;N/A;None", '"B, C, D"'),
    "open_quote.txt": NEWER.replace("\tone", '\t"one" and all').replace(
        "B;C;D;N/A;None", '"B;C;D"'
    ),
    "open_quote.gmt": '"one\tabout\tA\tB\nthree\t5" long\t"B"\tC\tD\n',
}
REAL = Path(__file__).parents[4] / "shared" / "data" / "corum"


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_complexes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert set(read_complexes(tmp_path / name)) == EXPECTED
    with gzip.open(tmp_path / f"{name}.gz", "wt") as packed:
        packed.write(FORMS[name].replace("\n", "\r\n"))
    assert set(read_complexes(tmp_path / f"{name}.gz")) == EXPECTED


def test_a_list_of_pairs_names_each_pair_once_however_often_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text("entity1,entity2\nA,B\nB,A\nC,A\nC,C\n")
    pairs = pairs_among(read_complexes(file), ["C", "A", "B", "X"])
    np.testing.assert_array_equal(pairs, [[0, 1], [1, 2]])
    file.write_text("A,B\nC,A\n")
    np.testing.assert_array_equal(
        pairs_among(read_complexes(file), ["C", "A", "B"]), [[0, 1], [1, 2]]
    )


def test_pairs_are_among_the_genes_asked_for() -> None:
    pairs = pairs_among(EXPECTED, ["D", "B", "A", "X"])
    np.testing.assert_array_equal(pairs, [[0, 1], [1, 2]])
    assert pairs_among(EXPECTED, ["X", "A"]).shape == (0, 2)


def test_quotes_around_subunits_change_nothing(tmp_path: Path) -> None:
    genes = [f"G{number}" for number in range(40)]
    found = []
    for quote in ("", '"'):
        rows = (
            f"{k}\tHuman\t{quote}{';'.join(genes[4 * k : 4 * k + 4])}{quote}" for k in range(10)
        )
        file = tmp_path / "c.txt"
        file.write_text("\n".join(["complex_id\torganism\tsubunits_gene_name", *rows]))
        found.append(pairs_among(read_complexes(file), genes))
    assert [len(pairs) for pairs in found] == [60, 60]
    np.testing.assert_array_equal(*found)


def test_identifiers_that_are_numbers_are_no_weights(tmp_path: Path) -> None:
    file = tmp_path / "entrez.tsv"
    file.write_text("one\t604,9759\ntwo\t604,10014\n")
    assert set(read_complexes(file)) == {frozenset(("604", "9759")), frozenset(("604", "10014"))}


def test_utf_16_is_read(tmp_path: Path) -> None:
    file = tmp_path / "named.tsv"
    file.write_text(FORMS["named.tsv"], encoding="utf-16")
    assert set(read_complexes(file)) == EXPECTED


def test_members_match_the_one_gene_that_differs_by_case_alone() -> None:
    complexes = [frozenset(("PSMD1", "PSMD2")), frozenset(("Abc", "X")), frozenset(("dEf", "X"))]
    genes = ["Psmd1", "Psmd2", "Abc", "ABC", "Def", "DEF"]
    found = matched(complexes, genes)
    assert found.row == {"PSMD1": 0, "PSMD2": 1, "Abc": 2}
    assert found.other_case == ("PSMD1", "PSMD2")
    assert found.missing == ("X", "dEf")
    np.testing.assert_array_equal(pairs_among(complexes, genes), [[0, 1]])
    assert not len(pairs_among([frozenset(("PSMD1", "psmd1"))], genes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cell,plate,well\n1,2,3\n", "not a file of complexes; expected a line"),
        ("A B C\n", "not a file of complexes"),
        ("", "not a file of complexes"),
        ("one\tA B\ntwo\tA\tB\n", "line 2 has 3 columns; expected 2, as the first has"),
        ("one\t\tA\tB\ntwo\tA B\n", "line 2 has 2 columns; expected 3 or more"),
        ("one\tA\ntwo\tB\n", "holds no complex of two genes or more"),
        ("A,B\nC,\n", "line 2 holds no pair"),
        (DOWNLOAD.replace("Organism", "organism"), "no column 'Organism'"),
        (NEWER.replace("organism", "species"), "no column 'organism'"),
        (DOWNLOAD.replace("Human", "Rat"), "holds no complex of two genes"),
        (DOWNLOAD + "4\tfour\tHuman\n", "line 5 ends before"),
        (DOWNLOAD + '4\t"f\nour"\tHuman\n', "line 5 ends before"),
        (DOWNLOAD + "4\tfo\tur\tHuman\tA;B\t4\n", "line 5 has 6 cells, its header 5"),
        (DOWNLOAD + "4\tfour\tHuman\tA;C, D;E\t4\n", "line 5: 'C, D' is no name of one gene"),
        ("one\t\tA\tB\ntwo\t\tC\tD,E\n", "line 2: 'D,E' is no name of one gene"),
        ("one\t\tA\tB\ntwo\t\tC\tD,E,1.0\n", "line 2: 'D,E,1.0' is no name"),
        ("one\tA B\ntwo\tC,1.0 D,E\n", "line 2: 'D,E' is no name of one gene"),
        ("one\tA B\ntwo\tC, 1.0 D, 1.0\n", "line 2: '1.0' is no name of one gene"),
        ('one"\tA B\n"two\tC "D\n', "line 2: '\"D' is no name of one gene"),
        ('complex,genes\none,"A;B"\n', "line 2: 'A;B' is no name of one gene"),
        (b"\x93NUMPY\x00\xff\xfe", "byte 6 \\(from 0\\) is NUL"),
        (b"\x93NUMPY\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_of_another_form_is_one_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "complexes.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=said) as error:
        read_complexes(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of complexes; give a line"):
        read_complexes(tmp_path / "none.tsv")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no public data in {REAL}")
def test_published_files_have_their_known_sizes() -> None:
    """METHODS: 2,696 complexes, 3,541 genes, 37,755 pairs; of 3,512 rows 2,417 are human."""
    named = read_complexes(REAL / "EFAAR_CORUM_clusters.tsv")
    genes = sorted(set().union(*named))
    assert (len(named), len(genes), len(pairs_among(named, genes))) == (2696, 3541, 37755)
    assert len(read_complexes(REAL / "PCprophet_coreComplexes.txt")) == 2417
