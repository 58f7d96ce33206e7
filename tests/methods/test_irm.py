from typing import Any

import pytest

from deconfound.errors import UserError
from deconfound.methods.contract import Stage, Task
from deconfound.methods.irm import Irm, IrmOptions


def stages(steps: int, **options: Any) -> tuple[Stage, ...]:
    return Irm(IrmOptions(**options), Task(3, None, 2, 2)).stages(steps)


def test_annealing_is_a_stage_of_its_own_from_whose_end_the_next_goes_on() -> None:
    first, second = stages(1500)
    assert (first.name, first.steps, first.continues) == ("annealing", 500, False)
    assert (second.name, second.steps, second.continues) == ("penalised", 1000, True)
    assert [stage.steps for stage in stages(50, anneal_steps=20)] == [20, 30]


def test_annealing_takes_500_steps_as_in_the_benchmarks_and_a_third_of_fewer() -> None:
    for steps, annealing in ((30_000, 500), (1501, 500), (180, 60)):
        assert stages(steps)[0].steps == annealing


def test_no_annealing_is_one_stage() -> None:
    for (only,) in (stages(50, anneal_steps=0), stages(2)):
        assert (only.name, only.continues) == ("penalised", False)


def test_annealing_leaves_steps_for_the_penalty() -> None:
    with pytest.raises(UserError, match="--anneal-steps 50: leaves none of 50 steps"):
        stages(50, anneal_steps=50)
