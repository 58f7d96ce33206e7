import numpy as np
import pandas as pd
import pytest

from deconfound.data.folds.controls import control_codes
from deconfound.data.tables.table import coded
from deconfound.errors import UserError

TABLE = pd.DataFrame(
    {
        "gene": ["nt", "nt", "a", "a", "b", "b", None, "nt2"],
        "Metadata_Control_Type": [
            "negcon", "negcon", "treatment", None, "negcon", "treatment", "negcon", "negcon",
        ],
    }
)  # fmt: skip
ROWS = np.arange(8)


def test_labels_are_controls_if_all_their_training_rows_are() -> None:
    label = coded(TABLE["gene"])
    assert label.names == ("a", "b", "nt", "nt2")
    assert control_codes(TABLE, label, ROWS) == (2, 3)
    assert control_codes(TABLE, label, ROWS[:7]) == (2,)


def test_rows_that_training_lacks_decide_nothing() -> None:
    label = coded(TABLE["gene"])
    train = np.array([0, 1, 2, 3, 4])
    assert control_codes(TABLE, label, train) == (1, 2)
    changed = TABLE.copy()
    changed.loc[5:, "Metadata_Control_Type"] = "negcon"
    assert control_codes(changed, label, train) == (1, 2)


def test_named_labels_come_first_and_no_column_is_no_control() -> None:
    label = coded(TABLE["gene"])
    assert control_codes(TABLE, label, ROWS, ["nt2", "a"]) == (0, 3)
    assert control_codes(TABLE[["gene"]], label, ROWS) == ()
    with pytest.raises(UserError, match="--controls nt3: no training row has this label; did you"):
        control_codes(TABLE, label, ROWS, ["nt3"])
