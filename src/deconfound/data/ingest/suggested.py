"""The command that may make a screen of a table of which nothing else is known."""

import shlex
from pathlib import Path

from deconfound.config import flags_of
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.roles import role_problems
from deconfound.data.readers.features import COMPARTMENTS
from deconfound.data.tables.image_table import without_image_prefix
from deconfound.data.tables.table import read_table


def holds_profiles(table: Path) -> bool:
    """Whether a table holds CellProfiler's features, or is an .h5ad file.

    Raises UserError if the table cannot be read.
    """
    if table.suffix == ".h5ad":
        return True
    read = without_image_prefix(read_table(table))
    return any(str(column).startswith(COMPARTMENTS) for column in read.columns)


def command_for(table: Path) -> str:
    """`deconfound ingest` for a table, of profiles or images, with likely columns for its roles.

    Raises UserError if the table cannot be read.
    """
    read = without_image_prefix(read_table(table))
    profiles = any(str(column).startswith(COMPARTMENTS) for column in read.columns)
    form = ["--profiles"] if profiles else ["--images-root", "FOLDER"]
    config = IngestConfig()
    problems = role_problems(read, config)
    options = {name: value for problem in problems for name, value in problem.options.items()}
    words = ["deconfound", "ingest", str(table), *form, "--out", "SCREEN"]
    return shlex.join([*words, *flags_of(config, options)])
