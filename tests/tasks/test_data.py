"""The data module: splits, determinism over workers, and what it says of bad folders and files."""

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from esbnn_core.errors import InputError
from esbnn_core.lit.data import IGNORE
from tasks.classification.data import ClassificationDataModule
from tasks.classification.datasets import DATASETS, EMBEDDED
from tasks.classification.synsets import load_image

MINI = Path(__file__).parents[3] / "shared" / "data" / "imagenet-mini"
MakeData = Callable[..., ClassificationDataModule]


def batches(loader: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.sampler.set_epoch(1)
    return list(loader)


def test_embedded_images_are_read_whole(data_root: str) -> None:
    data = ClassificationDataModule(root=data_root, batch_size=1000, augment=False)
    data.setup()
    images, labels = next(iter(data.test_dataloader()))
    raw = lzma.decompress((EMBEDDED / "t10k-images-idx3-ubyte.xz").read_bytes())[16:]
    pixels = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(-1, 1, 28, 28)[:1000]
    torch.testing.assert_close(images, (pixels / 255 - 0.2860) / 0.3530, rtol=0, atol=1e-6)
    assert labels[:8].tolist() == list(lzma.decompress((EMBEDDED / "t10k-labels-idx1-ubyte.xz").read_bytes())[8:16])
    assert (len(data.splits["train"]), len(data.splits["test"])) == (12000, 3000)


@pytest.mark.parametrize("val_size", [1, 500])
def test_split_is_disjoint_and_goes_by_seed(data_root: str, val_size: int) -> None:
    def parts(seed: int) -> tuple[list[int], list[int]]:
        data = ClassificationDataModule(root=data_root, val_size=val_size, seed=seed)
        data.setup("fit")
        return data.splits["train"].dataset.indices, data.splits["val"].dataset.indices

    train, val = parts(3)
    assert len(val) == val_size and sorted(train + val) == list(range(12000))
    assert parts(3) == (train, val)
    assert parts(4)[1] != val


def test_batches_do_not_depend_on_the_number_of_workers(make_data: MakeData) -> None:
    got = []
    for workers in (0, 2):
        data = make_data(num_workers=workers)
        data.setup("fit")
        got.append(batches(data.train_dataloader()))
    assert len(got[0]) == len(got[1]) == 4
    for (x, y), (u, v) in zip(*got, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_augmentation_changes_with_the_epoch(make_data: MakeData) -> None:
    data = make_data(train_size=1)  # one image: no order that could differ
    data.setup("fit")
    loader = data.train_dataloader()
    seen = [next(_epoch(loader, epoch))[0] for epoch in (0, 0, 1, 2, 3)]
    assert torch.equal(seen[0], seen[1])
    assert len({tuple(image.flatten().tolist()) for image in seen}) >= 3


def _epoch(loader: Any, epoch: int) -> Any:
    loader.sampler.set_epoch(epoch)
    return iter(loader)


def test_wrong_root_is_one_sentence_with_the_fix(tmp_path: Path) -> None:
    for name in ("fashion_mnist", "cifar10", "imagenet"):
        with pytest.raises(InputError, match=r"cannot be read from .*it must be .*, set data\.root") as error:
            ClassificationDataModule(name, root=str(tmp_path / "none")).prepare_data()
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"dataset must be one of fashion_mnist, .*, got 'fashion'"):
        ClassificationDataModule("fashion")


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_truncated_idx_file_is_named(data_root: str, tmp_path: Path, keep: int) -> None:
    source = Path(data_root) / "fashion_mnist_mini" / "FashionMNIST" / "raw"
    target = tmp_path / "FashionMNIST" / "raw"
    target.mkdir(parents=True)
    for file in source.iterdir():
        data = file.read_bytes()
        (target / file.name).write_bytes(data[:keep] if file.name == "train-images-idx3-ubyte" else data)
    data_module = ClassificationDataModule("fashion_mnist", root=str(tmp_path))
    with pytest.raises(InputError, match="training split of fashion_mnist cannot be read") as error:
        data_module.prepare_data()
    assert "\n" not in str(error.value)


def write_image_folder(root: Path, classes: int = 3) -> Path:
    """A small ImageNet layout of real embedded images, written as JPEG, one of them grey."""
    raw = lzma.decompress((EMBEDDED / "t10k-images-idx3-ubyte.xz").read_bytes())[16:]
    pixels = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
    for part in ("train", "val"):
        for label in range(classes):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(pixels[4 * label + i]).resize((48, 40))
                (image if i == 0 else image.convert("RGB")).save(folder / f"{i}.JPEG")
    return root


def test_image_folder_with_a_grey_image(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path)
    data = ClassificationDataModule("imagenet", root=str(root), num_classes=3, image_size=32, batch_size=5)
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (5, 3, 32, 32) and labels.tolist() == [0, 0, 0, 0, 1]
    grey = (images[0] * torch.tensor(DATASETS["imagenet"].std).view(3, 1, 1)).add(
        torch.tensor(DATASETS["imagenet"].mean).view(3, 1, 1)
    )
    torch.testing.assert_close(grey[0], grey[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"not an image at all", None])
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_file_is_named(tmp_path: Path, content: bytes | None, workers: int) -> None:
    root = write_image_folder(tmp_path)
    bad = root / "train" / "n00000001" / "2.JPEG"
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=r"2\.JPEG cannot be read .*: replace or remove it") as error:
        load_image(str(bad))
    assert "\n" not in str(error.value) and str(error.value).count(str(bad)) == 1
    data = ClassificationDataModule("imagenet", root=str(root), num_classes=3, image_size=32, num_workers=workers)
    data.setup("fit")
    with pytest.raises(InputError, match=r"n00000001/2\.JPEG"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("size", "labels"), [(3, [0, 1, 2]), (6, [0, 0, 1, 1, 2, 2]), (99, [0] * 4 + [1] * 4 + [2] * 4)]
)
def test_a_part_of_a_folder_has_all_its_classes(tmp_path: Path, size: int, labels: list[int]) -> None:
    root = write_image_folder(tmp_path)
    data = ClassificationDataModule("imagenet", root=str(root), num_classes=3, image_size=32, test_size=size)
    data.setup()
    assert [label for batch in data.test_dataloader() for label in batch[1].tolist()] == labels
    data.setup("predict")
    names = [Path(name) for name in data.predict_files]
    assert [int(name.parent.name[1:]) for name in names] == labels and len(set(names)) == len(labels)


@pytest.mark.slow
def test_more_labels_than_classes(tmp_path: Path, data_root: str) -> None:
    data = ClassificationDataModule(root=data_root, num_classes=9)
    with pytest.raises(InputError, match="must be below num_classes=9, got 9"):
        data.setup("fit")
    root = write_image_folder(tmp_path)
    with pytest.raises(InputError, match="val_size must be below the number of training images, 12, got 99"):
        ClassificationDataModule("imagenet", root=str(root), num_classes=3, val_size=99).setup("fit")


@pytest.mark.slow
@pytest.mark.skipif(not MINI.is_dir(), reason="shared/data/imagenet-mini is not on this machine")
def test_real_imagenet_images() -> None:
    data = ClassificationDataModule("imagenet", root=str(MINI), num_classes=10, batch_size=25, test_size=50)
    data.setup("test")
    seen = list(data.test_dataloader())
    assert [tuple(x.shape) for x, _ in seen] == [(25, 3, 224, 224)] * 2
    assert all(torch.isfinite(x).all() and x.std() > 0.3 for x, _ in seen)
    labels = torch.cat([y for _, y in seen])
    assert IGNORE not in labels and labels.unique().tolist() == list(range(10))  # not the first classes alone
