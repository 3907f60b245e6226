"""Sessions of ONNX Runtime for the files of export_onnx."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esbnn_core.errors import InputError, check_counts
from esbnn_core.onnx.file import read_file, require
from esbnn_core.onnx.library import operators_library


def session(path: str | Path, threads: int | None = None, library: str | Path | None = None) -> Any:
    """An onnxruntime.InferenceSession on the CPU, with the binary operators that the file needs.

    `session(path).run(None, {"images": array})` returns the outputs as a list of arrays. What the runtime refuses there
    is an InputError too.

    Args:
        path: a file of export_onnx.
        threads: of an operator; default: those that the runtime takes, one a core.
        library: of the operators, for a machine without a compiler; default: operators_library().

    Raises:
        InputError: a file that is missing, damaged, of another program or version; no library where the file needs one,
            or one that ONNX Runtime cannot load; the extra `onnx` is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    data, metadata = read_file(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log is raised
    if threads is not None:
        check_counts(threads=threads)
        options.intra_op_num_threads = threads
    if metadata.get("esbnn_operators") != "standard":
        _register(options, Path(operators_library() if library is None else library))
    try:
        return _session_class()(data, options, str(path))
    except Exception as error:
        if not _is_runtimes(error):
            raise
        raise InputError(f"network {path} cannot be run by ONNX Runtime ({_plain(error)}): export it again") from error


def _register(options: Any, library: Path) -> None:
    if not library.is_file():
        raise InputError(f"library {library} of operators does not exist: operators_library() makes one")
    try:
        options.register_custom_ops_library(str(library.absolute()))
    except Exception as error:
        raise InputError(
            f"library {library} must be one of operators for this ONNX Runtime and processor, got one that it cannot "
            f"load ({_plain(error)}): take that of operators_library()"
        ) from error


def _is_runtimes(error: Exception) -> bool:
    """Whether it is one of onnxruntime's own classes."""
    return type(error).__module__.startswith("onnxruntime")


def _plain(error: Exception) -> str:
    """The message on one line, without the runtime's prefix; that of a binary operator alone where one refuses."""
    text = " ".join(str(error).split())
    own = re.search(r"esbnn::\w+: .*", text)
    return own[0] if own else re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+\.(?:h|cc):\d+ ", "", text)


@functools.cache
def _session_class() -> Any:
    import onnxruntime

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        """As its parent; what the runtime refuses is an InputError of one sentence."""

        def __init__(self, data: bytes, options: Any, path: str) -> None:
            super().__init__(data, options, providers=["CPUExecutionProvider"])
            self.path = path

        def run(
            self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
        ) -> Any:
            try:
                return super().run(output_names, input_feed, run_options)
            except Exception as error:
                if not _is_runtimes(error):
                    raise
                raise InputError(_refusal(self.path, _plain(error))) from error

    return Session


def _refusal(path: str, text: str) -> str:
    size = re.search(r"invalid dimensions for input: (\S+) .*index: (\d+) Got: (\d+) Expected: (\d+)", text)
    if size:
        name, place, got, wanted = size.groups()
        return (
            f"input {name} of network {path} must have the size {wanted} in dimension {place}, which the export fixed, "
            f"got {got}: resize the images, or export the network for that size"
        )
    return f"network {path} cannot run on this input ({text}): give another"
