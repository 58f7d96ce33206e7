"""What `Deconfounder` takes as rows, and what it refuses, in one line."""

import re
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from deconfound import Deconfounder
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.estimator.kept import in_python
from deconfound.estimator.pixels import images_of_array, images_of_dataset
from deconfound.estimator.rows import rows_of
from deconfound.estimator.settings import resolve
from deconfound.runs.config import config_model

Pixels = npt.NDArray[np.uint16]


class Items(Dataset[Any]):
    """A data set of items given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


class Stream(IterableDataset[Any]):
    """A data set that is iterated alone."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


def test_the_same_images_in_other_forms_are_the_same(images: Pixels) -> None:
    tensor = torch.from_numpy(images.astype(np.float32))
    expected = images.astype(np.float32)
    for form in (tensor, tensor.double().requires_grad_(), expected.astype(">f8"),
                 np.asfortranarray(expected)):  # fmt: skip
        found = images_of_array(form)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(images_of_array(images[:, 0])[:, 0], images[:, 0])
    labels = torch.arange(96)
    for items in (TensorDataset(tensor, labels), Items(list(expected)), Stream(list(expected))):
        np.testing.assert_array_equal(images_of_dataset(items), expected)


def test_pictures_of_pillow_have_their_channels_last() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    found = images_of_dataset(Items([(Image.fromarray(one), 0) for one in pixels]))
    np.testing.assert_array_equal(found, pixels.transpose(0, 3, 1, 2))
    grey = images_of_dataset(Items([Image.fromarray(one[..., 0]) for one in pixels]))
    assert grey.shape == (4, 1, 8, 8)


def test_embeddings_do_not_depend_on_the_form(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    told = list(screen.table["compound"]), pd.Categorical(screen.table["plate"])
    blocks = []
    for data in (torch.from_numpy(images.astype(np.float32)), images.astype(np.float64),
                 Items([(one, 0) for one in images.astype(np.float32)])):  # fmt: skip
        model = Deconfounder("erm", quiet=True, **few)
        blocks.append(model.fit_transform(data, *told).obsm["X_representation"])
    np.testing.assert_array_equal(blocks[0], blocks[1])
    np.testing.assert_array_equal(blocks[0], blocks[2])


def nan(images: Pixels) -> npt.NDArray[np.float64]:
    found = images.astype(np.float64)
    found[7, 0, 3, 3] = np.nan
    return found


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (nan, "images: 1 with pixels that are not finite .* the first is row 7 (from 0)"),
        (lambda x: x * np.float64(1e40), "too large for float32"),
        (lambda x: x.astype(np.int64), "images of type int64; expected uint8, uint16, float32"),
        (lambda x: x > 5, "images of type bool"),
        (lambda x: x.transpose(0, 2, 3, 1), "channels seem to be last, move them with numpy"),
        (lambda x: x[..., :20], "(96, 2, 24, 20); expected (N, C, H, W) with H = W: crop or pad"),
        (lambda x: x[:0], "images of shape (0, 2, 24, 24)"),
        (lambda x: x[None], "images of shape (1, 96, 2, 24, 24)"),
        (lambda x: x.astype(str), "images of type <U"),
        (lambda x: x.tolist(), "list; expected images as an array, tensor or Dataset"),
        (lambda _: Items([]), "the data set has no items"),
        (lambda x: Items([x[0], x[0, :, :8]]), "item 1 of the data set: image of shape (2, 8, 24)"),
        (lambda _: Items([{"image": 1}]), "item 0 of the data set: dict; expected an image"),
        (lambda _: "no/such/screen", "no/such/screen: not a screen"),
    ],
)
def test_images_that_would_give_wrong_numbers_are_refused(
    make: Any, said: str, images: Pixels, screen: Screen, fitted: Deconfounder, few: dict[str, Any]
) -> None:
    told = screen.table["compound"], screen.table["plate"]
    for call in (
        lambda: Deconfounder("erm", quiet=True, **few).fit(make(images), *told),
        lambda: fitted.transform(make(images)),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert re.search(re.escape(said).replace(r"\.\*", ".*"), str(refused.value))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": ["c0"] * 95}, "label: 95 values for 96 rows; expected one for each"),
        ({"environment": np.zeros((96, 2))}, "environment: ndarray; expected a value for each of"),
        ({"label": ["c0"] * 96}, "training has 1 label; expected 2 or more, so has column 'label'"),
        ({"label": None}, "images: no label; give label= as an array or the name of a column"),
        ({"environment": None}, "images: no environment; give environment="),
        ({"environment": [None, *["p"] * 95]}, "column 'environment' is empty in rows 0 (from 0)"),
        ({"label": "compuond"}, "images: label='compuond' names a column, and there is no table"),
        ({"levels": 3}, "level: int; expected a value for each"),
        ({"controls": [True]}, "controls: 1 values for 96 rows"),
        ({"hold_out": "plate=P9"}, "fold plate=P9: no such group; plate has P1, P2"),
        ({"hold_out": ["tset"] * 96}, "hold_out has 'tset'; expected COLUMN=GROUP, True or False"),
        ({"hold_out": [True] * 96}, "it is the only group of its level"),
        ({"hold_out": [True, *[False] * 95], "levels": "plate"}, "a mask is a level of its own"),
        ({"channels": ("a",)}, "images of 2 channels, but channels names 1 (a)"),
        ({"table": pd.DataFrame({"a": [1]})}, "table: 1 rows for 96 images; expected one for each"),
        ({"layer": "raw"}, "layer belongs to AnnData, and arrays was given"),
    ],
)
def test_what_fit_is_told_wrongly_is_refused(
    change: dict[str, Any], said: str, images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    told = {"label": screen.table["compound"].to_numpy(), "environment": screen.table["plate"]}
    with pytest.raises(UserError) as refused:
        Deconfounder("erm", quiet=True, **few).fit(images, **(told | change))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value) and "--" not in str(refused.value)


