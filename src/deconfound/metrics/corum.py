"""How near genes of one complex lie to each other: a curve, average precision, recall in the tails.

"CORUM" stands for any source of complexes. Similarity is the cosine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconfound.arrays import AnyFloats, Codes, Doubles
from deconfound.errors import UserError
from deconfound.metrics.neighbors import refuse_malformed
from deconfound.metrics.score import Metric, Score

PAPER = "Makino et al., SCBD, section 4.2.1 (detecting known biological relationships)"
EFAAR = "Celik et al. 2024, Building, benchmarking, and exploring perturbative maps (EFAAR)"
CODE_PERCENTILES = tuple(range(80, 100))
"""The percentiles of the authors' code."""
PAPER_PERCENTILES = tuple(range(80, 101))
"""The percentiles that the paper states."""
FEWEST_GENES = 20
"""With fewer annotated genes the note holds a caveat; EFAAR intends more."""

CORUM_CURVE_AREA = Metric(
    "corum_curve_area",
    better="higher",
    paper=PAPER,
    summary="area under precision against recall of the pairs in both tails, percentiles 80 to 99; "
    "partial and not monotone in the signal: read it beside corum_average_precision",
)
CORUM_AVERAGE_PRECISION = Metric(
    "corum_average_precision",
    better="higher",
    paper="Zhu 2004, Recall, precision and average precision",
    summary="average precision of known relations among pairs ranked by cosine",
)
CORUM_PREVALENCE = Metric(
    "corum_prevalence",
    better="context",
    paper="Zhu 2004, Recall, precision and average precision",
    summary="share of pairs that are known relations: corum_average_precision of chance",
)
CORUM_RECALL_5_95 = Metric(
    "corum_recall_5_95",
    better="higher",
    paper=EFAAR,
    summary="share of known relations in the 5 % tails of all similarities; chance is 0.1",
)
CORUM_RECALL_10_90 = Metric(
    "corum_recall_10_90",
    better="higher",
    paper=EFAAR,
    summary="share of known relations in the 10 % tails of all similarities; chance is 0.2",
)


@dataclass(frozen=True)
class RelationCurve:
    """Precision and recall of the pairs in the tails of the similarities, (Q,) float64 each."""

    percentile: Doubles
    precision: Doubles
    recall: Doubles
    genes: int
    """Number of genes in a pair; the others were left out."""

    def area(self) -> Score:
        """Trapezoids of precision over recall, in [0, 1]; NaN without pairs."""
        if not self.genes:
            return Score(math.nan, 0, "no two genes are in one complex")
        upwards = slice(None, None, -1)
        value = np.trapezoid(self.precision[upwards], self.recall[upwards])
        return Score(float(value), self.genes, _caveat(self.genes))


def relation_curve(
    embedding: AnyFloats, pairs: Codes, percentiles: Sequence[float] = CODE_PERCENTILES
) -> RelationCurve:
    """Makino et al., SCBD, section 4.2.1: precision and recall of pairs in either tail.

    `embedding` (G, D) float, a row a gene; `pairs` (P, 2) int64, known relations: rows i < j, each
    once. Genes without a pair are left out. For each q of `percentiles`, in [50, 100] and
    ascending, the cosines at or above percentile q and at or below 100 − q of the whole matrix,
    its diagonal too, are called relations; precision and recall are of the pairs off the diagonal.
    The paper states 80 … 100, the authors' code takes 80 … 99, which is the default. Raises
    UserError on a malformed embedding or pair.
    """
    _refuse_malformed(embedding, pairs)
    inside, renumbered = np.unique(pairs, return_inverse=True)
    steps = np.asarray(percentiles, dtype=np.float64)
    if not len(inside):
        return RelationCurve(steps, np.full(len(steps), math.nan), np.full(len(steps), math.nan), 0)
    cosine = cosines(embedding[inside])
    left, right = renumbered.reshape(-1, 2).T
    known = cosine[left, right]
    every = cosine[np.triu_indices(len(inside), 1)]
    bounds = np.percentile(cosine, np.concatenate([steps, 100 - steps]))
    precision, recall = [], []
    for upper, lower in zip(*np.split(bounds, 2), strict=True):
        called = int(((every >= upper) | (every <= lower)).sum())
        right_calls = int(((known >= upper) | (known <= lower)).sum())
        precision.append(right_calls / called if called else 0.0)
        recall.append(right_calls / len(pairs))
    return RelationCurve(steps, np.array(precision), np.array(recall), len(inside))


