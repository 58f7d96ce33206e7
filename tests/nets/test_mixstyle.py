import pytest
import torch
from torch import Tensor, nn

from deconfound.errors import UserError
from deconfound.nets.encoder import Norm, build_encoder
from deconfound.nets.mixstyle import BLOCKS, MixStyle, draw_partners, mix_after, mix_statistics


def moments(map: Tensor) -> tuple[Tensor, Tensor]:
    return map.mean(dim=(2, 3)), (map.var(dim=(2, 3)) + 1e-6).sqrt()


def test_moments_of_the_mixed_map_are_the_mixed_moments() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, 7, dtype=torch.float64) * 3 + 1
    partner, weight = torch.tensor([3, 0, 2, 4, 1]), torch.rand(5, dtype=torch.float64)
    mean, sd = moments(x)
    found = mix_statistics(x, partner, weight)
    share = weight[:, None]
    found_mean = found.mean(dim=(2, 3))
    torch.testing.assert_close(found_mean, share * mean + (1 - share) * mean[partner])
    scale = (share * sd + (1 - share) * sd[partner]) / sd
    torch.testing.assert_close(found.std(dim=(2, 3)), scale * x.std(dim=(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_unit_weight_reproduces_the_map(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5).to(dtype)
    found = mix_statistics(x, torch.tensor([1, 2, 3, 0]), torch.ones(4))
    assert found.dtype == dtype
    assert torch.equal(found, x)


def test_no_gradient_goes_through_the_statistics() -> None:
    """The map is then an affine function of itself with constant coefficients."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    partner, weight = torch.tensor([1, 2, 3, 0]), torch.tensor([0.2, 0.5, 0.9, 0.0])
    upstream = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad(mix_statistics(x, partner, weight), x, upstream)
    _, sd = moments(x.detach())
    share = weight.double()[:, None]
    scale = (share * sd + (1 - share) * sd[partner]) / sd
    torch.testing.assert_close(found, upstream * scale[:, :, None, None])


def test_a_constant_map_stays_finite() -> None:
    x = torch.zeros(2, 1, 4, 4)
    x[1] = torch.randn(4, 4)
    assert torch.isfinite(mix_statistics(x, torch.tensor([1, 0]), torch.zeros(2))).all()


def test_random_partners_permute_the_batch() -> None:
    torch.manual_seed(0)
    drawn = draw_partners(torch.zeros(50, dtype=torch.int64), "random")
    assert sorted(drawn.tolist()) == list(range(50))
    assert drawn.tolist() != list(range(50))


@pytest.mark.parametrize("environments", [2, 3, 7])
@pytest.mark.parametrize("size", [9, 16])
def test_crossdomain_partners_are_of_another_environment(environments: int, size: int) -> None:
    torch.manual_seed(0)
    environment = torch.randint(0, environments, (size,))
    environment[:2] = torch.tensor([0, 1])
    seen: set[tuple[int, int]] = set()
    for _ in range(400):
        partner = draw_partners(environment, "crossdomain")
        assert (environment[partner] != environment).all()
        seen |= set(enumerate(partner.tolist()))
    pairs = {(i, j) for i in range(size) for j in range(size) if environment[i] != environment[j]}
    assert seen == pairs, "every row of another environment is drawn"


def test_crossdomain_partners_are_drawn_uniformly() -> None:
    torch.manual_seed(0)
    environment = torch.tensor([0, 0, 0, 1, 2, 2])
    times = torch.zeros(6)
    for _ in range(6000):
        times[draw_partners(environment, "crossdomain")[0]] += 1
    assert (times[:3] == 0).all()
    assert ((times[3:] - 2000).abs() < 200).all()


def test_rows_without_another_environment_keep_their_statistics() -> None:
    torch.manual_seed(0)
    environment = torch.tensor([-1, 0, 1, -1, 0])
    for _ in range(20):
        partner = draw_partners(environment, "crossdomain")
        assert partner[[0, 3]].tolist() == [0, 3]
        assert (environment[partner] >= 0)[[1, 2, 4]].all()
    for alone in ([-1, -1], [2, 2, 2]):
        found = draw_partners(torch.tensor(alone), "crossdomain")
        assert found.tolist() == list(range(len(alone)))


def test_with_held_out_images_they_are_the_partners() -> None:
    torch.manual_seed(0)
    environment = torch.tensor([0, 1, 0, 1, 0, -1, -1])
    for mix in ("random", "crossdomain"):
        drawn = torch.stack([draw_partners(environment, mix, held_out=2) for _ in range(50)])  # type: ignore[arg-type]
        assert set(drawn[:, :5].flatten().tolist()) == {5, 6}
        assert (drawn[:, 5:] == torch.tensor([5, 6])).all()


def test_it_is_the_identity_in_evaluation_and_without_a_batch() -> None:
    x, environment = torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 0, 1])
    mixing = MixStyle("random", 1.0, 0.1)
    assert mixing(x) is x
    with mixing.eval().of(environment):
        assert mixing(x) is x
    with mixing.train().of(environment):
        assert not torch.equal(mixing(x), x)
    assert mixing(x) is x


def test_one_coin_decides_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    x, environment = torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 0])
    mixing = MixStyle("crossdomain", 0.3, 5.0)
    with mixing.of(environment):
        mixed = [(mixing(x) != x).flatten(1).any(dim=1) for _ in range(500)]
    assert all(rows.all() or not rows.any() for rows in mixed)
    assert sum(bool(rows.all()) for rows in mixed) / 500 == pytest.approx(0.3, abs=0.07)


def test_weights_are_of_the_beta_distribution() -> None:
    torch.manual_seed(0)
    drawn = MixStyle("random", 1.0, 0.1).weights(20_000)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn.var().item() == pytest.approx(0.25 / 1.2, abs=0.01)


def attached(name: str, blocks: tuple[int, ...], norm: Norm = "batch", size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    encoder = build_encoder(name, 2, size, norm)
    mixing = MixStyle("random", 1.0, 5.0)
    mix_after(encoder, name, norm, (2, size), blocks, mixing)
    encoder.mixing = mixing
    return encoder


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks_are_mixed_in_training_alone(name: str) -> None:
    calls: list[tuple[int, ...]] = []
    encoder = attached(name, (1, 2, 3))
    encoder.mixing.register_forward_hook(lambda _, __, out: calls.append(tuple(out.shape)))  # type: ignore[operator, union-attr]
    image, environment = torch.randn(4, 2, 64, 64), torch.tensor([0, 1, 2, 0])
    plain = build_encoder(name, 2, 64)
    plain.load_state_dict(encoder.state_dict())
    with torch.no_grad(), encoder.mixing.of(environment):  # type: ignore[operator, union-attr]
        assert not torch.allclose(encoder.train()(image), plain.train()(image))
        plain.load_state_dict(encoder.state_dict())
        assert torch.equal(encoder.eval()(image), plain.eval()(image))
    sides = [shape[2] for shape in calls[:3]]
    assert len(calls) == 6
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] > 1


def test_small_maps_unknown_encoders_and_undone_mixing_are_refused() -> None:
    assert attached("resnet18", (1, 2), size=16)
    with pytest.raises(UserError, match="--mix-after 3: the map of 16 px images has a single"):
        attached("resnet18", (1, 2, 3), size=16)
    for name in ("small", "densenet121"):
        with pytest.raises(UserError, match=f"undoes it in --encoder {name}"):
            attached(name, (1,), norm="instance")
    assert attached("resnet18", (1,), norm="instance")
    with pytest.raises(UserError, match="not those of --encoder timm:vit_tiny"):
        encoder = build_encoder("small", 2, 64)
        mix_after(encoder, "timm:vit_tiny", "batch", (2, 64), (1,), MixStyle("random", 1, 1))
