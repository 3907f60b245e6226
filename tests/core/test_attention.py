"""Binary attention: against torch's own where nothing is binary, by closed forms where it is, packed as latent."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from esbnn_core import BinaryConfig, InputError, binarize_, bit_training_report, pack_, train_on_bits_
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.products import BinaryProducts, Products
from esbnn_core.training.latent_clip import attach_latent_clip
from esbnn_core.transforms.real_weights import real_weights_
from esbnn_core.units import AttentionStyle, BinaryMultiheadAttention


def whole(name: str, module: nn.Module) -> bool:
    return True


def without_signs(model: nn.Module) -> nn.Module:
    """The binary network as a real one: real weights, no scale, no sign of the input."""
    for _, layer in binary_layers(real_weights_(model)):
        layer.sign = nn.Identity()
    return model


def as_numbers(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -1.5)


CALLS: list[dict[str, Any]] = [
    {"need_weights": False},
    {"average_attn_weights": False},
    {"padding": torch.bool, "need_weights": False},
    {"padding": torch.bool, "mask": 2},
    {"padding": torch.float, "mask": 3, "average_attn_weights": False},
    {"mask": 3, "need_weights": False},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: "-".join(map(str, call)))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "bias": False},
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 6, "vdim": 10},
        {"kdim": 6, "vdim": 10, "add_bias_kv": True, "bias": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_without_signs_it_is_torchs_attention(options: dict[str, Any], call: dict[str, Any]) -> None:
    torch.manual_seed(0)
    for (length, keys, batch), heads in itertools.product([(5, 7, 3), (1, 4, 2)], (1, 4)):
        attention = nn.MultiheadAttention(8, heads, **options).eval()
        for parameter in attention.parameters():  # biases start at zero
            nn.init.normal_(parameter, std=0.3)
        binary = without_signs(binarize_(copy.deepcopy(attention), BinaryConfig(filter_fn=whole)))
        assert isinstance(binary, BinaryMultiheadAttention) and not binary.training
        first = options.get("batch_first", False)
        sizes = ((length, 8), (keys, options.get("kdim", 8)), (keys, options.get("vdim", 8)))
        inputs = [torch.randn((batch, n, c) if first else (n, batch, c)) for n, c in sizes]
        given = {key: value for key, value in call.items() if key not in ("padding", "mask")}
        numbers = call.get("padding") is torch.float
        if "padding" in call:
            padding = torch.arange(keys).expand(batch, keys) >= keys - 2
            given["key_padding_mask"] = as_numbers(padding) if numbers else padding
        if "mask" in call:
            mask = torch.rand((length, keys) if call["mask"] == 2 else (batch * heads, length, keys)) > 0.7
            mask[..., 0] = False
            given["attn_mask"] = as_numbers(mask) if numbers else mask
        want, got = attention(*inputs, **given), binary(*inputs, **given)
        torch.testing.assert_close(got, want)
        if not {"mask", "padding"} & call.keys():
            single = [x[0] if first else x[:, 0] for x in inputs]
            torch.testing.assert_close(binary(*single, **given), attention(*single, **given))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    attention = BinaryMultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"attn_mask": torch.zeros(5, 4)}, r"attn_mask must have shape \(5, 5\) or \(4, 5, 5\), got \(5, 4\)"),
        ({"attn_mask": torch.zeros(2, 5, 5)}, r"attn_mask must have shape"),
        ({"key_padding_mask": torch.zeros(5)}, r"key_padding_mask must have shape \(2, 5\), got \(1, 5\)"),
        ({"attn_mask": torch.zeros(5, 5, dtype=torch.uint8)}, r"attn_mask must be of bool or of a floating type"),
        ({"is_causal": True}, r"attn_mask must be given where is_causal"),
    ]
    for options, message in refused:
        with pytest.raises(InputError, match=message):
            attention(x, x, x, **options)
    nested = torch.nested.nested_tensor([x[0], x[1, :3]])
    with pytest.raises(InputError, match="must be a padded tensor"):
        attention(nested, nested, nested)
    with pytest.raises(InputError, match="embed_dim must be a multiple of num_heads=3"):
        BinaryMultiheadAttention(8, 3)
    with pytest.raises(InputError, match="products must be one of"):
        AttentionStyle(products="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"attention 0 adds a key of zeros \(add_zero_attn\)"):
        zeros = nn.Sequential(nn.MultiheadAttention(8, 2, add_zero_attn=True))
        binarize_(zeros, BinaryConfig(filter_fn=whole, products="binary"))
    with pytest.raises(InputError, match="attention 0 has a in_proj_weight that is computed"):
        pruned = prune.random_unstructured(nn.MultiheadAttention(8, 2), "in_proj_weight", 0.5)
        binarize_(nn.Sequential(pruned), BinaryConfig(filter_fn=whole))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("heads", "length", "keys"), [(1, 3, 9), (3, 8, 5)])
def test_binary_products_by_their_formula(heads: int, length: int, keys: int, cosine: bool) -> None:
    torch.manual_seed(0)
    products = BinaryProducts(4 * heads, heads, cosine)
    for sign in (products.sign_q, products.sign_k, products.sign_v):
        nn.init.normal_(sign.shift)
    with torch.no_grad():
        products.softmax.threshold.fill_(1.3)
    q, k, v, bias = (torch.randn(2, n, 4 * heads) for n in (length, keys, keys, 1))
    bias = torch.randn(2, 1, length, keys)
    want = torch.empty(2, length, 4 * heads, dtype=torch.float64)
    level, scale = 1.3 / keys, torch.full((heads, 1, 1), 0.7) if cosine else None
    for head in range(heads):
        part = slice(4 * head, 4 * head + 4)
        signs = [
            torch.where(x[..., part] + sign.shift[part] >= 0, 1.0, -1.0).double()
            for x, sign in ((q, products.sign_q), (k, products.sign_k), (v, products.sign_v))
        ]
        scores = signs[0] @ signs[1].transpose(1, 2) * (0.7 / 4 if cosine else 0.5) + bias[:, 0].double()
        ones = torch.softmax(scores, -1) > level / 2
        want[..., part] = level * (ones.double() @ signs[2])
    for training in (True, False):
        got, p = products.train(training)(q, k, v, scale, bias, need_weights=True)
        torch.testing.assert_close(got, want.float())
        assert p.shape == (2, heads, length, keys) and set((p / p.max()).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("keys", [5, 400])
def test_queries_and_keys_get_gradients_from_the_start(keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, keys, 16).mul_(0.5).requires_grad_() for _ in range(3))
    out, _ = BinaryProducts(16, 2)(q, k, v)
    (out * torch.randn_like(out)).sum().backward()
    for x in (q, k, v):
        assert x.grad is not None and (x.grad != 0).float().mean() > 0.5


def tiny_vit(products: Products, layers: int = 2, width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=layers, num_heads=2, hidden_dim=width, mlp_dim=2 * width, num_classes=4
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return binarize_(model, BinaryConfig(products=products))


@pytest.mark.parametrize("products", ["real", "binary"])
@pytest.mark.parametrize(("layers", "width"), [(2, 32), (1, 40)])
def test_a_vit_is_binary_in_every_mode_and_packed_and_exported(products: Products, layers: int, width: int) -> None:
    model = tiny_vit(products, layers, width).eval()
    found = [name for name, _ in binary_layers(model)]
    assert len(found) == 6 * layers and "encoder.layers.encoder_layer_0.self_attention.q_proj" in found
    x = torch.randn(3, 3, 32, 32)
    want = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), want)
        packed = pack_(copy.deepcopy(model))
        assert torch.equal(packed(x), want) and want.std() > 0
        if layers == 1:  # more of them are the same again
            exported = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
            assert torch.equal(exported(x[:2]), packed(x[:2]))
    with torch.inference_mode():
        assert torch.equal(model(x), want)
    torch.testing.assert_close(model.train()(x), want)


def test_the_copied_weights_are_the_real_ones() -> None:
    real = nn.MultiheadAttention(8, 2, add_bias_kv=True).to(torch.float64)
    real.in_proj_weight.requires_grad_(False)
    new = binarize_(real, BinaryConfig(filter_fn=whole))
    assert torch.equal(torch.cat([new.q_proj.weight, new.k_proj.weight, new.v_proj.weight]), real.in_proj_weight)
    assert new.out_proj.weight is real.out_proj.weight and new.bias_k is real.bias_k
    assert not new.k_proj.weight.requires_grad and new.k_proj.bias.requires_grad
    assert {parameter.dtype for parameter in new.parameters()} == {torch.float64}


def colours(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with a patch in one channel and a patch in another, at random places; the class is their two signs."""
    x, bits = torch.randn(n, 3, 32, 32, generator=g), torch.randint(0, 2, (n, 2), generator=g)
    for image, pair in zip(x, bits, strict=True):
        for channel, place in enumerate(torch.randperm(16, generator=g)[:2].tolist()):
            row, column = 8 * (place // 4), 8 * (place % 4)
            image[channel, row : row + 8, column : column + 8] += 8.0 * float(pair[channel]) - 4.0
    return x, 2 * bits[:, 0] + bits[:, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("products", "steps"), [("real", 40), ("binary", 70)])
def test_a_vit_learns_on_bits(products: Products, steps: int) -> None:
    model = train_on_bits_(tiny_vit(products, layers=1))
    assert not any(bit_training_report(model).values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attach_latent_clip(optimizer, model)
    g = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x, y = colours(32, g)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 1.0 < 1.2 < sum(losses[:10]) / 10
