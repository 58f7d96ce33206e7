"""Options by the names of the command line, to the configuration of a run and back."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from deconfound.config import DataOptions, InterventionOptions, did_you_mean, validated
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.runs.config import SECTIONS, RunConfig, config_model, sections_of
from deconfound.runs.recommended import METHOD, RECOMMENDED, recommend

WHERE = "Deconfounder"
"""What messages call an estimator."""
SAID_TO_FIT = ("label", "environment", "levels", "controls", "hold_out", "fold")
"""Options that say what `fit` is told where it is not told."""


class Resolved(NamedTuple):
    """What is trained."""

    config: RunConfig
    said: str | None
    """What was recommended and why; None where a method is named."""


def resolve(
    method: str | None, options: Mapping[str, Any], data: Mapping[str, Any], screen: Screen
) -> Resolved:
    """The configuration that `deconfound fit METHOD` takes with the same options.

    None and "recommended" are the recommended recipe for `screen`; an option that is given counts.
    `data` are options of the data that win over `options`. Raises UserError for an unknown method,
    an option that it does not have, naming the nearest, and a value that is not allowed.
    """
    name = METHOD if method in (None, RECOMMENDED) else str(method)
    values = _by_section(name, {**options, **data})
    if name == method:
        if values["intervention"].get("intervene") is None and values["intervention"]:
            option = next(iter(values["intervention"]))
            raise UserError(f"{WHERE}: {option} belongs to intervene=RUN; add it")
        return Resolved(_validated(name, values), None)
    for option in InterventionOptions.model_fields:
        if option in values["intervention"]:
            raise UserError(
                f"{WHERE}: {option} trains a method that is named, and none is; expected "
                f"method={METHOD!r}, or another"
            )
    if values["data"].get("standardise_by", ...) is None:
        raise UserError(
            f"{WHERE}: standardise_by=None leaves nothing of the recommended recipe; expected "
            f"method={METHOD!r}"
        )
    found = recommend(screen, validated(DataOptions, values["data"], WHERE))
    recipe = found.config.model_dump(exclude_unset=True)
    for section in ("data", "training", "options"):
        values[section] = recipe.get(section, {}) | values[section]
    return Resolved(_validated(name, values), f"{RECOMMENDED}: {found.text}")


def written(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a file can hold: all but arrays of rows, which are those of one fit."""
    plain = (str, int, float, bool, list, tuple, PurePath, np.generic, type(None))
    return {name: one for name, one in options.items() if isinstance(one, plain)}


def roles_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `SAID_TO_FIT` among the options; raises UserError for `hold_out` beside `fold`."""
    found = {name: options[name] for name in SAID_TO_FIT if options.get(name) is not None}
    if "fold" in found:
        if "hold_out" in found:
            raise UserError(f"{WHERE}: fold and hold_out mean the same; give one of them")
        found["hold_out"] = found.pop("fold")
    return found


def options_of(config: RunConfig) -> dict[str, Any]:
    """The options that make `config` of its method, those that are not its defaults alone."""
    default = config_model(config.method)(method=config.method)
    found: dict[str, Any] = {} if config.seed == default.seed else {"seed": config.seed}
    for section in SECTIONS:
        own, usual = getattr(config, section), getattr(default, section)
        for option, value in own:
            if value != getattr(usual, option):
                found[option] = value
    return found


def _validated(method: str, values: dict[str, Any]) -> RunConfig:
    return validated(config_model(method), values | {"method": method}, WHERE)


def _by_section(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    sections = sections_of(method)
    values: dict[str, Any] = {section: {} for section in SECTIONS}
    for option, value in options.items():
        if isinstance(value, np.generic):
            value = value.item()
        if option == "seed":
            values["seed"] = value
        elif option in sections:
            values[sections[option]][option] = value
        else:
            known = sorted({*sections, *SAID_TO_FIT, "seed", "quiet", "method"})
            otherwise = f"`deconfound fit {method} --help` lists the options"
            hint = did_you_mean(option, known, otherwise)
            raise UserError(f"{WHERE}: unknown option {option!r} of {method}; {hint}")
    return values
