"""Scores of embeddings and predictions: pure functions over NumPy arrays, no file access.

A `Metric` beside each function declares its direction and range; `all_metrics` finds them in the
modules of this package. An undefined score is NaN, with the reason in its note.
"""
