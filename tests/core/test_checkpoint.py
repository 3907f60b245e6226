"""Checkpoint files: bit-exact round trips, every kind of damage refused in one sentence, writing all or nothing."""

import copy
import hashlib
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from esbnn_core import InputError, count, create_model, load_checkpoint, model_spec, pack_, pack_checkpoint
from esbnn_core.checkpoint import format as checkpoints
from esbnn_core.checkpoint.format import read_checkpoint, save_checkpoint
from esbnn_core.layers import BinaryConv2d
from esbnn_core.models import registry

CASES: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("es_reactnet_resnet8", {"tau": 2, "num_classes": 7}, torch.float32),
    ("es_reactnet_resnet8", {"tau": 2, "groups": 2, "copy_spread": 0.5}, torch.float64),
    ("recu_resnet20", {}, torch.float32),
    ("recu_resnet20", {"num_classes": 5}, torch.float64),
]


@torch.no_grad()
def network(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """An evaluation network whose statistics, shifts and affines are all away from their neutral starts."""
    torch.manual_seed(3)
    model = create_model(name, **options).to(dtype)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.add_(torch.rand_like(tensor) if "running_var" in key else 0.2 * torch.randn_like(tensor))
    return model.eval()


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def refusal(call: Callable[[], object], *words: str) -> str:
    """The text of the InputError: one sentence that names every word and, after a colon, what to do."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    assert len(text.rsplit(": ", 1)[-1].split()) >= 3, f"no remedy in: {text}"
    return text


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A latent file and its packed one."""
    folder = tmp_path_factory.mktemp("pair")
    save_checkpoint(network("es_reactnet_resnet8"), folder / "latent.safetensors", metric={"top1": 81.25}, commit="abc")
    pack_checkpoint(folder / "latent.safetensors", folder / "packed.safetensors")
    return folder / "latent.safetensors", folder / "packed.safetensors"


def craft(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A file with a digest that is right, whatever else is wrong."""
    digest = checkpoints._digest(tensors, metadata)
    save_file(dict(tensors), path, metadata={**metadata, "digest": digest})
    return path


@pytest.mark.parametrize(("name", "options", "dtype"), CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_round_trip(tmp_path: Path, name: str, options: dict[str, Any], dtype: torch.dtype, packed: bool) -> None:
    model = network(name, dtype, **options)
    want = model(image(dtype))
    if packed:
        model = pack_(model)
    path = tmp_path / "new" / "net.safetensors"
    sha256 = save_checkpoint(model, path, metric={"top1": 93.5, "loss": 0.25}, commit="c0ffee")
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == checkpoints.file_sha256(path)
    read = read_checkpoint(path, sha256=sha256)
    assert (read.kind, read.network) == ("packed" if packed else "latent", name)
    assert read.metric == {"top1": 93.5, "loss": 0.25} and read.metadata["commit"] == "c0ffee"
    assert options.items() <= read.options.items()
    # safetensors alone reads the same tensors
    assert same(load_file(path), model.state_dict()) and same(read.tensors, model.state_dict())
    loaded = load_checkpoint(path, sha256=sha256)
    assert same(loaded.state_dict(), model.state_dict()) and not loaded.training
    assert model_spec(loaded) == model_spec(model) != None  # noqa: E711
    assert torch.equal(loaded(image(dtype)), want) and want.dtype == dtype and want.std() > 0


@pytest.mark.parametrize(
    ("name", "tau"),
    [("es_reactnet_resnet8", 1), ("recu_resnet20", 0), ("es_reactnet_resnet20", 4), ("es_reactnet_resnet18", 2)],
)
def test_a_packed_file_holds_bits_and_little_else(tmp_path: Path, name: str, tau: int) -> None:
    model = network(name, **({"tau": tau} if tau else {}))
    counted = count(model, model_spec(model).input_size)  # type: ignore[union-attr]
    latent_weights = {f"{key}.weight" for key, m in model.named_modules() if isinstance(m, BinaryConv2d)}
    source, target = tmp_path / "latent.safetensors", tmp_path / "packed.safetensors"
    save_checkpoint(model, source, metric={"top1": 1.0}, commit="abc")
    sizes = pack_checkpoint(source, target)
    assert sizes == (source.stat().st_size, target.stat().st_size)
    for size, tensors in zip(sizes, (counted.latent_bytes, counted.packed_bytes), strict=True):
        assert tensors <= size <= 1.02 * tensors + 16 * 1024
    stored = load_file(target)
    bits = [t for key, t in stored.items() if key.endswith("weight_bits")]
    assert {t.dtype for t in bits} == {torch.int32} and len(bits) == len(latent_weights) > 0
    assert not latent_weights & set(stored) and not any("quantizer" in key for key in stored)
    assert same(stored, pack_(model).state_dict())
    after = read_checkpoint(target)
    assert (after.kind, after.metric, after.metadata["commit"]) == ("packed", {"top1": 1.0}, "abc")


def test_files_go_into_a_given_network(pair: tuple[Path, Path]) -> None:
    for path in pair:
        model = create_model("es_reactnet_resnet8")
        assert load_checkpoint(path, model) is model and not model.training
        assert torch.equal(model(image()), network("es_reactnet_resnet8")(image()))


def test_a_bare_packed_layer_comes_back(tmp_path: Path) -> None:
    layer = BinaryConv2d(5, 4, 3)
    packed = pack_(copy.deepcopy(layer))
    save_checkpoint(packed, tmp_path / "layer.safetensors")
    x = torch.randn(1, 5, 6, 6)
    assert torch.equal(load_checkpoint(tmp_path / "layer.safetensors", layer)(x), packed(x))


@pytest.mark.parametrize("which", [0, 1])
def test_every_flipped_bit_is_found(pair: tuple[Path, Path], tmp_path: Path, which: int) -> None:
    data = pair[which].read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(which)
    places = [0, 1, 2, 7, 8, header - 1, header, len(data) - 1]
    places += [rng.randrange(header) for _ in range(20)] + [rng.randrange(header, len(data)) for _ in range(20)]
    flips = [(place, rng.randrange(8)) for place in places]
    # 81.25 becomes 91.25, abc becomes cbc, num_classes 10 becomes 11: sound json all the same
    flips += [
        (data.index(text) + shift, bit) for text, shift, bit in ((b"81.25", 0, 0), (b"abc", 0, 1), (b": 10", 3, 0))
    ]
    path = tmp_path / "flipped.safetensors"
    for place, bit in flips:
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        refusal(lambda: load_checkpoint(path), str(path))


@pytest.mark.parametrize("which", [0, 1])
def test_files_that_are_no_whole_checkpoints(pair: tuple[Path, Path], tmp_path: Path, which: int) -> None:
    data = pair[which].read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = [0, 1, 8, 9, header // 2, header, header + 1, len(data) // 2, len(data) - 1]
    contents = [data[:cut] for cut in cuts] + [data + b"\0", b"a text\nof two lines, longer than a header\n", bytes(64)]
    model, path = network("es_reactnet_resnet8"), tmp_path / "bad.safetensors"
    before = copy.deepcopy(model.state_dict())
    for content in contents:
        path.write_bytes(content)
        refusal(lambda: load_checkpoint(path, model), str(path))
    refusal(lambda: load_checkpoint(tmp_path / "nowhere.safetensors", model), "nowhere.safetensors", "does not exist")
    save_file({"weight": torch.ones(3)}, path)
    refusal(lambda: load_checkpoint(path, model), str(path), "not an esbnn file")
    refusal(lambda: load_checkpoint(pair[which], model, sha256="0" * 64), str(pair[which]), "0" * 64)
    assert same(model.state_dict(), before)


def spoil(tensor: Tensor, value: float) -> Tensor:
    return tensor.clone().reshape(-1).index_fill_(0, torch.tensor([2]), value).view_as(tensor)


# name of the tensor at fault and what stands in for it, None for nothing
CHANGES: dict[str, tuple[str, Callable[[Tensor], Tensor] | None]] = {
    "missing": ("fc.bias", None),
    "extra": ("fc.ghost", lambda t: torch.ones(1)),
    "reshaped": ("fc.weight", lambda t: t.t().contiguous()),
    "dtype": ("fc.bias", lambda t: t.double()),
    "nan": ("stem.norm.running_var", lambda t: spoil(t, float("nan"))),
    "infinite": ("fc.weight", lambda t: spoil(t, float("-inf"))),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", [0, 1])
def test_tensors_that_do_not_fit_are_named(pair: tuple[Path, Path], tmp_path: Path, change: str, which: int) -> None:
    read = read_checkpoint(pair[which])
    name, new = CHANGES[change]
    tensors = {key: tensor for key, tensor in read.tensors.items() if key != name}
    if new is not None:
        tensors[name] = new(read.tensors.get(name, torch.empty(0)))
    path = craft(tmp_path / "odd.safetensors", tensors, read.metadata)
    # it starts from latent weights for either kind, and must still have them after the refusal
    model = network("es_reactnet_resnet8").train()
    before = copy.deepcopy(model.state_dict())
    refusal(lambda: load_checkpoint(path, model), str(path), name)
    assert same(model.state_dict(), before) and model.training
    refusal(lambda: load_checkpoint(path), str(path), name)


@pytest.mark.parametrize(
    ("key", "values", "word"),
    [
        ("format_version", ["99", "0", None], "version"),
        ("format", ["other", None], "not an esbnn file"),
        ("network", ["no_such_net", "", None], "network"),
        ("options", ['{"colour": 1}', '{"tau": "2"}', '{"num_classes": -1}', "{", "[1]", None], "option"),
        ("kind", ["other", None], "kind"),
    ],
)
def test_metadata_of_no_use(
    pair: tuple[Path, Path], tmp_path: Path, key: str, values: list[str | None], word: str
) -> None:
    read = read_checkpoint(pair[0])
    for value in values:
        metadata = {k: v for k, v in {**read.metadata, key: value}.items() if v is not None}
        path = craft(tmp_path / "odd.safetensors", read.tensors, metadata)
        refusal(lambda: load_checkpoint(path), str(path), word)  # noqa: B023


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = network("es_reactnet_resnet8")
    model.stages.layer2[0].conv.sign.shift.data[3] = float("nan")
    path = tmp_path / "nan.safetensors"
    refusal(lambda: save_checkpoint(model, path), str(path), "stages.layer2.0.conv.sign.shift")
    assert os.listdir(tmp_path) == []


def test_every_number_is_looked_at_and_not_their_sum(tmp_path: Path) -> None:
    infinity = float("inf")
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2)
    for dtype in kinds:
        layer = nn.Linear(3, 5).to(dtype)
        layer.weight.data.fill_(torch.finfo(dtype).max)  # finite, of an infinite sum
        save_checkpoint(layer, tmp_path / "large.safetensors")
        read = read_checkpoint(tmp_path / "large.safetensors").tensors["weight"]
        assert torch.equal(read.double(), layer.weight.double())
        for numbers in ([infinity], [-infinity], [infinity, -infinity], [float("nan")]):
            with torch.no_grad():
                layer.weight.view(-1)[: len(numbers)] = torch.tensor(numbers).to(dtype)
            with pytest.raises(InputError, match=r"weight of .* holds NaN or infinity"):
                save_checkpoint(layer, tmp_path / "bad.safetensors")


def test_what_cannot_be_packed_leaves_no_file(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(BinaryConv2d(3, 4, 3, weight_quantizer="temperature"))

    monkeypatch.setitem(registry._BUILDERS, "annealed", registry._Entry(build, 8))
    model, source, target = create_model("annealed"), tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_checkpoint(model, source)
    refusal(lambda: pack_checkpoint(source, target), "layer 0", "temperature")
    refusal(lambda: pack_checkpoint(pair[1], target), str(pair[1]), "packed already")
    assert os.listdir(tmp_path) == [source.name]
    model[0].quantizer.temperature.zero_()  # type: ignore[index,union-attr]
    save_checkpoint(model, source)
    pack_checkpoint(source, target)
    assert target.exists()


def test_packing_a_file_onto_itself_does_not_lose_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "only.safetensors"
    path.write_bytes(pair[0].read_bytes())
    refusal(lambda: pack_checkpoint(path, path), str(path))
    assert path.read_bytes() == pair[0].read_bytes()


@pytest.mark.parametrize("broken", ["replace", "fsync", "fchmod"])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    model, path = network("es_reactnet_resnet8"), tmp_path / "net.safetensors"
    sha256 = save_checkpoint(model, path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    model.fc.bias.data.zero_()
    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [path.name] and checkpoints.file_sha256(path) == sha256
    assert save_checkpoint(model, path) == checkpoints.file_sha256(path) != sha256
    assert path.stat().st_mode & 0o777 == 0o644 and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["reactnet_resnet8", "es_reactnet_resnet8"])
def test_a_packed_network_narrowed_afterwards_goes_round(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Its affines stay in float32, so that one file holds both dtypes."""
    model = pack_(network(name)).to(dtype)
    want = model(image(dtype))
    save_checkpoint(model, tmp_path / "p.safetensors")
    loaded = load_checkpoint(tmp_path / "p.safetensors")
    kinds = {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()}
    assert kinds == {dtype, torch.float32} and torch.equal(loaded(image(dtype)), want)
    assert count(loaded, (3, 32, 32)).ops == count(network(name), (3, 32, 32)).ops


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_given_network_takes_values_that_its_dtype_holds(tmp_path: Path, dtype: torch.dtype) -> None:
    model = network("reactnet_resnet8", dtype)
    save_checkpoint(model, tmp_path / "w.safetensors")
    given = network("reactnet_resnet8")
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    if dtype == torch.float64:
        with pytest.raises(InputError, match=r"has dtype torch\.float64 for torch\.float32"):
            load_checkpoint(tmp_path / "w.safetensors", given)
        assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())
        given = given.double()
    load_checkpoint(tmp_path / "w.safetensors", given)
    for name, tensor in model.state_dict().items():
        assert torch.equal(given.state_dict()[name].double(), tensor.double())


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.DataParallel,
        AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(AveragedModel(model), backend="eager"),
    ],
    ids=["data parallel", "average", "compiled", "both"],
)
def test_of_a_wrapped_network_the_network_is_saved(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = create_model("reactnet_resnet8", num_classes=3)
    save_checkpoint(wrap(model), tmp_path / "net.safetensors")
    loaded = load_checkpoint(tmp_path / "net.safetensors")
    assert model_spec(loaded) == model_spec(model) and loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
