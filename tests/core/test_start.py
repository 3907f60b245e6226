"""start_apart_: thresholds and signs of norm weights are where they are said to be, in plain and expanded networks."""

from collections.abc import Callable, Iterator
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import (
    BinaryConfig,
    ESConfig,
    InputError,
    Start,
    binarize_,
    bit_training_report,
    create_model,
    expand_,
    start_apart_,
    train_on_bits_,
)
from esbnn_core.layers import RSign
from esbnn_core.layers.widths import Expansion
from esbnn_core.units import BinaryUnit, TimestepUnit, TokenUnit

Make = Callable[..., nn.Module]
NAMES = {"resnet": "reactnet_resnet8", "vit": "binaryvit_micro", "bnext": "bnext_micro"}


def thresholds(model: nn.Module) -> dict[str, Tensor]:
    """Of every RSign, by name."""
    return {
        name: -m.shift.detach() for name, m in model.named_modules() if isinstance(m, RSign) and m.shift is not None
    }


def quantiles(number: int, spread: float) -> Tensor:
    return torch.tensor([spread * NormalDist().inv_cdf((j + 0.5) / number) for j in range(number)])


@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (4, 1), (2, 2)])
def test_over_copies_is_what_copy_spread_builds(tau: int, groups: int) -> None:
    spread = create_model("es_reactnet_resnet8", tau=tau, groups=groups, copy_spread=0.3)
    found = thresholds(create_model("es_reactnet_resnet8", tau=tau, groups=groups, start=Start(0.3)))
    for name, expected in thresholds(spread).items():
        assert torch.equal(found[name], expected), name
    assert not any(t.any() for t in thresholds(create_model("reactnet_resnet8", start=Start(0.3))).values())


