"""ImageNet folders: the official order of labels, bad layouts in one sentence, every image once, generated images."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from esbnn_core.errors import InputError
from esbnn_core.lit.data import IGNORE
from tasks.classification.data import ClassificationDataModule
from tasks.classification.datasets import DATASETS, open_split
from tasks.classification.generated import GeneratedImages
from tasks.classification.synsets import load_image, official_synsets
from tests.helpers.log import Log

MINI = Path(__file__).parents[3] / "shared" / "data" / "imagenet-mini"
on_mini = pytest.mark.skipif(not MINI.is_dir(), reason="shared/data/imagenet-mini is not on this machine")
# ten synsets and their places in the published class lists
KNOWN = {
    **{"n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497},
    **{"n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701},
}
WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Writes root/{train,val}/<name>/ with `each` small images a folder."""

    def write(train: list[str], val: list[str] | None = None, each: int = 2, root: Path = tmp_path) -> Path:
        for part, names in (("train", train), ("val", train if val is None else val)):
            for place, name in enumerate(names):
                (root / part / name).mkdir(parents=True)
                for i in range(each):
                    image = Image.new("RGB", (12, 10), (20 * place % 256, 50 * i % 256, 90))
                    image.save(root / part / name / f"{name}_{i}.JPEG")
        return root

    return write


def open_data(root: Path, **options: Any) -> ClassificationDataModule:
    data = ClassificationDataModule("imagenet", root=str(root), **{"image_size": 32, "batch_size": 4, **options})
    data.setup()
    return data


def test_the_official_order_is_that_of_the_published_lists() -> None:
    names = official_synsets()
    assert len(names) == len(set(names)) == 1000 and list(names) == sorted(names)
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)
    assert {name: names.index(name) for name in KNOWN} == KNOWN
    timm = pytest.importorskip("timm")
    assert (Path(timm.__file__).parent / "data/_info/imagenet_synsets.txt").read_text().split() == list(names)


@on_mini
def test_the_official_order_is_that_of_the_class_index() -> None:
    index = json.loads((MINI / "imagenet_class_index.json").read_text())
    assert [index[str(label)][0] for label in range(1000)] == list(official_synsets())


