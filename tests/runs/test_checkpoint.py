"""Checkpoints on disk."""

from pathlib import Path

import torch

from deconfound.runs.checkpoint import read_weights, save_weights


def test_weights_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights(tmp_path / "model.safetensors", {"weight": torch.arange(6.0)})
    other, model = ((tmp_path / name).stat().st_mode for name in ("other", "model.safetensors"))
    assert model == other
    assert read_weights(tmp_path / "model.safetensors")["weight"].tolist() == [0, 1, 2, 3, 4, 5]
