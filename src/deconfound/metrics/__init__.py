"""Scores of embeddings and predictions: pure functions over NumPy arrays, no file access.

A `Metric` beside each function declares its direction and range; `all_metrics` finds them in the
modules of this package. An undefined score is NaN, with the reason in its note.
"""

from deconfound.metrics.accuracy import (
    accuracy,
    accuracy_chance,
    class_coverage,
    macro_f1,
    macro_f1_chance,
    seen_in_training,
)
from deconfound.metrics.batch_cv import KnnBatchCV, knn_batch_cv
from deconfound.metrics.collapse import mean_resultant_length, supcon_against_collapse
from deconfound.metrics.corum import (
    RelationCurve,
    relation_average_precision,
    relation_curve,
    relation_prevalence,
    relation_recall,
)
from deconfound.metrics.imputation import (
    absolute_distance,
    hallucination_rate,
    label_agreement,
    label_probability,
    matched_moments,
    relative_error,
    squared_distance,
)
from deconfound.metrics.mixing import LisiRatio, clisi, ilisi, lisi, lisi_ratio
from deconfound.metrics.neighbors import NeighborGraph, neighbor_graph
from deconfound.metrics.probe import LinearProbe, batch_prediction, linear_probe
from deconfound.metrics.retrieval import Retrieval, profile_retrieval
from deconfound.metrics.score import Metric, Score, all_metrics

__all__ = [
    "KnnBatchCV",
    "LinearProbe",
    "LisiRatio",
    "Metric",
    "NeighborGraph",
    "RelationCurve",
    "Retrieval",
    "Score",
    "absolute_distance",
    "accuracy",
    "accuracy_chance",
    "all_metrics",
    "batch_prediction",
    "class_coverage",
    "clisi",
    "hallucination_rate",
    "ilisi",
    "knn_batch_cv",
    "label_agreement",
    "label_probability",
    "linear_probe",
    "lisi",
    "lisi_ratio",
    "macro_f1",
    "macro_f1_chance",
    "matched_moments",
    "mean_resultant_length",
    "neighbor_graph",
    "profile_retrieval",
    "relation_average_precision",
    "relation_curve",
    "relation_prevalence",
    "relation_recall",
    "relative_error",
    "seen_in_training",
    "squared_distance",
    "supcon_against_collapse",
]
