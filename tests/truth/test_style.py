"""A planted style: the contrast of an image tells its label, and in the unseen part tells nothing.

Where a square lies tells the label everywhere, but less plainly. Mixing the channel statistics of
images should lower the reliance on contrast (Zhou et al., Domain Generalization with MixStyle,
2021); with no chance of mixing it should not.
"""

import numpy as np
import torch
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.methods import load
from deconfound.methods.contract import Task
from deconfound.runtime.seeds import derived_seed, numpy_stream

LABELS, SIDE, BATCH, STEPS = 4, 16, 48, 60
SQUARE, CONTRAST = 0.6, 0.5


def images(count: int, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 2, 16, 16) float32 and labels (N,) of the part "train" or "unseen"."""
    stream = numpy_stream(0, part)
    label = stream.integers(LABELS, size=count)
    image = stream.standard_normal((count, 2, SIDE, SIDE))
    for row, (up, left) in enumerate(zip(*divmod(label, 2), strict=True)):
        image[row, :, 8 * up + 2 : 8 * up + 6, 8 * left + 2 : 8 * left + 6] += SQUARE
    told = label if part == "train" else stream.integers(LABELS, size=count)
    contrast = np.exp(CONTRAST * (told - 1.5) + 0.1 * stream.standard_normal(count))
    image *= contrast[:, None, None, None]
    return torch.from_numpy(image).float(), torch.from_numpy(label)


def unseen_accuracy(method: str, **options: float) -> float:
    """Accuracy of a method where contrast tells nothing."""
    image, label = images(1500, "train")
    unseen, truth = images(500, "unseen")
    torch.manual_seed(0)
    kind = load(method)
    trained = kind(kind.Options(**options), Task(2, SIDE, LABELS, 1)).train()
    (stage,) = trained.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for step in range(STEPS):
        torch.manual_seed(derived_seed(0, "step", step))
        rows = torch.randint(len(image), (BATCH,))
        drawn = Batch(image[rows], label[rows], torch.zeros_like(rows), rows)
        trained.step(drawn, stage, optimizers, lambda loss, _: loss.backward())
    trained.eval()
    with torch.no_grad():
        logits = trained.predict(trained.embed(unseen))
    assert logits is not None
    return float((logits.argmax(1) == truth).float().mean())


def test_mixstyle_helps_unless_it_never_mixes() -> None:
    erm = unseen_accuracy("erm")
    gain = unseen_accuracy("mixstyle", mix_probability=0.5) - erm
    assert gain > 0.2
    assert abs(unseen_accuracy("mixstyle", mix_probability=0.0) - erm) < 0.1 * gain
