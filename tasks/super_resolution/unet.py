"""BIDiffSRUNet: the noise-predicting UNet of BI-DiffSR, plain or expanded, as a model of diffusers.

See papers.md#bi-diffsr, #es-bi-diffsr.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError, check_choice, check_counts, check_factors
from esbnn_core.layers import timestep_group
from esbnn_core.layers.widths import Expansion, tile
from tasks.super_resolution.blocks import CPDown, CPUp, CSFusion, ResidualBlock, TimeCode
from tasks.super_resolution.checksums import check_sums, write_sums
from tasks.super_resolution.conv_variants import ConvStyle, CopyRule, Moment, RealPath, Variant
from tasks.super_resolution.schedulers import PAPER, Prediction, Target

GroupRule = Literal["sample", "first"]
UNetOutput = UNet2DOutput


class BIDiffSRUNet(ModelMixin, ConfigMixin):
    """Predicts the noise in an image, given the upscaled low resolution; the defaults are the official network.

    With another prediction_type it predicts the image or a mixture of both.

    Levels of widths C = inner_channels * channel_mults at H, H/2, H/4, ...: `res_blocks` residual blocks a level on the
    way down, one more a level on the way up, each after a CS-Fusion, CP-Down and CP-Up between levels, attention in the
    middle.

    Args:
        in_channels: of condition and sample together.
        out_channels: of the prediction.
        inner_channels: C of level 0.
        channel_mults: each twice the one before, as CP-Down doubles the width.
        res_blocks: per level.
        norm_groups: of every GroupNorm over nominal channels.
        dropout: before the second convolution of a block.
        image_size: nominal side of level 0; it does not limit the images that the network runs on.
        real_resolutions: nominal sides of the levels that are real on the way up. The way down, the middle and CP-Up
            are binary.
        total_steps: of the training schedule.
        timestep_groups: K of TaR and TaA, equal parts of the schedule.
        group_rule: "sample": each sample has the group of its timestep. "first": all have that of the first sample, as
            in the original, which draws one timestep a batch.
        variant: see tasks.super_resolution.conv_variants.VARIANTS.
        tau: of the expansion; weights and operations of all convolutions stay those of tau = groups = 1. The trunk has
            tau*groups*C channels, and a GroupNorm tau*groups times more groups of the same size.
        groups: of the expansion.
        real_path: how the real levels read an expanded trunk. "slice": they are those of the plain network and read
            the first C channels of the trunk and of the skips. "carry": they have tau*groups*C channels, with real
            convolutions shrunk and tiled like binary ones, and the head reads the first C. A real fusion has no
            identity, so "carry" shrinks u and the skip to C/tau maps and equal copies of them; "slice" keeps C.
        copy_rule: how CP-Down, CP-Up and CS-Fusion divide channels. "block": inside each copy, as in the plain network,
            so every block of C channels stays a whole network. "mix": over all channels. A fusion then has u in the
            first half of all channels and the skip in the second, so a layer that reads only the first C misses the
            skip, and groups of a convolution read one of the two.
        copy_spread: > 0 starts the copies of every shift as a thermometer code
            (esbnn_core.layers.widths.thermometer_shift).
            Differs from the paper: there all copies start equal.
        prediction_type: what it is trained to predict, see tasks.super_resolution.schedulers.Target. The forward does
            not depend on it; training and every sampler do, and a file remembers it.
        zero_terminal_snr: whether it is trained on betas that end in pure noise, likewise.

    Raises:
        InputError: an option of the wrong kind or out of range; widths that norm_groups or tau*groups do not divide.
    """

    official_keys = "tasks.super_resolution.official"
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
        prediction_type: Prediction = "epsilon",
        zero_terminal_snr: bool = False,
    ) -> None:
        super().__init__()
        check_choice("prediction_type", prediction_type, get_args(Prediction))
        if zero_terminal_snr and prediction_type == "epsilon":
            raise InputError(
                "prediction_type must be sample or v_prediction with zero_terminal_snr, got epsilon: the last step is "
                "pure noise, which says nothing of the image"
            )
        check_counts(in_channels=in_channels, out_channels=out_channels, inner_channels=inner_channels)
        check_counts(res_blocks=res_blocks, norm_groups=norm_groups)
        check_counts(total_steps=total_steps, timestep_groups=timestep_groups)
        check_factors(tau, groups)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be a probability of at least 0 and below 1, got {dropout}")
        check_choice("group_rule", group_rule, get_args(GroupRule))
        check_choice("real_path", real_path, get_args(RealPath))
        widths = [inner_channels * mult for mult in channel_mults]
        _check_widths(widths, norm_groups)
        sides = [image_size / 2**level for level in range(len(widths))]
        unknown = [side for side in real_resolutions if side not in sides]
        if unknown:
            raise InputError(
                f"real_resolutions must be sides of levels of image_size {image_size} "
                f"({', '.join(f'{side:g}' for side in sides)}), got {list(real_resolutions)}"
            )
        trunk = ConvStyle(variant, timestep_groups, Expansion(tau, groups, copy_spread), copy_rule)
        if real_path == "slice":
            real = ConvStyle("real")
        else:
            real = ConvStyle("real", expansion=Expansion(tau, groups), copy_rule=copy_rule)
        up = [real if side in real_resolutions else trunk for side in sides]
        if real.wide != trunk.wide and any(up[i] is trunk and up[i + 1] is real for i in range(len(up) - 1)):
            raise InputError(
                f"real_resolutions must contain every side above its smallest if real_path is 'slice', got "
                f"{list(real_resolutions)} with tau={tau}, groups={groups}: add these sides or choose 'carry'"
            )
        self.total_steps, self.timestep_groups, self.group_rule = total_steps, timestep_groups, group_rule
        self.wide, self.inner_channels, self.levels = trunk.wide, inner_channels, len(widths)

        self.time_code = TimeCode(inner_channels)
        self.time_mlp = nn.Sequential(
            nn.Linear(inner_channels, 4 * inner_channels), nn.SiLU(), nn.Linear(4 * inner_channels, inner_channels)
        )

        def block(width: int, style: ConvStyle, name: str, attention: bool = False) -> ResidualBlock:
            return ResidualBlock(width, style, inner_channels, norm_groups, dropout, attention, name)

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
                ups.append(CPUp(width, _style_up(trunk, up[level]), f"ups.{len(ups)}"))
        self.downs, self.middle, self.ups = nn.ModuleList(downs), nn.ModuleList(middle), nn.ModuleList(ups)
        self.norm = nn.GroupNorm(norm_groups, inner_channels)
        self.head = nn.Conv2d(inner_channels, out_channels, 3, padding=1)

    @property
    def target(self) -> Target:
        """What it is trained to predict."""
        return Target(self.config.prediction_type, self.config.zero_terminal_snr)

    @property
    def saved_options(self) -> dict[str, Any]:
        """What a checkpoint says of its training, besides the paper's: tensors alone do not show it."""
        return {key: value for key, value in self.target._asdict().items() if value != PAPER._asdict()[key]}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As ModelMixin.from_pretrained, but strict: diffusers initialises tensors that are missing and continues.

        Raises:
            InputError: a missing, extra or reshaped tensor, named.
            DamagedError: a file that is not what save_pretrained wrote.
        """
        check_sums(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        with_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("low_cpu_mem_usage", False)  # True needs one more package, accelerate
        try:
            unet, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            lines = [line.strip(" \t.") for line in str(error).splitlines() if "size mismatch" in line]
            if not lines:
                raise
            raise InputError(_describe_misfit(pretrained_model_name_or_path, lines)) from error
        faults = [f"{name} is missing" for name in info["missing_keys"]]
        faults += [f"{name} is not expected" for name in info["unexpected_keys"]]
        if faults:
            raise InputError(_describe_misfit(pretrained_model_name_or_path, faults))
        return (unet, info) if with_info else unet

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As ModelMixin.save_pretrained, with the checksums that from_pretrained compares."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_sums(save_directory)

    def moment(self, timestep: Tensor | float | int, batch: int) -> Moment:
        """Embedding and groups for a timestep () or (1,) of the whole batch, or for (N,) of its samples."""
        t = torch.as_tensor(timestep, device=self.head.weight.device)
        if t.dim() > 1 or t.numel() not in (1, batch):
            raise InputError(
                f"timestep must be one number or one for each of {batch} samples, got shape {tuple(t.shape)}"
            )
        t = t.reshape(-1)
        group = timestep_group(t, self.timestep_groups, self.total_steps)
        if self.config.variant != "bi":
            group = torch.zeros_like(group[:1])  # units of other variants have one group
        elif self.group_rule == "first":
            group = group[:1]
        return Moment(self.time_mlp(self.time_code(t, self.head.weight.dtype)), group)

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, condition: Tensor, return_dict: bool = True
    ) -> UNetOutput | tuple[Tensor]:
        """Predict the noise in `sample`, or what prediction_type says.

        Args:
            sample: noisy images (N, 3, H, W); H and W are multiples of 2^(levels - 1).
            timestep: t, a number, () or (N,).
            condition: the low resolution upscaled to (N, 3, H, W), in [0, 1].
            return_dict: False gives (noise,) in place of UNetOutput(sample=noise).

        Raises:
            InputError: sizes that differ or cannot be halved often enough; timesteps of another batch.
        """
        self._check_maps(sample, condition)
        moment = self.moment(timestep, sample.shape[0])  # torch.export fixes what len returns
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
                f"sample and condition must be (N, 3, H, W) of one size, got {tuple(sample.shape)} and "
                f"{tuple(condition.shape)}"
            )
        if sample.shape[2] % stride or sample.shape[3] % stride or 0 in sample.shape[2:]:
            raise InputError(
                f"sides of a sample must be multiples of {stride}, got {sample.shape[2]} x {sample.shape[3]}: pad the "
                f"image on its right and bottom and crop the result"
            )


def _describe_misfit(source: str | os.PathLike[str], faults: list[str]) -> str:
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return (
        f"the tensors in {source} do not fit the network of its config.json: {'; '.join(faults[:3])}{more}: take both "
        f"files from one save_pretrained"
    )


def _style_up(trunk: ConvStyle, level: ConvStyle) -> ConvStyle:
    """The style of a binary CP-Up on a level: the trunk's, at the width of the level."""
    if level.wide == trunk.wide:
        return trunk
    return ConvStyle(trunk.variant, trunk.timestep_groups)


def _check_widths(widths: list[int], norm_groups: int) -> None:
    if not widths or any(after != 2 * before for before, after in itertools.pairwise(widths)):
        raise InputError(f"each width must be twice the one before, got {widths}: correct channel_mults")
    for width in widths:
        if width % norm_groups or width % 2:
            raise InputError(
                f"the channels of a level must be even and a multiple of norm_groups={norm_groups}, got {width}: "
                f"choose inner_channels and norm_groups to fit"
            )
