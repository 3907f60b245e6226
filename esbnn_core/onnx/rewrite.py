"""Real steps of a graph written as fewer ones, which a runtime walks through maps fewer times.

Real layers are the runtime's, which rounds in its own way: only the sums of binary layers are exact. So

- a BatchNorm of copies of a map, and a max-pooling after it, become a max-pooling of the map itself and an operator
  that makes and scales the copies (as fold_real_ does in PyTorch);
- gate, BatchNorm, PReLU and residual become one operator, `Tail`;
- a mean over all pixels becomes `Means`, one over windows side by side `AveragePool`.

They read maps with their channels last, as the binary layers do.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from esbnn_core.onnx.operators import DOMAIN, TO_FIRST, TO_LAST

TAIL, MEANS, AVERAGE = "Tail", "Means", "AveragePool"


def rewrite(model: ir.Model) -> None:
    """Write norms, gates, slopes and means with the operators of the domain `esbnn`, in place."""
    for replace in (_norm, _prelu, _mean, _average):
        for node in list(model.graph):
            tape = Tape()
            made = replace(node, tape)
            if made is None:
                continue
            old, new = made
            for value in tape.initializers:
                model.graph.register_initializer(value)
            last = old.producer()  # after everything that the new nodes read
            assert last is not None
            model.graph.insert_before(last, tape.nodes)
            new.shape, new.dtype = old.shape, old.dtype or ir.DataType.FLOAT
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        RemoveUnusedNodesPass()(model)


Made = tuple[ir.Value, ir.Value] | None
"""A value and the one that takes its place."""


def _norm(node: ir.Node, tape: Tape) -> Made:
    """BatchNorm, with what is around it, as a Tail; not where the runtime folds it into the convolution before it."""
    if node.op_type != "BatchNormalization" or len(node.outputs) != 1:
        return None
    affine = _affine(node)
    x, out = node.inputs[0], node.outputs[0]
    if affine is None or x is None or x.shape is None or len(x.shape) != 4:
        return None
    scale, bias = affine
    gate = factor = residual = None
    copies = 1
    before = x.producer()
    if before is not None and before.op_type == "Conv":
        return None
    if before is not None and before.op_type == "Concat" and _alone(x) and len(set(before.inputs)) == 1:
        x, copies = before.inputs[0], len(before.inputs)
        assert x is not None
        out, pooled = _pooled(x, out, scale, tape)
        x = x if pooled is None else pooled
    else:
        split = _gated(x)
        if split is not None:
            gate, factor, x = split
        residual, out = _residual(out)
    assert x is not None
    vectors = tuple(tape.initializer(ir.tensor(v, name=f"{node.name}_{key}")) for key, v in _named(scale, bias, None))
    return out, _tail(tape, x, copies, *vectors, None, gate, factor, residual)


def _named(*values: np.ndarray | None) -> list[tuple[str, np.ndarray]]:
    return [(key, v) for key, v in zip(("scale", "bias", "slope"), values, strict=True) if v is not None]


def _prelu(node: ir.Node, tape: Tape) -> Made:
    """PReLU of a map as a Tail."""
    x = node.inputs[0] if node.inputs else None
    if node.op_type != "PRelu" or x is None or x.shape is None or len(x.shape) != 4:
        return None
    slope = _numbers(node.inputs[1])
    if slope is None:
        return None
    channels = x.shape[1]
    if slope.size != channels or slope.shape[-3:] != (channels, 1, 1):
        return None
    vector = tape.initializer(ir.tensor(slope.reshape(-1), name=f"{node.name}_slope"))
    return node.outputs[0], _tail(tape, x, 1, None, None, vector)


def _mean(node: ir.Node, tape: Tape) -> Made:
    """The mean over the pixels of a map as Means."""
    x = node.inputs[0] if node.inputs else None
    if node.op_type != "ReduceMean" or x is None or x.shape is None or len(x.shape) != 4 or _is_pixel(x):
        return None
    axes = _numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]:
        return None
    if "keepdims" in node.attributes and node.attributes["keepdims"].as_int() != 1:
        return None
    mean = tape.op(MEANS, [_last(tape, x)], domain=DOMAIN)
    return node.outputs[0], tape.op("Transpose", [mean], {"perm": TO_FIRST})


def _average(node: ir.Node, tape: Tape) -> Made:
    """Means over windows side by side, the last cut where the image ends, after a map with its channels last."""
    x = node.inputs[0] if node.inputs else None
    before = None if x is None else x.producer()
    if node.op_type != "AveragePool" or node.domain or before is None or before.op_type not in ("Transpose", "Concat"):
        return None
    given = {key: attribute.value for key, attribute in node.attributes.items()}
    kernel, strides, pads = (list(given.get(key, ())) for key in ("kernel_shape", "strides", "pads"))
    cut = given.get("ceil_mode") == 1 and given.get("count_include_pad", 0) == 0
    if len(kernel) != 2 or kernel[0] != kernel[1] or strides != kernel or any(pads) or not cut or x is None:
        return None
    mean = tape.op(AVERAGE, [_last(tape, x)], {"side": kernel[0]}, domain=DOMAIN)
    return node.outputs[0], tape.op("Transpose", [mean], {"perm": TO_FIRST})


def _tail(tape: Tape, x: ir.Value, copies: int, *rest: ir.Value | None) -> ir.Value:
    """x, then scale, bias, slope (vectors), gate, factor, residual, channels first."""
    inputs = [_last(tape, x), *rest[:3], *(value if value is None else _last(tape, value) for value in rest[3:])]
    while inputs[-1] is None:
        inputs.pop()
    y = tape.op(TAIL, inputs, {"copies": copies}, domain=DOMAIN)
    return tape.op("Transpose", [y], {"perm": TO_FIRST})


def _last(tape: Tape, x: ir.Value) -> ir.Value:
    """x with its channels last."""
    return tape.op("Transpose", [x], {"perm": TO_LAST})


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant."""
    if value is None:
        return None
    constant = ir.convenience.get_const_tensor(value)
    return None if constant is None else np.asarray(constant.numpy())


