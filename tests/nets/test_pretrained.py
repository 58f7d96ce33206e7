"""Encoders with weights from a file: values, channels, what is trained, and files of others."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError
from deconfound.nets.encoder import Encoder, build_encoder
from deconfound.nets.low_rank import merge_adapters, plain_state
from deconfound.nets.pretrained import (
    Pretrained,
    PretrainedEncoder,
    build_pretrained,
    load_pretrained,
)
from deconfound.nets.weights_file import load_file_into

SIDE = 16


@pytest.fixture
def own() -> Encoder:
    """An encoder of three channels that someone has trained."""
    torch.manual_seed(3)
    encoder = build_encoder("small", 3, SIDE).eval()
    for _ in range(3):
        encoder.train()(torch.rand(8, 3, SIDE, SIDE))
    return encoder.eval()


@pytest.fixture
def file(own: Encoder, tmp_path: Path) -> Path:
    save_file(own.network.state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def opened(file: Path, channels: int, name: str = "small", **how: Any) -> PretrainedEncoder:
    encoder = build_pretrained(name, channels, SIDE, "batch", Pretrained(file, **how))
    assert isinstance(encoder, PretrainedEncoder)
    load_pretrained(encoder)
    return encoder.eval()


@torch.no_grad()
def test_weights_of_either_file_give_what_they_gave(own: Encoder, file: Path) -> None:
    image = torch.rand(4, 3, SIDE, SIDE)
    torch.save({"state_dict": own.network.state_dict(), "epoch": 3}, file.with_name("own.pt"))
    expected = own(image)
    for name in (file, file.with_name("own.pt")):
        assert torch.equal(opened(name, 3)(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4, 5, 6])
def test_more_channels_are_taken_as_said(own: Encoder, file: Path, channels: int) -> None:
    """Against the network that was trained, fed with the images that each use stands for."""
    image = torch.rand(4, channels, SIDE, SIDE)
    mixed = torch.zeros(4, 3, SIDE, SIDE)
    for channel in range(channels):
        mixed[:, channel % 3] += image[:, channel] * 3 / channels
    # A filter that several channels share sees their sum, so the network is linear up to here.
    torch.testing.assert_close(opened(file, channels, channels_as="repeat")(image), own(mixed))
    grey = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(opened(file, channels, channels_as="sum")(image), own(grey))
    each = [own(image[:, [one]].expand(-1, 3, -1, -1)) for one in range(channels)]
    joined = opened(file, channels, channels_as="concatenate")
    assert joined.features == channels * own.features
    torch.testing.assert_close(joined(image), torch.cat(each, dim=1))
    average = opened(file, channels, channels_as="average")(image)
    torch.testing.assert_close(average, torch.stack(each).mean(dim=0))


@torch.no_grad()
def test_a_checkpoint_needs_no_file(file: Path) -> None:
    before = opened(file, 5, channels_as="sum")
    how = Pretrained(Path("gone.safetensors"), channels_as="sum")
    after = build_pretrained("small", 5, SIDE, "batch", how)
    after.load_state_dict(before.state_dict())
    image = torch.rand(2, 5, SIDE, SIDE)
    assert torch.equal(after.eval()(image), before(image))


def test_a_frozen_network_keeps_every_bit(file: Path) -> None:
    encoder = opened(file, 3, tune="frozen")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    head = nn.Linear(encoder.features, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.1)
    encoder.train()
    head(encoder(torch.rand(8, 3, SIDE, SIDE))).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.network.training


class Attending(nn.Module):
    """A tiny transformer: patches, one block of linear layers, mean."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, 6, 4, stride=4)
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patch(image).flatten(2).mT
        return (tokens + self.second(functional.gelu(self.first(tokens)))).mean(dim=1)


def test_adapters_learn_changes_of_their_rank_and_merge(tmp_path: Path) -> None:
    """W' = W + up · down, by hand; the same at first; the merged network is the same function."""
    torch.manual_seed(0)
    trained = Attending()
    save_file(trained.state_dict(), tmp_path / "vit.safetensors")
    how = Pretrained(tmp_path / "vit.safetensors", tune="lora", rank=2)
    encoder = PretrainedEncoder(Attending(), 6, "attending", 3, None, how)
    encoder.load()
    image = torch.rand(5, 3, SIDE, SIDE)
    assert torch.equal(encoder(image), trained(image))
    learns = [name for name, one in encoder.named_parameters() if one.requires_grad]
    assert len(learns) == 4
    assert all(name.endswith((".up", ".down")) for name in learns)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        encoder(image).square().sum().backward()
        optimizer.step()
    network: Any = encoder.network
    for name in ("first", "second"):
        adapter = getattr(network, name).parametrizations.weight[0]
        assert adapter.up.abs().sum() > 0
        changed = getattr(network, name).weight - getattr(trained, name).weight
        torch.testing.assert_close(changed, adapter.up @ adapter.down)
        assert torch.linalg.matrix_rank(changed.detach()) == 2
    kept = plain_state(network)
    assert all(torch.equal(kept[name], value) for name, value in trained.state_dict().items())
    before = encoder(image)
    merge_adapters(network)
    assert set(network.state_dict()) == set(trained.state_dict())
    torch.testing.assert_close(encoder(image), before)


