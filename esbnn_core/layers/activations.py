"""Sign, RSign and RPReLU (ReActNet; papers.md#estimators, #reactnet-activations)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.layers.quantizers import STE, sign_ste
from esbnn_core.layers.widths import thermometer_shift


def per_channel(parameter: Tensor, x: Tensor, dim: int) -> Tensor:
    """View a (C,) parameter so that it broadcasts over dimension `dim` of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return parameter.view(shape)


class Sign(nn.Module):
    """sign(x) with a straight-through estimator; with "tent" the gradient is that of ReCU.

    For "tent" in training the input is first divided by the deviation of its sample (over all but the batch), which
    leaves the sign alone and rescales the gradient (papers.md#recu).
    """

    shift: Tensor | None

    def __init__(self, ste: STE = "poly2", clip: float = 1.0, channel_dim: int = 1) -> None:
        super().__init__()
        self.ste: STE = ste
        self.clip = clip
        self.channel_dim = channel_dim
        self.register_parameter("shift", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            x = x + per_channel(self.shift, x, self.channel_dim)
        if self.ste == "tent" and self.training:
            deviation = (x.flatten(1).var(1) + 1e-5).sqrt()
            x = x / deviation.view(-1, *[1] * (x.dim() - 1))
        return sign_ste(x, self.ste, self.clip)

    def extra_repr(self) -> str:
        return f"ste={self.ste}"


class RSign(Sign):
    """sign(x + b) with a learnable b per channel (ReActNet, papers.md#reactnet-activations).

    Args:
        channels: C. ste, clip: of the sign. channel_dim: 1 for (N, C, H, W), -1 for (B, N, C).
        copies: how many tiled copies the input holds. copy_spread: 0 is the paper's zero start; s > 0 starts the
            copies as a thermometer code (esbnn_core.layers.widths.thermometer_shift; Differs from the paper).
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


class PositiveSign(Sign):
    """+1 where x > 0, else -1: for what comes out of a ReLU, whose zeros are half of its news.

    Twice the gradient of Sign: BinaryUnit(rectified=True) halves the sums. `shift`, not saved, is what gives the same
    signs as sign(x + shift): packed layers know no other rule.

    Args:
        channels: C. ste, clip: as Sign.
    """

    def __init__(self, channels: int, ste: STE = "poly2", clip: float = 1.0) -> None:
        super().__init__(ste, clip)
        del self.shift
        # the smallest number of full precision: bfloat16 has it too
        self.register_buffer("shift", torch.full((channels,), -torch.finfo(torch.float32).tiny), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        twice = 2 * sign_ste(x, self.ste, self.clip)
        return twice + (2 * (x > 0).to(x.dtype) - 1 - twice).detach()


def spread_sign(
    channels: int, copies: int, copy_spread: float, activation: "STE | Sign | None", clip: float = 1.0, dim: int = 1
) -> "STE | Sign | None":
    """`activation` as it is for copy_spread = 0, else the RSign whose `copies` start as a thermometer code.

    Raises:
        InputError: a spread is asked for where there is no estimator to build the RSign with.
    """
    if not copy_spread:
        return activation
    if activation is None or isinstance(activation, Sign):
        raise InputError(
            f"copy_spread={copy_spread} was given with activation={activation}: the spread sets the start of the "
            f"layer's own RSign, so name an STE as activation"
        )
    return RSign(channels, activation, clip, dim, copies, copy_spread)


class RPReLU(nn.Module):
    """PReLU(x + b_in) + b_out, everything per channel (ReActNet, papers.md#reactnet-activations).

    Slope starts at 0.25, shifts at 0.
    """

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + per_channel(self.shift_in, x, self.channel_dim)
        # torch's PReLU knows the channels in dimension 1 only
        if self.channel_dim in (1, 1 - x.dim()):
            x = F.prelu(x, self.slope)
        elif self.channel_dim in (-1, x.dim() - 1):
            x = F.prelu(x.flatten(0, -2), self.slope).view(x.shape)
        else:
            x = torch.where(x > 0, x, per_channel(self.slope, x, self.channel_dim) * x)
        return x + per_channel(self.shift_out, x, self.channel_dim)

    def extra_repr(self) -> str:
        return f"{self.slope.numel()}"
