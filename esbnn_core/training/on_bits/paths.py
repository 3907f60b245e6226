"""Which units and layers can train on bits now, and their training forward on bits.

A path is the value of a unit's or layer's attribute `training_path`. Called with the module and its input, it returns
the output, or None where the plain forward has to serve; `reason` returns why.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core import kernels
from esbnn_core.kernels import Geometry
from esbnn_core.kernels.cpu.narrow import mention
from esbnn_core.kernels.norm import NormCall
from esbnn_core.kernels.training import steps_of
from esbnn_core.kernels.transposed import TransposedGeometry
from esbnn_core.layers import BinaryConv2d, BinaryConvTranspose2d, BinaryLinear, RPReLU, Tile
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.forwards import has_hooks, kind_of, runs_as
from esbnn_core.layers.quantizers import RealWeights, WeightQuantizer
from esbnn_core.training.on_bits.function import UnitOnBits
from esbnn_core.training.on_bits.out_type import OutType
from esbnn_core.training.on_bits.plan import Plan
from esbnn_core.training.on_bits.product import AnyGeometry, geometry_of, pack, sums_of
from esbnn_core.training.on_bits.rows import rows_of, work_dtype
from esbnn_core.training.on_bits.signs import SignRule, sign_rule
from esbnn_core.training.on_bits.statistics import batch_statistics, prepared, reducer, track_
from esbnn_core.training.on_bits.tail import Kind
from esbnn_core.training.on_bits.weights import Weight, output_scale, weight_of
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.folding import folds, is_batch_norm


@dataclass(frozen=True)
class TrainOnBits:
    """How train_on_bits_ trains.

    Attributes:
        keep_sums: keep the exact sums for backward in 16 bits (32 where a filter has 32768 weights or more) and do not
            convolve the bits again. Costs 2 bytes for each output of the un-tiled filters, saves one binary
            convolution. None: on a CPU, where time is dearer than memory; not on a GPU.
        gradient_dtype: torch.bfloat16 rounds the gradient of a float32 layer's sums to 8 bits before its two
            convolutions of backward, the dearest part of a step, which processors with instructions for it and GPUs do
            in half the time or less; other processors convolve the rounded numbers in float32. The +-1 of the other
            operands are exact in both. What the convolutions return is rounded once more. The forward, its statistics,
            the tail's gradients and the shortcut's stay as they are.
            None: nothing is rounded.
    """

    keep_sums: bool | None = None
    gradient_dtype: torch.dtype | None = None

    def keeps_sums(self, device: torch.device) -> bool:
        """Whether sums on that device are kept."""
        return device.type == "cpu" if self.keep_sums is None else self.keep_sums

    def products_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """dtype of backward's convolutions of a layer whose plain ones are of `dtype`."""
        if self.gradient_dtype is None or dtype != torch.float32:
            return dtype
        if device.type == "cpu":
            mention(
                self.gradient_dtype,
                "gradients rounded to {} are no faster here than in float32",
                "leave gradient_dtype out (train_on_bits: true)",
            )
        return self.gradient_dtype


class SignMode:
    """Whether a quantizer is in sign mode, asked again only after its buffers have changed.

    Asking reads a temperature, which on a GPU waits for all work before it.
    """

    def __init__(self) -> None:
        self.seen: tuple[WeightQuantizer, list[tuple[Tensor, int]], bool] | None = None

    def __call__(self, quantizer: WeightQuantizer) -> bool:
        buffers = list(quantizer.buffers())
        if self.seen is not None and not any(b.is_inference() for b in buffers):
            known, versions, answer = self.seen
            same = known is quantizer and len(versions) == len(buffers)
            if same and all(b is t and b._version == v for b, (t, v) in zip(buffers, versions, strict=True)):
                return answer
        answer = quantizer.sign_mode()
        self.seen = None
        if not any(b.is_inference() for b in buffers):
            self.seen = (quantizer, [(b, b._version) for b in buffers], answer)
        return answer

    def __getstate__(self) -> dict[str, Any]:
        return {"seen": None}  # a copy has to ask again


def layer_reason(layer: BinaryLayer, signs: SignMode) -> str:
    """Why the layer's product cannot run on bits now, "" where it can."""
    if isinstance(layer.quantizer, RealWeights):
        return "its weights are real"
    if not signs(layer.quantizer):
        return "its weights are not in sign mode, " + layer.quantizer.to_sign_mode.split(":")[0]
    if layer.sign is not None and has_hooks(layer.sign):
        return "its sign has a hook, which would not be called"
    rule = sign_rule(layer.sign)
    if rule is None:
        return f"its sign must be a Sign or RSign, got {type(layer.sign).__name__}"
    if isinstance(layer, BinaryLinear) and rule.standardised:
        return "the poly2_unit_variance estimator divides its input by a deviation over tokens"
    if not isinstance(layer, BinaryConv2d | BinaryConvTranspose2d | BinaryLinear):
        return f"it must be a BinaryConv2d, BinaryConvTranspose2d or BinaryLinear, got {type(layer).__name__}"
    return ""