def test_one_environment_is_refused_by_a_method_that_needs_two(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    told = images, screen.table["compound"], ["p"] * 96
    with pytest.raises(UserError, match="scbd: training has 1 environment; expected 2"):
        Deconfounder("scbd", quiet=True, **few).fit(*told)
    Deconfounder("erm", quiet=True, **few).fit(*told)
    found = Deconfounder(quiet=True, **few).fit(*told)
    assert "standardise_by" not in found.config_["data"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"method": "scdb"}, "unknown method 'scdb'; did you mean 'scbd'?"),
        ({"method": "harmony"}, "harmony is a post hoc method"),
        ({"alhpa": 2}, "unknown option 'alhpa' of scbd; did you mean 'alpha'?"),
        ({"stepps": 2}, "unknown option 'stepps' of scbd; did you mean 'steps'?"),
        ({"xyzzy": 2}, "unknown option 'xyzzy' of scbd; `deconfound fit scbd --help` lists"),
        ({"alpha": "much"}, "option 'options.alpha' = 'much': expected a number of at least 0"),
        ({"bank": 3}, "bank belongs to intervene=RUN; add it"),
        ({"fold": "iid", "hold_out": "iid"}, "fold and hold_out mean the same"),
        ({"method": None, "standardise_by": None}, "leaves nothing of the recommended recipe"),
        ({"method": None, "intervene": "run"}, "intervene trains a method that is named"),
        ({"batch_size": 4000}, "batch"),
        ({"scaling": "unit"}, "floating point from 0 to 1.5e+03; scaling='unit' expects 0 to 1"),
    ],
)
def test_options_that_do_not_exist_or_fit_are_refused(
    made: dict[str, Any], said: str, images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    options = {"method": "scbd"} | few | made
    with pytest.raises(UserError) as refused:
        Deconfounder(quiet=True, **options).fit(
            images.astype(np.float32), screen.table["compound"], screen.table["plate"]
        )
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x[:, :1], "images of 1 × 24 × 24; the model was fitted on 2 × 24 × 24 (C × H"),
        (lambda x: x[:, :, :16, :16], "images of 2 × 16 × 16; the model was fitted on 2 × 24 × 24"),
        (lambda x: x.astype(np.uint8), "pixels are uint8; the model was fitted on uint16"),
        (lambda x: x.reshape(96, -1), "profiles of 1152 features; the model was fitted on 2 (chan"),
        (lambda _: pd.DataFrame({"a": [1.0]}), "the DataFrame: there is no column 'channel_0'"),
    ],
)
def test_rows_unlike_those_of_training_are_refused(
    make: Any, said: str, images: Pixels, fitted: Deconfounder
) -> None:
    with pytest.raises(UserError) as refused:
        fitted.transform(make(images))
    assert said in str(refused.value)


def test_a_screen_of_another_size_is_refused(
    images: Pixels, screen: Screen, fitted: Deconfounder, make_screen: Any, tmp_path: Any
) -> None:
    named = make_screen(tmp_path / "s", images[:, :, :16, :16], screen.table)
    model = Deconfounder("erm", quiet=True).set_params(**fitted.get_params())
    model.fit(screen)
    with pytest.raises(UserError, match="tiny of 2 × 16 × 16; the model was fitted on 2 × 24 × 24"):
        model.transform(named)


