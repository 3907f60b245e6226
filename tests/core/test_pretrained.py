"""Released networks by name: load_checkpoint(NAME), create_model(..., pretrained=...), and what both refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import InputError, create_model, load_checkpoint, model_spec, models, pack_, save_checkpoint
from esbnn_core.checkpoint import network as door
from esbnn_core.checkpoint.catalogue import FOLDER, read_catalogue
from esbnn_core.checkpoint.official import to_official
from esbnn_core.packed.layers import is_packed

NAME, NETWORK = "es_reactnet_resnet8_fashion", "es_reactnet_resnet8"
FILE = FOLDER / NAME / "packed.safetensors"


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def image(side: int = 28) -> Tensor:
    return torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(5))


def refuse(call: Any, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


@pytest.fixture
def no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be fetched or read."""

    def fail(*words: Any, **options: Any) -> None:
        raise AssertionError("a file was asked for")

    monkeypatch.setattr(door, "fetch", fail)
    monkeypatch.setattr(door, "read_checkpoint", fail)


@pytest.mark.parametrize("entry", [e for e in read_catalogue() if e.file is not None], ids=lambda entry: entry.name)
def test_every_released_network_comes_by_name(entry: Any) -> None:
    want = load_checkpoint(FOLDER / entry.file)
    x = torch.randn(2, *model_spec(want).input_size, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    for found in (load_checkpoint(entry.name), create_model(entry.network, pretrained=entry.name)):
        assert same(found, want) and is_packed(found) and not found.training
        assert model_spec(found) == model_spec(want) and torch.equal(found(x), want(x))


def test_another_seed_of_a_file_is_no_other_file() -> None:
    first, second = (load_checkpoint(name) for name in (NAME, f"{NAME}_seed1"))
    assert same(create_model(NETWORK, pretrained=True), first) and not same(first, second)
    assert same(create_model(NETWORK, pretrained=f"{NAME}_seed1"), second)


def test_a_network_with_one_file_needs_no_name() -> None:
    want = load_checkpoint(FILE)
    for options in ({}, {"tau": 2}, {"num_classes": 10, "in_channels": 1, "groups": 1}):
        found = create_model(NETWORK, pretrained=True, **options)
        assert same(found, want) and "pretrained" not in model_spec(found).options  # type: ignore[union-attr]
    plain = create_model(NETWORK, pretrained=False, tau=4)
    assert plain.training and not is_packed(plain) and model_spec(plain).options["tau"] == 4  # type: ignore[union-attr]
    assert same(load_checkpoint(NAME, models.create_model(NETWORK, num_classes=10, in_channels=1)), want)


@pytest.mark.filterwarnings("ignore:.*non-meta parameter")
def test_a_pretrained_network_goes_to_the_default_device() -> None:
    with torch.device("meta"):
        found = create_model(NETWORK, pretrained=True)
    assert {tensor.device.type for tensor in found.state_dict().values()} == {"meta"}


@pytest.mark.usefixtures("no_file")
def test_options_that_are_not_the_files_are_refused_by_name() -> None:
    want = f"in_channels=1, tau=2 with the released file {NAME}, got in_channels=3, tau=4: leave them out"
    refuse(lambda: create_model(NETWORK, pretrained=True, num_classes=10, in_channels=3, tau=4), want)
    refuse(lambda: create_model(NETWORK, pretrained=NAME, copy_spread=0.5), "copy_spread=0.0", "copy_spread=0.5")
    # an option that the entry leaves to its default
    refuse(
        lambda: create_model("bnext_tiny", pretrained=True, num_classes=10), "num_classes=1000", "got num_classes=10"
    )


@pytest.mark.usefixtures("no_file")
@pytest.mark.parametrize("pretrained", [True, NAME])
def test_unknown_names_and_options_are_refused_as_without_weights(pretrained: bool | str) -> None:
    for name, options in ((NETWORK, {"colour": 1}), ("es_reactnt_resnet8", {}), (NETWORK, {"tau": 3})):
        plain = refuse(lambda: models.create_model(name, **options))  # noqa: B023
        assert refuse(lambda: create_model(name, pretrained=pretrained, **options)) == plain  # noqa: B023
    refuse(lambda: models.create_model(NETWORK, pretrained=True), f"{NETWORK} has no option 'pretrained'")


@pytest.mark.usefixtures("no_file")
def test_which_file_is_meant() -> None:
    both = "reactnet_a, adambnn_reactnet_a"
    refuse(lambda: create_model("reactnet_a", pretrained=True), f"released files of reactnet_a, {both}, got True")
    refuse(lambda: create_model("recu_resnet20", pretrained=NAME), f"got '{NAME}' of {NETWORK}: name another")
    refuse(lambda: create_model("recu_resnet18", pretrained="recu_resnet18_two_stage"), "this project does not have")
    # no file, one that cannot be read, and one of another task
    for name in ("reactnet_resnet20", "recu_resnet18", "bidet_vgg16_classifier"):
        refuse(lambda: create_model(name, pretrained=True), f"network {name} has no released file", NETWORK)  # noqa: B023
    refuse(lambda: create_model("recu_resnet34", pretrained="recu_resnet34"), "cannot be read by this project: ")
    refuse(lambda: create_model(NETWORK, pretrained=NAME[:-1]), f"nearest: {NAME}")
    for value in (None, 1, "", Path(NAME)):
        refuse(lambda: create_model(NETWORK, pretrained=value), "pretrained" if value != "" else "''")  # type: ignore[arg-type]  # noqa: B023


@pytest.mark.usefixtures("no_file")
def test_names_that_load_checkpoint_does_not_have() -> None:
    for name in (NAME[:-1], Path(NAME[:-1])):
        refuse(lambda: load_checkpoint(name), "is neither a file nor a name of the catalogue", f"nearest: {NAME}")  # noqa: B023
    refuse(lambda: load_checkpoint("bidet_ssd300"), "a network of detection", "configs/detection/bidet_ssd300.yaml")
    refuse(lambda: load_checkpoint("recu_vgg_small_cifar10"), "cannot be read by this project")


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    released = load_checkpoint(NAME)
    (tmp_path / NAME).mkdir()  # a folder is not a file
    assert same(load_checkpoint(NAME), released)
    (tmp_path / NAME).rmdir()
    other = models.create_model("reactnet_resnet8").eval()
    save_checkpoint(other, tmp_path / NAME)
    for source in (NAME, Path(NAME), f"./{NAME}"):
        assert same(load_checkpoint(source), other)
    assert same(create_model(NETWORK, pretrained=NAME), released)
    for source in ("gone.safetensors", "folder/gone", Path("gone.pth")):
        refuse(lambda: load_checkpoint(source), f"checkpoint {source} does not exist")  # noqa: B023


def test_a_hash_is_compared() -> None:
    digest = next(entry.sha256 for entry in read_catalogue() if entry.name == NAME)
    assert same(load_checkpoint(NAME, sha256=digest.upper()), load_checkpoint(FILE))
    refuse(lambda: load_checkpoint(NAME, sha256="0" * 64), "0" * 64, digest)


@pytest.mark.slow
def test_an_official_file_comes_by_name_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    name, network = "recu_resnet20_cifar10", "recu_resnet20"
    for call in (lambda: load_checkpoint(name), lambda: create_model(network, pretrained=name)):
        refuse(call, f"checkpoint {name}", f"{tmp_path}/checkpoints/{name}.pth", "https://github.com/z-hXu/ReCU")
    torch.manual_seed(2)
    want = models.create_model(network)
    path = tmp_path / "checkpoints" / f"{name}.pth"
    path.parent.mkdir()
    torch.save({"state_dict": to_official(want)}, path)
    for found in (load_checkpoint(name), create_model(network, pretrained=name, num_classes=10)):
        assert same(found, want) and not found.training and not is_packed(found)
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(found(x), pack_(found)(x))
    refuse(lambda: load_checkpoint(name, sha256="0" * 64), "0" * 64, "fetch it again")
    given = models.create_model(network)
    assert load_checkpoint(name, given) is given and same(given, want)
    path.write_bytes(path.read_bytes()[:1000])  # what a person keeps is not removed
    refuse(lambda: load_checkpoint(name), "cannot be read as plain tensors")
    assert path.exists()


def test_an_installed_package_has_no_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "CATALOGUE", tmp_path / "manifest.json")
    for call in (lambda: load_checkpoint(NAME), lambda: create_model(NETWORK, pretrained=True)):
        refuse(call, "is not a file, and the catalogue", "checkout of the repository")
