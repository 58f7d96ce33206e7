"""A screen in memory is the one that writing and opening the same would give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound.data.screens import memory, writer
from deconfound.data.screens.memory import screen_in_memory, with_table
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError


@pytest.mark.parametrize("rows_a_shard", [7, 1000])
def test_it_has_the_identity_table_and_images_of_the_one_on_disk(
    rows_a_shard: int,
    screen: Screen,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = screen.read(np.arange(len(screen)))
    for module in (writer, memory):
        monkeypatch.setattr(module, "SHARD_BYTES", rows_a_shard * images[0].nbytes)
    written = make_screen(tmp_path / "s", images, screen.table)
    held = screen_in_memory(images, screen.table, screen.roles, screen.channels, "images", {})
    assert held.identity == written.identity
    assert len(held.index.shards) == len(written.index.shards)
    assert held.roles == written.roles
    pd.testing.assert_frame_equal(held.table, written.table)
    rows = np.array([95, 0, 8, 8])
    np.testing.assert_array_equal(held.read(rows), written.read(rows))
    assert not held.path.exists()


def test_rows_out_of_their_identifiers_order_have_it_as_on_disk(
    screen: Screen, make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    images: npt.NDArray[np.uint16] = screen.read(np.arange(len(screen)))
    table = screen.table.assign(Metadata_RowID=np.arange(len(screen))[::-1])
    written = make_screen(tmp_path / "s", images, table)
    held = screen_in_memory(images, table, screen.roles, screen.channels, "images", {})
    assert held.roles.identifier == written.roles.identifier == ("Metadata_RowID",)


def test_another_table_keeps_the_images(screen: Screen) -> None:
    roles = screen.roles.model_copy(update={"label": "mine"})
    other = with_table(screen, screen.table.assign(mine="a"), roles)
    assert other.roles.label == "mine"
    assert other.identity != screen.identity
    np.testing.assert_array_equal(other.read([3]), screen.read([3]))


def test_a_column_that_no_file_holds_is_named(screen: Screen) -> None:
    table = screen.table.assign(odd=[object() for _ in range(len(screen))])
    with pytest.raises(UserError, match=r"odd.*leave the column out"):
        with_table(screen, table, screen.roles)


def test_a_notebook_shows_hostile_names_as_text(screen: Screen) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    table = screen.table.assign(**{hostile: screen.table["compound"]})
    roles = screen.roles.model_copy(update={"label": hostile})
    shown = with_table(screen, table, roles)._repr_html_()
    assert "<script" not in shown and "\u202e" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in shown
    for part in ("96 of 24 × 24, uint16", "2: a, b", "3 of ", "2 of plate", "series &gt; plate"):
        assert part in shown
