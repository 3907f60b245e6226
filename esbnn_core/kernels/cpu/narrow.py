"""Whether this processor computes in bfloat16 and float16, or torch's real layers have to imitate them.

A packed network in a narrow type keeps its exact sums, but its real layers are torch's. Without instructions for the
type they convert every value to float32 and back, and the network is slower than in float32.
"""

import functools
import sys

import torch

NATIVE = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx_ne_convert", "avx10_1", "avx10_2", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_1", "avx10_2", "fp16"),
}
"""The processor's features that compute in each type, as torch.cpu.get_capabilities names them."""


@functools.cache
def is_native(dtype: torch.dtype) -> bool | None:
    """Whether the processor has instructions for a narrow type; None where torch does not tell.

    Args:
        dtype: torch.bfloat16 or torch.float16.
    """
    ask = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 does not have it
    found = ask() if ask is not None else {}
    known = [bool(found[name]) for name in NATIVE[dtype] if name in found]
    return any(known) if known else None


def computing_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which a convolution of `dtype` operands is computed: float32 on a CPU that imitates `dtype`.

    Its result, rounded to `dtype`, is the same up to the order of sums, and comes several times sooner.
    """
    imitated = device.type == "cpu" and dtype in NATIVE and is_native(dtype) is False
    return torch.float32 if imitated else dtype


@functools.cache
def mention(
    dtype: torch.dtype,
    what: str = "real layers in {} are slower than in float32",
    advice: str = "leave the packed network in float32 here",
) -> None:
    """Print one line a process on stderr where something runs in a type that the processor imitates.

    Args:
        dtype: the type, whose name takes the place of {} in `what`.
        what: follows from it.
        advice: what to do.
    """
    if is_native(dtype) is False:
        name = str(dtype).removeprefix("torch.")
        print(f"esbnn: this processor has no {name} instructions, so {what.format(name)}: {advice}", file=sys.stderr)
