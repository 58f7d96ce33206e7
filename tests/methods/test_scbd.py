from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.losses import invariance, supervised_contrastive
from deconfound.methods.contract import Task, weighted_sum
from deconfound.methods.scbd import Scbd, ScbdOptions
from deconfound.reports.report import report
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

TASK = Task(channels=2, image_size=32, labels=3, environments=2)


def built(task: Task = TASK, **options: object) -> Scbd:
    torch.manual_seed(0)
    small = {"decoder_width": 4, "block_size": 8} | options
    return Scbd(ScbdOptions(**small), task)  # type: ignore[arg-type]


def batch_of(size: int = 12, side: int = 32) -> Batch:
    torch.manual_seed(1)
    rows = torch.arange(size)
    return Batch(torch.rand(size, 2, side, side), rows % 3, rows // 3 % 2, rows)


def losses_of(method: Scbd, batch: Batch, phase: str) -> dict[str, Tensor]:
    for stage in method.stages(4):
        for found in stage.phases:
            if found.name == phase:
                outputs = method.outputs(batch, stage.name)
                return {n: loss.value for n, loss in found.losses(batch, outputs).items()}
    raise AssertionError(phase)


def test_the_objective_is_equation_1() -> None:
    method, batch = built(alpha=2.5), batch_of()
    (contrast, *_), *_ = [stage.phases for stage in method.stages(4)]
    outputs = method.outputs(batch, "encoders")
    total = weighted_sum(contrast.losses(batch, outputs))
    content, style = outputs["content"], outputs["style"]
    expected = (
        supervised_contrastive(content, batch.label)
        + supervised_contrastive(style, batch.environment)
        + 2.5 * invariance(content, batch.environment)
    )
    torch.testing.assert_close(total, expected)


def test_cross_entropy_beside_the_contrast_trains_encoder_and_probe_and_the_paper_has_none() -> (
    None
):
    batch = batch_of()
    for weight in (0.0, 0.5):
        method = built(label_weight=weight, decoder="none")
        (contrast, probes) = method.stages(4)[0].phases
        found = contrast.losses(batch, method.outputs(batch, "encoders"))
        trained = {id(p) for p in contrast.parameters}
        probe = {id(p) for p in method.label_probe.parameters()}
        assert (probe <= trained) == (weight > 0)
        assert probe.isdisjoint({id(p) for p in probes.parameters}) == (weight > 0)
        assert ("label" in found) == (weight > 0)
        assert ("label_probe" in losses_of(method, batch, "probes")) == (weight == 0)
    assert found["label"].weight == 0.5
    outputs = method.outputs(batch, "encoders")
    logits = method.label_probe(outputs["representation"])
    expected = nn.functional.cross_entropy(logits, batch.label)
    torch.testing.assert_close(found["label"].value, expected)
    first = next(method.content_encoder.parameters())
    (gradient,) = torch.autograd.grad(found["label"].value, first)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("form", ["balanced", "listing", "equation"])
def test_each_form_of_the_invariance_is_its_loss(form: str) -> None:
    method, batch = built(invariance=form, include_self=False, temperature=0.2), batch_of()
    found = losses_of(method, batch, "contrast")["invariance"]
    content = method.outputs(batch, "encoders")["content"]
    expected = invariance(content, batch.environment, 0.2, form, include_self=False)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_the_style_block_can_follow_the_pair() -> None:
    """Missing labels and environments stay missing: neither makes a pair."""
    method, batch = built(style_target="pair"), batch_of()
    label = batch.label.where(torch.arange(12) != 0, -1)
    environment = batch.environment.where(torch.arange(12) != 1, -1)
    partial = Batch(batch.image, label, environment, batch.row)
    found = losses_of(method, partial, "contrast")["supcon_style"]
    pair = torch.tensor([-1, -1, *(label * 2 + environment)[2:].tolist()])
    style = method.outputs(batch, "encoders")["style"]
    torch.testing.assert_close(found, supervised_contrastive(style, pair))


@pytest.mark.parametrize("decoder", ["after", "beside", "joint", "none"])
def test_stages_follow_the_decoder(decoder: str) -> None:
    stages = built(decoder=decoder, decoder_steps=7, decoder_batch_size=5).stages(40)
    names = [(stage.name, stage.steps, [p.name for p in stage.phases]) for stage in stages]
    encoders = ["contrast", "probes"]
    assert (
        names
        == {
            "after": [("encoders", 40, encoders), ("decoder", 7, ["reconstruct"])],
            "beside": [("encoders", 40, [*encoders, "reconstruct"])],
            "joint": [("encoders", 40, encoders)],
            "none": [("encoders", 40, encoders)],
        }[decoder]
    )
    if decoder == "after":
        assert stages[1].batch_size == 5
        assert not stages[1].classifies


@pytest.mark.parametrize("decoder", ["after", "beside"])
def test_probes_and_decoder_give_no_gradient_to_the_encoders(decoder: str) -> None:
    method, batch = built(decoder=decoder), batch_of()
    encoders = [
        parameter
        for block in (
            method.content_encoder,
            method.content_projection,
            method.style_encoder,
            method.style_projection,
        )
        for parameter in block.parameters()
    ]
    for phase in ("probes", "reconstruct"):
        total = torch.stack(list(losses_of(method, batch, phase).values())).sum()
        found = torch.autograd.grad(total, encoders, allow_unused=True)
        assert all(gradient is None for gradient in found)


def test_style_gives_no_gradient_to_content_and_content_none_to_style() -> None:
    method, batch = built(), batch_of()
    losses = losses_of(method, batch, "contrast")
    of_style = list(method.style_encoder.parameters())
    of_content = list(method.content_encoder.parameters())
    content = losses["supcon_content"] + losses["invariance"]
    for loss, own, other in (
        (content, of_content, of_style),
        (losses["supcon_style"], of_style, of_content),
    ):
        gradients = torch.autograd.grad(loss, own, retain_graph=True)
        assert all((gradient != 0).any() for gradient in gradients)
        none = torch.autograd.grad(loss, other, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in none)


def test_fitting_the_decoder_afterwards_leaves_the_encoders_as_they_are() -> None:
    """Batch statistics included: the encoders are evaluated, though the method trains."""
    method, batch = built(), batch_of()
    stage = method.stages(4)[1]
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizers = [phase.optimizer() for phase in stage.phases]
    method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    changed = {
        name for name, value in method.state_dict().items() if not torch.equal(before[name], value)
    }
    assert changed
    assert all(name.startswith(("decoder.", "likelihood.")) for name in changed)


def test_blocks_have_unit_norm() -> None:
    embedded = built().embed(batch_of().image)
    for name in ("content", "style"):
        torch.testing.assert_close(embedded[name].norm(dim=1), torch.ones(12))


def test_the_label_is_read_from_the_representation() -> None:
    method = built()
    embedded = method.embed(batch_of().image)
    probe: nn.Linear = method.label_probe
    expected = embedded["representation"] @ probe.weight.T + probe.bias
    torch.testing.assert_close(method.predict(embedded), expected)


@pytest.mark.parametrize(("side", "decoded"), [(24, 32), (32, 32), (48, 64), (80, 64)])
def test_any_image_size_is_reconstructed(side: int, decoded: int) -> None:
    method = built(Task(2, side, 3, 2))
    assert torch.isfinite(losses_of(method, batch_of(side=side), "reconstruct")["reconstruction"])
    embedded = method.embed(batch_of(side=side).image)
    image = method.swap(embedded["content"], embedded["style"].roll(1, 0))
    assert image is not None
    assert image.shape == (12, 2, decoded, decoded)


def test_without_a_decoder_there_is_no_swap() -> None:
    assert built(decoder="none").swap(torch.zeros(2, 8), torch.zeros(2, 8)) is None


def test_a_bernoulli_decoder_gives_probabilities_and_wants_them() -> None:
    method, batch = built(likelihood="bernoulli", decoder="beside"), batch_of()
    embedded = method.embed(batch.image)
    image = method.swap(embedded["content"], embedded["style"])
    assert image is not None
    assert ((image > 0) & (image < 1)).all()
    loud = Batch(batch.image * 2, batch.label, batch.environment, batch.row)
    with pytest.raises(UserError, match="--scaling unit"):
        losses_of(method, loud, "reconstruct")


def test_collapse_is_watched() -> None:
    method, batch = built(), batch_of()
    point = {"content": torch.ones(12, 8) / 8**0.5}
    length = method.diagnostics(batch, point)["content_resultant_length"]
    assert length.item() == pytest.approx(1)


def test_each_part_has_its_own_rate() -> None:
    method = built(
        learning_rate=0.1, probe_learning_rate=0.2, decoder_learning_rate=0.3, weight_decay=0.4
    )
    rates = {p.name: p.learning_rate for stage in method.stages(1) for p in stage.phases}
    assert rates == {"contrast": 0.1, "probes": 0.2, "reconstruct": 0.3}
    assert {p.weight_decay for stage in method.stages(1) for p in stage.phases} == {0.4}


def test_a_joint_decoder_trains_the_encoders() -> None:
    """Its gradient reaches both blocks, in proportion to its weight; the probes' still none."""
    gradients = {}
    for weight in (0.0, 1.0, 2.0):
        method, batch = built(decoder="joint", decoder_weight=weight).double(), batch_of()
        batch = replace(batch, image=batch.image.double())
        contrast = method.stages(4)[0].phases[0]
        losses = contrast.losses(batch, method.outputs(batch, "encoders"))
        assert losses["reconstruction"].weight == weight
        own = [method.content_encoder.network[0].weight, method.style_encoder.network[0].weight]  # type: ignore[union-attr, index]
        gradients[weight] = torch.autograd.grad(weighted_sum(losses), own)
        decoder = {id(parameter) for parameter in method.decoder.parameters()}  # type: ignore[union-attr]
        assert decoder < {id(parameter) for parameter in contrast.parameters}
    for none, once, twice in zip(*gradients.values(), strict=True):
        assert ((once - none).abs() > 1e-7).any()
        torch.testing.assert_close(twice - none, 2 * (once - none), rtol=1e-5, atol=1e-8)


def test_without_a_style_block_the_content_is_all_there_is() -> None:
    method, batch = built(style_block=False), batch_of()
    (stage,) = method.stages(4)
    assert [phase.name for phase in stage.phases] == ["contrast", "probes"]
    assert set(losses_of(method, batch, "contrast")) == {"supcon_content", "invariance"}
    assert "environment_probe_style" not in losses_of(method, batch, "probes")
    assert set(method.embed(batch.image)) == {"representation", "content"}
    assert not any("style" in name for name in method.state_dict())
    assert method.swap(torch.zeros(2, 8), torch.zeros(2, 8)) is None


@pytest.mark.parametrize("decoder", ["after", "beside", "joint"])
def test_what_needs_a_style_block_is_refused_without_one(decoder: str) -> None:
    with pytest.raises(UserError, match=f"--decoder {decoder} needs the style block"):
        built(style_block=False, decoder=decoder)
    with pytest.raises(UserError, match="--style-encoder resnet18 needs the style block"):
        built(style_block=False, style_encoder="resnet18")
    with pytest.raises(UserError, match=f"--decoder {decoder} draws images"):
        built(Task(5, None, 3, 2), decoder=decoder)


def test_dropping_the_style_block_changes_no_step_of_the_content() -> None:
    batch = batch_of()
    weights = []
    for style_block in (True, False):
        method = built(style_block=style_block, decoder="none").train()
        torch.manual_seed(2)
        for parameter in [
            *method.content_encoder.parameters(), *method.content_projection.parameters(),
        ]:  # fmt: skip
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter)
            else:
                nn.init.ones_(parameter)
        (stage,) = method.stages(3)
        optimizers = [phase.optimizer() for phase in stage.phases]
        for _ in range(3):
            method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
        weights.append([p.detach().clone() for p in method.content_encoder.parameters()])
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"style_block": False}, {"content", "representation"}),
        ({"decoder": "joint"}, {"content", "representation", "style"}),
    ],
)
def test_ablations_go_from_fit_to_report(
    options: dict[str, object],
    blocks: set[str],
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    config = make_config("scbd", options=options, training={"steps": 2})
    run = fit(config, screen.path, tmp_path / "run", quiet=True).path
    file = tmp_path / "e.h5ad"
    found = embed(run, screen.path, file, device="cpu", threads=1, quiet=True)
    assert set(found.representations) == blocks
    scores = measure([file], tmp_path / "scores.parquet", quiet=True)
    assert set(scores["representation"]) == blocks | {"prediction"}
    report([run, file, tmp_path / "scores.parquet"], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1000