def concatenated() -> nn.Module:
    """Two branches whose channels lie side by side: after expand_ the copies of one map are not neighbours."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
            self.last, self.fc = nn.Conv2d(12, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc(self.last(torch.cat([self.one(x), self.two(x)], 1)).mean((2, 3)))  # type: ignore[no-any-return]

    return binarize_(Branches(), BinaryConfig(shift=True))


def test_over_copies_follows_the_copies_where_expand_put_them() -> None:
    made = []
    for spread in (0.0, 0.4):
        torch.manual_seed(0)
        made.append(expand_(concatenated(), ESConfig(copy_spread=spread)))
    plain, spread_model = made
    start_apart_(plain, Start(0.4))
    expected = thresholds(spread_model)
    assert len({tuple(t.tolist()) for t in expected.values()}) > 1
    for name, found in thresholds(plain).items():
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("name", ["reactnet_resnet8", "es_reactnet_resnet8"])
def test_over_channels_spaces_the_channels_evenly_and_drawn_has_that_deviation(name: str) -> None:
    even = thresholds(create_model(name, start=Start(0.5, "channels", seed=3)))
    for threshold in even.values():
        assert not torch.equal(threshold, threshold.sort().values)
        torch.testing.assert_close(threshold.sort().values, quantiles(len(threshold), 0.5), rtol=0, atol=1e-6)
    again, other = (thresholds(create_model(name, start=Start(0.5, "channels", seed=seed))) for seed in (3, 4))
    assert all(torch.equal(even[key], again[key]) for key in even)
    assert not any(torch.equal(even[key], other[key]) for key in even)
    drawn = torch.cat(list(thresholds(create_model(name, start=Start(0.5, "drawn"))).values()))
    assert len(drawn.unique()) == len(drawn)
    error = 5 * 0.5 / len(drawn) ** 0.5
    assert abs(drawn.mean()) < error and abs(drawn.std() - 0.5) < error


def units(model: nn.Module) -> Iterator[BinaryUnit | TokenUnit]:
    return (m for m in model.modules() if isinstance(m, BinaryUnit | TokenUnit))


@pytest.mark.parametrize(("name", "copies"), [("es_reactnet_resnet8", 4), ("es_binaryvit_micro", 2)])
def test_alternating_gains_are_the_rows_of_a_hadamard_matrix(name: str, copies: int) -> None:
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    rows = two if copies == 2 else torch.kron(two, two)
    made = (create_model(name, start=Start(gains="alternate")), create_model(name))
    found, before = ([unit.norm.weight for unit in units(model) if unit.copies == copies] for model in made)
    assert len(found) >= 4
    for number, (weight, old) in enumerate(zip(found, before, strict=True)):
        factor = (weight / old).view(copies, -1)
        assert torch.equal(factor, rows[number % copies][:, None].expand_as(factor)), number


@pytest.mark.parametrize("tau", [2, 4])
def test_gains_reach_the_norms_behind_the_binary_layers_that_expand_expanded(tau: int) -> None:
    def block(groups: int) -> list[nn.Module]:
        return [nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(16), nn.PReLU()]

    stem = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.PReLU()]
    layers = [*block(1), *block(2), *block(16), nn.AvgPool2d(2), nn.BatchNorm2d(16), *block(1)]
    plain = nn.Sequential(*stem, *layers, nn.Conv2d(16, 5, 1))
    model = expand_(binarize_(plain, BinaryConfig(shift=True)), ESConfig(tau))
    start_apart_(model, Start(gains="alternate"))
    copies = tau * tau
    rows = torch.tensor([[1.0]])
    while len(rows) < copies:
        rows = torch.kron(rows, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    inputs = []
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    model(torch.randn(2, 3, 12, 12))
    # the stem's and the one behind the pool are behind no binary layer
    behind = [place for place in range(len(norms)) if place not in (0, 4)]
    assert len(norms) == 6 and all(bool((norms[place].weight == 1).all()) for place in (0, 4))
    for number, place in enumerate(behind):
        tiles = inputs[place].unflatten(1, (copies, -1))
        assert torch.equal(tiles, tiles[:, :1].expand_as(tiles))
        signs = norms[place].weight.detach().view(copies, -1)
        assert torch.equal(signs, rows[number % copies][:, None].expand_as(signs)), number


def test_gains_of_a_plain_network_are_the_signs_of_its_filters() -> None:
    torch.manual_seed(0)
    model, x = create_model("reactnet_resnet8"), torch.randn(4, 3, 16, 16)
    before = model(x)
    start_apart_(model, Start(gains="drawn"))
    assert (model(x) - before).abs().max() > 0.1
    flipped = 0
    with torch.no_grad():
        for number, unit in enumerate(units(model)):
            sign = unit.norm.weight.sign()
            assert number % 4 or bool((sign == 1).all())
            flipped += int((sign == -1).sum())
            unit.conv.weight.mul_(sign[:, None, None, None])
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    assert flipped > 30


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("name", ["es_reactnet_resnet8", "binaryvit_micro"])
def test_deviations_are_those_of_the_first_training_batch(name: str, bits: bool) -> None:
    torch.manual_seed(0)
    model = create_model(name, start=Start(0.5, "channels", deviations=True))
    known = thresholds(create_model(name, start=Start(0.5, "channels")))
    if bits:
        with pytest.warns(UserWarning, match="its sign has a hook"):  # the first batch is measured on the plain layers
            train_on_bits_(model)
    side = 32 if "vit" in name else 16
    model.eval()
    with torch.no_grad():
        model(3 * torch.randn(2, 3, side, side))
    assert not any(t.any() for t in thresholds(model).values())
    seen: dict[str, Tensor] = {}
    handles = [
        m.register_forward_pre_hook(lambda m, x, n=n: seen.update({n: x[0].detach()}))  # type: ignore[misc]
        for n, m in model.named_modules()
        if isinstance(m, RSign)
    ]
    model.train()(5 * torch.randn(8, 3, side, side)).sum().backward()
    for handle in handles:
        handle.remove()
    found = thresholds(model)
    assert found.keys() == known.keys() == seen.keys()
    for key, threshold in found.items():
        x = seen[key].double()
        rows = (x if x.dim() == 3 else x.permute(0, 2, 3, 1)).flatten(0, -2)
        deviation = (rows - rows.mean(0)).square().mean().sqrt()
        torch.testing.assert_close(threshold, known[key] * deviation.float(), rtol=1e-4, atol=1e-5)
    assert not any(bits and reason for reason in bit_training_report(model).values())
    model(torch.randn(8, 3, side, side))
    assert all(torch.equal(found[key], later) for key, later in thresholds(model).items())


def test_each_group_of_timesteps_starts_apart() -> None:
    unit = TimestepUnit(8, expansion=Expansion(2), timestep_groups=3)
    start_apart_(unit, Start(0.5))
    assert unit.shift is not None
    for shift in unit.shift.shifts:
        torch.testing.assert_close(-shift.detach().view(4, -1), quantiles(4, 0.5)[:, None].expand(4, 4))


def test_a_start_without_a_place_is_refused() -> None:
    for start, name, words in (
        (Start(0.5), "bireal_resnet18", "thresholds of a start must be 0 for a network whose signs have no shift"),
        (Start(0.5), "recu_resnet20", "thresholds of a start must be 0"),
    ):
        with torch.device("meta"), pytest.raises(InputError, match=words):
            create_model(name, start=start)
    with pytest.raises(InputError, match="gains of a start must be 'ones'"):
        start_apart_(TimestepUnit(8), Start(gains="drawn"))
    with pytest.raises(InputError, match="thresholds of a start must be a finite number of at least 0, got nan"):
        Start(float("nan"))
    with pytest.raises(InputError, match=r"over must be one of .*, got 'copy'"):
        Start(0.5, "copy")  # type: ignore[arg-type]
