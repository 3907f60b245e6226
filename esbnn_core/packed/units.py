"""Packed units: a binary layer with its folded norm, shortcut and activations in one operator."""

import torch
from torch import Tensor, nn

from esbnn_core import kernels
from esbnn_core.errors import InputError
from esbnn_core.kernels import Epilogue
from esbnn_core.layers import RPReLU, Tile
from esbnn_core.layers.forwards import kind_of, runs_as
from esbnn_core.packed.layers import PackedConv2d, PackedLayer, PackedLinear, check_part, stream_dtype
from esbnn_core.packed.match import packs
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.folding import is_batch_norm
from esbnn_core.units.token import TokenUnit


@packs(BinaryUnit)
class PackedUnit(PackedConv2d):
    """Packed BinaryUnit; a real shortcut stays as it is.

    In a chain (esbnn_core.packed.chain) it reads the packed signs of its input and hands on those of its output.

    Attributes:
        prelu: buffer (C',), None where the unit has no inner PReLU.
        rprelu: buffer (3, C'), None where the unit has no RPReLU.
        shortcut: of the unit.
        act: of the unit, nn.Identity() where it is an RPReLU.
    """

    prelu: Tensor | None
    rprelu: Tensor | None

    def __init__(self, unit: BinaryUnit) -> None:
        super().__init__(unit.conv, unit.copies)
        prelu = unit.inner_act.weight if isinstance(unit.inner_act, nn.PReLU) else None
        self.register_buffer("prelu", None if prelu is None else torch.zeros_like(self.scale))
        fused = runs_as(unit.act, RPReLU)
        self.register_buffer("rprelu", self.scale.new_zeros(3, len(self.scale)) if fused else None)
        self.shortcut = unit.shortcut
        self.act: nn.Module = nn.Identity() if fused else unit.act

    @torch.no_grad()
    def fill_(self, unit: BinaryUnit, name: str = "") -> "PackedUnit":  # type: ignore[override]
        """Compute bits, folded affine and slopes of the latent unit; returns the packed one; errors as PackedLayer."""
        check_parts(unit, name)
        check_part("inner activation", unit.inner_act, name, nn.Identity, nn.PReLU)
        scale, bias = unit.affine()
        self._fill(unit.conv, scale, bias, name)
        if self.prelu is not None and isinstance(unit.inner_act, nn.PReLU):
            self.prelu.copy_(unit.inner_act.weight)
        if self.rprelu is not None and isinstance(unit.act, RPReLU):
            self.rprelu.copy_(rprelu_rows(unit.act))
        return self

    def hands_to(self, following: nn.Module | None) -> bool:
        """Whether this unit can pack the signs of its output for `following`."""
        fits = (
            isinstance(following, PackedUnit)
            and following.geometry.channels == self.geometry.copies * self.weight_shape[0]
        )
        return fits and isinstance(self.act, nn.Identity)

    def forward(  # type: ignore[override]
        self, x: Tensor, bits: Tensor | None = None, following: PackedLayer | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """y alone, or with `following` y and its signs packed for that unit; arguments as `convolve` takes them."""
        residual = None if self.shortcut is None else self.shortcut(x)
        y, handed = self.convolve(x, bits, self._buffers["prelu"], residual, self._buffers["rprelu"], following)
        return self.act(y) if following is None else (y, handed)


@packs(TokenUnit)
class PackedTokenUnit(PackedLinear):
    """Packed TokenUnit: (B, N, I) floating and skip (B, N, copies*O) -> the shape of skip.

    Tokens are the pixels of a map of one row, so that the convolution's epilogue serves them.

    Attributes:
        rprelu: buffer (3, copies*O).
    """

    rprelu: Tensor

    def __init__(self, unit: TokenUnit) -> None:
        super().__init__(unit.linear, unit.copies)
        self.register_buffer("rprelu", self.scale.new_zeros(3, len(self.scale)))

    @torch.no_grad()
    def fill_(self, unit: TokenUnit, name: str = "") -> "PackedTokenUnit":  # type: ignore[override]
        """Compute bits, folded affine and slopes of the latent unit; returns the packed one; errors as PackedLayer."""
        check_parts(unit, name)
        check_part("activation", unit.act, name, RPReLU)
        scale, bias = unit.affine()
        self._fill(unit.linear, scale, bias, name)
        self.rprelu.copy_(rprelu_rows(unit.act))
        return self

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        residual = skip.transpose(1, 2).unsqueeze(2)
        epilogue = Epilogue(self.scale, self.bias, None, residual, self.rprelu, out_dtype=stream_dtype(x))
        weight, tokens = self.weight_bits[:, None, None], x.transpose(1, 2).unsqueeze(2)
        y, _ = kernels.binary_conv2d(tokens, weight, self.geometry, epilogue, self.shift, self.lanes_now())
        return y.squeeze(2).transpose(1, 2)


def rprelu_rows(act: RPReLU) -> Tensor:
    """shift_in, slope, shift_out as the operator's rprelu (3, C)."""
    return torch.stack([act.shift_in, act.slope, act.shift_out])


def check_parts(unit: BinaryUnit | TokenUnit, name: str) -> None:
    """Raise InputError for a tile that is none, and for a norm that keeps no running statistics to fold."""
    check_part("tile", unit.tile, name, nn.Identity, Tile)
    norm = unit.norm
    if not (runs_as(norm, nn.Identity) or (is_batch_norm(norm) and norm.running_mean is not None)):
        raise InputError(
            f"the norm of unit {name} must be a BatchNorm with running statistics, or none, got {kind_of(norm)}: "
            f"packing folds these statistics"
        )
