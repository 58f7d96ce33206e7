"""retrieval: scores of how profiles of one perturbation, or of one target, retrieve each other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from deconfound.data.folds.controls import control_rows
from deconfound.data.tables.table import coded, joined, require_columns
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.scores import NamedScore, score_row, write_scores
from deconfound.files import atomic, seal
from deconfound.metrics.retrieval import Form, load_copairs, profile_retrieval

SETTING = ["method", "fold", "seed", "representation", "part"]
DETAILS = [*SETTING, "form", "group", "mean_average_precision", "p_value", "corrected_p_value"]


def retrieval(
    embeddings: Iterable[Path],
    out: Path,
    *,
    target: str | None = None,
    control: str | None = None,
    parts: tuple[str, ...] = (),
    details: Path | None = None,
    null_size: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score how profiles of one perturbation (the label) retrieve each other, one row a score.

    Scored are activity; cross-batch activity where there are two environments or more; and, with
    the column `target`, consistency. Scores are returned and written to the Parquet file `out`,
    those of each perturbation or target to `details`. Raises UserError without copairs, if an
    output exists or is being written, for a file, column or part that is missing, without controls,
    and for more profiles than `profile_retrieval` takes.
    """
    paths = [Path(path) for path in embeddings]
    if not paths:
        raise UserError("nothing to score; give one or more .h5ad files")
    load_copairs()
    if details is not None:
        atomic.refuse_existing(Path(details))
    groups: list[dict[str, Any]] = []

    def score() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in paths:
            scores, found = _scored(path, target, control, parts, null_size=null_size, seed=seed)
            rows += scores
            groups.extend(found)
        return rows

    table = write_scores(out, score)
    if details is not None:
        with atomic.claimed(Path(details)):
            seal.write_frame(Path(details), pd.DataFrame(groups, columns=DETAILS))
    return table


def _scored(
    path: Path,
    target: str | None,
    control: str | None,
    parts: tuple[str, ...],
    **draws: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of the scores of one file, and a line of details for each group in it.

    `draws` are the size of the null and its seed, as in `retrieval`.
    """
    rows: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    opened = read_embeddings(path)
    label = opened.roles.label
    if label is None:
        raise UserError(f"{path}: no label, which is the perturbation; ingest with --label")
    taken = opened.of_parts(parts, str(path))
    scored = parts[0] if len(parts) == 1 else "all"
    table = opened.table[taken]
    controls = control_rows(table, label, control, str(path))
    perturbation = coded(joined(table, [label]))
    codes: dict[Form, dict[str, Any]] = {"activity": {}}
    names = {"activity": perturbation.names, "cross_batch": perturbation.names}
    if opened.roles.environment:
        environment = coded(opened.environment()[taken])
        if len(environment.names) > 1:
            codes["cross_batch"] = {"environment": environment.codes}
    if target is not None:
        require_columns(table, [target], str(path))
        of_target = coded(joined(table, [target]))
        codes["consistency"], names["consistency"] = {"target": of_target.codes}, of_target.names
    for block, values in sorted(opened.representations.items()):
        for form, named in codes.items():
            found = profile_retrieval(
                values[taken], perturbation.codes, controls, form, **draws, **named
            )
            for metric, score in (("map", found.mean()), ("share", found.share())):
                row = NamedScore(block, f"retrieval_{form}_{metric}", scored, score)
                rows.append(score_row(opened.about, str(opened.about["fold"]), row))
            setting = {name: rows[-1][name] for name in SETTING} | {"form": form}
            columns = found.mean_average_precision, found.p_value, found.corrected_p_value
            groups += [
                setting | dict(zip(DETAILS[6:], (names[form][code], *one), strict=True))
                for code, *one in zip(found.group, *columns, strict=True)
            ]
    return rows, groups
