"""The judge of a study: renews its verdict and its page with every run that has ended."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen
from deconfound.description.information import shared_information
from deconfound.errors import UserError
from deconfound.experiments.choice import choose_chains
from deconfound.experiments.execute import Done
from deconfound.experiments.plan import Plan
from deconfound.files import atomic, seal
from deconfound.reports.report import report
from deconfound.studies.comparison import CompareOptions
from deconfound.studies.verdict import Verdict, make_verdict

VERDICT, PAGE = "verdict.json", "report.html"


@dataclass(frozen=True)
class Judge:
    """Makes the verdict of what a plan has reached."""

    screen: Screen
    options: CompareOptions
    names: tuple[str, ...]
    folds: pd.DataFrame
    command: str

    def renew(self, plan: Plan, done: Done, out: Path) -> None:
        """Write verdict.json and the page of what has ended so far."""
        self.write(plan, done, out)
        seal.write_frame(out / "scores.parquet", done.scores)
        self.page(out)

    def page(self, out: Path) -> None:
        """Write report.html anew."""
        renewed = out / f".{PAGE}"
        atomic.discard(renewed)
        report([out], renewed)
        renewed.replace(out / PAGE)

    def write(self, plan: Plan, done: Done, out: Path) -> Verdict:
        """Write verdict.json; raises UserError if every run failed."""
        if not done.results:
            raise UserError(f"{out}: every run failed; {out / 'failures.csv'} says why")
        found = self.judge(plan, done, out)
        atomic.write_text(out / VERDICT, json.dumps(found.record(), indent=2))
        return found

    def judge(self, plan: Plan, done: Done, out: Path) -> Verdict:
        """The verdict of the runs that have ended."""
        roles = roles_of(self.screen, self.options.data)
        chosen = choose_chains(plan, done.taken(), done.results, out, self.names[0])
        label, environment = (
            self.screen.coded([str(roles.label)]), self.screen.coded(roles.environment),
        )  # fmt: skip
        held_out = self.folds[self.folds["held_out"]]
        return make_verdict(
            done.scores,
            chosen,
            self.names,
            command=self.command,
            source=str(self.screen.path),
            label=str(roles.label),
            environment=" / ".join(roles.environment),
            hold_out=list(held_out["level"].unique()),
            shared_information=shared_information(label.codes, environment.codes),
            units=units(held_out["fold"].tolist(), roles.levels),
        )


def units(folds: list[str], levels: tuple[str, ...]) -> dict[str, str]:
    """Of each held-out fold the group of the outermost level held out that it is or lies in."""
    depths = {fold: levels.index(fold.partition("=")[0]) for fold in folds}
    kept = min(depths.values(), default=0) + 1
    units = {}
    for fold, depth in depths.items():
        group = fold.partition("=")[2]
        if not depth:  # of the outermost level alone a "/" is part of the name
            group = group.replace("%", "%25").replace("/", "%2F")
        units[fold] = "/".join(group.split("/")[:kept])
    return units
