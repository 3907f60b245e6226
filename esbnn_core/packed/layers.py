"""Inference modules that hold bit-words and folded affines, and nothing else.

A packed module is made in two steps, so that a file can be read without a latent network: the constructor reads the
shapes of a latent layer and allocates zeros, and `fill_` computes the bits and the affine. The buffers of a packed
module are what a packed checkpoint stores and what esbnn_core.counting counts.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from esbnn_core import kernels
from esbnn_core.errors import InputError
from esbnn_core.kernels import Epilogue, Geometry
from esbnn_core.kernels.reference import pack_bits
from esbnn_core.kernels.transposed import TransposedGeometry
from esbnn_core.layers import BinaryConv2d, BinaryLinear, ESBinaryConv2d, ESBinaryLinear, PositiveSign, Sign
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.forwards import kind_of, runs_as
from esbnn_core.packed.lanes import OnLanes, Origin
from esbnn_core.packed.match import packs
from esbnn_core.units.folding import fold_norm

HALF = (torch.bfloat16, torch.float16)


def stream_dtype(x: Tensor) -> torch.dtype | None:
    """dtype of an output: that of its input where this is a half-precision one, else None for the dtype of `scale`."""
    return x.dtype if x.dtype in HALF else None


def check_part(part: str, module: nn.Module, name: str, *kinds: type[nn.Module]) -> None:
    """Raise InputError unless a part of what is packed has the forward of one of `kinds`, which the packed form has."""
    if not runs_as(module, *kinds):
        known = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"the {part} of {name or 'what is packed'} must be {known} to be packed, got {kind_of(module)}, which the "
            f"packed form would leave out: replace it, or leave the latent network as it is"
        )


class PackedLayer(OnLanes):
    """What every packed module has: weight bits, scale, bias and the shift of the input's sign.

    Attributes:
        weight_shape: (O, I/groups, *k), of the latent filters.
        geometry: of the product.
        transposed: whether it is a transposed convolution, as torch's convolutions say it.
        weight_bits: buffer, int32 in the layout of esbnn_core.kernels.
        scale: buffer (copies*O,).
        bias: buffer (copies*O,).
        shift: buffer (C,), None where the latent layer has none.
        lanes: buffer that is not saved: weight_bits in the order of the native implementation, or None.
    """

    transposed = False
    geometry: Geometry | TransposedGeometry
    weight_bits: Tensor
    scale: Tensor
    bias: Tensor
    shift: Tensor | None
    lanes: Tensor | None

    def __init__(self, layer: BinaryLayer, geometry: Geometry | TransposedGeometry) -> None:
        super().__init__()
        out, inner, *kernel = layer.filters.shape
        self.weight_shape = tuple(layer.filters.shape)
        self.geometry = geometry
        zeros = layer.weight.detach().new_zeros
        self.register_buffer("weight_bits", zeros(out, *kernel, kernels.words_of(inner), dtype=torch.int32))
        self.register_buffer("scale", zeros(geometry.copies * out))
        self.register_buffer("bias", zeros(geometry.copies * out))
        shifted = isinstance(layer.sign, Sign) and layer.sign.shift is not None
        self.register_buffer("shift", zeros(geometry.channels) if shifted else None)
        self.register_lanes(self._origin())

    @torch.no_grad()
    def fill_(self, layer: BinaryLayer, name: str = "") -> "PackedLayer":
        """Compute bits and affine from the latent layer; returns the packed one.

        Args:
            layer: as the constructor's.
            name: of the layer, for errors.

        Raises:
            InputError: its weights are not in sign mode or not finite.
        """
        scale, bias = fold_norm(layer.output_scale(), layer.bias, nn.Identity(), self.geometry.copies)
        self._fill(layer, scale, bias, name)
        return self

    def _fill(self, layer: BinaryLayer, scale: Tensor | None, bias: Tensor | None, name: str) -> None:
        check_part("sign", layer.sign, name, nn.Identity, Sign, PositiveSign)
        if not layer.quantizer.sign_mode():
            raise InputError(f"layer {name} has weights that are not in sign mode, {layer.quantizer.to_sign_mode}")
        # a maximum keeps inf and nan, and is found several times faster than each weight is looked at
        if not layer.weight.abs().max().isfinite():
            raise InputError(
                f"the latent weights of layer {name} must be finite, got inf or nan: pack a trained network"
            )
        binary = layer.quantizer.binary(layer.filters)
        self.weight_bits.copy_(pack_bits(binary.movedim(1, -1) > 0))
        self.scale.fill_(1.0) if scale is None else self.scale.copy_(scale)
        self.bias.zero_() if bias is None else self.bias.copy_(bias)
        if self.shift is not None and isinstance(layer.sign, Sign) and layer.sign.shift is not None:
            self.shift.copy_(layer.sign.shift)
        self.make_lanes_()

    def _origin(self) -> Origin:
        return Origin(("lanes",), ("weight_bits",))

    def lanes_now(self) -> Tensor | None:
        """`lanes` if they serve this call."""
        return self._buffers["lanes"] if self.check_lanes_() else None

    def _lanes(self) -> list[Tensor | None]:
        return [kernels.lanes_of(self.weight_bits, self.geometry.groups)]

    # what a network's own forward may ask its layers, as torch names it

    @property
    def groups(self) -> int:
        """Of the product."""
        return self.geometry.groups

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLayer":
        """Move or convert as any module does, but keep scale, bias and shifts out of the half-precision types.

        `network.bfloat16()` makes the real layers narrow and, with them, what flows between the units. The sums stay
        exact, and their affine and the signs are still computed in float32.
        """
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = self._buffers[name]
            if now is not None and now.dtype in HALF and buffer.dtype not in HALF:
                self._buffers[name] = buffer.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"weight={self.weight_shape}, groups={self.geometry.groups}, copies={self.geometry.copies}"


class PackedConvolution(PackedLayer):
    """A packed convolution, transposed or not, with what a forward may ask of torch's."""

    @property
    def in_channels(self) -> int:
        """Of the input."""
        return self.geometry.channels

    @property
    def out_channels(self) -> int:
        """Filters, without their copies, as the latent layer."""
        return self.weight_shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """As the latent layer, like stride, padding and dilation."""
        return self.weight_shape[2], self.weight_shape[3]

    @property
    def stride(self) -> tuple[int, int]:
        """Of the convolution."""
        return self.geometry.stride

    @property
    def padding(self) -> tuple[int, int]:
        """Of the convolution; of a transposed one, what the full output loses on each side."""
        return self.geometry.padding

    @property
    def dilation(self) -> tuple[int, int]:
        """Of the kernel."""
        return self.geometry.dilation