def _affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and offset of a BatchNorm, worked out in float64 and rounded once."""
    numbers = [_numbers(value) for value in node.inputs[1:5]]
    if any(one is None for one in numbers):
        return None
    weight, bias, mean, variance = (np.asarray(one, np.float64) for one in numbers)
    factor = weight / np.sqrt(variance + _epsilon(node))
    return factor.astype(np.float32), (bias - mean * factor).astype(np.float32)


def _epsilon(node: ir.Node) -> float:
    return node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5


def _alone(value: ir.Value) -> bool:
    """Whether one node reads the value, and nobody outside the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _reader(value: ir.Value, kind: str) -> ir.Node | None:
    """The only reader of a value, if it is of this kind."""
    if not _alone(value):
        return None
    (use,) = value.uses()
    node = use.node
    return node if node.op_type == kind and node.domain == "" else None


def _pooled(x: ir.Value, out: ir.Value, scale: np.ndarray, tape: Tape) -> tuple[ir.Value, ir.Value | None]:
    """The value after a max-pooling that can go before the copies, and the pooled map; else `out` and None.

    max(a * x + b) is a * max(x) + b for every a that is not negative.
    """
    pool = _reader(out, "MaxPool")
    if pool is None or (scale < 0).any() or len(pool.outputs) != 1:
        return out, None
    pooled = tape.op("MaxPool", [x], pool.attributes)
    pooled.dtype = x.dtype or ir.DataType.FLOAT
    return pool.outputs[0], pooled


def _is_pixel(value: ir.Value) -> bool:
    """Whether a value is (N, C, 1, 1)."""
    return value.shape is not None and len(value.shape) == 4 and list(value.shape)[2:] == [1, 1]


def _product(value: ir.Value) -> Sequence[ir.Value] | None:
    """The factors of a product that nothing else reads."""
    node = value.producer()
    if node is None or node.op_type != "Mul" or not _alone(value):
        return None
    found = [one for one in node.inputs if one is not None and one.shape is not None and len(one.shape) == 4]
    return found if len(found) == 2 else None


def _gated(x: ir.Value) -> tuple[ir.Value, ir.Value | None, ir.Value] | None:
    """Gate, factor and map of gate * map or gate * map * factor."""
    factors = _product(x)
    if factors is None:
        return None
    for one, other in (factors, factors[::-1]):
        if _is_pixel(one) and _same_channels(one, other) and not _is_pixel(other):
            return one, None, other
        inner = _product(one)
        if inner is None or not _same(one, other):
            continue
        for gate, map_ in (inner, inner[::-1]):
            if _is_pixel(gate) and _same_channels(gate, map_) and not _is_pixel(map_):
                return gate, other, map_
    return None


def _residual(out: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    """What is added to a map of the same shape, and the sum."""
    add = _reader(out, "Add")
    if add is None:
        return None, out
    others = [value for value in add.inputs if value is not out]
    if len(others) != 1 or others[0] is None or not _same(out, others[0]):
        return None, out
    return others[0], add.outputs[0]


def _same(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and other.shape is not None and one.shape == other.shape


def _same_channels(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and other.shape is not None and one.shape[1] == other.shape[1]
