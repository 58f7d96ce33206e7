"""The typed description of a run: frozen models whose field docstrings are the help."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from deconfound.errors import UserError
from deconfound.errors import did_you_mean as did_you_mean
from deconfound.errors import nearest as nearest

_brief = reprlib.Repr()
_brief.maxstring, _brief.maxlevel = 100, 2

MAX_NODES = 10**6
"""Values in a YAML file, those of an alias counted wherever it stands."""

TransformName = Literal["none", "arcsinh", "percentile"]
ScalingName = Literal["standardise", "unit", "scbd"]
RelativeTo = Literal["all", "controls"]
StandardiseName = Literal["moments", "quantiles", "robust", "spectra"]
ImputeInto = Literal["drawn", "mean"]
SamplerName = Literal["plain", "label_balanced", "environment_balanced", "label_uniform"]
AUGMENTATIONS = ("dihedral", "crop", "style", "intensity", "blur", "noise")
"""Names of augmentations, in the order in which they are applied."""


def _augmentations(given: Any) -> Any:
    """Names of augmentations, given as words of one text or as a list, as one text in order."""
    names = given.split() if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
        return given
    known = ("none", *AUGMENTATIONS)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise PydanticCustomError(
                "augment", "unknown augmentation {name}; {hint}", {"name": repr(name), "hint": hint}
            )
    if not names or ("none" in names and set(names) != {"none"}):
        raise PydanticCustomError(
            "augment", "none goes with no other augmentation; leave it out, or give it alone"
        )
    return " ".join(name for name in known if name in names)


Augment = Annotated[str, BeforeValidator(_augmentations)]
"""Names of augmentations with spaces between them, or none."""


class Documented(BaseModel):
    """Frozen; the docstring of a field is its help, as one line."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():
            if field.description is not None:
                field.description = " ".join(field.description.split())


class Options(Documented):
    """Base of every group of options: a name that does not exist is an error."""

    model_config = ConfigDict(extra="forbid")


AnyOptions = TypeVar("AnyOptions", bound=Options)


class DataOptions(Options):
    """What is predicted, what is a nuisance, and what is held out."""

    label: str | None = None
    """Column to predict; the screen's own label if not given."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; the screen's own if not given."""
    levels: tuple[str, ...] = ()
    """Nested levels, outermost first; the screen's own if not given."""
    controls: tuple[str, ...] = Field((), exclude_if=lambda given: given == ())
    """Labels that are controls, for a method that needs them; if not given, those whose training
    rows all have `negcon` in the column Metadata_Control_Type."""
    fold: str = "iid"
    """What is held out: iid, given (the screen's split column) or COLUMN=GROUP of a level."""
    without: str | None = None
    """A training environment, or COLUMN=GROUP of a level, to leave out of training as well; scored
    as `ood_val`, it chooses between settings without a look at the test."""
    val_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the rows not held out that selects the checkpoint (in-distribution)."""
    id_test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the rows not held out that is scored but never used (in-distribution)."""
    iid_unit: Literal["cell", "well"] = "cell"
    """What the in-distribution parts are drawn by."""
    split_seed: int = 0
    """Seed of the split; kept apart from the run's seed so that all runs share their folds."""
    transform: TransformName | None = None
    """Intensity transform before scaling: none, arcsinh or percentile, which stretches each channel
    between its 0.1 and 99.9 percentiles; the screen's own if not given."""
    percentile_by: str | None = None
    """Column, such as Metadata_Plate, whose groups share percentiles, those of their training rows
    (a group without any takes those of all training rows); each image has its own if not given."""
    standardise_by: str | None = Field(None, exclude_if=lambda given: given is None)
    """`environment`, or a column such as Metadata_Plate, whose groups are made alike in pixels or
    features before scaling. A group that training never saw takes its own images, held-out ones
    too, without their labels: all scores say so."""
    standardise_with: RelativeTo = Field("all", exclude_if=lambda given: given == "all")
    """Images of a group that its statistics are taken over: all, or its negative controls."""
    standardise: StandardiseName = Field("moments", exclude_if=lambda given: given == "moments")
    """What becomes alike in each channel or feature: moments (mean and sd), quantiles (a tone curve
    that never falls), robust (median and median absolute deviation) or, of images, spectra (a tone
    curve, then power and cross-spectra of the channels by spatial frequency)."""
    scaling: ScalingName = "standardise"
    """standardise: per-channel mean 0 and sd 1 over training rows. unit: division by the type's
    maximum. scbd: (x − 7)/7 after arcsinh, as the SCBD paper scales the pooled screen."""


