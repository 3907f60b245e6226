"""start_apart_: where thresholds, and the signs of the norms' weights, of a binary network start.

The papers start every threshold at 0 and every weight of a norm at 1. Then all copies of an expanded map are equal at
first, and only noise tells them apart. A start of ours takes its place, in a plain network as in an expanded one. It
changes numbers alone: modules, names and costs stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import RSign, TimestepShift
from esbnn_core.layers.widths import thermometer_shift
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.token import TokenUnit

Over = Literal["copies", "channels", "drawn"]
Gains = Literal["ones", "alternate", "drawn"]


@dataclass(frozen=True)
class Start:
    """Where thresholds and the norms' weights start; the default is the papers' start.

    Attributes:
        thresholds: standard deviation s of the thresholds, 0 for none. A threshold t is a shift of -t.
        over: what s is spread over. "copies": the copies of a channel get s times evenly spaced normal quantiles
            (thermometer_shift, what copy_spread does); a plain network has no copies, and nothing changes. "channels":
            the channels of a layer get such quantiles, in an order that is drawn. "drawn": each threshold is drawn from
            N(0, s).
        deviations: whether s counts in standard deviations of the channel-wise input, each layer's own, which are
            measured on the first training batch.
        gains: factor of the weights of the norms behind the units. "alternate": unit l of those that have copies (in
            the order of the modules, from 0) gives copy q of n the sign (-1)^popcount(q AND (l mod m)), m the power of
            two from n on: over depth the copies become different signed sums. "drawn": signs that are drawn, but for
            each fourth unit, from the first on. In a plain network both change nothing but the sign of a filter.
        seed: of what is drawn.

    Raises:
        InputError: thresholds negative or not finite; an unknown word.
    """

    thresholds: float = 0.0
    over: Over = "copies"
    deviations: bool = False
    gains: Gains = "ones"
    seed: int = 0

    def __post_init__(self) -> None:
        s = self.thresholds
        if isinstance(s, bool) or not isinstance(s, int | float) or not 0 <= s < 1e9:
            raise InputError(f"thresholds of a start must be a finite number of at least 0, got {s!r}")
        check_choice("over", self.over, get_args(Over))
        check_choice("gains", self.gains, get_args(Gains))


def start_apart_(model: nn.Module, start: Start) -> nn.Module:
    """Let the thresholds and norm weights of a network start as `start` says, in place.

    Added to the shifts, multiplied into the weights: call it once, on a network that is not trained. With `deviations`
    the shifts change during the first forward in training mode, layer by layer, by what each layer is given; several
    processes use the mean of their variances.

    Args:
        model: built by create_model, binarize_ or expand_, of any task, on any device.

    Returns:
        the same model.

    Raises:
        InputError: thresholds without a sign that has a shift; gains without a unit that has a norm with weights.
    """
    draw = torch.Generator().manual_seed(start.seed)
    if start.thresholds:
        signs = [m for m in model.modules() if isinstance(m, RSign | TimestepShift)]
        if not signs:
            raise InputError(
                f"thresholds of a start must be 0 for a network whose signs have no shift, got {start.thresholds}: "
                f"choose one with RSign or BinaryConfig(shift=True)"
            )
        for sign in signs:
            _start_thresholds(sign, start, draw)
    if start.gains != "ones":
        units = list(_units_with_norm(model))
        if start.gains == "alternate":
            units = [(unit, weight) for unit, weight in units if unit.copies > 1] or units
        if not units:
            raise InputError(
                f"gains of a start must be 'ones' for a network without a unit that has a norm with weights, got "
                f"{start.gains!r}"
            )
        for number, (unit, weight) in enumerate(units):
            signs_of_unit = _signs_of(unit, weight, number, start.gains, draw)
            with torch.no_grad():
                weight.mul_(signs_of_unit.to(weight))
    return model


def _shifts(sign: RSign | TimestepShift) -> list[nn.Parameter]:
    found = list(sign.shifts) if isinstance(sign, TimestepShift) else [sign.shift]
    return [shift for shift in found if isinstance(shift, nn.Parameter)]


def _start_thresholds(sign: RSign | TimestepShift, start: Start, draw: torch.Generator) -> None:
    shifts = _shifts(sign)
    channels = shifts[0].numel()
    if start.over == "copies":
        apart = thermometer_shift(channels, sign.copies, start.thresholds)
        apart = apart if sign.order is None else apart[sign.order]
    elif start.over == "channels":
        # as many steps as channels
        apart = thermometer_shift(channels, channels, start.thresholds)[torch.randperm(channels, generator=draw)]
    else:
        apart = start.thresholds * torch.randn(channels, generator=draw)
    if start.deviations:
        _OnFirstBatch(sign, apart)
        return
    with torch.no_grad():
        for shift in shifts:
            shift.add_(apart.to(shift))


@dataclass
class _OnFirstBatch:
    """Adds `apart`, in deviations of what a sign is given, during the first forward in training mode."""

    sign: RSign | TimestepShift
    apart: Tensor
    handle: RemovableHandle = field(init=False)

    def __post_init__(self) -> None:
        self.handle = self.sign.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """torch's hook."""
        if not module.training:
            return
        with torch.no_grad():
            x = inputs[0].detach().float()
            dim = self.sign.channel_dim if isinstance(self.sign, RSign) else 1
            others = [d for d in range(x.dim()) if d != dim % x.dim()]
            # within a channel: means that differ between channels are no width of one map
            variance = x.var(others, correction=0).mean()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(variance)
                variance /= dist.get_world_size()
            for shift in _shifts(self.sign):
                shift.add_((self.apart.to(variance) * variance.sqrt()).to(shift))
        self.handle.remove()


def _units_with_norm(model: nn.Module) -> Iterator[tuple[BinaryUnit | TokenUnit, nn.Parameter]]:
    for unit in model.modules():
        if isinstance(unit, BinaryUnit | TokenUnit):
            weight = getattr(unit.norm, "weight", None)
            if isinstance(weight, nn.Parameter):
                yield unit, weight


def _signs_of(
    unit: BinaryUnit | TokenUnit, weight: nn.Parameter, number: int, gains: Gains, draw: torch.Generator
) -> Tensor:
    """+1 or -1 for each channel of a unit's norm."""
    if gains == "drawn":
        drawn = 2.0 * torch.randint(2, (weight.numel(),), generator=draw) - 1
        return torch.ones_like(drawn) if number % 4 == 0 else drawn
    copies = unit.copies
    steps = 1 << (copies - 1).bit_length()
    by_copy = [(-1.0) ** ((q & (number % steps)).bit_count()) for q in range(copies)]
    return torch.tensor(by_copy).repeat_interleave(weight.numel() // copies)
