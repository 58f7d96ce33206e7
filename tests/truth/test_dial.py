"""`--alpha auto` on a planted shortcut: features that tell the label otherwise in each place.

The other features tell the label in every environment, but less plainly, so invariance helps where
an environment is left out. With shuffled environments there is nothing to be invariant to, and
nothing is to be chosen. Makino et al., SCBD, section 4.1.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.config import TrainingOptions
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.runs.config import RunConfig
from deconfound.runs.dial import DialRecord, read_dial
from deconfound.runtime.seeds import numpy_stream
from deconfound.training.fit import fit

LABELS, FEATURES, ROWS = 8, 16, 1600
ROLES = Roles(label="compound", environment=("plate",), levels=("plate",))


def shortcut(environments: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Profiles (1600, 19) float32 and their table."""
    stream = numpy_stream(0, "shortcut", environments)
    label = stream.integers(LABELS, size=ROWS)
    environment = stream.integers(environments, size=ROWS)
    plain = 0.7 * stream.standard_normal((LABELS, FEATURES))[label]
    plain += stream.standard_normal(plain.shape)
    # A colour of each label, of which every environment takes another order.
    colours = 3 * stream.standard_normal((LABELS, 3))
    order = np.array([stream.permutation(LABELS) for _ in range(environments)])
    colour = colours[order[environment, label]] + 0.3 * stream.standard_normal((ROWS, 3))
    table = pd.DataFrame(
        {"compound": [f"c{one}" for one in label], "plate": [f"P{one}" for one in environment]}
    )
    return np.concatenate([plain, colour], axis=1).astype(np.float32), table


def chosen(
    environments: int,
    shuffled: bool,
    make_config: Callable[..., RunConfig],
    folder: Path,
) -> DialRecord:
    profiles, table = shortcut(environments)
    if shuffled:
        order = numpy_stream(0, "shuffled").permutation(ROWS)
        table["plate"] = table["plate"].to_numpy()[order]
    screen = folder / "screen"
    names = tuple(f"feature {place}" for place in range(profiles.shape[1]))
    with ScreenWriter(screen, "shortcut", names, ROLES, {"made_by": "test"}) as writer:
        writer.append(profiles)
        writer.finish(table)
    training = TrainingOptions(
        steps=60, batch_size=128, validate_every=30, checkpoint_every=60, device="cpu",
        precision="32", threads=1,
    )  # fmt: skip
    config = make_config("scbd", data={"fold": "iid"}, options={"alpha": "auto", "decoder": None})
    run = fit(
        config.model_copy(update={"training": training}),
        screen,
        folder / "run",
        quiet=True,
    )
    record = read_dial(run.path)
    assert record is not None
    return record


def test_a_dial_is_turned_up_where_it_helps(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    assert chosen(3, False, make_config, tmp_path).chosen > 0


@pytest.mark.parametrize("environments", [2, 3])
def test_where_environments_are_shuffled_it_is_not(
    environments: int, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    record = chosen(environments, True, make_config, tmp_path)
    assert record.chosen == 0
    assert "none of the others helps by more than chance" in record.text()
