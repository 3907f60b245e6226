"""What a network costs: operations, parameters and bytes, whatever it is made of."""

from esbnn_core.counting.cost import Count, count, tensor_bytes
from esbnn_core.counting.outside import LayerCount

__all__ = ["Count", "LayerCount", "count", "tensor_bytes"]
