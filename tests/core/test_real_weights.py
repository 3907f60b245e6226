"""Real weights on binary activations: plain convolutions in numbers, the binary network's tensors in files."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbnn_core import (
    BinaryConfig,
    InputError,
    binarize_,
    count,
    create_model,
    load_checkpoint,
    pack_,
    pack_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from esbnn_core.layers import BinaryConv2d, BinaryLinear, Expansion
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import PlainSign
from esbnn_core.training.latent_clip import clip_latent_weights_
from esbnn_core.transforms.real_weights import real_weights_
from esbnn_core.units.conv import BinaryUnit

SMALL = ["reactnet_resnet8", "es_reactnet_resnet8", "bireal_resnet18"]


@pytest.mark.parametrize(("c", "o", "k", "stride", "groups"), [(4, 6, 3, 1, 1), (6, 8, 1, 2, 2), (3, 5, 5, 2, 1)])
@pytest.mark.parametrize("quantizer", ["absmean", "sign"])
def test_a_layer_convolves_signs_with_the_weight_itself(
    c: int, o: int, k: int, stride: int, groups: int, quantizer: str
) -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(c, o, k, stride, k // 2, groups=groups, weight_quantizer=quantizer).double()
    model = real_weights_(nn.Sequential(layer))
    x = torch.randn(2, c, 9, 8, dtype=torch.float64)
    want = F.conv2d(torch.where(x >= 0, 1.0, -1.0).double(), layer.weight, None, stride, k // 2, 1, groups)
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-15)
    grad = torch.randn_like(want)
    (got,) = torch.autograd.grad(model(x), layer.weight, grad)
    (expected,) = torch.autograd.grad(want, layer.weight, grad)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_a_linear_layer_too() -> None:
    layer = BinaryLinear(5, 3, weight_quantizer="absmean_centred").double()
    model = real_weights_(nn.Sequential(layer))
    x = torch.randn(4, 5, dtype=torch.float64)
    bias = layer.bias if layer.bias is not None else 0
    torch.testing.assert_close(model(x), torch.where(x >= 0, 1.0, -1.0).double() @ layer.weight.T + bias)


@pytest.mark.parametrize("tau", [1, 2])
def test_evaluation_folds_to_the_numbers_of_its_batchnorm(tau: int) -> None:
    torch.manual_seed(1)
    unit = real_weights_(BinaryUnit(8, 8, expansion=Expansion(tau), shortcut=nn.Identity())).double()
    x = torch.randn(3, 8 * tau, 6, 6, dtype=torch.float64)
    for _ in range(3):
        unit.train()(x)
    folded = unit.eval()(x)
    y = unit.norm(unit.tile(unit.conv(x)))  # the unfolded order of training, with the running statistics
    torch.testing.assert_close(folded, unit.act(y + x), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_names_stay_and_the_file_remembers(tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    model = create_model(name, num_classes=7)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert real_weights_(model) is model
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
    save_checkpoint(model, tmp_path / "real.safetensors")
    assert read_checkpoint(tmp_path / "real.safetensors").weights == "real"
    x = torch.randn(2, 3, 32, 32)
    again = load_checkpoint(tmp_path / "real.safetensors")
    with torch.no_grad():
        want = model.eval()(x)
        assert torch.equal(again(x), want)
        # handed over: the same tensors, binary numbers
        binary = load_checkpoint(tmp_path / "real.safetensors", create_model(name, num_classes=7))
        assert all(
            torch.equal(a, b) for a, b in zip(binary.state_dict().values(), model.state_dict().values(), strict=True)
        )
        assert not torch.allclose(binary(x), want)
    save_checkpoint(binary, tmp_path / "binary.safetensors")
    assert read_checkpoint(tmp_path / "binary.safetensors").weights == "binary"
    pack_(binary)


def test_a_fresh_start_is_that_of_torchs_convolutions() -> None:
    model = create_model("reactnet_resnet18")
    kept = {name: layer.weight.detach().clone() for name, layer in binary_layers(model)}
    real_weights_(model)
    assert all(torch.equal(layer.weight, kept[name]) for name, layer in binary_layers(model))
    torch.manual_seed(0)
    real_weights_(model, fresh=True)
    for _, layer in binary_layers(model):
        o, i, *k = layer.weight.shape
        own = nn.Conv2d(i, o, k[0]).weight  # type: ignore[arg-type]
        assert layer.weight.abs().max().item() == pytest.approx(own.abs().max().item(), rel=2e-3)
        assert layer.weight.std().item() == pytest.approx(own.std().item(), rel=0.02)


def test_packing_says_that_step_2_is_missing(tmp_path: Path) -> None:
    model = real_weights_(create_model("reactnet_resnet8"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    words = "layer stages.layer1.0 has weights that are not in sign mode, they are real numbers, step 1"
    with pytest.raises(InputError, match=words):
        pack_(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    save_checkpoint(model, tmp_path / "real.safetensors")
    with pytest.raises(InputError, match=words):
        pack_checkpoint(tmp_path / "real.safetensors", tmp_path / "packed.safetensors")
    assert not (tmp_path / "packed.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recu_resnet20", r"stages\.layer1\.0\.conv must have no state .* got ReCU with tau:"),
        ("bnext_tiny", r"core\.conv must have no state .* got Temperature with temperature:"),
    ],
)
def test_a_quantizer_with_a_state_is_refused(name: str, words: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    kinds = [type(layer.quantizer) for _, layer in binary_layers(model)]
    with pytest.raises(InputError, match=words):
        real_weights_(model)
    assert [type(layer.quantizer) for _, layer in binary_layers(model)] == kinds
    with pytest.raises(InputError, match="found no binary layer"):
        real_weights_(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("name", ["reactnet_resnet18", "es_reactnet_resnet18"])
def test_real_weights_cost_real_operations(name: str) -> None:
    with torch.device("meta"):
        binary = count(create_model(name), (3, 224, 224))
        real = count(real_weights_(create_model(name)), (3, 224, 224))
    assert (real.bops, real.binary_params) == (0, 0)
    assert real.flops == binary.flops + binary.bops and real.params == binary.params
    assert real.packed_bytes == real.latent_bytes == binary.latent_bytes


def test_the_clip_of_latent_weights_leaves_real_ones_alone() -> None:
    layer = BinaryConv2d(2, 2, 3, weight_quantizer=PlainSign(latent_clip=0.5))
    with torch.no_grad():
        layer.weight.fill_(2.0)
    assert clip_latent_weights_(real_weights_(nn.Sequential(layer)))[0].weight.min() == 2.0  # type: ignore[index]


def test_a_binarized_network_trains_its_first_step_as_well(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 4)
        )
        return binarize_(net, BinaryConfig())

    model = real_weights_(build())
    save_checkpoint(model, tmp_path / "w.safetensors")
    handed = load_checkpoint(tmp_path / "w.safetensors", build())
    assert torch.equal(handed[1].weight, model[1].weight)  # type: ignore[index]
