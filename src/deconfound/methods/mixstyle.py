"""MixStyle: ERM whose training mixes the channel statistics of images."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Loss, Method, MethodOptions, Stage, Task, Tensors
from deconfound.nets.encoder import Norm, build_encoder
from deconfound.nets.mixstyle import Mix, MixStyle, mix_after


class MixStyleOptions(MethodOptions):
    """Options of MixStyle."""

    mix: Mix = "random"
    """Whom an image is mixed with: any other of the batch (random) or one of another environment
    (crossdomain)."""
    mix_alpha: float = Field(0.1, gt=0)
    """Both parameters of the Beta distribution of the mixing weight."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """Chance that a block mixes a batch."""
    mix_after: tuple[Literal[1, 2, 3], ...] = Field((1, 2, 3), min_length=1)
    """Blocks of the encoder after which statistics are mixed."""
    domain_adaptation: bool = False
    """MixStyle-DA: partners are held-out images, which training then sees, without their labels;
    scores on them are no longer those of environments never seen, and say so."""
    encoder: str = "small"
    """small, resnet18 or densenet121."""
    norm: Norm = "batch"
    """Normalisation in the encoder: batch, instance, group or none."""

    @property
    def sees_held_out(self) -> bool:
        """Whether training sees images of test rows."""
        return self.domain_adaptation


class MixStyleMethod(Method):
    """Cross-entropy on the label, with mixed channel statistics in training.

    Zhou et al., Domain Generalization with MixStyle, 2021; a baseline of Pernice et al., section
    5.2, as is MixStyle-DA. "representation" is the encoder's output r. Deviations: `crossdomain`
    takes any number of environments and draws each partner independently; MixStyle-DA, of which no
    more is printed than that it sees styles of test environments, joins as many held-out images to
    a batch as it has rows, mixes with those, and leaves them out of the loss.
    """

    Options: ClassVar[type[MethodOptions]] = MixStyleOptions
    options: MixStyleOptions
    SUMMARY = "cross-entropy on the label, with channel statistics mixed between images"
    PAPER = "Zhou et al., Domain Generalization with MixStyle, 2021"

    def __init__(self, options: MixStyleOptions, task: Task) -> None:
        super().__init__(options, task)
        if task.image_size is None:
            raise UserError(
                "mixstyle mixes the statistics of maps, and the screen holds profiles, which have "
                "none; use another method"
            )
        if options.mix == "crossdomain" and not options.domain_adaptation:
            task.require_environments("mixstyle --mix crossdomain")
        self.encoder = build_encoder(options.encoder, task.channels, task.image_size, options.norm)
        self.mixing = MixStyle(options.mix, options.mix_probability, options.mix_alpha)
        shape = task.channels, task.image_size
        blocks = sorted(set(options.mix_after))
        mix_after(self.encoder, options.encoder, options.norm, shape, blocks, self.mixing)
        self.head = nn.Linear(self.encoder.features, task.labels)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage with one phase."""
        phase = self.phase("classify", self.parameters(), self._losses, validates=True)
        return (Stage("classifier", steps, (phase,)),)

    def embed(self, image: Tensor) -> Tensors:
        """(B, C, H, W) to "representation" (B, features)."""
        return {"representation": self.encoder(image)}

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """The representation, of mixed statistics in training."""
        del stage
        with self.mixing.of(batch.environment, batch.held_out):
            return self.embed(batch.image)

    def predict(self, embedded: Tensors) -> Tensor:
        """Logits (B, labels)."""
        logits: Tensor = self.head(embedded["representation"])
        return logits

    def _losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        return {"cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label))}
