"""Real layers of a packed network on our own kernels: what fold_real_ makes of convolutions and linear layers."""

import torch
from torch import Tensor, nn

from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu.program import Recorder
from esbnn_core.kernels.cpu.real import RealFilters, Window, real_conv2d, real_lanes, real_linear
from esbnn_core.kernels.cpu.real_steps import Map, record_conv, record_copies, tiled_affine
from esbnn_core.kernels.direct import unwatched
from esbnn_core.packed.lanes import OnLanes, Origin
from esbnn_core.packed.pools import PackedMaxPool2d, pair


class TiledAffine(nn.Module):
    """Copies of the channels, each with its own factor and offset: y[j] = x[j mod C] * scale[j] + offset[j].

    (N, C, H, W) -> (N, copies*C, H, W) in channels_last.

    Args:
        scale: (copies*C,).
        offset: (copies*C,).
        channels: C.
        positions: (copies*C,) int64; y[j] then reads x[positions[j]].
    """

    scale: Tensor
    offset: Tensor
    positions: Tensor | None

    def __init__(self, scale: Tensor, offset: Tensor, channels: int, positions: Tensor | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor) -> Tensor:
        held = self._buffers
        if held["positions"] is None and x.dim() == 4 and x.shape[1] == self.channels and unwatched(x):
            y = tiled_affine(x, held["scale"], held["offset"])  # type: ignore[arg-type]
            if y is not None:
                return y
        x = x.permute(0, 2, 3, 1)  # the copies of a channel are in one pixel
        if self.positions is not None:
            y = torch.addcmul(self.offset, x.index_select(3, self.positions), self.scale)
        else:
            rows = (-1, self.channels)
            y = torch.addcmul(self.offset.view(rows), x.unsqueeze(3), self.scale.view(rows)).flatten(3)
        return y.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, copies={len(self.scale) // self.channels}"


class _Folded(OnLanes):
    """A layer with weight (O, C, ...) and bias (O,) that it also holds as our kernel reads them, in lanes."""

    weight: Tensor
    bias: Tensor

    def _hold(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Take weight and bias, float64, each number rounded once."""
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        self.register_lanes(Origin(("lanes", "lane_bias"), ("weight", "bias")))
        self.make_lanes_()

    def _lanes(self) -> list[Tensor | None]:
        return list(real_lanes(self.weight, self.bias))

    def _filters(self) -> RealFilters | None:
        """None where the lanes do not serve this call."""
        if not self.check_lanes_():
            return None
        lanes, bias = self._buffers["lanes"], self._buffers["lane_bias"]
        assert lanes is not None and bias is not None
        return RealFilters(lanes, bias, len(self.weight))


class FoldedConv2d(_Folded, nn.Conv2d):  # type: ignore[misc]
    """A convolution with an affine map per channel folded in, then a max-pooling and copies where there are such.

    (N, C, H, W) -> (N, O, H', W') in channels_last, O*copies channels with copies. Without groups and dilation it is
    one call of our own kernel, which fuses products with additions. Elsewhere, and wherever PackedMaxPool2d leaves the
    work to torch, it is torch's convolution. The two round differently.

    Args:
        conv: whose weight it starts from.
        scale: (O,), or None for 1.
        offset: (O,), added after the scale, or None for 0.
        positions: (O,), the filters of `conv` to have, default each once.
        pool: of the output, or None.
        copies: of that, or None.
    """

    RECORDED = ("in_channels", "kernel_size", "stride", "padding", "direct")
    """Attributes that `record` reads beside its children."""

    def __init__(
        self,
        conv: nn.Conv2d,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
        positions: Tensor | None = None,
        pool: nn.MaxPool2d | None = None,
        copies: TiledAffine | None = None,
    ) -> None:
        out = conv.out_channels if positions is None else len(positions)
        shape = (conv.in_channels, out, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        nn.Conv2d.__init__(self, *shape, padding_mode=conv.padding_mode, device="meta")  # type: ignore[arg-type]
        weight = conv.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
        if positions is not None:
            weight, bias = weight[positions], bias[positions]
        if scale is not None:
            weight, bias = weight * scale.double().view(-1, 1, 1, 1), bias * scale.double()
        self._hold(weight, bias if offset is None else bias + offset.double(), conv.weight.dtype)
        self.pool, self.copies = pool, copies
        plain = conv.groups == 1 and pair(conv.dilation) == (1, 1) and conv.padding_mode == "zeros"
        self.direct = plain and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        pool, copies = self.pool, self.copies
        if self.direct and x.dim() == 4 and x.shape[1] == self.in_channels and unwatched(x):
            window = Window(self.kernel_size, self.stride, self.padding)  # type: ignore[arg-type]
            fused = pool.window if isinstance(pool, PackedMaxPool2d) else None
            affine = None
            if fused is not None and copies is not None and copies.positions is None:
                affine, copies = (copies.scale, copies.offset), None
            filters = self._filters()
            y = None if filters is None else real_conv2d(x, filters, window, fused, affine)
            if y is not None:
                y = pool(y) if pool is not None and fused is None else y
                return y if copies is None else copies(y)
            copies = self.copies
        last = torch.channels_last
        y = nn.Conv2d.forward(self, x.contiguous(memory_format=last)).contiguous(memory_format=last)
        y = y if pool is None else pool(y)
        return y if copies is None else copies(y)

    def record(self, recorder: Recorder, x: Map) -> Map | None:
        """The layer as steps of a program: the map that it gives, None for what is not of our kernel."""
        library, copies = cpu.choose()[0], self.copies
        fits = self.direct and self.pool is None and x.shape[1] == self.in_channels
        if (
            not fits
            or library is None
            or library.name == "portable"
            or (copies is not None and copies.positions is not None)
        ):
            return None
        window = Window(self.kernel_size, self.stride, self.padding)  # type: ignore[arg-type]
        filters = self._filters()
        y = None if filters is None else record_conv(recorder, x, filters, window)
        if y is None or copies is None:
            return y
        return record_copies(recorder, y, copies.scale, copies.offset, torch.get_num_threads())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, folded"  # type: ignore[no-untyped-call]


class FoldedLinear(_Folded, nn.Linear):  # type: ignore[misc]
    """A linear layer on our own kernel, which adds in an order of its own: (..., I) -> (..., O)."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Linear.__init__(self, linear.in_features, linear.out_features, device="meta")
        weight = linear.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().double()
        self._hold(weight, bias, linear.weight.dtype)

    def _lanes(self) -> list[Tensor | None]:
        return list(real_lanes(self.weight[:, :, None, None], self.bias))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and x.shape[1] == self.in_features and unwatched(x):
            filters = self._filters()
            y = None if filters is None else real_linear(x, filters)
            if y is not None:
                return y
        return nn.Linear.forward(self, x)


def is_folded(network: nn.Module) -> bool:
    """Whether fold_real_ folded real layers of the network."""
    return any(isinstance(module, _Folded) for module in network.modules())