def relation_average_precision(embedding: AnyFloats, pairs: Codes) -> Score:
    """Average precision of known relations among the pairs of genes, ranked by cosine, in [0, 1].

    Zhu 2004. `embedding` (G, D) and `pairs` (P, 2) as for `relation_curve`; genes without a pair
    are left out, `n` counts the others. NaN without pairs; raises UserError on malformed input.
    """
    from sklearn.metrics import average_precision_score

    _refuse_malformed(embedding, pairs)
    inside, renumbered = np.unique(pairs, return_inverse=True)
    if not len(inside):
        return Score(math.nan, 0, "no two genes are in one complex")
    related = np.zeros((len(inside), len(inside)), dtype=bool)
    related[tuple(renumbered.reshape(-1, 2).T)] = True
    upper = np.triu_indices(len(inside), 1)
    value = average_precision_score(related[upper], cosines(embedding[inside])[upper])
    return Score(float(value), len(inside), _caveat(len(inside)))


def relation_prevalence(pairs: Codes) -> Score:
    """Share of the pairs of genes in `pairs` (P, 2) that are known relations: Zhu 2004, chance."""
    genes = len(np.unique(pairs))
    if not genes:
        return Score(math.nan, 0, "no two genes are in one complex")
    return Score(len(pairs) / (genes * (genes - 1) / 2), genes)


def relation_recall(embedding: AnyFloats, pairs: Codes, tail: float = 0.05) -> Score:
    """Share of known relations in the two tails of the similarities of all genes, in [0, 1].

    Celik et al. 2024 (EFAAR). `embedding` (G, D) and `pairs` (P, 2) as for `relation_curve`; the
    tails hold the share `tail` of the cosines of all pairs of the G genes, annotated or not, on
    each side: chance is 2 · `tail`. `n` counts the genes in a pair. NaN without pairs; raises
    UserError on malformed input.
    """
    _refuse_malformed(embedding, pairs)
    genes = len(np.unique(pairs))
    if not genes:
        return Score(math.nan, 0, "no two genes are in one complex")
    cosine = cosines(embedding)
    lower, upper = np.quantile(cosine[np.triu_indices(len(cosine), 1)], [tail, 1 - tail])
    known = cosine[tuple(pairs.T)]
    inside = (known <= lower) | (known >= upper)
    return Score(float(inside.mean()), genes, _caveat(genes))


def cosines(embedding: AnyFloats) -> Doubles:
    """Cosines (G, G) float64 of the rows (G, D); a row of zeros has 0 with every other."""
    values = embedding.astype(np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    values /= np.where(length == 0, 1.0, length)
    return np.asarray(values @ values.T)


def _caveat(genes: int) -> str:
    return f"only {genes} genes are in a complex" if genes < FEWEST_GENES else ""


def _refuse_malformed(embedding: AnyFloats, pairs: Codes) -> None:
    refuse_malformed(embedding)
    ordered = pairs.ndim == 2 and pairs.shape[1] == 2 and bool((pairs[:, 0] < pairs[:, 1]).all())
    inside = pairs.size == 0 or (pairs.min() >= 0 and pairs.max() < len(embedding))
    if not (ordered and inside) or len(np.unique(pairs, axis=0)) < len(pairs):
        raise UserError("pairs: expected rows i < j of the embedding, (P, 2), each pair once")
