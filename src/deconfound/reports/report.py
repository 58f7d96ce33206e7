"""report: one self-contained HTML page of runs, embeddings, scores and pictures."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from deconfound.data.simulation.inject import clean_name
from deconfound.display.page import data_uri, template_text, templates
from deconfound.errors import UserError
from deconfound.evaluation.scores import BASELINES, EXACT
from deconfound.files import atomic
from deconfound.reports.figures import score_dots, training_curves
from deconfound.reports.map import draw_maps
from deconfound.reports.section import Section
from deconfound.reports.sources import SCORE_COLUMNS, RunSource, Sources, find_sources
from deconfound.reports.summary import imputation_statements, statements, warnings
from deconfound.reports.tables import IMPUTATION, levels, with_levels
from deconfound.runtime.escaping import csv_text
from deconfound.version import __version__

RAW_ROWS = 2_000

SectionOf = Callable[[Sources], Section | None]
"""Makes a section of what was found; None where there is nothing to show."""
BEFORE_SCORES: tuple[SectionOf, ...] = ()
"""Sections between the summary and the scores, in their order on the page."""
AFTER_SCORES: tuple[SectionOf, ...] = ()
"""Sections between the scores and the maps, in their order on the page."""


def report(paths: Iterable[Path], out: Path, *, points: int = 3_000, seed: int = 0) -> None:
    """Write the page `out` from everything found under `paths`.

    Directories are searched for runs, `.h5ad` embeddings, `scores*.parquet` and directories of
    `transfer` and `sweep`; of the runs of a sweep only the selected ones are shown. Nothing is
    computed anew but the maps, which show at most `points` images, drawn by `seed`. The page needs
    no network. Raises UserError if `out` exists or does not end in .html, if nothing
    is found, or if files contradict each other.
    """
    out = Path(out)
    if out.suffix != ".html":
        raise UserError(f"{out}: expected a name ending in .html")
    with atomic.claimed(out):
        sources = find_sources(paths, points, seed)
        atomic.write_text(out, _page(sources, seed))


def _page(sources: Sources, seed: int) -> str:
    from plotly.offline import get_plotlyjs

    every = with_levels(sources.scores)
    of_images = every["metric"].str.startswith(IMPUTATION).astype(bool)
    imputed, scores = every[of_images], every[~of_images]
    maps, sprites = draw_maps(sources.samples, sources.runs, seed)
    curves = training_curves(sources.runs)
    dots = score_dots(scores)
    panels = [*dots, *(panel for method in curves for panel in method.panels)]
    before, after = _sections(BEFORE_SCORES, sources), _sections(AFTER_SCORES, sources)
    figures = {panel.place: panel.figure for panel in panels}
    for section in (*before, *after):
        figures |= section.figures
    data = {
        "figures": figures,
        "maps": [drawn.points for drawn in maps],
        "sheets": [
            {"source": sprite.source, "side": sprite.side, "columns": sprite.columns}
            for sprite in sprites
        ],
    }
    plotly = get_plotlyjs() if figures or any(data["maps"]) else ""
    script = template_text("report.js")
    return templates().get_template("report.html").render(
        version=__version__,
        statements=statements(scores, _environment_name(sources)),
        warnings=warnings(sources, every[~every["method"].isin((*BASELINES, EXACT))]),
        imputed=levels(imputed),
        imputation_statements=imputation_statements(imputed),
        dots=dots,
        before_scores=before,
        after_scores=after,
        sweeps=[(path, list(table.columns), table.to_numpy().tolist()) for path, table in
                sources.sweeps],
        levels=levels(scores),
        raw=sources.scores[SCORE_COLUMNS].head(RAW_ROWS).to_dict("records"),
        scores=len(sources.scores),
        csv=data_uri("text/csv", csv_text(sources.scores[SCORE_COLUMNS]).encode()),
        maps=maps,
        embeddings=len(sources.samples),
        pictures=sources.pictures,
        curves=curves,
        runs=[(run, _facts(run), _yaml(run.config), _yaml(run.provenance)) for run in sources.runs],
        data=_json_in_page(data),
        style=Markup(template_text("report.css")),
        scripts=[Markup(text) for text in (plotly, script) if text],
        policy=_policy([plotly, script]),
    )  # fmt: skip


def _sections(makers: Iterable[SectionOf], sources: Sources) -> list[Section]:
    return [section for make in makers if (section := make(sources)) is not None]


def _policy(scripts: list[str]) -> str:
    """A Content-Security-Policy that allows these scripts alone and fetches nothing."""
    digests = [hashlib.sha256(text.encode()).digest() for text in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )


def _json_in_page(data: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _environment_name(sources: Sources) -> str:
    """Names of the environment's columns without Metadata_; "Environment" if runs differ."""
    found: list[tuple[str, ...]] = [run.run.roles.environment for run in sources.runs]
    found += [tuple(sample.about["roles"]["environment"]) for sample in sources.samples]
    if len(set(found)) != 1:
        return "Environment"
    return " / ".join(column.removeprefix("Metadata_") for column in found[0])


def _facts(run: RunSource) -> list[tuple[str, str]]:
    """Names and values for the table of a run."""
    provenance = run.provenance
    counts = {part: count for part, count in run.fold["counts"].items() if count}
    commit = str(provenance.get("commit") or "")[:10]
    if commit and provenance.get("git_clean") is False:
        commit += " (with changes)"
    chosen = [] if run.dial is None else [(f"{run.dial.option} auto", run.dial.text())]
    return [
        *chosen,
        ("images", ", ".join(f"{part} {count:,}" for part, count in counts.items())),
        ("pixels", _pixels(run)),
        ("checkpoint", _checkpoints(run)),
        ("device", f"{provenance.get('device')}, {provenance.get('precision')}"),
        ("training", _duration(float(provenance.get("training_seconds", 0)))),
        ("finished", str(provenance.get("finished"))),
        ("commit", commit or "–"),
    ]


def _pixels(run: RunSource) -> str:
    """What was done to the pixels, at ingest and before the network."""
    made = run.fold["screen_provenance"]
    size = (made.get("resize") or {}).get("size")
    crop = (made.get("options") or {}).get("crop")
    done = [f"cut to {crop} px"] if crop else []
    done += [f"resized to {size} px"] if size else []
    done += [f"technical effects injected into {clean}"] if (clean := clean_name(made)) else []
    by = run.run.percentile_by
    done.append(f"transform {run.run.transform}" + (f" of each {by[-1]}" if by else ""))
    if run.run.standardise_by:
        data = run.run.config.data
        over = "" if data.standardise_with == "all" else " of controls"
        columns = " / ".join(run.run.standardise_by)
        done.append(f"standardised by {columns} ({data.standardise}{over})")
    return ", ".join([*done, f"scaling {run.config['data']['scaling']}"])


def _checkpoints(run: RunSource) -> str:
    found = []
    for stage, how in run.selection["used"].items():
        step = run.selected_step(stage)
        found.append(f"{stage}: {'last' if step is None else f'step {step:.0f} ({how})'}")
    return ", ".join(found)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
