"""MixStyle: ERM whose training mixes the channel statistics of images."""

from typing import Literal

from pydantic import Field

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract import Task, Tensors
from deconfound.methods.erm import Erm, ErmOptions
from deconfound.nets.mixstyle import Mix, MixStyle, mix_after
from deconfound.nets.weights_file import EACH


class MixStyleOptions(ErmOptions):
    """Options of MixStyle."""

    mix: Mix = "random"
    """An image's partner: any other image of the batch (random) or one of another environment
    (crossdomain)."""
    mix_alpha: float = Field(0.1, gt=0)
    """Both parameters of the Beta distribution of the mixing weight."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """Chance that a block mixes a batch."""
    mix_after: tuple[Literal[1, 2, 3], ...] = Field((1, 2, 3), min_length=1)
    """Blocks of the encoder after which statistics are mixed."""
    domain_adaptation: bool = False
    """MixStyle-DA: partners are held-out images, which training then sees without their labels;
    scores on them no longer measure unseen environments, and say so."""
    encoder: str = "small"
    """small, resnet18 or densenet121."""

    @property
    def sees_held_out(self) -> bool:
        """Whether training sees images of test rows."""
        return self.domain_adaptation


class MixStyleMethod(Erm):
    """Cross-entropy on the label, with mixed channel statistics in training.

    Zhou et al., Domain Generalization with MixStyle, 2021; a baseline of Pernice et al., section
    5.2, as is MixStyle-DA. "representation" is the encoder's output r. Deviations: `crossdomain`
    takes any number of environments and draws each partner independently. Of MixStyle-DA the paper
    says only that it sees styles of test environments; here each batch is joined by an equal number
    of held-out images, which are partners and are left out of the loss.
    """

    Options = MixStyleOptions
    options: MixStyleOptions
    SUMMARY = "cross-entropy on the label, with channel statistics mixed between images"
    PAPER = "Zhou et al., Domain Generalization with MixStyle, 2021"

    def __init__(self, options: MixStyleOptions, task: Task) -> None:
        size = task.require_images("mixstyle mixes the statistics of maps")
        if options.mix == "crossdomain" and not options.domain_adaptation:
            task.require_environments("mixstyle --mix crossdomain")
        if options.channels_as in EACH:
            raise UserError(
                f"--channels-as {options.channels_as} gives each channel maps of its own, and "
                "mixstyle mixes those of an image; choose repeat or sum"
            )
        super().__init__(options, task)
        self.mixing = MixStyle(options.mix, options.mix_probability, options.mix_alpha)
        shape, blocks = (task.channels, options.input_size or size), sorted(set(options.mix_after))
        mix_after(self.encoder, options.encoder, options.norm, shape, blocks, self.mixing)

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """The representation; in training, of maps whose statistics are mixed."""
        del stage
        with self.mixing.of(batch.environment, batch.held_out):
            return self.embed(batch.image)
