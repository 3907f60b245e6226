"""Whether a call may go past torch's dispatcher, which takes longer than a small layer."""

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]
from torch.compiler import is_compiling


def unwatched(x: Tensor, residual: Tensor | None = None) -> bool:
    """Whether nothing but the kernel would see a call on these tensors: it then may be called by itself.

    Not so while something traces, compiles, exports, profiles or transforms (torch.func) the call, for a subclass of
    Tensor, under a mode (a default device is one), for an input that wants a gradient, and on another device than the
    CPU.
    """
    return (
        type(x) is Tensor
        and x.is_cpu
        and not is_compiling()
        and not _len_function_modes()
        and not _len_dispatch_modes()
        and _transform() is None
        and _tracing() is None
        and not _profiler_enabled()
        and (residual is None or type(residual) is Tensor)
        and not (torch.is_grad_enabled() and (x.requires_grad or (residual is not None and residual.requires_grad)))
    )


_len_function_modes = torch._C._len_torch_function_stack
_len_dispatch_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state
