"""Pooling of a packed network on our own kernels."""

from torch import Tensor, nn

from esbnn_core.kernels.cpu.program import Recorder
from esbnn_core.kernels.cpu.real import Window, max_pool2d
from esbnn_core.kernels.cpu.real_steps import Map, Mean, average_pool2d, means, record_mean
from esbnn_core.kernels.direct import unwatched


class PackedMaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d with the same numbers in every bit, without the positions that torch notes beside them.

    Wherever the kernel does not serve, torch does: while something traces or compiles, on another device or in another
    type than float32.
    """

    @classmethod
    def of(cls, pool: nn.Module) -> "PackedMaxPool2d | None":
        """The same pooling, None for any other module and for what the kernel does not do."""
        if type(pool) is not nn.MaxPool2d or pool.ceil_mode or pool.return_indices or pair(pool.dilation) != (1, 1):
            return None
        return cls(pool.kernel_size, pool.stride, pool.padding)

    @property
    def window(self) -> Window:
        """As the kernel takes it."""
        return Window(pair(self.kernel_size), pair(self.stride), pair(self.padding))

    def forward(self, x: Tensor) -> Tensor:
        y = max_pool2d(x, self.window) if unwatched(x) else None
        return super().forward(x) if y is None else y


class PackedAvgPool2d(nn.AvgPool2d):
    """nn.AvgPool2d with the same numbers in every bit, which a chain of units may run together with them.

    torch serves where it does for PackedMaxPool2d.
    """

    RECORDED = ("kernel_size", "stride", "ceil_mode")
    """Attributes that `record` reads."""

    @classmethod
    def of(cls, pool: nn.Module) -> "PackedAvgPool2d | None":
        """The same pooling, None for any other module and for what the kernel does not do."""
        if type(pool) is not nn.AvgPool2d or pair(pool.padding) != (0, 0) or pool.divisor_override is not None:
            return None
        return cls(pool.kernel_size, pool.stride, 0, pool.ceil_mode, pool.count_include_pad)

    @property
    def mean(self) -> Mean:
        """As the kernel takes it."""
        return Mean(pair(self.kernel_size), pair(self.stride), self.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        y = average_pool2d(x, self.mean) if unwatched(x) else None
        return super().forward(x) if y is None else y

    def record(self, recorder: Recorder, x: Map) -> Map | None:
        """The pooling as a step of a program: the map that it gives."""
        return record_mean(recorder, x, self.mean)


class FoldedMean(nn.AdaptiveAvgPool2d):
    """nn.AdaptiveAvgPool2d(1) on our own kernel, which adds in an order of its own and in part in float64."""

    @classmethod
    def of(cls, pool: nn.Module) -> "FoldedMean | None":
        """The same mean, None for any other module."""
        return cls(1) if type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)) else None

    def forward(self, x: Tensor) -> Tensor:
        y = means(x) if unwatched(x) else None
        return super().forward(x) if y is None else y


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of what torch's modules hold as one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
