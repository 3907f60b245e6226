"""The counter against the published digits, against counts made another way, and without a trace on the model."""

import copy
import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import InputError, count, create_model, model_spec, pack_
from esbnn_core.counting import Count
from esbnn_core.layers import BinaryConv2d, BinaryLinear, ESBinaryConv2d, ESBinaryLinear

# papers.md#operations: BOPs (G), FLOPs (1e8), OPs (1e8), parameters (M), of which binary (M), as printed
TABLE = {
    "bireal_resnet18": ("1.6763", "1.3779", "1.6399", "11.690", "10.985"),
    "reactnet_resnet18": ("1.6763", "1.3779", "1.6399", "11.704", "10.985"),
    "bireal_resnet34": ("3.5260", "1.3779", "1.9289", "21.798", "21.086"),
    "reactnet_resnet34": ("3.5260", "1.3779", "1.9289", "21.827", "21.086"),
    "recu_resnet20": ("0.0401", "0.0044", "0.0107", "0.271", "0.267"),
    "reactnet_a": ("4.8169", "0.1186", "0.8713", "29.344", "28.253"),
    "rep_reactnet_a": ("4.8169", "0.1289", "0.8815", "30.432", "28.253"),
    "bnext_tiny": ("4.8169", "0.1334", "0.8861", "30.862", "28.253"),
    "es_bnext_tiny": ("4.8169", "0.1334", "0.8861", "30.943", "28.253"),
    "binaryvit": ("3.5567", "0.1015", "0.6572", "22.492", "21.197"),
    "binaryvit_some_real": ("3.4796", "0.8722", "1.4158", "22.489", "20.509"),
    "rep_bnext_tiny": ("4.8169", "0.1585", "0.9112", "33.468", "28.253"),
}
WITH_MATMULS = {"binaryvit": ("0.2655", "0.6987"), "binaryvit_some_real": ("0.2655", "1.4573")}
# the larger BNexts are printed with fewer digits: BOPs/64, FLOPs, OPs, parameters of plain and ES, binary ones
LARGER = {
    "bnext_small": ("1.693", "0.211", "1.905", "68.6", "68.7", "63.6"),
    "bnext_middle": ("3.139", "0.243", "3.381", "134.5", "134.7", "126.2"),
    "bnext_large": ("8.149", "0.394", "8.543", "326.5", "326.9", "308.3"),
}


