"""Checkpoints on disk."""

import zipfile
from pathlib import Path

import pytest
import torch

from deconfound.errors import UserError
from deconfound.runs import checkpoint
from deconfound.runs.checkpoint import read_resume, read_weights, save_weights


def test_weights_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights(tmp_path / "model.safetensors", {"weight": torch.arange(6.0)})
    other, model = ((tmp_path / name).stat().st_mode for name in ("other", "model.safetensors"))
    assert model == other
    assert read_weights(tmp_path / "model.safetensors")["weight"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_state_that_unpacks_to_more_than_it_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "resume.pt"
    torch.save({"stage_number": 0, "done": 3, "weights": torch.zeros(300_000)}, file)
    assert read_resume(tmp_path)["done"] == 3
    with zipfile.ZipFile(file) as members:
        held = {name: members.read(name) for name in members.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in held.items():
            packed.writestr(name, data)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", None)
    monkeypatch.setattr(checkpoint.torch, "load", None)
    size = file.stat().st_size
    with pytest.raises(UserError) as refused:
        read_resume(tmp_path)
    unpacked = sum(map(len, held.values()))
    assert unpacked > 100 * size
    assert str(refused.value) == (
        f"{file}: unpacks to {unpacked:,} bytes and has {size:,}, which no run writes; remove "
        f"{tmp_path} and fit again"
    )


def test_a_state_that_no_memory_is_left_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"stage_number": 0, "done": 3}, tmp_path / "resume.pt")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 GB")

    monkeypatch.setattr(checkpoint.torch, "load", refuse)
    with pytest.raises(UserError, match="cannot be read, as memory ran out; lower --batch-size"):
        read_resume(tmp_path)
