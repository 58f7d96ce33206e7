"""What a paper's methods section says of the runs of a report, and the commands to run again."""

import shlex
from collections.abc import Callable
from typing import Any

from deconfound import methods
from deconfound.data.tables.table import natural_order
from deconfound.errors import UserError
from deconfound.methods import post_hoc
from deconfound.methods.contract import Method
from deconfound.methods.contract.post_hoc import PostHoc
from deconfound.reports.sources import RunSource, Sources

UMAP = "McInnes et al., UMAP, 2018"
PROBE = "Makino et al., Supervised Contrastive Block Disentanglement, section 4.2.1"
SHOWN = (
    ("encoder", "options.encoder"),
    ("optimizer", "options.optimizer"),
    ("learning rate", "options.learning_rate"),
    ("weight decay", "options.weight_decay"),
    ("alpha", "options.alpha"),
    ("temperature", "options.temperature"),
    ("batch size", "training.batch_size"),
    ("sampler", "training.sampler"),
    ("augmentation", "training.augment"),
    ("schedule", "training.schedule"),
    ("pixels", "data.transform"),
    ("scaling", "data.scaling"),
    ("standardised by", "data.standardise_by"),
)
"""Names of options in the text, and where a configuration holds them."""


def paragraph(sources: Sources) -> str:
    """The methods, versions, options, folds and seeds in sentences; empty without runs."""
    runs = sources.runs
    if not runs:
        return ""
    said = [f"Image embeddings were learnt with {_software(runs)}."]
    for name in sorted({run.name for run in runs}, key=natural_order):
        said.append(_of_method(name, [run for run in runs if run.name == name]))
    if corrected := _corrections(sources):
        said.append(f"Embeddings were corrected post hoc by {corrected}.")
    said.append(_folds(runs))
    metrics = set(sources.scores["metric"])
    if "macro_f1" in metrics:
        said.append(
            "Predictions were scored by macro-F1 on rows of the held-out groups, whose labels no "
            "step of training or selection read."
        )
    if "probe_environment_macro_f1" in metrics:
        said.append(f"The environment was read by a linear probe ({PROBE}).")
    if sources.samples:
        said.append(f"Maps are UMAP ({UMAP}).")
    return " ".join(said)


def commands(sources: Sources) -> list[str]:
    """The commands that train every run of the page again, as a shell reads them."""
    lines = []
    for found in sources.verdicts:
        if found.verdict.command:
            out = shlex.quote(f"{found.path.parent}-again")
            lines.append(f"{found.verdict.command} --out {out}")
    for run in sorted(sources.runs, key=lambda run: natural_order(run.title)):
        out = f"{run.path.name}-again"
        words = ["fit", run.config["method"], str(run.fold["screen"])]
        words += ["--config", str(run.path / "config.yaml"), "--out", out]
        lines.append(f"deconfound {_words(words)}")
        words = ["embed", out, str(run.fold["screen"]), "--out", f"{out}.h5ad"]
        lines.append(f"deconfound {_words(words)}")
    if sources.runs:
        lines.append("deconfound measure *-again.h5ad --out scores-again.parquet")
        lines.append("deconfound report *-again *-again.h5ad scores-again.parquet --out again.html")
    return lines


def _words(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _software(runs: list[RunSource]) -> str:
    versions: dict[str, list[str]] = {}
    for run in runs:
        packages = dict(run.provenance.get("packages") or {})
        if python := run.provenance.get("python"):
            packages["Python"] = python
        for package, version in packages.items():
            versions.setdefault(package, []).append(str(version))
    named = {name: " and ".join(sorted(set(found))) for name, found in versions.items()}
    own = named.pop("deconfound", "")
    rest = ", ".join(f"{name} {version}" for name, version in named.items())
    return f"deconfound {own}".strip() + (f" ({rest})" if rest else "")


def _of_method(name: str, runs: list[RunSource]) -> str:
    """ "scbd (Makino et al. …): 150 steps, encoder small, …; 4 runs."; options that vary say so."""
    cited = _paper(methods.load, str(runs[0].config["method"]))
    steps = _values(runs, "training.steps")
    options = [f"{' or '.join(steps)} steps"] if steps else []
    for noun, key in SHOWN:
        if found := _values(runs, key):
            options.append(f"{noun} {' or '.join(found)}")
    count = f"{len(runs)} run" + "s" * (len(runs) != 1)
    chosen = sorted({how for run in runs for how in run.selection["used"].values()})
    ends = f"checkpoints by {' and '.join(chosen)}" if chosen else ""
    return f"{name} ({cited}): {', '.join([*options, *[ends] * bool(ends)])}; {count}."


def _corrections(sources: Sources) -> str:
    """Post hoc corrections of the embeddings, each with its paper."""
    found = [dict(sample.about.get("config") or {}).get("post_hoc") for sample in sources.samples]
    names = sorted({str(name) for one in found if one for name in one})
    return ", ".join(f"{name} ({_paper(post_hoc.load, name)})" for name in names)


def _paper(load: Callable[[str], type[Method] | type[PostHoc]], name: str) -> str:
    try:
        return load(name).PAPER
    except UserError:  # a method of the reader's own that is not installed here
        return name


def _values(runs: list[RunSource], key: str) -> list[str]:
    found = []
    for run in runs:
        value: Any = run.config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        if value not in (None, [], "none"):
            shown = " / ".join(map(str, value)) if isinstance(value, list) else f"{value}"
            found.append(shown)
    return sorted(set(found), key=natural_order)


def _folds(runs: list[RunSource]) -> str:
    folds = sorted({str(run.config["data"]["fold"]) for run in runs}, key=natural_order)
    seeds = sorted({int(run.config["seed"]) for run in runs})
    shown = ", ".join(folds[:12]) + (f" and {len(folds) - 12} more" if len(folds) > 12 else "")
    plural = "s" * (len(seeds) != 1)
    validated = " or ".join(_values(runs, "data.val_fraction"))
    inner = " or ".join(_values(runs, "data.id_test_fraction"))
    said = f"Held out, one at a time: {shown}; seed{plural} {', '.join(map(str, seeds))}."
    if validated and inner:
        said += (
            f" Of all other rows a share of {validated} validated and {inner} was scored in "
            "distribution."
        )
    return said
