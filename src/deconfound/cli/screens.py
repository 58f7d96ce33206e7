"""Verbs that make, show and check screens: words of the command line to calls."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model
from rich.console import Console

from deconfound.cli.arguments import (
    CellprofilerArguments,
    CheckArguments,
    DescribeArguments,
    ExportArguments,
    IngestArguments,
    InjectArguments,
    NewScreenArguments,
    SimulateArguments,
)
from deconfound.cli.documents import kept_clear, print_document, records
from deconfound.cli.encoder_arguments import ExportModelArguments, FeaturesArguments
from deconfound.cli.parsing import name_first, parse, take_option
from deconfound.cli.printing import print_table, say
from deconfound.errors import UserError
from deconfound.files.object_store import staged

if TYPE_CHECKING:
    from deconfound.data.screens.screen import Screen
    from deconfound.description.description import Description


def call_simulate(words: list[str]) -> None:
    """Make a screen of cells with planted truth."""
    from deconfound.data.screens.screen import INDEX_FILE
    from deconfound.data.simulation.simulate import SimulateConfig, simulate

    cells = take_option(words, "--cells")[1]
    if cells is not None and (not cells.isdecimal() or (Path(cells) / "screen.json").is_file()):
        call_inject(words)
        return
    arguments = create_model(
        "WithCells",
        __base__=SimulateArguments,
        simulation=(SimulateConfig, SimulateConfig()),
    )
    parsed: Any = parse(arguments, words, "simulate", SimulateArguments.__doc__ or "")
    with staged(parsed.out, (INDEX_FILE,)) as out:
        screen = simulate(out, config=parsed.simulation, quiet=parsed.quiet)
    say(f"{len(screen):,} cells in {parsed.out}")


def call_inject(words: list[str]) -> None:
    """Put technical effects into the cells of a clean screen."""
    from deconfound.data.simulation.inject import InjectConfig, inject

    arguments = create_model(
        "WithEnvironments", __base__=InjectArguments, environments=(InjectConfig, InjectConfig())
    )
    parsed: Any = parse(arguments, words, "simulate", InjectArguments.__doc__ or "")
    screen = inject(parsed.cells, parsed.out, config=parsed.environments, quiet=parsed.quiet)
    say(f"{len(screen):,} cells of {parsed.cells} with injected effects in {screen.path}")


def call_ingest(words: list[str]) -> None:
    """Make a screen of images, profiles, an array, a public data set or measured features."""
    others = {"source": call_source, "cellprofiler": call_cellprofiler}
    if words and words[0] in others:
        others[words[0]](words[1:])
        return
    from deconfound.data.ingest.arrays import ingest_array
    from deconfound.data.ingest.images import IngestConfig, ingest
    from deconfound.data.ingest.profiles import ingest_profiles
    from deconfound.data.ingest.roles import roles_said
    from deconfound.data.ingest.writing import remarks
    from deconfound.data.readers.features import Part
    from deconfound.data.screens.screen import INDEX_FILE

    arguments = create_model(
        "WithFormats", __base__=IngestArguments, formats=(IngestConfig, IngestConfig())
    )
    parsed: Any = parse(arguments, words, "ingest", IngestArguments.__doc__ or "")
    made_of = {
        "--images-root": parsed.images_root is not None,
        "--profiles": parsed.profiles,
        "--array": parsed.array is not None,
    }
    if sum(made_of.values()) != 1:
        raise UserError(f"ingest: expected one of {', '.join(made_of)}")
    if parsed.feature_columns and not parsed.profiles:
        raise UserError("ingest: --feature-columns belongs to --profiles; add it")
    if (parsed.layer or parsed.obsm) and not parsed.profiles:
        raise UserError("ingest: --layer and --obsm belong to --profiles; add it")
    if (parsed.array_key or parsed.array_axes) and parsed.array is None:
        raise UserError("ingest: --array-key and --array-axes belong to --array; add it")
    if parsed.table is None and not made_of["--images-root"]:
        raise UserError("ingest: name the table first: deconfound ingest TABLE …")
    cluster = parsed.cluster()
    if cluster is not None and not made_of["--images-root"]:
        raise UserError("ingest: --executor ray reads image files; it belongs to --images-root")
    common = {"config": parsed.formats, "quiet": parsed.quiet}
    with staged(parsed.out, (INDEX_FILE,)) as out:
        if parsed.profiles:
            part = Part(parsed.layer, parsed.obsm)
            named = {"features": parsed.feature_columns, "part": part}
            screen = ingest_profiles(parsed.table, out, **named, **common)
        elif parsed.array is not None:
            shape = {"key": parsed.array_key, "axes": parsed.array_axes}
            screen = ingest_array(parsed.table, parsed.array, out, **shape, **common)
        else:
            screen = ingest(parsed.table, parsed.images_root, out, cluster=cluster, **common)
    what = "profiles" if screen.holds_profiles else "images"
    say(f"{len(screen):,} {what} in {parsed.out}")
    say(roles_said(screen))
    for remark in remarks(screen.provenance):
        say(remark)
    if not parsed.quiet:
        _say_forms(screen)


def call_source(words: list[str]) -> None:
    """Make a screen of a public data set."""
    from deconfound.data import sources
    from deconfound.data.ingest.roles import roles_said

    found = sources.discover()
    name = name_first(words, "ingest source", "data set", sorted(found))
    module = found[name]
    arguments = create_model(
        "SourceArguments",
        __base__=NewScreenArguments,
        root=(Path, ...),
        source=(module.Config, module.Config()),
    )
    parsed: Any = parse(arguments, words[1:], f"ingest source {name}", module.SUMMARY)
    screen = module.make(parsed.root, parsed.out, parsed.source)
    say(f"{len(screen):,} images in {screen.path}")
    say(roles_said(screen))
    _say_forms(screen)


def _say_forms(screen: "Screen") -> None:
    """Print which channels and axes were taken."""
    from deconfound.data.ingest.forms import form_lines

    for line in form_lines(screen):
        say(line)


def call_cellprofiler(words: list[str]) -> None:
    """Measure CellProfiler's features."""
    parsed = parse(CellprofilerArguments, words, "ingest cellprofiler")
    from deconfound.data.ingest.cellprofiler import cellprofiler
    from deconfound.data.ingest.roles import roles_said

    made = cellprofiler(**dict(parsed))
    say(f"{len(made):,} profiles of {len(made.channels):,} features in {made.path}")
    say(roles_said(made))


