from dataclasses import replace

import pytest
import torch

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract import Task
from deconfound.methods.stargan2 import StarGan2, StarGan2Options, reference_rows

TASK = Task(channels=2, image_size=24, labels=3, environments=4)
SMALL = {"width": 4, "max_width": 8, "mapping_width": 8, "style_size": 6, "latent_size": 5}


def built(task: Task = TASK, **options: object) -> StarGan2:
    torch.manual_seed(0)
    return StarGan2(StarGan2Options(**(SMALL | options)), task).train()  # type: ignore[arg-type]


def batch_of(own: int = 4, environments: int = 4) -> Batch:
    """Rows, their first references and their second ones."""
    torch.manual_seed(1)
    target = torch.arange(own) * 3 % environments
    environment = torch.cat([torch.arange(own) % environments, target, target])
    rows = torch.arange(3 * own)
    return Batch(torch.randn(3 * own, 2, 24, 24), rows % 3, environment, rows, partners=2 * own)


def stepped(method: StarGan2, batch: Batch, steps: int = 1) -> dict[str, torch.Tensor]:
    (stage,) = method.stages(4)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(steps):
        logged = method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    return logged


def test_a_step_logs_every_term() -> None:
    terms = ("real", "fake", "r1", "adversarial", "style", "diversity", "cycle")
    logged = stepped(built(), batch_of())
    assert set(logged) == {f"{kind}_{term}" for kind in ("latent", "reference") for term in terms}
    assert all(torch.isfinite(value) and value > 0 for value in logged.values())


def test_every_weight_is_an_option() -> None:
    options = {"style_weight": 0.3, "diversity_weight": 0.7, "cycle_weight": 0.9, "r1_weight": 0.2}
    (stage,) = built(**options).stages(4)
    batch = batch_of()
    weights: dict[str, float] = {}
    for phase in stage.phases:
        method = built(**options)
        losses = phase.losses(batch, method.outputs(batch, stage.name))
        weights |= {name: loss.weight for name, loss in losses.items()}
    assert weights == {
        "latent_real": 1, "latent_fake": 1, "latent_r1": 0.2, "latent_adversarial": 1,
        "latent_style": 0.3, "latent_diversity": -0.7, "latent_cycle": 0.9,
    }  # fmt: skip


@pytest.mark.parametrize(("given", "steps"), [(None, 4), (2, 2), (8, 8)])
def test_diversity_fades_linearly_to_zero(given: int | None, steps: int) -> None:
    method, batch = built(diversity_steps=given, diversity_weight=2.0), batch_of()
    (stage,) = method.stages(4)
    generator = next(phase for phase in stage.phases if phase.name == "generator")
    found = []
    for count in range(10):
        method.count.fill_(count)
        with torch.no_grad():
            losses = generator.losses(batch, method.outputs(batch, stage.name))
        found.append(losses["latent_diversity"].weight)
    assert found == pytest.approx([-2 * max(0, 1 - count / steps) for count in range(10)])
    assert stage.steps == 4


@pytest.mark.parametrize(("average", "decays"), [(0.999, [1 / 10, 2 / 11]), (0.15, [0.1, 0.15])])
def test_averages_follow_the_weights_and_impute(average: float, decays: list[float]) -> None:
    method, batch = built(average=average), batch_of()
    names = ("generator", "style_encoder", "mapping")
    expected = {n: v.clone() for n, v in method.named_buffers() if n.startswith("average_")}
    (stage,) = method.stages(4)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for decay in decays:
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
        for name, value in expected.items():
            own = method.get_parameter(name.removeprefix("average_")).detach()
            expected[name] = value * decay + own * (1 - decay)
    for name, value in expected.items():
        torch.testing.assert_close(method.get_buffer(name), value)
    assert method.count.item() == len(decays)
    image, environment, latent = batch.image[:3], batch.environment[:3], torch.randn(3, 5)
    with torch.no_grad():
        before = [method.style(image, environment), method.latent_style(latent, environment)]
        before += [method.impute(image, before[0]), method.embed(image)["representation"]]
        for name in (*names, "discriminator"):
            for parameter in getattr(method, name).parameters():
                parameter.zero_()
        after = [method.style(image, environment), method.latent_style(latent, environment)]
        after += [method.impute(image, before[0]), method.embed(image)["representation"]]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert [tuple(value.shape) for value in before] == [(3, 6), (3, 6), (3, 2, 24, 24), (3, 8)]


def test_a_style_depends_on_the_environment_and_an_image_on_the_style() -> None:
    method = built()
    image = torch.randn(1, 2, 24, 24).expand(2, -1, -1, -1)
    latent, both = torch.randn(1, 5).expand(2, -1), torch.tensor([0, 1])
    with torch.no_grad():
        for styles in (method.style(image, both), method.latent_style(latent, both)):
            assert not torch.allclose(*styles)
        assert not torch.allclose(*method.impute(image, styles))


