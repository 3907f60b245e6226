"""The operators of the domain `esbnn` written as standard ONNX operators (opset 18), equal in every bit.

The sums are ConvInteger's, whose whole numbers no runtime may round; every later step is an operator of its own.
Weights stay bits in the file, as bytes that a runtime which folds constants unpacks when it loads the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from esbnn_core.errors import InputError
from esbnn_core.onnx.operators import CONVOLUTION, CONVOLUTION_INPUTS, DOMAIN, SIGN, TO_FIRST, TO_LAST


def to_standard(model: ir.Model) -> None:
    """Replace every node of the domain `esbnn`, in place."""
    IdentityEliminationPass()(model)
    signs: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        writer = _Writer(signs)
        replace = {CONVOLUTION: writer.convolve, SIGN: writer.sign}[node.op_type]
        replace(node)
        model.graph.insert_before(node, writer.tape.nodes)
    RemoveUnusedNodesPass()(model)
    assert not any(node.domain == DOMAIN for node in model.graph)
    model.opset_imports.pop(DOMAIN, None)


class _Writer:
    """Writes the nodes that replace one node.

    Attributes:
        tape: the nodes.
        signs: for each value of packed bits the same signs as bool: of PackSign with the channels last, as its words
            are, of a convolution (N, C, H, W).
    """

    def __init__(self, signs: dict[ir.Value, ir.Value]) -> None:
        self.tape, self.signs = Tape(), signs

    def op(self, name: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.tape.op(name, inputs, attributes)

    def constant(self, values: Any, dtype: Any) -> ir.Value:
        return self.op("Constant", value=ir.tensor(np.asarray(values, dtype)))

    def whole(self, values: Sequence[int] | int) -> ir.Value:
        return self.constant(values, np.int64)

    def channels_first(self, x: ir.Value) -> ir.Value:
        """(N, H, W, C) -> (N, C, H, W), without the transposition before it where there is one."""
        producer = x.producer()
        if producer is not None and producer.op_type == "Transpose" and _permutation(producer) == TO_LAST:
            before = producer.inputs[0]
            assert before is not None
            return before
        return self.op("Transpose", x, perm=TO_FIRST)

    def per_channel(self, vector: ir.Value) -> ir.Value:
        """(C,) -> (C, 1, 1)."""
        return self.op("Unsqueeze", vector, self.whole([1, 2]))

    def positive(self, x: ir.Value, shift: ir.Value | None) -> ir.Value:
        """Whether x + shift is at least 0, which NaN is not."""
        shifted = x if shift is None else self.op("Add", x, shift)
        return self.op("GreaterOrEqual", shifted, self.constant(0, np.float32))

    def sign(self, node: ir.Node) -> None:
        x, shift = (*node.inputs, None)[:2]
        assert x is not None
        signs = self.signs[node.outputs[0]] = self.positive(x, shift)
        for user, index in list(node.outputs[0].uses()):
            if user.op_type == "Shape":  # of the sizes before the channels, which are the same
                user.replace_input_with(index, signs)

    def signs_of(self, x: ir.Value, shift: ir.Value | None, channels: int) -> ir.Value:
        """The signs (N, C, H, W) that a convolution reads."""
        if x.dtype == ir.DataType.FLOAT:
            return self.positive(self.channels_first(x), None if shift is None else self.per_channel(shift))
        if x in self.signs:
            producer = x.producer()
            packed = producer is not None and producer.op_type == SIGN  # of a map with its channels last
            return self.op("Transpose", self.signs[x], perm=TO_FIRST) if packed else self.signs[x]
        row = x.producer()  # a linear layer's: the bits of PackSign as one long row
        assert row is not None and row.op_type == "Reshape" and row.inputs[0] is not None
        signs = self.op("Reshape", self.signs[row.inputs[0]], self.whole([1, 1, -1, channels]))
        return self.op("Transpose", signs, perm=TO_FIRST)

    def weights(self, weight: ir.Value, per_group: int) -> ir.Value:
        """uint8 weights (O, C/g, KH, KW), 2 and 0 for +-1, from the bytes of the bit-words.

        With int8 ones ONNX Runtime takes three times as long, and its earlier versions have no such ConvInteger.
        """
        if weight.const_value is None:
            raise InputError(
                f"the weights of a packed convolution must be stored in the file, got the value {weight.name} that is "
                f"computed: keep them in a buffer"
            )
        words = weight.const_value.numpy().astype("<i4")
        if words.ndim == 2:
            words = words[:, None, None]
        stored = self.constant(words.view(np.uint8)[..., None], np.uint8)
        bits = self.op("BitShift", stored, self.constant(range(8), np.uint8), direction="RIGHT")
        bits = self.op("BitwiseAnd", bits, self.constant(1, np.uint8))
        bits = self.op("Reshape", bits, self.whole([*words.shape[:3], 32 * words.shape[3]]))
        bits = self.op("Slice", bits, self.whole([0]), self.whole([per_group]), self.whole([3]))
        return self.op(
            "BitShift", self.op("Transpose", bits, perm=TO_FIRST), self.constant(1, np.uint8), direction="LEFT"
        )

    def sums(self, node: ir.Node, given: Mapping[str, ir.Value | None], numbers: Mapping[str, Any]) -> ir.Value:
        """The exact sums (N, O, H', W') as float."""
        x, weight = given["x"], given["weight"]
        assert x is not None and weight is not None
        channels, groups, padding = numbers["channels"], numbers["groups"], list(numbers["padding"])
        signs = self.signs_of(x, given["shift"], channels)
        # 2 and 0 around a zero point of 1 are +1 and -1; the padding of ConvInteger has the zero point
        values = self.op("Where", signs, self.constant(2, np.uint8), self.constant(0, np.uint8))
        if numbers["pad_value"] == -1 and any(padding):
            ring = self.whole([0, 0, *padding, 0, 0, *padding])
            values, padding = self.op("Pad", values, ring, self.constant(0, np.uint8)), [0, 0]
        sums = self.op(
            "ConvInteger",
            values,
            self.weights(weight, channels // groups),
            self.constant(1, np.uint8),
            self.constant(1, np.uint8),
            strides=list(numbers["stride"]),
            pads=padding * 2,
            dilations=list(numbers["dilation"]),
            group=groups,
        )
        return self.op("Cast", sums, to=ir.DataType.FLOAT)

    def convolve(self, node: ir.Node) -> None:
        left_out = [None] * (len(CONVOLUTION_INPUTS) - len(node.inputs))
        given = dict(zip(CONVOLUTION_INPUTS, (*node.inputs, *left_out), strict=True))
        numbers = {name: attribute.value for name, attribute in node.attributes.items()}
        y = self.sums(node, given, numbers)
        if numbers["copies"] > 1:
            y = self.op("Concat", *[y] * numbers["copies"], axis=1)
        for step, name in (("Mul", "scale"), ("Add", "bias"), ("PRelu", "prelu")):
            vector = given[name]
            if vector is not None:
                y = self.op(step, y, self.per_channel(vector))
        residual, rows, sign_shift = given["residual"], given["rprelu"], given["sign_shift"]
        if residual is not None:
            y = self.op("Add", y, self.channels_first(residual))
        if rows is not None:
            split = self.op("Unsqueeze", rows, self.whole([2, 3]))
            shift_in, slope, shift_out = self.tape.op_multi_out(
                "Split", [split], {"axis": 0, "num_outputs": 3}, num_outputs=3
            )
            y = self.op("Add", self.op("PRelu", self.op("Add", y, shift_in), slope), shift_out)
        if numbers["sign_groups"]:
            shift = None if sign_shift is None else self.per_channel(sign_shift)
            self.signs[node.outputs[1]] = self.positive(y, shift)
        self._hand_on(node.outputs[0], y)

    def _hand_on(self, last: ir.Value, y: ir.Value) -> None:
        """Let the readers of `last`, channels last, read y, channels first."""
        moved = self.op("Transpose", y, perm=TO_LAST)
        y.dtype, moved.dtype, moved.shape = last.dtype or ir.DataType.FLOAT, ir.DataType.FLOAT, last.shape
        for user, index in list(last.uses()):
            if user.op_type == "Transpose" and _permutation(user) == TO_FIRST and not user.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(user.outputs, [y])
            else:
                user.replace_input_with(index, moved)
        if last.is_graph_output():
            moved.name, last.name = last.name, None
            last.replace_all_uses_with(moved, replace_graph_outputs=True)


def _permutation(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())
