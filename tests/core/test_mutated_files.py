"""Damaged files: refused in one sentence, or read with the values that were written; never anything in between."""

import io
import json
import random
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from esbnn_core import InputError, create_model, load_checkpoint, pack_, save_checkpoint
from esbnn_core.checkpoint import format as file_format
from esbnn_core.checkpoint.format import read_checkpoint
from esbnn_core.checkpoint.official import load_official, to_official
from esbnn_core.checkpoint.run_file import read_run
from esbnn_core.checkpoint.torch_file import load_torch_file
from esbnn_core.lit.cli import check_run_checkpoint

KINDS = ("latent.safetensors", "packed.safetensors", "official.pth", "run.ckpt")
EACH = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of each kind, small ones of torch."""
    folder = tmp_path_factory.mktemp("whole")
    network = create_model("es_reactnet_resnet8", num_classes=3).eval()
    save_checkpoint(network, folder / "latent.safetensors", metric={"top1": 50.0})
    state = {f"layer{i}.weight": torch.randn(4, 9) for i in range(6)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "official.pth")
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": state, "global_step": 7}, folder / "run.ckpt")
    save_checkpoint(pack_(network), folder / "packed.safetensors", metric={"top1": 50.0})
    return {name: (folder / name).read_bytes() for name in KINDS}


def flip(draw: random.Random, data: bytes) -> bytes:
    """One to four bits, half of them near the start, which describes the rest."""
    made = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        made[draw.randrange(draw.choice([len(made), min(len(made), 4000)]))] ^= 1 << draw.randrange(8)
    return bytes(made)


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.choice([0, 7, 9, draw.randrange(len(data)), len(data) - 1])]


def blank(draw: random.Random, data: bytes) -> bytes:
    start, size = draw.randrange(len(data)), draw.choice([1, 64, 4096])
    return (data[:start] + b"\xff" * size + data[start + size :])[: len(data)]


def delete(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice([1, 8, 100]) :]


def exchange(draw: random.Random, data: bytes) -> bytes:
    """Two blocks of a file in each other's place."""
    first, second = sorted(draw.sample(range(len(data) - 64), 2))
    if second - first < 64:
        return data + b"\0"
    return (
        data[:first]
        + data[second : second + 64]
        + data[first + 64 : second]
        + data[first : first + 64]
        + data[second + 64 :]
    )