@torch.no_grad()
def test_images_are_resized_as_told(own: Encoder, file: Path) -> None:
    image = torch.rand(2, 3, 40, 40)
    smaller = functional.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)
    encoder = opened(file, 3, input_size=SIDE)
    torch.testing.assert_close(encoder(image), own(smaller))


def test_one_of_several_networks_is_named(own: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "both.pt"
    state = own.network.state_dict()
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    both = {"student": {f"backbone.{k}": v for k, v in other.items()}}
    both["teacher"] = {f"backbone.{k}": v for k, v in state.items()} | {"head.w": torch.ones(1)}
    torch.save(both, file)
    with pytest.raises(UserError, match=r"several networks \('student.backbone.', 'teacher.back"):
        opened(file, 3)
    image = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(opened(file, 3, prefix="teacher.backbone")(image), own(image))
    with pytest.raises(UserError, match=r"no tensor begins with --weights-prefix 'tutor\.'"):
        opened(file, 3, prefix="tutor")


def test_a_classifier_in_the_file_is_left_out(tmp_path: Path) -> None:
    network = build_encoder("resnet18", 3, 32).network
    file = tmp_path / "resnet.safetensors"
    save_file({**network.state_dict(), "fc.weight": torch.zeros(9, 512)}, file)
    again = build_encoder("resnet18", 3, 32).network
    assert load_file_into(again, "resnet18", file).ignored == ("fc.weight",)
    assert torch.equal(again.conv1.weight, network.conv1.weight)  # type: ignore[union-attr]


def test_weights_of_others_are_refused_in_one_line(own: Encoder, file: Path) -> None:
    def refused(state: dict[str, Tensor], **how: Any) -> str:
        bad = file.with_name("bad.safetensors")
        save_file(state, bad)
        with pytest.raises(UserError) as error:
            opened(bad, how.pop("channels", 3), **how)
        assert "\n" not in str(error.value)
        return str(error.value)

    state = own.network.state_dict()
    said = refused(state, channels=5)
    assert "takes 3 channels, and the screen has 5" in said
    assert "--channels-as repeat, sum, concatenate or average" in said
    resnet = build_encoder("resnet18", 3, 32).network.state_dict()
    said = refused(resnet)
    assert "is not of the network small: " in said
    assert "tensors are missing, such as '0.weight', and it has 'bn1.bias'" in said
    fewer = {name: value for name, value in state.items() if name != "4.running_mean"}
    assert "1 of" in (said := refused(fewer))
    assert "'4.running_mean'" in said
    wide = state | {"3.weight": torch.zeros(64, 16, 3, 3)}
    assert "'3.weight' is (64, 16, 3, 3), expected (64, 32, 3, 3)" in refused(wide)
    assert "1 tensors too many, such as '0.bias'" in refused(state | {"0.bias": torch.ones(32)})


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    network = build_encoder("small", 3, SIDE).network

    def refused(file: Path) -> str:
        with pytest.raises(UserError) as error:
            load_file_into(network, "small", file)
        return str(error.value)

    assert "no such file of weights" in refused(tmp_path / "none.pt")
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes(b"\x09" * 40)
        assert "cannot be read as weights" in refused(tmp_path / name)
    torch.save({"model": network}, tmp_path / "whole.pt")
    assert "never unpickled" in refused(tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "holds no tensors by name" in refused(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("name", "size", "how", "message"),
    [
        ("small", SIDE, {"tune": "frozen"}, "--tune frozen is for pretrained weights; add"),
        ("small", SIDE, {"channels_as": "sum"}, "--channels-as sum is for pretrained weights"),
        ("small", SIDE, {"weights": Path("w"), "tune": "lora"}, "linear layers, and small has non"),
        ("mlp", None, {"weights": Path("w")}, "takes images, and the screen holds profiles"),
        ("torch:x.pt2", SIDE, {"weights": Path("w")}, "is an exported program, whose weights"),
        ("torch:x.pt2", SIDE, {"tune": "frozen", "channels_as": "sum"}, "changes a first layer"),
        ("torch:none.pt2", SIDE, {"tune": "frozen"}, "no such exported program"),
    ],
)
def test_options_that_do_not_fit(name: str, size: int, how: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_pretrained(name, 3, size, "batch", Pretrained(**how))


def export(file: Path, network: nn.Module, channels: int = 3, dynamic: bool = True) -> Path:
    example = torch.zeros(2, channels, SIDE, SIDE)
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},) if dynamic else None
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), file)
    return file


