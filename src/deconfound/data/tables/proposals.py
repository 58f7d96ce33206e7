"""Columns of a table that may be meant for a role, told by their names and by their values."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import pandas as pd

from deconfound.data.tables.table import joined

LABEL_WORDS = (
    "phenotype",
    "celltype",
    "class",
    "gene",
    "compound",
    "treatment",
    "perturbation",
    "disease",
    "drug",
    "diagnosis",
    "mechanism",
    "moa",
    "target",
    "guide",
    "sgrna",
    "sirna",
    "condition",
    "genotype",
    "mutation",
    "label",
    "category",
)
"""Words in names of labels, the likeliest first."""
ENVIRONMENT_WORDS = (
    "environment",
    "date",
    "lab",
    "laboratory",
    "batch",
    "plate",
    "run",
    "donor",
    "hospital",
    "center",
    "centre",
    "experiment",
    "scanner",
    "microscope",
    "day",
    "week",
    "patient",
    "slide",
    "series",
    "source",
    "replicate",
    "passage",
    "section",
    "domain",
    "site",
)
"""Words in names of environments, the likeliest first; "site" last, as it is often a field."""
_MEASURED = re.compile(r"(^|_)(Cells|Cytoplasm|Nuclei|Location|AreaShape)_")
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_IMAGE_FILE = re.compile(r".*\.(png|jpe?g|bmp|tiff?|npy|zarr)", re.IGNORECASE)


def label_candidates(table: pd.DataFrame, without: Collection[str] = ()) -> list[str]:
    """Columns that may be the label, the likeliest first, but for those in `without`.

    One is named by one of `LABEL_WORDS` and has from 2 values to half as many as there are rows.
    """
    return _candidates(table, LABEL_WORDS, without)


def environment_candidates(table: pd.DataFrame, without: Collection[str] = ()) -> list[str]:
    """Columns that may be the environment, as `label_candidates`, by `ENVIRONMENT_WORDS`."""
    return _candidates(table, ENVIRONMENT_WORDS, without)


def nested_around(table: pd.DataFrame, column: str, others: Sequence[str]) -> list[str]:
    """`column` and those of `others` that divide its groups or hold them whole, outermost first."""
    chain = [column]
    for other in others:
        if all(_divides(table, one, other) or _divides(table, other, one) for one in chain):
            chain.append(other)
    return sorted(chain, key=lambda one: int(table[one].nunique()))


def path_candidates(table: pd.DataFrame) -> list[str]:
    """Columns whose first value is the name of an image file."""
    return [
        str(column)
        for column, values in table.items()
        if any(_IMAGE_FILE.fullmatch(str(value)) for value in values.iloc[:1])
    ]


def feature_patterns(columns: Sequence[str]) -> list[str]:
    """The commonest beginning of names that differ by their last number, as "emb_*"; often none."""
    starts = Counter(
        match[1] for column in columns if (match := re.fullmatch(r"(.*\D)\d+", column))
    )
    return [f"{start}*" for start, count in starts.most_common(1) if count > 2]


def _candidates(table: pd.DataFrame, words: Sequence[str], without: Collection[str]) -> list[str]:
    found: list[tuple[bool, int, int, str]] = []
    for place, column in enumerate(map(str, table.columns)):
        in_name = _words(column)
        rank = next((rank for rank, word in enumerate(words) if word in in_name), None)
        if rank is None or column in without or _MEASURED.search(column):
            continue
        text = joined(table, [column])
        if 2 <= text.nunique() <= len(table) / 2:
            found.append((bool(text.isna().any()), rank, place, column))
    return [column for *_, column in sorted(found)]


def _words(column: str) -> set[str]:
    """The words of a name in lower case, and two together: cell, type and celltype."""
    tokens = [token.lower() for token in _TOKEN.findall(column)]
    pairs = (first + second for first, second in pairwise(tokens))
    found = {*tokens, *pairs}
    return found | {token.removesuffix("s") for token in found}


def _divides(table: pd.DataFrame, inner: str, outer: str) -> bool:
    """Whether each group of `inner` lies in one of `outer`, and there are more of them."""
    inside, around = joined(table, [inner]), joined(table, [outer])
    together = around.groupby(inside).nunique()
    return bool((together <= 1).all()) and inside.nunique() > around.nunique()