def test_references_are_partners_or_the_row_before() -> None:
    batch = batch_of(4)
    own, first, second = reference_rows(batch)
    assert own.tolist() == [0, 1, 2, 3]
    assert first.tolist() == [4, 5, 6, 7]
    assert second.tolist() == [8, 9, 10, 11]
    own, first, second = reference_rows(replace(batch, partners=0))
    assert own.tolist() == list(range(12))
    assert first.tolist() == second.tolist() == [11, *range(11)]
    outputs = built().outputs(batch, "transfer")
    assert torch.equal(outputs["target"], batch.environment[4:8])
    assert torch.equal(outputs["reference"], batch.image[4:8])
    assert torch.equal(outputs["other_reference"], batch.image[8:])


def test_rows_of_unknown_environments_are_left_out() -> None:
    batch = batch_of(4)
    environment = batch.environment.clone()
    environment[[0, 5]] = -1  # an image and a first reference
    environment[11] = (environment[7] + 1) % 4  # a second reference of another environment
    outputs = built().outputs(replace(batch, environment=environment), "transfer")
    assert torch.equal(outputs["image"], batch.image[[2, 3]])
    assert torch.equal(outputs["reference"], batch.image[[6, 7]])
    assert torch.equal(outputs["other_reference"], batch.image[[10, 7]])
    assert outputs["latent"].shape == outputs["other_latent"].shape == (2, 5)


def test_a_batch_without_environments_moves_nothing_but_by_decay() -> None:
    batch = batch_of(4)
    method = built(weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    logged = stepped(method, replace(batch, environment=torch.full_like(batch.environment, -1)))
    assert all(value == 0 for value in logged.values())
    assert all(torch.equal(before[name], value) for name, value in method.named_parameters())


def test_a_hundred_and_twenty_environments_train() -> None:
    method, batch = built(Task(2, 24, 3, 120)), batch_of(4, environments=120)
    heads = [method.style_encoder.heads, method.mapping.heads, method.discriminator.heads]
    before = [
        heads[0].layers[0].weight.detach().clone(),
        heads[2].layers[0].weight.detach().clone(),
    ]
    logged = stepped(method, batch)
    assert all(torch.isfinite(value) for value in logged.values())
    after = [heads[0].layers[0].weight, heads[2].layers[0].weight]
    held = sorted(set(batch.environment.tolist()))
    for one, other in zip(before, after, strict=True):
        moved = (one != other).flatten(1).any(dim=1)
        assert moved[held].all()
        gradient = other.grad
        if gradient is not None:
            assert (gradient.flatten(1) != 0).any(dim=1).nonzero()[:, 0].tolist() == held


def test_mapping_and_the_rest_have_their_rates_and_betas() -> None:
    (stage,) = built().stages(2)
    rates = {phase.name: phase.learning_rate for phase in stage.phases}
    assert rates == {"discriminator": 1e-4, "generator": 1e-4, "mapping": 1e-6}
    for phase in stage.phases:
        optimizer = phase.optimizer()
        assert type(optimizer) is torch.optim.Adam
        assert optimizer.defaults["betas"] == (0, 0.99)
        assert optimizer.defaults["weight_decay"] == 1e-4
    assert not stage.selects


def test_refusals() -> None:
    with pytest.raises(UserError, match="stargan2: training has 1 environment; expected 2 or more"):
        built(Task(2, 24, 3, 1))
    with pytest.raises(UserError, match="stargan2 draws images, and the screen holds profiles"):
        built(Task(5, None, 3, 4))
    with pytest.raises(UserError, match="stargan2: images of 33 px; expected a multiple of 2 px"):
        built(Task(2, 33, 3, 4))
    method, unknown = built(), torch.tensor([0, -1])
    with pytest.raises(UserError, match="an environment unknown to training has no style"):
        method.style(torch.randn(2, 2, 24, 24), unknown)
    with pytest.raises(UserError, match="an environment unknown to training has no style"):
        method.latent_style(torch.randn(2, 5), unknown)


def test_a_step_in_lower_precision_uses_the_weights_of_the_moment() -> None:
    """Autocast keeps the weights it has cast, also those cast without gradient, until it ends.

    Without them the difference is 0.21 at most, with them 0.98.
    """
    moved: list[dict[str, torch.Tensor]] = []
    for lower in (True, False):
        method = built(optimizer="sgd", learning_rate=0.02, mapping_learning_rate=0.02)
        before = {name: value.detach().clone() for name, value in method.named_parameters()}
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            stepped(method, batch_of())
        after = method.named_parameters()
        moved.append({name: value.detach() - before[name] for name, value in after})
    for network in ("generator", "style_encoder", "mapping", "discriminator"):
        found, wanted = (
            torch.cat([value.flatten() for name, value in one.items() if name.startswith(network)])
            for one in moved
        )
        assert wanted.any(), network
        assert float((found - wanted).norm()) < 0.35 * float(wanted.norm()), network
