"""How fast is what people would run instead? Packed networks against a ResNet-18, also in int8, in three runtimes.

python -m benchmarks.speed.rivals [--threads 1] [--rounds 15] [--names reactnet_resnet18 ...] [--ours]

One image of 224x224, process time, all contenders in turns. The rival is torchvision's ResNet-18: in torch (float32 and
bfloat16, compiled and frozen, and int8), in ONNX Runtime and in OpenVINO (float32, and int8 after static quantization
with drawn images). Ours run packed in torch, as pack_ leaves them and after fold_real_, and, with the same kernels, in
ONNX Runtime. Weights are drawn, which changes no time. Needs the extra `bench`; writes rivals_CPU-PATH.json, a file for
each path of the processor. With --ours neither the rivals nor compiled networks run, and no file is written: how near
is PyTorch to ONNX Runtime?
"""

import argparse
import contextlib
import copy
import functools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.command import positive, run_command
from benchmarks.speed.networks import NAMES, Narrow
from benchmarks.speed.parts import anneal_, settle_
from benchmarks.timing import frozen, interleave, machine, write
from esbnn_core import create_model, fold_real_, pack_
from esbnn_core.onnx import export_onnx, session

RIVAL = "resnet18"
SHAPE = (1, 3, 224, 224)
Call = Callable[[], object]


def images(number: int) -> list[np.ndarray]:
    """Drawn images for calibration, (1, 3, 224, 224) float32."""
    return [np.random.default_rng(seed).standard_normal(SHAPE, np.float32) for seed in range(number)]


