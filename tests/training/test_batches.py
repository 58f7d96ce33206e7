"""What the batches of a stage with partners hold."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.methods.contract import Stage
from deconfound.runs.config import RunConfig
from deconfound.training.batches import sampler_of, with_partners

STAGE = Stage("any", 1, (), draws="environment", partner="environment")


@pytest.mark.parametrize("draws", [1, 2])
def test_partners_of_a_row_share_their_environment(
    draws: int, screen: Screen, make_config: Callable[..., RunConfig]
) -> None:
    config = make_config("erm", training={"batch_size": 8})
    problem = pose(screen, config.data)
    stage = replace(STAGE, partner_draws=draws)
    rows = sampler_of(config, problem, "train", stage).rows(0)
    assert set(rows) <= set(problem.fold.rows("train"))
    own, *partners = np.split(problem.environment.codes[rows], 1 + draws)
    assert len(own) == 8
    assert all((partner == partners[0]).all() for partner in partners)
    assert (own != partners[0]).any()
    code = torch.from_numpy(rows)
    batch = Batch(torch.zeros(len(rows), 1, 2, 2), code, code, code)
    assert with_partners(batch, stage).partners == 8 * draws
    assert with_partners(batch, replace(stage, partner=None)).partners == 0
