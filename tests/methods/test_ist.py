from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.generated import style_loss
from deconfound.methods.contract import Stage, Task, weighted_sum
from deconfound.methods.ist import Ist, IstOptions


def build(partners: int = 4, **options: Any) -> tuple[Ist, Batch]:
    torch.manual_seed(0)
    method = Ist(IstOptions(**{"form": "paper", **options}), Task(2, 16, labels=3, environments=4))
    batch = Batch(
        torch.randn(8, 2, 16, 16),
        torch.randint(0, 3, (8,)),
        torch.randint(0, 4, (8,)),
        torch.arange(8),
        partners=partners,
    )
    return method, batch


def transfer(method: Ist) -> Stage:
    _, stage = method.stages(5)
    assert stage.name == "transfer"
    return stage


def generator_losses(method: Ist, batch: Batch) -> dict[str, Tensor]:
    _, generator = transfer(method).phases
    found = generator.losses(batch, method.outputs(batch, "transfer"))
    return {name: loss.value for name, loss in found.items()}


def take(method: Ist, batch: Batch, steps: int) -> None:
    stage = transfer(method)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(steps):
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())


def test_the_critic_begins_as_the_encoder() -> None:
    method, batch = build()
    method.begin(transfer(method))
    image = batch.image
    own = method.outputs(batch, "encoder")
    of_critic = method.critic(image)
    torch.testing.assert_close(of_critic.pooled, own["representation"])
    seen = torch.cat([of_critic.pooled, own["seen"][:, of_critic.pooled.shape[1] :]], dim=1)
    torch.testing.assert_close(method.critic_heads(seen), method.environment_head(own["seen"]))
    with torch.no_grad():
        next(method.critic.parameters()).add_(1.0)
    assert not torch.equal(method.critic(image).pooled, method.encoder(image).pooled)


@torch.no_grad()
def test_the_heads_of_the_critic_see_a_gain() -> None:
    """B3.1: its maps after the norms are the same, and its logits are not."""
    method, batch = build()
    image, gained = batch.image + 1, 1.5 * batch.image + 1.5
    before, after = method.critic(image).pooled, method.critic(gained).pooled
    torch.testing.assert_close(before, after, rtol=1e-3, atol=2e-3)
    of_pooled = method.critic_heads.weight[:, : before.shape[1]]
    first, second = (
        method._criticised(method.critic, method.critic_heads, one, batch.environment)
        for one in (image, gained)
    )
    told = (first - second).abs().max()
    assert told > 10 * ((before - after) @ of_pooled.T).abs().max()


def test_each_image_is_judged_by_its_own_head() -> None:
    method, batch = build()
    found = method._criticised(method.critic, method.critic_heads, batch.image, batch.environment)
    logits = method._criticised
    for head in range(4):
        every = logits(
            method.critic,
            method.critic_heads,
            batch.image,
            torch.full_like(batch.environment, head),
        )
        own = batch.environment == head
        torch.testing.assert_close(found[own], every[own])
    unknown = batch.environment.where(torch.arange(8) % 2 == 0, -1)
    half = method._criticised(method.critic, method.critic_heads, batch.image, unknown)
    torch.testing.assert_close(half, found[::2])


def test_the_cycle_decodes_in_the_contents_own_style_through_the_frozen_encoder() -> None:
    """B3.5: the gradient reaches the drawn image by way of E, and none stays in E."""
    method, batch = build()
    take(method, batch, 2)
    method.zero_grad(set_to_none=True)
    content, style = batch.image[:4], batch.image[4:]
    code, own = (method.style(image, batch.environment[:4]) for image in (style, content))
    outputs = method.outputs(batch, "transfer")
    drawn = outputs["drawn"]
    torch.testing.assert_close(drawn, method.generator(content, method.encoder(content).taps, code))
    cycle = generator_losses(method, batch)["cycle"]
    again = method.generator(drawn, method.encoder(drawn).taps, own)
    torch.testing.assert_close(cycle, (again - content).abs().mean())

    cycle.backward()
    assert all(parameter.grad is None for parameter in method.encoder.parameters())
    weight = method.generator.blocks[1].get_submodule("convolution").get_parameter("weight")
    assert weight.grad is not None
    # The control: with E cut off, the same loss gives the generator another gradient.
    cut = method.generator(
        drawn, [tap.detach() for tap in method.encoder(drawn).taps], own.detach()
    )
    (other,) = torch.autograd.grad((cut - content).abs().mean(), weight)
    assert not torch.allclose(weight.grad, other, rtol=1e-3, atol=1e-7)


