import torch
import torch.nn.functional as F

from deconfound.losses.risk import environment_risks


def test_risks_are_means_over_the_known_rows_of_each_environment() -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, 3, dtype=torch.float64, requires_grad=True)
    label, environment = torch.randint(-1, 3, (30,)), torch.randint(-1, 4, (30,))
    risks, rows = environment_risks(logits, label, environment, 6)
    for e in range(4):
        own = (environment == e) & (label >= 0)
        torch.testing.assert_close(risks[e], F.cross_entropy(logits[own], label[own]))
        assert rows[e] == own.sum()
    assert risks[4:].tolist() == [0, 0]
    assert rows[4:].tolist() == [0, 0]


def test_a_batch_without_known_rows_has_risks_of_0_and_no_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    for label, environment in ((-1, 0), (0, -1)):
        risks, _ = environment_risks(
            logits, torch.full((4,), label), torch.full((4,), environment), 2
        )
        assert risks.tolist() == [0, 0]
        assert (torch.autograd.grad(risks.sum(), logits)[0] == 0).all()
