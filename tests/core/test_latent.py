"""Latent-weight ResNets: the real stream of training by hand, and inference that holds nothing of it."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError, count, create_model, load_checkpoint, model_spec, pack_, save_checkpoint
from esbnn_core.checkpoint.network import pack_checkpoint
from esbnn_core.models import LatentResNet
from esbnn_core.packed.units import PackedUnit
from esbnn_core.transforms.expand import expand_
from esbnn_core.transforms.pack import pack_layout_
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.networks import narrow, stir

NAMES = ["latent_resnet18", "es_latent_resnet18"]


def made(name: str, seed: int = 0, **options: int) -> LatentResNet:
    torch.manual_seed(seed)
    model = create_model(name, num_classes=5, **options)
    assert isinstance(model, LatentResNet)
    return model


@pytest.fixture(autouse=True)
def quarter() -> Iterator[None]:
    """The networks of these tests are narrow, also those that a file names."""
    with narrow():
        yield


def image(side: int = 40) -> Tensor:
    return torch.randn(2, 3, side, side - 3, generator=torch.Generator().manual_seed(0))


def by_hand(model: LatentResNet, x: Tensor) -> Tensor:
    """Real logits in eval, from the tensors alone."""
    state = model.state_dict()

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return (y - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt() * weight.view(
            1, -1, 1, 1
        ) + bias.view(1, -1, 1, 1)

    def wide(y: Tensor, channels: int) -> Tensor:
        return y.repeat(1, channels // y.shape[1], 1, 1)

    tau, groups = (model_spec(model).options.get(key, 1) for key in ("tau", "groups"))
    x = model.stem(x)
    for index in range(16):
        stage, unit = divmod(index, 4)
        name = f"stages.layer{stage + 1}.{unit}"
        channels = tau * groups * 16 * 2**stage
        stride = 2 if unit == 0 and stage else 1
        y = F.conv2d(x.clamp(-1, 1), state[f"{name}.conv.weight"], None, stride, 1, 1, groups)
        y = norm(wide(y, channels), f"real.norms.{index}")
        if stride == 2:
            pooled = F.avg_pool2d(x, 2, ceil_mode=True)
            x = wide(F.conv2d(pooled, state[f"{name}.shortcut.1.weight"], groups=groups), channels)
            x = norm(x, f"real.shortcut_norms.{index}")
        shift, slope, after = (
            state[f"real.acts.{index}.{key}"].view(1, -1, 1, 1) for key in ("shift_in", "slope", "shift_out")
        )
        y = x + y + shift
        x = torch.where(y > 0, y, slope * y) + after
    return F.linear(x.mean((2, 3))[:, :128], state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(("name", "options"), [(NAMES[0], {}), (NAMES[1], {"tau": 2, "groups": 2})])
def test_the_real_stream_by_hand(name: str, options: dict[str, int]) -> None:
    model = stir(made(name, **options)).double()
    x = image().double()
    with torch.no_grad():
        binary, real = model.both(x)
        assert torch.equal(binary, model(x))
        torch.testing.assert_close(real, by_hand(model, x), rtol=1e-9, atol=1e-9)
    assert (binary - real).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_both_streams_train_the_same_weights(name: str) -> None:
    model = made(name)
    unit = next(m for m in model.modules() if isinstance(m, BinaryUnit))
    grads = []
    for stream in (0, 1):
        model.zero_grad()
        model.both(image())[stream].square().sum().backward()
        grads.append(unit.conv.weight.grad.clone())
        own = {
            key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
        }
        assert own >= {"stem", "stages", "fc"} and ("real" in own) is (stream == 1)
        # the shift of the sign, the norm and the slopes of the binary stream are its own
        assert (unit.norm.weight.grad is None) is (stream == 1)
        assert (unit.conv.sign.shift.grad is None) is (stream == 1)
    assert grads[0].abs().max() > 0 and grads[1].abs().max() > 0


def test_the_binary_stream_does_not_know_of_the_real_one() -> None:
    model = made(NAMES[0]).train()
    statistics = {key: value.clone() for key, value in model.real.state_dict().items()}
    model(image())
    assert all(torch.equal(value, statistics[key]) for key, value in model.real.state_dict().items())
    dropped = copy.deepcopy(model).drop_training_parts_()
    assert torch.equal(dropped(image()), model(image()))


@pytest.mark.parametrize(("depth", "options"), [(34, {}), (18, {"tau": 2, "groups": 2})])
def test_inference_costs_what_a_reactnet_costs(depth: int, options: dict[str, int]) -> None:
    with torch.device("meta"):
        base = count(create_model(f"reactnet_resnet{depth}"), (3, 224, 224))
        model = create_model(f"{'es_' if options else ''}latent_resnet{depth}", **options)
        twin = create_model(f"{'es_' if options else ''}reactnet_resnet{depth}", **options)
        result, want = count(model, (3, 224, 224)), count(twin, (3, 224, 224))
    assert (result.bops, result.flops, result.ops) == (base.bops, base.flops, base.ops)
    assert (result.params, result.packed_bytes) == (want.params, want.packed_bytes)
    assert result.latent_bytes > want.latent_bytes
    assert model.has_training_parts  # counting leaves the network alone


@pytest.mark.parametrize("name", NAMES)
def test_packing_drops_the_real_stream(name: str, tmp_path: Path) -> None:
    model = stir(made(name))
    x = image()
    want = model(x)
    source, target = tmp_path / "latent.safetensors", tmp_path / "packed.safetensors"
    save_checkpoint(model, source)
    again = load_checkpoint(source)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again.both(x), model.both(x), strict=True))
    pack_checkpoint(source, target)
    packed = pack_(copy.deepcopy(model))
    layout = pack_layout_(copy.deepcopy(model))
    loaded = load_checkpoint(target)
    into = load_checkpoint(target, made(name, seed=1))
    twin = pack_(create_model(name.replace("latent", "reactnet"), num_classes=5))
    for network in (packed, layout, loaded, into):
        assert isinstance(network, LatentResNet) and not network.has_training_parts
        assert network.state_dict().keys() == twin.state_dict().keys()
        assert sum(isinstance(m, PackedUnit) for m in network.modules()) == 16
    for network in (packed, loaded, into):
        assert torch.equal(network(x), want)
    with pytest.raises(InputError, match="no real stream any more"):
        packed.both(x)


def test_a_network_that_cannot_be_packed_keeps_its_real_stream() -> None:
    model = made(NAMES[0])
    with torch.no_grad():
        model.stages.layer4[3].conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"latent weights of layer stages\.layer4\.3 must be finite"):
        pack_(model)
    assert model.has_training_parts and len(model.both(image())) == 2


def test_expand_refuses_what_it_cannot_see() -> None:
    model = made(NAMES[0])
    with pytest.raises(InputError, match="LatentResNet has parts for training alone"):
        expand_(model)
    assert model.has_training_parts and isinstance(model.real, nn.Module)
    expanded = expand_(model.drop_training_parts_())
    twin = made(NAMES[1]).drop_training_parts_()
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (expanded, twin)]
    assert shapes[0] == shapes[1]
