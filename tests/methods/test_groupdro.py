from typing import Any

import pytest
import torch
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.groupdro import GroupDro, GroupDroOptions


def built(**options: Any) -> GroupDro:
    torch.manual_seed(0)
    return GroupDro(GroupDroOptions(**options), Task(3, None, 2, 2)).double().train()


def loss_of(method: GroupDro, risks: list[float], environments: list[int]) -> Tensor:
    """The loss of one row for each environment, whose cross-entropies are `risks`."""
    # The cross-entropy of logits (0, m) and label 0 is log(1 + exp(m)).
    margin = torch.tensor(risks, dtype=torch.float64).expm1().log()
    logits = torch.stack([torch.zeros_like(margin), margin], 1)
    method.predict = lambda _: logits  # type: ignore[method-assign]
    rows = torch.arange(len(risks))
    batch = Batch(torch.zeros(len(risks), 3), 0 * rows, torch.tensor(environments), rows)
    (phase,) = method.stages(1)[0].phases
    return phase.losses(batch, {})["weighted_cross_entropy"].value


@pytest.mark.parametrize("form", ["domainbed", "wilds"])
def test_weights_after_one_step(form: str) -> None:
    """Losses 1 and 2 at η = 0.01: q = softmax(0.01, 0.02)."""
    method = built(form=form)
    loss = loss_of(method, [1.0, 2.0], [0, 1])
    expected = torch.tensor([0.01, 0.02], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(method.q, expected)
    assert method.q.tolist() == pytest.approx([0.4975, 0.5025], abs=1e-5)
    assert loss.item() == pytest.approx((expected * torch.tensor([1.0, 2.0])).sum().item())


def test_an_absent_environment_is_left_out_or_has_a_loss_of_0() -> None:
    raised = torch.tensor([3.0, 0.0], dtype=torch.float64).softmax(0)
    for form, share in (("domainbed", 1.0), ("wilds", raised[0].item())):
        method = built(form=form, eta=1.0)
        assert loss_of(method, [3.0], [0]).item() == pytest.approx(3.0 * share)
        torch.testing.assert_close(method.q, raised)


def test_weights_stand_still_in_validation() -> None:
    method = built().eval()
    loss_of(method, [1.0, 2.0], [0, 1])
    assert method.q.tolist() == [0.5, 0.5]


def test_weights_are_saved() -> None:
    method, other = built(eta=1.0), built()
    loss_of(method, [1.0, 2.0], [0, 1])
    other.load_state_dict(method.state_dict())
    assert other.q[1] > 0.7
    assert torch.equal(other.q, method.q)
    batch = Batch(torch.zeros(1, 3), *[torch.zeros(1, dtype=torch.int64)] * 3)
    assert method.diagnostics(batch, {})["largest_environment_weight"] == method.q[1]
