"""A binary matrix product as a convolution, which is how every implementation computes it."""

from torch import Tensor

from esbnn_core.kernels.call import ConvCall, Epilogue, Geometry

LINEAR_SCHEMA = (
    "binary_linear(Tensor x, Tensor weight, SymInt features, SymInt groups, SymInt copies, Tensor? scale, "
    "Tensor? bias, Tensor? lanes=None) -> Tensor"
)
"""The operator of torch.library; as call.SCHEMA."""


def long_row(
    x: Tensor,
    weight: Tensor,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
    lanes: Tensor | None = None,
) -> ConvCall:
    """The call of a 1x1 convolution over one image, whose only row of pixels is the rows of x.

    Args:
        x: (..., words) int32.
        weight: (O, words of a group) int32.
        features: I over all groups.
        groups: of the features and of the filters.
        copies: tiles of the O outputs.
        scale: (copies*O,) floating, or None for the int32 sums.
        bias: as scale.
        lanes: as ConvCall.
    """
    rows = x.reshape(1, 1, -1, x.shape[-1])
    geometry = Geometry(features, pad_value=-1, groups=groups, copies=copies)
    return ConvCall(rows, weight[:, None, None], geometry, Epilogue(scale, bias), None, lanes)