def unit_reason(unit: BinaryUnit) -> str:
    """Why the steps after the unit's convolution cannot run with it, "" where they can."""
    if type(unit.conv) is not BinaryConv2d or unit.conv.bias is not None:
        bias = "" if unit.conv.bias is None else " with a bias"
        return f"its convolution must be a BinaryConv2d without bias, got {type(unit.conv).__name__}{bias}"
    if not (type(unit.tile) is nn.Identity or (isinstance(unit.tile, Tile) and unit.tile.dim == 1)):
        return f"its tile must be a Tile over the channels, got {type(unit.tile).__name__}"
    if not (runs_as(unit.norm, nn.Identity) or is_batch_norm(unit.norm)):
        return f"its norm must be a BatchNorm or none, got {kind_of(unit.norm)}"
    if type(unit.inner_act) not in (nn.Identity, nn.PReLU):
        return f"its inner activation must be a PReLU or none, got {type(unit.inner_act).__name__}"
    if type(unit.act) not in (nn.Identity, nn.PReLU, nn.Hardtanh, RPReLU):
        return f"its activation must be RPReLU, PReLU, Hardtanh or none, got {type(unit.act).__name__}"
    inside = (unit.conv, unit.conv.sign, unit.tile, unit.norm, unit.inner_act, unit.act)
    for module in inside:
        if "forward" in vars(module):
            return f"its {type(module).__name__} has a forward of its own, which would not be called"
        if has_hooks(module):
            return f"its {type(module).__name__} has a hook, which would not be called"
    return ""


def _narrow(x: Tensor, layer: BinaryLayer) -> torch.dtype | None:
    """dtype of the plain layer's product; None where that would refuse its operands, or x is empty or not floating."""
    kind = x.device.type
    weight = layer.weight.dtype
    if not x.is_floating_point() or x.numel() == 0:
        return None
    if weight != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    shift = getattr(layer.sign, "shift", None)
    return weight if weight == (x.dtype if shift is None else torch.promote_types(x.dtype, shift.dtype)) else None


class Operands(NamedTuple):
    """The operands of a product and its sums.

    Attributes:
        sums: (N, O, H', W') int32.
        bits: of x, or None.
        weight_bits: as kernels.ConvCall.weight.
        lanes: of weight_bits, as kernels.ConvCall.lanes, for backward's sums too.
        shift: of x, or None.
        weight: whose signs are the weight.
    """

    sums: Tensor
    bits: Tensor | None
    weight_bits: Tensor
    lanes: Tensor | None
    shift: Tensor | None
    weight: Weight


def _operands(layer: BinaryLayer, x: Tensor, geometry: AnyGeometry, keeps_input: bool) -> Operands:
    """What both paths start from, with bits where backward does not read the values of x."""
    weight = weight_of(layer)
    shift = getattr(layer.sign, "shift", None)
    with torch.no_grad():
        weight_bits = kernels.pack_sign(weight.values, None, 1, 1)
        bits = None if keeps_input else pack(geometry, x, shift)
        # a transposed convolution makes filters of its own of the weight
        lanes = kernels.lanes_of(weight_bits, geometry.groups) if isinstance(geometry, Geometry) else None
        sums = sums_of(geometry, x, shift, bits, weight_bits, lanes)
    return Operands(sums, bits, weight_bits, lanes, shift, weight)


class LayerPath:
    """Training forward of a bare layer: its sums of +-1 products from bits."""

    def __init__(self, config: TrainOnBits) -> None:
        self.config, self.signs = config, SignMode()

    def reason(self, layer: BinaryLayer) -> str:
        """Why the plain layer serves, "" where it does not."""
        return layer_reason(layer, self.signs)

    def __call__(self, layer: BinaryLayer, x: Tensor, output_padding: tuple[int, int] | None = None) -> Tensor | None:
        """The sums in the dtype that the plain product would have, or None.

        `output_padding` is that of a call of a transposed convolution.
        """
        narrow = _narrow(x, layer)
        if narrow is None or self.reason(layer):
            return None
        geometry, shape = geometry_of(layer), x.shape
        if isinstance(geometry, TransposedGeometry) and output_padding is not None:
            geometry = geometry._replace(output_padding=output_padding)
        if isinstance(layer, BinaryLinear):
            x = x.reshape(1, 1, -1, shape[-1]).permute(0, 3, 1, 2)  # one long row of pixels
        rule = _rule(layer)
        sums, bits, weight_bits, lanes, shift, weight = _operands(layer, x, geometry, rule.reads_values)
        plan = Plan(
            *(geometry, rule, 1, True, None, 0, None, False, "none", (-1.0, 1.0)),
            *(self.config.products_dtype(narrow, x.device), narrow, self.config.keeps_sums(x.device), weight.rule),
        )
        operands = (x, shift, weight.values)
        y: Tensor = UnitOnBits.apply(plan, sums, bits, weight_bits, lanes, None, None, *operands, None, *[None] * 7)
        if isinstance(layer, BinaryLinear):
            return y.permute(0, 2, 3, 1).reshape(*shape[:-1], y.shape[1])
        return y


