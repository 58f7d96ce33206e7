from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure
from deconfound.methods.contract import Task
from deconfound.methods.mixstyle import MixStyleMethod, MixStyleOptions
from deconfound.reports.report import report
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

TASK = Task(channels=2, image_size=24, labels=3, environments=2)


def built(task: Task = TASK, **options: object) -> MixStyleMethod:
    torch.manual_seed(0)
    always = {"mix_probability": 1.0} | options
    return MixStyleMethod(MixStyleOptions(**always), task).train()  # type: ignore[arg-type]


def batch_of(size: int = 12, held_out: int = 0) -> Batch:
    torch.manual_seed(1)
    rows = torch.arange(size)
    known = rows < size - held_out
    label, environment = (rows % 3).where(known, -1), (rows // 3 % 2).where(known, -1)
    return Batch(torch.rand(size, 2, 24, 24), label, environment, rows, held_out)


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
def test_outputs_are_mixed_in_training_alone(mix: str) -> None:
    method, batch = built(mix=mix), batch_of()
    with torch.no_grad():
        mixed = method.outputs(batch, "classifier")["representation"]
        plain = method.embed(batch.image)["representation"]
        assert not torch.allclose(mixed, plain)
        method.eval()
        mixed = method.outputs(batch, "classifier")["representation"]
        assert torch.equal(mixed, method.embed(batch.image)["representation"])


def test_a_step_is_a_function_of_the_seed() -> None:
    found = []
    for seed in (5, 5, 6):
        method, batch = built(), batch_of()
        torch.manual_seed(seed)
        found.append(method.outputs(batch, "classifier")["representation"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_only_rows_of_training_count_in_the_loss() -> None:
    method, batch = built(domain_adaptation=True), batch_of(16, held_out=4)
    (stage,) = method.stages(2)
    outputs = method.outputs(batch, stage.name)
    loss = stage.phases[0].losses(batch, outputs)["cross_entropy"].value
    logits = method.predict(outputs)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:12], batch.label[:12]))
    (gradient,) = torch.autograd.grad(loss, outputs["representation"])
    assert (gradient[12:] == 0).all()
    assert (gradient[:12] != 0).any()


def test_refusals() -> None:
    with pytest.raises(UserError, match="screen holds profiles, which have none") as error:
        built(Task(12, None, 3, 2))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="crossdomain: training has 1 environment; expected 2"):
        built(Task(2, 24, 3, 1), mix="crossdomain")
    assert built(Task(2, 24, 3, 1))
    assert built(Task(2, 24, 3, 1), mix="crossdomain", domain_adaptation=True)


@pytest.mark.parametrize("adapted", [False, True])
def test_domain_adaptation_is_marked_in_files_scores_and_report(
    adapted: bool, screen: Screen, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("mixstyle", options={"domain_adaptation": adapted}, training={"steps": 2})
    run = fit(config, screen.path, tmp_path / "run", quiet=True).path
    file = tmp_path / "e.h5ad"
    about = embed(run, screen.path, file, device="cpu", threads=1, quiet=True).about
    name = "mixstyle-da" if adapted else "mixstyle"
    assert (about["method"], about["saw_held_out"]) == (name, adapted)
    scores = measure([file], tmp_path / "scores.parquet", quiet=True)
    assert set(scores["method"]) == {name}
    assert scores["note"].str.contains("trained with images of test rows").all() == adapted
    for number, sources in enumerate(([tmp_path / "scores.parquet"], [run, file])):
        page = tmp_path / f"report-{number}.html"
        report(sources, page)
        text = page.read_text(encoding="utf-8")
        assert ("mixstyle-da was trained with images of test rows" in text) == adapted


def test_as_many_images_of_test_rows_join_a_batch(
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(
        "mixstyle",
        options={"domain_adaptation": True},
        training={"steps": 3, "batch_size": 16, "validate_every": 3},
    )
    part = pose(screen, config.data).fold.part
    seen: list[Batch] = []
    outputs = MixStyleMethod.outputs

    def watched(self: MixStyleMethod, batch: Batch, stage: str) -> dict[str, torch.Tensor]:
        seen.append(batch)
        return outputs(self, batch, stage)

    monkeypatch.setattr(MixStyleMethod, "outputs", watched)
    fit(config, screen.path, tmp_path / "run", quiet=True)
    for batch in seen[:3]:
        assert len(batch) == 32
        assert batch.held_out == 16
        assert set(part[batch.row[:16].numpy()]) == {"train"}
        assert set(part[batch.row[16:].numpy()]) == {"test"}
        assert (batch.label[16:] == -1).all()
        assert (batch.environment[16:] == -1).all()
        assert (batch.label[:16] >= 0).all()
    assert all(batch.held_out == 0 for batch in seen[3:]), "validation sees none"
    assert len(seen) > 3