class Calibration:
    """The reader that onnxruntime's static quantization asks for inputs."""

    def __init__(self, name: str) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([{name: image} for image in images(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def in_onnxruntime(folder: Path, x: np.ndarray, threads: int) -> dict[str, Call]:
    """ResNet-18 in ONNX Runtime, float32 and int8 (QDQ, a scale for each channel); leaves resnet18.onnx behind."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from torchvision.models import resnet18

    source, ready, small = (folder / f"resnet18{kind}.onnx" for kind in ("", "_ready", "_int8"))
    program = torch.onnx.export(resnet18().eval(), (torch.from_numpy(x),), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(source))
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    name = ort.InferenceSession(str(source), options).get_inputs()[0].name
    CalibrationDataReader.register(Calibration)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(
        str(ready), str(small), Calibration(name), quant_format=QuantFormat.QDQ, reduce_range=reduces(), **kinds
    )
    found: dict[str, Call] = {}
    for kind, path in (("fp32", source), ("int8", small)):
        running = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found[f"onnxruntime {kind}"] = functools.partial(running.run, None, {name: x})
    return found


def reduces() -> bool:
    """Whether int8 weights have seven bits, as ONNX Runtime advises without VNNI, where sums saturate."""
    found = torch.cpu.get_capabilities()
    return not (found.get("avx512_vnni") or found.get("avx_vnni"))


def in_openvino(folder: Path, x: np.ndarray, threads: int) -> dict[str, Call]:
    """The same file in OpenVINO, float32 and int8 (NNCF)."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(folder / "resnet18.onnx"))
    model.reshape(list(SHAPE))
    small = nncf.quantize(model, nncf.Dataset(images(8)), subset_size=8)
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    found: dict[str, Call] = {}
    for kind, each in (("fp32", model), ("int8", small)):
        request = ov.Core().compile_model(each, "CPU", settings).create_infer_request()
        found[f"openvino {kind}"] = functools.partial(request.infer, {0: x})
    return found


def in_torch(x: torch.Tensor) -> dict[str, Call]:
    """ResNet-18 in torch, compiled and frozen, and in int8 as torchvision quantizes it."""
    from torchvision.models import resnet18

    whole: nn.Module = resnet18().eval().to(memory_format=torch.channels_last)
    narrow = Narrow(copy.deepcopy(whole))
    found = {"torch fp32 frozen": frozen(whole, x), "torch bf16 frozen": frozen(narrow, x)}
    return found | {"torch int8": functools.partial(quantized(), x)}


def quantized() -> nn.Module:
    """ResNet-18 in torch's own int8, calibrated on drawn images."""
    from torch.ao import quantization
    from torchvision.models.quantization import resnet18

    network = resnet18(quantize=False).eval()
    network.fuse_model(is_qat=False)
    network.qconfig = quantization.get_default_qconfig("x86")
    torch.backends.quantized.engine = "x86"
    prepared = quantization.prepare(network)
    for image in images(8):
        prepared(torch.from_numpy(image))
    return quantization.convert(prepared).to(memory_format=torch.channels_last)


def ours(name: str, folder: Path, x: torch.Tensor, threads: int, compiled: bool = True) -> dict[str, Call]:
    """A packed network in torch, if asked also compiled, and in ONNX Runtime, after a comparison of their logits."""
    torch.manual_seed(0)
    settled = settle_(anneal_(create_model(name)), *(torch.randn(2, *SHAPE[1:]) for _ in range(2)))
    packed = pack_(settled).to(memory_format=torch.channels_last)
    path = folder / f"{name}.onnx"
    export_onnx(packed, path)
    running, given = session(path, threads=threads), {"images": x.contiguous().numpy()}
    want = packed(x).numpy()
    folded = fold_real_(copy.deepcopy(packed))
    turned = np.abs(folded(x).numpy() - want).max() / np.abs(want).max()
    print(f"{name}: logits with fold_real differ by {turned:.1e} of the largest", flush=True)
    difference = np.abs(running.run(None, given)[0] - want).max() / np.abs(want).max()
    print(f"{name}: logits in ONNX Runtime differ by {difference:.1e} of the largest", flush=True)
    found: dict[str, Call] = {f"{name} onnxruntime": lambda: running.run(None, given)}
    for kind, network in (("torch", packed), ("torch fold_real", folded)):
        found[f"{name} {kind}"] = functools.partial(network, x)
        if compiled:
            found[f"{name} {kind} frozen"] = frozen(network, x)
    return found


@torch.inference_mode()
def measure(names: list[str], threads: int, rounds: int) -> dict[str, Any]:
    """Microseconds of all contenders, and how many times as fast as the fastest int8 ResNet-18 each of ours is."""
    x = torch.from_numpy(images(1)[0])
    contenders: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        laid_out = x.to(memory_format=torch.channels_last)
        with quiet():
            rivals = in_onnxruntime(folder, x.numpy(), threads) | in_openvino(folder, x.numpy(), threads)
            rivals |= in_torch(laid_out)
        contenders |= {f"{RIVAL} {kind}": call for kind, call in rivals.items()}
        for name in names:
            contenders |= ours(name, folder, laid_out, threads)
        us = interleave(contenders, rounds, clock=time.process_time)
    best = min(us[f"{RIVAL} {runtime} int8"]["median"] for runtime in ("onnxruntime", "openvino", "torch"))
    faster = {name: round(best / times["median"], 2) for name, times in us.items() if not name.startswith(RIVAL)}
    return {"us": us, "times the fastest int8": faster}


@torch.inference_mode()
def compare(names: list[str], threads: int, rounds: int) -> None:
    """Print times of our networks, and how many times ONNX Runtime's they are."""
    x = torch.from_numpy(images(1)[0]).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as made:
        calls = [ours(name, Path(made), x, threads, compiled=False) for name in names]
        us = interleave({key: call for each in calls for key, call in each.items()}, rounds, clock=time.process_time)
    for name in names:
        best = us[f"{name} onnxruntime"]["median"]
        for kind in ("onnxruntime", "torch fold_real", "torch"):
            median = us[f"{name} {kind}"]["median"]
            print(f"{f'{name} {kind}':34} {median / 1000:7.2f} ms  {median / best:.3f} times ONNX Runtime")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress and the advice of the quantizers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def versions() -> dict[str, str]:
    """Of the rivals' packages."""
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime", "openvino", "nncf", "torchvision")}


def main() -> None:
    """Run, print, and write the json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--names", nargs="+", default=list(NAMES))
    parser.add_argument("--ours", action="store_true", help="our networks alone, not compiled; writes no file")
    args = parser.parse_args()
    if args.ours:
        torch.set_num_threads(args.threads)
        return compare(args.names, args.threads, args.rounds)
    try:
        found = versions()
    except ImportError as error:
        raise SystemExit(f'benchmarks.speed.rivals needs {error.name}: pip install "esbnn[bench]"') from error
    torch.set_num_threads(args.threads)
    record = measure(args.names, args.threads, args.rounds)
    for name, times in sorted(record["us"].items(), key=lambda item: item[1]["median"]):
        times_faster = record["times the fastest int8"].get(name)
        print(f"{name:34} {times['median'] / 1000:7.2f} ms" + (f"  {times_faster} times int8" if times_faster else ""))
    settings = {"threads": args.threads, "rounds": args.rounds, "versions": found}
    print(write(f"rivals_{machine()['path']}", {"settings": settings, **record}))


if __name__ == "__main__":
    run_command(main)
