import contextlib
import os
from pathlib import Path

import pandas as pd
import pytest

from deconfound.data.ingest.paths import class_folders, image_files, labelled_by_folder
from deconfound.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """images/a.png, images/sub/b.png and, outside, secret.png."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("images/a.png", "images/sub/b.png", "secret.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "images"


def test_paths_inside(root: Path) -> None:
    files = image_files(["sub/b.png", str(root / "a.png")], root, "t.csv")
    assert files == [root / "sub" / "b.png", root / "a.png"]
    assert image_files(["sub/../a.png"], root, "t.csv") == [root / "a.png"]


def test_a_root_that_is_itself_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert image_files(["a.png"], tmp_path / "link", "t.csv") == [root / "a.png"]


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "ABSOLUTE", "sub/../.."])
def test_paths_that_leave_the_folder(root: Path, path: str) -> None:
    path = path.replace("ABSOLUTE", str(root.parent / "secret.png"))
    with pytest.raises(UserError, match=r"t.csv: row 1 \(from 0\): .* leads outside"):
        image_files(["a.png", path], root, "t.csv")


@pytest.mark.parametrize("kind", ["file", "folder", "folder of folder"])
def test_links_that_leave_the_folder(root: Path, kind: str) -> None:
    match kind:
        case "file":
            (root / "c.png").symlink_to(root.parent / "secret.png")
            path = "c.png"
        case "folder":
            (root / "out").symlink_to(root.parent)
            path = "out/secret.png"
        case _:
            (root / "out").symlink_to(root.parent.parent)
            path = f"out/{root.parent.name}/secret.png"
    with pytest.raises(UserError, match=r"row 0 .* leads outside .* --allow-outside"):
        image_files([path], root, "t.csv")
    found = image_files([path], root, "t.csv", allow_outside=True)
    assert [file.resolve() for file in found] == [root.parent / "secret.png"]


def test_links_that_stay_inside(root: Path) -> None:
    (root / "c.png").symlink_to(root / "a.png")
    assert image_files(["c.png"], root, "t.csv") == [root / "a.png"]
    with pytest.raises(UserError, match=r"rows 0 and 1 .* both name"):
        image_files(["a.png", "c.png"], root, "t.csv")


def test_missing_files_are_counted(root: Path) -> None:
    (root / "loop").symlink_to(root / "loop")
    paths = ["a.png", "no.png", "sub", "sub/b.png", "none/x.png", "loop", "a" * 300]
    with pytest.raises(UserError, match=r"row 1 .*no.png; 5 of 7 files are missing"):
        image_files(paths, root, "t.csv")


@pytest.mark.parametrize("path", [None, float("nan"), "", "  ", "a\0b", 3])
def test_paths_that_are_none(root: Path, path: object) -> None:
    with pytest.raises(UserError, match=r"t.csv: row 1 \(from 0\): path"):
        image_files(["a.png", path], root, "t.csv")


def test_the_same_file_twice(root: Path) -> None:
    with pytest.raises(UserError, match=r"rows 0 and 2 .* both name ./a.png"):
        image_files(["a.png", "sub/b.png", "./a.png"], root, "t.csv")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder .* --images-root"):
        image_files(["a.png"], tmp_path / "none", "t.csv")
    with pytest.raises(UserError, match=r"no such folder .* --images-root"):
        class_folders(tmp_path / "none")


def test_class_folders_in_order(tmp_path: Path) -> None:
    for path in ("photo/dog/2.png", "photo/dog/1.JPG", "art/cat/3.tif", "art/cat/.hidden.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    (tmp_path / "README.md").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"x")
    table = class_folders(tmp_path)
    assert table.values.tolist() == [
        ["art", "cat", "art/cat/3.tif"],
        ["photo", "dog", "photo/dog/1.JPG"],
        ["photo", "dog", "photo/dog/2.png"],
    ]
    assert table.columns.tolist() == ["Metadata_Environment", "Metadata_Label", "Metadata_Path"]


@pytest.mark.parametrize("path", ["a.png", "photo/a.png"])
def test_an_image_at_another_depth_is_not_dropped_in_silence(tmp_path: Path, path: str) -> None:
    (tmp_path / "photo" / "dog").mkdir(parents=True)
    (tmp_path / path).write_bytes(b"x")
    with pytest.raises(UserError, match=r"a.png: expected ENVIRONMENT/LABEL/file"):
        class_folders(tmp_path)


def test_folders_too_deep_and_empty(tmp_path: Path) -> None:
    (tmp_path / "photo" / "dog").mkdir(parents=True)
    with pytest.raises(UserError, match="no images; expected ENVIRONMENT/LABEL/file"):
        class_folders(tmp_path)
    (tmp_path / "photo" / "dog" / "puppy").mkdir()
    with pytest.raises(UserError, match="puppy: a folder inside a class folder"):
        class_folders(tmp_path)


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "photo" / "dog").mkdir(parents=True)
    name = os.fsencode(tmp_path / "photo" / "dog") + b"/\xff.png"
    with open(name, "wb") as stream:  # noqa: PTH123 - a path of bytes
        stream.write(b"x")
    with pytest.raises(UserError, match="not printable UTF-8"):
        class_folders(tmp_path)


def label_folders(root: Path) -> Path:
    """cat/1.png, cat/2.png, dog/1.png and dog/3.png below `root`."""
    for path in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/3.png", "dog/notes.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_labels_are_the_folders(tmp_path: Path) -> None:
    root = label_folders(tmp_path / "images")
    table = pd.DataFrame({"file": ["3.png", "dog/1.png", "2.png"], "hospital": ["a", "b", "c"]})
    found, unnamed = labelled_by_folder(table, "file", root, "t.csv")
    assert found["Metadata_Label"].tolist() == ["dog", "dog", "cat"]
    assert found["Metadata_Path"].tolist() == ["dog/3.png", "dog/1.png", "cat/2.png"]
    assert found[["file", "hospital"]].equals(table)
    assert unnamed == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("1.png", r"'1.png' is in the folders cat and dog; write LABEL/file"),
        ("cat/3.png", r"'cat/3.png' is not in LABEL/file below"),
        ("a/cat/1.png", "is not in LABEL/file"),
        ("../cat/1.png", "is not in LABEL/file"),
        (None, "None is not in LABEL/file"),
    ],
)
def test_rows_that_no_class_folder_fits(tmp_path: Path, path: str | None, message: str) -> None:
    root = label_folders(tmp_path / "images")
    table = pd.DataFrame({"file": ["2.png", path]})
    with pytest.raises(UserError, match=rf"t.csv: row 1 \(from 0\): column 'file': .*{message}"):
        labelled_by_folder(table, "file", root, "t.csv")


def test_a_label_given_twice(tmp_path: Path) -> None:
    root = label_folders(tmp_path / "images")
    with pytest.raises(UserError, match="'Metadata_Label' and --class-folders both"):
        labelled_by_folder(pd.DataFrame({"Metadata_Label": ["x"]}), "x", root, "t.csv")
    with pytest.raises(UserError, match=r"no such folder .* --images-root"):
        labelled_by_folder(pd.DataFrame({"x": ["x"]}), "x", tmp_path / "none", "t.csv")


@pytest.mark.parametrize("where", ["", "h1"])
def test_class_folders_that_lead_outside_need_leave(where: str, tmp_path: Path) -> None:
    for folder in ("images/h1/a", "images/h2/a", "else/a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").touch()
    root = tmp_path / "images"
    (root / where / "link").symlink_to(tmp_path / "else" / ("a" if where else ""))
    with pytest.raises(UserError, match=r"link: a link that leads outside .* --allow-outside"):
        class_folders(root)
    found = class_folders(root, allow_outside=True)
    assert len(found) == 3
    assert any("link" in path for path in found["Metadata_Path"])


def test_class_folders_may_be_links_within(tmp_path: Path) -> None:
    (tmp_path / "images/h1/a").mkdir(parents=True)
    (tmp_path / "images/h1/a/0.png").touch()
    (tmp_path / "images/.hidden/b").mkdir(parents=True)
    (tmp_path / "images/.hidden/b/1.png").touch()
    (tmp_path / "images/h1/b").symlink_to(tmp_path / "images/.hidden/b")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert class_folders(tmp_path / "link")["Metadata_Path"].tolist() == [
        "h1/a/0.png",
        "h1/b/1.png",
    ]


@pytest.mark.parametrize("place", ["loop", "h1/loop", "h1/a/loop"])
@pytest.mark.parametrize("to", [".", "..", "../..", "loop"])
@pytest.mark.parametrize("allow_outside", [False, True])
def test_links_in_a_circle_end(place: str, to: str, allow_outside: bool, tmp_path: Path) -> None:
    (tmp_path / "images/h1/a").mkdir(parents=True)
    (tmp_path / "images/h1/a/0.png").touch()
    link = tmp_path / "images" / place
    link.symlink_to(to)
    with contextlib.suppress(UserError):
        assert len(class_folders(tmp_path / "images", allow_outside=allow_outside)) == 1


@pytest.mark.parametrize("place", [".zattrs", "0", "0/0.0", "0/.zarray", "in/to/out"])
def test_no_file_of_a_store_may_lie_outside(tmp_path: Path, place: str) -> None:
    store, secret = tmp_path / "images" / "f.zarr", tmp_path / "secret"
    (store / "0").mkdir(parents=True)
    (secret / "deep").mkdir(parents=True)
    for file in (store / ".zattrs", store / "0" / "0.0", secret / "deep" / "x", secret / "file"):
        file.write_text("{}")
    root = tmp_path / "images"
    assert image_files(["f.zarr"], root, "t.csv") == [store]
    link = store / place
    if place == "0":
        (store / "0" / "0.0").unlink()
        link.rmdir()
        link.symlink_to(secret)
    elif place == "in/to/out":  # by a folder of the images that itself links outside
        (root / "other").mkdir()
        (root / "other" / "to").symlink_to(secret / "deep")
        (store / "in").symlink_to(root / "other")
    else:
        link.unlink(missing_ok=True)
        link.symlink_to(secret / "file")
    with pytest.raises(UserError, match=r"row 0 .* its file .* leads outside .* --allow-outside"):
        image_files(["f.zarr"], root, "t.csv")
    assert image_files(["f.zarr"], root, "t.csv", allow_outside=True) == [store]


def test_links_of_a_store_within_the_images_stay(tmp_path: Path) -> None:
    store = tmp_path / "images" / "f.zarr"
    store.mkdir(parents=True)
    (store / ".zattrs").write_text("{}")
    (tmp_path / "images" / "pixels").mkdir()
    (store / "0").symlink_to(tmp_path / "images" / "pixels")
    (store / "again").symlink_to(store)
    assert image_files(["f.zarr"], tmp_path / "images", "t.csv") == [store]
