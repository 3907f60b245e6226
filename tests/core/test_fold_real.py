"""fold_real_: fewer steps, the same maps up to rounding, and every file and program that it must not spoil."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import InputError, create_model, fold_real_, load_checkpoint, pack_, save_checkpoint
from esbnn_core.layers import Tile
from esbnn_core.packed import FoldedConv2d, PackedMaxPool2d, PackedStem
from esbnn_core.transforms.fold_real import signed_filters
from tests.helpers import paths
from tests.helpers.networks import annealed, stir

FAMILIES = [
    ("reactnet_resnet18", {}),
    ("es_reactnet_resnet18", {"tau": 2}),
    ("es_bireal_resnet18", {"tau": 2, "groups": 2}),
    ("recu_resnet18", {}),
    ("bnext_micro", {}),
    ("es_bnext_micro", {}),
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(name: str, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return pack_(stir(annealed(create_model(name, num_classes=10, **options))))


def rows_of(model: nn.Module) -> dict[str, nn.Sequential]:
    """The rows that folding changes: stems and shortcuts with a real convolution and a norm."""
    found = {name: module for name, module in model.named_modules() if type(module) in (nn.Sequential, PackedStem)}
    return {name: row for name, row in found.items() if any(isinstance(part, nn.BatchNorm2d) for part in row)}


@pytest.mark.parametrize("path", ["naive", paths.usable()[min(1, len(paths.usable()) - 1)]])
@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_real_layers_stay_within_a_few_roundings(
    name: str, options: dict[str, int], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed(name, **options)
    folded = fold_real_(copy.deepcopy(whole))
    paths.force(path, monkeypatch)
    rows = rows_of(whole)
    assert rows and not rows_of(folded)
    for key, row in rows.items():
        channels = next(part for part in row if isinstance(part, nn.Conv2d)).in_channels
        x = drawn(2, channels, 18, 22, seed=len(key))
        with torch.no_grad():
            exact = copy.deepcopy(row).double()(x.double())
            plain, got = row(x), folded.get_submodule(key)(x)
            last = folded.get_submodule(key)(x.to(memory_format=torch.channels_last))
        assert torch.equal(got, last) and got.is_contiguous(memory_format=torch.channels_last)
        rounding = max((plain - exact).abs().max().item(), 2.0**-24 * exact.abs().max().item())
        assert (got - exact).abs().max().item() <= 4 * rounding, key


def test_few_signs_turn() -> None:
    whole = packed("reactnet_resnet18")
    x = drawn(4, 3, 96, 96)
    with torch.no_grad():
        before = whole.stem(x)
        after = fold_real_(copy.deepcopy(whole)).stem(x)
        shift = whole.stages.layer1[0].shift.view(1, -1, 1, 1)
    turned = ((before + shift >= 0) != (after + shift >= 0)).sum().item()
    assert before.numel() > 100_000 and turned <= 5


def test_a_network_keeps_its_classes() -> None:
    whole = packed("es_reactnet_resnet8")
    folded = fold_real_(copy.deepcopy(whole))
    x = drawn(32, 3, 32, 32)
    with torch.no_grad():
        one, two = whole(x), folded(x)
    # an image in which a sign turns may differ by more; most have none
    near = ((one - two).abs().amax(1) < 1e-4 * one.abs().max()).sum().item()
    assert near >= 28


def test_signs_of_factors_choose_the_filters() -> None:
    scale = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, -0.25])  # two copies of three channels
    filters, signs, positions = signed_filters(3, scale)
    assert filters.tolist() == [0, 1, 2, 2] and signs.tolist() == [1, -1, 1, -1]
    assert positions is not None and positions.tolist() == [0, 1, 2, 0, 1, 3]
    filters, signs, positions = signed_filters(3, scale.abs())
    assert filters.tolist() == [0, 1, 2] and signs.tolist() == [1, 1, 1] and positions is None
    x = drawn(2, 3, 8, 8)
    filters, signs, positions = signed_filters(3, scale)
    pool = nn.MaxPool2d(3, 2, 1)
    want = pool(x.repeat(1, 2, 1, 1) * scale.view(1, -1, 1, 1))
    made = pool(x[:, filters] * signs.view(1, -1, 1, 1))[:, positions] * scale.abs().view(1, -1, 1, 1)
    assert torch.equal(made, want)


def test_it_is_an_option_of_packing_and_loading(tmp_path: Path) -> None:
    latent = stir(create_model("es_reactnet_resnet8"))
    x = drawn(2, 3, 32, 32)
    folded = fold_real_(pack_(copy.deepcopy(latent)))
    save_checkpoint(pack_(copy.deepcopy(latent)), tmp_path / "packed.safetensors")
    read = load_checkpoint(tmp_path / "packed.safetensors", fold_real=True)
    with torch.no_grad():
        want = folded(x)
        assert torch.equal(pack_(copy.deepcopy(latent), fold_real=True)(x), want)
        assert torch.equal(read(x), want)
    with pytest.raises(InputError, match="save it before folding"):
        save_checkpoint(folded, tmp_path / "folded.safetensors")
    assert not (tmp_path / "folded.safetensors").exists()


def test_what_is_refused_or_left() -> None:
    with pytest.raises(InputError, match="call pack_ first"):
        fold_real_(create_model("reactnet_resnet8"))
    folded = packed("reactnet_resnet8")
    fold_real_(folded)
    with pytest.raises(InputError, match="folded already"):
        fold_real_(folded)
    hooked = packed("reactnet_resnet8")
    hooked.stem.norm.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"stem\.norm has a forward hook"):
        fold_real_(hooked)
    assert isinstance(hooked.stem.norm, nn.BatchNorm2d) and not isinstance(hooked.fc, type(folded.fc))
    # a norm with statistics of the batch, a tile of another dimension, a convolution that is used twice
    shared = nn.Conv2d(3, 4, 1)
    rows = [
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 1), Tile(2, dim=2), nn.BatchNorm2d(4)),
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
    ]
    model = nn.ModuleList([packed("reactnet_resnet8"), *rows]).eval()
    fold_real_(model)
    assert [type(row[0]) is FoldedConv2d for row in rows] == [False] * 4 + [True]


@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2}, {"dilation": 2}, {"padding_mode": "reflect"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_convolutions_of_every_kind(options: dict[str, object], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, **options)  # type: ignore[arg-type]
    scale, offset, x = drawn(6), drawn(6, seed=1), drawn(2, 4, 9, 10, seed=2)
    pool = PackedMaxPool2d(2)
    folded = FoldedConv2d(conv, scale, offset, pool=pool).to(dtype)
    with torch.no_grad():
        want = pool(conv(x) * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1))
        got = folded(x.to(dtype))
    assert got.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)


def test_new_weights_are_read() -> None:
    one, two = (fold_real_(packed("reactnet_resnet8", in_channels=channels)) for channels in (3, 3))
    with torch.no_grad():
        for tensor in one.stem.conv.parameters():
            tensor.mul_(2)  # as if of another network; the lanes are those of before
        one.fc.weight.mul_(3)
    two.load_state_dict(one.state_dict())
    x = drawn(2, 3, 32, 32)
    with torch.no_grad():
        want = nn.functional.conv2d(x, two.stem.conv.weight, two.stem.conv.bias, 1, 1)
        torch.testing.assert_close(two.stem(x), want, rtol=1e-5, atol=1e-5)
        rows = drawn(5, two.fc.in_features)
        torch.testing.assert_close(
            two.fc(rows), nn.functional.linear(rows, one.fc.weight, one.fc.bias), rtol=1e-5, atol=1e-5
        )


def test_an_exported_program_is_the_network_up_to_rounding() -> None:
    network = fold_real_(packed("es_reactnet_resnet8"))
    x = drawn(2, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(network, (x,)).module()
        stem = torch.export.export(network.stem, (x,)).module()
        torch.testing.assert_close(stem(x), network.stem(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(program(x), network(x), rtol=1e-3, atol=1e-3)
