"""`python -m tasks.evaluate`: official and own files, both readings of a BNext, exact counts, errors in a sentence."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from esbnn_core import create_model, load_checkpoint, pack_, save_checkpoint
from esbnn_core.checkpoint.official import to_official
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.lit.recipes import read_recipe
from tasks.classification.augment import IMAGENET, Augmentation, evaluation_recipe
from tasks.classification.generated import GeneratedImages
from tasks.evaluate.command import main
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
MINI = ROOT.parent / "shared" / "data" / "imagenet-mini"
NAMES = ["n01440764", "n02102040", "n02979186"]
EACH = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val/<synset>/ with five small photographs each, of uneven sides, one of them grey."""
    root = tmp_path_factory.mktemp("imagenet")
    images = GeneratedImages(True, 3, 80)
    for label, name in enumerate(NAMES):
        (root / "val" / name).mkdir(parents=True)
        for i in range(EACH):
            image = images[label + 3 * i][0].resize((80 + 7 * i, 90))
            (image.convert("L") if i == 0 else image).save(root / "val" / name / f"{i}.JPEG")
    return root


def set_temperature(model: nn.Module, value: float) -> nn.Module:
    for _, layer in binary_layers(model):
        if isinstance(layer.quantizer, Temperature):
            layer.quantizer.temperature.fill_(value)
    return model


def trained(name: str, seed: int = 10, **options: Any) -> nn.Module:
    """A network of which no two weights are alike: statistics and affines drawn, latent weights of size 1."""
    torch.manual_seed(seed)
    model = create_model(name, **options)
    with torch.no_grad():
        for _, layer in binary_layers(model):
            layer.weight.normal_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        images = torch.stack([prepared(GeneratedImages(False, 3, 64)[i][0], 48, 40, "bilinear") for i in range(16)])
        model.train()(images)
        # no class that wins whatever it sees
        model.eval().fc.bias -= model(images).mean(0)
    return model


def write_official(model: nn.Module, path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in to_official(model).items()}}, path)
    return path


def prepared(image: Image.Image, resized: int, size: int, interpolation: str) -> Tensor:
    """The evaluation transform in single steps; a last bit of it that differed would turn signs in a binary network."""
    x = F.resize(F.pil_to_tensor(image.convert("RGB")), [resized], F.InterpolationMode(interpolation), antialias=True)
    return F.normalize(F.to_dtype(F.center_crop(x, [size]), torch.float32, scale=True), *IMAGENET)


