"""What a description of a screen holds."""

from dataclasses import dataclass

import pandas as pd

from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles


@dataclass(frozen=True)
class Description:
    """The findings of `describe`."""

    screen: Screen
    roles: Roles
    """The columns described: the screen's own, or those asked for."""
    counts: dict[str, int]
    """Images, labels, environments, wells, and images without a label or an environment."""
    levels: pd.DataFrame
    """One row per level, outermost first: level, groups, missing (images without it), names
    (distinct values as written), repeated (names that stand under several parents), folds (groups
    that can be held out, missing where there are too many to work out) and refused (why others
    cannot)."""
    occupancy: pd.DataFrame
    """One row per pair of label and environment that occurs: label, environment, images, wells."""
    folds: pd.DataFrame
    """One row per fold: level, fold, possible, reason, kept (rows left to train and select on),
    test, unused, training_environments, untrained (labels of test rows that training lacks),
    untested (labels without a test row), untrained_labels and untested_labels (the first names of
    each)."""
    statistics: pd.DataFrame
    """One row per environment and channel, see `pixel_statistics`."""
    images_read: int
    """Number of images that the statistics come from."""
    shared_information: float
    """Mutual information of label and environment over the smaller of their entropies, 0 … 1; 1 if
    one determines the other, NaN if either has fewer than 2 values."""
    warnings: tuple[str, ...]
    """What stands in the way of telling label and environment apart, and other surprises."""
