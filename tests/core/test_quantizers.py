"""sign, its estimators and the weight quantizers, against closed forms and plain autograd in float64."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import BinaryConfig, InputError, binarize_
from esbnn_core.layers import BinaryConv2d, BinaryConvTranspose2d, BinaryLinear, Sign
from esbnn_core.layers.quantizers import (
    STE,
    WEIGHT_QUANTIZERS,
    PlainSign,
    ReCU,
    Temperature,
    hard_sign,
    make_weight_quantizer,
    sign_ste,
)

EDGES = [-7.0, -1.5000001, -1.5, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 1.5, 1.5000001, 7.0]
DERIVATIVES = {
    ("poly2", 1.0): lambda t: 2 + 2 * t if -1 <= t < 0 else 2 - 2 * t if 0 <= t < 1 else 0.0,
    ("clip", 1.0): lambda t: 1.0 if -1 <= t <= 1 else 0.0,
    ("clip", 1.5): lambda t: 1.0 if -1.5 <= t <= 1.5 else 0.0,
    ("identity", 1.0): lambda t: 1.0,
    ("poly2_unit_variance", 1.0): lambda t: max(0.0, 2 - 2 * abs(t)),
    ("tent", 1.0): lambda t: max(0.0, 2 - 2 * abs(t)),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_sign(x: Tensor) -> Tensor:
    return torch.where(x.detach() >= 0, 1.0, -1.0).to(x.dtype)


def through(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value` forward, the surrogate's gradient backward."""
    return value + surrogate - surrogate.detach()


def close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == want.shape
    assert want.abs().max() > 0
    assert ((got - want).abs().max() / want.abs().max()).item() <= tolerance


@pytest.mark.parametrize(("ste", "clip"), DERIVATIVES)
def test_sign_and_its_derivative(ste: str, clip: float) -> None:
    derivative = DERIVATIVES[ste, clip]
    for x in (torch.tensor(EDGES, dtype=torch.float64), randn(400), randn(3, 5, 7, seed=1)):
        x.requires_grad_()
        y = sign_ste(x, ste, clip)  # type: ignore[arg-type]
        assert y.detach().flatten().tolist() == [1.0 if t >= 0 else -1.0 for t in x.flatten().tolist()]
        upstream = randn(*x.shape, seed=2)
        y.backward(upstream)
        slope = torch.tensor([derivative(t) for t in x.flatten().tolist()], dtype=torch.float64).view(x.shape)
        assert (x.grad - upstream * slope).abs().max().item() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zero_is_plus_one_and_nan_minus_one(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1e-7, -1e-7, math.inf, -math.inf, math.nan], dtype=dtype)
    want = torch.tensor([1, 1, 1, -1, 1, -1, -1], dtype=dtype)
    assert torch.equal(hard_sign(x), want)
    assert torch.equal(sign_ste(x), want)
    assert hard_sign(x).dtype == dtype
    assert x[2] == torch.tensor(1e-7, dtype=dtype) and not hard_sign(x.requires_grad_()).requires_grad


def test_unknown_names_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"ste must be one of .*got 'swish'"):
        sign_ste(torch.zeros(2), "swish")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"weight_quantizer must be one of sign, absmean, .*got 'ternary'"):
        make_weight_quantizer("ternary")
    with pytest.raises(InputError, match="'zeros'"):
        BinaryConv2d(4, 4, 3, latent_init="zeros")  # type: ignore[arg-type]


