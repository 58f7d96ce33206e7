from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.layout import make_plan
from deconfound.experiments.plan_file import configured, points, read_plan

ROOT = Path(__file__).parents[2]


def write(folder: Path, screen: Path, **changed: Any) -> Path:
    """A sweep file of two settings of ERM on one fold, with the changes asked for."""
    values: dict[str, Any] = {
        "screens": [str(screen)],
        "folds": ["plate=S1/P1"],
        "seeds": [0, 1],
        "training": {"steps": 4},
        "methods": {"erm": {"grid": {"learning_rate": [0.1, 0.2]}}},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changed), encoding="utf-8")
    return file


def test_a_plan_is_the_product_of_everything(screen: Screen, tmp_path: Path) -> None:
    entries = {
        "erm": {"grid": {"steps": [5, 6, 7]}},
        "strong": {"method": "scbd", "options": {"alpha": 9}},
    }
    file = write(
        tmp_path,
        screen.path,
        folds=["iid", "all groups of series", "series=S1"],
        grid={"learning_rate": [0.1, 0.2]},
        methods=entries,
    )
    plan = make_plan(file)
    assert len(plan.settings) == (3 * 2 + 2) * 3
    assert len(plan.jobs) == len(plan.settings) * 2
    assert {setting.fold for setting in plan.settings} == {"iid", "series=S1", "series=S2"}
    strong = [job.config for job in plan.jobs.values() if job.config.method == "scbd"]
    assert {config.options.model_dump()["alpha"] for config in strong} == {9.0}
    assert {config.training.steps for config in strong} == {4}
    erm = {setting.entry: setting.values for setting in plan.settings}["erm"]
    assert erm == {"learning_rate": 0.2, "steps": 7}


def test_one_fold_written_two_ways_is_planned_once(screen: Screen, tmp_path: Path) -> None:
    file = write(
        tmp_path, screen.path, folds=["plate=S1/P1", "plate= S1 /P1 "], measure=["plate=S1/ P1"]
    )
    plan = make_plan(file)
    assert [(one.fold, one.measured) for one in plan.settings] == [
        ("plate=S1/P1", "plate=S1/ P1")
    ] * 2
    assert len(plan.jobs) == 2 * 2
    with pytest.raises(UserError, match="measure names 'plate=S1/P9', which is no fold"):
        make_plan(write(tmp_path, screen.path, measure=["plate=S1/P9"]))


def test_later_values_win_over_earlier_ones(screen: Screen, tmp_path: Path) -> None:
    """Defaults < configuration < the file's values < the entry's < the grid."""
    base = {
        "method": "erm",
        "training": {"steps": 1, "batch_size": 1, "warmup_steps": 1, "checkpoint_every": 1},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    entry = {
        "config": "base.yaml",
        "training": {"warmup_steps": 3, "checkpoint_every": 3},
        "grid": {"checkpoint_every": [4]},
    }
    common = {"batch_size": 2, "warmup_steps": 2, "checkpoint_every": 2}
    plan = make_plan(write(tmp_path, screen.path, training=common, methods={"erm": entry}))
    training = next(iter(plan.jobs.values())).config.training
    found = (training.steps, training.batch_size, training.warmup_steps, training.checkpoint_every)
    assert found == (1, 2, 3, 4)
    assert training.threads == 1


def test_a_run_is_named_by_its_configuration_and_its_screen(
    screen: Screen,
    tmp_path: Path,
    make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., np.ndarray],
    make_screen: Callable[..., Screen],
) -> None:
    first = make_plan(write(tmp_path, screen.path)).jobs
    moved = make_table()
    copy = make_screen(tmp_path / "copy", make_images(moved), moved)
    assert make_plan(write(tmp_path, copy.path)).jobs.keys() == first.keys()
    other = make_screen(tmp_path / "other", make_images(moved, seed=1), moved)
    assert not make_plan(write(tmp_path, other.path)).jobs.keys() & first.keys()
    assert not make_plan(write(tmp_path, screen.path, seeds=[2])).jobs.keys() & first.keys()
    grown = make_plan(write(tmp_path, screen.path, seeds=[0, 1, 2])).jobs.keys()
    assert grown > first.keys()


