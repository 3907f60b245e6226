"""Small networks of tokens."""

import torch
from torch import nn
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)


def swin(version: int, depths: tuple[int, ...] = (2, 2)) -> nn.Module:
    """torchvision's Swin, version 1 or 2, with 24 channels and windows of 3 x 4."""
    torch.manual_seed(0)
    block, merge = {1: (SwinTransformerBlock, PatchMerging), 2: (SwinTransformerBlockV2, PatchMergingV2)}[version]
    shape = {"patch_size": [2, 2], "embed_dim": 24, "num_heads": [2, 3][: len(depths)]}
    shape |= {"window_size": [3, 4], "depths": list(depths)}
    return SwinTransformer(**shape, stochastic_depth_prob=0.0, num_classes=5, block=block, downsample_layer=merge)
