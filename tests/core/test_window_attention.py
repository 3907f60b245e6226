"""Swin's attention in binary: against torchvision's where nothing is binary, in every mode, packed, exported."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from esbnn_core import BinaryConfig, binarize_, bit_training_report, count, pack_, train_on_bits_
from esbnn_core.layers import BinaryLinear
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.products import Products
from esbnn_core.transforms.expand_trace import Tracer
from esbnn_core.transforms.real_weights import real_weights_
from esbnn_core.units import WindowAttention
from tests.helpers.tokens import swin


def quietly(model: nn.Module, config: BinaryConfig | None = None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return binarize_(model, config)


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [
        ([3, 4], [1, 2], (9, 8)),
        ([3, 4], [1, 2], (7, 10)),  # padded to whole windows
        ([4, 3], [2, 1], (4, 6)),  # one window high: no shift there
        ([2, 2], [0, 0], (4, 4)),
        ([5, 5], [2, 2], (3, 4)),
    ],
)
def test_without_signs_it_is_torchvisions_attention(
    kind: type[nn.Module], window: list[int], shift: list[int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    for heads in (1, 3):
        attention = kind(6, window, shift, heads).eval()
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.5)
        x = torch.randn(2, *size, 6)
        want = attention(x)
        new = quietly(nn.Sequential(copy.deepcopy(attention)), BinaryConfig(filter_fn=lambda n, m: n.endswith("v")))[0]
        assert isinstance(new, WindowAttention) and not isinstance(new.proj, BinaryLinear)
        with torch.no_grad():
            for _, layer in binary_layers(real_weights_(new)):
                layer.sign = nn.Identity()
            torch.testing.assert_close(new(x), want)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("products", ["real", "binary"])
def test_a_swin_is_binary_in_every_mode_and_packed(version: int, products: Products) -> None:
    real = swin(version).eval()
    model = quietly(copy.deepcopy(real), BinaryConfig(products=products)).eval()
    names = [name for name, _ in binary_layers(model)]
    assert len(names) == 4 * 4 + 1 and not any("cpb_mlp" in name for name in names)
    assert not any(isinstance(m, nn.PReLU) for m in model.modules())  # the relu of coordinates alone is not replaced
    for size in ((22, 30), (25, 16)):
        x = torch.randn(2, 3, *size)
        want = model(x)
        with torch.no_grad():
            packed = pack_(copy.deepcopy(model))
            assert torch.equal(model(x), want) and torch.equal(packed(x), want)
            assert model(x[:0]).shape == packed(x[:0]).shape == (0, want.shape[1])
            scores = model.features[1][0].attn  # other real weights of the same signs and scales change nothing
            scores.qkv.weight.copy_(scores.qkv.weight.abs().mean(1, keepdim=True) * scores.qkv.weight.sign())
            torch.testing.assert_close(model(x), want, rtol=1e-3, atol=1e-4)
        with torch.inference_mode():
            torch.testing.assert_close(model(x), want, rtol=1e-3, atol=1e-4)
        cost, plain = count(packed, (3, *size)), count(real, (3, *size))
        assert cost.bops + cost.flops == plain.flops and cost.matmul_flops + cost.matmul_bops == plain.matmul_flops
        assert (cost.matmul_flops == 0) == (products == "binary")
    Tracer().trace(model)


@pytest.mark.slow
def test_a_packed_swin_exports() -> None:
    packed, x = pack_(quietly(swin(2, (2,)))), torch.randn(4, 3, 24, 24)
    exported = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        assert torch.equal(exported(x[:3]), packed(x[:3]))


@pytest.mark.slow
def test_a_swin_learns_on_bits() -> None:
    model, x, y = quietly(swin(2)), torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 2, 3])
    train_on_bits_(model.train())
    assert not any(bit_training_report(model).values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step() -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    first = step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.features[1][0].attn.qkv_bias.grad.unflatten(0, (3, -1))[1].abs().sum() == 0  # keys have no bias
    for _ in range(25):
        last = step()
    assert last < 0.9 < 1.0 < first


class OwnAttention(ShiftedWindowAttention):
    """A user's subclass, whose forward may be another one."""


def test_a_subclass_stays_real_and_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), OwnAttention(6, [2, 2], [1, 1], 2), nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.warns(UserWarning, match=r"2 \(1\.qkv, 1\.proj\) whose weight another module reads"):
        binarize_(model)
    assert [name for name, _ in binary_layers(model)] == ["2"]