def test_the_style_loss_compares_with_the_style_image() -> None:
    """B3.3: no gradient where the drawn image is the style image, one where it is the content."""
    method, batch = build()
    content, style = batch.image[:4], batch.image[4:]
    outputs = method.outputs(batch, "transfer")
    _, generator = transfer(method).phases
    slopes = []
    for drawn in (style, content):
        drawn = drawn.clone().requires_grad_()
        found = generator.losses(batch, outputs | {"drawn": drawn})["style"].value
        torch.testing.assert_close(
            found, style_loss(method.encoder(drawn).taps, method.encoder(style).taps)
        )
        slopes.append((found, torch.autograd.grad(found, drawn)[0]))
    (at_style, none), (at_content, some) = slopes
    assert at_style.item() < 1e-5
    assert float(none.norm()) < 1e-2 * float(some.norm())
    assert at_content.item() > 0.1


def test_content_and_class_compare_with_the_content_image() -> None:
    method, batch = build()
    outputs = method.outputs(batch, "transfer")
    _, generator = transfer(method).phases
    at_content = generator.losses(batch, outputs | {"drawn": batch.image[:4]})
    assert float(at_content["content"].value) == 0
    assert float(at_content["content_maps"].value) == 0
    target = method.predict(method.embed(batch.image[:4])).softmax(1)
    entropy = -(target * target.log()).sum(1).mean()
    torch.testing.assert_close(at_content["match"].value, entropy)


def test_the_encoder_is_frozen_and_in_evaluation() -> None:
    """B3.7, whatever the loop has set before the step."""
    method, batch = build()
    before = {name: value.clone() for name, value in method.encoder.named_parameters()}
    method.train()
    take(method, batch, 2)
    assert not method.encoder.training
    assert method.generator.training
    for name, value in method.encoder.named_parameters():
        assert torch.equal(value, before[name]), name
        assert value.grad is None, name


def test_partners_are_the_styles_and_without_any_each_row_is_its_neighbours() -> None:
    method, batch = build()
    outputs = method.outputs(batch, "transfer")
    assert torch.equal(outputs["content"], batch.image[:4])
    assert torch.equal(outputs["style"], batch.image[4:])
    assert torch.equal(outputs["environment"], batch.environment[4:])
    method, batch = build(partners=0)
    outputs = method.outputs(batch, "transfer")
    assert torch.equal(outputs["content"], batch.image)
    assert torch.equal(outputs["style"][1:], batch.image[:-1])
    assert torch.equal(outputs["environment"][1:], batch.environment[:-1])


def test_content_is_balanced_over_labels_and_style_over_environments() -> None:
    method, _ = build(transfer_steps=7, transfer_batch_size=5)
    stage = transfer(method)
    assert (stage.draws, stage.partner) == ("label", "environment")
    assert (stage.steps, stage.batch_size, stage.classifies, stage.selects) == (7, 5, False, False)
    assert [phase.name for phase in stage.phases] == ["critic", "generator"]
    for phase in stage.phases:
        assert (phase.rule, phase.betas) == ("adam", (0.0, 0.99))


def test_an_image_in_its_own_style_begins_as_itself() -> None:
    for output in ("matched", "residual"):
        method, batch = build(output=output)
        method.eval()
        with torch.no_grad():
            own = method.impute(batch.image, method.style(batch.image, batch.environment))
        torch.testing.assert_close(own, batch.image, rtol=1e-5, atol=1e-5)


def test_imputing_takes_the_average_of_the_weights() -> None:
    method, batch = build(transfer_learning_rate=1e-2)
    method.begin(transfer(method))
    take(method, batch, 3)
    method.eval()
    with torch.no_grad():
        style = method.style(batch.image, batch.environment).roll(1, 0)
        found = method.impute(batch.image, style)
        taps = method.encoder(batch.image).taps
        last = method.generator(batch.image, taps, style)
        assert not torch.allclose(found, last, atol=1e-4)
        method.begin(transfer(method))
        torch.testing.assert_close(method.impute(batch.image, style), last)
    assert found.dtype == torch.float32


def test_the_transfer_learns() -> None:
    """On one batch what the generator minimises falls."""
    method, batch = build(output="linear", transfer_learning_rate=3e-3, adversarial_weight=0)
    _, generator = transfer(method).phases

    def total() -> float:
        with torch.no_grad():
            losses = generator.losses(batch, method.outputs(batch, "transfer"))
            return float(weighted_sum(losses))

    before = total()
    take(method, batch, 8)
    assert total() < 0.9 * before


def test_a_step_in_lower_precision_is_finite() -> None:
    method, batch = build()
    stage = transfer(method)
    optimizers = [phase.optimizer() for phase in stage.phases]
    with torch.autocast("cpu", torch.bfloat16):
        logged = method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
        drawn = method.impute(batch.image, method.style(batch.image, batch.environment))
    assert all(value.isfinite() for value in logged.values())
    assert drawn.dtype == torch.float32