def test_every_name_makes_a_quantizer_of_its_own() -> None:
    for name, make in WEIGHT_QUANTIZERS.items():
        first, second = make_weight_quantizer(name), make_weight_quantizer(make)
        assert first is not second and repr(first) == repr(second)
        assert make_weight_quantizer(first) is first


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 6), (1, 2, 9)])
@pytest.mark.parametrize("ste", ["poly2_unit_variance", "tent"])
def test_unit_variance_in_training_divides_by_the_sample_deviation(ste: STE, shape: tuple[int, ...]) -> None:
    sign = Sign(ste)
    assert sign.ste == "poly2_unit_variance"
    x = (0.4 * randn(*shape) + 0.1).requires_grad_()
    upstream = randn(*shape, seed=3)
    y = sign(x)
    y.backward(upstream)
    assert torch.equal(y.detach(), plain_sign(x))

    other = x.detach().clone().requires_grad_()
    count = other[0].numel()
    rows = []
    for sample in other:
        variance = ((sample - sample.sum() / count) ** 2).sum() / (count - 1)
        a = sample / (variance + 1e-5).sqrt()
        inner = torch.where(a < 0, a * a + 2 * a, 2 * a - a * a)  # its derivative is 2 - 2|a|
        rows.append(torch.where(a.abs() < 1, inner, plain_sign(a)))
    (torch.stack(rows) * upstream).sum().backward()
    close(x.grad, other.grad)

    x.grad = None
    sign.eval()(x).backward(upstream)
    close(x.grad, upstream * (2 - 2 * x.detach().abs()).clamp(min=0))


def effective(kind: str, weight: Tensor) -> Tensor:
    """alpha * sign(W) as one tensor with its gradients, from the table of quantizers."""
    rows = weight.view(len(weight), -1)
    alpha = (rows.abs().sum(1) / rows.shape[1]).view(-1, *[1] * (weight.dim() - 1))
    if kind == "absmean_attached":
        return alpha * through(plain_sign(weight), weight)
    if kind == "absmean_layer":
        return (rows.abs().sum() / rows.numel()).detach() * through(plain_sign(weight), weight)
    if kind == "libra":
        centred = rows - rows.sum(1, keepdim=True) / rows.shape[1]
        w = centred / ((centred**2).sum(1, keepdim=True) / (rows.shape[1] - 1)).sqrt()
        power = torch.tensor([2.0 ** round(math.log2(row.abs().mean())) for row in w.detach()]).double()
        return (power[:, None] * through(plain_sign(w), w.clamp(-1, 1))).view(weight.shape)
    if kind == "absmean_centred":
        centred = (rows - rows.sum(1, keepdim=True) / rows.shape[1]).view(weight.shape)
        return alpha.detach() * through(plain_sign(centred), centred.clamp(-1, 1))
    signs = through(plain_sign(weight), weight.clamp(-1, 1))
    return signs if kind == "sign" else alpha.detach() * signs


@pytest.mark.parametrize("kind", ["sign", "absmean", "absmean_attached", "absmean_centred", "absmean_layer", "libra"])
@pytest.mark.parametrize("sizes", [(4, 6, 3, 1), (3, 5, 2, 2)])
def test_layers_equal_a_convolution_with_the_scaled_sign(kind: str, sizes: tuple[int, int, int, int]) -> None:
    c_in, c_out, kernel, stride = sizes
    torch.manual_seed(0)
    layer = BinaryConv2d(c_in, c_out, kernel, stride, 1, weight_quantizer=kind, activation=None).double()
    layer.weight = nn.Parameter(0.8 * randn(*layer.weight.shape) + 0.2)
    x = plain_sign(randn(2, c_in, 7, 6, seed=4)).requires_grad_()
    upstream = randn(*layer(x).shape, seed=5)
    layer(x).backward(upstream)

    weight = layer.weight.detach().clone().requires_grad_()
    other = x.detach().clone().requires_grad_()
    out = F.conv2d(other, effective(kind, weight), None, stride, 1)
    out.backward(upstream)
    close(layer(x).detach(), out.detach())
    close(layer.weight.grad, weight.grad)
    close(x.grad, other.grad)