class TrainingOptions(Options):
    """How long, with which batches, on what."""

    steps: int = Field(1500, ge=1)
    """Optimisation steps."""
    batch_size: int = Field(256, ge=1)
    """Images in a batch, over all devices."""
    sampler: SamplerName | None = None
    """How batches are drawn; if not given as the method asks for, with --intervene
    label_uniform, and for scbd label_balanced where less than half of the images of a plain batch
    have another of their label."""
    classes_per_batch: int = Field(256, ge=1)
    """Distinct labels in a batch of the label-balanced sampler."""
    augment: Augment = "none"
    """What is done to training images at random, one name or more: dihedral (flips and quarter
    turns; right for cells, wrong for digits), crop (moved by up to an eighth of a side), intensity
    (gain and offset of each channel), blur, noise, or style (gain, gamma, blur, bleed and noise, as
    another plate might have them: where it was tried it cost accuracy on known plates and gained
    hardly any on new ones, so compare it with --standardise-by)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the steps; cosine falls to 0."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    validate_every: int = Field(100, ge=1)
    """Steps between validations."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between resumable checkpoints."""
    selection: Literal["loss", "accuracy", "last"] = "loss"
    """Which checkpoint later verbs use: minimum validation loss (as in the paper), maximum
    in-distribution validation accuracy, or the last step. All three are recorded."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """auto takes bfloat16 where the processor computes in it."""
    deterministic: bool = Field(False, exclude_if=lambda given: not given)
    """On a GPU operations that give the same bits in every run, where they may be slower; on a
    processor they always do."""
    threads: int | None = Field(None, ge=1)
    """Processor threads; all cores if not given."""


class InterventionOptions(Options):
    """Training on images that another run imputes into training environments at random."""

    intervene: Path | None = None
    """Finished run of a method that imputes, on the same screen and fold: the method trains on its
    interventional distribution."""
    bank: int = Field(32, ge=1)
    """Styles kept of each training environment, those of training rows drawn at random."""
    style_images: int = Field(1, ge=1)
    """Images of an environment that one style is averaged over; 1 as in the paper."""
    relative_style: RelativeTo | None = None
    """An image keeps how its style differs from the mean style of its environment, over all of its
    images or over its negative controls, also at test time; the paper's takes the style over."""
    impute_into: ImputeInto = Field("drawn", exclude_if=lambda given: given == "drawn")
    """drawn: each image into a training environment drawn for it, as in the paper. mean: every
    image into the mean style of the training environments, also at test time."""
    correction_draws: int = Field(1, ge=0)
    """Times that an image is brought to a training environment before it is embedded; the
    representations and probabilities are averaged. 0 embeds it as it is."""

    @property
    def asks_bank(self) -> bool:
        """Whether the bank of styles is not as in the paper."""
        fields = type(self).model_fields
        return any(getattr(self, name) != fields[name].default for name in ("bank", "style_images"))

    @field_validator("correction_draws")
    @classmethod
    def _draws_differ(cls, draws: int, known: ValidationInfo) -> int:
        if draws > 1 and known.data.get("impute_into") == "mean":
            raise PydanticCustomError(
                "impute_into",
                "with impute_into mean an image is imputed in one way only; give 1 or 0",
            )
        return draws


def flags_of(config: "Options", changed: Mapping[str, Any] | None = None) -> list[str]:
    """The words of a command that set the options of `config`, as they are `changed`."""
    words = []
    for name, field in type(config).model_fields.items():
        value = (changed or {}).get(name, getattr(config, name))
        if value == field.default:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return words


def optional(model: type[Options], *, leave_out: tuple[str, ...] = ()) -> type[Options]:
    """The same options, each None unless given, without those named in `leave_out`."""
    fields: dict[str, Any] = {
        name: (Optional[field.annotation], Field(None, description=_given(field)))  # noqa: UP045
        for name, field in model.model_fields.items()
        if name not in leave_out
    }
    return create_model(f"Given{model.__name__}", __base__=Options, **fields)


def _given(field: FieldInfo) -> str:
    return f"{field.description} If not given, what a recipe or `fit` says."


def validated(model: type[AnyOptions], values: Any, where: str) -> AnyOptions:
    """`values` as a `model`; raises a one-line UserError that names the field and the remedy."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected options as `name: value` lines")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(model, error)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises UserError if it is missing, malformed or no mapping."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected options as `name: value` lines")
    _refuse_multiplied(values, path)
    return values


def _refuse_multiplied(values: dict[str, Any], path: Path) -> None:
    """Raise UserError if aliases of aliases make more than `MAX_NODES` values of a small file."""
    waiting: list[Any] = [values]
    found = 0
    while waiting:
        one = waiting.pop()
        inside = list(one.values()) if isinstance(one, dict) else one
        found += len(inside)
        if found > MAX_NODES:
            raise UserError(
                f"{path}: more than {MAX_NODES:,} values, aliases (*name) written out; write the "
                "values themselves, and fewer"
            )
        waiting += [value for value in inside if isinstance(value, (dict, list))]


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        owner: Any = model
        for part in place[:-1]:
            owner = owner.model_fields[part].annotation
        return f"unknown option {name!r}; {did_you_mean(place[-1], list(owner.model_fields))}"
    return f"option {name!r} = {_brief.repr(problem['input'])}: {problem['msg']}"
