"""Tables and plate maps that the options of ingest join to the rows of a screen's table."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from deconfound.data.tables.joining import joined_table
from deconfound.data.tables.platemap import with_platemaps
from deconfound.errors import UserError
from deconfound.files.checksums import sha256

if TYPE_CHECKING:
    from deconfound.data.ingest.images import IngestConfig


def with_joined(
    table: pd.DataFrame, config: "IngestConfig", where: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """`table` with the columns of plate maps and then of joined tables, in their order.

    Also the provenance of their files: "joined", the SHA-256 of each by its path. Raises UserError
    as `with_platemaps` and `joined_table` do.
    """
    files: dict[str, str] = {}
    if config.barcode_platemap is not None and not config.platemap:
        raise UserError("--barcode-platemap needs the maps that it names; add --platemap")
    if config.platemap:
        table, read = with_platemaps(
            table, config.platemap, config.barcode_platemap, where, well=config.well
        )
        files |= {str(file): sha256(file) for file in read}
    for given in config.join:
        table, file = joined_table(table, given, where)
        files[str(file)] = sha256(file)
    return table, {"joined": files} if files else {}
