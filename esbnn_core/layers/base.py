"""What binary convolutions and binary linear layers share: latent weight, quantizer, output scale, start values."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import init

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers.activations import Sign
from esbnn_core.layers.quantizers import STE, QuantizerChoice, make_weight_quantizer

LatentInit = Literal["uniform", "normal", "kaiming", "xavier", "fan_in"]
"""Start of a latent weight: U(-1e-3, 1e-3), N(0, 1e-3), the normal forms of Kaiming and Xavier, or "fan_in",
U(+-1/sqrt(fan-in)), torch's own start of linear layers and convolutions.

Differs from the paper: the ReActNet family starts from U[0, 1e-3), whose signs are all +1."""

TrainingPath = Callable[..., Tensor | None]
"""(module, input, *options of the call) -> output of the module's training forward, or None to use the plain one."""


class BinaryLayer(nn.Module):
    """A layer with a latent `weight` (O, I/groups, *k) that is binarised in forward.

    Args:
        weight_shape: (O, I/groups, *k), or what `filters` makes that shape of.
        bias: a real bias (O,), added after the scale.
        weight_quantizer: see make_weight_quantizer of esbnn_core.layers.quantizers.
        activation: STE of the input's sign, a Sign or RSign module, or None for an input that is +-1 already.
        clip: half width of the "clip" STE.
        learned_scale: a learnable scale (O,) of the output that starts at U[0, 1) (ReCU).
        latent_init: start of the latent weight, see LatentInit.
        out_channels: O, where it is not the first size of `weight_shape`.

    Raises:
        InputError: an unknown quantizer or latent_init; a filter of one weight with a quantizer that centres filters.
    """

    transposed = False
    """Whether the layer is a transposed convolution, as torch's convolutions say it."""
    training_path: TrainingPath | None = None
    """Another way to the sums in training (esbnn_core.training.on_bits sets it)."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        bias: bool,
        weight_quantizer: QuantizerChoice,
        activation: STE | Sign | None,
        clip: float,
        learned_scale: bool,
        latent_init: LatentInit,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        out_channels = weight_shape[0] if out_channels is None else out_channels
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.quantizer = make_weight_quantizer(weight_quantizer)
        if self.quantizer.centred and self.weight.numel() == out_channels:
            raise InputError(
                f"filters must have more than one weight with {type(self.quantizer).__name__}, which subtracts their "
                f"mean, got {tuple(weight_shape)}: use another weight quantizer, such as 'absmean'"
            )
        if activation is None:
            self.sign: nn.Module = nn.Identity()
        else:
            self.sign = activation if isinstance(activation, Sign) else Sign(activation, clip)
        self.learned_scale = nn.Parameter(torch.empty(out_channels)) if learned_scale else None
        check_choice("latent_init", latent_init, get_args(LatentInit))
        self.latent_init: LatentInit = latent_init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh start values for weight, bias and learned scale."""
        if self.weight.is_meta:
            return  # nothing to draw, and torch would take milliseconds for each layer to find that out
        if self.latent_init == "uniform":
            init.uniform_(self.weight, -1e-3, 1e-3)
        elif self.latent_init == "normal":
            init.normal_(self.weight, 0.0, 1e-3)
        elif self.latent_init == "fan_in":
            bound = 1 / math.sqrt(self.weight[0].numel())
            init.uniform_(self.weight, -bound, bound)
        elif self.latent_init == "xavier":
            init.xavier_normal_(self.weight)
        else:
            init.kaiming_normal_(self.weight)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            init.uniform_(self.bias, -bound, bound)
        if self.learned_scale is not None:
            init.uniform_(self.learned_scale, 0.0, 1.0)

    @property
    def filters(self) -> Tensor:
        """The latent weight as (O, I/groups, *k): what quantizers see, one scale for each filter."""
        return self.weight

    def total(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor], *options: Any) -> Tensor:
        """The bare sums product(sign(x), binary filters); in training those of `training_path`, if it gives any.

        `options` are what the call adds to the layer's own, which `product` knows.
        """
        if self.training and self.training_path is not None:
            total = self.training_path(self, x, *options)
            if total is not None:
                return total
        return self.exact(self.sign(x), product)

    def output_scale(self) -> Tensor | None:
        """Scale (O,) of the raw sum, or None: the quantizer's alpha, the learned scale, or their product."""
        alpha = self.quantizer.scale(self.filters)
        if alpha is None or self.learned_scale is None:
            return self.learned_scale if alpha is None else alpha
        return alpha * self.learned_scale

    def exact(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """product(x, binary filters); outside training autocast does not make it narrower than float32.

        bfloat16 holds whole numbers up to 256 only, so a validation under autocast would compute other sums than the
        packed network.
        """
        weight = self.quantizer.binary(self.filters)
        kind = x.device.type
        if not self.training and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return product(x.to(weight.dtype), weight)
        return product(x, weight)

    def scaled(self, total: Tensor, channel_shape: tuple[int, ...]) -> Tensor:
        """total * scale + bias, either of which may be missing; `channel_shape` is (O,) along the output's channels."""
        scale = self.output_scale()
        if scale is not None:
            total = total * scale.view(channel_shape)
        return total if self.bias is None else total + self.bias.view(channel_shape)


def check_groups(groups: int, inner: int, outer: int, what: str = "channels") -> None:
    """Raise InputError where groups do not divide both widths of a layer, which are of `what`."""
    if inner % groups or outer % groups:
        raise InputError(f"groups must divide the {what} {inner} and {outer}, got {groups}")


def describe_convolution(layer: nn.Module, defaults: Mapping[str, object]) -> str:
    """extra_repr of a convolution: its shape, and which attributes are not the defaults."""
    text = f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"
    others = {name: getattr(layer, name) for name in defaults}
    shown = [f", {name}={value}" for name, value in others.items() if value != defaults[name]]
    return f"{text}, padding={layer.padding}{''.join(shown)}"


def binary_layers(model: nn.Module) -> list[tuple[str, BinaryLayer]]:
    """(name, layer) of every latent binary layer of the model, in the order of named_modules."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BinaryLayer)]


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """dtype of the first floating parameter, which a network's input has too; float32 without one.

    Buffers do not count: affines and shifts of a narrowed packed network stay in float32.
    """
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@torch.no_grad()
def exact_zeros(model: nn.Module) -> int:
    """How many numbers whose sign is a binary weight are exactly 0: their sign is +1 here, 0 with torch.sign."""
    return sum(int((layer.quantizer.signed(layer.filters) == 0).sum()) for _, layer in binary_layers(model))


@torch.no_grad()
def latent_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the latent weights by layer name, for comparing signs over time."""
    return {name: layer.weight.detach().clone() for name, layer in binary_layers(model)}
