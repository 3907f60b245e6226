"""Attention of timm and diffusers in binary: their modules call binary layers in every mode, packed and counted."""

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import (
    BinaryConfig,
    ESConfig,
    InputError,
    binarize_,
    bit_training_report,
    count,
    expand_,
    pack_,
    train_on_bits_,
)
from esbnn_core.layers import LayerScale
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.products import RealProducts
from esbnn_core.units import SelfAttention

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "num_classes": 5, "window_size": 4}
SWIN |= {"depths": (2, 1), "num_heads": (2, 3)}


def of_timm(file: str, kind: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = pytest.importorskip(f"timm.models.{file}", reason="timm is not installed")
        return getattr(module, kind)(**options)

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (of_timm("vision_transformer", "VisionTransformer", qk_norm=True, **TINY), 8),
    "beit": (of_timm("beit", "Beit", **TINY), 8),
    "eva": (of_timm("eva", "Eva", **TINY), 8),
    "swin": (of_timm("swin_transformer", "SwinTransformer", **SWIN), 13),
    "swin_v2": (of_timm("swin_transformer_v2", "SwinTransformerV2", **SWIN), 13),
}


def stirred(model: nn.Module) -> nn.Module:
    """Biases and slopes away from their neutral starts, in evaluation mode."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def check(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> nn.Module:
    """Binary in every mode and packed alike; returns the packed copy."""
    want = run(model)
    with torch.no_grad():
        packed = pack_(copy.deepcopy(model))
        assert torch.equal(run(model), want) and torch.equal(run(packed), want) and want.std() > 0
        for _, layer in binary_layers(model):  # same signs and scales, other real weights
            scale = layer.quantizer.scale(layer.weight).view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.copy_(scale * layer.weight.sign())
        torch.testing.assert_close(run(model), want, rtol=1e-2, atol=1e-3)
    with torch.inference_mode():
        assert torch.equal(run(packed), want)
    return packed


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_of_timm(name: str) -> None:
    torch.manual_seed(0)
    build, layers = NETWORKS[name]
    real, x = stirred(build()), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = binarize_(copy.deepcopy(real))
        model(x)
    assert sum(".qkv" in key for key, _ in binary_layers(model)) == layers // 4
    assert len(binary_layers(model)) == layers
    packed = check(model, lambda network: network(x))
    cost, plain = count(packed, (3, 32, 32)), count(real, (3, 32, 32))
    assert cost.bops + cost.flops == plain.flops and cost.matmul_flops == plain.matmul_flops > 0
    train_on_bits_(model.train())
    assert not any(bit_training_report(model).values())
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_bias_apart_is_added_to_bare_signs_on_bits() -> None:
    model = binarize_(NETWORKS["beit"][0](), BinaryConfig(weight_quantizer="sign", shift=False))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
    torch.testing.assert_close(train_on_bits_(model)(x), want)  # timm adds the bias in place
    model(x).sum().backward()


@pytest.mark.slow
def test_a_vit_of_timm_exports() -> None:
    packed, x = pack_(binarize_(stirred(NETWORKS["vit"][0]()))), torch.randn(3, 3, 32, 32)
    exported = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        assert torch.equal(exported(x[:2]), packed(x[:2]))


@pytest.mark.parametrize("options", [{}, {"gated": True, "qk_norm": True, "scale_norm": True, "attn_head_dim": 4}])
def test_without_signs_it_is_timms_attention(options: dict[str, Any]) -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    torch.manual_seed(0)
    for heads in (1, 4):
        attention = stirred(layers.Attention(16, heads, qkv_bias=True, norm_layer=nn.LayerNorm, **options))
        new = SelfAttention(attention, RealProducts(heads)).eval()
        x = torch.randn(2, 5, 16)
        mask = torch.rand(2, 1, 5, 5) > 0.3
        mask[..., 0] = True
        masks: list[dict[str, Any]] = [{}, {"is_causal": True}, {"attn_mask": mask}, {"attn_mask": torch.randn(5, 5)}]
        for given in masks:
            torch.testing.assert_close(new(x, **given), attention(x, **given))
        with pytest.raises(InputError, match="attn_mask must be None where is_causal is True"):
            new(x, mask, True)


def test_binary_products_in_a_vit_of_timm() -> None:
    torch.manual_seed(0)
    real, x = stirred(NETWORKS["vit"][0]()), torch.randn(2, 3, 32, 32)
    model = binarize_(copy.deepcopy(real), BinaryConfig(products="binary"))
    check(model, lambda network: network(x))
    cost, plain = count(model, (3, 32, 32)), count(real, (3, 32, 32))
    assert cost.matmul_bops == plain.matmul_flops and cost.matmul_flops == 0
    for design, layers in (("F1", 4), ("F3", 8)):
        wide = expand_(copy.deepcopy(model), ESConfig(2, design=design))
        assert sum(isinstance(m, LayerScale) for m in wide.modules()) == layers
        assert count(wide, (3, 32, 32)).matmul_bops == cost.matmul_bops
        with torch.no_grad():
            assert torch.equal(wide(x), pack_(wide)(x))


def test_products_out_of_reach_are_named() -> None:
    with pytest.warns(UserWarning, match=r"products of 2 \(blocks\.0\.attn, blocks\.1\.attn\), which Bin"):
        binarize_(NETWORKS["beit"][0](), BinaryConfig(products="binary"))


def unet(**options: Any) -> nn.Module:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    shape = {"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    return diffusers.UNet2DModel(**blocks, **shape, attention_head_dim=8, **options)


def test_attention_of_a_unet_of_diffusers() -> None:
    real, x, step = stirred(unet()), torch.randn(2, 3, 16, 16), torch.tensor([3, 500])
    model = binarize_(copy.deepcopy(real))
    names = [name for name, _ in binary_layers(model)]
    assert sum("attentions" in name for name in names) == 4 * 4
    assert "conv_in" not in names and "conv_out" not in names  # its forward cannot be traced
    check(model, lambda network: network(x, step).sample)
    attention = model.mid_block.attentions[0]
    with pytest.raises(InputError, match="projections of attention must be real to be fused, got binary ones"):
        copy.deepcopy(attention).fuse_projections()
    real.mid_block.attentions[0].fuse_projections()  # as before

    class Step(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network(x, torch.tensor(3, device=x.device)).sample
            return out

    cost, plain = count(Step(model), (3, 16, 16)), count(Step(unet()), (3, 16, 16))
    assert cost.bops + cost.flops == plain.flops and cost.matmul_flops == plain.matmul_flops > 0


class Conditioned(nn.Module):
    """A block of a latent diffusion's UNet as binarize_ makes it, whose forward cannot be traced."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        attention = pytest.importorskip("diffusers.models.attention", reason="diffusers is not installed")
        block = attention.BasicTransformerBlock(16, 2, 8, cross_attention_dim=12, activation_fn=activation)
        self.block = binarize_(block, BinaryConfig(filter_fn=lambda name, module: True))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x, encoder_hidden_states=x[:, :3, :12])
        return out


@pytest.mark.parametrize("activation", ["geglu", "gelu"])
def test_feed_forward_parts_of_diffusers_expand(activation: str) -> None:
    torch.manual_seed(0)
    plain, x = stirred(Conditioned(activation)), torch.randn(2, 5, 16)
    assert len(binary_layers(plain)) == 10
    cost = count(plain, (5, 16))
    for design, tau in itertools.product(("F1", "F2"), (2, 4)):
        wide = expand_(copy.deepcopy(plain), ESConfig(tau, design=design))
        found = count(wide, (5, 16))
        assert (found.bops, found.binary_params) == (cost.bops, cost.binary_params)
        assert sum(isinstance(m, LayerScale) for m in wide.modules()) == (1 if design == "F1" else 2)
        with torch.no_grad():
            want = wide(x)
            assert torch.equal(pack_(wide)(x), want) and want.std() > 0
