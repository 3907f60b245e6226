"""Official files: names and shapes of the originals, there and back, every container, and what is refused by name."""

import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import InputError, create_model
from esbnn_core.checkpoint.official import load_official, official_names, to_official
from esbnn_core.models import resnet
from tests.helpers.networks import narrow

LISTS = Path(__file__).parents[3] / "shared" / "spec" / "state-keys"
# sha256 of the sorted "name shape" lines of each original's state_dict, and how many lines
ORIGINALS = {
    "reactnet_resnet18": ("reactnet_r18", "bb845d5999637c99269c0ecf8662d35bdf58bd9119870558578a35c4d62c3117", 186),
    "reactnet_a": ("adambnn_reactnet_a", "3fe2dbdb8063bb3b8003b9ef4f6f025710b8dbdf56e182fc023e9175b9ec3e5d", 298),
    "rep_reactnet_a": ("rep_reactnet_a", "45fea3a58bc56dad0cff8c351b5415c1c9b205762581815a49919cd7d412450d", 298),
    "bnext_tiny": ("bnext_t", "35fdef5472b2b9cb5864a0c3677ff9d9f44fefb4c61e60238a433acd28a0aeb9", 661),
    "binaryvit": ("binaryvit", "358aee079321d2b055092f51489e804d9f65ac4985d85c26a1903624896630cb", 1919),
    "es_bnext_tiny": ("esbnext_t", "7b9c9ac4d974944b60d41e515ec185378de75125bc8af82938e06233fbdda3d6", 661),
}
TRUNKS = ["bidet_vgg16", "es_bidet_vgg16", "bidet_resnet18", "es_bidet_resnet18"]
LARGE = ["rep_reactnet_a", "es_bnext_micro", "es_binaryvit_micro", *TRUNKS]
SMALL = ["reactnet_resnet18", "bireal_resnet18", "recu_resnet20", "es_recu_resnet20"]


def digest(shapes: dict[str, list[int]]) -> str:
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@cache
def pool(seed: int) -> Tensor:
    """More numbers than the largest tensor has: to draw all those of a network anew takes longer than each test."""
    return torch.rand(1_500_000, generator=torch.Generator().manual_seed(seed)) + 0.01


def stirred(name: str, seed: int, **options: Any) -> nn.Module:
    """The network, narrow, with drawn values, other ones in each tensor and for each seed."""
    with torch.device("meta"), narrow():
        model = create_model(name, **options)
    for number, (key, tensor) in enumerate(model.to_empty(device="cpu").state_dict().items()):
        if tensor.is_floating_point():
            tensor.copy_(pool(seed)[101 * number :][: tensor.numel()].view(tensor.shape))
        else:
            tensor.fill_(seed + len(key))
    return model


def same(a: nn.Module, b: dict[str, Tensor]) -> bool:
    state = a.state_dict()
    return state.keys() == b.keys() and all(torch.equal(state[key], b[key]) for key in b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIGINALS)
def test_names_and_shapes_are_the_originals(name: str) -> None:
    file, want, number = ORIGINALS[name]
    with torch.device("meta"):
        names = official_names(create_model(name))
    shapes = {official: list(shape) for official, shape in names.values()}
    assert len(shapes) == number and digest(shapes) == want
    if LISTS.is_dir():
        listed: Any = json.loads((LISTS / f"{file}_state_keys.json").read_text())
        if "state_dict_order" in listed:
            listed = {key: shape for key, shape, _ in listed["state_dict_order"]}
        assert shapes == listed


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in (*SMALL, *LARGE)), ("es_binaryvit_micro", {"real_merges": True})]
)
def test_there_and_back_is_the_identity(name: str, options: dict[str, bool]) -> None:
    one, other = (stirred(name, seed, **options) for seed in (1, 2))
    assert not same(one, other.state_dict())
    report = load_official(other, to_official(one))
    assert same(one, other.state_dict())
    official = to_official(one)
    # only the linear layers of BinaryViT are centred, where a rounded difference may be 0 by chance
    rows = [w for key, w in official.items() if "vit" in key and w.dim() == 2]
    assert report.zeros == sum(int((w == w.mean(1, keepdim=True)).sum()) for w in rows)
    assert report.tensors == len(official)
    assert (report.temperatures is not None) == ("bnext" in name)