@packs(BinaryConv2d, ESBinaryConv2d)
class PackedConv2d(PackedConvolution):
    """Packed BinaryConv2d or ESBinaryConv2d: (N, C, H, W) floating -> (N, copies*O, H', W').

    The output has x's dtype where that is a half-precision one, else the dtype of `scale`.
    """

    geometry: Geometry

    def __init__(self, conv: BinaryConv2d, copies: int | None = None) -> None:
        copies = conv.copies if copies is None else copies
        shape = (conv.in_channels, conv.stride, conv.padding, conv.pad_value, conv.dilation, conv.groups)
        super().__init__(conv, Geometry(*shape, copies))

    def convolve(
        self,
        x: Tensor,
        bits: Tensor | None = None,
        prelu: Tensor | None = None,
        residual: Tensor | None = None,
        rprelu: Tensor | None = None,
        following: PackedLayer | None = None,
        shift: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sign, pack, convolve and finish in one operator.

        Args:
            x: (N, C, H, W).
            bits: its signs, packed for this layer, where the layer before has handed them on.
            prelu: step of the epilogue, as kernels.Epilogue.
            residual: likewise.
            rprelu: likewise.
            following: the layer that reads the signs of the output.
            shift: in place of the layer's shift.
            bias: in place of the layer's bias.

        Returns:
            y in x's memory format, and its signs packed for `following`, empty without one.
        """
        call = self.call(x, bits, prelu, residual, rprelu, following, shift, bias)
        y, handed = kernels.binary_conv2d(*call)
        return _laid_out_as(x, y), handed

    def call(
        self,
        x: Tensor,
        bits: Tensor | None,
        prelu: Tensor | None,
        residual: Tensor | None,
        rprelu: Tensor | None,
        following: PackedLayer | None,
        shift: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> kernels.ConvCall:
        """What `convolve` asks of the operator, from the same arguments."""
        own = self._buffers  # each would be searched for by name at every call
        if bits is None:
            source, shift = x, own["shift"] if shift is None else shift
        else:
            source, shift = bits, None
        sign_shift, sign_groups = (None, 0) if following is None else (following.shift, following.geometry.groups)
        bias = own["bias"] if bias is None else bias
        epilogue = Epilogue(own["scale"], bias, prelu, residual, rprelu, sign_shift, sign_groups, stream_dtype(x))
        weight = own["weight_bits"]
        assert weight is not None
        return kernels.ConvCall(source, weight, self.geometry, epilogue, shift, self.lanes_now())

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x)[0]


def _laid_out_as(x: Tensor, y: Tensor) -> Tensor:
    """y (N, C, H, W), which is channels_last, in the memory format of x, sliced or whole.

    A real layer after it may sum in another order in another layout. A map of one pixel is contiguous in both: there
    the strides decide, as they do for torch's convolution.
    """
    if x.stride(1) == 1 and (x.stride(3) != 1 or (x.shape[1] == 1 and x.shape[2:] != (1, 1))):
        return y
    return y.flatten(1)[:, :, None, None] if y.shape[2:] == (1, 1) else y.contiguous()


@packs(BinaryLinear, ESBinaryLinear)
class PackedLinear(PackedLayer):
    """Packed BinaryLinear or ESBinaryLinear: (..., I) floating -> (..., copies*O), dtypes as PackedConv2d."""

    geometry: Geometry

    def __init__(self, linear: BinaryLinear, copies: int | None = None) -> None:
        copies = linear.copies if copies is None else copies
        super().__init__(linear, Geometry(linear.in_features, groups=linear.groups, copies=copies))

    @property
    def in_features(self) -> int:
        """Of the input."""
        return self.geometry.channels

    @property
    def out_features(self) -> int:
        """Rows, without their copies, as BinaryLinear."""
        return self.weight_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        features, groups, copies = self.geometry.channels, self.geometry.groups, self.geometry.copies
        bits = kernels.pack_sign(x, self.shift, groups, -1)
        lanes = self.lanes_now()
        y = kernels.binary_linear(bits, self.weight_bits, features, groups, copies, self.scale, self.bias, lanes)
        dtype = stream_dtype(x)
        return y if dtype is None else y.to(dtype)


def is_packed(network: nn.Module) -> bool:
    """Whether any layer of the network is packed."""
    return any(isinstance(module, PackedLayer) for module in network.modules())
