"""Options that every trained method has, and options that may be `auto`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from deconfound.config import Options
from deconfound.nets.pretrained import Pretrained, Tune
from deconfound.nets.weights_file import ChannelsAs

OptimizerName = Literal["adamw", "adam", "sgd"]


def _number_or_auto(given: Any) -> float | str:
    try:
        if given == "auto" or float(given) >= 0:
            return "auto" if given == "auto" else float(given)
    except (TypeError, ValueError):
        pass
    raise PydanticCustomError("weight", "expected a number of at least 0, or auto")


WeightOrAuto = Annotated[float | Literal["auto"], BeforeValidator(_number_or_auto)]
"""A number of at least 0, or "auto"; a mistake is one message, not one for each of the two."""


class Dial(NamedTuple):
    """An option that is to be found with training data alone."""

    option: str
    values: tuple[float, ...]
    """What is tried, ascending; the first leaves the method's effect out."""


class ContextOptions(NamedTuple):
    """How a method takes the batch statistics of one environment."""

    episodes: int
    """Environments in a training batch, each with statistics of its own."""
    images: int
    """Most images of an environment, and most controls, that are measured to embed it."""
    controls: int = 0
    """Negative controls that join each episode; 0 for none."""
    controls_alone: bool = False
    """Whether an environment that has enough controls is measured on those alone."""


class MethodOptions(Options):
    """Options every trained method has."""

    FORMS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Of a method whose option `form` sets others unless they are given: these, by form."""

    optimizer: OptimizerName = "adamw"
    """adamw, adam or sgd."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of the optimizer."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the optimizer."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of sgd."""
    skip_above: float | None = Field(None, gt=0)
    """A phase whose gradient has a larger norm, or one that is not finite, does not step, and is
    counted; if not given, a loss that is not finite ends the run."""
    clip_at: float | None = Field(None, gt=0)
    """Gradients of a phase with a larger norm are scaled down to it."""
    most_skipped: int = Field(100, ge=1)
    """Skipped steps in a row that end the run."""

    def in_form(self, form: str) -> Self:
        """The same options in another form, with what that form sets."""
        of_form = {name for values in self.FORMS.values() for name in values}
        kept = self.model_dump(exclude={"form", *of_form})
        return type(self)(**(kept | {"form": form}))

    @property
    def sees_held_out(self) -> bool:
        """Whether each training batch is joined by an equal number of unlabelled test images."""
        return False

    @property
    def of_sets(self) -> bool:
        """Whether the styles of an imputer are those of sets, and so always relative."""
        return False

    @property
    def context(self) -> ContextOptions | None:
        """How batch statistics adapt to an environment, one never seen too; None if they do not."""
        return None

    @property
    def dial(self) -> Dial | None:
        """The option that is `auto`, if one is; without values where none are known for it."""
        return None

    @property
    def of_trials(self) -> "MethodOptions":
        """The options without what bears on no score, for runs that only try values of a dial."""
        return self


class PretrainedOptions(MethodOptions):
    """Options of methods whose encoder of images may be one that others have trained."""

    weights: Path | None = Field(None, exclude_if=lambda given: given is None)
    """Safetensors or torch file of weights that the encoder begins with; random weights if not
    given. The run's checkpoint holds them."""
    weights_prefix: str | None = Field(None, exclude_if=lambda given: given is None)
    """What stands before the encoder's names in a file of several networks."""
    channels_as: ChannelsAs | None = Field(None, exclude_if=lambda given: given is None)
    """How the encoder takes channels where the weights are of another number: repeat (those of its
    first layer in turn), sum (their sum for every channel), or each channel alone through the
    network, whose representations are joined (concatenate) or averaged (average)."""
    input_size: int | None = Field(None, ge=8, exclude_if=lambda given: given is None)
    """Pixels that images are resized to for the encoder; if not given, their own, or those of a
    timm network that takes one size only."""
    tune: Tune = Field("full", exclude_if=lambda given: given == "full")
    """full: all weights are trained; frozen: those of the encoder stay; lora: low-rank adapters of
    its linear layers are trained."""
    lora_rank: int = Field(8, ge=1, exclude_if=lambda given: given == 8)
    """Rank of the adapters of --tune lora."""

    def pretrained(self, unit_pixels: bool) -> Pretrained | None:
        """What becomes of the encoder's weights; None for an encoder with random ones.

        `unit_pixels` says whether pixels come in [0, 1].
        """
        asked = (self.weights, self.weights_prefix, self.channels_as, self.input_size)
        if all(one is None for one in asked) and self.tune == "full":
            return None
        return Pretrained(*asked, self.tune, self.lora_rank, unit_pixels)