def test_images_in_other_units_are_refused(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    """Floating point does not say its units: 0 to 1 in training and 0 to 1,500 later, or back."""
    told = screen.table["compound"], screen.table["plate"]
    share = images.astype(np.float32) / 65535
    model = Deconfounder("erm", quiet=True, **few).fit(share, *told)
    with pytest.raises(UserError, match=r"brightest pixel is 1.5e\+03; .* reach 0.0229, give"):
        model.transform(images.astype(np.float32))
    model.transform(share * 3)
    model.fit(images.astype(np.float32), *told)
    with pytest.raises(UserError, match="give them in the same units"):
        model.transform(share)
    model.transform(images / 4)


def test_an_environment_that_the_model_needs_is_asked_for(
    images: Pixels, screen: Screen, few: dict[str, Any]
) -> None:
    model = Deconfounder("erm", quiet=True, standardise_by="environment", **few)
    model.fit(images, screen.table["compound"], screen.table["plate"])
    with pytest.raises(UserError, match=r"no 'plate', by which the model .*; give environment="):
        model.transform(images)
    with pytest.raises(UserError, match="environment: 2 values for 96 rows"):
        model.transform(images, ["P1", "P2"])
    twice = pd.DataFrame({"a": ["P1"] * 96, "b": ["P2"] * 96})
    with pytest.raises(UserError, match="environment: 2 columns; the model was fitted on plate"):
        model.transform(images, twice)


@pytest.fixture
def profiles() -> pd.DataFrame:
    stream = np.random.default_rng(0)
    table = pd.DataFrame({"Metadata_Perturbation": [*"abc"] * 16, "Metadata_Plate": [*"PQ"] * 24})
    table["digit"], table["flag"] = np.arange(48) % 3, True
    return table.assign(one=stream.normal(size=48), two=stream.normal(size=48))


def test_features_are_the_numbers_that_are_no_metadata(profiles: pd.DataFrame) -> None:
    more = profiles.assign(Metadata_Dose=1.5, ImageNumber=3, Cells_Location_Center_X=2.0)
    assert rows_of(more).channels == ("digit", "one", "two")
    assert rows_of(more, named={"digit"}).channels == ("one", "two")
    indexed = rows_of(profiles.set_index(pd.Index([f"cell {n}" for n in range(48)])))
    assert list(indexed.table["Metadata_ObsName"][:2]) == ["cell 0", "cell 1"]
    assert list(indexed.table.index[:2]) == [0, 1]


@pytest.mark.parametrize("what", ["label", "environment"])
def test_a_label_or_environment_that_is_a_feature_unnoticed_is_refused(
    what: str, profiles: pd.DataFrame
) -> None:
    """As an array without a name it would stay among the numbers that are learnt from."""
    told = {what: profiles["digit"].to_numpy()}
    with pytest.raises(UserError, match=f"feature 'digit' is the {what} itself; name the column"):
        Deconfounder("erm", quiet=True).fit(profiles, **told)


@pytest.mark.parametrize("how", ["name", "series"])
def test_a_label_among_the_features_is_none(
    how: str, profiles: pd.DataFrame, few: dict[str, Any]
) -> None:
    label: Any = "digit" if how == "name" else profiles["digit"]
    options = few | {"batch_size": 8}
    model = Deconfounder("erm", quiet=True, **options).fit(profiles, label)
    assert model.predict(profiles).dtype == np.int64
    lacking = profiles.assign(two=profiles["two"].mask(profiles.index == 4))
    with pytest.raises(UserError, match=r"row 4 .*feature 'two': missing or infinite"):
        model.transform(lacking)
    with pytest.raises(UserError, match="the DataFrame: there is no column 'two'"):
        model.transform(profiles.drop(columns="two"))
    with pytest.raises(UserError, match=r"column 'two' holds .*; expected numbers"):
        model.transform(profiles.assign(two="x"))


def test_parts_of_anndata_that_are_not_there_are_named(profiles: pd.DataFrame) -> None:
    data = anndata.AnnData(np.ones((3, 2), np.float32))
    data.layers["raw"] = np.ones((3, 2), np.float32)
    for part, said in ((("layer", "rwa"), "no layer 'rwa'; it has raw"),
                       (("obsm", "X_pca"), "no obsm 'X_pca'; it has none")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            Deconfounder("erm", quiet=True).fit(data, **{part[0]: part[1]})
    with pytest.raises(UserError, match="column 'one' appears twice"):
        rows_of(pd.concat([profiles, profiles[["one"]]], axis=1))


@pytest.mark.parametrize("form", ["paper", "set"])
def test_a_form_of_a_method_sets_what_it_sets_on_the_command_line(
    form: str, screen: Screen
) -> None:
    found = resolve("ist", {"form": form, "steps": np.int64(7)}, {}, screen).config
    assert found.training.steps == 7
    expected = config_model("ist")(method="ist").options.in_form(form)
    assert found.options == expected


def test_messages_name_options_as_python_does() -> None:
    said = in_python("no rows; pass --val-fraction 0.2, or choose another --out: a-b `fit --x`")
    assert said == "no rows; pass val_fraction 0.2, or choose another path: a-b `fit --x`"
