"""BinaryViT: 1-bit probabilities, the three expanded designs written out, costs, packing, refusals."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError, count, create_model, model_spec, pack_
from esbnn_core.counting import Count
from esbnn_core.layers import BinaryLinear, BinarySoftmax, Expansion
from esbnn_core.layers.attention import binarize_probabilities
from esbnn_core.models.vit_blocks import BinaryAttention, FeedForward, PoolBranches
from esbnn_core.packed.units import PackedTokenUnit
from esbnn_core.training.latent_clip import clip_latent_weights_
from esbnn_core.units.token import TokenUnit
from tests.helpers.networks import agree, stir

DESIGNS = ("F1", "F2", "F3")
MICRO = "es_binaryvit_micro"
"""The same modules in three stages of one or two layers."""

FACTORS = ((1, 1), (2, 1), (2, 2), (4, 1))


def network(name: str = "es_binaryvit", seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, **{"image_size": 64, "num_classes": 7, **options})


def images(number: int = 2, size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("c", [0.25, 0.005])
def test_probabilities_become_0_or_c(c: float) -> None:
    # the halves 0.5 and 1.5 round to even, the clip cuts 2 and -1
    ratios = torch.tensor([-0.6, 0.0, 0.3, 0.5, 0.501, 0.8, 1.0, 1.2, 1.5, 2.7], dtype=torch.float64)
    rounded = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
    p, threshold = (ratios * c).requires_grad_(), torch.tensor(c, dtype=torch.float64, requires_grad=True)
    out = binarize_probabilities(p, threshold)
    assert torch.equal(out, rounded * c)
    weights = torch.arange(1.0, 11.0, dtype=torch.float64)
    (out * weights).sum().backward()
    inside = torch.tensor([0, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=torch.float64)
    assert torch.equal(p.grad, weights * inside)
    slope = torch.tensor([0, 0, -0.3, -0.5, 0.499, 0.2, 0.0, 1, 1, 1], dtype=torch.float64)
    assert threshold.grad.item() == pytest.approx((weights * slope).sum().item(), abs=1e-9)


def test_evaluation_gives_exact_zeros_and_ones_and_c_stays_above_zero() -> None:
    softmax = BinarySoftmax().eval()
    scores = torch.randn(3, 2, 5, 40)
    bits = softmax(scores)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(bits, (F.softmax(scores, -1) > 0.0025).float())
    with torch.no_grad():
        softmax.threshold.fill_(-0.3)
    clip_latent_weights_(softmax)
    assert softmax.threshold.item() == pytest.approx(1e-6)


def filled(module: nn.Module) -> nn.Module:
    """Float64 with every tensor away from its start, in evaluation."""
    return stir(module.double(), seed=5)


def rprelu(x: Tensor, act: nn.Module) -> Tensor:
    x = x + act.shift_in
    return torch.where(x > 0, x, act.slope * x) + act.shift_out


def written_unit(unit: TokenUnit, x: Tensor, skip: Tensor, groups: int, copies: int) -> Tensor:
    """The unit from its tensors alone: explicit signs, block-diagonal weight, explicit copies, BatchNorm by hand."""
    weight = unit.linear.weight
    signs = torch.where(weight - weight.mean(1, keepdim=True) >= 0, 1.0, -1.0).double()
    whole = torch.block_diag(*signs.chunk(groups))
    bits = torch.where(x + unit.linear.sign.shift >= 0, 1.0, -1.0).double()
    y = (bits @ whole.T) * weight.abs().mean(1)
    y = torch.cat([y] * copies, -1)
    norm = unit.norm
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return rprelu(y + skip, unit.act)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("tau", "groups"), FACTORS)
@pytest.mark.parametrize(("channels", "ratio"), [(64, 8), (32, 4)])
@torch.no_grad()
def test_the_feed_forward_designs_written_out(design: str, tau: int, groups: int, channels: int, ratio: int) -> None:
    torch.manual_seed(0)
    ffn = filled(FeedForward(channels, ratio, Expansion(tau, groups), design, "ffn"))
    wide, hidden = tau * groups, ratio * channels
    h = torch.randn(2, 9, channels * (wide if design == "F3" else 1), dtype=torch.float64)
    # (what enters, groups and copies of the first layer, copies of the second)
    entry, first, out_copies = {
        "F1": (h, (1, wide), tau),
        "F2": (torch.cat([h] * wide, -1), (groups, tau * tau * groups), tau),
        "F3": (h, (groups, tau * tau * groups), tau * tau * groups),
    }[design]
    skip = torch.cat([h] * (wide * hidden // h.shape[-1]), -1)
    middle = written_unit(ffn.expand, entry, skip, *first)
    assert middle.shape[-1] == wide * hidden
    pooled = F.avg_pool1d(middle, wide * hidden // h.shape[-1])
    want = written_unit(ffn.shrink, middle, pooled, groups, out_copies) * ffn.scale.alpha + ffn.scale.move
    torch.testing.assert_close(ffn(h), want, rtol=1e-12, atol=1e-12)
    weights = sum(m.weight.numel() for m in ffn.modules() if isinstance(m, BinaryLinear))
    assert weights == 2 * ratio * channels**2


@pytest.mark.parametrize(("tau", "groups"), FACTORS)
@pytest.mark.parametrize(("channels", "height", "reduction"), [(64, 8, 4), (128, 4, 1)])
@torch.no_grad()
def test_attention_written_out(tau: int, groups: int, channels: int, height: int, reduction: int) -> None:
    torch.manual_seed(1)
    attention = filled(BinaryAttention(channels, height, reduction, Expansion(tau, groups), "attention"))
    wide, copies = tau * groups, tau * tau * groups
    h = torch.randn(2, height**2, wide * channels, dtype=torch.float64)
    seen = h
    if reduction > 1:
        grid = h.view(2, height // reduction, reduction, height // reduction, reduction, -1)
        pooled = grid.mean((2, 4)).flatten(1, 2)
        seen = written_unit(attention.reduce, pooled, pooled, groups, copies)
    q = written_unit(attention.query, h, h, groups, copies)
    k, v = (written_unit(unit, seen, seen, groups, copies) for unit in (attention.key, attention.value))
    contexts = []
    for head in range(channels // 64):
        part = slice(64 * head, 64 * head + 64)
        signs = [
            torch.where(x[..., part] + sign.shift[part] >= 0, 1.0, -1.0).double()
            for x, sign in ((q, attention.sign_q), (k, attention.sign_k), (v, attention.sign_v))
        ]
        p = F.softmax(torch.einsum("bic,bjc->bij", signs[0], signs[1]) / 8, -1)
        c = attention.softmax.threshold
        contexts.append(torch.where(p > c / 2, c, 0.0) @ signs[2])
    context = torch.cat([torch.cat(contexts, -1)] * wide, -1)
    norm = attention.norm
    context = (context - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias

    def up(x: Tensor) -> Tensor:
        small = x.view(2, height // reduction, height // reduction, -1)
        return small.repeat_interleave(reduction, 1).repeat_interleave(reduction, 2).flatten(1, 2)

    o = rprelu(context + q + up(k) + up(v), attention.act)
    want = written_unit(attention.project, o, o, groups, copies) * attention.scale.alpha + attention.scale.move
    torch.testing.assert_close(attention(h), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("height", [4, 7])
def test_pooling_branches_against_a_convolution(height: int) -> None:
    pools = filled(PoolBranches(6, height))
    h = torch.randn(2, height**2, 6, dtype=torch.float64)
    x = h.transpose(1, 2).reshape(2, 6, height, height)
    want = torch.zeros_like(h)
    for name, (kh, kw) in {"h3": (3, 1), "w3": (1, 3), "h5": (5, 1), "w5": (1, 5)}.items():
        kernel = torch.full((6, 1, kh, kw), 1 / (kh * kw), dtype=torch.float64)
        y = F.conv2d(x, kernel, padding=(kh // 2, kw // 2), groups=6).flatten(2).transpose(1, 2)
        want += y * pools.scales[name].alpha + pools.scales[name].move
    torch.testing.assert_close(pools(h), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("design", DESIGNS)
def test_without_expansion_every_design_is_the_plain_network(design: str) -> None:
    plain, es = network("binaryvit_micro"), network(MICRO, design=design, tau=1)
    assert list(plain.state_dict()) == list(es.state_dict())
    outs = [model(images()) for model in (plain, es)]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), es.named_parameters(), strict=True):
        assert torch.equal(p, q[1]) and p.grad is not None and torch.equal(p.grad, q[1].grad), key
    assert torch.equal(plain.eval()(images()), es.eval()(images()))


@cache
def cost(name: str, **options: Any) -> Count:
    size = 64 if "micro" in name else 224
    with torch.device("meta"):
        return count(create_model(name, **{"image_size": size, **options}), (3, size, size))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("tau", "groups"), FACTORS[1:])
def test_expansion_costs_nothing(design: str, tau: int, groups: int) -> None:
    base = cost("binaryvit_micro", image_size=64)
    check_costs(base, cost(MICRO, design=design, tau=tau, groups=groups))


def test_expansion_costs_the_whole_network_nothing() -> None:
    check_costs(cost("binaryvit", image_size=224), cost("es_binaryvit", design="F1", groups=2))


def test_expansion_costs_nothing_where_merges_are_real() -> None:
    base = cost(MICRO, tau=1, groups=1, real_merges=True)
    assert base.flops > cost("binaryvit_micro", image_size=64).flops
    check_costs(base, cost(MICRO, design="F3", groups=2, real_merges=True))


def check_costs(base: Count, wide: Count) -> None:
    assert (wide.bops, wide.flops, wide.matmul_bops) == (base.bops, base.flops, base.matmul_bops)
    assert wide.binary_params == base.binary_params and wide.params > base.params


@pytest.mark.parametrize(
    ("name", "size", "stages"),
    [
        ("binaryvit", 224, ((64, 3, 8), (128, 4, 4), (256, 8, 1), (512, 4, 1))),
        ("binaryvit_micro", 64, ((64, 1, 2), (128, 2, 1), (256, 1, 1))),
    ],
)
def test_attention_products_counted_by_hand(name: str, size: int, stages: tuple[tuple[int, int, int], ...]) -> None:
    result = cost(name, image_size=size)
    want = 0
    for i, (width, depth, reduction) in enumerate(stages):
        tokens = (size // 4 // 2**i) ** 2
        want += 2 * depth * tokens * (tokens // reduction**2) * width
    assert result.matmul_bops == want
    assert result.ops_with_matmuls == result.bops / 64 + result.flops + want / 64


@pytest.mark.parametrize(
    ("name", "options"), [("binaryvit_micro", {}), (MICRO, {"tau": 1, "groups": 1, "real_merges": True})]
)
def test_the_plain_networks_train(name: str, options: dict[str, Any]) -> None:
    check_gradients(network(name, **options))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("real_merges", [False, True])
def test_every_design_trains(design: str, real_merges: bool) -> None:
    check_gradients(network(MICRO, design=design, real_merges=real_merges, groups=2, in_channels=1), channels=1)


def check_gradients(model: nn.Module, channels: int = 3) -> None:
    out = model(images(channels=channels))
    assert out.shape == (2, 7) and not torch.equal(out[0], out[1])
    out.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    for key in (
        "stem.conv.weight",
        "fc.weight",
        "layers.0.attention.query.linear.weight",
        "layers.2.ffn.expand.act.slope",
    ):
        assert model.get_parameter(key).grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("options", "size"),
    [
        *(({"design": d, "groups": g}, s) for d in DESIGNS for g, s in ((1, 32), (2, 48))),
        ({"real_merges": True}, 32),
    ],
)
def test_packs_bit_for_bit(options: dict[str, Any], size: int) -> None:
    model = stir(network(MICRO, image_size=size, **options))
    packed = agree(model, images(2, size))
    units = sum(isinstance(m, TokenUnit) for m in model.modules())
    assert sum(isinstance(m, PackedTokenUnit) for m in packed.modules()) == units == 4 * 6 + 1
    assert not any(isinstance(m, TokenUnit | BinaryLinear) for m in packed.modules())
    assert model_spec(packed) == model_spec(model) and model_spec(model).input_size == (3, size, size)
    assert count(packed, (3, size, size)).ops == count(model, (3, size, size)).ops
    with torch.no_grad():
        assert model(images(0, size)).shape == packed(images(0, size)).shape == (0, 7)


@torch.no_grad()
def test_evaluation_under_autocast_keeps_the_sums_exact() -> None:
    model = stir(network(MICRO))
    unit = model.layers[1].ffn.shrink
    x = 3 * unit.linear.weight.sign()[None]  # near the largest sums, of which bfloat16 does not hold all
    want = unit.linear(x, scaled=False)
    assert not torch.equal(want.bfloat16(), want)
    heads = torch.randn(1, 2, 4, 514).sign()
    products = heads @ heads.mT
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unit.linear(x, scaled=False), want)
        assert torch.equal(model.layers[0].attention.mix(heads, heads.mT), products)


@torch.no_grad()
def test_synchronised_norms_compute_the_same() -> None:
    model = stir(network(MICRO))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert not any(isinstance(m, nn.BatchNorm1d) for m in synced.modules())
    assert torch.equal(synced(images()), model(images()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 100}, "image_size must be a multiple of 32, got 100"),
        ({"design": "F4"}, "design must be one of F1, F2, F3, got 'F4'"),
        ({"tau": 3}, r"layer layers\.0\.ffn\.\w+ has width \d+, which tau=3"),
        ({"tau": 3, "design": "F3"}, r"layer layers\.0\.attention has width 64, which tau=3"),
        ({"num_classes": 0}, "num_classes must be a whole number"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network(**options)


@pytest.mark.parametrize("size", [(32, 64), (96, 96)])
def test_images_of_another_size_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"must have the image_size 64 .* got \({size[0]}, {size[1]}\) pixels"):
        network("binaryvit_micro")(torch.zeros(1, 3, *size))


def test_pack_refuses_a_token_unit_without_statistics() -> None:
    unit = TokenUnit(8, 4)
    unit.norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(InputError, match="must be a BatchNorm with running statistics, or none"):
        pack_(unit)