@torch.no_grad()
def test_an_exported_program_is_an_encoder(own: Encoder, tmp_path: Path) -> None:
    name = f"torch:{export(tmp_path / 'own.pt2', own)}"
    encoder = build_pretrained(name, 3, SIDE, "batch", None)
    image = torch.rand(5, 3, SIDE, SIDE)
    torch.testing.assert_close(encoder.train()(image), own(image))
    assert encoder.features == 256
    assert [*encoder.parameters()] == []
    each = build_pretrained(
        name, 5, SIDE, "batch", Pretrained(tune="frozen", channels_as="average")
    )
    stains = torch.rand(2, 5, SIDE, SIDE)
    expected = [own(stains[:, [one]].expand(-1, 3, -1, -1)) for one in range(5)]
    torch.testing.assert_close(each(stains), torch.stack(expected).mean(dim=0))
    with pytest.raises(UserError, match="cannot take batches of 5 × 16 × 16 images"):
        build_pretrained(name, 5, SIDE, "batch", None)
    state = encoder.state_dict()
    export(tmp_path / "own.pt2", Attending())
    with pytest.raises(UserError, match="is not the exported program that the run was"):
        build_pretrained(name, 3, SIDE, "batch", None).load_state_dict(state)


def test_programs_that_cannot_serve_are_refused(own: Encoder, tmp_path: Path) -> None:
    def refused(file: Path) -> str:
        with pytest.raises(UserError) as error:
            build_pretrained(f"torch:{file}", 3, SIDE, "batch", None)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "bad.pt2").write_bytes(b"no archive")
    assert "is not an exported program" in refused(tmp_path / "bad.pt2")
    fixed = export(tmp_path / "fixed.pt2", own, dynamic=False)
    assert "torch.export.Dim for the batch" in refused(fixed)
    maps = nn.Conv2d(3, 2, 3)
    assert "pool what it returns" in refused(export(tmp_path / "maps.pt2", maps))
    whole = export(tmp_path / "whole.pt2", own)
    for name in ("m/data/constants/opaque_obj_0", "m/data/aotinductor/model/a.so"):
        harmful = tmp_path / "harmful.pt2"
        harmful.write_bytes(whole.read_bytes())
        with zipfile.ZipFile(harmful, "a") as archive:
            archive.writestr(name, b"x")
        assert "never loaded" in refused(harmful)


def test_timm_weights_give_what_timm_gives(timm: Any, tmp_path: Path) -> None:
    """Their pixels' mean and sd, their size, and three channels in one file."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=7).eval()
    file = tmp_path / "vit.safetensors"
    save_file(network.state_dict(), file)
    how = Pretrained(file, unit_pixels=True, tune="frozen")
    encoder = build_pretrained("timm:test_vit", 3, 64, "batch", how)
    (taken,) = load_pretrained(encoder)
    assert taken["ignored"] == ("head.bias", "head.weight")
    image = torch.rand(2, 3, 64, 64)
    about = network.pretrained_cfg
    side = about["input_size"][-1]
    seen = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
    mean, sd = (torch.tensor(about[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = network.forward_head(
            network.forward_features((seen - mean) / sd), pre_logits=True
        )
        torch.testing.assert_close(encoder(image), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
@pytest.mark.parametrize("use", ["repeat", "sum", "concatenate", "average"])
def test_timm_networks_take_five_stains(timm: Any, tmp_path: Path, name: str, use: Any) -> None:
    file = tmp_path / "own.pth"
    torch.save(timm.create_model(name, num_classes=3).state_dict(), file)
    how = Pretrained(file, channels_as=use, unit_pixels=True, input_size=64)
    encoder = build_pretrained(f"timm:{name}", 5, 64, "batch", how)
    assert load_pretrained(encoder)[0]["channels"] == 3
    assert encoder(torch.rand(2, 5, 64, 64)).shape == (2, encoder.features)


def test_weights_of_dinov2_take_another_image_size(timm: Any, tmp_path: Path) -> None:
    """A file of Meta's layout, with a mask token and 37 × 37 positions, for 28 × 28 pixels."""
    name = "vit_small_patch14_dinov2"
    network = timm.create_model(name, num_classes=0, img_size=28)
    state = {**network.state_dict(), "mask_token": torch.zeros(1, 384)}
    state["pos_embed"] = torch.rand(1, 1 + 37 * 37, 384)
    torch.save(state, tmp_path / "dinov2.pth")
    how = Pretrained(tmp_path / "dinov2.pth", channels_as="repeat", input_size=28, tune="lora")
    encoder = build_pretrained(f"timm:{name}", 4, 64, "batch", how)
    assert load_pretrained(encoder)[0]["tensors"] == len(network.state_dict())
    assert encoder(torch.rand(2, 4, 64, 64)).shape == (2, 384)
    with pytest.raises(UserError, match=r"is not of the network timm:test_vit"):
        opened(tmp_path / "dinov2.pth", 4, "timm:test_vit", channels_as="repeat")
