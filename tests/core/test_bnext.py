"""BNext: the original's tensors, its switches, the mix that stays in [0, 1], the temperature that reaches sign mode."""

import pytest
import torch
from torch import nn

from esbnn_core import InputError, create_model, pack_
from esbnn_core.latent import attach_latent_clip
from esbnn_core.models.bnext import BNextUnit
from esbnn_core.models.trunk import Expansion
from esbnn_core.unit import binary_layers
from tests.core.networks import annealed


@pytest.mark.parametrize(("name", "parameters"), [("bnext_tiny", 30_862_236), ("es_bnext_tiny", 30_943_490)])
def test_tensors_are_as_many_as_in_the_original_files(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    state = model.state_dict()
    assert len(state) == 661 and sum(key.endswith("temperature") for key in state) == 62
    assert sum(p.numel() for p in model.parameters()) == parameters


def unit(kernel: int = 3, elm: bool = False, recoupling: bool = True, stride: int = 1) -> BNextUnit:
    torch.manual_seed(0)
    return BNextUnit(32, kernel, stride, elm, recoupling, Expansion(2, 2), "u")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("elm", [True, False])
@pytest.mark.parametrize("recoupling", [True, False])
def test_the_equations_of_a_unit(elm: bool, recoupling: bool, stride: int) -> None:
    layer = unit(elm=elm, recoupling=recoupling, stride=stride).train()
    x = torch.randn(2, 128, 6, 6)
    u = layer.core(x)
    pooled = nn.functional.avg_pool2d(x, 2) if stride == 2 else x
    shortcut = x if not elm else nn.functional.prelu(x, layer.act_in.weight)
    shortcut = nn.functional.avg_pool2d(shortcut, 2) if stride == 2 else shortcut
    if recoupling:
        u = layer.gate(0.5 * pooled + 0.5 * u) * u
    if elm:
        u = u * shortcut
    want = layer.norm2(u) + shortcut if elm or recoupling else u + shortcut
    torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_mix_is_kept_in_its_range_by_the_optimizer_hook(kernel: int) -> None:
    layer = unit(kernel)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    attach_latent_clip(optimizer, layer)
    with torch.no_grad():
        layer.scale.copy_(torch.linspace(-1, 2, 128).view(1, -1, 1, 1))
        layer.core.conv.weight.copy_(
            torch.linspace(-3, 3, layer.core.conv.weight.numel()).view_as(layer.core.conv.weight)
        )
    optimizer.step()
    assert (layer.scale.min().item(), layer.scale.max().item()) == (0.0, 1.0)
    assert layer.core.conv.weight.abs().max().item() == 1.5


def test_evaluation_clamps_the_mix_of_1x1_units_alone() -> None:
    x = torch.randn(1, 128, 5, 5)
    for kernel in (1, 3):
        layer = unit(kernel).eval()
        with torch.no_grad():
            layer.scale.fill_(1.0)
            at_one = layer(x)
            layer.scale.fill_(1.7)
            assert torch.equal(layer(x), at_one) == (kernel == 1)


def test_switches_change_the_network_and_its_parameters() -> None:
    with torch.device("meta"):
        sizes = {
            (elm, recoupling): len(create_model("es_bnext_tiny", elm=elm, info_recoupling=recoupling).state_dict())
            for elm in (True, False)
            for recoupling in (True, False)
        }
    # as many slopes with ELM (read) as without (unread); no gate, mix and, in FFNs, second norm without recoupling
    assert sizes[True, True] == sizes[False, True] == 661
    assert sizes[False, False] == 661 - 31 * (4 + 1 + 5) and sizes[True, False] == sizes[False, False] + 6 * 5


def test_a_network_that_is_not_annealed_is_not_packed() -> None:
    torch.manual_seed(0)
    model = create_model("bnext_tiny", num_classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"layer blocks\.1\.attention\.core has weights that are not in sign mode"):
        pack_(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(binary_layers(pack_(annealed(model)))) == 0
