"""Sign, RSign and RPReLU (ReActNet; papers.md#estimators, #reactnet-activations)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.layers.quantizers import STE, UNIT_VARIANCE, current_name, sign_ste
from esbnn_core.layers.widths import Expansion, thermometer_shift


def per_channel(parameter: Tensor, x: Tensor, dim: int) -> Tensor:
    """View a (C,) parameter so that it broadcasts over dimension `dim` of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return parameter.view(shape)


class Sign(nn.Module):
    """sign(x) with a straight-through estimator.

    With "poly2_unit_variance" a training forward first divides each sample by its standard deviation over all
    dimensions but the batch. The sign stays, the gradient is rescaled (papers.md#recu).

    Args:
        ste: estimator, see sign_ste.
        clip: half width of the "clip" estimator.
        channel_dim: dimension of the channels, 1 for (N, C, H, W) and -1 for (B, N, C).
    """

    shift: Tensor | None

    def __init__(self, ste: STE = "poly2", clip: float = 1.0, channel_dim: int = 1) -> None:
        super().__init__()
        self.ste: STE = current_name(ste)
        self.clip = clip
        self.channel_dim = channel_dim
        self.register_parameter("shift", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            x = x + per_channel(self.shift, x, self.channel_dim)
        if self.ste == UNIT_VARIANCE and self.training:
            deviation = (x.flatten(1).var(1) + 1e-5).sqrt()
            x = x / deviation.view(-1, *[1] * (x.dim() - 1))
        return sign_ste(x, self.ste, self.clip)

    def extra_repr(self) -> str:
        return f"ste={self.ste}"


class RSign(Sign):
    """sign(x + b) with a learnable b per channel (ReActNet, papers.md#reactnet-activations).

    Args:
        channels: C.
        ste: estimator, see sign_ste.
        clip: half width of the "clip" estimator.
        channel_dim: dimension of the channels, 1 for (N, C, H, W) and -1 for (B, N, C).
        copies: how many tiled copies the input holds.
        copy_spread: 0 starts at zero, as the paper does. s > 0 starts the copies as a thermometer code
            (thermometer_shift of esbnn_core.layers.widths).
    """

    def __init__(
        self,
        channels: int,
        ste: STE = "poly2",
        clip: float = 1.0,
        channel_dim: int = 1,
        copies: int = 1,
        copy_spread: float = 0.0,
    ) -> None:
        super().__init__(ste, clip, channel_dim)
        start = thermometer_shift(channels, copies, copy_spread) if copy_spread else torch.zeros(channels)
        self.shift = nn.Parameter(start)
        self.copies = copies
        self.order: Tensor | None = None  # place of each channel in the tiled map, where expand_ found another


class PositiveSign(Sign):
    """+1 where x > 0, else -1: for the output of a ReLU, whose zeros would all become +1.

    The gradient is twice that of Sign, because BinaryUnit(rectified=True) halves the sums. `shift`, which is not saved,
    makes sign(x + shift) the same signs: the only rule that packed layers have.

    Args:
        channels: C.
        ste: estimator, see sign_ste.
        clip: half width of the "clip" estimator.
    """

    def __init__(self, channels: int, ste: STE = "poly2", clip: float = 1.0) -> None:
        super().__init__(ste, clip)
        del self.shift
        # the smallest normal number of float32, which bfloat16 has too
        self.register_buffer("shift", torch.full((channels,), -torch.finfo(torch.float32).tiny), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        twice = 2 * sign_ste(x, self.ste, self.clip)
        return twice + (2 * (x > 0).to(x.dtype) - 1 - twice).detach()


def spread_sign(
    channels: int, expansion: Expansion, activation: STE | Sign | None, clip: float, channel_dim: int = 1
) -> STE | Sign | None:
    """`activation` unchanged for a copy_spread of 0, else an RSign whose copies start as a thermometer code.

    Args:
        channels: carried input width.
        expansion: its copies and copy_spread.
        activation: STE, or a Sign module or None where no spread is asked for.
        clip: half width of the "clip" estimator.
        channel_dim: as Sign.

    Raises:
        InputError: a spread with a Sign module or None as activation.
    """
    spread = expansion.copy_spread
    if not spread:
        return activation
    if activation is None or isinstance(activation, Sign):
        raise InputError(
            f"activation of a layer with copy_spread={spread} must be the name of an estimator, got {activation}: the "
            f"layer makes its own RSign with it"
        )
    return RSign(channels, activation, clip, channel_dim, expansion.copies, spread)


class RPReLU(nn.Module):
    """PReLU(x + b_in) + b_out, everything per channel (ReActNet, papers.md#reactnet-activations).

    The slope starts at 0.25, the shifts at 0.

    Args:
        channels: C.
        channel_dim: dimension of the channels, 1 for (N, C, H, W) and -1 for (B, N, C).
    """

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + per_channel(self.shift_in, x, self.channel_dim)
        # torch's PReLU expects the channels in dimension 1
        if self.channel_dim in (1, 1 - x.dim()):
            x = F.prelu(x, self.slope)
        elif self.channel_dim in (-1, x.dim() - 1):
            x = F.prelu(x.flatten(0, -2), self.slope).view(x.shape)
        else:
            x = torch.where(x > 0, x, per_channel(self.slope, x, self.channel_dim) * x)
        return x + per_channel(self.shift_out, x, self.channel_dim)

    def extra_repr(self) -> str:
        return f"{self.slope.numel()}"
