"""export-model: what is opened equals embed; the card; what cannot stand alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deconfound import ContentEncoder, cli
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.evaluation.scores import NamedScore, score_row, write_scores
from deconfound.metrics.score import Score
from deconfound.nets.encoder import build_encoder
from deconfound.reports import model_directory
from deconfound.reports.model_directory import export_model
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

Runs = Callable[[str], Path]
MakeConfig = Callable[..., RunConfig]


def test_program_and_directory_give_what_embed_gives(
    screen: Screen, finished_runs: Runs, tmp_path: Path
) -> None:
    run, block = finished_runs("scbd"), "content"
    made = embed(run, screen.path, tmp_path / "e.h5ad", quiet=True)
    expected = made.representations[block]
    opened = export_model(run, tmp_path / "model")
    assert (opened.config["embedding"], opened.config["features"]) == (block, expected.shape[1])
    pixels = torch.from_numpy(screen.read(np.arange(len(screen))).astype(np.float32))
    program = torch.export.load(str(tmp_path / "model" / "encoder.pt2")).module()
    with torch.inference_mode():
        for found in (opened(pixels), program(pixels)):
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        logits = opened.predict(pixels[:50])
        one = program(pixels[:1])  # any number of images
    assert logits is not None
    named = np.array(opened.config["labels"])[logits.argmax(dim=1)]
    assert list(named) == list(made.table["deconfound_predicted"][:50])
    np.testing.assert_allclose(one.numpy(), expected[:1], atol=1e-5)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", "encoder.pt2", "model.safetensors",
    ]  # fmt: skip


def test_an_adapted_encoder_is_merged_in_the_program(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, timm: Any
) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    options = {
        "encoder": "timm:test_vit", "weights": file, "channels_as": "average", "input_size": 32,
        "tune": "lora",
    }  # fmt: skip
    config = make_config("erm", options=options, data={"scaling": "unit"})
    run = fit(config, screen.path, tmp_path / "run", quiet=True)
    file.unlink()
    export_model(run.path, tmp_path / "model")
    program = torch.export.load(str(tmp_path / "model" / "encoder.pt2"))
    assert not any("parametrizations" in name for name in program.state_dict)
    assert "vit.safetensors (SHA-256 " in (tmp_path / "model" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_weights_of_others_export_too(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "own.safetensors"
    save_file(build_encoder("small", 3, 24).network.state_dict(), file)
    options = {"weights": file, "channels_as": "concatenate", "tune": "frozen"}
    run = fit(make_config("erm", options=options), screen.path, tmp_path / "run", quiet=True)
    made = export_model(run.path, tmp_path / "model")
    assert made.config["run"]["options"]["weights"] == "own.safetensors"


@pytest.mark.parametrize(
    "data",
    [
        {"standardise_by": "plate", "standardise": "quantiles"},
        {"transform": "percentile"},
    ],
)
def test_runs_that_scale_by_group_say_so(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, data: dict[str, Any]
) -> None:
    """The directory takes the group; the program takes what the scaling gives."""
    run = fit(make_config("erm", data=data), screen.path, tmp_path / "run", quiet=True)
    made = embed(run.path, screen.path, tmp_path / "e.h5ad", quiet=True)
    opened = export_model(run.path, tmp_path / "model")
    rows = np.flatnonzero(made.part == "train")[:20]
    pixels = torch.from_numpy(screen.read(rows).astype(np.float32))
    group = None
    if names := opened.config["groups"]:
        codes = screen.coded(opened.config["grouped_by"], names).codes[rows]
        group = torch.from_numpy(codes)
        with pytest.raises(UserError, match="this model scales pixels by group; give group"):
            opened(pixels)
    with torch.inference_mode():
        found = opened(pixels, group).numpy()
        scaled = opened.intensity(pixels, group)
        program = torch.export.load(str(tmp_path / "model" / "encoder.pt2")).module()
        as_scaled = program(scaled).numpy()
    expected = made.representations["representation"][rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(as_scaled, expected, atol=1e-5)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`encoder.pt2` takes pixels after that scaling" in card


def test_the_card_tells_data_fold_scores_and_limits(
    finished_runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_runs("scbd")
    scores, out = tmp_path / "scores.parquet", tmp_path / "model"
    about = {"method": "scbd", "seed": 0, "config": {}}
    rows = [
        score_row(about, fold, NamedScore("content", "macro_f1", "test", Score(value, 9)))
        for fold, value in (("plate=S1/P1", 0.625), ("iid", 0.125))
    ]
    write_scores(scores, lambda: rows)
    cli.main(["export-model", str(run), "--out", str(out), "--scores", str(scores)])
    assert f"content of 16 features in {out}" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    front = card.split("---\n")[1]
    assert 'library_name: "deconfound"' in front
    for said in (
        "# scbd: scbd on tiny",
        "- 2 channels of 24 × 24 px, uint16, in this order: a, b",
        "- label: compound, 3 in training: c0, c1, c2",
        "Fold `plate=S1/P1`, rows by part: ",
        "| representation | metric | part | value | n | note |",
        "| content | macro_f1 | test | 0.625 | 9 |",
        "It was compared with `deconfound embed` on 64 rows",
        "not for diagnosis",
    ):
        assert said in card, said
    assert "0.125" not in card
    with pytest.raises(UserError, match="has no score of erm, fold plate=S1/P1, seed 0"):
        export_model(finished_runs("erm"), tmp_path / "m", scores=(scores,))
    assert not (tmp_path / "m").exists()


def test_what_differs_from_embed_is_not_written(
    finished_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = model_directory._embedded
    monkeypatch.setattr(model_directory, "_embedded", lambda *given: right(*given) + 0.01)
    with pytest.raises(UserError, match=r"encoder\.pt2: differs from `embed` by up to 0\.01"):
        export_model(finished_runs("erm"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(
    screen: Screen, finished_runs: Runs, make_config: MakeConfig, tmp_path: Path,
    make_screen: Callable[..., Screen],
) -> None:  # fmt: skip
    with pytest.raises(UserError, match="armbn-da takes the batch statistics of each environment"):
        export_model(finished_runs("armbn"), tmp_path / "model")
    other = make_screen(tmp_path / "other", screen.read(np.arange(96)) + 1, screen.table)
    with pytest.raises(UserError, match=r"is not the screen that .* was trained on; give that one"):
        export_model(finished_runs("erm"), tmp_path / "model", screen=other.path)
    run = fit(make_config("erm"), other.path, tmp_path / "run", quiet=True)
    moved = other.path.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is not there; say where it is with --screen"):
        export_model(run.path, tmp_path / "model")
    export_model(run.path, tmp_path / "model", screen=moved)
    with pytest.raises(UserError, match="not a model directory"):
        ContentEncoder.from_pretrained(moved)
    config = tmp_path / "model" / "config.json"
    found = json.loads(config.read_text())
    config.write_text(json.dumps(found | {"format_version": 9}))
    with pytest.raises(UserError, match="format version 9; this release reads version 1"):
        ContentEncoder.from_pretrained(tmp_path / "model")
    config.write_text(json.dumps(found))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        ContentEncoder.from_pretrained(tmp_path / "model")


def test_a_hub_s_mixin_opens_the_directory(finished_runs: Runs, tmp_path: Path) -> None:
    hub = pytest.importorskip(
        "huggingface_hub", reason="huggingface_hub is not installed: pip install huggingface_hub"
    )

    class Model(hub.PyTorchModelHubMixin, torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, **config: Any) -> None:
            super().__init__()
            made = ContentEncoder(config)
            self.method, self.intensity = made.method, made.intensity

    export_model(finished_runs("erm"), tmp_path / "model")
    opened = Model.from_pretrained(str(tmp_path / "model"), strict=True)
    kept = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in opened.state_dict().items())
