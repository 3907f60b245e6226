"""BIDiffSRUNet: the noise-predicting UNet of BI-DiffSR, plain or expanded, in diffusers' manners.

Source: papers.md#bi-diffsr, #es-bi-diffsr.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError
from esbnn_core.errors import check_counts, check_factors
from esbnn_core.layers import timestep_group
from esbnn_core.layers.widths import Expansion, tile
from tasks.super_resolution.blocks import CPDown, CPUp, CSFusion, ResidualBlock, TimeCode
from tasks.super_resolution.conv_variants import CopyRule, Moment, RealPath, Recipe, Variant

GroupRule = Literal["sample", "first"]
UNetOutput = UNet2DOutput


class BIDiffSRUNet(ModelMixin, ConfigMixin):
    """Noise of a noisy picture, given its upscaled low-resolution version; the defaults are the official network.

    Levels of widths C = inner_channels * channel_mults at H, H/2, H/4, ...: `res_blocks` residual blocks a level down,
    one more a level up with a CS-Fusion in front of each, CP-Down and CP-Up between levels, attention in the middle.

    Args:
        in_channels, out_channels: of condition and sample together, and of the prediction.
        inner_channels: C of level 0.
        channel_mults: each twice the one before, which is what CP-Down makes. res_blocks: per level.
        norm_groups: of every GroupNorm over nominal channels. dropout: in front of a block's second convolution.
        image_size: nominal side of level 0. real_resolutions: nominal sides whose levels are real on the way up;
            neither depends on the pictures that the network is run on. The way down, the middle and CP-Up are binary.
        total_steps: of the training schedule. timestep_groups: K of TaR and TaA, equal parts of it.
        group_rule: "sample": each sample has the group of its own timestep. "first": that of the first sample serves
            all, as in the original, which draws one timestep a batch.
        variant: see tasks.super_resolution.conv_variants.VARIANTS.
        tau, groups: of the expansion; weights and operations of all convolutions stay those of tau = groups = 1. The
            trunk carries tau*groups*C channels, and a GroupNorm as many times more groups of the old size.
        real_path: how the real levels meet an expanded trunk. "slice": they are the plain network's, and read the first
            C channels of the trunk and of the skips. "carry": tau*groups*C channels, real convolutions shrunk and tiled
            like binary ones; the head reads the first C. With no identity of its own, a real fusion shrinks u and the
            skip to C/tau maps and equal copies of them: "slice" keeps C.
        copy_rule: where CP-Down, CP-Up and CS-Fusion take channels apart, "block" does so inside each copy, as the
            plain network does: every block of C channels stays a whole network's. "mix" does so over all: a fusion
            then puts u in the first half of all channels and the skip in the second, so that what reads the first C
            alone misses the skip, and groups of a convolution see one of the two.
        copy_spread: > 0 starts the copies of every shift as a thermometer code
        (esbnn_core.layers.widths.thermometer_shift;
            Differs from the paper).

    Raises:
        InputError: an option of the wrong kind or out of range; widths that norm_groups or tau*groups do not divide.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        in_channels: int = 6,
        out_channels: int = 3,
        inner_channels: int = 64,
        channel_mults: Sequence[int] = (1, 2, 4, 8),
        res_blocks: int = 2,
        norm_groups: int = 16,
        dropout: float = 0.2,
        image_size: int = 256,
        real_resolutions: Sequence[int] = (256, 128),
        total_steps: int = 2000,
        timestep_groups: int = 5,
        group_rule: GroupRule = "sample",
        variant: Variant = "bi",
        tau: int = 1,
        groups: int = 1,
        real_path: RealPath = "slice",
        copy_rule: CopyRule = "block",
        copy_spread: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, out_channels=out_channels, inner_channels=inner_channels)
        check_counts(res_blocks=res_blocks, norm_groups=norm_groups)
        check_counts(total_steps=total_steps, timestep_groups=timestep_groups)
        check_factors(tau, groups)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} was given, a probability of at least 0 and below 1 was expected")
        for what, given, known in (
            ("group_rule", group_rule, get_args(GroupRule)),
            ("real_path", real_path, get_args(RealPath)),
        ):
            if given not in known:
                raise InputError(f"{what}={given!r} was given, one of {', '.join(known)} was expected")
        widths = [inner_channels * mult for mult in channel_mults]
        _check_widths(widths, norm_groups)
        sides = [image_size / 2**level for level in range(len(widths))]
        unknown = [side for side in real_resolutions if side not in sides]
        if unknown:
            raise InputError(
                f"real_resolutions={list(real_resolutions)} was given, sides of levels of an image of {image_size} "
                f"were expected: {', '.join(f'{side:g}' for side in sides)}"
            )
        trunk = Recipe(variant, timestep_groups, Expansion(tau, groups, copy_spread), copy_rule)
        if real_path == "slice":
            real = Recipe("real")
        else:
            real = Recipe("real", expansion=Expansion(tau, groups), copy_rule=copy_rule)
        up = [real if side in real_resolutions else trunk for side in sides]
        if real.wide != trunk.wide and any(up[i] is trunk and up[i + 1] is real for i in range(len(up) - 1)):
            raise InputError(
                f"real_resolutions={list(real_resolutions)} was given with tau={tau}, groups={groups} and real_path "
                f"'slice': a binary level would follow a sliced one on the way up, choose 'carry' or make the levels "
                f"above the first real one real too"
            )
        self.total_steps, self.timestep_groups, self.group_rule = total_steps, timestep_groups, group_rule
        self.wide, self.inner_channels, self.levels = trunk.wide, inner_channels, len(widths)

        self.time_code = TimeCode(inner_channels)
        self.time_mlp = nn.Sequential(
            nn.Linear(inner_channels, 4 * inner_channels), nn.SiLU(), nn.Linear(4 * inner_channels, inner_channels)
        )

        def block(width: int, recipe: Recipe, name: str, attention: bool = False) -> ResidualBlock:
            return ResidualBlock(width, recipe, inner_channels, norm_groups, dropout, attention, name)

        self.stem = nn.Conv2d(in_channels, inner_channels, 3, padding=1)
        downs: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level:
                downs.append(CPDown(widths[level - 1], trunk, f"downs.{len(downs)}"))
            for _ in range(res_blocks):
                downs.append(block(width, trunk, f"downs.{len(downs)}"))
        middle = [block(widths[-1], trunk, "middle.0", True), block(widths[-1], trunk, "middle.1")]
        ups: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(res_blocks + 1):
                ups.append(CSFusion(width, up[level], f"ups.{len(ups)}"))
                ups.append(block(width, up[level], f"ups.{len(ups)}"))
            if level:
                ups.append(CPUp(width, _carrying(trunk, up[level]), f"ups.{len(ups)}"))
        self.downs, self.middle, self.ups = nn.ModuleList(downs), nn.ModuleList(middle), nn.ModuleList(ups)
        self.norm = nn.GroupNorm(norm_groups, inner_channels)
        self.head = nn.Conv2d(inner_channels, out_channels, 3, padding=1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As ModelMixin.from_pretrained, and strict: diffusers itself starts what a file lacks anew and goes on.

        Raises:
            InputError: a missing, extra or reshaped tensor, named.
        """
        wanted = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("low_cpu_mem_usage", False)  # True asks for one more package, accelerate
        try:
            unet, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            lines = [line.strip(" \t.") for line in str(error).splitlines() if "size mismatch" in line]
            if not lines:
                raise
            raise InputError(_misfit(pretrained_model_name_or_path, lines)) from error
        faults = [f"{name} is missing" for name in info["missing_keys"]]
        faults += [f"{name} is not expected" for name in info["unexpected_keys"]]
        if faults:
            raise InputError(_misfit(pretrained_model_name_or_path, faults))
        return (unet, info) if wanted else unet

    def moment(self, timestep: Tensor | float | int, batch: int) -> Moment:
        """Embedding and groups of a timestep () or (1,) for the whole batch, or (N,) for its samples."""
        t = torch.as_tensor(timestep, device=self.head.weight.device)
        if t.dim() > 1 or t.numel() not in (1, batch):
            raise InputError(
                f"timesteps of shape {tuple(t.shape)} were given for a batch of {batch}, one number or one a sample "
                f"was expected"
            )
        t = t.reshape(-1)
        group = timestep_group(t, self.timestep_groups, self.total_steps)
        if self.config.variant != "bi":
            group = torch.zeros_like(group[:1])  # its units have one group
        elif self.group_rule == "first":
            group = group[:1]
        return Moment(self.time_mlp(self.time_code(t, self.head.weight.dtype)), group)

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, condition: Tensor, return_dict: bool = True
    ) -> UNetOutput | tuple[Tensor]:
        """Predict the noise in `sample`.

        Args:
            sample: noisy picture (N, 3, H, W); H and W multiples of 2^(levels - 1). timestep: t, a number, () or (N,).
            condition: the low-resolution picture upscaled to (N, 3, H, W), in [0, 1].
            return_dict: False gives (noise,) in place of UNetOutput(sample=noise).

        Raises:
            InputError: sizes that differ or cannot be halved often enough; timesteps of another batch.
        """
        self._check_maps(sample, condition)
        moment = self.moment(timestep, len(sample))
        x = tile(self.stem(torch.cat([condition, sample], 1)), self.wide)
        skips = [x]
        for step in self.downs:
            x = step(x, moment)
            skips.append(x)
        for step in self.middle:
            x = step(x, moment)
        for step in self.ups:
            x = step(x, skips.pop(), moment) if isinstance(step, CSFusion) else step(x, moment)
        noise = self.head(F.silu(self.norm(x[:, : self.inner_channels])))
        return UNetOutput(sample=noise) if return_dict else (noise,)

    def _check_maps(self, sample: Tensor, condition: Tensor) -> None:
        stride = 2 ** (self.levels - 1)
        if sample.dim() != 4 or sample.shape[0] != condition.shape[0] or sample.shape[2:] != condition.shape[2:]:
            raise InputError(
                f"sample {tuple(sample.shape)} and condition {tuple(condition.shape)} were given, maps (N, 3, H, W) of "
                f"one size were expected"
            )
        if sample.shape[2] % stride or sample.shape[3] % stride or 0 in sample.shape[2:]:
            raise InputError(
                f"a sample of {sample.shape[2]} x {sample.shape[3]} was given, sides that are multiples of {stride} "
                f"were expected: pad the picture on its right and bottom and crop the result"
            )


def _misfit(source: str | os.PathLike[str], faults: list[str]) -> str:
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return (
        f"the tensors in {source} do not fit the network of its config.json: {'; '.join(faults[:3])}{more}: take both "
        f"files from one save_pretrained"
    )


def _carrying(trunk: Recipe, level: Recipe) -> Recipe:
    """The recipe of a binary CP-Up on a level: the trunk's, at the width that the level carries."""
    if level.wide == trunk.wide:
        return trunk
    return Recipe(trunk.variant, trunk.timestep_groups)


def _check_widths(widths: list[int], norm_groups: int) -> None:
    if not widths or any(after != 2 * before for before, after in itertools.pairwise(widths)):
        raise InputError(f"widths {widths} were given, each twice the one before was expected: CP-Down makes such")
    for width in widths:
        if width % norm_groups or width % 2:
            raise InputError(
                f"a level of {width} channels was given with norm_groups={norm_groups}, an even number that "
                f"norm_groups divides was expected: choose inner_channels and norm_groups to fit"
            )
