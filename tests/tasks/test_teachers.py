"""Teachers: local files strictly, missing weights with the place they would be read from, nothing from a network."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from esbnn_core.errors import InputError
from tasks.classification import teachers
from tasks.classification.teachers import CheckpointTeacher, TimmTeacher, TorchvisionTeacher

TINY = "test_vit"


def tiny(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state: dict[str, Tensor] = timm.create_model(TINY).state_dict()
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("container", ["model", "state_dict", ""])
def test_a_local_file_is_the_teacher(tmp_path: Path, container: str) -> None:
    state, path = tiny(1), tmp_path / "teacher.pth"
    torch.save({container: state, "epoch": 3} if container else state, path)
    teacher = TimmTeacher(TINY, str(path)).build()
    assert same(teacher.state_dict(), state) and not same(teacher.state_dict(), tiny(2))
    save_file(state, tmp_path / "teacher.safetensors")
    assert same(TimmTeacher(TINY, str(tmp_path / "teacher.safetensors")).build().state_dict(), state)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("read as code",)


def test_local_files_that_are_no_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, path = tiny(1), tmp_path / "teacher.pth"

    def refused(words: str, name: str = TINY) -> None:
        with pytest.raises(InputError, match=words) as caught:
            TimmTeacher(name, str(path)).build()
        assert "\n" not in str(caught.value) and path.name in str(caught.value)

    refused("do not exist: put the file there")
    torch.save({"model": {key: t for key, t in state.items() if key != "head.bias"} | {"odd": torch.ones(1)}}, path)
    refused("does not fit the teacher test_vit: head.bias is missing; odd is not expected: name the timm model")
    torch.save({**state, "head.bias": torch.zeros(7)}, path)
    refused(r"head\.bias has shape \(7,\) for \(1000,\)")
    torch.save(state, path)
    refused("and [0-9]+ more: name the timm model", "test_resnet")
    torch.save({"model": {"a": 1}}, path)
    refused("must be a mapping of tensors")
    torch.save({"model": Evil()}, path)
    refused("cannot be read as plain tensors")
    path.write_bytes(b"\x00" * 100)
    refused("cannot be read as plain tensors")
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(b"\x00" * 100)
    refused("cannot be read as plain tensors")
    assert "read as code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("deit_small_patch16_224.fb_in1k", "models--timm--deit_small_patch16_224.fb_in1k"),
        ("efficientnet_b0.ra_in1k", "models--timm--efficientnet_b0.ra_in1k"),
    ],
)
def test_missing_timm_weights_say_where_they_are_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    from huggingface_hub import constants

    cache = str(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", cache, raising=False)
    with pytest.raises(InputError) as caught:
        TimmTeacher(name).build()
    text = str(caught.value)
    assert f"{cache}/{folder}" in text and "local file as `file`" in text and "\n" not in text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_missing_torchvision_weights_say_where_they_are_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(InputError) as caught:
        TorchvisionTeacher("resnet18", "IMAGENET1K_V1").build()
    text = str(caught.value)
    assert f"{tmp_path}/hub/checkpoints/resnet18-f37072fd.pth" in text and "no network" in text and "\n" not in text
    # and from there they are read
    state = teachers.torchvision.models.resnet18().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr("torch.hub.HASH_REGEX", __import__("re").compile("$^"))  # ours has another hash
    assert same(TorchvisionTeacher("resnet18", "IMAGENET1K_V1").build().state_dict(), state)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (
            TimmTeacher("nonsense"),
            r"nonsense of timm cannot be built \(Unknown model \(nonsense\)\): name a timm model",
        ),
        (TorchvisionTeacher("nonsense"), "nonsense with weights DEFAULT cannot be built"),
        (TorchvisionTeacher("resnet18", "V9"), "resnet18 with weights V9 cannot be built"),
        (TimmTeacher("nonsense", "somewhere.pth"), "must be a model of timm, got nonsense"),
    ],
)
def test_unknown_names(teacher: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        teacher.build()


@pytest.mark.parametrize("classes", [10, 1000])
def test_untrained_teachers_need_no_file(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", never)
    monkeypatch.setattr("timm.models._hub.load_state_dict_from_hf", never)
    built: list[nn.Module] = [
        TimmTeacher(TINY, "missing.pth").build_untrained(classes),
        TorchvisionTeacher("resnet18", "IMAGENET1K_V1").build_untrained(classes),
    ]
    assert [m(torch.zeros(2, 3, size, size)).shape for m, size in zip(built, (160, 64), strict=True)] == [
        (2, classes)
    ] * 2
    with pytest.raises(InputError, match=r"missing\.safetensors does not exist"):
        CheckpointTeacher("missing.safetensors").build_untrained(classes)