@pytest.mark.parametrize(
    ("num_classes", "names", "labels", "order"),
    [
        (None, ["n02102040", "n01440764", "n03888257"], [0, 217, 701], "official synset order"),
        (3, ["n02102040", "n01440764", "n03888257"], [0, 1, 2], "sorted folders"),
        (12, ["n02102040", "n01440764"], [0, 1], "sorted folders"),
        (None, ["dog", "cat"], [0, 1], "sorted folders"),
    ],
)
def test_labels_follow_the_official_order_where_it_applies(
    write_folder: WriteFolder,
    caplog: Log,
    monkeypatch: pytest.MonkeyPatch,
    num_classes: int | None,
    names: list[str],
    labels: list[int],
    order: str,
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning"), "propagate", True)
    with caplog.at_level(logging.INFO):
        data = open_data(write_folder(names), num_classes=num_classes)
    for part in ("train", "val", "test"):
        images = data.splits[part].dataset
        paths = [images.dataset.samples[index][0] for index in images.indices]
        seen = {Path(path).parent.name: images[i][1] for i, path in enumerate(paths)}
        assert seen == dict(zip(sorted(names), labels, strict=True)), part
    said = [r.getMessage() for r in caplog.records if "labels of" in r.getMessage()]
    assert len(said) == 1 and order in said[0]


@pytest.mark.parametrize(
    ("train", "val", "options", "sentence"),
    [
        (["n01440764", "spare"], None, {}, "must be ImageNet's 1,000 synsets, .*, got spare: remove it"),
        (["a", "b", "c"], None, {"num_classes": 2}, "must be at most num_classes=2, got 3"),
        (["a", "b", "c"], ["a", "c"], {"num_classes": 3}, r"must be the same, got b in \S+train and not in \S+val"),
        (["a", "c"], ["a", "b", "c"], {"num_classes": 3}, r"must be the same, got b in \S+val and not in \S+train"),
    ],
)
def test_folders_that_do_not_fit_are_one_sentence(
    write_folder: WriteFolder, train: list[str], val: list[str] | None, options: dict[str, int], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        open_data(write_folder(train, val), **options)
    assert "\n" not in str(error.value)


def test_a_flat_validation_folder_says_how_it_is_sorted(write_folder: WriteFolder) -> None:
    root = write_folder(["n01440764"], [])
    for i in range(3):
        (root / "val").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    with pytest.raises(InputError, match=r"holds 3 images and no class folder.*torchvision\.datasets\.ImageNet\("):
        open_data(root)
    empty = write_folder(["a"], [], root=root / "other")
    (empty / "val").mkdir()
    with pytest.raises(InputError, match=r"other/val must hold class folders, .*, got none: set data\.root"):
        open_data(empty)


def test_a_class_folder_without_images_is_named(write_folder: WriteFolder) -> None:
    root = write_folder(["a", "b"])
    (root / "train" / "none").mkdir()
    (root / "val" / "none").mkdir()
    with pytest.raises(InputError, match=r"cannot be read from .*classes none"):
        open_data(root)


def test_evaluation_alone_needs_no_training_folder(write_folder: WriteFolder) -> None:
    root = write_folder([], ["n01440764", "n02102040"], each=3)
    data = ClassificationDataModule("imagenet", root=str(root), image_size=32)
    data.setup("test")
    (labels,) = (labels for _, labels in data.test_dataloader())
    assert labels.tolist() == [0, 0, 0, 217, 217, 217]


def evaluated(data: ClassificationDataModule, world: int) -> list[tuple[float, int]]:
    """(sum of the pixels, label) of what `world` processes evaluate together, padding left out."""
    seen = []
    for rank in range(world):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
        loader = data.val_dataloader()
        assert len(loader.sampler) == -(-len(data.splits["val"]) // world)
        for images, labels in loader:
            seen += [(round(float(x.double().sum()), 3), int(y)) for x, y in zip(images, labels, strict=True)]
    return [item for item in seen if item[1] != IGNORE]


@pytest.mark.parametrize(("names", "each", "world"), [(3, 3, 2), (2, 5, 3), (1, 2, 4)])
def test_every_image_counts_once_over_processes(write_folder: WriteFolder, names: int, each: int, world: int) -> None:
    data = open_data(write_folder(list(KNOWN)[:names], each=each))
    alone = evaluated(data, 1)
    assert len(alone) == names * each and sorted(evaluated(data, world)) == sorted(alone)


@on_mini
def test_every_real_image_counts_once_over_three_processes() -> None:
    data = open_data(MINI, batch_size=32)
    together = evaluated(data, 3)  # 250 images: neither processes nor batches divide them
    labels = [label for _, label in together]
    assert {label: labels.count(label) for label in set(labels)} == dict.fromkeys(KNOWN.values(), 25)
    assert len({total for total, _ in together}) > 240
    assert sorted(together) == sorted(evaluated(data, 1))


@on_mini
def test_a_real_grey_photograph_is_widened() -> None:
    path = MINI / "val" / "n03028079" / "ILSVRC2012_val_00003351.JPEG"
    with Image.open(path) as raw:
        assert raw.mode == "L"
        grey = raw.copy()
    image = load_image(str(path))
    assert image.mode == "RGB" and all(band.tobytes() == grey.tobytes() for band in image.split())
    x = DATASETS["imagenet"].transform(False)(image)
    assert x.shape == (3, 224, 224)
    values = x * torch.tensor(DATASETS["imagenet"].std).view(3, 1, 1) + torch.tensor(DATASETS["imagenet"].mean).view(
        3, 1, 1
    )
    torch.testing.assert_close(values[0], values[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_files_of_other_colour_modes_become_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("I;16" if mode == "I;16" else mode, (9, 7)).save(path)
    assert (load_image(str(path)).mode, load_image(str(path)).size) == ("RGB", (9, 7))


@pytest.mark.parametrize(("size", "num_classes"), [(64, 1000), (32, 5)])
def test_generated_images_are_the_same_every_time(size: int, num_classes: int) -> None:
    def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        data = ClassificationDataModule(
            "generated", root="nowhere", num_classes=num_classes, image_size=size, batch_size=64, augment=False
        )
        data.prepare_data()
        data.setup()
        images, labels = next(iter(data.test_dataloader() if part == "test" else data.train_dataloader()))
        return images[labels.argsort(stable=True)], labels.sort(stable=True).values

    for part, number in (("train", 64), ("test", 32)):
        torch.manual_seed(number)
        images, labels = load(part)
        again, _ = load(part)
        assert images.shape == (number, 3, size, size) and torch.equal(images, again)
        assert labels.tolist() == sorted(i % num_classes for i in range(number))
        assert len({tuple(image.flatten().tolist()) for image in images}) == number


def test_generated_images_show_their_label() -> None:
    train, test = GeneratedImages(True, 4, 24), GeneratedImages(False, 4, 24)

    def spectrum(data: GeneratedImages, i: int) -> torch.Tensor:
        pixels = torch.tensor(list(data[i][0].tobytes()), dtype=torch.float32).view(24, 24, 3).permute(2, 0, 1)
        return torch.fft.fft2(pixels).abs().flatten()  # no phase: stripes lie elsewhere in every image

    means = [torch.stack([spectrum(train, i) for i in range(label, 64, 4)]).mean(0) for label in range(4)]
    right = [
        min(range(4), key=lambda label: float((spectrum(test, i) - means[label]).norm())) == test[i][1]
        for i in range(32)
    ]
    assert sum(right) >= 30


def write_kaggle(root: Path, solution: str = "", inside: str = "ILSVRC/Data/CLS-LOC") -> Path:
    """Kaggle's archive with three training synsets and four validation images, whose grey is their label's."""
    parts = root / inside
    for synset in ("n01440764", "n02102040", "n03888257"):
        (parts / "train" / synset).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(parts / "train" / synset / f"{synset}_10026.JPEG")
    (parts / "val").mkdir()
    (parts / "test").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (8, 8), (60 * number,) * 3).save(parts / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    rows = ["3,n03888257 85 1 499 272 ", "1,n02102040 1 2 3 4 n02102040 5 6 7 8 ", "2,n01440764 0 0 9 9 "]
    text = "ImageId,PredictionString\n" + "\n".join(f"ILSVRC2012_val_0000000{row}" for row in rows)
    (root / "LOC_val_solution.csv").write_text(solution or f"{text}\nILSVRC2012_val_00000004,n02102040 1 1 2 2 \n")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    return root


@pytest.mark.parametrize("inside", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"])
@pytest.mark.parametrize(("num_classes", "labels"), [(None, [217, 0, 701, 217]), (3, [1, 0, 2, 1])])
def test_kaggles_archive_is_read_as_it_unpacks(
    tmp_path: Path, inside: str, num_classes: int | None, labels: list[int]
) -> None:
    root = write_kaggle(tmp_path, inside=inside)
    for given in (root, root / inside):
        data = open_data(given, num_classes=num_classes)
        items = [data.splits["val"].dataset[i] for i in range(4)]
        assert [label for _, label in items] == labels
        assert [round(image.getpixel((4, 4))[0] / 60) for image, _ in items] == [1, 2, 3, 4]
        train = data.splits["train"].dataset
        assert sorted(train[i][1] for i in range(3)) == sorted(set(labels))
        sentence = "official synset order" if num_classes is None else "order of the sorted folders"
        assert data.label_order == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ImageId,Label\na,b", "must begin with ImageId,PredictionString, got 'ImageId,Label'"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,tench 1 2 3 4", "line 2 .* boxes of one synset"),
        ("ImageId,PredictionString\na,n02102040 1 2 3 4 n01440764 1 2 3 4", "line 2 .* boxes of one synset"),
        ("ImageId,PredictionString\na,n02102040 1 2 3 4\na,n02102040 1 2 3 4", "line 3 .* the image a a second time"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,n02102040 1 2 3 4", "00000002.JPEG must have a row in"),
        ("\n", "must begin with ImageId"),
        ("x" * 200_000, "cannot be read as a csv"),
    ],
)
def test_a_damaged_label_file_of_kaggle_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_data(write_kaggle(tmp_path, solution=text))


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_in_hidden_folders_are_not_part_of_a_class(write_folder: WriteFolder, part: str) -> None:
    """Jupyter leaves copies of what was looked at in .ipynb_checkpoints."""
    root = write_folder(["cat", "dog"], each=3)
    hidden = root / part / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    for i in range(2):
        Image.new("RGB", (12, 10)).save(hidden / f"cat_{i}-checkpoint.JPEG")
    found = open_split("imagenet", str(root), part == "train", num_classes=2)
    assert [label for _, label in found.samples] == [0, 0, 0, 1, 1, 1]
