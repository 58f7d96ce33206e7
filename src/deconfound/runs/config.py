"""The configuration of a run, and how it is read from and written to YAML."""

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field, SerializeAsAny, ValidationInfo, create_model, field_validator

from deconfound import methods
from deconfound.config import (
    DataOptions,
    InterventionOptions,
    Options,
    TrainingOptions,
    read_yaml,
    validated,
)
from deconfound.errors import UserError
from deconfound.methods.contract import MethodOptions

SECTIONS = ("data", "intervention", "training", "options")
"""The groups of options of a run, as its configuration names them."""
SAW_HELD_OUT = "trained with images of test rows"
"""Note of a score whose method saw held-out images."""
HELD_OUT_NOTES = "held_out_notes"
"""Entry of what embeddings hold of a run that standardises or adapts: the notes of its scores."""
STANDARDISED = "unseen groups standardised with images of test rows"
"""Note of a score of a run with --standardise-by, whose training saw none."""
ADAPTED = "batch statistics of unseen environments taken over images of test rows"
"""Note of a score of a method whose batch norms adapt to the environment."""
ALIGNED = "unseen groups aligned by embeddings of test rows"
"""Note of a score of embeddings whose correction takes statistics of an unseen environment."""


class RunConfig(Options):
    """Everything that decides what a run computes."""

    method: str
    """Name of the method."""
    seed: int = 0
    """Seed of initial weights, batches and augmentation."""
    data: DataOptions = DataOptions()
    """What is predicted and what is held out."""
    intervention: InterventionOptions = Field(
        InterventionOptions(), exclude_if=lambda given: given == InterventionOptions()
    )
    """The run whose interventional distribution this run is trained on, if any."""
    imputer: str | None = Field(None, exclude_if=lambda given: given is None)
    """Method of the run that imputes; `fit` fills it in."""
    training: TrainingOptions = Field(TrainingOptions(), validate_default=True)
    """How it is trained."""
    options: SerializeAsAny[MethodOptions] = MethodOptions()
    """The method's own options."""
    chosen: dict[str, float] | None = Field(None, exclude_if=lambda given: given is None)
    """The value found for an option that is `auto`; `fit` fills it in, whatever is given here."""

    @property
    def method_options(self) -> MethodOptions:
        """The method's own options, with the value found for one that is `auto`."""
        return self.options.model_copy(update=self.chosen or {})

    @property
    def held_out_notes(self) -> list[str]:
        """What every score says of the use that is made of images of test rows; empty for none."""
        notes = [SAW_HELD_OUT] if self.options.sees_held_out else []
        notes += [STANDARDISED] if self.data.standardise_by is not None else []
        return notes + ([ADAPTED] if self.options.context is not None else [])

    @property
    def title(self) -> str:
        """The method's name; NAME-da where use is made of images of test rows.

        NAME+IMPUTER where it was trained on imputed images.
        """
        name = f"{self.method}-da" if self.held_out_notes else self.method
        return f"{name}+{self.imputer}" if self.imputer else name

    @field_validator("training")
    @classmethod
    def _with_sampler(cls, training: TrainingOptions, known: ValidationInfo) -> TrainingOptions:
        if training.sampler is not None or "method" not in known.data:
            return training
        method = methods.load(known.data["method"])
        sampler = method.SAMPLER
        if (found := known.data.get("intervention")) and found.intervene is not None:
            sampler = "label_uniform"
        elif method.POSITIVES:
            return training  # it depends on the training rows
        return training.model_copy(update={"sampler": sampler})


def config_model(method: str) -> type[RunConfig]:
    """The RunConfig of `method`, with the types and defaults of the method's own options."""
    return _config_model(method, methods.load(method).Options)


@cache
def sections_of(method: str) -> dict[str, str]:
    """The section of a configuration that each option of a run of `method` stands in."""
    model = config_model(method)
    return {
        option: section
        for section in SECTIONS
        for option in model.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    }


@cache
def _config_model(method: str, options: type[MethodOptions]) -> type[RunConfig]:
    return create_model(
        "RunConfig", __base__=RunConfig, method=(str, method), options=(options, options())
    )


def read_config(path: Path, method: str | None = None) -> RunConfig:
    """The run configuration in a YAML file; raises UserError if its method is not `method`."""
    values = read_yaml(path)
    named = values.get("method", method)
    if not isinstance(named, str):
        raise UserError(f"{path}: no method; add a line `method: NAME`")
    if method is not None and named != method:
        raise UserError(f"{path}: is a configuration of {named!r}, not of {method!r}")
    return validated(config_model(named), values | {"method": named}, str(path))


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
