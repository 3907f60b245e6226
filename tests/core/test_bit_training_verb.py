"""The verb train_on_bits_: what is kept for backward, names and copies, who is left out and why."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import (
    InputError,
    TrainOnBits,
    bit_training_report,
    create_model,
    kernels,
    pack_,
    train_on_bits_,
    train_plain_,
)
from esbnn_core.layers import BinaryLinear, RSign
from esbnn_core.transforms.real_weights import real_weights_
from esbnn_core.units import BinaryUnit, UnitStyle
from tests.helpers.bit_training import compare, on_bits, run, unit_of
from tests.helpers.units import build, randn, relative


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of a forward, without parameters and buffers, every storage once."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = model(x)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("images", "channels", "size"), [(4, 64, 12), (3, 40, 9)])
def test_what_is_kept_is_the_input_or_its_bits(images: int, channels: int, size: int) -> None:
    x = torch.randn(images, channels, size, size, requires_grad=True)
    pixels, words = images * size * size, -(-channels // 32)
    real = pixels * channels * 4
    bits = pixels * words * 4
    weight_bits = channels * 9 * words * 4
    lanes = kernels.lanes_of(torch.zeros(channels, 3, 3, words, dtype=torch.int32), 1)
    # exact moments in int64; centre, factor and offset in float32; the weight's bits in the order of the kernels
    numbers = 2 * channels * 8 + 3 * channels * 4 + (0 if lanes is None else 4 * lanes.numel())
    reactnet = BinaryUnit(channels, channels, shortcut=nn.Identity())
    # x alone, read by poly2 and by the activation behind the residual; and the detached alpha
    again = TrainOnBits(keep_sums=False)
    assert kept_bytes(on_bits(reactnet, again), x) == real + weight_bits + numbers + 4 * channels
    sums = pixels * channels * 2
    for config in (None, TrainOnBits(keep_sums=True)):  # on a CPU by default
        kept = kept_bytes(on_bits(reactnet, config), x)
        assert kept == real + sums + weight_bits + numbers + 4 * channels
    # plain: x + shift, its signs, what the norm reads, what the PReLU reads
    assert kept_bytes(reactnet, x) > 4 * real
    clip = BinaryUnit(
        channels, channels, style=UnitStyle(ste="clip", weight_quantizer="sign", act="none"), inner_act=True
    )
    # signs and mask, one bit each
    assert kept_bytes(on_bits(clip, again), x) == 2 * bits + weight_bits + numbers
    assert kept_bytes(clip, x) > 4 * real > 60 * bits
    bare = UnitStyle(ste="identity", weight_quantizer="sign", act="none", shift=False)
    identity = BinaryUnit(channels, channels, style=bare)
    assert kept_bytes(on_bits(identity, again), x) == bits + weight_bits + numbers


def test_names_evaluation_copies_files_and_packing_are_as_before() -> None:
    torch.manual_seed(0)
    plain = create_model("es_reactnet_resnet8").train()
    twin = on_bits(plain)
    assert list(twin.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        first = copy.deepcopy(twin)(x)
        assert torch.equal(pickle.loads(pickle.dumps(twin))(x), first)
        assert relative(first, copy.deepcopy(plain)(x)) < 1e-5
        twin.load_state_dict(plain.state_dict())
        want = plain.eval()(x)
        assert torch.equal(twin.eval()(x), want)
        assert set(bit_training_report(copy.deepcopy(twin)).values()) == {""}
        assert torch.equal(pack_(copy.deepcopy(twin))(x), want)
    train_plain_(twin.train())
    assert set(bit_training_report(twin).values()) == {"train_on_bits_ was not called"}
    unit = next(m for m in twin.modules() if isinstance(m, BinaryUnit))
    assert unit(torch.randn(2, 32, 4, 4)).grad_fn.name() != "UnitOnBitsBackward"


def test_a_temperature_that_is_not_annealed_trains_plain_until_it_is() -> None:
    unit = build({"weight_quantizer": "temperature", "ste": "clip"}).train()
    plain, x = copy.deepcopy(unit), randn(2, 8, 5, 5)
    with pytest.warns(UserWarning, match=r"1 binary units.*the first is : .*not annealed below 1e-07 \(esbnn_core"):
        train_on_bits_(unit)
    compare(run(unit, x), run(plain, x), 0.0)
    asked: list[int] = []
    quantizer = unit.conv.quantizer
    original = quantizer.sign_mode
    quantizer.sign_mode = lambda: asked.append(1) or original()  # type: ignore[method-assign,func-returns-value]
    unit(x), unit(x)
    assert asked == []  # asked at the first call above: a temperature on a GPU is not read at every step
    quantizer.temperature.fill_(1e-9)
    assert unit(x).grad_fn.name() == "UnitOnBitsBackward" and asked == [1]
    quantizer.temperature = torch.ones(1).double()
    assert unit(x).grad_fn.name() != "UnitOnBitsBackward"
    real_weights_(nn.Sequential(reactnet := build({})))
    assert "its weights are real" in bit_training_report(reactnet).values() or reactnet.training_path is None


def test_who_is_left_out_is_named_and_still_right() -> None:
    class OwnSign(RSign):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2)

    units = nn.ModuleDict({name: build({}) for name in ("norm", "act", "sign", "hook", "fine")}).train()
    units["norm"].norm = nn.GroupNorm(2, 8).double()
    units["act"].act = nn.Softsign()
    units["sign"].conv.sign = OwnSign(8).double()
    with pytest.warns(UserWarning, match="3 binary units or layers train on plain layers for now, the first is norm"):
        train_on_bits_(units)
    units["hook"].norm.register_forward_hook(lambda *_: None)
    report = bit_training_report(units)
    assert report["norm"].startswith(
        "only its convolution runs on bits, its norm must be a BatchNorm or none, got GroupNorm"
    )
    assert report["act"].startswith("only its convolution runs on bits, its act") and "got Softsign" in report["act"]
    assert report["sign"].startswith("its sign must be a Sign or RSign, got OwnSign") and report["fine"] == ""
    assert report["hook"].startswith("only its convolution runs on bits, its BatchNorm2d has a hook")
    units["tent"] = BinaryLinear(5, 6, activation="tent").double()
    with pytest.warns(UserWarning, match="5 binary units or layers train on plain layers"):
        train_on_bits_(units)
    assert bit_training_report(units)["tent"].startswith("the poly2_unit_variance estimator divides its input")
    x = randn(2, 8, 5, 5)
    for unit in units.values():
        plain = train_plain_(copy.deepcopy(unit))
        compare(run(unit, x), run(plain, x), 1e-12)


def test_mistakes_end_with_a_sentence() -> None:
    with pytest.raises(InputError, match="found no binary layer"):
        train_on_bits_(nn.Conv2d(3, 3, 3))
    model = real_weights_(create_model("reactnet_resnet8"))
    with pytest.raises(InputError, match=r"layer stages\.layer1\.0\.conv must have binary weights to train on bits"):
        train_on_bits_(model)
    assert all(getattr(m, "training_path", None) is None for m in model.modules())
    twin = on_bits(create_model("reactnet_resnet8"))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        on_bits(unit_of({"padding": 0}))(randn(1, 8, 3, 3))
    real_weights_(twin)
    assert set(bit_training_report(twin).values()) == {"its weights are real"}
    with pytest.raises(RuntimeError, match="once_differentiable"):
        unit = on_bits(unit_of({}))
        x = randn(2, 8, 5, 5).requires_grad_()
        (grad,) = torch.autograd.grad(unit(x).square().sum(), x, create_graph=True)
        grad.sum().backward()
