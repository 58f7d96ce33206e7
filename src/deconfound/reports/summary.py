"""The summary of a report: scores in sentences, and warnings."""

import math
from collections import Counter
from typing import Literal, NamedTuple

import pandas as pd

from deconfound.data.tables.table import natural_order
from deconfound.evaluation.scores import ALONE, EXACT, MOMENTS
from deconfound.reports.sources import RunSource, Sources
from deconfound.reports.tables import (
    Spread,
    level_title,
    main_representation,
    over,
    part_title,
    spread,
)
from deconfound.runs.config import ADAPTED, ALIGNED, SAW_HELD_OUT, STANDARDISED

FULL_COVERAGE = 0.999
STILL_FALLING = 0.02
"""Largest share of a loss's whole fall that its last step may have if it has levelled off."""
PROBED = ("id_test", "id", "test", "val")


class Statement(NamedTuple):
    """One sentence of the summary."""

    subject: str
    text: str


def statements(scores: pd.DataFrame, environment: str) -> list[Statement]:
    """Scores on held-out rows by level, on in-distribution rows, and of the environment's probe.

    `scores` comes from `with_levels`; `environment` names the environment's columns.
    """
    found: list[Statement] = []
    predicted = scores[scores["representation"] == "prediction"]
    by_level = sorted(scores["level"].unique(), key=lambda name: (name == "iid", name))
    for parts in (("test",), ("id_test", "val")):
        for level in by_level:
            part, rows = of_first(parts, predicted[predicted["level"] == level])
            if part is None or (level == "iid" and part != "test"):
                continue
            subject = level_title(level)
            if part != "test":
                noun = "Validation" if part == "val" else "In distribution"
                subject = noun if len(by_level) == 1 else f"{noun} ({_lowered(subject)})"
            elif level == "given":
                subject += f", {part_title(level, part)}"
            sentence = _comparison(rows, "macro_f1", "higher")
            found += [Statement(subject, sentence)] if sentence else []
    probed = scores[scores["metric"].str.startswith("probe_environment_macro_f1")]
    for level in by_level:
        _, rows = of_first(PROBED, probed[probed["level"] == level])
        sentence = _comparison(rows, "probe_environment_macro_f1", "lower")
        if sentence:
            subject = f"{environment} read from the embedding, the less the better"
            if len(by_level) > 1:
                subject += f" ({_lowered(level_title(level))})"
            found.append(Statement(subject, sentence))
    return found


def imputation_statements(scores: pd.DataFrame) -> list[Statement]:
    """How near imputed images come to the true ones, how often they show another phenotype, and how
    well their source is read.

    `scores` comes from `with_levels` and holds the metrics of imputed images alone.
    """
    found = []
    whole = scores[scores["representation"] == "image"]
    for level in sorted(whole["level"].unique()):
        part, inside = of_first(("test", "id_test"), whole[whole["level"] == level])
        sentences = []
        for method, rows in inside.groupby("method"):
            error, wrong = (
                spread(rows[rows["metric"] == f"imputation_{name}"])
                for name in ("error", "hallucination")
            )
            if method != ALONE and not math.isnan(error.mean):
                aside = "" if math.isnan(wrong.mean) else f" ({wrong.mean:.0%} hallucinated)"
                said = f"{method} {error.text(2)}{aside}"
                sentences.append((method == MOMENTS, error.mean, said))
        if sentences:
            subject = f"Error of imputed images, {_lowered(level_title(str(level)))}"
            subject += "" if part == "test" else ", in distribution"
            text = ", ".join(said for *_, said in sorted(sentences))
            found.append(Statement(subject, f"{text}."))
        found += _source_statements(str(level), whole[whole["level"] == level])
    return found


