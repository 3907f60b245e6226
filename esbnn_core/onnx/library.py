"""The library of operators that ONNX Runtime loads: the one that the CPU kernels are in."""

from pathlib import Path

from esbnn_core.errors import InputError
from esbnn_core.kernels.cpu.library import try_build


def operators_library() -> Path:
    """The library's file in the user's cache folder; compiled once, at the first call.

    Any program that runs ONNX Runtime 1.17 or later can register it, in Python with
    SessionOptions.register_custom_ops_library. It needs neither Python nor torch.

    Raises:
        InputError: no compiler was found, or it fails.
    """
    target, reason = try_build()
    if target is None:
        raise InputError(
            f"the operators for ONNX Runtime must be compiled, but {reason}: fix that, or write the network with "
            f"esbnn export --standard, which needs no operators"
        )
    return target
