"""What a description of a screen holds, and its warnings on labels and environments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deconfound.data.screens.screen import Screen
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import Coded, Roles, nested_ids

CONFOUNDED = 0.5
"""Shared information of label and environment at which the warning begins."""
NAMED = 5


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


def find_warnings(found: Description, label: Coded, environment: Coded) -> Iterator[str]:
    """Yield one sentence for each warning on a description, whose own are not read."""
    yield from _roles(found.roles, label, environment)
    if len(label.names) > 1 and len(environment.names) > 1:
        yield from _confounding(label, environment, found.shared_information)
    yield from _nesting(found.screen.table, found.roles, found.levels)
    yield from _coverage(found.folds)
    yield from _images(found.statistics)


def _roles(roles: Roles, label: Coded, environment: Coded) -> Iterator[str]:
    if roles.label is None:
        yield "No column is the label: choose one with --label."
    elif len(label.names) < 2:
        yield (
            f"{roles.label} has {_count(len(label.names), 'value')}: there is nothing to tell "
            "apart; choose another --label."
        )
    if not roles.environment:
        yield "No column is the environment: choose one or more with --environment."
    elif len(environment.names) < 2:
        yield (
            f"{' / '.join(roles.environment)} has {_count(len(environment.names), 'value')}: "
            "there is nothing to be invariant to; choose another --environment."
        )


def _confounding(label: Coded, environment: Coded, information: float) -> Iterator[str]:
    both = (label.codes >= 0) & (environment.codes >= 0)
    pairs = np.unique(np.stack([label.codes[both], environment.codes[both]]), axis=1)
    environments_of = np.bincount(pairs[0], minlength=len(label.names))
    labels_of = np.bincount(pairs[1], minlength=len(environment.names))
    only = np.flatnonzero(environments_of == 1)
    apart = "a difference between labels cannot be told from a difference between environments"
    if len(only) == len(label.names) and (labels_of == 1).all():
        yield f"Label and environment are the same partition of the images: {apart}."
    elif len(only) == len(label.names):
        yield f"Every label lies in one environment only, so it tells the environment: {apart}."
    elif (labels_of == 1).all():
        yield f"Every environment holds one label only, so it tells the label: {apart}."
    else:
        if information >= CONFOUNDED:
            yield (
                f"Label and environment share much of their information ({information:.2f} of at "
                f"most 1): {apart}, for many of them."
            )
        if len(only):
            names = [label.names[code] for code in only]
            yield (
                f"{_count(len(only), 'label')} of {len(label.names):,} "
                f"{'lies' if len(only) == 1 else 'lie'} in one environment only: {_listed(names)}."
            )
        single = np.flatnonzero(labels_of == 1)
        if len(single):
            names = [environment.names[code] for code in single]
            yield (
                f"{_count(len(single), 'environment')} of {len(environment.names):,} "
                f"{'holds' if len(single) == 1 else 'hold'} one label only: {_listed(names)}."
            )


def _nesting(table: pd.DataFrame, roles: Roles, levels: pd.DataFrame) -> Iterator[str]:
    for level, missing in zip(levels["level"], levels["missing"].tolist(), strict=True):
        if missing:
            yield (
                f"{level} is missing for {_count(missing, 'image')}; a fold of this "
                "level leaves out those that may belong to what it holds out."
            )
    ids = nested_ids(table, roles.levels)
    for outer, inner in zip(roles.levels, roles.levels[1:], strict=False):
        names = keys(table[inner])
        one_each = bool((names.groupby(ids[outer]).nunique() <= 1).all())
        if one_each and 1 < names.nunique() < ids[outer].nunique():
            yield (
                f"Every {outer} lies in one {inner}, so the levels may be in the wrong order; "
                f"--levels names the outermost first."
            )


def _coverage(folds: pd.DataFrame) -> Iterator[str]:
    possible = folds[folds["possible"]]
    for level, own in possible.groupby("level", sort=False):
        lacking = own[own["untrained"] > 0]
        if len(lacking):
            worst = lacking.loc[lacking["untrained"].idxmax()]
            yield (
                f"{level}: {len(lacking)} of {_count(len(own), 'fold')} would test labels that "
                f"training lacks, up to {worst['untrained']} ({worst['fold']}); scores leave "
                "them out."
            )
        alone = own[own["training_environments"] == 1]
        if len(alone):
            yield (
                f"{level}: {len(alone)} of {_count(len(own), 'fold')} would leave one environment "
                "in training, so there is nothing to be invariant to."
            )


def _images(statistics: pd.DataFrame) -> Iterator[str]:
    for channel, own in statistics.groupby("channel", sort=False):
        read = int(own["images"].sum())
        empty = int(own["black"].sum() + own["constant"].sum())
        if empty:
            yield (
                f"Channel {channel}: {empty:,} of {_count(read, 'image')} "
                f"{'is' if empty == 1 else 'are'} black or of one value."
            )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