def test_libras_scale_is_a_power_of_two_that_follows_the_shape_of_a_filter_alone() -> None:
    quantizer = make_weight_quantizer("libra")
    rare = torch.zeros(400, dtype=torch.float64)
    rare[:2] = torch.tensor([5.0, -5.0])  # a mean magnitude of 1/14 of the deviation
    weight = torch.stack([randn(400), 1e-3 * randn(400, seed=1) + 7, rare, torch.ones(400)]).view(4, 4, 10, 10)
    assert quantizer.scale(weight).tolist() == [1.0, 1.0, 0.0625, 0.0]  # type: ignore[union-attr]
    balance = quantizer.binary(weight).flatten(1).mean(1)
    assert balance[:2].abs().max() < 0.2  # the mean of 7 is taken off


@pytest.mark.parametrize("kind", ["absmean", "absmean_centred", "absmean_layer", "libra"])
def test_linear_rows_are_scaled_and_centred_each_on_its_own(kind: str) -> None:
    layer = BinaryLinear(9, 4, weight_quantizer=kind, activation=None).double()
    layer.weight = nn.Parameter(randn(4, 9) + torch.arange(4.0).view(-1, 1))
    x = plain_sign(randn(3, 5, 9, seed=1))
    upstream = randn(3, 5, 4, seed=2)
    layer(x).backward(upstream)
    weight = layer.weight.detach().clone().requires_grad_()
    out = x @ effective(kind, weight).T
    out.backward(upstream)
    close(layer(x).detach(), out.detach())
    close(layer.weight.grad, weight.grad)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1e-8])
def test_temperature_clamps_and_hands_the_gradient_on(temperature: float) -> None:
    quantizer = Temperature().double()
    quantizer.temperature.fill_(temperature)
    weight = torch.cat([torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.5]).double(), randn(40)]).requires_grad_()
    out = quantizer.binary(weight)
    if temperature < 1e-7:
        assert torch.equal(out, plain_sign(weight)) and quantizer.sign_mode()
    else:
        assert torch.equal(out, (weight.detach() / temperature).clamp(-1, 1)) and not quantizer.sign_mode()
    upstream = randn(46, seed=1)
    out.backward(upstream)
    assert torch.equal(weight.grad, upstream)
    assert quantizer.scale(weight) is None


def test_temperature_schedule_reaches_sign_mode_at_epoch_153() -> None:
    quantizer = Temperature()
    reached = []
    for _ in range(160):
        reached.append(quantizer.sign_mode())
        quantizer.temperature.mul_(0.9)
    assert reached.index(True) == 153 and all(reached[153:])
    for epoch, annealed in ((152, False), (153, True)):
        quantizer.temperature.fill_(0.9**epoch)
        assert quantizer.sign_mode() is annealed
        tiny = torch.tensor([1e-9, -1e-9])
        assert (quantizer.binary(tiny).abs() == 1).all().item() is annealed


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (6, 5, 1, 1), (3, 20)])
@pytest.mark.parametrize("tau", [0.85, 0.9, 0.99])
def test_recu_standardises_and_rectifies(shape: tuple[int, ...], tau: float) -> None:
    quantizer = ReCU().double()
    quantizer.tau.fill_(tau)
    weight = (0.3 * randn(*shape) + 0.1).requires_grad_()
    upstream = randn(*shape, seed=1)
    out = quantizer.binary(weight)
    out.backward(upstream)

    other = weight.detach().clone().requires_grad_()
    rows = other.view(shape[0], -1)
    centred = rows - rows.sum(1, keepdim=True) / rows.shape[1]
    variance = (centred**2).sum(1, keepdim=True) / (rows.shape[1] - 1)
    w1 = (centred * 2 * math.sqrt(2) / (variance + 1e-5).sqrt()).view(shape)
    w1.retain_grad()
    bound = -w1.detach().abs().mean().item() * math.log(2 - 2 * tau)
    through(plain_sign(w1), w1.clamp(-bound, bound)).backward(upstream)
    assert torch.equal(out.detach(), plain_sign(w1))
    close(weight.grad, other.grad)
    clamped = w1.detach().abs() > bound
    assert clamped.any().item() is (tau < 0.95)
    assert torch.equal(w1.grad, upstream * ~clamped)


