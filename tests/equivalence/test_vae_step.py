"""The bounds of VAE, iVAE and mcVAE against loops over rows, written out from the papers."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Method, Task, weighted_sum
from deconfound.methods.ivae import Ivae, IvaeOptions
from deconfound.methods.mcvae import Mcvae, McvaeOptions
from deconfound.methods.vae import Vae, VaeOptions
from deconfound.nets import vae

LABELS, ENVIRONMENTS, D = 4, 3, 5
CONTROL = 1
SMALL: dict[str, Any] = {"width": 2, "block_size": D, "kl_weight": 0.7}
PROFILES = {"encoder": "mlp", "norm": "group"}


def noise(like: Tensor) -> Tensor:
    return torch.linspace(-1.5, 1, like.numel(), dtype=like.dtype).view_as(like)


@pytest.fixture(autouse=True)
def _known_noise() -> Iterator[None]:
    with patch.object(vae, "standard_normal", noise):
        yield


def batch_of(*shape: int) -> Batch:
    torch.manual_seed(1)
    rows = 8
    label = torch.tensor([0, 1, 2, 3, 1, 1, -1, 2])
    environment = torch.tensor([0, 1, 2, -1, 0, 1, 2, 2])
    image = torch.randn(rows, *shape, dtype=torch.float64)
    return Batch(image, label, environment, torch.arange(rows))


def normal(parameters: Tensor) -> Any:
    mean, log_variance = parameters.chunk(2)
    return Normal(mean, (log_variance / 2).exp())  # type: ignore[no-untyped-call]


def unlikely(method: Vae, decoded: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum over rows, each a latent and the image that it stands for.

    The optimal sd is a function of all rows here, through which autograd goes.
    """
    mean = torch.cat([method.decoder(latent[None]) for latent, _ in decoded])
    image = torch.stack([image for _, image in decoded])
    if method.likelihood is None:
        sd = ((image - mean) ** 2).mean().sqrt()
    else:
        sd = method.likelihood.log_sd.exp()
    return -Normal(mean, sd).log_prob(image).sum()  # type: ignore[no-untyped-call, no-any-return]


def drawn(q: Any, row: int, rows: int) -> Tensor:
    eps = noise(torch.empty(rows, D, dtype=torch.float64))[row]
    return q.mean + q.stddev * eps  # type: ignore[no-any-return]


def bound_of_vae(method: Vae, batch: Batch) -> Tensor:
    parameters = method.head(method.encoder(batch.image))
    total, decoded = torch.zeros(()), []
    unit = Normal(torch.zeros(D).double(), 1.0)  # type: ignore[no-untyped-call]
    for row in range(len(batch)):
        q = normal(parameters[row])
        decoded.append((drawn(q, row, len(batch)), batch.image[row]))
        total = total + 0.7 * kl_divergence(q, unit).sum()
    return (total + unlikely(method, decoded)) / len(batch)


def bound_of_ivae(method: Ivae, batch: Batch) -> Tensor:
    content = method.head(method.encoder(batch.image))
    features = method.style_encoder(batch.image)
    layer = method.style_heads.layers[0]
    total, decoded = torch.zeros(()), []
    told = method.options.style_posterior == "image_environment"
    for row in range(len(batch)):
        y, e = int(batch.label[row]), int(batch.environment[row])
        if y < 0 or e < 0:
            continue
        own = e if told else 0
        q_c = normal(content[row])
        q_s = normal(layer.weight[own] @ features[row] + layer.bias[own])  # type: ignore[index, operator]
        p_c = normal(
            torch.cat([method.content_prior.mean[y], method.content_prior.log_variance[y]])
        )  # type: ignore[index]
        p_s = normal(torch.cat([method.style_prior.mean[e], method.style_prior.log_variance[e]]))  # type: ignore[index]
        latent = torch.cat([drawn(q_c, row, len(batch)), drawn(q_s, row, len(batch))])
        decoded.append((latent, batch.image[row]))
        total = total + 0.7 * (kl_divergence(q_c, p_c).sum() + kl_divergence(q_s, p_s).sum())
    return (total + unlikely(method, decoded)) / len(decoded)


