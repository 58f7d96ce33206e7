"""What a study says, from scores whose truth is known."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deconfound.experiments.choice import Chosen
from deconfound.studies.verdict import Verdict, make_verdict

FOLDS = [f"Metadata_Batch=B{number}" for number in range(4)]


def rows(
    method: str,
    value: float,
    *,
    seeds: int = 3,
    folds: list[str] = FOLDS,
    spread: float = 0.0,
    note: str = "",
    covered: float = 1.0,
) -> list[dict[str, Any]]:
    stream = np.random.default_rng(len(method))
    found = []
    for fold in folds:
        for seed in range(seeds):
            own = {"method": method, "fold": fold, "seed": seed, "note": note,
                   "representation": "prediction"}  # fmt: skip
            read = value + float(stream.normal(0, spread))
            for metric, part, one in (
                ("macro_f1", "test", read), ("macro_f1_chance", "test", 0.1),
                ("macro_f1", "id_test", 0.8), ("class_coverage", "test", covered),
            ):  # fmt: skip
                found.append(own | {"metric": metric, "part": part, "value": one})
    return found


def judged(scores: list[dict[str, Any]], chosen: dict[str, str], **more: Any) -> Verdict:
    names = list(dict.fromkeys(row["method"] for row in scores))
    choices = [Chosen(fold, name, {name: 0.5}, ("x", "y")) for fold, name in chosen.items()]
    given = {"command": "deconfound compare screen", "source": "screen",
             "label": "Metadata_Compound", "environment": "Metadata_Plate",
             "hold_out": ["Metadata_Batch"], "shared_information": 0.1}  # fmt: skip
    return make_verdict(pd.DataFrame(scores), choices, names, **(given | more))


ALL_GOOD = dict.fromkeys(FOLDS, "good")


def test_a_gain_beyond_its_interval_helps() -> None:
    found = judged(rows("erm", 0.4, spread=0.02) + rows("good", 0.7, spread=0.02), ALL_GOOD)
    assert found.verdict == "helps"
    assert found.recommended == "good"
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.3, abs=0.03)
    assert 0.2 < found.difference.low < found.difference.high < 0.4
    assert found.difference.p == pytest.approx(2 / 2**4)
    assert found.held_out.mean == pytest.approx(0.7, abs=0.03)
    assert found.held_out.chance == pytest.approx(0.1)
    assert found.sentence.startswith("It helps: in a batch that training never saw, good reads")
    assert len(found.lines()) <= 10


def test_a_loss_beyond_its_interval_harms() -> None:
    found = judged(rows("erm", 0.7, spread=0.02) + rows("bad", 0.4, spread=0.02),
                   dict.fromkeys(FOLDS, "bad"))  # fmt: skip
    assert (found.verdict, found.recommended) == ("harms", "erm")


def test_a_narrow_interval_around_0_is_no_difference_and_a_wide_one_tells_nothing() -> None:
    narrow = judged(rows("erm", 0.5, spread=1e-3) + rows("good", 0.5, spread=1e-3), ALL_GOOD)
    assert narrow.verdict == "no difference"
    wide = judged(rows("erm", 0.5, spread=0.1) + rows("good", 0.5, spread=0.1), ALL_GOOD)
    assert wide.verdict == "cannot be told"
    assert "holds 0" in wide.why


@pytest.mark.parametrize(
    ("seeds", "folds", "more", "why"),
    [
        (1, FOLDS, {}, "An interval takes 2 seeds; there is 1."),
        (3, FOLDS[:2], {}, "An interval takes 3 held-out groups; there are 2."),
        (1, FOLDS[:2], {}, "An interval takes 3 held-out groups and 2 seeds; there are 2 and 1."),
        (3, FOLDS, {"shared_information": 0.97}, "neither can be told from the other"),
    ],
)
def test_what_is_too_little_to_tell_is_said(
    seeds: int, folds: list[str], more: dict[str, Any], why: str
) -> None:
    scores = rows("erm", 0.4, seeds=seeds, folds=folds) + rows(
        "good", 0.7, seeds=seeds, folds=folds
    )
    found = judged(scores, dict.fromkeys(folds, "good"), **more)
    assert found.verdict == "cannot be told"
    assert why in found.why


def test_labels_that_training_lacks_cannot_be_told() -> None:
    scores = rows("erm", 0.4, covered=0.3) + rows("good", 0.7, covered=0.3)
    found = judged(scores, ALL_GOOD)
    assert (found.verdict, "30%" in found.why) == ("cannot be told", True)


def test_the_choice_of_each_group_counts_and_not_the_best_method_afterwards() -> None:
    """Half of the choices fell on a worse method: the verdict's score is theirs."""
    scores = rows("erm", 0.4) + rows("good", 0.7) + rows("bad", 0.3)
    chosen = dict(zip(FOLDS, ["good", "bad", "good", "bad"], strict=True))
    found = judged(scores, chosen)
    assert found.held_out.mean == pytest.approx(0.5)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.1)
    assert found.recommended == "good"
    assert "what was chosen (good, bad)" in found.sentence


def test_scores_of_held_out_rows_change_no_choice_in_the_record() -> None:
    first = judged(rows("erm", 0.4) + rows("good", 0.7), ALL_GOOD)
    second = judged(rows("erm", 0.4) + rows("good", 0.1), ALL_GOOD)
    assert [one["chosen"] for one in first.groups] == [one["chosen"] for one in second.groups]
    assert second.verdict == "harms"


