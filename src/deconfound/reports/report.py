"""report: one self-contained HTML page of runs, embeddings, scores and pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from deconfound.display.page import page
from deconfound.display.palette import FEW, MANY, OTHER
from deconfound.errors import UserError
from deconfound.evaluation.scores import BASELINES, EXACT
from deconfound.files import atomic
from deconfound.reports.columns import Pool
from deconfound.reports.figures import score_slopes, training_curves
from deconfound.reports.headline import headlines
from deconfound.reports.leaderboard import BASELINE
from deconfound.reports.map import MANY as MANY_POINTS
from deconfound.reports.map import draw_maps
from deconfound.reports.methods_text import commands, paragraph
from deconfound.reports.pictures import LOW_SHARE
from deconfound.reports.run_facts import facts
from deconfound.reports.sections import sections
from deconfound.reports.sources import SCORE_COLUMNS, Sources, find_sources
from deconfound.reports.summary import imputation_statements, statements, warnings
from deconfound.reports.tables import IMPUTATION, levels, with_levels


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
    every = with_levels(sources.scores)
    of_images = every["metric"].str.startswith(IMPUTATION).astype(bool)
    imputed, scores = every[of_images], every[~of_images]
    pool = Pool()
    maps, sprites = draw_maps(sources.samples, sources.runs, seed, pool)
    points = [drawn.points for drawn in maps if drawn.points is not None]
    many = sum(one["count"] for one in points) > MANY_POINTS
    curves = training_curves(sources.runs)
    slopes = score_slopes(scores, BASELINE)
    before, after = sections(sources, seed)
    figures = {
        panel.place: panel.figure
        for panel in [*slopes, *(panel for method in curves for panel in method.panels)]
    }
    data = {
        "figures": figures,
        "maps": points,
        "columns": pool.entries,
        "arrays": pool.arrays,
        "colours": {"few": FEW, "many": MANY, "other": OTHER},
        "webgl": many,
        "sheets": [
            {"source": sprite.source, "side": sprite.side, "columns": sprite.columns}
            for sprite in sprites
        ],
        "tables": {"scores": _rows(sources.scores[SCORE_COLUMNS])},
    }
    return page(
        "report.html",
        data,
        plots=bool(figures or points),
        many=many,
        headlines=headlines(sources.verdicts, scores),
        statements=statements(scores, _environment_name(sources)),
        warnings=warnings(sources, every[~every["method"].isin((*BASELINES, EXACT))]),
        imputed=levels(imputed),
        imputation_statements=imputation_statements(imputed),
        slopes=slopes,
        before=before,
        after=after,
        sweeps=[(path, list(table.columns), table.to_numpy().tolist()) for path, table in
                sources.sweeps],
        levels=levels(scores),
        score_columns=SCORE_COLUMNS,
        scores=len(sources.scores),
        maps=maps,
        points=len(points),
        left_out=sorted({name for drawn in maps for name in drawn.left_out}),
        embeddings=len(sources.samples),
        pictures=sources.pictures,
        low_share=LOW_SHARE,
        curves=curves,
        paragraph=paragraph(sources),
        commands=commands(sources),
        runs=[(run, facts(run), _yaml(run.config), _yaml(run.provenance)) for run in sources.runs],
    )  # fmt: skip


def _rows(table: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows as JSON; null where a number is undefined."""
    rows = table.astype(object).to_numpy(copy=True)
    rows[table.isna().to_numpy()] = None
    return {"columns": list(table.columns), "rows": rows.tolist()}


def _environment_name(sources: Sources) -> str:
    """Names of the environment's columns without Metadata_; "Environment" if runs differ."""
    found: list[tuple[str, ...]] = [run.run.roles.environment for run in sources.runs]
    found += [tuple(sample.about["roles"]["environment"]) for sample in sources.samples]
    if len(set(found)) != 1:
        return "Environment"
    return " / ".join(column.removeprefix("Metadata_") for column in found[0])


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