def made(name: str, device: str = "cpu", **options: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    with torch.device(device):
        model = create_model(name, **options)
    spec = model_spec(model)
    assert spec is not None
    return model, spec.input_size


@cache
def counted(name: str) -> Count:
    return count(*made(name, "meta"))


@pytest.mark.parametrize("name", TABLE)
def test_the_published_digits(name: str) -> None:
    result = counted(name)
    printed = (
        f"{result.bops / 1e9:.4f}",
        f"{result.flops / 1e8:.4f}",
        f"{result.ops / 1e8:.4f}",
        f"{result.params / 1e6:.3f}",
        f"{result.binary_params / 1e6:.3f}",
    )
    assert printed == TABLE[name]
    assert result.ops == pytest.approx(result.bops / 64 + result.flops)


@pytest.mark.parametrize("name", WITH_MATMULS)
def test_binary_attention_is_counted_apart(name: str) -> None:
    result = counted(name)
    assert (f"{result.matmul_bops / 1e9:.4f}", f"{result.ops_with_matmuls / 1e8:.4f}") == WITH_MATMULS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_the_larger_bnexts(name: str) -> None:
    *operations, plain_params, es_params, binary = LARGER[name]
    for full, params in ((name, plain_params), (f"es_{name}", es_params)):
        result = count(*made(full, "meta"))
        assert [f"{n / 1e8:.3f}" for n in (result.bops / 64, result.flops, result.ops)] == operations
        assert (f"{result.params / 1e6:.1f}", f"{result.binary_params / 1e6:.1f}") == (params, binary)


def test_recu_resnet20_to_the_last_parameter() -> None:
    model, size = made("recu_resnet20")
    result = count(model, size)
    assert (result.params, result.binary_params) == (270_522, 267_264)
    # 3x3 convolutions of 16, 32 and 64 channels at 32, 16 and 8: 6, then 1 from half the width and 5
    stages = [(16, 16, 32, 6), (16, 32, 16, 1), (32, 32, 16, 5), (32, 64, 8, 1), (64, 64, 8, 5)]
    assert result.bops == sum(9 * i * o * side**2 * n for i, o, side, n in stages)
    assert result.binary_params == sum(9 * i * o * n for i, o, _, n in stages)
    assert result.flops == 9 * 3 * 16 * 32**2 + 64 * 10
    assert result.latent_bytes == sum(t.nbytes for t in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reactnet_resnet8", "recu_resnet20", "reactnet_resnet18", "recu_resnet18"])
def test_expansion_costs_nothing(name: str) -> None:
    base = counted(name)
    pairs = [(1, 2), (2, 1), (4, 2)] if "resnet18" in name else itertools.product((1, 2, 4), (1, 2))
    for tau, groups in pairs:
        model, size = made(f"es_{name}", "meta", tau=tau, groups=groups)
        result = count(model, size)
        assert (result.bops, result.flops, result.ops) == (base.bops, base.flops, base.ops)
        assert result.binary_params == base.binary_params
        assert [row.weights for row in result.layers] == [row.weights for row in base.layers]
        assert result.params == sum(p.numel() for p in model.parameters())
        assert result.params > base.params or tau * groups == 1
        widest = 512 if "resnet18" in name else 64
        assert max(row.output[0] for row in result.layers if row.binary) == widest // tau


def independent(model: nn.Module, x: Tensor) -> dict[str, int]:
    """MACs by layer from a run with data: the taps of one output value times the output values."""
    macs: dict[str, int] = {}

    def hook(name: str, taps: int) -> Any:
        return lambda module, args, out: macs.update({name: taps * out[0].numel()})

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            taps = module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, BinaryConv2d):
            taps = module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            taps = module.in_features
        else:
            continue
        handles.append(module.register_forward_hook(hook(name, taps)))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return macs


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize(
    "options", [{"tau": 1}, {"tau": 2, "groups": 2}, {"in_channels": 1, "num_classes": 7}], ids=str
)
def test_a_run_with_data_counts_the_same(options: dict[str, Any], side: int) -> None:
    model, (channels, _, _) = made("es_reactnet_resnet8", **options)
    result = count(model, (channels, side, side))
    assert {row.name: row.macs for row in result.layers} == independent(
        model.eval(), torch.randn(1, channels, side, side)
    )
    if side == 32 and "in_channels" not in options:
        # stem, the two 1x1 shortcuts, the read-out; six binary convolutions
        assert result.flops == 27 * 16 * 1024 + 16 * 32 * 256 + 32 * 64 * 64 + 64 * 10
        assert result.bops == 9 * (2 * 16**2 * 1024 + (16 * 32 + 32**2) * 256 + (32 * 64 + 64**2) * 64)


def test_bare_layers() -> None:
    for tokens in (1, 50):
        shape = (tokens, 24) if tokens > 1 else (24,)
        assert count(nn.Linear(24, 10), shape).flops == tokens * 240
        assert count(BinaryLinear(24, 10), shape).bops == tokens * 240
        wide = (*shape[:-1], 2 * 24)
        assert count(ESBinaryLinear(24, 10, tau=2), wide).bops == tokens * 240
        both = count(nn.Sequential(BinaryLinear(24, 40), nn.GELU(), nn.Linear(40, 24)), shape)
        assert (both.bops, both.flops, both.params, both.binary_params) == (tokens * 960, tokens * 960, 1944, 960)
    for stride, padding, dilation, groups in [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 4)]:
        layer = BinaryConv2d(8, 12, 3, stride, padding, dilation=dilation, groups=groups)
        real = nn.Conv2d(8, 12, 3, stride, padding, dilation, groups)
        out = real(torch.zeros(1, 8, 11, 14)).numel()
        assert count(layer, (8, 11, 14)).bops == count(real, (8, 11, 14)).flops == out * 9 * 8 // groups
    assert count(ESBinaryConv2d(8, 12, 3, tau=2, groups=2, padding=1), (32, 5, 5)).bops == 8 * 12 * 9 * 25


