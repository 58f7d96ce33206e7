"""Real cells of a stored data set under injected effects."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.data.simulation.inject import inject
from deconfound.data.tables.table import joined

HEP2 = Path(__file__).parents[4] / "shared" / "data" / "hep2" / "hep2_78px.npz"


@pytest.mark.skipif(not HEP2.is_file(), reason=f"no public data in {HEP2}")
def test_real_cells_become_a_screen_with_exact_counterfactuals(tmp_path: Path) -> None:
    from deconfound.data.ingest.arrays import ingest_array
    from deconfound.data.ingest.images import IngestConfig

    with np.load(HEP2) as stored:
        few = np.concatenate([np.flatnonzero(stored["label"] == one)[:40] for one in
                              np.unique(stored["label"])])  # fmt: skip
        table = pd.DataFrame({"Metadata_Perturbation": stored["label"][few], "Metadata_Batch": "1"})
        np.save(tmp_path / "cells.npy", stored["image"][few])
    table.to_csv(tmp_path / "cells.csv", index=False)
    config = IngestConfig(size=48)
    cells = tmp_path / "cells.npy"
    ingest_array(tmp_path / "cells.csv", cells, tmp_path / "clean", config=config, quiet=True)
    screen = inject(tmp_path / "clean", tmp_path / "screen", threads=1, quiet=True)
    assert len(screen) == 240
    assert screen.provenance["injected"]["clean"]["name"] == "clean"
    own = joined(screen.table, screen.roles.levels)[100]
    np.testing.assert_array_equal(counterfactual(screen, [100], own), screen.read([100]))
    assert screen.table["Metadata_Perturbation"].nunique() == 6