def test_loto_leaves_out_every_training_environment(screen: Screen, tmp_path: Path) -> None:
    entries = {"erm": {"grid": {"steps": [5, 6]}}, "one": {"method": "erm"}}
    file = write(
        tmp_path,
        screen.path,
        select=["loto"],
        seeds=[0, 1],
        loto_seeds=[0],
        data={"environment": ["plate", "section"]},
        folds=["section=S1/P1/A"],
        methods=entries,
    )
    plan = make_plan(file)
    searched, alone = plan.settings[0], plan.settings[-1]
    assert alone.left_out == {}  # there is nothing to choose
    assert {key[1] for key in searched.left_out} == {"P1/A", "P1/B", "P2/A", "P2/B"}
    for (seed, without), name in searched.left_out.items():
        data = plan.jobs[name].config.data
        assert (seed, data.without, data.fold) == (0, without, "section=S1/P1/A")


def test_settings_are_searched_on_some_seeds_alone(screen: Screen, tmp_path: Path) -> None:
    """Names of runs stay; an entry's only setting has all its runs among the first."""
    entries = {"erm": {"grid": {"learning_rate": [0.1, 0.2]}}, "one": {"method": "erm"}}
    given: dict[str, Any] = {"select": ["accuracy", "loto"], "seeds": [0, 1, 2]}
    given |= {"methods": entries, "data": {"environment": ["plate", "section"]}}
    whole = make_plan(write(tmp_path, screen.path, **given))
    assert whole.search() == list(whole.jobs.values())
    plan = make_plan(write(tmp_path, screen.path, search_seeds=[1], **given))
    first = {job.name for job in plan.search()}
    assert plan.jobs.keys() <= whole.jobs.keys()
    *searched, alone = plan.settings
    assert set(alone.runs.values()) <= first
    for setting in searched:
        assert setting.searched() == [setting.runs[1]]
        assert [seed for seed, name in setting.runs.items() if name in first] == [1]
        assert {seed for seed, _ in setting.left_out} == {1}
        assert set(setting.left_out.values()) <= first
    loto = make_plan(write(tmp_path, screen.path, search_seeds=[1], loto_seeds=[2], **given))
    assert {seed for seed, _ in loto.settings[0].left_out} == {2}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": {"ermm": None}}, "unknown method 'ermm'; did you mean 'erm'"),
        ({"methods": {"erm": {"grid": {"alpha_": [1]}}}}, "unknown option 'alpha_' in grid"),
        ({"methods": {"erm": {"grid": {"steps": []}}}}, "methods.erm.grid.steps is empty"),
        ({"grid": {"steps": []}}, "grid.steps is empty"),
        ({"methods": {"erm": {"grid": {"steps": [0]}}}}, "'training.steps' = 0"),
        ({"methods": {"erm": {"grid": {"fold": ["iid"]}}}}, "name it under folds"),
        ({"methods": {"erm": {"training": {"stepz": 1}}}}, "did you mean 'steps'"),
        ({"methods": {"erm": {"config": "no.yaml"}}}, "no such configuration file"),
        ({"methods": {}}, "option 'methods'"),
        ({"screens": ["nowhere"]}, "nowhere: not a screen"),
        ({"folds": ["plate=S9/P9"]}, "no such group; plate has S1/P1"),
        ({"folds": ["all groups of batch"]}, "'batch' is not a level"),
        ({"folds": []}, "option 'folds'"),
        ({"seed": [0]}, "unknown option 'seed'; did you mean 'seeds'"),
        ({"select": ["test"]}, "select.0"),
        ({"search_seeds": [1, 7]}, "search_seeds has 7; expected seeds among 0, 1"),
        (
            {"select": ["loto"], "data": {"environment": ["series"]}, "folds": ["series=S1"]},
            "trains on 1 environment; expected 2 or more",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_runs(
    changed: dict[str, Any], said: str, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        make_plan(write(tmp_path, screen.path, **changed))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "sweeps").glob("*.yaml")), ids=str)
