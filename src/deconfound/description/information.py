"""How much label and environment say of each other."""

import numpy as np

from deconfound.arrays import Rows


def shared_information(label: Rows, environment: Rows) -> float:
    """Mutual information over the smaller entropy, of codes (N,) int64 with −1 for missing: 0 … 1.

    With Miller's correction (1955) for small counts; NaN if either side has fewer than 2 values
    among the rows that have both.
    """
    both = (label >= 0) & (environment >= 0)
    label, environment = label[both], environment[both]
    if len(np.unique(label)) < 2 or len(np.unique(environment)) < 2:
        return float("nan")
    own = [_entropy(codes) for codes in (label, environment)]
    joint = _entropy(label * (int(environment.max()) + 1) + environment)
    return float(np.clip((sum(own) - joint) / min(own), 0.0, 1.0))


def _entropy(codes: Rows) -> float:
    """Entropy in nats, with Miller's correction."""
    count = np.unique(codes, return_counts=True)[1]
    share = count / count.sum()
    return float(-(share * np.log(share)).sum() + (len(count) - 1) / (2 * count.sum()))
