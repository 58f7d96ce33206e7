import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from deconfound.errors import UserError
from deconfound.nets.encoder import Norm, build_encoder


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "features", "parameters"),
    [("resnet18", 512, 11_176_512), ("densenet121", 1024, 6_953_856)],
)
def test_paper_encoders_have_torchvisions_size(name: str, features: int, parameters: int) -> None:
    encoder = build_encoder(name, channels=3, image_size=32)
    assert encoder.features == features
    assert parameter_count(encoder) == parameters
    stem = next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
    assert (stem.kernel_size, stem.stride, stem.bias) == ((7, 7), (2, 2), None)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in encoder.modules()) == 1


@pytest.mark.parametrize("name", ["small", "resnet18", "densenet121"])
@pytest.mark.parametrize(("channels", "size"), [(1, 37), (6, 48)])
def test_odd_sizes_and_channels(name: str, channels: int, size: int) -> None:
    encoder = build_encoder(name, channels, size)
    image = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    representation = encoder(image)
    assert representation.shape == (2, encoder.features)
    assert representation.isfinite().all()


def test_small_takes_24_pixels() -> None:
    assert build_encoder("small", 4, 24)(torch.zeros(2, 4, 24, 24)).shape[0] == 2


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_every_norm_trains_every_parameter(name: str, norm: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, 3, 64, norm)  # type: ignore[arg-type]
    representation = encoder(torch.randn(4, 3, 64, 64))
    (representation * torch.randn(representation.shape)).sum().backward()
    for path, parameter in encoder.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.abs().sum() > 0, path


@pytest.mark.parametrize(
    ("name", "norm"),
    [("small", "none"), ("resnet18", "instance"), ("resnet18", "none"), ("densenet121", "group")],
)
def test_norm_reaches_every_layer_and_keeps_the_parameter_count(name: str, norm: str) -> None:
    encoder = build_encoder(name, 3, 64, norm)  # type: ignore[arg-type]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules())
    assert parameter_count(encoder) == parameter_count(build_encoder(name, 3, 64))


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_without_batch_norm_an_image_does_not_see_its_batch(norm: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 3, 64, norm)  # type: ignore[arg-type]
    image = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(encoder(image)[:2], encoder(image[:2]))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_small_starts_with_spread_representations(norm: str) -> None:
    torch.manual_seed(0)
    representation = build_encoder("small", 3, 32, norm)(torch.rand(64, 3, 32, 32))  # type: ignore[arg-type]
    direction = torch.nn.functional.normalize(representation)
    assert direction.mean(dim=0).norm() < 0.3


def test_building_leaves_batch_statistics_untouched() -> None:
    encoder = build_encoder("small", 3, 32)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_batches_tracked is not None
            assert layer.num_batches_tracked.item() == 0
            assert torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))  # type: ignore[arg-type]


def test_same_seed_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(build_encoder("small", 3, 32).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("name", "size", "norm"), [("resnet18", 32, "instance"), ("densenet121", 24, "batch")]
)
def test_too_small_images_are_named(name: str, size: int, norm: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*{size} x {size}"):
        build_encoder(name, 3, size, norm)  # type: ignore[arg-type]


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        build_encoder("resnet81", 3, 32)
    with pytest.raises(UserError, match="unknown norm 'layer'"):
        build_encoder("small", 3, 32, "layer")  # type: ignore[arg-type]


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"deconfound\[timm\]"):
        build_encoder("timm:resnet34", 3, 32)


def test_timm_networks_have_any_channel_count(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]

    def create_model(name: str, in_chans: int, num_classes: int) -> nn.Module:
        assert (name, num_classes) == ("tiny", 0)
        return nn.Sequential(nn.Conv2d(in_chans, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert build_encoder("timm:tiny", 5, 32).features == 7
    with pytest.raises(UserError, match="did you mean timm:tiny"):
        build_encoder("timm:tinny", 5, 32)
    with pytest.raises(UserError, match="keeps its own norm"):
        build_encoder("timm:tiny", 5, 32, "group")


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_profiles_take_a_perceptron_under_every_norm_they_have(norm: Norm) -> None:
    encoder = build_encoder("mlp", 7, None, norm)
    kinds = {type(layer) for layer in encoder.modules()}
    assert (nn.GroupNorm in kinds) == (norm == "group")
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in encoder.modules()) == (
        3 if norm == "batch" else 1
    )
    representation = encoder(torch.randn(16, 7))
    assert representation.shape == (16, encoder.features)
    weights = torch.randn(16, encoder.features)
    (representation * weights).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


def test_small_stands_for_the_perceptron_of_profiles() -> None:
    torch.manual_seed(0)
    small = build_encoder("small", 5, None)
    torch.manual_seed(0)
    mlp = build_encoder("mlp", 5, None)
    for first, second in zip(small.parameters(), mlp.parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_image_encoders_refuse_profiles_and_the_perceptron_images() -> None:
    with pytest.raises(UserError, match=r"densenet121 takes images.*use mlp"):
        build_encoder("densenet121", 5, None)
    with pytest.raises(UserError, match=r"mlp takes profiles.*use small"):
        build_encoder("mlp", 3, 32)
    with pytest.raises(UserError, match="profiles have none"):
        build_encoder("mlp", 5, None, "instance")