def test_profiles_and_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="ist redraws images, and the screen holds profiles"):
        Ist(IstOptions(), Task(5, None, 3, 4))
    with pytest.raises(UserError, match=r"encoder resnet18.*24 x 24 px.*expected 33 x 33"):
        Ist(IstOptions(encoder="resnet18"), Task(2, 24, 3, 4))
    with pytest.raises(UserError, match="1 environment"):
        Ist(IstOptions(), Task(2, 24, 3, 1))


def of_sets(**options: Any) -> tuple[Ist, Batch]:
    """The form `set`: 4 content images, and for each 2 style images of one environment."""
    torch.manual_seed(0)
    options = {"form": "set", "set_images": 2, **options}
    method = Ist(IstOptions(**options), Task(2, 16, labels=3, environments=4))
    environment = torch.tensor([0, 1, 2, -1, 1, 2, 3, 0, 1, 2, 3, 0])
    image, label = torch.randn(12, 2, 16, 16), torch.randint(0, 3, (12,))
    return method, Batch(image, label, environment, torch.arange(12), partners=8)


def test_a_set_is_the_mean_of_its_images_and_belongs_to_their_environment() -> None:
    method, batch = of_sets()
    outputs = method.outputs(batch, "transfer")
    styles = method.style(batch.image[4:], batch.environment[4:])
    target = (styles[:4] + styles[4:]) / 2
    own, source = method.style(batch.image[:4], batch.environment[:4]), outputs["source"]
    from_style = method.sets.styles.of(source, torch.full_like(own, torch.nan))
    assert bool(from_style[3].isnan().all())
    content, code = method.sets.transfer(batch.image[:4], target, own, from_style)
    torch.testing.assert_close(outputs["content"], content)
    torch.testing.assert_close(outputs["code"], code)
    assert torch.equal(outputs["environment"], batch.environment[4:8])
    drawn = method.generator(content, method.encoder(content).taps, code)
    torch.testing.assert_close(outputs["drawn"], drawn)


def test_controls_alone_make_up_the_styles_of_environments() -> None:
    method, batch = of_sets()
    method.task = Task(2, 16, labels=3, environments=4, controls=(1,))
    batch.label[4:] = torch.tensor([1, 0, 2, 1, 1, 1, 0, 0])
    method.outputs(batch, "transfer")
    assert method.sets.styles.count.tolist() == [1, 2, 1, 0]
    styles = method.style(batch.image, batch.environment)
    torch.testing.assert_close(method.sets.styles.mean[1], (styles[4] + styles[8]) / 2)
    method.eval()
    method.outputs(batch, "transfer")
    assert method.sets.styles.count.tolist() == [1, 2, 1, 0]


def test_the_source_is_read_by_one_and_hidden_by_the_other() -> None:
    """The critic's phase learns to read where images were taken, the generator's to hide it."""
    method, batch = of_sets()
    critic, generator = transfer(method).phases
    outputs = method.outputs(batch, "transfer")
    read = critic.losses(batch, outputs)["source_read"].value
    read.backward(retain_graph=True)
    assert method.source_head.weight.grad is not None
    assert all(parameter.grad is None for parameter in method.generator.parameters())
    method.zero_grad(set_to_none=True)
    losses = generator.losses(batch, outputs)
    assert set(losses) == {"adversarial", "content", "content_maps", "style", "source"}
    losses["source"].value.backward()
    assert method.source_head.weight.grad is None
    assert method.generator.to_image.weight.grad is not None


def test_weights_of_the_other_form_are_refused() -> None:
    for given in ({"cycle_weight": 1}, {"match_weight": 0.5}):
        with pytest.raises(ValidationError, match="belongs to the form paper"):
            IstOptions(**given)
    for given in ({"source_weight": 1}, {"set_images": 4}):
        with pytest.raises(ValidationError, match="belongs to the form set"):
            IstOptions(form="paper", **given)


def test_options_of_a_build_without_forms_are_the_papers() -> None:
    read = IstOptions(output="matched", match_weight=1.0, cycle_weight=1.0)
    assert read == IstOptions(form="paper")
    assert not read.of_sets
    assert IstOptions().of_sets


def test_a_form_sets_what_is_not_given() -> None:
    assert IstOptions(form="paper").match_weight == 1
    assert IstOptions(form="paper", match_weight=0).match_weight == 0
    changed = IstOptions(encoder="resnet18", content_weight=3).in_form("paper")
    assert changed == IstOptions(form="paper", encoder="resnet18", content_weight=3)
    assert changed.in_form("set") == IstOptions(encoder="resnet18", content_weight=3)


@pytest.mark.parametrize("form", ["set", "paper"])
def test_options_written_without_their_defaults_read_back(form: str) -> None:
    given = IstOptions.model_validate({"form": form, "learning_rate": 0.002})
    assert IstOptions.model_validate(given.model_dump(exclude_unset=True)) == given
    default = IstOptions.model_validate({"learning_rate": 0.002})
    assert IstOptions.model_validate(default.model_dump(exclude_unset=True)) == default
