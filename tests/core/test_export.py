"""torch.export of packed networks: operators kept whole, any batch and image size, saved and loaded elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from esbnn_core import create_model, pack_
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.layers.widths import Expansion
from esbnn_core.models import reactnet, resnet
from esbnn_core.models.binaryvit import BinaryViT, Pyramid
from esbnn_core.models.bnext import BNext
from esbnn_core.packed.layers import PackedLayer
from tests.helpers import paths, processes
from tests.helpers.networks import stir

ROOT = Path(__file__).parents[2]
BATCH, SIZE = {0: Dim.DYNAMIC}, {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


def packed(name: str, **options: int) -> nn.Module:
    torch.manual_seed(0)
    model = BUILT[name]() if name in BUILT else create_model(name, **options)
    for module in model.modules():
        if isinstance(module, Temperature):
            module.temperature.zero_()
    return pack_(stir(model, 0))


def two_stages() -> nn.Module:
    """A BinaryViT of a layer of each kind and what joins them, for images of 32 pixels."""
    return BinaryViT(Pyramid((64, 128), (1, 1), (2, 2), (2, 1)), Expansion(), num_classes=5, image_size=32)


BUILT: dict[str, Callable[[], nn.Module]] = {
    "binaryvit": two_stages,
    # a block of each kind: of ELM and without, of either stride
    "es_bnext": lambda: BNext((16, 16, 32, 32, 64), Expansion(2, 1), num_classes=5, stem_stride=1),
}


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def outputs(model: Callable[[Tensor], Tensor | list[Tensor]], x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(x)
    return [out] if isinstance(out, Tensor) else list(out)


def runs_of(model: nn.Module, kind: type[nn.Module], x: Tensor) -> int:
    """How often a forward runs modules of that kind (a detector's trunk leaves its last stage alone)."""
    ran: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in model.modules() if isinstance(m, kind)]
    outputs(model, x)
    for hook in hooks:
        hook.remove()
    return len(ran)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("reactnet_a", 64),
        ("es_bnext", 64),
        ("bidet_resnet18", 64),
        ("binaryvit", 32),
    ],
)
def test_an_exported_network_runs_equal_on_any_batch_and_size(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactnet, "WIDTHS", (16, 32, 64, 64))  # a block of each kind
    monkeypatch.setitem(vars(resnet.R18), "units", (2, 2, 2, 2))
    # a transformer has one position embedding a patch, so its image size is fixed
    fixed = name == "binaryvit"
    model = packed(name)
    places = BATCH if fixed else BATCH | SIZE
    with torch.no_grad():
        program = torch.export.export(model, (images(2, 3, size, size),), dynamic_shapes=(places,))
    targets = [str(node.target) for node in program.graph.nodes]
    layers = runs_of(model, PackedLayer, images(1, 3, size, size))
    assert targets.count("esbnn.binary_conv2d.default") + targets.count("esbnn.binary_linear.default") == layers > 5
    shapes = [(2, size, size), (1, size, size)]
    if not fixed:
        shapes += [(5, size + 32, size), (3, size, 2 * size + 32)]
    runs = program.module()
    for shape in shapes:
        x = images(shape[0], 3, *shape[1:])
        for got, want in zip(outputs(runs, x), outputs(model, x), strict=True):
            assert torch.equal(got, want), shape


@pytest.mark.slow
def test_an_exported_file_runs_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(resnet.R8), "units", (1, 1))
    monkeypatch.setitem(vars(resnet.R8), "widths", (16, 32))
    model = packed("es_reactnet_resnet8", groups=2)
    x = images(3, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=(BATCH | SIZE,))
    torch.export.save(program, tmp_path / "network.pt2")
    other = images(7, 3, 40, 24)
    torch.save([other, model(other)], tmp_path / "pair.pt")
    # importing esbnn_core brings the operators (test_import.py: it alone), nothing else is needed
    code = (
        "import torch, esbnn_core; runs = torch.export.load('network.pt2').module(); x, want = torch.load('pair.pt'); "
        "print(torch.equal(runs(x), want))"
    )
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home())}
    # the real stem sums in another order on another number of threads
    env["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    done = processes.run([sys.executable, "-c", code], tmp_path, env)
    assert done.stdout.split() == ["True"], done.stderr[-2000:]
    # a machine without a compiler runs them too
    runs = torch.export.load(tmp_path / "network.pt2").module()
    for backend in paths.usable():
        with paths.forced(backend):
            assert torch.equal(outputs(runs, other)[0], outputs(model, other)[0]), backend


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_network_runs_equal_on_two_sizes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(resnet.R8), "units", (1, 2))
    monkeypatch.setitem(vars(resnet.R8), "widths", (16, 32))
    model = packed("es_reactnet_resnet8").to(dtype)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 32, 32), (5, 3, 24, 40)):
        x = images(*shape).to(dtype)
        assert torch.equal(outputs(compiled, x)[0], outputs(model, x)[0])