def splice(other: bytes, draw: random.Random, data: bytes) -> bytes:
    """The start of another file before the rest of this one."""
    place = draw.choice([64, 1024, len(data) // 3])
    return other[:place] + data[place:]


def values_of(name: str, path: Path) -> dict[str, Tensor]:
    if name.endswith(".safetensors"):
        return dict(read_checkpoint(path).tensors)
    if name == "run.ckpt":
        check_run_checkpoint(path)
    found: Any = load_torch_file(path, "file", "fetch it again")
    return dict(found["state_dict"])


def is_same(found: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return found.keys() == want.keys() and all(torch.equal(found[key], want[key]) for key in want)


@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_is_refused_or_read_as_it_was(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(whole[name])
    want, refused = values_of(name, path), 0
    for seed in range(EACH):
        draw = random.Random(seed)
        other = whole[draw.choice(KINDS)]
        mutate = draw.choice([flip, flip, flip, cut, blank, delete, exchange, partial(splice, other)])
        path.write_bytes(mutate(draw, whole[name]))
        try:
            found = values_of(name, path)
        except InputError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 700, (seed, str(error))
        else:
            assert is_same(found, want), seed
    assert refused > EACH // 2


def test_headers_that_say_something_else_are_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Of a hostile writer: the digest is right."""
    tensors, path = load(whole["latent.safetensors"]), tmp_path / "hostile.safetensors"
    size = int.from_bytes(whole["latent.safetensors"][:8], "little")
    held = json.loads(whole["latent.safetensors"][8 : 8 + size])["__metadata__"]
    held.pop("digest")
    long = "[" * 3000
    changes: list[dict[str, str]] = [
        *({"options": json.dumps({"num_classes": value})} for value in (None, -1, 2**63, "x", [1], 10**9, 1.5, True)),
        *({key: long} for key in ("kind", "weights", "options", "metric", "network", "format_version")),
        {"options": "null"},
        {"network": "bnext_micro"},
        {"network": ""},
        {"kind": "packed"},
        {"weights": "reel"},
        {"format_version": "2"},
    ]
    for change in changes:
        metadata = {**held, **change}
        path.write_bytes(save(tensors, {**metadata, "digest": file_format._digest(tensors, metadata)}))
        with pytest.raises(InputError) as caught:
            load_checkpoint(path)
        assert len(str(caught.value)) < 4500 and "\n" not in str(caught.value), change


def test_torch_files_with_other_contents_are_refused(tmp_path: Path) -> None:
    model = create_model("recu_resnet20", num_classes=3)
    whole = to_official(model)
    name = "conv1.weight"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    huge = torch.zeros(1).expand(2**40)  # a file of some bytes whose tensor would take 4 TB
    counter = "bn1.num_batches_tracked"
    for changed in (
        *({**whole, name: value} for value in (whole[name].to_sparse(), huge, whole[name].to(torch.complex64))),
        *({**whole, name: value} for value in (whole[name].int(), torch.empty_like(whole[name], device="meta"), [1])),
        {**whole, f"module.{name}": whole[name] + 1},
        {**whole, counter: torch.tensor(2.5)},
        {**whole, 3: whole[name]},
    ):
        torch.save(changed, tmp_path / "official.pth")
        with pytest.raises(InputError) as caught:
            load_official(model, tmp_path / "official.pth")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_runs_checkpoint_with_other_tensors_is_refused(tmp_path: Path) -> None:
    path, weight = tmp_path / "last.ckpt", torch.ones(2, 3)
    noted = {"pytorch-lightning_version": "2.6.6"}
    for value in (weight.to_sparse(), torch.empty_like(weight, device="meta"), [1.0], None):
        torch.save({**noted, "state_dict": {"network.fc.weight": value}}, path)
        for read in (check_run_checkpoint, read_run):
            with pytest.raises(InputError, match=r"last\.ckpt must hold a state_dict of dense tensors: give another"):
                read(path)
    torch.save({**noted, "state_dict": {"network.fc.weight": weight}}, path)
    assert torch.equal(check_run_checkpoint(path)["network.fc.weight"], weight)
    assert torch.equal(read_run(path).tensors["fc.weight"], weight)


def test_a_compressed_record_is_refused_before_it_is_unpacked(whole: dict[str, bytes], tmp_path: Path) -> None:
    source = zipfile.ZipFile(io.BytesIO(whole["official.pth"]))
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as made:
        for record in source.infolist():
            made.writestr(record.filename, source.read(record))
    with pytest.raises(InputError, match=r"record \S+ is compressed"):
        load_torch_file(tmp_path / "bomb.pth", "file", "fetch it again")


def test_a_record_marked_as_a_folder_is_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    """torch's reader gives such a tensor whatever the memory holds; the record itself has its checksum."""
    entries = [at for at in range(len(whole["official.pth"])) if whole["official.pth"].startswith(b"PK\x01\x02", at)]
    assert len(entries) > 6
    for entry in entries:
        changed = bytearray(whole["official.pth"])
        changed[entry + 38] |= 0x10  # the external attributes in the archive's directory
        (tmp_path / "official.pth").write_bytes(changed)
        with pytest.raises(InputError, match="is marked as a folder"):
            load_torch_file(tmp_path / "official.pth", "official file", "fetch it again")


def test_a_file_without_checksums_is_announced(tmp_path: Path) -> None:
    path, state = tmp_path / "old.pth", {"weight": torch.arange(6.0)}
    for zipped in (False, True):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            found: Any = load_torch_file(path, "official file", "fetch it again")
        assert torch.equal(found["weight"], state["weight"])
        told = [str(warning.message) for warning in seen]
        assert len(told) == (0 if zipped else 1)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"\x7f" + whole[-2:])  # nothing else can find this
    with pytest.warns(
        UserWarning, match=r"^official file .*old\.pth has no checksum, because a torch before 1\.6 wrote"
    ):
        found = load_torch_file(path, "official file", "fetch it again")
    assert not torch.equal(found["weight"], state["weight"])


def test_a_refusal_gives_neither_bad_advice_nor_a_list(whole: dict[str, bytes], tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "object.pth")
    with pytest.raises(InputError) as caught:
        load_torch_file(tmp_path / "object.pth", "file", "fetch it again")
    assert "pathlib" in str(caught.value) and "weights_only" not in str(caught.value)
    path = tmp_path / "latent.safetensors"
    path.write_bytes(whole["latent.safetensors"].replace(b'"F32"', b'"D32"', 1))
    with pytest.raises(InputError, match="unknown variant `D32`") as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) - len(str(path)) < 300
