"""ERM: an encoder and a linear head under cross-entropy, blind to the environment."""

from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Loss, Method, PretrainedOptions, Stage, Task, Tensors
from deconfound.nets.encoder import Norm
from deconfound.nets.pretrained import build_pretrained


class ErmOptions(PretrainedOptions):
    """Options of ERM."""

    encoder: str = "small"
    """small, resnet18, densenet121, timm:NAME or torch:FILE, an exported program; for profiles mlp,
    which small also selects."""
    norm: Norm = "batch"
    """Normalisation in the encoder: batch, instance, group or none."""


class Erm(Method):
    """Empirical risk minimisation.

    Vapnik (1995); the baseline of both papers (Makino et al., section 4.1.4; Pernice et al.,
    section 5.2). "representation" is the encoder's output r.
    """

    Options = ErmOptions
    options: ErmOptions
    SUMMARY = "cross-entropy on the label, blind to the environment"
    PAPER = "Vapnik, The Nature of Statistical Learning Theory, 1995"

    def __init__(self, options: ErmOptions, task: Task) -> None:
        super().__init__(options, task)
        shape = task.channels, task.image_size
        how = options.pretrained(task.unit_pixels)
        self.encoder = build_pretrained(options.encoder, *shape, options.norm, how)
        self.head = nn.Linear(self.encoder.features, task.labels)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage with one phase."""
        phase = self.phase("classify", self.parameters(), self._losses, validates=True)
        return (Stage("classifier", steps, (phase,)),)

    def embed(self, image: Tensor) -> Tensors:
        """(B, C, H, W), or profiles (B, D), to "representation" (B, features)."""
        return {"representation": self.encoder(image)}

    def predict(self, embedded: Tensors) -> Tensor:
        """Logits (B, labels)."""
        logits: Tensor = self.head(embedded["representation"])
        return logits

    def _losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        return {"cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label))}
