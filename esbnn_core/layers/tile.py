"""Tile, slice, selection and a row around a layer: the parameter-free parts of an expanded trunk."""

from collections.abc import Sequence

from torch import Tensor, nn

from esbnn_core.layers.widths import tile


class Tile(nn.Module):
    """Whole copies of the channels one after the other: (N, C, ...) -> (N, copies*C, ...), out[j] = x[j mod C].

    Args:
        copies: how many.
        dim: dimension of the channels.
    """

    def __init__(self, copies: int, dim: int = 1) -> None:
        super().__init__()
        self.copies = copies
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return tile(x, self.copies, self.dim)

    def extra_repr(self) -> str:
        return f"copies={self.copies}"


class SliceChannels(nn.Module):
    """The first `channels` channels: the read-out of ES networks (papers.md#es-bnext, #es-elsewhere).

    Args:
        channels: how many stay.
        dim: dimension of the channels.
    """

    def __init__(self, channels: int, dim: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(self.dim, 0, self.channels)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class SelectChannels(nn.Module):
    """Channels by their positions: the read-out and the reordering of layouts other than whole copies.

    Args:
        positions: (C,) int64, which channel of the input each one of the output is. A buffer that is not saved.
        dim: dimension of the channels.
    """

    positions: Tensor

    def __init__(self, positions: Tensor, dim: int = 1) -> None:
        super().__init__()
        self.register_buffer("positions", positions, persistent=False)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.positions)

    def extra_repr(self) -> str:
        return f"channels={self.positions.numel()}"


class OutputSized(nn.Sequential):
    """Modules in a row, called as the transposed convolution among them is: with an output_size or without."""

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # type: ignore[override]
        for step in self:
            x = step(x, output_size) if getattr(step, "transposed", False) else step(x)
        return x