def _rule(layer: BinaryLayer) -> SignRule:
    rule = sign_rule(layer.sign)
    assert rule is not None
    return rule


class UnitPath:
    """Training forward of a whole BinaryUnit on bits: sums, statistics of the batch, then all later steps."""

    def __init__(self, config: TrainOnBits) -> None:
        self.config, self.signs, self.out_type = config, SignMode(), OutType()

    def reason(self, unit: BinaryUnit) -> str:
        """Why the unit's plain forward serves (its convolution may still run on bits), "" where it does not."""
        return layer_reason(unit.conv, self.signs) or unit_reason(unit)

    def __call__(self, unit: BinaryUnit, x: Tensor) -> Tensor | None:
        """y (N, C', H', W') channels_last in the plain unit's dtype, or None."""
        narrow = _narrow(x, unit.conv)
        if narrow is None or self.reason(unit):
            return None
        conv, norm, copies = unit.conv, unit.norm, unit.copies
        geometry, out_channels = geometry_of(conv), unit.copies * conv.out_channels
        rule = _rule(conv)
        identity, (act, limits, ends) = type(unit.shortcut) is nn.Identity, _activation(unit.act, out_channels)
        # read by the estimator, or by the activation after an identity
        keeps_input = rule.reads_values or (identity and act != "none")
        sums, bits, weight_bits, lanes, shift, weight = _operands(conv, x, geometry, keeps_input)
        inner = _slopes(unit.inner_act, out_channels)
        scale, found, rows, reduce, eps = output_scale(conv), None, 0, None, None
        made: Tensor | None = None
        gamma: Tensor | None
        beta: Tensor | None
        if folds(norm):
            gamma, beta = unit.affine()
            narrow_out = [t.dtype for t in (gamma, beta) if t is not None]
            gamma = torch.ones(out_channels, dtype=weight.values.dtype, device=x.device) if gamma is None else gamma
            scale = None
        else:
            assert isinstance(norm, _BatchNorm)
            reduce = reducer(norm)
            if reduce is None and sums.numel() == sums.shape[1]:
                return None  # one value for each channel, which the norm itself refuses
            gamma, beta, eps = norm.weight, norm.bias, norm.eps
            largest, work = weight.values[0].numel(), work_dtype(narrow, x.dtype)
            with torch.no_grad():
                flat = rows_of(sums)
                if reduce is None and work == torch.float32:
                    found = steps_of(sums).moments(flat, largest)
                if found is not None:
                    rows = flat.shape[0]
                    call = NormCall(found, rows, copies, eps, scale, gamma)
                    made = prepared(norm, call, ends[0] if inner is None else None)
                if made is None:
                    by_torch = batch_statistics(flat, reduce, work, largest, found)
                    track_(norm, by_torch, scale, copies)
                    found, rows = torch.stack([by_torch.mean, by_torch.var]), by_torch.rows
            narrow_out = [] if scale is None else [scale.dtype]
        shape = (x.shape[0], out_channels, *sums.shape[2:])
        identity = identity and x.shape == shape
        # a residual may broadcast, as in the plain sum
        residual = None if identity or unit.shortcut is None else unit.shortcut(x).expand(shape)
        out = self.out_type(unit, [narrow, *narrow_out], x if identity else residual)
        plan = Plan(
            *(geometry, rule, copies, False, eps, rows, reduce, identity, act, limits),
            *(self.config.products_dtype(narrow, x.device), out, self.config.keeps_sums(x.device), weight.rule),
        )
        operands, vectors = (x, shift, weight.values), (scale, gamma, beta, inner, *ends)
        y: Tensor = UnitOnBits.apply(plan, sums, bits, weight_bits, lanes, found, made, *operands, residual, *vectors)
        return y


def _slopes(act: nn.Module, channels: int) -> Tensor | None:
    """A PReLU's slopes, one for each channel (a shared one is repeated), None for another module."""
    return act.weight.expand(channels) if isinstance(act, nn.PReLU) else None


def _activation(
    act: nn.Module, channels: int
) -> tuple[Kind, tuple[float, float], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Kind, limits and (shift_in, slope, shift_out) of a unit's activation."""
    none = (-1.0, 1.0)
    if isinstance(act, RPReLU):
        return "prelu", none, (act.shift_in, act.slope, act.shift_out)
    if isinstance(act, nn.PReLU):
        return "prelu", none, (None, _slopes(act, channels), None)
    if isinstance(act, nn.Hardtanh):
        return "hardtanh", (act.min_val, act.max_val), (None, None, None)
    return "none", none, (None, None, None)
