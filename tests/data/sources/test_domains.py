"""PACS and VLCS: pictures in DOMAIN/CLASS/."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconfound.data.sources import pacs, vlcs
from deconfound.errors import UserError

REAL = Path(__file__).parents[4] / "shared" / "data"


def write(root: Path, domain: str, name: str, shape: tuple[int, ...] = (12, 10, 3)) -> None:
    """Two pictures of a class."""
    folder = root / domain / name
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"pic_{number}.jpg")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """PACS with two pictures a class."""
    for domain in pacs.DOMAINS:
        for name in pacs.CLASSES:
            write(tmp_path / "pacs", domain, name)
    return tmp_path / "pacs"


def test_pacs_has_a_label_and_a_domain_of_every_picture(tree: Path, tmp_path: Path) -> None:
    screen = pacs.make(tree, tmp_path / "screen", pacs.Config(size=8))
    assert screen.image_shape == (3, 8, 8)
    assert screen.channels == ("R", "G", "B")
    table = screen.table
    assert len(table) == 4 * 7 * 2
    assert (table.groupby(["Metadata_Environment", "Metadata_Label"]).size() == 2).all()
    place = table["Metadata_Path"].str.split("/")
    assert (place.str[0] == table["Metadata_Environment"]).all()
    assert (place.str[1] == table["Metadata_Label"]).all()
    assert screen.roles.label == "Metadata_Label"
    assert screen.roles.levels == ("Metadata_Environment",)
    assert screen.provenance["options"] == {"size": 8}


def test_pacs_names_a_folder_that_is_missing_or_foreign(tree: Path, tmp_path: Path) -> None:
    write(tree, "sketch", "cat")
    with pytest.raises(UserError, match="foreign folder 'cat'"):
        pacs.make(tree, tmp_path / "screen")
    for domain in pacs.DOMAINS:
        (tree / domain / "person").rename(tree.parent / f"person-{domain}")
    with pytest.raises(UserError, match="missing folder 'person'"):
        pacs.make(tree, tmp_path / "screen")
    assert not (tmp_path / "screen").exists()


def test_vlcs_knows_its_folders_by_all_their_names(tmp_path: Path) -> None:
    root = tmp_path / "vlcs"
    write(root, "caltech", "auto", (9, 12))
    write(root, "sun", "flying", (20, 10, 3))
    write(root, "LabelMe", "person")
    screen = vlcs.make(root, tmp_path / "screen", vlcs.Config(size=8))
    pairs = screen.table["Metadata_Environment"] + " " + screen.table["Metadata_Label"]
    assert set(pairs) == {"Caltech101 car", "SUN09 bird", "LabelMe person"}
    assert screen.image_shape == (3, 8, 8)
    grey = screen.read(np.flatnonzero(screen.table["Metadata_Label"] == "car"))
    assert (grey[:, 0] == grey[:, 1]).all()
    write(root, "sun", "boat")
    with pytest.raises(UserError, match="folder 'boat'"):
        vlcs.make(root, tmp_path / "again")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no public data in {REAL}")
def test_the_real_vlcs_folders(tmp_path: Path) -> None:
    screen = vlcs.make(REAL / "vlcs_mini", tmp_path / "screen")
    assert len(screen) == 187
    assert set(screen.table["Metadata_Environment"]) == {"Caltech101", "LabelMe", "SUN09"}
    assert set(screen.table["Metadata_Label"]) == set(vlcs.CLASSES)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no public data in {REAL}")
def test_the_real_pacs(tmp_path: Path) -> None:
    screen = pacs.make(REAL / "pacs_64px", tmp_path / "screen")
    counts = screen.table["Metadata_Environment"].value_counts().to_dict()
    assert counts == {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}
