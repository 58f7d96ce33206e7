"""What a study starts from: a screen, or a table that becomes one."""

import json
from pathlib import Path
from typing import Any

from deconfound.config import validated
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.ingest.suggested import command_for, holds_profiles
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.atomic import refuse_foreign
from deconfound.files.checksums import sha256
from deconfound.files.object_store import is_url
from deconfound.studies.comparison import CompareOptions

RECORD = "source.json"
DEMO_MARKER = "demo.json"
"""Stands in the directory of a demonstration, whose study is begun later."""


def refuse_other(out: Path, marker: str, kind: str, content: str | None = None) -> None:
    """As `refuse_foreign`, but a directory in which a screen was made for it alone is free."""
    begun = any((out / record).is_file() for record in (RECORD, DEMO_MARKER))
    if not begun or any(out.glob("*.yaml")):  # the plan of this comparison, or of another
        refuse_foreign(out, marker, kind, content)


def screen_of(source: Path, out: Path, options: CompareOptions, quiet: bool) -> Screen:
    """The screen `source`, or the one in `out/screen` that is made of the table `source`.

    A table of images needs `options.images_root`; label, environment and levels are those of the
    options, or are found by their names. A killed call resumes. Raises UserError for a table of
    images without their folder, a folder beside a screen or profiles, an `out` that was made of
    another table, and all that `ingest` refuses.
    """
    if source.is_dir() or is_url(source):
        if options.images_root is not None:
            raise UserError(
                f"compare: --images-root belongs to a table; {source} is a folder, leave it out"
            )
        return open_screen(source)
    profiles = holds_profiles(source)
    if profiles and options.images_root is not None:
        raise UserError(
            f"{source}: holds features; leave --images-root out, or name the table of images"
        )
    if not profiles and options.images_root is None:
        raise UserError(
            f"{source}: a table of images; add --images-root FOLDER, from which its paths start, "
            f"or make a screen first: {command_for(source)}"
        )
    claim(out, made_of(str(source.resolve()), sha256(source), options))
    if (out / "screen").exists():
        return open_screen(out / "screen")
    return ingested(source, out, options, quiet)


def ingested(table: Path, out: Path, options: CompareOptions, quiet: bool) -> Screen:
    """Make the screen `out/screen` of a table, of images where their folder is given."""
    roles = {"label": options.label, "environment": options.environment, "levels": options.levels}
    given = {name: value for name, value in roles.items() if value}
    config = validated(IngestConfig, given | {"name": table.stem}, "compare")
    if options.images_root is None:
        return ingest_profiles(table, out / "screen", config=config, quiet=quiet)
    return ingest(table, options.images_root, out / "screen", config=config, quiet=quiet)


def made_of(table: str, digest: str, options: CompareOptions) -> dict[str, Any]:
    """What a screen is made of, as JSON takes it: where it is from, its SHA-256 and its roles."""
    return {
        "table": table,
        "sha256": digest,
        "images_root": options.images_root and str(options.images_root.resolve()),
        "label": options.label,
        "environment": list(options.environment),
        "levels": list(options.levels),
    }


def claim(out: Path, origin: dict[str, Any]) -> None:
    """Write the `origin` of `out/screen`, as `made_of` gives it.

    Raises UserError if `out/screen` was made of something else, and if `out` holds something else.
    """
    record = out / RECORD
    if record.is_file() and (out / "screen").exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        differing = [name for name, value in origin.items() if before.get(name) != value]
        if differing:
            raise UserError(
                f"{out}: was begun with another {differing[0].replace('_', ' ')} "
                f"({before.get(differing[0])}); choose another --out"
            )
        return
    if (
        out.exists()
        and not record.is_file()
        and any(not atomic.is_leftover(one.name) for one in out.iterdir())
    ):
        raise UserError(f"{out}: exists and is not a study; choose another --out")
    atomic.write_text(record, json.dumps(origin, indent=2))
