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
        gains: factor of the weights of the norms behind binary layers, in units or behind those that expand_ expanded.
            "alternate": norm l of those that have copies (in the order of the modules, from 0) gives copy q of n the
            sign (-1)^popcount(q AND (l mod m)), m the power of two from n on: over depth the copies become different
            signed sums. "drawn": signs that are drawn, but for each fourth norm, from the first on. In a plain network
            both change nothing but the sign of a filter.
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
        InputError: thresholds without a sign that has a shift; gains without a norm with weights in a unit or behind a
            binary layer that expand_ expanded.
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
        norms = list(_gains_of(model))
        if start.gains == "alternate":
            norms = [(weight, copies) for weight, copies in norms if copies > 1] or norms
        if not norms:
            raise InputError(
                f"gains of a start must be 'ones' for a network without a norm with weights behind a binary unit or an "
                f"expanded binary layer, got {start.gains!r}"
            )
        for number, (weight, copies) in enumerate(norms):
            gain = _signs_of(weight.numel(), copies, number, start.gains, draw)
            with torch.no_grad():
                weight.mul_(gain.to(weight))
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


NOTE = "_esbnn_copies"
"""Where expand_ notes how many copies a norm behind an expanded binary layer is given, unless a unit has the norm."""


def note_copies(norm: nn.Module, copies: int) -> None:
    """Let start_apart_ know of a norm whose input is so many tiled copies."""
    setattr(norm, NOTE, copies)


def _gains_of(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Weights of norms behind binary layers, and how many copies their input is of."""
    for module in model.modules():
        copies: int
        if isinstance(module, BinaryUnit | TokenUnit):
            copies, weight = module.copies, getattr(module.norm, "weight", None)
        else:
            copies, weight = getattr(module, NOTE, 0), getattr(module, "weight", None)  # type: ignore[assignment]
        if copies and isinstance(weight, nn.Parameter):
            yield weight, copies


def _signs_of(channels: int, copies: int, number: int, gains: Gains, draw: torch.Generator) -> Tensor:
    """+1 or -1 for each channel of a norm."""
    if gains == "drawn":
        drawn = 2.0 * torch.randint(2, (channels,), generator=draw) - 1
        return torch.ones_like(drawn) if number % 4 == 0 else drawn
    steps = 1 << (copies - 1).bit_length()
    by_copy = [(-1.0) ** ((q & (number % steps)).bit_count()) for q in range(copies)]
    return torch.tensor(by_copy).repeat_interleave(channels // copies)