def test_transposed_convolution() -> None:
    # each of the 8 x 8 input places meets every weight once
    layer = nn.ConvTranspose2d(3, 5, 2, 2)
    assert count(layer, (3, 8, 8)).flops == layer.weight.numel() * 64


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(training: bool) -> None:
    model, size = made("es_reactnet_resnet8")
    model.train(training)
    model.stages.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    for _ in range(2):
        count(model, size)
    with pytest.raises(InputError):
        count(model, (4, 32, 32))
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    assert {t.device.type for t in after.values()} == {"cpu"}
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("name", "options"), [("es_reactnet_resnet8", {"groups": 2}), ("recu_resnet20", {})])
def test_a_packed_network_costs_the_same(name: str, options: dict[str, Any]) -> None:
    model, size = made(name, **options)
    latent = count(model, size)
    packed_model = pack_(copy.deepcopy(model))
    packed = count(packed_model, size)
    # six or eighteen rows that were latent convolutions are packed units now
    assert [(row.macs, row.weights, row.binary) for row in packed.layers] == [
        (row.macs, row.weights, row.binary) for row in sorted_like(latent.layers, packed.layers)
    ]
    assert (packed.bops, packed.flops, packed.ops) == (latent.bops, latent.flops, latent.ops)
    assert packed.binary_params == latent.binary_params
    stored = sum(t.nbytes for t in packed_model.state_dict().values())
    assert packed.packed_bytes == packed.latent_bytes == latent.packed_bytes == stored
    bits = math.fsum(m.weight.numel() / 8 for m in model.modules() if isinstance(m, BinaryConv2d))
    assert bits < stored < latent.latent_bytes


def sorted_like(rows: Any, order: Any) -> list[Any]:
    """Rows in the order of the other table: a packed unit stands where its convolution stood, and runs its shortcut
    before it."""
    by_name = {row.name.removesuffix(".conv") if row.binary else row.name: row for row in rows}
    return [by_name[row.name] for row in order]


@pytest.mark.parametrize("size", [(4, 32, 32), (1, 32, 32), (3, 32), (3,), (3, -1, 32), (3, 0, 0)])
def test_a_size_that_does_not_fit_is_named(size: tuple[int, ...]) -> None:
    model, _ = made("reactnet_resnet8")
    with pytest.raises(InputError) as caught:
        count(model, size)
    assert str(size) in str(caught.value) and "\n" not in str(caught.value)


def test_the_table_lines_up() -> None:
    result = count(*made("reactnet_resnet8"))
    head, *lines = result.table().splitlines()
    assert head.split()[:3] == ["layer", "kind", "output"] and len(lines) == len(result.layers) == 10
    assert lines[0].split() == ["stem.conv", "Conv2d", "16x32x32", "0.442", "432"]
    assert {line.index(line.split()[2]) for line in lines} == {head.index("output")}


def small() -> nn.Module:
    """A real stem, a binary convolution of stride 2 and a read-out, all without biases."""
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    binary = BinaryConv2d(8, 16, 3, stride=2, padding=1, weight_quantizer="sign")
    return nn.Sequential(stem, binary, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10, bias=False))


@pytest.mark.parametrize("side", [32, 24])
def test_printing_a_count_shows_its_numbers(side: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    result = count(model, (3, side, side))
    macs = (27 * 8 * side**2, 72 * 16 * (side // 2) ** 2, 160)
    bops, flops = macs[1], macs[0] + macs[2]
    print(result)
    table, sums = capsys.readouterr().out.split("\n\n")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [row[2] for row in rows] == [f"8x{side}x{side}", f"16x{side // 2}x{side // 2}", "10"]
    assert [(row[3], row[4]) for row in rows] == [
        (f"{m / 1e6:.3f}", f"{w:,}") for m, w in zip(macs, (216, 1152, 160), strict=True)
    ]
    assert sums.splitlines() == [
        f"BOPs          {bops / 1e9:.4f} G   (/64 = {bops / 64 / 1e8:.4f}e8)",
        f"FLOPs         {flops / 1e8:.4f}e8",
        f"OPs           {(bops / 64 + flops) / 1e8:.4f}e8   (BOPs/64 + FLOPs)",
        "parameters    1,528   of which 1-bit 1,152",
        # packed: 16 filters of 9 words, scale and bias of 16 numbers
        f"bytes         {4 * 1528:,} latent, {4 * (216 + 160 + 16 * 9 + 32):,} packed",
    ]
    assert "\n" not in repr(result) and f"bops={bops}" in repr(result)


def test_a_batch_costs_what_one_input_does() -> None:
    for model in (small(), create_model("es_reactnet_resnet8")):
        one = count(model, (3, 32, 32))
        assert one == count(model, (8, 3, 32, 32)) == count(model, [1, 3, 32, 32])
        assert str(one) == str(count(model, (8, 3, 32, 32)))
    with pytest.raises(InputError, match="N must be a whole number of at least 1, got 0"):
        count(small(), (0, 3, 32, 32))
