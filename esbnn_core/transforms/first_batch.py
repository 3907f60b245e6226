"""What only a batch shows of a network that binarize_ made: signs that are constant, binary layers that never run.

The first forward of the whole network is watched once, and one warning names what was found. Watching ends there; it
does nothing under torch.compile, torch.export, torch.jit.trace and on the meta device.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esbnn_core.layers import Sign
from esbnn_core.layers.activations import per_channel
from esbnn_core.layers.base import BinaryLayer


class FirstBatch:
    """Hooks on a network and its binary layers that remove themselves after the first forward."""

    def __init__(self, model: nn.Module, layers: Sequence[tuple[str, BinaryLayer]]) -> None:
        self.names = {layer: name for name, layer in layers}
        self.constant: list[str] = []
        self.ran: set[str] = set()
        self.handles: list[RemovableHandle] = [layer.register_forward_pre_hook(self.watch) for _, layer in layers]
        self.handles.append(model.register_forward_hook(self.report))

    def watch(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Hook of a binary layer: is every sign of its input the same?"""
        if _is_recorded() or not inputs or not isinstance(inputs[0], Tensor) or layer not in self.names:
            return
        name, x = self.names[layer], inputs[0].detach()
        if x.is_meta or x.numel() == 0:
            return
        self.ran.add(name)
        sign = getattr(layer, "sign", None)
        if not isinstance(sign, Sign):
            return
        if sign.shift is not None:
            x = x + per_channel(sign.shift.detach(), x, sign.channel_dim)
        low, high = torch.aminmax(x)
        if low >= 0 or high < 0:
            self.constant.append(name)

    def report(self, model: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Hook of the network: warn once of what was found, and stop watching."""
        if _is_recorded() or not self.ran:
            return
        for handle in self.handles:
            handle.remove()
        if self.constant:
            warnings.warn(
                f"{named(self.constant)} of {len(self.names)} binary layers gave the same sign everywhere in the first "
                f"batch, so nothing of their input is left: put an activation with negative values in front of them "
                f"(BinaryConfig.activation replaces modules, a function such as F.relu has to become one)",
                stacklevel=2,
            )
        inside = set(model.modules())  # another verb, such as expand_, may have replaced some
        if idle := [name for layer, name in self.names.items() if name not in self.ran and layer in inside]:
            warnings.warn(
                f"{named(idle)} of {len(self.names)} binary layers did not run in the first forward: where another "
                f"module reads their weights, it reads the real ones: leave them out with filter_fn",
                stacklevel=2,
            )


def _is_recorded() -> bool:
    """Whether this forward becomes a program, in which the hooks would be steps, and the next one has none."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def named(names: Sequence[str], most: int = 4) -> str:
    """`5 (a, b, c, d and 1 more)` for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{more})"