def test_recu_with_tau_one_does_not_clamp() -> None:
    quantizer = ReCU().double()
    quantizer.tau.fill_(1.0)
    weight = randn(4, 3, 3, 3).requires_grad_()
    upstream = randn(4, 3, 3, 3, seed=1)
    quantizer.binary(weight).backward(upstream)
    other = weight.detach().clone().requires_grad_()
    rows = other.flatten(1)
    w1 = (rows - rows.mean(1, keepdim=True)) * math.sqrt(8) / (rows.var(1, keepdim=True) + 1e-5).sqrt()
    (w1.view(weight.shape) * upstream).sum().backward()
    close(weight.grad, other.grad)


@pytest.mark.parametrize("tau", [0.85, 0.99, 1.0])
def test_recu_evaluates_with_the_signs_it_trained_with(tau: float) -> None:
    quantizer = ReCU()
    quantizer.tau.fill_(tau)
    weight = (torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-2 + 3e-3).requires_grad_()
    trained = quantizer.binary(weight).detach()
    assert torch.equal(trained, quantizer.eval().binary(weight).detach())
    assert 0 < (trained != plain_sign(weight)).sum().item() < weight.numel()  # the filter mean matters


def test_learned_scale_multiplies_the_output() -> None:
    torch.manual_seed(0)
    for kind in ("recu", "absmean"):
        layer = BinaryConv2d(3, 5, 3, weight_quantizer=kind, activation=None, learned_scale=True, bias=True).double()
        assert ((layer.learned_scale >= 0) & (layer.learned_scale < 1)).all()
        x = plain_sign(randn(2, 3, 5, 5))
        total = F.conv2d(x, plain_sign(layer.quantizer.binary(layer.weight)))
        alpha = layer.weight.detach().abs().mean((1, 2, 3)) if kind == "absmean" else torch.ones(5).double()
        want = total * (alpha * layer.learned_scale.detach()).view(-1, 1, 1) + layer.bias.detach().view(-1, 1, 1)
        out = layer(x)
        close(out.detach(), want)
        upstream = randn(*out.shape, seed=1)
        out.backward(upstream)
        close(layer.learned_scale.grad, alpha * (upstream * total).sum((0, 2, 3)))
        assert torch.equal(layer(x, scaled=False).detach(), total)


def test_an_unbounded_latent_weight_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="latent_clip"):
        PlainSign("identity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PlainSign("identity", latent_clip=1.0).latent_clip == 1.0
        assert PlainSign("clip").latent_clip is None


@pytest.mark.parametrize("kind", WEIGHT_QUANTIZERS)
def test_a_filter_of_one_weight_is_its_sign_or_refused(kind: str) -> None:
    """One weight minus its mean is 0, whose sign is +1 whatever is learned: such quantizers ask for two or more."""
    makes: list[Callable[[int], nn.Module]] = [
        lambda width: BinaryConv2d(4 * width, 8, 1, groups=4, weight_quantizer=kind),
        lambda width: BinaryConv2d(4, 8, (1, width), groups=4, weight_quantizer=kind),
        lambda width: BinaryConvTranspose2d(4 * width, 8, 1, groups=4, weight_quantizer=kind),
        lambda width: BinaryLinear(width, 8, weight_quantizer=kind),
    ]
    for make in makes:
        with torch.no_grad():
            wide = make(2)
            assert len(wide.quantizer.binary(wide.filters).unique()) > 1
        if kind in ("recu", "libra", "absmean_centred"):
            with pytest.raises(InputError, match=r"filters must have more than one weight with \w+, which"):
                make(1)
        else:
            layer = make(1)
            with torch.no_grad():
                assert torch.equal(layer.quantizer.binary(layer.filters).sign(), layer.filters.sign())
    real = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    if kind in ("recu", "libra", "absmean_centred"):
        with pytest.raises(InputError, match="layer 1 cannot be binary, filters must have more than one weight"):
            binarize_(real, BinaryConfig(weight_quantizer=kind))
        assert type(real[2]) is nn.Conv2d
