"""Steps of MixStyle against a loop over images and channels, with the same draws."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from deconfound.data.loading.batch import Batch
from deconfound.methods.contract import Task
from deconfound.methods.mixstyle import MixStyleMethod, MixStyleOptions

SIZE, STEPS, ALPHA = 9, 4, 0.3


def mixed_by_hand(map: Tensor, partner: list[int], weight: list[float]) -> Tensor:
    """Zhou et al., eq. 3–6, an image and a channel at a time."""
    images = []
    for i, (j, own) in enumerate(zip(partner, weight, strict=True)):
        channels = []
        for c in range(map.shape[1]):
            x, y = map[i, c].detach(), map[j, c].detach()
            mean, sd = x.mean(), (x.var() + 1e-6).sqrt()
            other_mean, other_sd = y.mean(), (y.var() + 1e-6).sqrt()
            normal = (map[i, c] - mean) / sd
            spread = own * sd + (1 - own) * other_sd
            channels.append(normal * spread + own * mean + (1 - own) * other_mean)
        images.append(torch.stack(channels))
    return torch.stack(images)


def written_out(
    method: MixStyleMethod, batches: list[Batch], blocks: tuple[int, ...]
) -> tuple[MixStyleMethod, torch.optim.Optimizer, int]:
    own = copy.deepcopy(method)
    layers = list(own.encoder.network)  # type: ignore[arg-type]
    for layer in layers:
        layer._forward_hooks.clear()
    options = own.options
    optimizer = torch.optim.AdamW(
        own.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    mixings = 0
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        x = batch.image
        for number, layer in enumerate(layers):
            x = layer(x)
            if number in (2, 5, 8) and number // 3 + 1 in blocks and torch.rand(()) < 0.5:
                mixings += 1
                if batch.held_out:
                    count = len(batch) - batch.held_out
                    drawn = (count + torch.randint(batch.held_out, (count,))).tolist()
                    drawn += range(count, len(batch))
                else:
                    drawn = torch.randperm(len(batch)).tolist()
                alpha = torch.tensor(ALPHA, dtype=torch.float64)
                weight = Beta(alpha, alpha).sample((len(batch),)).float().double().tolist()
                x = mixed_by_hand(x, drawn, weight)
        count = len(batch) - batch.held_out
        loss = F.cross_entropy(own.head(x)[:count], batch.label[:count])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return own, optimizer, mixings


@pytest.mark.parametrize(("blocks", "held_out"), [((1, 2, 3), 0), ((2,), 0), ((1, 3), 4)])
def test_steps_are_those_of_the_loop(blocks: Any, held_out: int) -> None:
    torch.manual_seed(0)
    options = MixStyleOptions(
        mix_alpha=ALPHA, mix_after=blocks, learning_rate=2e-3, weight_decay=0.05,
        domain_adaptation=held_out > 0,
    )  # fmt: skip
    method = MixStyleMethod(options, Task(2, 16, 3, 2)).double().train()
    batches = []
    for _ in range(STEPS):
        label, environment = torch.randint(0, 3, (SIZE,)), torch.randint(0, 2, (SIZE,))
        if held_out:
            label[-held_out:] = environment[-held_out:] = -1
        image = torch.randn(SIZE, 2, 16, 16, dtype=torch.float64)
        batches.append(Batch(image, label, environment, torch.arange(SIZE), held_out))
    own, reference, mixings = written_out(method, batches, blocks)
    assert mixings, "no step mixed anything"
    (stage,) = method.stages(STEPS)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    expected = dict(own.named_parameters())
    for name, value in method.named_parameters():
        found, wanted = optimizers[0].state[value], reference.state[expected[name]]
        assert float((value - expected[name]).detach().abs().max()) < 1e-9, name
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert float((found[key] - wanted[key]).abs().max()) < 1e-9, (name, key)