def bound_of_mcvae(method: Mcvae, batch: Batch, share: float) -> Tensor:
    salient = method.head(method.encoder(batch.image))
    background = method.background_head(method.background_encoder(batch.image))
    assert method.environment is not None
    table = method.environment.weight
    total, decoded = torch.zeros(()), []
    for row in range(len(batch)):
        y, e = int(batch.label[row]), int(batch.environment[row])
        if y < 0:
            continue
        q_s, q_z = normal(salient[row]), normal(background[row])
        p_s = Normal(method.salient_prior.mean[y], 1.0)  # type: ignore[no-untyped-call]
        p_z = Normal(method.background_prior.mean[y], 1.0)  # type: ignore[no-untyped-call]
        s = drawn(q_s, row, len(batch))
        weighted = kl_divergence(q_z, p_z).sum()
        if y == CONTROL:
            s = torch.zeros_like(s)
            weighted = weighted + 8 * ((q_s.mean**2).sum() + q_s.variance.sum())
        else:
            weighted = weighted + kl_divergence(q_s, p_s).sum()
        told = table[e] if e >= 0 else table.mean(0)
        latent = torch.cat([s, drawn(q_z, row, len(batch)), told])
        decoded.append((latent, batch.image[row]))
        total = total + share * 0.7 * weighted
    return (total + unlikely(method, decoded)) / len(decoded)


def built(kind: type[Vae], options: VaeOptions, image: tuple[int, ...]) -> Vae:
    torch.manual_seed(0)
    side = image[1] if len(image) > 1 else None
    method = kind(options, Task(image[0], side, LABELS, ENVIRONMENTS, (CONTROL,)))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith("log_variance"):
                parameter.normal_()
    return method.double().train()


def assert_same(method: Method, batch: Batch, expected: Tensor) -> None:
    """The value of the first phase's objective and its gradient in every parameter."""
    phase = method.stages(20)[0].phases[0]
    found = weighted_sum(phase.losses(batch, method.outputs(batch, "autoencoder")))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    names = [name for name, _ in method.named_parameters()]
    parameters: list[nn.Parameter] = [p for _, p in method.named_parameters()]
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    got = torch.autograd.grad(found, parameters, allow_unused=True)
    assert sum(one is not None for one in got) == len(phase.parameters)
    for name, one, other in zip(names, got, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def options_for(kind: type[VaeOptions], image: tuple[int, ...], **given: Any) -> Any:
    return kind(**SMALL, **PROFILES if len(image) == 1 else {}, **given)


@pytest.mark.parametrize("likelihood", ["gaussian", "optimal_sigma"])
@pytest.mark.parametrize("image", [(2, 32, 32), (11,)])
def test_vae(image: tuple[int, ...], likelihood: str) -> None:
    method = built(Vae, options_for(VaeOptions, image, likelihood=likelihood), image)
    batch = batch_of(*image)
    assert_same(method, batch, bound_of_vae(method, batch))


@pytest.mark.parametrize("likelihood", ["gaussian", "optimal_sigma"])
@pytest.mark.parametrize("posterior", ["image_environment", "image"])
@pytest.mark.parametrize("image", [(2, 32, 32), (11,)])
def test_ivae_looks_the_observed_environment_up_and_leaves_incomplete_rows_out(
    image: tuple[int, ...], posterior: str, likelihood: str
) -> None:
    given = {"style_posterior": posterior, "likelihood": likelihood}
    method = built(Ivae, options_for(IvaeOptions, image, **given), image)
    assert isinstance(method, Ivae)
    batch = batch_of(*image)
    assert_same(method, batch, bound_of_ivae(method, batch))


@pytest.mark.parametrize("likelihood", ["gaussian", "optimal_sigma"])
@pytest.mark.parametrize("image", [(2, 32, 32), (11,)])
@pytest.mark.parametrize(("updates", "share"), [(0, 0.1), (6, 0.7), (15, 1.0), (20, 0.1)])
def test_mcvae_at_every_place_of_the_ramp(
    image: tuple[int, ...], updates: int, share: float, likelihood: str
) -> None:
    """Of 20 steps 10 rise, 10 stay; the next begins again."""
    method = built(Mcvae, options_for(McvaeOptions, image, likelihood=likelihood), image)
    assert isinstance(method, Mcvae)
    method.updates.fill_(updates)
    batch = batch_of(*image)
    assert_same(method, batch, bound_of_mcvae(method, batch, share))


def test_the_bound_that_selects_a_checkpoint_has_the_full_weight() -> None:
    method = built(Mcvae, McvaeOptions(**SMALL, **PROFILES), (11,))
    assert isinstance(method, Mcvae)
    method.eval()
    batch = batch_of(11)
    assert_same(method, batch, bound_of_mcvae(method, batch, 1.0))
