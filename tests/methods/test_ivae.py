from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.ivae import Ivae, IvaeOptions
from deconfound.nets import encoder, vae

LABELS, ENVIRONMENTS = 3, 4
SMALL = (32, 32, 16)


def profiles(rows: int = 96) -> Batch:
    """Four features follow the label, four the environment."""
    torch.manual_seed(1)
    label = torch.arange(rows) % LABELS
    environment = torch.arange(rows) // LABELS % ENVIRONMENTS
    centres = torch.randn(LABELS, 4) * 3, torch.randn(ENVIRONMENTS, 4) * 3
    image = torch.cat([centres[0][label], centres[1][environment]], dim=1)
    return Batch(
        image + 0.3 * torch.randn(rows, 8), label, environment, torch.arange(rows)
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_perceptrons() -> Iterator[None]:
    with patch.object(encoder, "MLP_WIDTHS", SMALL), patch.object(vae, "MLP_WIDTHS", SMALL):
        yield


@pytest.fixture(scope="module")
def trained() -> tuple[Ivae, Batch]:
    torch.manual_seed(0)
    options = IvaeOptions(block_size=3, learning_rate=1e-2, weight_decay=0)
    method, batch = Ivae(options, Task(8, None, LABELS, ENVIRONMENTS)).train(), profiles()
    (stage,) = method.stages(250)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(250):
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    return method.eval(), batch


@torch.no_grad()
def test_the_posterior_of_style_is_that_of_the_observed_environment() -> None:
    """Looked up: another environment is another posterior, and no other row matters."""
    torch.manual_seed(0)
    method = Ivae(IvaeOptions(block_size=3), Task(8, None, LABELS, ENVIRONMENTS)).eval()
    batch = profiles(6)
    given = torch.tensor([2, 0, 3, 3, 1, 0])
    found = method.outputs(Batch(batch.image, batch.label, given, batch.row), "autoencoder")
    for code in range(ENVIRONMENTS):
        every = torch.full((6,), code)
        one = method.outputs(Batch(batch.image, batch.label, every, batch.row), "autoencoder")
        same = torch.isclose(one["style"], found["style"], rtol=1e-4, atol=1e-5).all(dim=1)
        assert torch.equal(same, given == code)
        assert torch.equal(one["representation"], found["representation"])


@torch.no_grad()
def test_images_of_unknown_environments_are_embedded(trained: tuple[Ivae, Batch]) -> None:
    """Content needs none; style is the mean over environments, each as likely as the probe says."""
    method, batch = trained
    embedded = method.embed(batch.image)
    assert torch.equal(embedded["content"], embedded["representation"])
    features = method.style_encoder(batch.image)
    share = torch.softmax(method.environment_probe(features), dim=1)
    layer = method.style_heads.layers[0]
    expected = torch.zeros(len(batch), 3)
    for row in range(len(batch)):
        for code in range(ENVIRONMENTS):
            mean = (layer.weight[code] @ features[row] + layer.bias[code])[:3]  # type: ignore[index, operator]
            expected[row] += share[row, code] * mean
    torch.testing.assert_close(embedded["style"], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_style_of_the_image_alone_is_the_same_in_every_environment() -> None:
    torch.manual_seed(0)
    options = IvaeOptions(block_size=3, style_posterior="image")
    method, batch = Ivae(options, Task(8, None, LABELS, ENVIRONMENTS)).eval(), profiles(6)
    for code in range(ENVIRONMENTS):
        given = Batch(batch.image, batch.label, torch.full((6,), code), batch.row)
        found = method.outputs(given, "autoencoder")
        assert torch.equal(found["style"], method.embed(batch.image)["style"])
    assert method.style_heads.layers[0].weight.shape[0] == 1  # type: ignore[index, union-attr]


@torch.no_grad()
def test_content_follows_the_label_and_style_the_environment(trained: tuple[Ivae, Batch]) -> None:
    method, batch = trained
    embedded = method.embed(batch.image)
    assert (method.predict(embedded).argmax(dim=1) == batch.label).float().mean() > 0.95
    for block, own, other in (
        ("content", batch.label, batch.environment),
        ("style", batch.environment, batch.label),
    ):
        values = embedded[block]
        explained = [explained_by(values, code) for code in (own, other)]
        assert explained[0] > 0.8, (block, explained)
        assert explained[1] < 0.3, (block, explained)


def explained_by(values: torch.Tensor, code: torch.Tensor) -> float:
    """Share of the variance that lies between the groups."""
    means = torch.stack([values[code == c].mean(dim=0) for c in code])
    return float(means.var(dim=0).sum() / values.var(dim=0).sum())


@torch.no_grad()
def test_a_swap_takes_label_features_from_content_and_the_rest_from_style(
    trained: tuple[Ivae, Batch],
) -> None:
    method, batch = trained
    embedded = method.embed(batch.image)
    order = torch.arange(len(batch)).roll(1)
    swapped = method.swap(embedded["content"], embedded["style"][order])
    expected = torch.cat([batch.image[:, :4], batch.image[order, 4:]], dim=1)
    error = (swapped - expected).square().mean()
    assert error < 0.2 * (batch.image - expected).square().mean()


@torch.no_grad()
def test_collapsed_priors_are_told_and_others_are_not(trained: tuple[Ivae, Batch]) -> None:
    method, batch = trained
    found = method.diagnostics(batch, method.outputs(batch, "autoencoder"))
    scores = {name: float(value) for name, value in found.items()}
    assert method.alarm(scores) is None
    assert scores["prior_spread_content"] > 1
    said = method.alarm(scores | {"prior_spread_content": 0.05, "active_units_style": 0.0})
    assert said is not None
    assert "posterior collapse" in said
    assert "the prior of content does not depend on the label" in said
    before = method.style_prior.mean.clone()
    method.style_prior.mean.copy_(before.mean(dim=0).expand_as(before))
    again = method.diagnostics(batch, method.outputs(batch, "autoencoder"))
    method.style_prior.mean.copy_(before)
    assert again["prior_spread_style"] < 1e-6
    said = method.alarm({name: float(value) for name, value in again.items()})
    assert said is not None
    assert "the prior of style does not depend on the environment" in said


def test_one_environment_has_no_spread_and_raises_no_alarm() -> None:
    method = Ivae(IvaeOptions(block_size=3), Task(8, None, LABELS, 1))
    assert method.alarm({"prior_spread_style": 0.0, "prior_spread_content": 1.0}) is None