@pytest.mark.parametrize("name", ["bnext_tiny", "es_bnext_small", "rep_bnext_tiny"])
@pytest.mark.parametrize("recoupling", [True, False])
def test_bnext_without_elm_has_another_name_for_its_3x3_units(name: str, recoupling: bool) -> None:
    with torch.device("meta"):
        networks = [create_model(name, elm=elm, info_recoupling=recoupling) for elm in (True, False)]
    attends, plain = (dict(official_names(model).values()) for model in networks)
    assert not any("FFN_3x3" in key for key in attends) and not any("Attention" in key for key in plain)
    renamed = {key.replace(".Attention.", ".FFN_3x3."): shape for key, shape in attends.items()}
    if not recoupling:  # ELM keeps its second norm, an FFN has none then
        norms = {key for key in renamed if re.search(r"\.FFN_3x3\.norm2\.", key)}
        assert {int(key.split(".")[1]) % 2 for key in norms} == {0}
        renamed = {key: shape for key, shape in renamed.items() if key not in norms}
    assert plain == renamed and "feature.2.FFN_3x3.binary_conv.weight" in plain


@pytest.mark.parametrize("recoupling", [True, False])
def test_bnext_without_elm_there_and_back(recoupling: bool) -> None:
    options = {"elm": False, "info_recoupling": recoupling}
    one, other = (stirred("es_bnext_micro", seed, **options) for seed in (1, 2))
    official = to_official(one)
    assert load_official(other, official).tensors == len(official) and same(one, other.state_dict())
    with pytest.raises(InputError, match=r"looks like a BNext without ELM .*Attention\.activation1\.weight is missing"):
        load_official(create_model("es_bnext_micro", info_recoupling=recoupling), official)
    with pytest.raises(InputError, match=r"looks like a BNext \(.*FFN_3x3\.activation1\.weight is missing"):
        load_official(other, to_official(create_model("es_bnext_micro", info_recoupling=recoupling)))


@pytest.mark.parametrize(
    ("name", "container"),
    [
        *((name, "state_dict") for name in SMALL),
        *(("es_recu_resnet20", container) for container in (None, "params", "weight", "model")),
    ],
)
def test_containers_prefix_flat_weights_and_scalars(name: str, container: str | None, tmp_path: Path) -> None:
    one = stirred(name, 1)
    tensors = {}
    for key, tensor in to_official(one).items():
        flat = key.endswith("binary_conv.weight")
        tensors[f"module.{key}s" if flat else f"module.{key}"] = tensor.reshape(-1, 1) if flat else tensor
        if key.endswith(".tau"):
            tensors[f"module.{key}"] = tensor.reshape(())
    file: Any = tensors if container is None else {"epoch": 3, container: tensors, "best_top1_acc": torch.tensor(1.0)}
    torch.save(file, tmp_path / "model.pth.tar")
    other = stirred(name, 2)
    load_official(other, tmp_path / "model.pth.tar")
    assert same(one, other.state_dict())


def test_exact_zeros_and_temperatures_are_reported() -> None:
    official = to_official(stirred("reactnet_resnet18", 1))
    official["layer1.0.binary_conv.weight"][0, 0] = 0
    assert load_official(stirred("reactnet_resnet18", 2), official).zeros == 9
    model = create_model("es_bnext_micro")
    official = {key: tensor.clone() for key, tensor in to_official(model).items()}
    official["feature.3.FFN.binary_conv.temperature"].fill_(1e-9)
    report = load_official(model, official)
    assert report.temperatures == (pytest.approx(1e-9), 1.0) and report.noted is None
    file = {"epoch": 3, "temp": [1.0, 0.9, 0.81], "state_dict": official}
    assert load_official(model, file).noted == 0.81


def drop(t: dict[str, Tensor]) -> None:
    del t["bn1.weight"]


def add(t: dict[str, Tensor]) -> None:
    t["bn9.weight"] = torch.ones(3)


def reshape(t: dict[str, Tensor]) -> None:
    t["conv1.weight"] = torch.ones(2, 2)


