"""What the summary says of methods that make use of images of test rows."""

import pandas as pd

from deconfound.reports.sources import Sources
from deconfound.reports.summary import _adapted
from deconfound.runs.config import ALIGNED


def test_a_correction_that_aligns_test_rows_is_told() -> None:
    sources = Sources.__new__(Sources)
    object.__setattr__(sources, "runs", [])
    (told,) = _adapted(sources, pd.DataFrame({"method": ["erm+standardise"], "note": [ALIGNED]}))
    assert told.startswith("erm+standardise aligned groups never seen by embeddings of test rows")