def _source_statements(level: str, scores: pd.DataFrame) -> list[Statement]:
    """How well the environment, and the outermost level, that images came from can be read."""
    found = []
    for kind, noun in (("environment", "environment"), ("level", "outermost level")):
        metric = f"imputation_source_{kind}"
        part, read = of_first(("id_test", "train"), scores[scores["metric"] == metric])
        spreads = {str(method): spread(rows) for method, rows in read.groupby("method")}
        spreads = {name: one for name, one in spreads.items() if not math.isnan(one.mean)}
        order = sorted(spreads, key=lambda name: (name == EXACT, name == ALONE, name == MOMENTS))
        chances = scores.loc[scores["metric"] == f"{metric}_chance", "value"].dropna().tolist()
        if spreads:
            text = ", ".join(f"{name} {spreads[name].text(2)}" for name in order)
            subject = f"Source {noun} read from imputed images, {_lowered(level_title(level))}"
            subject += f", {part_title(level, str(part))}"
            found.append(Statement(subject, f"{text} (balanced accuracy{_chance(chances)})."))
    return found


def warnings(sources: Sources, scores: pd.DataFrame) -> list[str]:
    """Sentences about what limits the scores or their comparison."""
    return [
        *_adapted(sources, scores),
        *_alarms(scores),
        *_coverage(scores),
        *_undefined(scores),
        *_replicates(scores),
        *_comparability(sources, scores),
        *_unfinished(sources.runs),
        *(f"Left out: {reason}" for reason in sources.left_out),
    ]


def of_first(parts: tuple[str, ...], rows: pd.DataFrame) -> tuple[str | None, pd.DataFrame]:
    """The first of `parts` that has rows, and its rows."""
    part = next((part for part in parts if (rows["part"] == part).any()), None)
    return part, rows[rows["part"] == part]


def _comparison(rows: pd.DataFrame, metric: str, better: Literal["higher", "lower"]) -> str:
    """ "scbd 0.71 ± 0.03, against 0.42 ± 0.05 for erm (…)", or nothing without a score."""
    spreads: dict[str, Spread] = {}
    chances = []
    for method, of_method in rows.groupby("method"):
        representation = main_representation(of_method)
        main = of_method[of_method["representation"] == representation]
        one = spread(main[main["metric"] == metric])
        if math.isnan(one.mean):
            continue
        name = str(method) if representation == "prediction" else f"{method} {representation}"
        spreads[name] = one
        chance = spread(main[main["metric"] == f"{metric}_chance"])
        chances += [] if math.isnan(chance.mean) else [chance.mean]
    if not spreads:
        return ""
    ranked = sorted(spreads.items(), key=lambda item: item[1].mean, reverse=better == "higher")
    name, best = ranked[0]
    text = f"{name} {best.text(2)}"
    others = [f"{one.text(2)} for {other}" for other, one in ranked[1:]]
    if others:
        text += f", against {_listed(others)}"
    spread_over = over(spreads.values())
    aside = f", mean ± sd over {spread_over}" if spread_over else ""
    text += f" (macro-F1{aside}{_chance(chances)})."
    sds = [one.sd for _, one in ranked[:2] if not math.isnan(one.sd)]
    if others and sds and abs(best.mean - ranked[1][1].mean) <= max(sds):
        text += f" The difference between {name} and {ranked[1][0]} is within one sd."
    return text


def _chance(chances: list[float]) -> str:
    if not chances:
        return ""
    low, high = f"{min(chances):.2f}", f"{max(chances):.2f}"
    return f"; chance {low}" if low == high else f"; chance {low}–{high}"


def _adapted(sources: Sources, scores: pd.DataFrame) -> list[str]:
    """What is said of methods that make use of images of test rows."""
    trained = {r.name for r in sources.runs if r.config["options"].get("domain_adaptation")}
    standardised = {r.name for r in sources.runs if r.config["data"].get("standardise_by")}
    contextual = {r.name for r in sources.runs if r.config["options"].get("context_images")}
    found = []
    for note, names, use in (
        (SAW_HELD_OUT, trained, "was trained with images of test rows"),
        (STANDARDISED, standardised, "standardised groups never seen by images of test rows"),
        (ADAPTED, contextual, "took batch statistics of environments never seen over test images"),
        (ALIGNED, set(), "aligned groups never seen by embeddings of test rows"),
    ):
        told = scores["note"].str.contains(note, regex=False)
        found += [
            f"{name} {use}, without their labels: its scores there are those of domain adaptation "
            "and not of environments never seen."
            for name in sorted(names | {str(name) for name in scores["method"][told]})
        ]
    return found


