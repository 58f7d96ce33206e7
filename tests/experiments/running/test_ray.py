import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, run_directory
from deconfound.experiments.running.ray import run_ray
from deconfound.runs.config import RunConfig


def orders(config: RunConfig, screen: Screen, out: Path) -> list[Order]:
    """Two runs, and one that fails."""
    text = config.model_dump_json()
    first = Order("a", str(screen.path), screen.identity, config.method, text, str(out))
    other = config.model_copy(update={"seed": 1}).model_dump_json()
    return [first, first._replace(name="b", config=other), first._replace(name="c", identity="no")]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'deconfound\[ray\]'"):
        next(run_ray([], 1, 1, None))


def test_an_address_where_no_cluster_answers_is_one_line() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: no Ray cluster answers") as error:
        next(run_ray([], 1, 1, "127.0.0.1:9"))
    assert "\n" not in str(error.value)


@pytest.fixture
def ray() -> Any:
    return pytest.importorskip("ray", reason="the extra [ray] is not installed")


@pytest.mark.usefixtures("ray")
def test_runs_on_ray_are_those_of_this_process(
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    assert_same_run: Callable[[Path, Path], None],
) -> None:
    there, here = tmp_path / "ray", tmp_path / "here"
    config = make_config("erm", training={"steps": 2})
    outcomes = {one.name: one for one in run_ray(orders(config, screen, there), 1, 1, None)}
    assert set(outcomes) == {"a", "b", "c"}
    assert "changed since the sweep began" in outcomes["c"].reason
    for order in orders(config, screen, here)[:2]:
        assert outcomes[order.name].reason == ""
        assert Runner().run(order).reason == ""
        runs = [run_directory(folder, order.name) for folder in (there, here)]
        assert_same_run(*runs)
