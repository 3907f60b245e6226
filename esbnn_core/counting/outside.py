"""How a network is run to be counted: a copy on the meta device, and what works outside of layers is seen."""

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from esbnn_core.errors import InputError


@dataclass(frozen=True)
class LayerCount:
    """One row of the table.

    Attributes:
        name: of the module in the network.
        kind: its class; in brackets the operator, where a module multiplies by itself.
        output: shape for one input, without N.
        macs: multiply-accumulates for one input.
        weights: number of weights.
        binary: whether the multiply-accumulates are binary.
        counted: False for products of two activations, which the papers' OPs leave out.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    macs: int
    weights: int
    binary: bool
    counted: bool = True


def check_not_lazy(model: nn.Module) -> None:
    """Raise InputError that names the first parameter or buffer without a shape (nn.LazyLinear and its like)."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InputError(f"{name} must have a shape, its layer is lazy: run the network once on an input first")


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, made without copying data.

    copy.deepcopy refuses tensors that were computed from parameters, as weight_norm, spectral_norm and pruning leave
    them on their modules; here every tensor is replaced by an empty one before copying.
    """
    memo: dict[int, Any] = {}
    held: list[Tensor] = []
    for module in model.modules():
        values = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        held += [value for value in values if isinstance(value, Tensor)]
        # ten empty dictionaries of hooks and a set in each module, which deepcopy would take apart: most of its time
        memo |= {id(value): type(value)() for value in values if type(value) in (OrderedDict, dict, set) and not value}
    for tensor in held:
        if id(tensor) not in memo:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    # a module may copy itself in a way of its own
    return copy.deepcopy(model, memo).to("meta")


def _metadata(value: Any) -> Any:
    """A key of what decides an operator's result on meta: 1, 1.0 and True differ, tensors by what they have there."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(_metadata(part) for part in value)
    return type(value), value


_MOST = 20_000
_SHAPES: dict[Any, tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]] = {}
"""What operators return on meta, for each tensor: torch works it out in Python, and blocks and networks repeat it."""


@functools.cache
def _returns(func: Any) -> int:
    """How many tensors the operator returns, all new; -1 where it returns its first argument, changed; 0 otherwise."""
    schema = func._schema
    if any(str(value.type) != "Tensor" for value in schema.returns):
        return 0
    if not schema.is_mutable:
        return 0 if any(value.alias_info for value in schema.returns) else len(schema.returns)
    changed = [number for number, value in enumerate(schema.arguments) if value.alias_info]
    return -1 if changed == [0] and len(schema.returns) == 1 else 0


class Outside(TorchDispatchMode):
    """Counts products of matrices and convolutions that run outside of the layers given to `skip`.

    A product with a parameter (nn.MultiheadAttention, a functional linear) is a real layer's work; one of two
    activations (attention) is entered as not counted.

    Args:
        network: on the meta device, or with its data.
        rows: what is found is appended here.
    """

    def __init__(self, network: nn.Module, rows: "list[LayerCount]") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.depth = 0
        self.on_meta = all(tensor.is_meta for tensor in network.parameters())
        self.path: list[str] = []
        # by storage: a product may read a transposed view or a part of a parameter
        self.parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        for name, module in network.named_modules():
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self.path.append(name)

        return enter

    def _leave(self, *_: Any) -> None:
        self.path.pop()

    def start_again(self) -> None:
        """Forget what a forward has shown that ended in an error."""
        self.rows.clear()
        self.path.clear()
        self.depth = 0

    def skip(self, layer: nn.Module) -> None:
        """Leave out what runs inside `layer`."""

        def enter(*_: Any) -> None:
            self.depth += 1

        def leave(*_: Any) -> None:
            self.depth -= 1

        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._call(func, args, kwargs or {})
        if self.depth == 0:
            self._record(func.overloadpacket.__name__, args, out)
        return out

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """func(*args, **kwargs), on meta from what is known."""
        if not self.on_meta:
            return func(*args, **kwargs)
        number = _returns(func)
        if not number:
            return func(*args, **kwargs)
        key = (func, _metadata(args), _metadata(tuple(kwargs.items())))
        if key not in _SHAPES:
            out = func(*args, **kwargs)
            outputs = out if number > 1 else (out,)
            # a forward may read numbers of what it makes on the CPU; what gives its argument another shape (t_) is
            # called each time
            there = all(each.is_meta for each in outputs)
            if there and len(_SHAPES) < _MOST and (number > 0 or _metadata(args) == key[1]):
                _SHAPES[key] = tuple((each.shape, each.stride(), each.dtype) for each in outputs)
            return out
        if number < 0:
            return args[0]
        made = tuple(
            torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in _SHAPES[key]
        )
        return made if number > 1 else made[0]

    def _record(self, called: str, args: Any, out: Any) -> None:
        if called in ("mm", "bmm"):
            operands, macs = args[:2], math.prod(args[0].shape) * args[1].shape[-1]
        elif called in ("addmm", "baddbmm"):
            operands, macs = args[1:3], math.prod(args[1].shape) * args[2].shape[-1]
        elif called in ("mv", "dot"):
            operands, macs = args[:2], args[0].numel()
        elif called == "addmv":
            operands, macs = args[1:3], args[1].numel()
        elif called == "convolution":
            placed = args[0] if args[6] else out  # of the input where transposed
            operands, macs = args[1:2], args[1].numel() * math.prod(placed.shape[2:])
        elif called.startswith("_scaled_dot_product"):
            query, key, value = args[:3]
            per_row = query.shape[-1] + value.shape[-1]
            operands, macs = (query, key), math.prod(query.shape[:-1]) * key.shape[-2] * per_row
        else:
            return
        shape = tuple((out[0] if isinstance(out, tuple) else out).shape)
        weights = sum(x.numel() for x in operands if x.untyped_storage()._cdata in self.parameters)
        counted = weights > 0 or called == "convolution"
        self.rows.append(LayerCount(self.path[-1], f"({called})", shape, macs, weights, False, counted=counted))
