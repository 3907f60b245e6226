"""The console script `esbnn`: models, count, doctor, pack, export.

An error is one sentence on stderr and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from esbnn_core.checkpoint.network import load_checkpoint, pack_checkpoint
from esbnn_core.checkpoint.run_file import find_exporter, read_run
from esbnn_core.counting import count
from esbnn_core.errors import InputError, check_counts, refuse
from esbnn_core.kernels import cpu, cuda
from esbnn_core.kernels.cpu.narrow import NATIVE, is_native
from esbnn_core.models import create_model, list_models, model_spec
from esbnn_core.onnx import export_onnx
from esbnn_core.packed import is_packed
from esbnn_core.transforms import pack_
from esbnn_core.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _make_parser().parse_args(argv)
    try:
        args.run(args)
    except Exception as error:
        return refuse(error)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esbnn", description="Expanding-and-shrinking binary neural networks")
    parser.add_argument("--version", action="version", version=f"esbnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the networks by name")
    models.add_argument("pattern", nargs="?", default="", help="only names that contain this")
    models.set_defaults(run=_list_models)

    counting = commands.add_parser("count", help="count BOPs, FLOPs, OPs, parameters and bytes of a network")
    counting.add_argument("name", metavar="NAME", nargs="?", help="network, e.g. es_reactnet_resnet18")
    counting.add_argument("--all", action="store_true", help="one line for every classifier, with its default options")
    counting.add_argument("--tau", type=int, help="expansion factor of an es_ or rep_ network")
    counting.add_argument("--groups", type=int, help="groups of an es_ network")
    counting.add_argument("--num-classes", type=int, help="classes of the read-out")
    counting.add_argument("--in-channels", type=int, help="channels of the input")
    counting.add_argument("--size", type=int, help="side of the square input (default that of the papers)")
    counting.set_defaults(run=_print_count)

    doctor = commands.add_parser("doctor", help="show which kernels are in use on this machine, and why")
    doctor.set_defaults(run=_print_kernels)

    packing = commands.add_parser("pack", help="pack a latent checkpoint into bits")
    packing.add_argument("source", metavar="IN", help="latent .safetensors")
    packing.add_argument("target", metavar="OUT", help="packed .safetensors to write")
    packing.set_defaults(run=_pack)

    exporting = commands.add_parser(
        "export",
        help="write a network as an ONNX file, or the weights of a run's checkpoint as files",
        description="The ending of OUT decides: NAME.onnx is an ONNX file of the network in IN, any other name is a "
        "folder with the weights of the run's checkpoint IN.",
    )
    exporting.add_argument(
        "source",
        metavar="IN",
        help="packed or latent .safetensors, or the name of a released network, for an ONNX file; best.ckpt, last.ckpt "
        "or another checkpoint of a run for a folder",
    )
    exporting.add_argument(
        "target",
        metavar="OUT",
        help="file to write, NAME.onnx; or folder to make: weights.safetensors, packed.safetensors where the weights "
        "are signs, and the pipeline of a super-resolution network",
    )
    onnx = exporting.add_argument_group("for an ONNX file")
    onnx.add_argument(
        "--standard",
        action="store_true",
        help="standard operators alone: equal and slower, for runtimes that cannot load the operators of esbnn",
    )
    onnx.add_argument("--classes", metavar="FILE", help="names of the classes, one a line, to keep in the file")
    onnx.add_argument("--mean", type=float, nargs="+", help="of each channel of images in 0..1, to keep in the file")
    onnx.add_argument("--std", type=float, nargs="+", help="likewise, by which images are divided")
    exporting.set_defaults(run=_export)
    return parser


def _list_models(args: argparse.Namespace) -> None:
    names = list_models(args.pattern)
    if not names:
        raise InputError(f"no network has {args.pattern!r} in its name: esbnn models lists them all")
    print("\n".join(names))


def _print_count_of_all() -> None:
    """One line for each network, built without data.

    INT8 OPs is the convention of the BNext README (papers.md#bnext-operations).
    """
    head = f"{'network':28} {'input':11} {'BOPs (G)':>9} {'/64 (1e8)':>9} {'FLOPs (1e8)':>11} {'OPs (1e8)':>9}"
    print(f"{head} {'INT8 OPs (1e8)':>14} {'params (M)':>10} {'1-bit (M)':>9} {'OPs with matmuls':>16}")
    for name in list_models(kind="classifier"):
        with torch.device("meta"):
            model = create_model(name)
        spec = model_spec(model)
        assert spec is not None
        c = count(model, spec.input_size)
        int8 = c.bops / 64 + c.flops / 8
        size = "x".join(map(str, spec.input_size))
        row = (
            f"{name:28} {size:11} {c.bops / 1e9:9.4f} {c.bops / 64 / 1e8:9.4f} {c.flops / 1e8:11.4f} {c.ops / 1e8:9.4f}"
        )
        matmuls = f"{c.ops_with_matmuls / 1e8:.4f}" if c.matmul_bops else "-"
        print(f"{row} {int8 / 1e8:14.4f} {c.params / 1e6:10.3f} {c.binary_params / 1e6:9.3f} {matmuls:>16}")


def _print_count(args: argparse.Namespace) -> None:
    if args.all == (args.name is not None):
        raise InputError("esbnn count takes one network's name or --all: esbnn models lists the names")
    if args.all:
        return _print_count_of_all()
    given: dict[str, Any] = {key: getattr(args, key) for key in ("tau", "groups", "num_classes", "in_channels")}
    with torch.device("meta"):  # counted by shapes alone
        model = create_model(args.name, **{key: value for key, value in given.items() if value is not None})
    spec = model_spec(model)
    assert spec is not None
    channels, side, _ = spec.input_size
    if args.size is not None:
        check_counts(size=args.size)
        side = args.size
    result = count(model, (channels, side, side))
    print(result.table())
    print(f"\n{args.name} at {channels}x{side}x{side}")
    print(result.sums())


def _print_kernels(args: argparse.Namespace) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    print(f"esbnn {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA: {gpu}")
    print("kernels in use, and which others could be:")
    found = (("CPU", "processor", cpu.choose()[1]), ("CUDA", "device", cuda.choose()[1]))
    for device, hardware, status in found:
        print(f"{device:6} {status.serving}: {status.reason}")
        for name, usable in status.paths:
            print(f"       {name:18} {'usable' if usable else f'not usable on this {hardware}'}")
    print("real layers of a packed network on this processor:")
    for dtype in NATIVE:
        native = is_native(dtype)
        speed = "may be faster" if native else "are slower" if native is False else "may be faster or slower"
        print(f"       {str(dtype).removeprefix('torch.'):18} {speed} than in float32")


def _pack(args: argparse.Namespace) -> None:
    before, after = pack_checkpoint(args.source, args.target)
    print(f"{args.source}  {before:,} bytes latent")
    print(f"{args.target}  {after:,} bytes packed, {before / after:.1f} times smaller")


def _export(args: argparse.Namespace) -> None:
    onnx = {key: getattr(args, key) for key in ("standard", "classes", "mean", "std") if getattr(args, key)}
    if args.target.endswith(".onnx"):
        return _export_onnx(args.source, args.target, onnx)
    if onnx:
        raise InputError(f"--{next(iter(onnx))} is for ONNX files, got the folder {args.target}: name it NAME.onnx")
    run = read_run(args.source)
    print(f"{args.target}: {', '.join(find_exporter(run).export_run(run, args.target))}")


def _export_onnx(source: str, target: str, options: dict[str, Any]) -> None:
    if source.endswith(".ckpt"):
        raise InputError(
            f"an ONNX file is written of a .safetensors file, got the checkpoint {source} of a run: export that into a "
            f"folder first"
        )
    if "classes" in options:
        options["classes"] = Path(options["classes"]).read_text(encoding="utf-8").splitlines()
    network = load_checkpoint(source)
    written = export_onnx(network if is_packed(network) else pack_(network), target, **options)
    print(written)


if __name__ == "__main__":
    sys.exit(main())
