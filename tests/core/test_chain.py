"""Packed units that hand packed signs on: same numbers, fewer packings; and the real parts in bfloat16."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import create_model, kernels, pack_
from esbnn_core.layers import Expansion
from esbnn_core.packed.chain import PackedChain
from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.row import Row
from esbnn_core.packed.units import PackedUnit
from esbnn_core.transforms.pack import pack_layout_
from esbnn_core.units import Act, BinaryUnit, UnitStyle
from tests.helpers import paths
from tests.helpers.networks import narrow, stir


@pytest.fixture(params=("naive", "avx512-vpopcntdq", "portable"))
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    paths.force(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, bool]]]:
    """(whether bits came in, whether bits went out) of every convolution that a packed layer runs, one by one."""
    monkeypatch.setattr(Row, "run", lambda *_: None)
    calls: list[tuple[bool, bool]] = []
    run = kernels.binary_conv2d

    def record(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        y, bits = run(x, *rest)
        calls.append((x.dtype == torch.int32, bits.numel() > 0))
        return y, bits

    monkeypatch.setattr(kernels, "binary_conv2d", record)
    yield calls


def unchained(model: nn.Module) -> nn.Module:
    """A copy whose chains are plain rows again."""
    model = copy.deepcopy(model)
    for module in reversed(list(model.modules())):  # the inner ones first
        for name, child in list(module.named_children()):
            if isinstance(child, PackedChain):
                setattr(module, name, nn.Sequential(OrderedDict(child.named_children())))
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "handed"),
    [
        ("reactnet_resnet8", {}, 5),
        ("es_reactnet_resnet8", {"tau": 2}, 5),
        ("es_reactnet_resnet8", {"tau": 1, "groups": 2}, 5),
        ("reactnet_resnet18", {}, 15),
        ("bireal_resnet18", {}, 15),
        ("recu_resnet20", {}, 0),  # its hardtanh stands between the sum and the next sign
    ],
)
@torch.no_grad()
def test_signs_go_from_unit_to_unit(
    name: str, options: dict[str, int], handed: int, path: str, seen: list[tuple[bool, bool]]
) -> None:
    with narrow():
        latent = stir(create_model(name, num_classes=10, **options), 0)
    size = 64 if "18" in name else 32
    for x in (images(2, 3, size, size), images(1, 3, size, size).to(memory_format=torch.channels_last)):
        want = latent(x)
        packed = pack_(copy.deepcopy(latent))
        seen.clear()
        assert torch.equal(packed(x), want)
        assert sum(given for given, _ in seen) == sum(given for _, given in seen) == handed
        # the first unit packs for itself, each later one takes what the one before made
        units = [given for given, _ in seen if len(seen) == handed + 1]
        assert not units or units == [False] + [True] * handed
        assert torch.equal(unchained(packed)(x), want)


@torch.no_grad()
def test_a_chain_keeps_names_and_follows_loading(seen: list[tuple[bool, bool]]) -> None:
    one, other = (stir(create_model("es_reactnet_resnet8"), seed) for seed in (0, 1))
    plain = unchained(pack_(copy.deepcopy(one)))
    one, other = pack_(one), pack_layout_(other)
    assert list(one.state_dict()) == list(plain.state_dict()) == list(other.state_dict())
    other.load_state_dict(one.state_dict())
    x = images(2, 3, 32, 32)
    seen.clear()
    # the shifts that a unit packs for are the next unit's own, also after loading and copying
    assert torch.equal(copy.deepcopy(other)(x), plain(x))
    assert sum(given for given, _ in seen) == 5


@torch.no_grad()
def test_a_unit_whose_activation_stays_real_hands_nothing_on(seen: list[tuple[bool, bool]]) -> None:
    acts: list[Act] = ["rprelu", "none", "prelu", "rprelu", "hardtanh", "rprelu"]
    units = [BinaryUnit(8, 8, style=UnitStyle(act=act), expansion=Expansion(2), shortcut=nn.Identity()) for act in acts]
    latent = stir(nn.Sequential(*units), 0)
    x = images(2, 16, 7, 7)
    packed = pack_(copy.deepcopy(latent))
    assert torch.equal(packed(x), latent(x))
    assert [given for given, _ in seen] == [False, True, True, False, True, False]


class Between(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * -1.5


@torch.no_grad()
def test_what_stands_between_two_units_is_run(seen: list[tuple[bool, bool]]) -> None:
    units = [stir(create_model("reactnet_resnet8"), seed).stages.layer1 for seed in (0, 1)]
    latent = nn.Sequential(units[0], Between(), units[1], Between()).eval()
    x = images(2, 16, 9, 7)
    packed = pack_(copy.deepcopy(latent))
    assert torch.equal(packed(x), latent(x))
    # in each pair the second takes the first one's signs; behind the module in between they are packed anew
    assert [given for given, _ in seen] == [False, True, False, True]


@torch.no_grad()
def test_hooks_of_units_still_see_their_outputs() -> None:
    packed = pack_(stir(create_model("reactnet_resnet8"), 0))
    outputs = []
    for module in packed.modules():
        if isinstance(module, PackedUnit):
            module.register_forward_hook(lambda _, __, out: outputs.append(out))
    packed(images(1, 3, 32, 32))
    maps = [out[0] if isinstance(out, tuple) else out for out in outputs]
    assert [m.shape[1] for m in maps] == [16, 16, 32, 32, 64, 64]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("reactnet_resnet8", torch.bfloat16),
        ("reactnet_resnet8", torch.float16),
        ("es_reactnet_resnet8", torch.bfloat16),
        ("es_reactnet_resnet8", torch.float16),
        ("recu_resnet20", torch.bfloat16),
        ("binaryvit_micro", torch.bfloat16),
    ],
)
@torch.no_grad()
def test_half_precision_touches_the_real_parts_alone(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_classes": 10}
    packed = pack_(stir(create_model(name, **options), 0))
    exact = {key: value.clone() for key, value in packed.state_dict().items()}
    layers = {key for key, m in packed.named_modules() if isinstance(m, PackedLayer)}
    narrow = copy.deepcopy(packed).to(dtype)
    for key, value in narrow.state_dict().items():
        owner, _, last = key.rpartition(".")
        kept = owner in layers and last in ("scale", "bias", "shift", "prelu", "rprelu", "weight_bits")
        assert value.dtype == (exact[key].dtype if kept or not exact[key].is_floating_point() else dtype), key
        if kept:
            assert torch.equal(value, exact[key])
    x = images(2, 3, 32, 32)
    results = {}
    for path in ("naive", "portable"):
        paths.force(path, monkeypatch)
        results[path] = narrow(x.to(dtype))
        assert results[path].dtype == dtype and results[path].isfinite().all()
    first, *rest = results.values()
    assert all(torch.equal(first, other) for other in rest)


@torch.no_grad()
def test_wide_logits_move_little_in_bfloat16() -> None:
    # one unit: its stream is rounded to 8 bits, so that y is off by a last place of bfloat16 and no more
    unit = pack_(stir(create_model("reactnet_resnet8"), 0).stages.layer1[0])
    x = images(4, 16, 12, 12).bfloat16()
    wide, narrow = unit(x.float()), unit.bfloat16()(x)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, wide.bfloat16())
