"""The run that a study recommends, trained on all groups and ready for the next plate."""

import json
from pathlib import Path
from typing import Any

from deconfound.embeddings.embed import embed
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import configured, on_fold, points
from deconfound.experiments.running.chain import corrected
from deconfound.files import atomic
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

FOLDER = "recommended"
FOLD = "iid"


def write_recommended(plan: Plan, name: str, out: Path, quiet: bool) -> Path:
    """Train the chain `name` of a plan of one screen with random rows held out, and embed it.

    `out/recommended` then holds `run`, `embeddings.h5ad` of the whole screen, `imputer` where the
    run is trained on imputed images, and `corrected.h5ad` where the chain corrects. What is there
    is not made again; what was made for another screen, chain or configuration goes. Raises
    UserError as `fit`, `embed` and `correct` do.
    """
    folder = out / FOLDER
    (screen,) = plan.screens
    chain = next(one for one in plan.chains if one.name == name)
    entry = plan.file.methods[chain.entry]
    path = Path("compare")
    (point,) = points(path, plan.file, chain.entry, entry)
    config, _ = on_fold(path, plan.file, chain.entry, entry, point, plan.screens[screen], FOLD)
    config = config.model_copy(update={"seed": plan.file.seeds[0]})
    about: dict[str, Any] = {"method": name, "config": config.model_dump(mode="json")}
    about |= {"screen": plan.screens[screen].identity, "knn": chain.knn, "options": chain.options}
    record = json.dumps(about, indent=2)
    file = folder / "recommended.json"
    if file.is_file() and file.read_text(encoding="utf-8") != record:
        atomic.discard(folder)
    atomic.write_text(file, record)
    if entry.intervene is not None:
        config = _with_imputer(plan, entry.intervene, config, screen, folder, quiet)
    fit(config, screen, folder / "run", quiet=quiet)
    embeddings = folder / "embeddings.h5ad"
    if not embeddings.exists():
        embed(folder / "run", screen, embeddings, quiet=quiet)
    if chain.is_post_hoc:
        corrected(chain, embeddings, folder / "corrected.h5ad")
    return folder


def _with_imputer(
    plan: Plan, imputer: str, config: RunConfig, screen: Path, folder: Path, quiet: bool
) -> RunConfig:
    entry = plan.file.methods[imputer]
    own = configured(Path("compare"), plan.file, imputer, entry, {})
    update = {"data": own.data.model_copy(update={"fold": FOLD}), "seed": config.seed}
    fit(own.model_copy(update=update), screen, folder / "imputer", quiet=quiet)
    intervention = config.intervention.model_copy(
        update={"intervene": (folder / "imputer").resolve()}
    )
    return config.model_copy(update={"intervention": intervention})
