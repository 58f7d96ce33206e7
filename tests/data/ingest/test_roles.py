"""The roles of columns that ingest finds or is given."""

import pandas as pd
import pytest
from pydantic import ValidationError

from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.roles import resolve_roles
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError


def test_usual_roles_come_outermost_first() -> None:
    names = ["Metadata_Gene", "Metadata_Section", "Metadata_Plate", "Metadata_Series"]
    roles = resolve_roles(pd.DataFrame({name: ["a"] for name in names}), IngestConfig(), "t.csv")
    assert roles.label == "Metadata_Gene"
    assert roles.levels == ("Metadata_Series", "Metadata_Plate", "Metadata_Section")
    assert roles.environment == roles.levels
    assert roles.well is None


def test_given_roles_win() -> None:
    names = ["Metadata_Perturbation", "Metadata_Plate", "Metadata_Well", "Metadata_Split", "drug"]
    table = pd.DataFrame({name: ["a"] for name in [*names, "day", "site"]})
    given = IngestConfig(label="drug", environment=("day", "site"), levels=("day",), well="site")
    assert resolve_roles(table, given, "t.csv") == Roles(
        label="drug",
        environment=("day", "site"),
        levels=("day",),
        well="site",
        split="Metadata_Split",
    )
    with pytest.raises(UserError, match="'drg'; did you mean 'drug'"):
        resolve_roles(table, IngestConfig(label="drg"), "t.csv")


def test_roles_that_nothing_fills() -> None:
    with pytest.raises(UserError, match=r"no label column .* --label"):
        resolve_roles(pd.DataFrame({"Metadata_Plate": ["a"]}), IngestConfig(), "t.csv")
    with pytest.raises(UserError, match=r"no environment column .* --environment"):
        resolve_roles(pd.DataFrame({"Metadata_Gene": ["a"]}), IngestConfig(), "t.csv")


def test_config_is_strict() -> None:
    with pytest.raises(ValidationError):
        IngestConfig(sise=4)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        IngestConfig(size=0)
    assert all(field.description for field in IngestConfig.model_fields.values())