def spoil(t: dict[str, Tensor]) -> None:
    t["conv1.weight"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop, "looks like a ReActNet-ResNet .*bn1.weight is missing"),
        (add, "bn9.weight is not expected"),
        (reshape, r"stem.conv.weight has shape \(2, 2\)"),
        (spoil, "stem.conv.weight of the mapping holds NaN"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    model = stirred("reactnet_resnet18", 2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    official = to_official(stirred("reactnet_resnet18", 1))
    change(official)
    with pytest.raises(InputError, match=said) as error:
        load_official(model, official)
    assert "\n" not in str(error.value) and same(model, before)


def test_another_family_and_another_size_say_what_they_look_like() -> None:
    model = create_model("reactnet_resnet18")
    with torch.device("meta"):
        others = {
            name: to_official_names(name) for name in ("bnext_tiny", "reactnet_a", "bireal_resnet18", "recu_resnet20")
        }
    for name, looks in zip(others, ("a BNext", "ReActNet-A", "a Bi-Real ResNet", "a ReCU ResNet"), strict=True):
        with pytest.raises(InputError, match=f"it looks like {looks}"):
            load_official(model, others[name])
    with pytest.raises(InputError, match=r"layer1\.4\.move0\.bias is not expected"):
        load_official(model, to_official_names("reactnet_resnet34"))
    with pytest.raises(InputError, match="reactnet_resnet8 has no official files"):
        to_official(create_model("reactnet_resnet8"))


def test_the_trunk_of_ssd300_has_the_detectors_names() -> None:
    with torch.device("meta"):
        names = official_names(create_model("bidet_vgg16"))
    shapes = {official: list(shape) for official, shape in names.values()}
    assert len(shapes) == 139 and digest(shapes) == "293db8b23e398532f57b239cd8305adfc303025f75f0484f5878f673c348e38b"
    if LISTS.is_dir():
        listed: Any = json.loads((LISTS / "bidet_ssd300_state_keys.json").read_text())
        assert shapes == {key: shape for key, shape in listed.items() if key.startswith("vgg.")}


@pytest.mark.parametrize("prefix", ["vgg.layers.", "layers.", ""])
def test_the_trunk_of_ssd300_is_read_with_and_without_the_detectors_prefix(prefix: str) -> None:
    one, other = stirred("bidet_vgg16", 1), stirred("bidet_vgg16", 2)
    official = {f"{prefix}{key.removeprefix('vgg.layers.')}": value for key, value in to_official(one).items()}
    load_official(other, {"state_dict": official})
    assert same(one, other.state_dict())
    with pytest.raises(InputError, match=r"looks like BiDet's VGG-16.*L2Norm\.weight is not expected"):
        load_official(other, {**official, "L2Norm.weight": torch.ones(512)})
    with pytest.raises(InputError, match=r"looks like BiDet's VGG-16.*conv1\.weight"):
        load_official(stirred("reactnet_resnet18", 1), official)


@pytest.mark.parametrize("name", ["bnext18", "latent_resnet18", "recu_resnet34", "bidet_vgg16_classifier"])
def test_networks_without_a_key_map_say_so(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    for refused in (lambda: to_official(model), lambda: load_official(model, {"a": torch.ones(1)})):
        with pytest.raises(InputError, match=f"{name} has no official files that a key map is declared for"):
            refused()


def to_official_names(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in official_names(create_model(name)).values()}


class Trap:
    """A pickle that would call a function when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("read",)


def test_files_that_are_not_plain_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model("recu_resnet20")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"state_dict": to_official(model), "extra": Trap()}, tmp_path / "trap.pth")
    for name in ("text.pth", "empty.pth", "trap.pth"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as plain tensors") as error:
            load_official(model, tmp_path / name)
        assert "\n" not in str(error.value)
    assert "read" not in capsys.readouterr().out.split()
    with pytest.raises(InputError, match="does not exist"):
        load_official(model, tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "no.pth")
    with pytest.raises(InputError, match="holds no mapping of dense tensors"):
        load_official(model, tmp_path / "no.pth")


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_one_sentence_wherever_it_is_cut(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both containers of torch.save, cut near both ends, where the pickle lies, and with one byte turned."""
    monkeypatch.setitem(vars(resnet.R20), "units", (1, 1, 1))
    model = create_model("recu_resnet20")
    path = tmp_path / "whole.pth"
    torch.save(to_official(model), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    cuts = [whole[:place] for place in (*range(0, 4000, 97), *range(len(whole) - 4000, len(whole), 97))]
    damaged = [
        *cuts,
        *(bytes([*whole[:place], whole[place] ^ 0x55]) + whole[place + 1 :] for place in range(0, 2000, 53)),
    ]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            load_official(model, path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= len(cuts)  # a turned byte may lie in a name that nothing reads
