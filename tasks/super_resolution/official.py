"""Names of the tensors in BI-DiffSR's released files, for load_official and to_official.

Importing this file declares them, which `BIDiffSRUNet.official_keys` asks esbnn_core for. A file is
{"params": state_dict}; those of x2 and x4 have the same names. Names and shapes are facts, none of the original's code
is here.
"""

import re
from collections.abc import Collection

from torch import nn

from esbnn_core.checkpoint.official_keys import KeyMap, declare
from tasks.super_resolution.unet import BIDiffSRUNet


def _is_official(model: nn.Module) -> bool:
    """The networks with files, and expanded or smaller ones, whose files would have the same names."""
    return isinstance(model, BIDiffSRUNet) and model.config.variant == "bi"


def _shift_numbers(name: str, key: str, keys: Collection[str]) -> str:
    """downs.0 -> downs.1, stem -> downs.0: the original counts the first convolution among the steps down."""
    name = re.sub(r"^downs\.(\d+)", lambda m: f"downs.{int(m.group(1)) + 1}", name)
    return re.sub(r"^stem\.", "downs.0.", name)


BI_DIFFSR = KeyMap(
    fits=_is_official,
    rules=(
        (r"\.conv\.weight$", ".binary_conv.weight"),  # of a unit; a real convolution in its place has no .conv
        (r"^time_mlp\.0\.", "timestep_level_mlp.1."),
        (r"^time_mlp\.2\.", "timestep_level_mlp.3."),
        (r"^middle\.", "mid."),
        (r"^norm\.", "final_conv.block.0."),
        (r"^head\.", "final_conv.block.3."),
        (r"\.attention\.", ".attn."),
        (r"\.time\.", ".res_block.timestep_func.1."),
        (r"\.norm([12])\.", r".res_block.block\1.block.0."),
        (r"\.conv([12])\.", r".res_block.block\1.conv."),
        (r"\.first\.", ".biconv1."),
        (r"\.second\.", ".biconv2."),
        (r"\.odd\.", ".biconv_1."),
        (r"\.even\.", ".biconv_2."),
        (r"\.shift\.shifts\.(\d)$", r".TaR.dynamic_move_\1.bias"),
        (r"\.act\.shifts_in\.(\d)$", r".TaA.dynamic_relu_\1.pr_bias0.bias"),
        (r"\.act\.slopes\.(\d)$", r".TaA.dynamic_relu_\1.pr_prelu.weight"),
        (r"\.act\.shifts_out\.(\d)$", r".TaA.dynamic_relu_\1.pr_bias1.bias"),
    ),
    looks=(("TaR.dynamic_move_0", "BI-DiffSR's UNet (tasks.super_resolution.unet.BIDiffSRUNet)"),),
    fix=_shift_numbers,
    shapes={r"(dynamic_move_\d|pr_bias[01])\.bias$": (1, -1, 1, 1)},
)
declare("bi_diffsr", BI_DIFFSR)
