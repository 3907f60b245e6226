"""Packed networks as ONNX files: the packed network's outputs, bits in the file, one sentence for what cannot be."""

import copy
import ctypes
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esbnn_core import BinaryConfig, InputError, binarize_, create_model, pack_, save_checkpoint
from esbnn_core.cli import main
from esbnn_core.layers import BinaryConv2d, BinaryLinear
from esbnn_core.layers.widths import Expansion
from esbnn_core.models import resnet
from esbnn_core.models.binaryvit import BinaryViT, Pyramid
from esbnn_core.packed import PackedLayer
from tests.helpers.networks import stir

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra onnx is not installed")

from esbnn_core.onnx import export_onnx, operators_library, session  # noqa: E402
from esbnn_core.onnx.file import BLANK, DIGEST, read_file, seal  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "cpp"
NETWORK = "es_reactnet_resnet8"
KINDS = ("custom", "standard")
CLASSES = [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module", autouse=True)
def quiet(exporter_repeats_nothing: None) -> Any:
    """No warnings, and a network of one unit a stage under a registered name."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(resnet.R8), "units", (1, 1, 1))
        warnings.simplefilter("ignore")  # of torch's exporter
        yield


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return operators_library()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return pack_(stir(create_model(NETWORK, groups=2), 0))


@pytest.fixture(scope="module")
def files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packed file and its two ONNX files, as the command writes them."""
    folder = tmp_path_factory.mktemp("onnx")
    made = {"packed": folder / "packed.safetensors", "custom": folder / "net.onnx", "standard": folder / "std.onnx"}
    save_checkpoint(network, made["packed"])
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    about = ["--classes", str(folder / "classes.txt"), "--mean", "0.5", "0.25", "0.125", "--std", "0.5", "1", "2"]
    assert main(["export", str(made["packed"]), str(made["custom"]), *about]) == 0
    assert main(["export", str(made["packed"]), str(made["standard"]), "--standard"]) == 0
    return made


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "groups"), [("custom", 1), ("standard", 2)])
def test_a_transposed_convolution_reads_packed_maps(kind: str, groups: int, library: Path, tmp_path: Path) -> None:
    """It packs its input by itself, once for all of its phases."""
    layer = nn.ConvTranspose2d(8, 12, 3, 2, 1, output_padding=1, groups=groups)
    # of 1x1, because other sums of sizes take torch's exporter longer
    network = pack_(nn.Sequential(nn.Conv2d(3, 8, 1), binarize_(layer, BinaryConfig()), nn.Conv2d(12, 2, 1)).eval())
    export_onnx(network, tmp_path / "net.onnx", [images(2, 3, 9, 9)], standard=kind == "standard")
    running = session(tmp_path / "net.onnx", library=library)
    for shape in ((3, 3, 12, 7), (1, 3, 9, 9)):
        x = images(*shape)
        got = torch.from_numpy(running.run(None, {"images": x.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(got, network(x), rtol=0, atol=1e-5)


def check_equal(got: Any, want: Tensor, tolerance: float = 1e-5) -> None:
    """Within what the real layers may differ by, which sum in another order; a flipped sign would be far outside."""
    numbers = torch.from_numpy(got)
    assert numbers.shape == want.shape and want.std() > 0
    assert (numbers - want).abs().max() <= tolerance * want.abs().max()
    clear = want.abs() > tolerance * want.abs().max()
    assert torch.equal(numbers.sign()[clear], want.sign()[clear])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outputs_are_the_packed_networks_for_any_batch_and_size(
    kind: str, files: dict[str, Path], network: nn.Module, library: Path
) -> None:
    for threads in (1, 3):
        runs = session(files[kind], threads)
        for shape in ((2, 3, 32, 32), (1, 3, 32, 32), (5, 3, 24, 44)):
            x = images(*shape)
            (got,) = runs.run(None, {"images": x.numpy()})
            check_equal(got, network(x))


def test_weights_are_bits_in_the_file(files: dict[str, Path], network: nn.Module) -> None:
    import onnx

    bits = sum(layer.weight_bits.numel() * 4 for layer in network.modules() if isinstance(layer, PackedLayer))
    for kind, most in (("custom", 6_000), ("standard", 18_000)):
        assert files[kind].stat().st_size <= files["packed"].stat().st_size + most  # the graph itself
    model = onnx.load(str(files["custom"]))
    words = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    assert sum(len(onnx.numpy_helper.to_array(t).tobytes()) for t in words) == bits > 3_000
    assert {node.domain for node in model.graph.node} == {"", "esbnn"}
    standard = onnx.load(str(files["standard"]))
    assert {node.domain for node in standard.graph.node} == {""}
    assert [entry.domain for entry in standard.opset_import] == [""]
    onnx.checker.check_model(standard, full_check=True)


def test_the_metadata_say_what_the_network_is(files: dict[str, Path], library: Path) -> None:
    found = session(files["custom"]).get_modelmeta().custom_metadata_map
    assert found["network"] == NETWORK and json.loads(found["options"])["groups"] == 2
    assert json.loads(found["input_size"]) == [3, 32, 32]
    assert found["classes"].split("\n") == CLASSES
    assert json.loads(found["mean"]) == [0.5, 0.25, 0.125] and json.loads(found["std"]) == [0.5, 1, 2]
    assert read_file(files["standard"])[1]["esbnn_operators"] == "standard"


def small(*layers: nn.Module) -> nn.Module:
    """A packed network of one real convolution and some layers, every real sum of which is exact."""
    torch.manual_seed(1)
    stem = nn.Conv2d(3, 32, 3, padding=1)
    model = nn.Sequential(stem, *layers)
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.copy_((parameter * 8).round())
    return pack_(model.eval())


def whole(*shape: int) -> Tensor:
    return images(*shape).mul(4).round()


@torch.no_grad()
def test_half_precision_is_written_with_its_values(tmp_path: Path, library: Path) -> None:
    narrow = small(BinaryConv2d(32, 8, 3, padding=1)).bfloat16()
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    written = export_onnx(narrow, tmp_path / "net.onnx", (whole(2, 3, 8, 8),), output_names=["y"])
    assert written.inputs == {"images": ("batch", 3, "height", "width")}
    assert list(written.outputs) == ["y"] and written.size == written.path.stat().st_size
    assert all(torch.equal(tensor, before[name]) for name, tensor in narrow.state_dict().items())
    want = copy.deepcopy(narrow).float()
    for shape in ((2, 3, 8, 8), (1, 3, 5, 9)):
        x = whole(*shape)
        (got,) = session(written.path, 1).run(None, {"images": x.numpy()})
        assert np.array_equal(got, want(x).numpy())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_linear_layer_is_equal_in_every_bit(kind: str, tmp_path: Path, library: Path) -> None:
    torch.manual_seed(2)
    layer = pack_(BinaryLinear(72, 20, bias=True, groups=2))
    x = images(4, 3, 72)
    written = export_onnx(layer, tmp_path / "net.onnx", (x,), standard=kind == "standard", dynamic=((0, 1),))
    assert written.inputs == {"images": ("batch", "size_1", 72)}
    runs = session(written.path, 2)
    for rows in (x, images(1, 7, 72)):
        assert np.array_equal(runs.run(None, {"images": rows.numpy()})[0], layer(rows).numpy())


@pytest.mark.slow
@torch.no_grad()
def test_a_transformer_takes_any_batch_of_its_own_size(tmp_path: Path, library: Path) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid((64,), (1,), (1,), (2,))
    model = pack_(stir(BinaryViT(pyramid, Expansion(2, 1), num_classes=5, image_size=16), 0))
    written = export_onnx(model, tmp_path / "net.onnx", (images(2, 3, 16, 16),))
    assert written.inputs == {"images": ("batch", 3, 16, 16)}
    runs = session(written.path, 1)
    for batch in (1, 4):
        x = images(batch, 3, 16, 16)
        check_equal(runs.run(None, {"images": x.numpy()})[0], model(x))
    message = r"input images of network .* must have the size 16 in dimension 2, which the export fixed, got 24: resize"
    with pytest.raises(InputError, match=message):
        runs.run(None, {"images": images(1, 3, 24, 16).numpy()})


def test_what_the_runtime_refuses_is_one_sentence(files: dict[str, Path], library: Path) -> None:
    runs = session(files["custom"], 1)
    for array, sentence in (
        (np.zeros((1, 4, 32, 32), np.float32), "must have the size 3 in dimension 1, which the export fixed, got 4"),
        (np.zeros((3, 32, 32), np.float32), "Invalid rank"),
        (np.zeros((1, 3, 32, 32)), "Unexpected input data type"),
    ):
        with pytest.raises(InputError, match=sentence) as caught:
            runs.run(None, {"images": array})
        assert "\n" not in str(caught.value) and str(files["custom"]) in str(caught.value)


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "changed.onnx"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_or_a_missing_end_is_found(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    data = files[kind].read_bytes()
    read_file(files[kind])
    for part in (0.01, 0.2, 0.4, 0.6, 0.8, 0.97):
        place = int(len(data) * part)
        changed = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with pytest.raises(InputError, match=r"damaged|not a whole ONNX file|not an ONNX file|format of"):
            session(written(tmp_path, changed))
        with pytest.raises(InputError, match=r"damaged|not a whole ONNX file|not an ONNX file"):
            session(written(tmp_path, data[:place]))


def relabelled(data: bytes, key: str, value: str) -> bytes:
    import onnx

    model = onnx.load_model_from_string(data)
    for entry in model.metadata_props:
        entry.value = {key: value, DIGEST: BLANK}.get(entry.key, entry.value)
    return seal(model.SerializeToString())


def test_a_file_of_another_kind_is_refused_in_one_sentence(files: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    foreign = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    later = relabelled(files["custom"].read_bytes(), "esbnn_format", "2")
    cases: list[tuple[Path, str]] = [
        (tmp_path / "no.onnx", "must be an ONNX file, got no file: check the path"),
        (written(tmp_path, foreign.SerializeToString()), "is not an ONNX file of esbnn: esbnn export writes those"),
    ]
    for path, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            session(path)
    with pytest.raises(InputError, match=r"format of network .* must be 1, got 2: run it with the esbnn version"):
        session(written(tmp_path, later))


def test_a_library_that_cannot_serve_is_refused_in_one_sentence(
    files: dict[str, Path], network: nn.Module, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    for path, sentence in (
        (tmp_path / "no.so", "does not exist: operators_library"),
        (other, "must be one of operators for this ONNX Runtime and processor, got one that it cannot load"),
        (ctypes_library("_ctypes"), "must be one of operators .* RegisterCustomOps"),
    ):
        with pytest.raises(InputError, match=sentence) as caught:
            session(files["custom"], library=path)
        assert "\n" not in str(caught.value)
    x = images(1, 3, 32, 32)
    check_equal(session(files["custom"], library=library).run(None, {"images": x.numpy()})[0], network(x))
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no_compiler"))
    with pytest.raises(InputError, match=r"must be compiled, but no C\+\+ compiler was found .*--standard"):
        session(files["custom"])
    check_equal(session(files["standard"]).run(None, {"images": x.numpy()})[0], network(x))


def ctypes_library(name: str) -> Path:
    """A shared library of Python's own."""
    return Path(__import__(name).__file__)


def test_a_runtime_of_an_earlier_interface_is_refused_in_one_sentence(library: Path) -> None:
    texts: list[tuple[int, bytes]] = []

    def note(code: int, text: bytes) -> int:
        texts.append((code, text))
        return 1

    create = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)(note)
    table = (ctypes.c_void_p * 275)(ctypes.cast(create, ctypes.c_void_p))
    asked: list[int] = []

    def get_api(version: int) -> int | None:
        asked.append(version)
        return ctypes.addressof(table) if version <= 16 else None

    class Base(ctypes.Structure):
        _fields_ = (
            ("get", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
            ("version", ctypes.CFUNCTYPE(ctypes.c_void_p)),
        )

    kinds = [kind for _, kind in Base._fields_]
    version = ctypes.create_string_buffer(b"1.16.3")
    base = Base(kinds[0](get_api), kinds[1](lambda: ctypes.addressof(version)))
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1 and asked == [17, 1]
    assert texts == [(1, b"the operators of esbnn need ONNX Runtime 1.17 or later, got 1.16.3: install a later one")]


def test_what_cannot_be_exported_is_refused_in_one_sentence(network: nn.Module, tmp_path: Path) -> None:
    latent, packed = create_model("reactnet_resnet8"), small(BinaryConv2d(32, 8, 3))
    cases: list[tuple[nn.Module, dict[str, Any], str]] = [
        (latent, {}, "is written of a packed network, got a latent one: call pack_ first"),
        (copy.deepcopy(network).double(), {}, "must be float32 or narrower for an ONNX file, got torch.float64"),
        (copy.deepcopy(network).to("meta"), {}, "is on the meta device and has no values"),
        (packed, {}, "inputs must be given for a network that create_model did not build"),
        (packed, {"inputs": (images(2, 5, 8, 8),)}, "cannot be traced by torch.export"),
        (packed, {"inputs": (images(2, 3, 8, 8),), "dynamic": ((0, 1),)}, "dynamic dimensions .*0, 1"),
        (network, {"classes": ["cat"]}, "classes must be the 10 names of es_reactnet_resnet8, got 1"),
        (network, {"classes": ["two\nlines"] * 10}, "classes must be names of one line each"),
        (network, {"mean": [0.5]}, "mean must have 3 numbers, one a channel, got 1"),
    ]
    for model, options, sentence in cases:
        with pytest.raises(InputError, match=sentence) as caught:
            export_onnx(model, tmp_path / "net.onnx", **options)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_in_one_sentence(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = str(files["packed"]), str(tmp_path / "net.onnx")
    for argv, sentence in (
        ([packed, str(tmp_path / "folder"), "--standard"], "--standard is for ONNX files, got the folder"),
        (["runs/best.ckpt", out], "is written of a .safetensors file, got the checkpoint runs/best.ckpt of a run"),
        ([str(tmp_path / "no.safetensors"), out], "does not exist"),
        ([packed, out, "--classes", str(tmp_path / "no.txt")], "No such file"),
        ([packed, out, "--mean", "1", "2"], "mean must have 3 numbers"),
    ):
        assert main(["export", *argv]) == 2
        text = capsys.readouterr().err
        assert re.match(r"error: [^\n]*\n$", text) and sentence in text, text
    assert list(tmp_path.iterdir()) == []


def test_threads_must_be_a_number(files: dict[str, Path], library: Path) -> None:
    with pytest.raises(InputError, match="threads must be a whole number of at least 1, got 0"):
        session(files["custom"], 0)


@pytest.mark.slow
@torch.no_grad()
def test_the_program_in_cpp_prints_the_networks_class(
    files: dict[str, Path], network: nn.Module, library: Path, tmp_path: Path
) -> None:
    import onnxruntime

    runtimes = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    if not shutil.which("cmake") or not runtimes:
        pytest.skip("cmake or the runtime's library is not there")
    for command in (["cmake", "-S", str(EXAMPLE), "-B", str(tmp_path)], ["cmake", "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def classify(*argv: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(tmp_path / "classify"), *map(str, argv)], capture_output=True, text=True)

    image = tmp_path / "image.ppm"
    for height, width, comment in ((32, 32, ""), (20, 36, "# by an editor\n")):
        pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(width))
        image.write_bytes(f"P6\n{comment}{width} {height}\n255\n".encode() + pixels.to(torch.uint8).numpy().tobytes())
        mean, std = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.5, 1, 2])
        want = network(((pixels / 255 - mean) / std).permute(2, 0, 1)[None])[0]
        done = classify(runtimes[0], library, files["custom"], image)
        assert done.returncode == 0, done.stderr
        number, *name, value = done.stdout.split()
        assert int(number) == int(want.argmax()) and " ".join(name) == f"class {number}"
        assert abs(float(value) - float(want.max())) < 1e-4
    image.write_bytes(image.read_bytes()[:-1])
    cases = (
        ((image, library, files["custom"], image), "must be the library of ONNX Runtime 1.17 or later"),
        ((runtimes[0], image, files["custom"], image), "image.ppm"),
        ((runtimes[0], library, image, image), "image.ppm"),
        ((runtimes[0], library, files["custom"], image), "is incomplete"),
        ((runtimes[0],), "four files are expected"),
    )
    for argv, sentence in cases:
        done = classify(*argv)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and sentence in done.stderr, done.stderr
