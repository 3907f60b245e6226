"""Networks with hooks, computed weights, lazy layers or no values: the verbs keep what they mean, or name the layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from esbnn_core import ESConfig, InputError, binarize_, create_model, expand_, load_checkpoint, pack_, save_checkpoint
from esbnn_core.checkpoint.official import load_official, to_official
from esbnn_core.layers.base import binary_layers

HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "forward hook": lambda layer: layer.register_forward_hook(lambda module, inputs, output: 2 * output),
    "forward pre hook": lambda layer: layer.register_forward_pre_hook(lambda module, inputs: (-inputs[0],)),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda module, inputs, outputs: None),
}
VERBS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "binarize_": binarize_,
    "expand_": lambda model: expand_(model, ESConfig(tau=2)),
    "pack_": pack_,
}


def network(binary: bool) -> nn.Sequential:
    """Layers 3 and 6 are those that become binary."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (3, 16, 16):
        layers += [nn.Conv2d(width, 16, 3, bias=False), nn.BatchNorm2d(16), nn.PReLU() if binary else nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return binarize_(model).eval() if binary else model.eval()


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_layer_whose_hook_would_be_lost_is_named(verb: str, kind: str) -> None:
    model = network(binary=verb != "binarize_")
    HOOKS[kind](model[3])
    before, state = repr(model), {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"^(layer )?3 has a (weight that is computed|\w+ (pre )?hook)"):
        VERBS[verb](model)
    assert repr(model) == before and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_hooks_of_layers_that_stay_are_kept() -> None:
    x = torch.randn(2, 3, 9, 9)
    model = network(binary=True)
    seen: list[int] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(len(seen)) or 2 * output)
    prune.l1_unstructured(model[-1], "weight", amount=0.5)
    want = model(x)
    assert torch.equal(pack_(model)(x), want) and len(seen) == 2


def test_parametrized_binary_layers_pack_to_what_they_compute() -> None:
    x = torch.randn(2, 3, 9, 9)
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal):
        model = network(binary=True)
        for _, layer in binary_layers(model):
            wrap(layer)
        model.eval()
        want = model(x)
        assert torch.equal(pack_(model)(x), want)


def test_lazy_layers_are_named_before_anything_changes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LazyConv2d(8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(InputError, match="layer 2 is a LazyConv2d, which has no shape yet: run the network once"):
        binarize_(model)
    assert isinstance(model[1], nn.ReLU)
    x = torch.randn(2, 3, 9, 9)
    model(x)
    assert [name for name, _ in binary_layers(binarize_(model))] == ["2"]
    assert model(x).shape == (2, 5)


def test_a_network_without_values_is_refused_by_what_needs_them(tmp_path: Path) -> None:
    real = create_model("recu_resnet20", num_classes=3)
    with torch.device("meta"):
        model = create_model("recu_resnet20", num_classes=3)
        plain = network(binary=False)
        assert [name for name, _ in binary_layers(binarize_(plain))] == ["3", "6"]
    save_checkpoint(real, tmp_path / "weights.safetensors")
    for call in (
        lambda: pack_(model),
        lambda: save_checkpoint(model, tmp_path / "none.safetensors"),
        lambda: load_checkpoint(tmp_path / "weights.safetensors", model),
        lambda: load_official(model, to_official(real)),
    ):
        with pytest.raises(InputError, match="is on the meta device and has no values"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
