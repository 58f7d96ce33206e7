"""A planted shortcut after Colored MNIST: three colours tell the label, per environment.

The colours vary with the label within an environment and are all on in the unseen one, where they
would say both the first label and the last. The other features tell the label everywhere, but
less plainly. Invariance to the environment should lower the reliance on the colours; with shuffled
environments it should not. Makino et al., SCBD, eq. 1 and section 4.1. CORAL and DANN, which align
the features of environments, are held to the same.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from deconfound.data.loading.batch import Batch
from deconfound.losses import content_losses
from deconfound.methods import load
from deconfound.methods.contract import Task
from deconfound.runtime.seeds import numpy_stream, torch_stream

LABELS, FEATURES, HIDDEN, BATCH, STEPS = 10, 20, 128, 512, 200
CONTRAST, BLUR = 6.0, 0.05
SEEDS = (0, 1)


def rows(count: int, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, 23) float32, labels (N,), environments (N,) of the part "train" or "unseen"."""
    means = np.random.default_rng(7).standard_normal((LABELS, FEATURES))
    stream = numpy_stream(0, part)
    label, environment = stream.integers(LABELS, size=count), stream.integers(2, size=count)
    plain = means[label] + stream.standard_normal((count, FEATURES))
    colour = np.ones((count, 3))
    if part == "train":
        rising = label / (LABELS - 1)
        first = environment == 0
        colour[np.ix_(first, [1, 2])] = rising[first, None]
        colour[np.ix_(~first, [0, 2])] = 1 - rising[~first, None]
    colour = CONTRAST * (colour - 0.5 + BLUR * stream.standard_normal(colour.shape))
    features = torch.from_numpy(np.concatenate([plain, colour], axis=1)).float()
    return features, torch.from_numpy(label), torch.from_numpy(environment)


@cache
def unseen_accuracy(alpha: float, shuffled: bool) -> float:
    """Accuracy in the unseen environment, read from r; the mean over seeds."""
    features, label, environment = rows(8000, "train")
    unseen, truth, _ = rows(3000, "unseen")
    if shuffled:
        environment = environment[torch.randperm(8000, generator=torch_stream(0, "shuffled"))]
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Linear(features.shape[1], HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.BatchNorm1d(HIDDEN),
        )
        projection = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 32))
        probe = nn.Linear(HIDDEN, LABELS)
        blocks = [*encoder.parameters(), *projection.parameters()]
        optimizer = torch.optim.AdamW(
            [{"params": blocks, "lr": 1e-3}, {"params": probe.parameters(), "lr": 1e-2}]
        )
        for _ in range(STEPS):
            batch = torch.randint(len(features), (BATCH,))
            r = encoder(features[batch])
            z = normalize(projection(r), dim=1)
            supcon, invariance = content_losses(z, label[batch], environment[batch])
            loss = supcon + alpha * invariance + cross_entropy(probe(r.detach()), label[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        encoder.eval()
        with torch.no_grad():
            found.append(float((probe(encoder(unseen)).argmax(1) == truth).float().mean()))
    return float(np.mean(found))


def test_invariance_helps_where_the_shortcut_is_gone() -> None:
    assert unseen_accuracy(1.0, shuffled=False) > unseen_accuracy(0.0, shuffled=False) + 0.02


def test_the_gain_is_gone_when_environments_are_shuffled() -> None:
    without = unseen_accuracy(0.0, shuffled=False)
    gain = unseen_accuracy(1.0, shuffled=False) - without
    assert unseen_accuracy(1.0, shuffled=True) - without < 0.5 * gain


@cache
def unseen_accuracy_of(method: str, shuffled: bool, **options: Any) -> float:
    """Accuracy of a method in the unseen environment; as many rows of each environment a batch."""
    features, label, environment = rows(8000, "train")
    unseen, truth, _ = rows(3000, "unseen")
    if shuffled:
        environment = environment[torch.randperm(8000, generator=torch_stream(0, "shuffled"))]
    of_each = [(environment == e).nonzero()[:, 0] for e in (0, 1)]
    torch.manual_seed(0)
    kind = load(method)
    trained = kind(kind.Options(**options), Task(features.shape[1], None, LABELS, 2)).train()
    (stage,) = trained.stages(STEPS // 2)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(stage.steps):
        batch = torch.cat([own[torch.randint(len(own), (BATCH // 4,))] for own in of_each])
        drawn = Batch(features[batch], label[batch], environment[batch], batch)
        trained.step(drawn, stage, optimizers, lambda loss, _: loss.backward())
    trained.eval()
    with torch.no_grad():
        logits = trained.predict(trained.embed(unseen))
    assert logits is not None
    return float((logits.argmax(1) == truth).float().mean())


def test_coral_helps_unless_environments_are_shuffled() -> None:
    erm = unseen_accuracy_of("erm", shuffled=False)
    gain = unseen_accuracy_of("coral", shuffled=False, penalty_weight=10) - erm
    assert gain > 0.1
    assert unseen_accuracy_of("coral", shuffled=True, penalty_weight=10) - erm < 0.5 * gain


def test_dann_helps_unless_environments_are_shuffled() -> None:
    options: dict[str, Any] = {"form": "reversal", "discriminator_width": 128}
    erm = unseen_accuracy_of("erm", shuffled=False)
    gain = unseen_accuracy_of("dann", shuffled=False, **options) - erm
    assert gain > 0.08
    assert unseen_accuracy_of("dann", shuffled=True, **options) - erm < 0.5 * gain