def call_features(words: list[str]) -> None:
    """Embed a screen once with a frozen encoder."""
    from deconfound.embeddings.features import features

    made = features(**dict(parse(FeaturesArguments, words, "features")), say=say)
    say(f"{len(made):,} profiles of {len(made.channels):,} features in {made.path}")


def call_describe(words: list[str]) -> None:
    """Print what a screen holds."""
    parsed = parse(DescribeArguments, words, "describe")
    from deconfound.description.describe import describe
    from deconfound.description.page import text_tables

    asked = {name: value for name, value in dict(parsed).items() if name != "as_json"}
    with kept_clear(parsed.as_json):
        description = describe(**asked)
    page = None if parsed.out is None else parsed.out / "describe.html"
    if parsed.as_json:
        print_document(_document(description, page))
        return
    for table in text_tables(description, most=24, width=Console().width):
        say("")
        say(table.title)
        if table.rows:
            print_table(table.columns, table.rows, plain=True)
        if table.note:
            say(table.note)
    for warning in description.warnings:
        say(f"! {warning}")
    if page is not None:
        say(f"page in {page}")


def _document(found: "Description", page: Path | None) -> dict[str, Any]:
    return {
        "screen": found.screen.path,
        "channels": found.screen.channels,
        "label": found.roles.label,
        "environment": found.roles.environment,
        "counts": found.counts,
        "levels": records(found.levels),
        "occupancy": records(found.occupancy),
        "folds": records(found.folds),
        "statistics": records(found.statistics),
        "images_read": found.images_read,
        "shared_information": found.shared_information,
        "warnings": found.warnings,
        "page": page,
    }


def call_export(words: list[str]) -> None:
    """Write a screen as common files."""
    parsed = parse(ExportArguments, words, "export")
    from deconfound.data.screens.export import export

    command = export(**dict(parsed))
    say(f"{parsed.out}; back to a screen with: {command}")


def call_export_model(words: list[str]) -> None:
    """Write a run's encoder as a model directory."""
    from deconfound.reports.model_directory import export_model

    parsed = parse(ExportModelArguments, words, "export-model")
    made = export_model(**dict(parsed))
    say(f"{made.config['embedding']} of {made.config['features']} features in {parsed.out}")


def call_check(words: list[str]) -> None:
    """Verify a screen, a run, embeddings or scores."""
    parsed = parse(CheckArguments, words, "check")
    from deconfound.verification import check

    say(check(parsed.path))
