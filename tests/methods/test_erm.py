import torch
import torch.nn.functional as F

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.erm import Erm, ErmOptions


def test_the_loss_is_cross_entropy_and_blind_to_the_environment() -> None:
    torch.manual_seed(0)
    method = Erm(ErmOptions(), Task(2, 24, 3, 4)).eval()
    rows = torch.arange(9)
    image = torch.rand(9, 2, 24, 24)
    (stage,) = method.stages(5)
    (phase,) = stage.phases
    values = []
    for environment in (rows % 4, torch.full((9,), -1)):
        batch = Batch(image, rows % 3, environment, rows)
        losses = phase.losses(batch, method.outputs(batch, stage.name))
        assert set(losses) == {"cross_entropy"}
        values.append(losses["cross_entropy"].value)
    expected = F.cross_entropy(method.head(method.encoder(image)), rows % 3)
    torch.testing.assert_close(values, [expected, expected])


def test_erm_swaps_nothing() -> None:
    method = Erm(ErmOptions(), Task(2, 24, 3, 4))
    assert method.swap(torch.zeros(1, 4), torch.zeros(1, 4)) is None
