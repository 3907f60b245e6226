"""A network of the catalogue that was changed since it was built: no file names it, none is read as another network."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import ESConfig, InputError, create_model, expand_, load_checkpoint, model_spec, pack_
from esbnn_core.checkpoint.format import read_checkpoint, save_checkpoint
from esbnn_core.lit.export import PACKED, write_weights
from esbnn_core.transforms.real_weights import real_weights_

Change = Callable[[nn.Module], object]


def network(name: str = "reactnet_resnet8") -> nn.Module:
    torch.manual_seed(5)
    return create_model(name).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def pool(model: nn.Module) -> None:
    shortcut = model.get_submodule("stages.layer2.0.shortcut")
    assert isinstance(shortcut, nn.Sequential)
    shortcut[0] = nn.MaxPool2d(2, 2)


def window(model: nn.Module) -> None:
    model.get_submodule("stages.layer2.0.shortcut.0").ceil_mode = False


def norm(model: nn.Module) -> None:
    model.get_submodule("stages.layer1.1.norm").eps = 0.5


def padding(model: nn.Module) -> None:
    model.get_submodule("stages.layer3.1.conv").pad_value = -1


def without(model: nn.Module) -> None:
    setattr(model.get_submodule("stages.layer1"), "1", nn.Identity())


def further(model: nn.Module) -> None:
    model.get_submodule("stages").add_module("last", nn.ReLU())


def rectified(model: nn.Module) -> None:
    model.get_submodule("stages.layer1.0").act = nn.ReLU()


def own_forward(model: nn.Module) -> None:
    head = model.get_submodule("fc")
    head.forward = lambda x: 2 * nn.functional.linear(x, head.weight, head.bias)  # type: ignore[assignment, arg-type]


CHANGES = {
    "stages.layer2.0.shortcut.0 is a MaxPool2d, built as a AvgPool2d": pool,
    "stages.layer2.0.shortcut.0.ceil_mode is False, built with True": window,
    "stages.layer1.1.norm.eps is 0.5, built with 1e-05": norm,
    "stages.layer3.1.conv.pad_value is -1, built with 0": padding,
    "stages.layer1.1 is a Identity, built as a BinaryUnit": without,
    "stages.last was added": further,
    "stages.layer1.0.act is a ReLU, built as a RPReLU": rectified,
    "fc has a forward of its own": own_forward,
    "fc.out_features is 3, built with 10": lambda model: setattr(model, "fc", nn.Linear(64, 3)),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_file_of_a_changed_network_names_none_and_is_read_with_one(
    said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed, path = network(), tmp_path / "weights.safetensors"
    CHANGES[said](changed)
    with caplog.at_level(logging.WARNING):
        save_checkpoint(changed, path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: {said}, so that the file names no network and is read with one as model"
    ]
    assert read_checkpoint(path).network == "" and read_checkpoint(path).options == {}
    with pytest.raises(InputError, match="names no network"):
        load_checkpoint(path)
    torch.manual_seed(6)  # other numbers, the same changes
    given = create_model("reactnet_resnet8")
    CHANGES[said](given)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(path, given)(images()), changed.eval()(images()))


@torch.no_grad()
def momentum(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01


UNCHANGED: dict[str, Change] = {
    "nothing": lambda model: model,
    "training mode": lambda model: model.train(),
    "frozen": lambda model: model.requires_grad_(False),
    "momentum": momentum,
    "synchronised norms": nn.SyncBatchNorm.convert_sync_batchnorm,
    "real weights": real_weights_,
    "float64": lambda model: model.double(),
    "an attribute": lambda model: setattr(model, "note", "mine"),
    "a hook": lambda model: model.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", ["reactnet_resnet8", "es_reactnet_resnet20"])
@pytest.mark.parametrize("change", UNCHANGED)
def test_what_evaluation_does_not_read_leaves_the_name(
    name: str, change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = network(name), tmp_path / "weights.safetensors"
    made = UNCHANGED[change](model)
    model = made if isinstance(made, nn.Module) else model
    save_checkpoint(model, path)
    read = load_checkpoint(path)
    assert model_spec(read) == model_spec(network(name)) and not caplog.records
    assert all(torch.equal(a, b) for a, b in zip(read.state_dict().values(), model.state_dict().values(), strict=True))


def test_packed_files_name_what_packing_folds_and_nothing_else(tmp_path: Path) -> None:
    """A norm's eps is in the numbers of a packed network, a pooling is not."""
    for change, named in ((norm, True), (pool, False), (padding, False)):
        changed, path = network(), tmp_path / f"{change.__name__}.safetensors"
        change(changed)
        packed = pack_(changed)
        with torch.no_grad():
            want = packed(images())
        save_checkpoint(packed, path)
        assert (read_checkpoint(path).network == "reactnet_resnet8") == named
        given = network()
        change(given)
        with torch.no_grad():
            assert torch.equal(load_checkpoint(path, None if named else given)(images()), want)


def test_a_run_writes_both_files_of_a_changed_network(tmp_path: Path) -> None:
    changed = network()
    pool(changed)
    lines = write_weights(changed, tmp_path, {"top1": 50.0})
    assert lines[1].startswith(PACKED) and "not written" not in lines[1]
    given = network()
    pool(given)
    with torch.no_grad():
        want = pack_(changed)(images())
        assert torch.equal(load_checkpoint(tmp_path / PACKED, given)(images()), want)


def test_an_expanded_network_takes_the_name_only_if_nothing_else_was_changed() -> None:
    for change, name in ((momentum, "es_reactnet_resnet8"), (padding, None), (norm, None), (window, None)):
        model = network()
        change(model)
        spec = model_spec(expand_(model, ESConfig(tau=2)))
        assert (spec.name if spec else None) == name


def test_an_onnx_file_has_no_name_of_a_changed_network(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from esbnn_core.onnx import export_onnx

    changed = network()
    window(changed)
    export_onnx(pack_(changed), tmp_path / "net.onnx", classes=["a", "b", "c"])
    held = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert not {"network", "options"} & set(held)
    assert held["input_size"] == "[3, 32, 32]" and held["classes"] == "a\nb\nc"
