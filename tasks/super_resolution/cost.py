"""Operations and parameters of the UNet as in BI-DiffSR's table (papers.md#operations)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from esbnn_core import Count, count
from tasks.super_resolution.blocks import PixelAttention
from tasks.super_resolution.unet import BIDiffSRUNet


@dataclass(frozen=True)
class UNetCost:
    """Cost of one denoising step of one image, by the rule of esbnn_core.counting.

    Attributes:
        side: of the image in pixels.
        layers: convolutions and linear layers.
        attention: real multiply-accumulates of the two products of the attention in the middle, which grow with the
            fourth power of the side.
    """

    side: int
    layers: Count
    attention: int

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs of convolutions and linear layers."""
        return self.layers.ops

    @property
    def ops_with_attention(self) -> float:
        """OPs with the products of the attention."""
        return self.layers.ops + self.attention

    @property
    def params(self) -> int:
        """All parameters, a binary weight as one."""
        return self.layers.params

    @property
    def params_32bit(self) -> float:
        """The paper's "Params": in words of 32 bits, a binary weight as 1/32."""
        return self.params - self.layers.binary_params + self.layers.binary_params / 32

    def sentence(self) -> str:
        """One line for people."""
        return (
            f"OPs {self.ops / 1e9:.4g} G at {self.side}x{self.side} ({self.ops_with_attention / 1e9:.4g} G with the "
            f"attention's products) for each denoising step; parameters {self.params / 1e6:.3f} M, "
            f"{self.params_32bit / 1e6:.3f} M with a binary weight as 1/32"
        )


class _Step(nn.Module):
    """The UNet on condition and sample in one tensor, for esbnn_core.count."""

    def __init__(self, unet: BIDiffSRUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.unet.head.weight.dtype)
        condition, sample = x.split([x.shape[1] - self.unet.config.out_channels, self.unet.config.out_channels], 1)
        out: Tensor = self.unet(sample, 0, condition, return_dict=False)[0]
        return out


def count_unet(unet: BIDiffSRUNet, side: int = 256) -> UNetCost:
    """Count a UNet, which does not change, for one step on an image of side x side.

    A packed UNet has the operations of the latent one. Its parameters are the bits and the real weights only, because
    shifts and slopes are buffers.

    Raises:
        InputError: a side that the levels cannot halve.
    """
    found: list[int] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...], __: Any) -> None:
        q, k, v = inputs
        found.append(q.shape[1] * q[0, 0].numel() * k[0, 0].numel() + v.shape[1] * q[0, 0].numel() * v[0, 0].numel())

    hooks = [m.register_forward_hook(record) for m in unet.modules() if isinstance(m, PixelAttention)]
    try:
        layers = count(_Step(unet), (unet.config.in_channels, side, side))  # on a copy with its hooks, without data
    finally:
        for hook in hooks:
            hook.remove()
    return UNetCost(side, layers, sum(found))