def counted(model: nn.Module, folder: Path, labels: list[int], *preparation: Any) -> tuple[int, int]:
    """Images right among the first and the first five, by ranks."""
    paths = [path for name in NAMES for path in sorted((folder / "val" / name).iterdir())]
    images = torch.stack([prepared(Image.open(path), *preparation) for path in paths])
    model = model.to(memory_format=torch.channels_last)  # as the command runs it: the same numbers to the last bit
    with torch.no_grad():
        logits = model(images.contiguous(memory_format=torch.channels_last))
    ranks = [int((row > row[labels[i // EACH]]).sum()) for i, row in enumerate(logits)]
    return sum(rank < 1 for rank in ranks), sum(rank < 5 for rank in ranks)


def run(*words: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([*map(str, words), "--workers", "0", "--device", "cpu"])
    out = capsys.readouterr()
    return code, out.out, out.err


def table(out: str) -> dict[str, tuple[float, float]]:
    """The printed rows."""
    rows = re.findall(r"^(as stored|forced sign|packed) +([\d.]+)% +([\d.]+)%$", out, re.MULTILINE)
    return {name: (float(top1), float(top5)) for name, top1, top5 in rows}


def percent(right: tuple[int, int], images: int = 3 * EACH) -> tuple[float, float]:
    return round(100 * right[0] / images, 3), round(100 * right[1] / images, 3)


@pytest.fixture(scope="module")
def bnext() -> nn.Module:
    """ES-BNext of one block a stage, with seven classes."""
    return trained("es_bnext_micro", num_classes=7, seed=11)


@pytest.mark.slow
def test_an_official_bnext_with_real_weights_is_read_both_ways(
    bnext: nn.Module, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_official(set_temperature(bnext, 0.5), tmp_path / "es.pth.tar")
    words = [path, "--model", "es_bnext_micro", "--num-classes", 7, "--data", folder, "--image-size", 40]
    code, out, err = run(*words, "--json", tmp_path / "r.json", capsys=capsys)
    assert code == 0, err
    preparation = (42, 40, "bicubic")  # 40 / 0.95, rounded down
    stored = percent(counted(set_temperature(bnext, 0.5), folder, [0, 1, 2], *preparation))
    forced = percent(counted(set_temperature(bnext, 0.0), folder, [0, 1, 2], *preparation))
    assert table(out) == {"as stored": stored, "forced sign": forced}
    assert stored != forced and 0 < stored[0] < stored[1] < 100
    assert "tensors      262 read" in out and "temperature  0.5 to 0.5" in out
    assert "resize 42 bicubic, centre crop 40 (crop_pct 0.95)" in out
    assert out.count("WARNING: weight temperatures reach 0.5") == 1 and "'forced sign'" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["images"], result["tensors"], result["temperature"]) == (15, 262, [0.5, 0.5])
    assert result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and result["sha256"] in out
    rows = {row["weights"]: (round(row["top1"], 3), round(row["top5"], 3)) for row in result["rows"]}
    assert rows == table(out) and result["warning"] in out
    code, _, err = run(*words, "--backend", "packed", capsys=capsys)
    assert code == 2 and "to pack must be below 1e-07, got 0.5" in err and "use --backend latent" in err


@pytest.mark.slow
def test_an_annealed_bnext_has_one_row_and_packs(
    bnext: nn.Module, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_official(set_temperature(bnext, 5e-8), tmp_path / "es.pth")
    words = [path, "--model", "es_bnext_micro", "--num-classes", 7, "--data", folder, "--image-size", 40]
    rows = []
    for backend in ("latent", "packed"):
        code, out, err = run(*words, "--backend", backend, "--crop-pct", 0.8, capsys=capsys)
        assert code == 0, err
        assert "WARNING" not in out and "centre crop 40 (crop_pct 0.8)" in out
        rows.append(table(out))
    right = percent(counted(set_temperature(bnext, 0.0), folder, [0, 1, 2], 50, 40, "bicubic"))
    assert rows == [{"as stored": right}, {"packed": right}]


def one_answer(model: nn.Module) -> nn.Module:
    """A network that answers class 0, then 217, 5, 6, 7, whatever it sees."""
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
        model.fc.bias[[0, 217, 5, 6, 7]] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0])
    return model


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file of it."""
    return write_official(one_answer(create_model("reactnet_resnet18")), tmp_path_factory.mktemp("r18") / "r18.pth.tar")


@pytest.mark.slow
def test_labels_are_those_of_the_official_order(
    folder: Path, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, want in ((0, (33.333, 66.667)), (8, (37.5, 75.0))):  # five images each; of eight 3, 3 and 2
        words = ["--model", "reactnet_resnet18", "--data", folder, "--image-size", 32, "--limit", limit]
        code, out, err = run(answers, *words, "--batch-size", 4, capsys=capsys)
        assert code == 0, err
        assert table(out) == {"as stored": want} and "labels in the official synset order" in out
        assert f"images       {limit or 15} of imagenet" in out and "temperature" not in out


@pytest.mark.slow
@pytest.mark.skipif(not MINI.is_dir(), reason="shared/data/imagenet-mini is not on this machine")
def test_real_images_are_counted_once_each(answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [answers, "--model", "reactnet_resnet18", "--data", MINI, "--image-size", 32, "--batch-size", 33]
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, err
    assert "images       250 of imagenet" in out and table(out) == {"as stored": (10.0, 20.0)}


def test_our_own_files_know_their_network(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained("es_reactnet_resnet8", num_classes=7, in_channels=3, tau=2)
    save_checkpoint(model, tmp_path / "latent.safetensors")
    right = percent(counted(load_checkpoint(tmp_path / "latent.safetensors"), folder, [0, 1, 2], 54, 48, "bilinear"))
    assert 0 < right[0] < 100
    save_checkpoint(pack_(model), tmp_path / "packed.safetensors")
    ways = [("latent", [], "as stored"), ("latent", ["--backend", "packed"], "packed"), ("packed", [], "packed")]
    ways += [("latent", ["--model", "es_reactnet_resnet8", "--num-classes", 7], "as stored")]
    for kind, more, row in ways:
        path = tmp_path / f"{kind}.safetensors"
        code, out, err = run(path, "--data", folder, "--image-size", 48, *more, capsys=capsys)
        assert code == 0, err
        assert table(out) == {row: right}, (kind, more)
        assert "num_classes=7" in out and ("zeros" in out) is (kind == "latent")
    code, _, err = run(tmp_path / "packed.safetensors", "--data", folder, "--backend", "latent", capsys=capsys)
    assert code == 2 and "is packed and holds no latent weights: use --backend packed" in err


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file of a network with three classes."""
    return write_official(create_model("reactnet_resnet18", num_classes=3), tmp_path_factory.mktemp("r18") / "r18.pth")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "bnext_tiny"], r"r18\.pth does not fit the network.*feature\.0\.prelu.weight is missing"),
        (["--model", "reactnet_resnet18", "--num-classes", "5"], r"fc\.weight has shape \(3, 512\) for \(5, 512\)"),
        ([], r"r18\.pth does not name its network: give --model"),
        (["--model", "reactnet_r18"], r"'reactnet_r18' is not known: nearest"),
        (["--model", "reactnet_resnet18", "--tau", "2"], r"reactnet_resnet18 has no option 'tau'"),
        (["--model", "reactnet_resnet18", "--num-classes", "3", "--data", "/none"], r"cannot be read from /none"),
        (["--model", "reactnet_resnet18", "--num-classes", "3", "--crop-pct", "95"], r"crop_pct must be .*, got 95\.0"),
        (["--model", "reactnet_resnet18", "--batch-size", "0"], r"batch size must be a whole number"),
        (["--model", "reactnet_resnet18", "--limit", "-1"], r"limit must be a whole number of at least 0, got -1"),
        (["--dataset", "cifar10", "--split", "val"], r"cifar10 has no validation images of its own"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(
    folder: Path,
    three_classes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    base = ["--json", tmp_path / "out.json", *([] if "--data" in words else ["--data", folder])]
    code, out, err = run(three_classes, *base, *words, capsys=capsys)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(sentence, last), err
    assert not (tmp_path / "out.json").exists()


def test_a_bad_image_in_a_worker_is_one_sentence(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "val" / "n01440764" / "0.JPEG"
    bad.parent.mkdir(parents=True)
    GeneratedImages(True, 3, 64)[0][0].save(bad)
    bad.write_bytes(bad.read_bytes()[:500])
    words = [str(answers), "--model", "reactnet_resnet18", "--data", str(tmp_path), "--device", "cpu", "--workers", "1"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert f"error: image {bad} cannot be read" in err and "Traceback" not in err and err.count("\n") <= 2


@pytest.mark.slow
def test_other_datasets_and_their_channels(data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(trained("reactnet_resnet8", num_classes=10), tmp_path / "rgb.safetensors")
    words = ["--data", data_root, "--dataset", "fashion_mnist_mini", "--limit", 64]
    code, _, err = run(tmp_path / "rgb.safetensors", *words, capsys=capsys)
    assert code == 2 and "takes images of 3 channels, fashion_mnist_mini has 1: name the --dataset" in err
    save_checkpoint(create_model("reactnet_resnet8", in_channels=1), tmp_path / "grey.safetensors")
    code, out, err = run(tmp_path / "grey.safetensors", *words, capsys=capsys)
    assert code == 0, err
    assert "images       64 of fashion_mnist_mini" in out and "whole image at 28, mean 0.286, std 0.353" in out
    code, out, _ = run(tmp_path / "rgb.safetensors", "--dataset", "generated", "--image-size", 32, capsys=capsys)
    assert code == 0 and "images       32 of generated" in out


@pytest.mark.parametrize(
    ("network", "dataset", "want"),
    [
        ("es_bnext_tiny", "imagenet", {"crop_pct": 0.95, "eval_interpolation": "bicubic"}),
        ("es_binaryvit", "imagenet", {"eval_interpolation": "bicubic"}),
        ("reactnet_a", "imagenet", {}),
        ("es_recu_resnet20", "cifar10", {"mean": IMAGENET[0], "std": IMAGENET[1]}),
        ("bnext18", "cifar10", {"mean": (0.507, 0.487, 0.441), "std": (0.267, 0.256, 0.276)}),
        ("reactnet_resnet18", "cifar10", {}),
        ("es_bnext_tiny", "fashion_mnist", {}),
    ],
)
def test_the_recipe_decides_how_images_are_prepared(network: str, dataset: str, want: dict[str, Any]) -> None:
    assert evaluation_recipe(network, dataset) == Augmentation(**want)


CONFIGS = sorted((ROOT / "configs" / "classification").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_training_recipes_evaluate_as_the_command_does(config: Path) -> None:
    recipe = read_recipe(config)
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in recipe["data"].get("augmentation", {}).items()}
    ours, dataset = Augmentation(**given), recipe["data"]["dataset"]
    command = evaluation_recipe(recipe["model"]["network"], dataset)
    for name in ("crop_pct", "eval_interpolation", "mean", "std"):
        assert getattr(ours, name) == getattr(command, name), name


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "tasks.evaluate", "none.pth", "--model", "reactnet_resnet18"]
    done = processes.run(command, ROOT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "error: checkpoint none.pth does not exist: give the path of a file, or a name of --list"
    )
