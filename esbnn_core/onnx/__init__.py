"""Packed networks as ONNX files, and the sessions of ONNX Runtime that run them on the same kernels.

Importing this package reads neither onnx nor onnxruntime; both come with the extra `onnx`.
"""

from esbnn_core.onnx.export import Exported, export_onnx
from esbnn_core.onnx.library import operators_library
from esbnn_core.onnx.session import session

__all__ = ["Exported", "export_onnx", "operators_library", "session"]
