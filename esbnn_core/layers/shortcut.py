"""The parameter-free shortcut of ReCU's ResNet-20 on a carried map."""

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """AvgPool2, then each block of C channels padded by C/2 zeros on both sides (papers.md#recu, #rep-recu).

    (N, copies*C, H, W) -> (N, copies*2C, ceil(H/2), ceil(W/2)).

    Args:
        copies: tau*g, how many blocks the map holds.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        blocks = x.unflatten(1, (self.copies, -1))
        half = blocks.shape[2] // 2
        return F.pad(blocks, (0, 0, 0, 0, half, half)).flatten(1, 2)