def _alarms(scores: pd.DataFrame) -> list[str]:
    found = []
    for word, meaning in (
        ("collapsed", "has collapsed to a point: its scores mean little; lower alpha"),
        ("not converged", "was read by a probe that had not converged: such a score is left out, "
         "or in files of earlier releases a lower bound"),
    ):  # fmt: skip
        raised = scores[scores["note"].str.contains(word, regex=False)]
        for (method, representation), rows in raised.groupby(["method", "representation"]):
            runs = len(rows[["fold", "seed"]].drop_duplicates())
            found.append(f"The {representation} of {method} {meaning} ({_count(runs, 'run')}).")
    return found


def _coverage(scores: pd.DataFrame) -> list[str]:
    rows = scores[(scores["metric"] == "class_coverage") & (scores["value"] < FULL_COVERAGE)]
    return [
        f"{level_title(str(level))}, {part_title(str(level), str(part))}: training has only "
        f"{of_part['value'].min():.0%} of the labels{' in the worst fold' * (folds > 1)}; the "
        "scores are of those labels alone."
        for (level, part), of_part in rows.groupby(["level", "part"])
        if (folds := of_part["fold"].nunique())
    ]


def _undefined(scores: pd.DataFrame) -> list[str]:
    rows = scores[(scores["metric"] == "macro_f1") & scores["value"].isna()]
    return [
        f"macro-F1 of {row['method']} on {row['fold']}, {row['part']}, seed {row['seed']} is "
        f"undefined: {row['note'] or 'no reason given'}."
        for row in rows.to_dict("records")
    ]


def _replicates(scores: pd.DataFrame) -> list[str]:
    seeds = scores.groupby("method")["seed"].nunique()
    single = sorted(seeds[seeds == 1].index, key=natural_order)
    said = f"Only one seed of {_listed(single)}: the spread between training runs is unknown."
    return [said] if single else []


def _comparability(sources: Sources, scores: pd.DataFrame) -> list[str]:
    found = []
    for level, rows in scores[scores["part"] == "test"].groupby("level"):
        folds = {str(method): frozenset(own["fold"]) for method, own in rows.groupby("method")}
        if len(set(folds.values())) > 1:
            found.append(
                f"{level_title(str(level))}: {_listed(sorted(folds))} were not scored on "
                "the same folds, so their means are not comparable."
            )
    screens = {str(run.fold["screen_identity"]): str(run.fold["screen"]) for run in sources.runs}
    if len(screens) > 1:
        found.append(
            f"The runs were trained on {len(screens)} different screens: "
            f"{_listed(sorted(screens.values()))}."
        )
    return found


def _unfinished(runs: list[RunSource]) -> list[str]:
    """Stages whose validation loss was lowest at the end and had not levelled off."""
    improving: Counter[str] = Counter()
    for run in runs:
        rows = run.history[(run.history["part"] == "val") & (run.history["name"] == "loss")]
        for stage, of_stage in rows.groupby("stage", sort=False):
            losses = of_stage["value"].to_numpy(dtype=float)
            if len(losses) < 2 or losses[-1] > losses.min():
                continue
            if losses[-2] - losses[-1] > STILL_FALLING * (losses.max() - losses[-1]):
                improving[f"{run.name}, stage {stage}"] += 1
    stages = [f"{key} ({_count(count, 'run')})" for key, count in improving.items()]
    said = (
        f"The validation loss was still falling at the last step of {_listed(stages)}: more steps "
        "may change the scores."
    )
    return [said] if stages else []


def _lowered(title: str) -> str:
    return title[0].lower() + title[1:]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _listed(words: list[str]) -> str:
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"
