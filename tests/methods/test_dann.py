import pytest
import torch
from torch import nn

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract import Stage, Task
from deconfound.methods.dann import Dann, DannOptions

TASK = Task(channels=2, image_size=24, labels=3, environments=4)


def built(task: Task = TASK, **options: object) -> Dann:
    torch.manual_seed(0)
    return Dann(DannOptions(**options), task).train()  # type: ignore[arg-type]


def batch_of(size: int = 12) -> Batch:
    torch.manual_seed(1)
    rows = torch.arange(size)
    return Batch(torch.rand(size, 2, 24, 24), rows % 3, rows // 3 % 4, rows)


def moved(method: Dann, stage: Stage, optimizers: list[torch.optim.Optimizer]) -> set[str]:
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    method.step(batch_of(), stage, optimizers, lambda loss, _: loss.backward())
    changed = (n for n, value in method.named_parameters() if not torch.equal(before[n], value))
    return {name.split(".")[0] for name in changed}


@pytest.mark.parametrize("steps", [1, 3])
def test_turns_follow_the_count(steps: int) -> None:
    """The encoder and the head step where (count, with this step) mod (1 + d) is d."""
    method = built(discriminator_steps=steps)
    (stage,) = method.stages(8)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for count in range(1, 9):
        expected = {"discriminator"} if count % (1 + steps) < steps else {"encoder", "head"}
        assert moved(method, stage, optimizers) == expected
    assert method.state_dict()["count"].item() == 8


def test_reversal_steps_all_at_once() -> None:
    method = built(form="reversal")
    (stage,) = method.stages(2)
    optimizers = [phase.optimizer() for phase in stage.phases]
    assert moved(method, stage, optimizers) == {"discriminator", "encoder", "head"}
    assert "count" not in method.state_dict()


@pytest.mark.parametrize("form", ["alternating", "reversal"])
def test_every_step_logs_every_loss(form: str) -> None:
    method = built(form=form)
    (stage,) = method.stages(2)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(2):
        logged = method.step(batch_of(), stage, optimizers, lambda loss, _: loss.backward())
        assert set(logged) == {"discriminator", "cross_entropy"}


@pytest.mark.parametrize("form", ["alternating", "reversal"])
def test_the_encoder_goes_against_the_discriminator(form: str) -> None:
    """Its gradient is that of CE(label) − lambda · CE(environment)."""
    method, batch = built(form=form, adversarial_weight=0.3), batch_of()
    (stage,) = method.stages(2)
    encoder = next(phase for phase in stage.phases if phase.name == "encoder")
    losses = encoder.losses(batch, method.outputs(batch, stage.name))
    assert {name: loss.weight for name, loss in losses.items()} == {
        "cross_entropy": 1.0,
        "discriminator": -0.3,
    }
    total = sum((loss.weight * loss.value for loss in losses.values()), torch.zeros(()))
    found = torch.autograd.grad(total, encoder.parameters)
    r = method.encoder(batch.image)
    label = nn.functional.cross_entropy(method.head(r), batch.label)
    environment = nn.functional.cross_entropy(method.discriminator(r), batch.environment)
    expected = torch.autograd.grad(label - 0.3 * environment, encoder.parameters)
    torch.testing.assert_close(found, expected)


def test_a_constant_discriminator_keeps_its_batch_statistics() -> None:
    method, batch = built(form="reversal"), batch_of()
    (stage,) = method.stages(2)
    outputs = method.outputs(batch, stage.name)
    before = {name: value.clone() for name, value in method.discriminator.named_buffers()}
    for phase in stage.phases[1:]:
        phase.losses(batch, outputs)
    assert all(torch.equal(before[n], value) for n, value in method.discriminator.named_buffers())
    stage.phases[0].losses(batch, outputs)
    assert method.discriminator.get_buffer("1.num_batches_tracked").item() == 1


def test_a_schedule_raises_lambda_and_is_saved_with_the_weights() -> None:
    """2 / (1 + exp(−10 p)) − 1 of it: 0 in the first step, 0.9866 of it at half of the steps."""
    method = built(form="reversal", adversarial_weight=0.4, adversarial_schedule="sigmoid")
    (stage,) = method.stages(4)
    optimizers = [phase.optimizer() for phase in stage.phases]
    encoder, weights = stage.phases[1], []
    for _ in range(4):
        method.step(batch_of(), stage, optimizers, lambda loss, _: loss.backward())
        losses = encoder.losses(batch_of(), method.outputs(batch_of(), stage.name))
        weights.append(-losses["discriminator"].weight)
    share = torch.arange(4, dtype=torch.float64) / 4
    expected = 0.4 * (2 / (1 + (-10 * share).exp()) - 1)
    torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), expected)
    assert weights[0] == 0
    assert weights[2] == pytest.approx(0.4 * 0.98661, rel=1e-4)
    assert method.state_dict()["count"].item() == 4


def test_discriminators_are_those_of_the_two_benchmarks() -> None:
    shapes = {
        form: [m.weight.shape for m in built(form=form).discriminator if isinstance(m, nn.Linear)]
        for form in ("alternating", "reversal")
    }
    assert shapes["alternating"] == [(256, 256), (256, 256), (4, 256)]
    assert shapes["reversal"] == [(1024, 256), (1024, 1024), (4, 1024)]
    norms = [isinstance(layer, nn.BatchNorm1d) for layer in built(form="reversal").discriminator]
    assert norms == [False, True, False, False, True, False, False]
    assert built(discriminator_width=7).discriminator[2].in_features == 7


def test_each_part_has_its_own_rate_and_adam_its_betas() -> None:
    method = built(learning_rate=0.1, head_learning_rate=0.2, discriminator_learning_rate=0.3)
    phases = method.stages(1)[0].phases
    rates = {phase.name: phase.learning_rate for phase in phases}
    assert rates == {"discriminator": 0.3, "encoder": 0.1, "head": 0.2}
    for phase in phases:
        optimizer = phase.optimizer()
        assert isinstance(optimizer, torch.optim.Adam)
        assert not isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.defaults["betas"] == (0.5, 0.9)
        assert optimizer.defaults["weight_decay"] == 0
    assert {phase.learning_rate for phase in built(learning_rate=0.1).stages(1)[0].phases} == {0.1}


def test_refusals() -> None:
    with pytest.raises(UserError, match="dann: training has 1 environment; expected 2 or more"):
        built(Task(2, 24, 3, 1))
    with pytest.raises(UserError, match="--discriminator-steps belongs to --form alternating"):
        built(form="reversal", discriminator_steps=2)
    with pytest.raises(UserError, match="--weigh-discriminator belongs to --form reversal"):
        built(weigh_discriminator=True)
    with pytest.raises(UserError, match="--discriminator-gradient-penalty belongs"):
        built(form="reversal", discriminator_gradient_penalty=1.0)


@pytest.mark.parametrize("form", ["alternating", "reversal"])
def test_profiles_are_taken(form: str) -> None:
    method = built(Task(5, None, 3, 4), form=form)
    (stage,) = method.stages(2)
    rows = torch.arange(12)
    batch = Batch(torch.randn(12, 5), rows % 3, rows // 3, rows)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(2):
        logged = method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
        assert all(torch.isfinite(value) for value in logged.values())
