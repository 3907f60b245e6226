"""The packed transposed convolution: one ordinary convolution for all phases of equally many taps."""

from collections.abc import Sequence

from torch import Tensor

from esbnn_core import kernels
from esbnn_core.kernels import Epilogue
from esbnn_core.kernels.transposed import TransposedGeometry, binary_conv_transpose2d, part_filters, parts_of
from esbnn_core.layers import BinaryConvTranspose2d, ESBinaryConvTranspose2d
from esbnn_core.layers.conv_transpose import padding_for
from esbnn_core.packed.lanes import Origin
from esbnn_core.packed.layers import PackedConvolution, stream_dtype
from esbnn_core.packed.match import packs

Pair = tuple[int, int]


@packs(BinaryConvTranspose2d, ESBinaryConvTranspose2d)
class PackedConvTranspose2d(PackedConvolution):
    """Packed BinaryConvTranspose2d or its ES form: (N, C, H, W) floating -> (N, copies*O, H', W').

    Dtypes are those of PackedConv2d. The filters of the convolutions that it is made of (esbnn_core.kernels.transposed)
    and their lanes are buffers that are not saved: a file holds the bits of each filter once, as it is.
    """

    transposed = True
    geometry: TransposedGeometry

    def __init__(self, conv: BinaryConvTranspose2d) -> None:
        shape = (conv.in_channels, conv.stride, conv.padding, conv.output_padding, conv.dilation, conv.groups)
        super().__init__(conv, TransposedGeometry(*shape, conv.copies))
        self.make_lanes_()

    def _origin(self) -> Origin:
        self.parts = parts_of(self.kernel_size, self.geometry)
        names = (f"{name}{index}" for name in ("filters", "lanes") for index in range(len(self.parts)))
        return Origin(tuple(names), ("weight_bits",))

    def _lanes(self) -> list[Tensor | None]:
        """The filters of each part, then their lanes."""
        filters = self._filters()
        groups = [part.geometry.groups for part in self.parts]
        return [*filters, *map(kernels.lanes_of, filters, groups)]

    def _filters(self) -> list[Tensor]:
        return [part_filters(self.weight_bits, part) for part in self.parts]

    @property
    def output_padding(self) -> Pair:
        """Pixels added at the end of the output."""
        return self.geometry.output_padding

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The output in x's memory format; output_size as BinaryConvTranspose2d takes it."""
        size: Pair | None = None
        if output_size is not None:
            shape = (self.kernel_size, self.stride, self.padding, self.dilation)
            padding_for(output_size, x.shape[2:], *shape)  # refuses what cannot be
            size = output_size[-2], output_size[-1]
        lanes: list[Tensor | None] | None = None
        if self.check_lanes_():
            filters = [self.get_buffer(f"filters{index}") for index in range(len(self.parts))]
            lanes = [self._buffers[f"lanes{index}"] for index in range(len(self.parts))]
        else:
            filters = self._filters()
        epilogue = Epilogue(self.scale, self.bias, out_dtype=stream_dtype(x))
        rest = (epilogue, self.shift, filters, lanes, size)
        y = binary_conv_transpose2d(x, self.weight_bits, self.geometry, *rest)
        return y if x.stride(1) == 1 else y.contiguous()