def test_where_erm_itself_was_chosen_nothing_differs() -> None:
    found = judged(rows("erm", 0.4) + rows("bad", 0.3), dict.fromkeys(FOLDS, "erm"))
    assert found.verdict == "no difference"
    assert found.why.startswith("The choice fell on erm itself")
    assert found.sentence == (
        "It makes no difference: in a batch that training never saw, ERM, which was chosen, reads "
        "the labels with a macro-F1 of 0.40."
    )
    scores = rows("erm", 0.4) + rows("bad", 0.3)
    of_it = judged(scores, dict.fromkeys(FOLDS, "erm"), hold_out=["Metadata_Environment"])
    assert ": in an environment that training never saw, ERM" in of_it.sentence


def test_the_record_is_json_with_null_for_what_is_not_known() -> None:
    found = judged(rows("erm", 0.4, seeds=1) + rows("good", 0.7, seeds=1), ALL_GOOD)
    text = json.dumps(found.record(), allow_nan=False)
    back = json.loads(text)
    assert back["format"] == 1
    assert back["methods"]["erm"]["difference"] is None
    assert back["methods"]["good"]["held_out"] == {"mean": 0.7, "sd": None, "n": 4, "chance": 0.1}
    assert back["methods"]["good"]["environment_readable"]["n"] == 0
    assert math.isnan(found.methods["good"].held_out.sd)


def test_a_method_that_saw_held_out_images_says_so() -> None:
    note = "unseen groups standardised with images of test rows"
    found = judged(rows("erm", 0.4) + rows("good", 0.7, note=note), ALL_GOOD)
    assert [found.methods[name].saw_held_out for name in ("erm", "good")] == [False, True]
    assert any("images of held-out groups used" in line for line in found.lines())


def test_of_methods_that_could_not_be_compared_no_difference_is_not_said() -> None:
    names, scores = ["erm", "good"], pd.DataFrame(rows("erm", 0.4))
    given = {"command": "deconfound compare screen", "source": "screen", "label": "l",
             "environment": "e", "hold_out": ["Metadata_Batch"],
             "shared_information": 0.1}  # fmt: skip
    choices = [Chosen(fold, "erm", {"erm": 0.5}, ("x", "y"), ("good",)) for fold in FOLDS]
    found = make_verdict(scores, choices, names, **given)
    assert (found.verdict, found.why) == (
        "cannot be told", "The choice fell on erm, but without good.",
    )  # fmt: skip
    assert found.chosen_by.endswith(
        "Left out were methods of which runs failed or are not done: good."
    )


def test_where_no_group_is_left_out_no_method_has_a_score_by_which_it_was_chosen() -> None:
    choices = [Chosen(fold, "good", {"erm": 0.5, "good": 0.6}, ()) for fold in FOLDS[:2]]
    choices.append(Chosen(FOLDS[2], "good", {"erm": 0.2, "good": 0.3}, ("x",)))
    given = {"command": "deconfound compare screen", "source": "screen", "label": "l",
             "environment": "e", "hold_out": ["Metadata_Batch"],
             "shared_information": 0.1}  # fmt: skip
    scores = pd.DataFrame(rows("erm", 0.4) + rows("good", 0.7))
    found = make_verdict(scores, choices, ["erm", "good"], **given)
    assert found.methods["good"].chosen_by_score == 0.3
    assert "on 1 other group, left out" in found.chosen_by
    assert "Where none can be, the method after ERM is kept" in found.chosen_by
    alone = make_verdict(scores, choices[:2], ["erm", "good"], **given)
    assert math.isnan(alone.methods["good"].chosen_by_score)


def test_biology_kept_is_what_a_probe_reads_of_held_out_labels() -> None:
    def probed(block: str, part: str, value: float) -> dict[str, Any]:
        own = {"method": "good", "fold": FOLDS[0], "seed": 0, "note": "", "part": part}
        return own | {"representation": block, "metric": "probe_label_macro_f1", "value": value}

    probes = [probed("content", "test", 0.6), probed("content", "id_test", 0.9),
              probed("style", "test", 0.1)]  # fmt: skip
    found = judged([*rows("erm", 0.4), *rows("good", 0.7), *probes], ALL_GOOD)
    kept = found.methods["good"].biology_kept
    assert kept is not None
    assert (kept.mean, kept.n) == (0.6, 1)
    assert found.methods["erm"].biology_kept is None


def test_plates_of_a_held_out_series_are_no_groups_of_their_own() -> None:
    plates = [f"{fold}/P{plate}" for fold in FOLDS for plate in (1, 2)]
    scores = [*rows("erm", 0.4, spread=0.05, folds=[*FOLDS, *plates]),
              *rows("good", 0.5, spread=0.05, folds=[*FOLDS, *plates])]  # fmt: skip
    chosen = dict.fromkeys([*FOLDS, *plates], "good")
    units = {fold: fold.partition("/")[0] for fold in chosen}
    together = judged(scores, chosen, units=units).difference
    apart = judged(scores, chosen).difference
    assert together is not None
    assert apart is not None
    assert (together.groups, apart.groups) == (4, 12)
    assert together.mean == pytest.approx(apart.mean)
    assert together.high - together.low > apart.high - apart.low
    assert together.p == pytest.approx(2 / 2**4)


def test_erm_alone_tells_nothing() -> None:
    found = judged(rows("erm", 0.5), dict.fromkeys(FOLDS, "erm"))
    assert found.verdict == "cannot be told"
    assert found.why == "Only erm was compared; name another method."