def test_recipes_hold_for_the_methods_there_are(file: Path) -> None:
    read = read_plan(file)
    for name, entry in read.methods.items():
        assert [configured(file, read, name, entry, p) for p in points(file, read, name, entry)]


def intervening(screen: Screen, folder: Path, **ist: Any) -> Path:
    entries = {
        "redrawn": {"method": "erm", "intervene": "ist", "intervention": {"bank": 3}},
        "ist": {"options": {"transfer_steps": 2}, **ist},
        "erm": None,
    }
    return write(folder, screen.path, methods=entries)


def test_a_run_that_intervenes_needs_the_run_of_its_own_fold_and_seed(
    screen: Screen, tmp_path: Path
) -> None:
    plan = make_plan(intervening(screen, tmp_path))
    of_entry = {setting.entry: setting for setting in plan.settings}
    assert len(plan.jobs) == 6
    order = list(plan.jobs)
    for seed in (0, 1):
        job = plan.jobs[of_entry["redrawn"].runs[seed]]
        assert job.needs == of_entry["ist"].runs[seed]
        assert order.index(job.needs) < order.index(job.name)
        config = job.config_in(tmp_path)
        assert config.intervention.intervene == tmp_path / "runs" / job.needs
        assert config.intervention.bank == 3
        assert (config.title, config.training.sampler) == ("erm+ist", "label_uniform")
        assert plan.jobs[job.needs].needs is None
        assert plan.jobs[of_entry["erm"].runs[seed]].needs is None
    assert len({job.config.model_dump_json() for job in plan.jobs.values()}) == 6


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"erm": {"intervene": "irm"}}, "intervene names 'irm', which is no entry; did you mean"),
        ({"erm": {"intervene": "irm"}, "irm": {}}, "'irm', which cannot impute; name an entry of"),
        ({"erm": {"intervention": {"bank": 2}}}, "intervention belongs to intervene; add it"),
        (
            {"erm": {"intervene": "ist"}, "ist": {"grid": {"steps": [1, 2]}}},
            "'ist', which has 2 settings; expected one, give it no grid",
        ),
        (
            {"erm": {"intervene": "ist", "intervention": {"banks": 2}}, "ist": {}},
            "unknown option 'intervention.banks'; did you mean 'bank'",
        ),
    ],
)
def test_entries_that_cannot_intervene_are_refused(
    screen: Screen, tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(write(tmp_path, screen.path, methods=entries))


def test_a_plan_of_more_runs_than_allowed_is_refused_before_it_is_laid_out(
    screen: Screen, tmp_path: Path
) -> None:
    grid = {"learning_rate": [0.1] * 1000, "weight_decay": [0.1] * 1000, "steps": [5] * 50}
    file = write(tmp_path, screen.path, methods={"erm": {"grid": grid}, "scbd": None})
    with pytest.raises(UserError) as refused:
        make_plan(file)
    assert str(refused.value) == (
        f"{file}: 100,000,002 runs are more than 10,000; give fewer values, folds or seeds, or "
        "allow them with --max-runs 100000002"
    )
    folds = ["all groups of plate", "iid"]
    loto = {"select": ["loto"], "loto_seeds": [0], "data": {"environment": ["plate"]}}
    file = write(tmp_path, screen.path, folds=folds, **loto)
    counted = (4 + 1) * 2 * (2 + 2)  # folds, settings, seeds and environments left out
    with pytest.raises(UserError, match=f"{counted} runs are more than {counted - 1};"):
        make_plan(file, max_runs=counted - 1)
    assert len(make_plan(file, max_runs=counted).jobs) <= counted
    file = write(tmp_path, screen.path, folds=folds)
    assert len(make_plan(file, max_runs=20).jobs) == 20
    with pytest.raises(UserError, match="20 runs are more than 19;"):
        make_plan(file, max_runs=19)
    file = write(tmp_path, screen.path, folds=folds[:1], choose=True)
    counted = 2 * (4 * 2 + 6)  # 6 pairs of 4 groups, each left out in one run for both
    assert len(make_plan(file, max_runs=counted).jobs) == counted
    with pytest.raises(UserError, match=f"{counted} runs are more than {counted - 1};"):
        make_plan(file, max_runs=counted - 1)
